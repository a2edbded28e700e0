"""How clusters stand after a plan: whom a pod counts for, and that what is told is promised is what is reserved by."""

from __future__ import annotations

from splitwatt_core.admission.plan import plan_admission
from splitwatt_core.admission.pods import PodName
from splitwatt_core.admission.scheduling import NodeRules
from splitwatt_core.admission.snapshot import AdmissionSnapshot, BudgetRoom, ClusterWant, HeldPod, NodeRoom, PodNeed
from splitwatt_core.admission.standing import ClusterStanding, standings
from splitwatt_core.budget.tree import Selector
from splitwatt_core.clusters import ClusterName, Role

CHAT = ClusterName("serving", "chat")
OLD, NEW = 300.0, 500.0
LOSSES = 1.25


def need(name: str, role: Role = Role.DECODE, *, cluster: ClusterName | None = CHAT, rack: str = "old") -> PodNeed:
    floors = {"a100": OLD, "h100": NEW}
    return PodNeed(PodName("serving", name), name, cluster, role, 4, floors, NodeRules(Selector({"rack": rack})))


def stands(*held: HeldPod, waiting: tuple[PodNeed, ...] = (), watts: float = 10_000.0) -> dict[ClusterName, ClusterStanding]:
    """A rack of A100s and one of H100s."""
    house = AdmissionSnapshot(
        budgets=tuple(BudgetRoom(rack, watts, selector=Selector({"rack": rack})) for rack in ("old", "new")),
        nodes=(
            NodeRoom("n-old", "old", {"rack": "old"}, 8, 8, "a100", 100.0, LOSSES),
            NodeRoom("n-new", "new", {"rack": "new"}, 8, 8, "h100", 200.0, LOSSES),
        ),
        clusters=(ClusterWant(CHAT, 0, {Role.DECODE: 4}),),
        waiting=waiting,
        held=held,
    )
    return standings(house, plan_admission(house))


def test_a_floor_is_that_of_the_pods_own_node_or_of_its_leaf_while_it_has_none() -> None:
    assert stands(HeldPod(need("bound"), "old", node="n-new"))[CHAT].floor_w == 4 * NEW * LOSSES
    assert stands(HeldPod(need("unbound"), "old"))[CHAT].floor_w == 4 * OLD * LOSSES
    assert stands(HeldPod(need("unbound", rack="new"), "new"))[CHAT].floor_w == 4 * NEW * LOSSES


def test_a_pod_that_ends_holds_its_watts_but_no_longer_stands_for_its_role() -> None:
    standing = stands(HeldPod(need("ends"), "old", terminating=True), HeldPod(need("stays"), "old"))[CHAT]
    assert (standing.admitted, standing.floor_w) == ({Role.DECODE: 1}, 2 * 4 * OLD * LOSSES)


def test_what_the_plan_admits_counts_at_once_and_what_it_refuses_does_not() -> None:
    admitted = stands(HeldPod(need("stays"), "old"), waiting=(need("comes"),))[CHAT]
    assert (admitted.verdict.admitted, admitted.admitted) == (True, {Role.DECODE: 2})
    assert admitted.floor_w == 2 * 4 * OLD * LOSSES
    refused = stands(waiting=(need("comes"),), watts=0.0)[CHAT]
    assert (refused.verdict.admitted, refused.admitted, refused.floor_w) == (False, {}, 0.0)


def test_a_pod_of_no_cluster_that_is_served_counts_for_none() -> None:
    gone = ClusterName("serving", "gone")
    told = stands(HeldPod(need("orphan", cluster=None), "old"), HeldPod(need("late", cluster=gone), "old"))
    assert set(told) == {CHAT} and told[CHAT].floor_w == 0.0
