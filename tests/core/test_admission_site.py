"""From facts to admission's snapshot: needs, floors, rooms, and who holds what."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from splitwatt_core.admission.plan import plan_admission
from splitwatt_core.admission.pods import closed, pod_fact
from splitwatt_core.admission.site import snapshot_of
from splitwatt_core.budget.demand import GpuKind, demand_of_pod
from splitwatt_core.budget.facts import CountedFloor, NodeFact
from splitwatt_core.budget.tree import BudgetSpec, Selector
from splitwatt_core.clusters import PAIR, ClusterName, LabelOwners, Role, RoleSpec, RouterSpec, RouterType
from splitwatt_core.gpus.profiles import builtin, find
from splitwatt_core.protocol.contract import GpuStatus, Mode, Phase, Workload
from support.admission_site import CLIFF_W, H100, KIND, leaf, pod, site
from support.served import cluster, unsplit


def test_a_pod_on_its_way_out_is_admitted_no_more() -> None:
    snapshot = snapshot_of(site(pod(Role.PREFILL, "p", terminating=True), pod(Role.DECODE, "d")))
    assert [n.role for n in snapshot.waiting] == [Role.DECODE]
    assert snapshot.held == (), "behind its gate it holds nothing"


def test_a_node_of_several_kinds_counts_as_the_one_that_may_draw_most() -> None:
    small = GpuStatus("GPU-s", model="A small one", min_w=100, max_w=300)
    large = GpuStatus("GPU-l", model=H100, min_w=200, max_w=700)
    for gpus in ((small, large), (large, small)):
        assert {n.gpu_kind for n in snapshot_of(site(gpus={"n1": gpus, "n2": gpus})).nodes} == {KIND}


def test_gated_pods_wait_with_the_floors_of_the_nodes_gpus() -> None:
    snapshot = snapshot_of(site(pod(Role.PREFILL, "p"), pod(Role.DECODE, "d"), pod(None, "router")))
    assert [(n.role, dict(n.floor_w)) for n in snapshot.waiting] == [
        (Role.PREFILL, {KIND: CLIFF_W}),
        (Role.DECODE, {KIND: CLIFF_W}),
    ]
    assert {(n.name, n.gpus, n.free_gpus, n.idle_floor_w, n.loss_factor) for n in snapshot.nodes} == {
        ("n1", 8, 8, 200.0, 1.04),
        ("n2", 8, 8, 200.0, 1.04),
    }
    plan = plan_admission(snapshot)
    assert [round(a.reservation_w) for a in plan.admissions] == [1248, 1248]
    assert plan.admissions[0].selector == Selector({"rack": "a"})


@pytest.mark.parametrize("ceiling_w", [None, 500, 300, 100])
@pytest.mark.parametrize("role", list(Role))
def test_the_floor_is_the_one_that_caps_are_decided_by(role: Role, ceiling_w: int | None) -> None:
    pool = RoleSpec(1, 8, power_ceiling_w=ceiling_w)
    spec = unsplit("chat", pool) if role is Role.MIXED else cluster("chat", prefill=pool, decode=pool)
    mine = pod(role)
    [need] = snapshot_of(site(mine, clusters={spec.id: spec})).waiting
    fact = pod_fact(mine, spec)
    assert fact is not None
    demand = demand_of_pod(GpuKind(H100, 200, 700, 700), fact, profiles=builtin())
    assert need.floor_w == {KIND: demand.cliff_w}
    assert demand.cliff_w == {None: 350, 500: 350, 300: 300, 100: 200}[ceiling_w]


def test_a_mixed_pods_floor_is_its_own_beside_a_prefill_pods_of_the_same_cluster() -> None:
    """Of a GPU whose decode collapses before its prefill does."""
    h100 = find(builtin(), H100)
    assert h100 is not None
    phases = tuple(
        replace(row, cliff_w=row.natural_w, latency_points=((row.natural_w, 1000),)) if row.phase is Phase.DECODE else row
        for row in h100.phases
    )
    chat = replace(cluster("chat"), mixed=RoleSpec(1, 8), router=RouterSpec(RouterType.NONE))
    pods = [pod(role, role.value) for role in Role]
    snapshot = snapshot_of(site(*pods, clusters={chat.id: chat}, profiles=(replace(h100, phases=phases),)))
    floors_w = {need.role: need.floor_w[KIND] for need in snapshot.waiting}
    assert floors_w[Role.PREFILL] == CLIFF_W < floors_w[Role.DECODE] == floors_w[Role.MIXED]


def test_a_reservation_stays_until_the_floor_room_counts_it() -> None:
    past = pod(Role.PREFILL, gated=False, leaf="rack-a")
    [held] = snapshot_of(site(past)).held
    assert (held.leaf, held.node, held.counted.gpus, held.terminating) == ("rack-a", None, 0, False)
    bound = replace(past, node="n1", terminating=True)
    snapshot = snapshot_of(site(bound, counted={("s", "p"): CountedFloor(8, 2800.0)}))
    [held] = snapshot.held
    assert (held.node, held.counted, held.terminating) == ("n1", (8, 2800.0), True)
    assert {n.name: n.free_gpus for n in snapshot.nodes} == {"n1": 0, "n2": 8}
    assert snapshot_of(site(replace(bound, ended=True))).held == ()
    stripped = snapshot_of(site(replace(bound, role=None)))
    assert {n.name: n.free_gpus for n in stripped.nodes} == {"n1": 0, "n2": 8}, "the scheduler counts it whatever its labels"


def test_a_quota_is_decided_first_and_nothing_is_reserved_for_a_pod_that_waits_for_it() -> None:
    """One of the first pair, then both, then a further replica."""
    kueue: dict[str, Any] = {"other_gates": ("kueue.x-k8s.io/admission",)}
    first, second = pod(Role.PREFILL, "p", **kueue), pod(Role.DECODE, "d")
    snapshot = snapshot_of(site(first, second))
    assert [need.role for need in snapshot.waiting] == [Role.DECODE] and snapshot.held == ()
    plan = plan_admission(snapshot)
    assert plan.admissions == ()
    [verdict] = plan.verdicts.values()
    assert (verdict.admitted, verdict.reason) == (False, "WaitingForOtherGates")
    assert "p waits behind kueue.x-k8s.io/admission" in verdict.message
    assert len(plan_admission(snapshot_of(site(replace(first, other_gates=()), second))).admissions) == 2
    grown = cluster("chat", decode=RoleSpec(2, 8))
    past = [pod(role, role.value, gated=False, leaf="rack-a", node=f"n{i + 1}") for i, role in enumerate(PAIR)]
    later = site(*past, pod(Role.DECODE, "d2", **kueue), clusters={grown.id: grown})
    [verdict] = plan_admission(snapshot_of(later)).verdicts.values()
    assert (verdict.reason, "d2" in verdict.message) == ("WaitingForOtherGates", True)


def test_a_gate_that_is_lifted_last_is_not_waited_for() -> None:
    """Volcano takes its own only from a pod that has no other."""
    volcano: dict[str, Any] = {"other_gates": ("scheduling.volcano.sh/queue-allocation-gate",)}
    plan = plan_admission(snapshot_of(site(pod(Role.PREFILL, "p", **volcano), pod(Role.DECODE, "d", **volcano))))
    assert len(plan.admissions) == 2


def test_an_assumed_pod_counts_as_past_its_gate() -> None:
    snapshot = snapshot_of(site(pod(Role.PREFILL), assumed={"uid-p": "rack-a"}))
    assert snapshot.waiting == ()
    assert snapshot.held[0].leaf == "rack-a"


def test_a_cluster_that_leaves_is_asked_for_nothing_and_its_pods_keep_their_floors() -> None:
    low = RoleSpec(1, 8, power_ceiling_w=300)
    spec = cluster("chat", prefill=low)
    pods = (pod(Role.PREFILL, "gated"), pod(Role.PREFILL, "past", gated=False, leaf="rack-a"))
    snapshot = snapshot_of(site(*pods, clusters={spec.id: spec}, leaving=frozenset({spec.id})))
    assert snapshot.clusters == () and snapshot.waiting == ()
    assert snapshot.held[0].need.floor_w == {KIND: 300.0}, "the keeper caps them by the same ceiling"


def test_a_pod_of_an_unknown_cluster_holds_what_it_has_and_never_leaves_its_gate() -> None:
    stranger = snapshot_of(
        site(pod(Role.DECODE, "gated", of="gone"), pod(Role.DECODE, "past", of="gone", gated=False, leaf="rack-a"))
    )
    assert stranger.waiting == ()
    [held] = stranger.held
    assert held.need.cluster is None and held.need.floor_w == {KIND: CLIFF_W}


def test_a_long_name_is_the_same_cluster_everywhere() -> None:
    """Priority, ceiling and admission of a cluster whose label is not its name."""
    name = "long-" + "x" * 95
    low = RoleSpec(1, 8, power_ceiling_w=300)
    spec = replace(cluster(name, prefill=low, decode=low), priority=100)
    pods = [pod(role, role.value, of=name) for role in PAIR]
    whole = site(*pods, clusters={spec.id: spec}, owners=LabelOwners({spec.id: 0.0}))
    plan = plan_admission(snapshot_of(whole))
    assert len(plan.admissions) == 2
    assert plan.verdicts[ClusterName("s", name)].admitted
    assert {need.cluster for need in snapshot_of(whole).waiting} == {ClusterName("s", name)}
    assert [need.floor_w for need in snapshot_of(whole).waiting] == [{KIND: 300.0}] * 2


def test_what_takes_no_pods() -> None:
    node = NodeFact("n", {}, "b", gpus=8)
    assert closed(node) == ""
    assert closed(replace(node, cordoned=True)) == "cordoned"
    assert closed(replace(node, ready=False, cordoned=True)) == "not Ready"
    cordoned = {"n1": NodeFact("n1", {"rack": "a"}, "b", gpus=8, cordoned=True)}
    [room] = snapshot_of(site(nodes=cordoned, gpus={})).nodes
    assert (room.gpus, room.gpu_kind, room.closed) == (0, "", "cordoned"), "no room, and no agent's word"


def test_gpus_that_other_peoples_pods_hold_are_not_free() -> None:
    """No watch tells of them: without this a replica would be let in to wait for GPUs that it cannot get, its watts reserved."""

    def held(*pods: str) -> GpuStatus:
        workloads = tuple(Workload("s", pod) for pod in pods)
        return GpuStatus(f"GPU-{pods}", model=H100, min_w=200, max_w=700, workloads=workloads)

    mine = pod(Role.PREFILL, "mine", gpus=2, gated=False, node="n1")
    gpus = (held("mine"), held("mine", "their-share"), held("theirs"), held("theirs"), held())
    [room] = [n for n in snapshot_of(site(mine, gpus={"n1": gpus})).nodes if n.name == "n1"]
    assert room.free_gpus == 8 - 2 - 2


def test_a_node_that_two_leaves_claim_takes_nobody_and_observe_mode_binds_nobody() -> None:
    both = {name: leaf(name, "a") for name in ("rack-a", "rack-b")}
    assert snapshot_of(site(budgets=both)).nodes == ()
    observing = snapshot_of(site(budgets={"rack-a": leaf("rack-a", "a", mode=Mode.OBSERVE)}))
    assert [b.binding for b in observing.budgets] == [False]
    row = BudgetSpec("row", "u-row", 1, 40_000, mode=Mode.OBSERVE)
    below = snapshot_of(site(budgets={"row": row, "rack-a": leaf("rack-a", "a", parent="row", mode=Mode.STRICT)}))
    assert {b.name: b.binding for b in below.budgets} == {"row": False, "rack-a": False}, "the root's mode is the tree's"


def test_a_pod_without_its_cluster_keeps_its_phase_and_ranks_lowest() -> None:
    fact = pod_fact(pod(Role.DECODE), None)
    assert fact is not None
    assert (fact.phase, fact.priority) == (Role.DECODE.phase, 0)
    assert pod_fact(pod(None), None) is None


def test_a_pod_of_a_replica_over_several_nodes_says_so_with_and_without_its_cluster() -> None:
    part = replace(pod(Role.DECODE), group="g")
    for spec in (cluster("chat"), None):
        fact = pod_fact(part, spec)
        assert fact is not None and fact.group == "g"
