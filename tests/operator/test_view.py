"""One view of the cluster: each object read once per version, the last readable version kept, the same facts for every loop."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from splitwatt_api.convert_profile import profile_to_api
from splitwatt_core.admission.site import snapshot_of
from splitwatt_core.budget.facts import PodFact
from splitwatt_core.budget.keeper import Keeper
from splitwatt_core.clusters import ClusterName, ClusterSpec, Role, cluster_label
from splitwatt_core.gpus.profiles import builtin
from splitwatt_core.policies.shipped import POLICIES
from splitwatt_core.protocol.contract import node_power_from_wire
from splitwatt_operator.budgets.feeder import FACT_KINDS, Feeder
from splitwatt_operator.cluster import read
from splitwatt_operator.cluster.store import JsonObject, Key, Kind
from splitwatt_operator.cluster.view import Shelf, View
from splitwatt_operator.recorder import Subject
from splitwatt_operator.serving.site import site_of
from support.objects import Objects

NOW_S = 1000.0
LONG = "long-" + "x" * 95


class Heard:
    """What would become Events."""

    def __init__(self) -> None:
        self.notes: list[tuple[str, str, str]] = []

    def note(self, subject: Subject, *, reason: str, message: str, warning: bool = False) -> None:
        self.notes.append((subject.name, reason, message))


class Told(Keeper):
    """The real keeper, which also remembers the pods it was told of."""

    def __init__(self) -> None:
        super().__init__(term=1, policies=POLICIES)
        self.pods: dict[str, PodFact] = {}

    def on_pod(self, pod: PodFact) -> None:
        self.pods[pod.name] = pod
        super().on_pod(pod)

    def on_pod_gone(self, namespace: str, name: str) -> None:
        self.pods.pop(name, None)
        super().on_pod_gone(namespace, name)


class Loops:
    """The two readers of the view: the keeper, fed as the budget loop does it, and admission's site."""

    def __init__(self, objects: Objects) -> None:
        self.objects, self.keeper, self.heard = objects, Told(), Heard()
        self._feeder = Feeder(objects.store, objects.view, self.keeper, self.heard)  # type: ignore[arg-type]
        self._changes = objects.store.subscribe(FACT_KINDS)

    def feed(self) -> None:
        self._feeder.feed(self._changes.take(), NOW_S)
        self.keeper.step(NOW_S)

    def site(self) -> Any:
        return site_of(self.objects.view, self.keeper, {})


# ------------------------------------------------------------------------------------------------- the last readable stays


def test_each_version_is_read_once_whoever_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[str] = []
    real = read.cluster

    def counted(obj: JsonObject) -> ClusterSpec:
        reads.append(obj["metadata"]["resourceVersion"])
        return real(obj)

    monkeypatch.setattr(read, "cluster", counted)
    objects = Objects()
    loops = Loops(objects)
    obj = objects.cluster()
    objects.store.apply(Kind.CLUSTER, copy.deepcopy(obj))
    objects.pod("p", "prefill")
    for _ in range(3):
        loops.feed()
        snapshot_of(loops.site())
    assert reads == [obj["metadata"]["resourceVersion"]]
    generation = {"generation": obj["metadata"]["generation"]}
    objects.put(Kind.CLUSTER, "chat", meta=generation, spec=obj["spec"], status={"powerFloorWatts": 1})
    assert len(reads) == 1, "a status of its own is no news"
    deleted = {**generation, "deletionTimestamp": "2026-01-01T00:00:09Z"}
    objects.put(Kind.CLUSTER, "chat", meta=deleted, spec=obj["spec"])
    seen = objects.view.cluster(ClusterName("s", "chat"))
    assert seen is not None and seen.terminating
    objects.cluster()
    assert len(reads) == 2


def test_what_is_more_than_its_spec_is_read_at_every_version() -> None:
    """The kubelet and agents change a status, which has no generation."""
    objects = Objects()
    node = objects.node("n1", ready="False")
    labels = node["metadata"]["labels"]
    for ready in ("False", "True", "False"):
        status = {**node["status"], "conditions": [{"type": "Ready", "status": ready}]}
        objects.put(Kind.NODE, "n1", meta={"labels": labels, "generation": 0}, spec={}, status=status)
        assert objects.view.nodes.facts[Key("", "n1")].ready is (ready == "True")
    power = objects.node_power("n1", meta={"generation": 1})
    status = {**power["status"], "bootID": "another"}
    objects.put(Kind.NODE_POWER, "n1", meta={"generation": 1}, status=status)
    assert objects.view.node_powers.facts[Key("", "n1")].status.boot_id == "another"
    objects.pod("p", "prefill", meta={"generation": 1})
    running = {"nodeName": "n1", "containers": [], "schedulingGates": []}
    objects.put(Kind.POD, "p", meta={"generation": 1}, spec=running, status={"phase": "Succeeded"})
    pod = objects.view.pods.facts[Key("s", "p")]
    assert pod.ended and pod.node == "n1" and not pod.gated


def test_a_policy_that_this_operator_does_not_have_cannot_be_read() -> None:
    objects = Objects()
    view = View(objects.store, policies={"Uniform"})
    objects.budget("rack-a", "a", policy={"type": "Polca"})
    assert view.budgets.facts == {}
    assert view.budgets.problems() == {"rack-a": "spec.policy.type Polca is unknown; use one of Uniform"}


def test_a_budget_that_cannot_be_read_stays_as_it_was_for_keeper_and_admission_alike() -> None:
    objects = Objects()
    loops = Loops(objects)
    objects.budget("rack-a", "a")
    loops.feed()
    objects.budget("rack-a", "a", limitWatts="many")
    loops.feed()
    fact = loops.keeper.budgets["rack-a"]
    assert fact.limit_w == 20000
    assert loops.site().budgets == {"rack-a": fact}
    told = objects.view.budgets.problems()["rack-a"]
    assert told.startswith("the former spec stays in force: ") and "limitWatts" in told
    assert [(name, reason) for name, reason, _ in loops.heard.notes] == [("rack-a", "InvalidSpec")]
    objects.budget("rack-a", "a", policy={"type": "Mine"})
    loops.feed()
    assert loops.keeper.budgets["rack-a"] == fact
    objects.budget("rack-a", "a", limitWatts=15000)
    loops.feed()
    assert loops.keeper.budgets["rack-a"].limit_w == 15000 == loops.site().budgets["rack-a"].limit_w
    assert objects.view.budgets.problems() == {}


def test_every_version_between_two_looks_counts_and_not_only_the_newest() -> None:
    objects = Objects()
    loops = Loops(objects)
    objects.budget("rack-a", "a")
    loops.feed()
    objects.budget("rack-a", "a", limitWatts=15000)
    objects.budget("rack-a", "a", limitWatts="many")
    loops.feed()
    assert loops.keeper.budgets["rack-a"].limit_w == 15000


@pytest.mark.parametrize("deletion", ["acted on", "seen", "missed"])
def test_of_an_object_made_anew_nothing_stays(deletion: str) -> None:
    objects = Objects()
    loops = Loops(objects)
    objects.budget("rack-a", "a")
    objects.node_power("n1")
    objects.cluster()
    loops.feed()
    for kind, name in ((Kind.BUDGET, "rack-a"), (Kind.NODE_POWER, "n1"), (Kind.CLUSTER, "chat")):
        (objects.reborn if deletion == "missed" else objects.remove)(kind, name)
    if deletion == "acted on":
        loops.feed()
    objects.budget("rack-a", "a", limitWatts="many")
    objects.put(Kind.NODE_POWER, "n1", spec={"term": "x"})
    objects.cluster(model="none")
    loops.feed()
    assert "rack-a" not in loops.keeper.budgets
    assert loops.keeper.roster.nodes["n1"].object is None
    site = loops.site()
    assert (site.budgets, site.gpus, site.clusters) == ({}, {}, {})
    told = objects.view.budgets.problems()
    assert set(told) == {"rack-a"} and "former" not in told["rack-a"]


def test_a_cluster_is_served_by_its_last_readable_spec() -> None:
    """Also one that can be read but not rendered: caps, admission and objects follow one spec."""
    objects = Objects()
    loops = Loops(objects)
    objects.budget("rack-a", "a")
    objects.cluster(prefill={"powerCeilingWatts": 300})
    objects.pod("p", "prefill")
    loops.feed()
    for wrong in ({"model": "none"}, {"engine": {"type": "VLLM", "args": ["--port=1"]}}):
        objects.cluster(prefill={"powerCeilingWatts": 400, "replicas": 0}, **wrong)
        loops.feed()
        seen = objects.view.cluster(ClusterName("s", "chat"))
        assert seen is not None and seen.fact is not None
        assert seen.problem and seen.sentence == f"the former spec stays in force: {seen.problem}"
        assert (seen.fact.role(Role.PREFILL).replicas, loops.keeper.pods["p"].power_ceiling_w) == (1, 300)
        [want] = snapshot_of(loops.site()).clusters
        assert want.replicas[Role.PREFILL] == 1


def test_a_cluster_that_was_never_readable_is_known_by_name_alone() -> None:
    objects = Objects()
    loops = Loops(objects)
    objects.cluster(model="none")
    objects.pod("p", "prefill")
    loops.feed()
    seen = objects.view.cluster(ClusterName("s", "chat"))
    assert seen is not None and seen.fact is None
    assert seen.sentence == seen.problem != ""
    snapshot = snapshot_of(loops.site())
    assert (snapshot.clusters, snapshot.waiting) == ((), ()), "nothing is let through for it"


def test_a_node_power_that_cannot_be_read_leaves_what_was_known() -> None:
    objects = Objects()
    loops = Loops(objects)
    objects.node_power("n1")
    loops.feed()
    known = loops.keeper.roster.nodes["n1"].object
    objects.node_power("n1", spec={"term": "x"})
    loops.feed()
    assert loops.keeper.roster.nodes["n1"].object == known is not None
    assert loops.site().gpus["n1"] == known.status.gpus
    assert [(name, reason) for name, reason, _ in loops.heard.notes] == [("n1", "Unreadable")]


def test_a_late_word_of_an_earlier_node_power_does_not_take_the_present_one_away() -> None:
    """The keeper heard of the new object from the answer to its own write, before the watch told of the old one's end."""
    objects = Objects()
    loops = Loops(objects)
    obj = objects.node_power("n1")
    loops.feed()
    anew = node_power_from_wire({**obj, "metadata": {**obj["metadata"], "uid": "anew", "resourceVersion": "99"}})
    loops.keeper.on_node_power(anew, NOW_S)
    objects.remove(Kind.NODE_POWER, "n1")
    loops.feed()
    assert loops.keeper.roster.nodes["n1"].object == anew


def test_bad_objects_of_any_kind_are_sentences_and_never_exceptions() -> None:
    objects = Objects()
    loops = Loops(objects)
    objects.put(Kind.NODE, "n", status={"allocatable": {"nvidia.com/gpu": "eight"}, "conditions": [{}]}, spec={"taints": [{}]})
    objects.put(Kind.POD, "p", spec={"containers": [{"resources": {"requests": {"nvidia.com/gpu": "1k"}}}]})
    objects.put(Kind.PROFILE, "x", spec={})
    objects.put(Kind.NODE_POWER, "n", spec=[])
    objects.put(Kind.CLUSTER, "c", spec=None)
    loops.feed()
    snapshot_of(loops.site())
    view = objects.view
    assert view.nodes.facts[Key("", "n")].gpus == 0, "a node is charged whatever admission makes of it"
    for shelf in (view.pods, view.offered, view.node_powers, view.clusters):
        [(_, seen)] = shelf.items()
        assert seen.fact is None and seen.problem


def test_a_view_that_begins_late_misses_nothing() -> None:
    objects = Objects()
    objects.budget("rack-a", "a")
    objects.cluster(LONG)
    late = View(objects.store)
    assert late.budgets.facts == objects.view.budgets.facts
    assert late.owners.of("s", cluster_label(LONG)) == ClusterName("s", LONG)


def test_a_bug_in_a_reader_is_not_taken_for_a_bad_object() -> None:
    def broken(obj: object) -> int:
        raise AssertionError("a bug")

    with pytest.raises(AssertionError, match="a bug"):
        Shelf(broken).take(Key("", "n"), {"metadata": {"name": "n", "uid": "u"}})


# ------------------------------------------------------------------------------------------------- one answer for all loops


def test_floors_come_from_the_profiles_that_caps_are_decided_by_in_their_order() -> None:
    """A user's own before the chart's of the same GPU, and the built-in ones for what neither knows."""
    objects, builtins = Objects(), {profile.name: profile for profile in builtin()}
    chart = profile_to_api(builtins["H100-SXM"]).to_wire()
    own = profile_to_api(builtins["H100-SXM"]).to_wire()
    for phase in own["spec"]["phases"]:
        phase["cliffWatts"] = 300
    objects.put(Kind.PROFILE, "h100-sxm", meta={"labels": chart["metadata"]["labels"]}, spec=chart["spec"])
    objects.put(Kind.PROFILE, "z-measured", spec=own["spec"])
    names = [profile.name for profile in objects.view.profiles]
    assert names == ["z-measured", "h100-sxm", *builtins], "B200 is not left to a guess"
    loops = Loops(objects)
    objects.budget("rack-a", "a")
    objects.node("n1")
    objects.node_power("n1", pod="p")
    objects.cluster()
    objects.pod("p", "prefill", nodeName="n1", schedulingGates=[])
    loops.keeper.on_agent_power("n1", 0.0, NOW_S)
    loops.feed()
    loops.keeper.on_agent_power("n1", 0.0, NOW_S)
    loops.feed()
    [held] = snapshot_of(loops.site()).held
    assert set(held.need.floor_w.values()) == {300.0}
    assert held.counted == (1, 300.0), "the keeper counts one GPU at the same floor"
    objects.put(Kind.PROFILE, "z-measured", spec={})
    assert objects.view.profiles[0].name == "z-measured", "its last readable numbers stay"
    objects.remove(Kind.PROFILE, "z-measured")
    assert objects.view.profiles[0].name == "h100-sxm"


def test_a_cluster_with_a_long_name_is_the_same_for_keeper_admission_and_objects() -> None:
    objects = Objects()
    loops = Loops(objects)
    objects.budget("rack-a", "a")
    objects.node("n1")
    objects.node_power("n1")
    objects.pod("p", "prefill", of=LONG)
    loops.feed()
    assert loops.keeper.pods["p"].priority == 0, "its cluster is not known yet"
    objects.cluster(LONG, prefill={"powerCeilingWatts": 300}, priority="High", model={"name": "llama"})
    loops.feed()
    fact = loops.keeper.pods["p"]
    assert (fact.priority, fact.model, fact.power_ceiling_w) == (100, "llama", 300)
    [need] = snapshot_of(loops.site()).waiting
    assert need.cluster == ClusterName("s", LONG)
    assert set(need.floor_w.values()) == {300.0}
    objects.remove(Kind.CLUSTER, LONG)
    loops.feed()
    assert loops.keeper.pods["p"] == fact, "what is deleted draws on: its pods run as they did while they are there"
    objects.remove(Kind.POD, "p")
    objects.pod("p", "prefill", of=LONG)
    loops.feed()
    assert loops.keeper.pods["p"].priority == 0


def test_of_two_clusters_with_one_label_the_younger_is_not_served() -> None:
    objects = Objects()
    loops = Loops(objects)
    objects.cluster(LONG)
    objects.cluster(cluster_label(LONG))
    objects.pod("p", "prefill", of=LONG)
    loops.feed()
    site = loops.site()
    assert site.leaving == {ClusterName("s", cluster_label(LONG))}
    assert [want.cluster for want in snapshot_of(site).clusters] == [ClusterName("s", LONG)]
    objects.remove(Kind.CLUSTER, LONG)
    loops.feed()
    assert loops.site().leaving == frozenset()


def test_a_pod_is_to_the_keeper_what_it_is_to_admission_whatever_becomes_of_its_labels() -> None:
    objects = Objects()
    loops = Loops(objects)
    objects.cluster("chat", priority="High", prefill={"powerCeilingWatts": 300})
    objects.cluster("batch", priority="Low")
    told = []
    for labels in (
        {"splitwatt.io/cluster": "chat", "splitwatt.io/role": "prefill"},
        {"splitwatt.io/cluster": "batch", "splitwatt.io/role": "prefill"},
        {"splitwatt.io/cluster": "batch", "splitwatt.io/role": "decode"},
        {"splitwatt.io/cluster": "batch", "splitwatt.io/role": "router"},
        {"splitwatt.io/cluster": "chat", "splitwatt.io/role": "prefill"},
    ):
        objects.pod("p", "prefill", meta={"labels": labels})
        loops.feed()
        fact = loops.keeper.pods.get("p")
        needs = snapshot_of(loops.site()).waiting
        told.append(None if fact is None else (fact.phase.value, fact.priority, fact.power_ceiling_w))
        assert [need.role.phase for need in needs] == ([] if fact is None else [fact.phase])
    assert told == [("Prefill", 100, 300), ("Prefill", 0, None), ("Decode", 0, None), None, ("Prefill", 100, 300)]


def test_of_a_pod_made_anew_that_cannot_be_read_nothing_stays() -> None:
    objects = Objects()
    loops = Loops(objects)
    objects.cluster()
    objects.pod("p", "prefill")
    loops.feed()
    many = [{"resources": {"requests": {"nvidia.com/gpu": "many"}}}]
    objects.pod("p", "prefill", containers=many)
    loops.feed()
    assert set(loops.keeper.pods) == {"p"}, "the same pod stays as it was"
    objects.reborn(Kind.POD, "p")
    objects.pod("p", "prefill", containers=many)
    loops.feed()
    assert loops.keeper.pods == {} == loops.site().pods


def test_a_terminating_cluster_admits_nobody_and_a_deleted_pod_is_forgotten() -> None:
    objects = Objects()
    loops = Loops(objects)
    objects.cluster()
    objects.pod("p", "prefill")
    loops.feed()
    assert len(snapshot_of(loops.site()).waiting) == 1
    objects.put(Kind.CLUSTER, "chat", meta={"deletionTimestamp": "2026-01-01T00:00:01Z"}, spec={"model": "none"})
    loops.feed()
    assert snapshot_of(loops.site()).waiting == ()
    objects.remove(Kind.POD, "p")
    loops.feed()
    assert loops.site().pods == {}


# ------------------------------------------------------------------------------------------------------------ single kinds
