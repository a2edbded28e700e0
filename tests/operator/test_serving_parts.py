"""The serving shell's parts that need no API server: the queue, the gate's patch, the status, the queries."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from splitwatt_client.errors import OutcomeUnknown
from splitwatt_core.admission.snapshot import AdmissionVerdict
from splitwatt_core.admission.standing import ClusterStanding
from splitwatt_core.budget.keeper import Keeper
from splitwatt_core.budget.tree import Requirement, Selector
from splitwatt_core.clusters import (
    ClusterName,
    ClusterSpec,
    EngineSpec,
    EngineType,
    Role,
    RoleSpec,
    RouterSpec,
    RouterType,
    SloSpec,
    cluster_label,
)
from splitwatt_core.conditions import Condition
from splitwatt_core.policies.shipped import POLICIES
from splitwatt_core.rendering.objects import object_name
from splitwatt_core.rendering.render import RenderContext
from splitwatt_core.serving.latency import LEVELS
from splitwatt_operator.cluster.store import Change, Key, Kind
from splitwatt_operator.metrics import Metrics
from splitwatt_operator.pen import Pen
from splitwatt_operator.recorder import Recorder
from splitwatt_operator.serving import queue as serving_queue
from splitwatt_operator.serving.admission import gate_patch
from splitwatt_operator.serving.loop import Serving
from splitwatt_operator.serving.queue import WorkQueue
from splitwatt_operator.serving.slo import Latency, quantile_query
from splitwatt_operator.serving.status import invalid_status, status_of, waits_s
from support.objects import Objects

# ---------------------------------------------------------------------------------------------------------------- queue


async def test_a_key_is_worked_on_by_one_worker_and_again_if_it_changed_meanwhile() -> None:
    queue: WorkQueue[str] = WorkQueue()
    queue.add("a")
    queue.add("a")
    queue.add("b")
    assert await queue.get() == "a"
    queue.add("a")
    assert await queue.get() == "b"
    waiting = asyncio.create_task(queue.get())
    await asyncio.sleep(0)
    assert not waiting.done(), "a is being worked on"
    queue.done("a")
    assert await waiting == "a"


async def test_failures_pause_longer_each_time_and_success_starts_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving_queue, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(serving_queue, "LONGEST_PAUSE_S", 0.03)
    queue: WorkQueue[str] = WorkQueue()
    queue.add("a")
    pauses = []
    for _ in range(4):
        key = await queue.get()
        pauses.append(queue.failed(key))
    assert pauses == [0.01, 0.02, 0.03, 0.03]
    queue.done(await queue.get())
    queue.add("a")
    assert queue.failed(await queue.get()) == 0.01
    queue.forget("a")
    queue.close()


async def test_a_failed_key_that_changed_meanwhile_does_not_wait() -> None:
    queue: WorkQueue[str] = WorkQueue()
    queue.add("a")
    key = await queue.get()
    queue.add(key)
    queue.failed(key)
    assert await asyncio.wait_for(queue.get(), 1.0) == "a"


async def test_an_earlier_timer_stays() -> None:
    queue: WorkQueue[str] = WorkQueue()
    queue.add_after("a", 0.0)
    queue.add_after("a", 60.0)
    assert await asyncio.wait_for(queue.get(), 1.0) == "a"


async def test_whoever_makes_many_clusters_ends_no_operator_by_it() -> None:
    queue: WorkQueue[int] = WorkQueue()
    for key in (*range(20_000), *range(20_000)):
        queue.add(key)
    assert [await queue.get() for _ in range(20_000)] == list(range(20_000))


# ------------------------------------------------------------------------------------------------------------- who is due


def test_an_edited_object_is_its_clusters_whatever_its_name_or_label() -> None:
    objects, name = Objects(), "long-" + "x" * 95
    keeper, recorder = Keeper(term=1, policies=POLICIES), Recorder(Metrics(), instance="t")
    serving = Serving(
        objects.store, objects.view, None, None, keeper,  # type: ignore[arg-type]
        recorder=recorder, prometheus=None, context=RenderContext(), metrics=Metrics(),
    )  # fmt: skip
    objects.cluster(name)
    made = object_name(name, Role.DECODE)
    change = Change(Kind.DEPLOYMENT, Key("s", made))
    objects.put(Kind.DEPLOYMENT, made, meta={"labels": {"splitwatt.io/cluster": cluster_label(name)}})
    mine = {ClusterName("s", name)}
    assert serving._clusters_of(change) == mine
    objects.put(Kind.DEPLOYMENT, made, meta={"labels": {}})
    assert serving._clusters_of(change) == mine, "somebody took the label away"
    objects.cluster("other")
    objects.put(Kind.DEPLOYMENT, made, meta={"labels": {"splitwatt.io/cluster": "other"}})
    assert serving._clusters_of(change) == mine | {ClusterName("s", "other")}, "whose it was has to put it right"
    objects.put(Kind.DEPLOYMENT, made, meta={"labels": {"splitwatt.io/cluster": cluster_label(name)}})
    assert mine <= set(serving._clusters_of(change))
    objects.remove(Kind.DEPLOYMENT, made)
    assert serving._clusters_of(change) == mine


async def test_a_status_that_may_have_landed_is_written_over() -> None:
    """It is again as it was before: what stands may be the one whose answer was lost."""

    class Api:
        def __init__(self) -> None:
            self.taken: list[int] = []

        async def apply(self, manifest: Any, **_: Any) -> Any:
            self.taken.append(manifest["status"]["powerFloorWatts"])
            if len(self.taken) == 2:
                raise OutcomeUnknown("the answer broke off")
            return {**manifest, "metadata": {**obj["metadata"], "resourceVersion": "99"}}

    objects, keeper = Objects(), Keeper(term=1, policies=POLICIES)
    obj, api = objects.cluster(), Api()
    serving = Serving(
        objects.store, objects.view, None, Pen(api, Metrics(), held=lambda _: True), keeper,  # type: ignore[arg-type]
        recorder=Recorder(Metrics(), instance="t"), prometheus=None, context=RenderContext(), metrics=Metrics(),
    )  # fmt: skip

    def status(watts: int) -> dict[str, Any]:
        return {"powerFloorWatts": watts, "prefill": {"replicas": watts}, "conditions": []}

    await serving._show(obj, status(1))
    with pytest.raises(OutcomeUnknown):
        await serving._show(obj, status(2))
    await serving._show(obj, status(1))
    await serving._show(obj, status(1))
    assert api.taken == [1, 2, 1]


# ----------------------------------------------------------------------------------------------------------------- gate


def test_the_gates_patch_is_bound_narrows_every_term_and_keeps_other_gates() -> None:
    terms = [{"matchExpressions": [{"key": "zone", "operator": "Exists"}]}, {"matchFields": [{"key": "metadata.name"}]}]
    required = {"nodeSelectorTerms": terms}
    pod = {
        "metadata": {"uid": "u", "resourceVersion": "7", "annotations": {"theirs": "x"}},
        "spec": {
            "schedulingGates": [{"name": "splitwatt.io/power"}, {"name": "queue"}],
            "affinity": {
                "podAntiAffinity": {"kept": True},
                "nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": required, "preferred": "kept"},
            },
        },
    }
    selector = Selector({"rack": "a"}, (Requirement("gone", "DoesNotExist"), Requirement("row", "In", ("1", "2"))))
    patch = gate_patch(pod, leaf="rack-a", selector=selector)
    assert patch[0] == {"op": "test", "path": "/metadata/uid", "value": "u"}
    assert patch[1] == {"op": "test", "path": "/metadata/resourceVersion", "value": "7"}
    by_path = {row["path"]: row for row in patch[2:]}
    assert by_path["/spec/schedulingGates"]["value"] == [{"name": "queue"}]
    assert (
        by_path["/metadata/annotations/splitwatt.io~1power-budget"]["value"] == "rack-a"
        and "/metadata/annotations" not in by_path
    )
    affinity = by_path["/spec/affinity"]["value"]
    assert affinity["podAntiAffinity"] == {"kept": True}
    assert affinity["nodeAffinity"]["preferred"] == "kept"
    added = [
        {"key": "rack", "operator": "In", "values": ["a"]},
        {"key": "gone", "operator": "DoesNotExist"},
        {"key": "row", "operator": "In", "values": ["1", "2"]},
    ]
    narrowed = affinity["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert narrowed[0]["matchExpressions"] == [{"key": "zone", "operator": "Exists"}, *added]
    assert narrowed[1] == {"matchFields": [{"key": "metadata.name"}], "matchExpressions": added}
    assert terms[0]["matchExpressions"] == [{"key": "zone", "operator": "Exists"}], "the store's object is untouched"


def test_the_last_gate_is_removed_and_a_leaf_of_all_nodes_narrows_nothing() -> None:
    pod = {
        "metadata": {"uid": "u", "resourceVersion": "7"},
        "spec": {"schedulingGates": [{"name": "splitwatt.io/power"}]},
    }
    paths = {row["path"]: row for row in gate_patch(pod, leaf="all", selector=Selector())}
    assert paths["/spec/schedulingGates"]["op"] == "remove"
    assert "/spec/affinity" not in paths
    assert paths["/metadata/annotations"]["value"] == {"splitwatt.io/power-budget": "all"}


def test_the_planned_node_is_a_wish_and_a_term_that_matches_nothing_stays_so() -> None:
    theirs = {"weight": 1, "preference": {"matchExpressions": []}}
    required = {"nodeSelectorTerms": [{}, {"matchExpressions": [{"key": "zone", "operator": "Exists"}]}]}
    pod = {
        "metadata": {"uid": "u", "resourceVersion": "7"},
        "spec": {
            "schedulingGates": [{"name": "splitwatt.io/power"}],
            "affinity": {
                "nodeAffinity": {
                    "requiredDuringSchedulingIgnoredDuringExecution": required,
                    "preferredDuringSchedulingIgnoredDuringExecution": [theirs],
                }
            },
        },
    }
    [affinity] = [
        row["value"]["nodeAffinity"]
        for row in gate_patch(pod, leaf="rack-a", selector=Selector({"rack": "a"}), node="n1")
        if row["path"] == "/spec/affinity"
    ]
    wish = {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n1"]}]}
    assert affinity["preferredDuringSchedulingIgnoredDuringExecution"] == [theirs, {"weight": 100, "preference": wish}]
    terms = affinity["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert [len(term.get("matchExpressions", ())) for term in terms] == [0, 2], "else it would match the whole leaf"


# --------------------------------------------------------------------------------------------------------------- status


def cluster(**changes: Any) -> ClusterSpec:
    whole: dict[str, Any] = {
        "namespace": "s",
        "name": "chat",
        "uid": "u",
        "generation": 2,
        "model": "m",
        "engine": EngineSpec(EngineType.EMULATED),
        "prefill": RoleSpec(2, 8),
        "decode": RoleSpec(0, 8),
        **changes,
    }
    return ClusterSpec(**whole)


UNPROVEN = Condition("KVTransferVerified", None, "NotProbed", "not yet")
ADMITTED = ClusterStanding(AdmissionVerdict(True, "Admitted", "all"), {Role.PREFILL: 2}, 5824.4)


def deployment(ready: int, *, updated: int = 2, observed: int = 1) -> dict[str, Any]:
    numbers = {"replicas": 2, "readyReplicas": ready, "updatedReplicas": updated, "observedGeneration": observed}
    return {"metadata": {"generation": 1}, "status": numbers}


def conditions(
    *, prefill: Any, spec: ClusterSpec | None = None, standing: ClusterStanding | None = ADMITTED, **rest: Any
) -> dict[str, tuple[str, str, str]]:
    status = status_of(
        spec or cluster(),
        {Role.PREFILL: prefill, Role.DECODE: rest.get("decode", deployment(0, updated=0)), Role.MIXED: rest.get("mixed")},
        rest.get("router", deployment(1)),
        standing=standing,
        latency=rest.get("latency", Latency()),
        proof=rest.get("proof", UNPROVEN),
        problems=rest.get("problems", []),
        unjudged=rest.get("unjudged", ()),
        previous={},
        now_s=0.0,
    )
    return {c["type"]: (c["status"], c["reason"], c["message"]) for c in status["conditions"]}


def test_ready_says_what_is_missing() -> None:
    assert conditions(prefill=deployment(2))["Ready"][:2] == ("True", "Serving")
    assert conditions(prefill=deployment(2))["DecodeReady"][:2] == ("True", "ScaledToZero")
    assert conditions(prefill=deployment(1))["PrefillReady"] == ("False", "ReplicasNotReady", "1 of 2 replicas are ready.")
    assert conditions(prefill=deployment(1))["Ready"][1] == "RolesNotReady"
    assert conditions(prefill=deployment(2, updated=1))["PrefillReady"][1] == "RollingOut"
    assert conditions(prefill=deployment(2, observed=0))["PrefillReady"][1] == "RollingOut"
    assert conditions(prefill=None)["PrefillReady"][1] == "NotCreated"
    refused = ClusterStanding(AdmissionVerdict(False, "InsufficientPower", "600 W are missing"), {}, 0.0)
    assert conditions(prefill=deployment(0), standing=refused)["Ready"] == ("False", "WaitingForPower", "600 W are missing")
    assert conditions(prefill=deployment(0), standing=None)["PowerAdmitted"][0] == "Unknown"
    assert conditions(prefill=deployment(2), problems=["Service x: no"])["Ready"] == (
        "False",
        "ObjectsNotApplied",
        "Service x: no",
    )


def test_ready_needs_the_router_that_clients_are_led_to() -> None:
    spec = cluster(decode=RoleSpec(2, 8))
    both: dict[str, Any] = {"prefill": deployment(2), "decode": deployment(2)}
    assert conditions(spec=spec, **both)["RouterReady"] == ("True", "RouterReady", "1 of 1 routers are ready.")
    assert conditions(spec=spec, **both)["Ready"][:2] == ("True", "Serving")
    away = conditions(spec=spec, router=deployment(0), **both)
    assert away["RouterReady"][:2] == ("False", "RouterNotReady")
    assert away["Ready"] == ("False", "RouterNotReady", "0 of 1 routers are ready.")
    assert conditions(spec=spec, router=None, **both)["Ready"][:2] == ("False", "RouterNotReady")
    assert conditions(spec=cluster(), prefill=deployment(2))["RouterReady"][:2] == ("Unknown", "ScaledToZero")
    none = conditions(spec=replace(spec, router=RouterSpec(RouterType.NONE)), router=None, **both)
    assert none["RouterReady"][:2] == ("Unknown", "NoRouter")
    assert none["Ready"][0] == "True" and "nothing is split" in none["Ready"][2]


def test_an_unsplit_cluster_says_how_its_one_pool_stands() -> None:
    spec = cluster(prefill=None, decode=None, mixed=RoleSpec(2, 8))
    standing = ClusterStanding(ADMITTED.verdict, {Role.MIXED: 2}, 0.0)
    status = status_of(
        spec, {Role.PREFILL: None, Role.DECODE: None, Role.MIXED: deployment(1)}, deployment(1), standing=standing,
        latency=Latency(), proof=UNPROVEN, problems=[], previous={}, now_s=0.0,
    )  # fmt: skip
    numbers = {"replicas": 2, "readyReplicas": 1, "admittedReplicas": 2, "wantedReplicas": 2}
    assert status["mixed"] == {**numbers, "labelSelector": "splitwatt.io/cluster=chat,splitwatt.io/role=mixed"}
    assert not {"prefill", "decode"} & status.keys()
    found = conditions(spec=spec, prefill=None, mixed=deployment(1))
    assert found["MixedReady"] == ("False", "ReplicasNotReady", "1 of 2 replicas are ready.")
    assert found["Ready"][:2] == ("False", "RolesNotReady") and not {"PrefillReady", "DecodeReady"} & found.keys()
    ready = conditions(spec=spec, prefill=None, mixed=deployment(2))
    assert ready["Ready"] == ("True", "Serving", "Every replica is ready, and so is the router."), "no proof is owed"
    assert conditions(spec=spec, prefill=None, mixed=deployment(2), router=deployment(0))["Ready"][1] == "RouterNotReady"
    own = replace(spec, router=RouterSpec(RouterType.NONE))
    assert "clients reach the mixed pods" in conditions(spec=own, prefill=None, mixed=deployment(2))["RouterReady"][2]
    asleep = replace(spec, mixed=RoleSpec(0, 8))
    assert conditions(spec=asleep, prefill=None, mixed=deployment(0, updated=0))["RouterReady"][:2] == ("Unknown", "ScaledToZero")


def test_a_third_pool_beside_two_is_waited_for_too() -> None:
    spec = cluster(decode=RoleSpec(2, 8), mixed=RoleSpec(2, 8), router=RouterSpec(RouterType.NONE))
    both: dict[str, Any] = {"spec": spec, "prefill": deployment(2), "decode": deployment(2)}
    assert conditions(**both, mixed=deployment(1))["Ready"] == ("False", "RolesNotReady", "mixed: 1 of 2 replicas are ready.")
    assert conditions(**both, mixed=deployment(2))["Ready"][2].startswith("Every replica of all roles is ready.")


def test_ready_needs_the_proof_where_one_is_owed() -> None:
    spec = cluster(decode=RoleSpec(2, 8), engine=EngineSpec(EngineType.VLLM))
    both: dict[str, Any] = {"spec": spec, "prefill": deployment(2), "decode": deployment(2)}
    assert conditions(**both)["Ready"] == ("False", "KVTransferNotVerified", "not yet")
    bad = Condition("KVTransferVerified", False, "DecodeRecomputes", "again")
    assert conditions(proof=bad, **both)["Ready"] == ("False", "KVTransferNotVerified", "again")
    assert conditions(proof=bad, **both)["KVTransferVerified"] == ("False", "DecodeRecomputes", "again")
    good = Condition("KVTransferVerified", True, "Verified", "well")
    assert conditions(proof=good, **both)["Ready"][:2] == ("True", "Serving")
    spared: dict[str, Any]
    for spared in ({"router": RouterSpec(RouterType.NONE)}, {"engine": EngineSpec(EngineType.EMULATED)}):
        assert conditions(**{**both, "spec": replace(spec, **spared)})["Ready"][0] == "True"


def test_what_engines_alone_know_is_said_and_stands_in_nothings_way() -> None:
    told = conditions(prefill=deployment(2), unjudged=["The flags of x are not known."])
    assert told["EngineChecked"] == ("Unknown", "NotKnown", "The flags of x are not known.")
    known = conditions(prefill=deployment(2))
    assert "EngineChecked" not in known and known["Ready"] == told["Ready"]


def measured(prefill_s: float | None, decode_s: float | None, tbt_ms: int | None) -> Latency:
    """Engines whose every request took the same; None: no request came."""
    seconds = {Role.PREFILL: prefill_s, Role.DECODE: decode_s}
    return Latency({role: dict.fromkeys(LEVELS, s) for role, s in seconds.items() if s is not None}, tbt_ms)


@pytest.mark.parametrize(
    ("latency", "status", "words"),
    [
        (measured(0.9, 0.6, 90), "True", "TTFT P99 at most 1500 ms of 2000 ms (prompt at prefill engines, then KV transfer and"),
        (measured(0.9, 0.6, 90), "True", "TBT P99 90 ms of 100 ms (at decode engines)."),
        (measured(0.4, 2.1, 90), "False", "TTFT P99 at least 2100 and at most 2500 ms of 2000 ms"),
        (measured(1.2, 1.2, 90), "Unknown", "do not tell on which side it is"),
        (measured(1.2, 1.2, 190), "False", "TBT P99 190 ms of 100 ms"),
        (measured(0.4, 2.1, None), "False", "TBT P99 unknown of 100 ms"),
        (measured(0.9, 0.6, None), "Unknown", "no requests in the last minute"),
        (measured(0.9, None, 90), "Unknown", "TTFT P99 unknown of 2000 ms (it takes the prefill and the decode engines'"),
        (measured(None, 0.6, 90), "Unknown", "TTFT P99 unknown of 2000 ms"),
        (Latency(), "Unknown", "TTFT P99 unknown of 2000 ms"),
    ],
)
def test_slo_is_attained_missed_or_unknown(latency: Latency, status: str, words: str) -> None:
    spec = cluster(slo=SloSpec(2000, 100))
    row = conditions(prefill=deployment(2), spec=spec, latency=latency)["SLOAttained"]
    assert row[0] == status
    assert words in row[2]
    assert conditions(prefill=deployment(2), latency=latency)["SLOAttained"][1] == "NoSLO"


def test_judgements_are_written_at_once_and_numbers_seldom() -> None:
    row = {"type": "Ready", "status": "True", "reason": "Serving", "message": "a"}
    old = {"ttftP99Milliseconds": 100, "conditions": [row]}
    assert waits_s(old, old) == float("inf")
    assert waits_s(old, {**old, "ttftP99Milliseconds": 101}) == 15.0
    assert waits_s(old, {**old, "conditions": [{**row, "message": "b"}]}) == 15.0
    assert waits_s(old, {**old, "conditions": [{**row, "status": "False"}]}) == 0.0
    assert waits_s(old, {**old, "prefill": {"replicas": 1}}) == 0.0


def test_an_unreadable_cluster_keeps_what_is_known_of_it() -> None:
    previous = {"prefill": {"replicas": 2}, "conditions": [{"type": "PowerAdmitted", "status": "True"}]}
    status = invalid_status({"metadata": {"generation": 3}, "status": previous}, "change this", 0.0)
    assert status["prefill"] == {"replicas": 2}
    assert status["observedGeneration"] == 3
    assert [(c["type"], c["status"]) for c in status["conditions"]] == [("Ready", "False"), ("PowerAdmitted", "True")]


def test_a_cluster_served_by_its_former_spec_says_so_and_is_not_called_ready() -> None:
    status = status_of(
        cluster(),
        {Role.PREFILL: deployment(2), Role.DECODE: deployment(0, updated=0)},
        deployment(1),
        standing=ADMITTED,
        latency=Latency(),
        proof=UNPROVEN,
        problems=[],
        previous={},
        now_s=0.0,
        invalid="the former spec stays in force: change this",
        generation=3,
    )
    ready = next(row for row in status["conditions"] if row["type"] == "Ready")
    assert (ready["status"], ready["reason"]) == ("False", "InvalidSpec")
    assert ready["message"].endswith("change this")
    assert status["observedGeneration"] == ready["observedGeneration"] == 3
    assert status["prefill"]["readyReplicas"] == 2


def test_without_a_router_of_ours_decode_may_read_the_prompts_and_a_router_of_their_own_may_split() -> None:
    own = cluster(slo=SloSpec(2000, None), router=RouterSpec(RouterType.NONE))
    for latency, words in (
        (measured(None, 0.6, None), "TTFT P99 600 ms of 2000 ms (at decode engines, no prompt came to prefill)."),
        (measured(0.9, 0.6, None), "TTFT P99 at most 1500 ms"),
    ):
        row = conditions(prefill=deployment(2), spec=own, latency=latency)["SLOAttained"]
        assert row[0] == "True" and row[2].startswith(words)


def test_one_query_asks_for_all_clusters_and_knows_pods_by_their_labels_or_their_names() -> None:
    pod = "(.+)-(prefill|decode|mixed)(?:-[0-9a-f]{8})?-[a-z0-9]+-[a-z0-9]+"
    bare = f'rate(m_bucket{{role="",pod=~"{pod}"}}[1m])'
    named = f'label_replace(label_replace({bare}, "cluster", "$1", "pod", "{pod}"), "role", "$2", "pod", "{pod}")'
    buckets = f'sum by (namespace, cluster, role, le) (rate(m_bucket{{role=~"prefill|decode|mixed"}}[1m]) or {named})'
    assert quantile_query("m", tuple(Role), (0.99, 0.5)) == " or ".join(
        f'label_replace(histogram_quantile({level}, {buckets}), "splitwatt_level", "{level}", "", "")' for level in (0.99, 0.5)
    )
