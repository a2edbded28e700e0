"""The serving shell's parts that need no API server: the queue, the survey, the gate's patch, the status, the queries."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest
from splitwatt_api.convert_profile import profile_to_api
from splitwatt_core.admission.plan import plan_admission
from splitwatt_core.admission.snapshot import Verdict
from splitwatt_core.budget.keeper import Keeper
from splitwatt_core.budget.tree import Requirement, Selector
from splitwatt_core.clusters import ClusterSpec, EngineSpec, EngineType, Role, RoleSpec, SloSpec
from splitwatt_core.gpus.profiles import builtin
from splitwatt_core.policies.uniform import Uniform
from splitwatt_operator.cluster.store import Kind, Store
from splitwatt_operator.serving import queue as serving_queue
from splitwatt_operator.serving.admission import Standing, gate_patch
from splitwatt_operator.serving.pods import Surveyor, gpus_of
from splitwatt_operator.serving.queue import QueueFullError, WorkQueue
from splitwatt_operator.serving.slo import Latency, p99_query
from splitwatt_operator.serving.status import invalid_status, status_of, waits_s

# -------------------------------------------------------------------------------------------------------------- profiles


def test_floors_come_from_the_profiles_that_caps_are_decided_by_in_their_order() -> None:
    """A user's own before the chart's of the same GPU, and the built-in ones for what neither knows."""
    store, builtins = Store(), {profile.name: profile for profile in builtin()}
    chart = profile_to_api(builtins["H100-SXM"]).to_wire()
    own = profile_to_api(builtins["H100-SXM"]).to_wire()
    own["metadata"] = {"name": "z-measured"}
    for version, obj in enumerate((chart, own), start=1):
        obj["metadata"] |= {"uid": f"u{version}", "resourceVersion": str(version)}
        store.apply(Kind.PROFILE, obj)
    keeper = Keeper(term=1, policies={"Uniform": Uniform()})
    names = [profile.name for profile in Surveyor(store, keeper)._profiles()]
    assert names[:2] == ["z-measured", "h100-sxm"]
    assert names[2:] == [profile.name for profile in builtin()], "B200 is not left to a guess"


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


async def test_an_earlier_timer_stays_and_the_queue_is_bounded() -> None:
    queue: WorkQueue[str] = WorkQueue(max_keys=1)
    queue.add_after("a", 0.0)
    queue.add_after("a", 60.0)
    assert await asyncio.wait_for(queue.get(), 1.0) == "a"
    queue.add("b")
    with pytest.raises(QueueFullError, match="more than 1 objects"):
        queue.add("c")


# --------------------------------------------------------------------------------------------------------------- survey

POOL = {"replicas": 1, "gpusPerReplica": 8, "nodeSelector": {"pool": "p"}}


class Headroom:
    """What a keeper says after its last step."""

    def __init__(self, headroom_w: float, counted: Mapping[tuple[str, str], int]) -> None:
        self._headroom_w, self._counted = headroom_w, counted

    def floor_headroom_w(self, budget: str) -> float:
        return self._headroom_w

    def floors_counted(self) -> Mapping[tuple[str, str], int]:
        return self._counted


class World:
    def __init__(self) -> None:
        self.store = Store()
        self._version = 0

    def put(self, kind: Kind, name: str, *, namespace: str = "", meta: Any = None, **rest: Any) -> dict[str, Any]:
        self._version += 1
        metadata = {"name": name, "uid": f"uid-{kind.value}-{name}", "resourceVersion": str(self._version), "generation": 1}
        if namespace:
            metadata["namespace"] = namespace
        obj = {
            "apiVersion": "splitwatt.io/v1alpha1" if kind not in (Kind.NODE, Kind.POD) else "v1",
            "kind": kind.value,
            "metadata": {**metadata, **(meta or {})},
            **rest,
        }
        self.store.apply(kind, obj)
        return obj

    def budget(self, name: str, rack: str, **spec: Any) -> None:
        leaf = {"nodeSelector": {"matchLabels": {"rack": rack}}, "unmanagedWattsPerNode": 9000, "overheadPercent": 4}
        self.put(Kind.BUDGET, name, spec={"limitWatts": 20000, **leaf, **spec})

    def node(self, name: str, *, ready: str = "True", agent: bool = True, **spec: Any) -> None:
        status = {
            "allocatable": {"nvidia.com/gpu": "8"},
            "nodeInfo": {"bootID": "b"},
            "conditions": [{"type": "Ready", "status": ready}],
        }
        self.put(Kind.NODE, name, meta={"labels": {"rack": "a", "pool": "p"}}, spec=spec, status=status)
        gpu = {"uuid": f"GPU-{name}", "model": "NVIDIA H100 80GB HBM3", "minCapWatts": 200, "maxCapWatts": 700}
        self.put(Kind.NODE_POWER, name, status={"gpus": [{**gpu, "health": "OK"}] if agent else []})

    def cluster(self, name: str = "chat", **prefill: Any) -> None:
        spec = {
            "model": {"name": "m"},
            "engine": {"type": "Emulated"},
            "prefill": {**POOL, **prefill},
            "decode": POOL,
        }
        self.put(Kind.CLUSTER, name, namespace="s", spec=spec)

    def pod(self, role: str, *, gates: bool = True, node: str | None = None, leaf: str | None = None, **meta: Any) -> str:
        labels = {"splitwatt.io/cluster": "chat", "splitwatt.io/role": role}
        spec: dict[str, Any] = {
            "nodeSelector": {"pool": "p"},
            "containers": [{"name": "engine", "resources": {"requests": {"nvidia.com/gpu": "8"}}}],
        }
        if gates:
            spec["schedulingGates"] = [{"name": "splitwatt.io/power"}]
        if node is not None:
            spec["nodeName"] = node
        whole = {"labels": labels, "creationTimestamp": "2026-01-01T00:00:00Z", **meta}
        if leaf is not None:
            whole["annotations"] = {"splitwatt.io/power-budget": leaf}
        name = f"chat-{role}-0"
        self.put(Kind.POD, name, namespace="s", meta=whole, spec=spec, status={"phase": "Pending"})
        return f"uid-Pod-{name}"

    def survey(self, headroom_w: float = 1e4, counted: Mapping[tuple[str, str], int] | None = None) -> Surveyor:
        return Surveyor(self.store, Headroom(headroom_w, counted or {}))  # type: ignore[arg-type]


def small_world() -> World:
    world = World()
    world.budget("rack-a", "a")
    world.node("n1")
    world.node("n2")
    world.cluster()
    return world


def test_gated_pods_wait_with_the_floors_of_the_nodes_gpus() -> None:
    world = small_world()
    world.pod("prefill")
    world.pod("decode")
    snapshot = world.survey().snapshot({})
    assert [n.role for n in snapshot.waiting] == [Role.PREFILL, Role.DECODE]
    assert {kind: watts for n in snapshot.waiting for kind, watts in n.floor_w.items()} == {
        "NVIDIA H100 80GB HBM3 200-700 W": 350.0
    }
    assert {(n.name, n.gpus, n.free_gpus, n.idle_floor_w, n.loss_factor) for n in snapshot.nodes} == {
        ("n1", 8, 8, 200.0, 1.04),
        ("n2", 8, 8, 200.0, 1.04),
    }
    plan = plan_admission(snapshot)
    assert [round(a.reserve_w) for a in plan.admissions] == [1248, 1248]
    assert plan.admissions[0].selector == Selector({"rack": "a"})


def test_a_ceiling_below_the_cliff_is_the_floor() -> None:
    world = small_world()
    world.cluster(powerCeilingWatts=300)
    world.pod("prefill")
    [need] = world.survey().snapshot({}).waiting
    assert list(need.floor_w.values()) == [300.0]


def test_a_reservation_stays_until_the_headroom_counts_it() -> None:
    world = small_world()
    world.pod("prefill", gates=False, leaf="rack-a")
    [held] = world.survey().snapshot({}).held
    assert (held.leaf, held.node, held.counted_gpus, held.terminating) == ("rack-a", None, 0, False)
    world.pod("prefill", gates=False, leaf="rack-a", node="n1", deletionTimestamp="2026-01-01T00:00:01Z")
    snapshot = world.survey(counted={("s", "chat-prefill-0"): 8}).snapshot({})
    [held] = snapshot.held
    assert (held.node, held.counted_gpus, held.terminating) == ("n1", 8, True)
    assert {n.name: n.free_gpus for n in snapshot.nodes} == {"n1": 0, "n2": 8}


def test_an_assumed_pod_counts_as_past_its_gate() -> None:
    world = small_world()
    uid = world.pod("prefill")
    snapshot = world.survey().snapshot({uid: "rack-a"})
    assert snapshot.waiting == ()
    assert snapshot.held[0].leaf == "rack-a"


def test_what_takes_no_pods() -> None:
    world = World()
    world.budget("rack-a", "a")
    world.node("cordoned", unschedulable=True)
    world.node("unready", ready="False")
    world.node("lost", taints=[{"key": "node.kubernetes.io/unreachable", "effect": "NoExecute"}])
    world.node("silent", agent=False)
    rooms = {n.name: (n.gpus, n.gpu_kind) for n in world.survey().snapshot({}).nodes}
    assert {name: gpus for name, (gpus, _) in rooms.items()} == {"cordoned": 0, "unready": 0, "lost": 0, "silent": 8}
    assert rooms["silent"][1] == ""
    world.budget("rack-b", "a")
    assert world.survey().snapshot({}).nodes == (), "two leaves claim them"


def test_a_surveyor_sees_a_changed_selector_and_observe_mode() -> None:
    world = small_world()
    surveyor = world.survey()
    assert {n.leaf for n in surveyor.snapshot({}).nodes} == {"rack-a"}
    world.budget("rack-a", "elsewhere", mode="Observe")
    snapshot = surveyor.snapshot({})
    assert snapshot.nodes == ()
    assert [b.binding for b in snapshot.budgets] == [False]


def test_an_affinity_that_is_not_understood_matches_nothing() -> None:
    world = small_world()
    world.pod("prefill")
    pod = dict(world.store.get(Kind.POD, "chat-prefill-0", "s") or {})
    term = {"matchExpressions": [{"key": "cores", "operator": "Gt", "values": ["64"]}]}
    required = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}}
    pod["spec"] = {**pod["spec"], "affinity": {"nodeAffinity": required}}
    pod["metadata"] = {**pod["metadata"], "resourceVersion": "999"}
    world.store.apply(Kind.POD, pod)
    [need] = world.survey().snapshot({}).waiting
    assert not need.matches({"pool": "p", "cores": "128"})


def test_gpus_are_counted_as_the_scheduler_does() -> None:
    def container(gpus: int) -> dict[str, Any]:
        return {"resources": {"requests": {"nvidia.com/gpu": str(gpus)}}}

    assert gpus_of({"spec": {"containers": [container(2), {}, container(4)], "initContainers": [container(5)]}}) == 6
    assert gpus_of({"spec": {"containers": [container(2)], "initContainers": [container(5)]}}) == 5


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
    assert by_path["/metadata/annotations"]["value"] == {"theirs": "x", "splitwatt.io/power-budget": "rack-a"}
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


ADMITTED = Standing(Verdict(True, "Admitted", "all"), {Role.PREFILL: 2}, 5824.4)


def deployment(ready: int, *, updated: int = 2, observed: int = 1) -> dict[str, Any]:
    numbers = {"replicas": 2, "readyReplicas": ready, "updatedReplicas": updated, "observedGeneration": observed}
    return {"metadata": {"generation": 1}, "status": numbers}


def conditions(
    *, prefill: Any, spec: ClusterSpec | None = None, standing: Standing | None = ADMITTED, **rest: Any
) -> dict[str, tuple[str, str, str]]:
    status = status_of(
        spec or cluster(),
        {Role.PREFILL: prefill, Role.DECODE: deployment(0, updated=0)},
        standing=standing,
        latency=rest.get("latency", Latency()),
        problems=rest.get("problems", []),
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
    refused = Standing(Verdict(False, "InsufficientPower", "600 W are missing"), {}, 0.0)
    assert conditions(prefill=deployment(0), standing=refused)["Ready"] == ("False", "WaitingForPower", "600 W are missing")
    assert conditions(prefill=deployment(0), standing=None)["PowerAdmitted"][0] == "Unknown"
    assert conditions(prefill=deployment(2), problems=["Service x: no"])["Ready"] == (
        "False",
        "ObjectsNotApplied",
        "Service x: no",
    )


@pytest.mark.parametrize(
    ("latency", "status", "words"),
    [
        (Latency(1500, 90), "True", "TTFT P99 1500 ms of 2000 ms, TBT P99 90 ms of 100 ms."),
        (Latency(2500, 90), "False", "TTFT P99 2500 ms of 2000 ms"),
        (Latency(2500, None), "False", "TBT P99 unknown of 100 ms"),
        (Latency(1500, None), "Unknown", "no requests in the last minute"),
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


def test_one_query_asks_for_all_clusters() -> None:
    assert p99_query("vllm:time_to_first_token_seconds", Role.PREFILL) == (
        "histogram_quantile(0.99, sum by (namespace, cluster, le) "
        '(rate(vllm:time_to_first_token_seconds_bucket{role="prefill"}[1m])))'
    )
