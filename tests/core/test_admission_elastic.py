"""Elastic leaves: watts are kept for nodes to come, pods pass their gate against these, and a node that joins takes its place
in the sum from them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from splitwatt_core.admission.plan import plan_admission
from splitwatt_core.admission.pods import Pod, PodName
from splitwatt_core.admission.scheduling import NodeRules
from splitwatt_core.admission.site import Site, snapshot_of
from splitwatt_core.admission.snapshot import AdmissionPlan
from splitwatt_core.budget.facts import NodeFact
from splitwatt_core.budget.tree import BudgetSpec, Elastic, Selector
from splitwatt_core.clusters import LabelOwners, Role, RoleSpec, cluster_label
from splitwatt_core.gpus.profiles import builtin
from splitwatt_core.protocol.contract import GpuStatus
from support.keepers import condition, settled
from support.served import cluster
from support.sizes import sized
from support.world import DEFAULT_W, MIN_W, ROOT, World

H100 = "NVIDIA H100 80GB HBM3"
SPEC = cluster("chat", prefill=RoleSpec(0, 8), decode=RoleSpec(4, 8))
LEAF = "cloud"


def pod(name: str, *, gpus: int = 8, pool: str = "p", **rest: object) -> Pod:
    fields = {"gated": True, "rules": NodeRules(Selector({"pool": pool})), **rest}
    label = cluster_label(SPEC.name)
    return Pod(PodName("s", name), name, 1, label, Role.DECODE, gpus, **fields)  # type: ignore[arg-type]


def plan(*pods: Pod, awaited: int = 2, room_w: float = 0.0, nodes: int = 0, elastic: bool = True) -> AdmissionPlan:
    """A leaf that may get `awaited` nodes of 8 GPUs, and has `nodes` already."""
    grows = Elastic(awaited + nodes, 8, {"pool": "p"}) if elastic else None
    budget = BudgetSpec(LEAF, "u", 1, 40_000, selector=Selector({"zone": "z"}), unmanaged_w_per_node=10_000, elastic=grows)
    names = [f"n{i}" for i in range(nodes)]
    return plan_admission(
        snapshot_of(
            Site(
                budgets={LEAF: budget},
                clusters={SPEC.id: SPEC},
                owners=LabelOwners({SPEC.id: 0.0}),
                pods={p.name: p for p in pods},
                nodes={name: NodeFact(name, {"zone": "z", "pool": "p"}, "b", gpus=8) for name in names},
                gpus={name: (GpuStatus("g", model=H100, min_w=200, max_w=700),) for name in names},
                profiles=builtin(),
                floor_room_w={LEAF: room_w},
                awaited={LEAF: awaited} if elastic and awaited else {},
            )
        )
    )


def message(made: AdmissionPlan) -> tuple[str, str]:
    [verdict] = made.verdicts.values()
    return verdict.reason, verdict.message


# ------------------------------------------------------------------------------------------------------------- the sum


@pytest.mark.parametrize("managed", [False, True])
def test_a_node_that_joins_an_elastic_leaf_lifts_no_sum_above_its_limit(managed: bool) -> None:
    world = World(limit_w=2 * DEFAULT_W + 500)
    world.lines["b"].max_nodes = 2
    world.tell_budgets()
    operator = settled(world)
    before_w = world.charged_w()
    node_w = world.budgets["b"].unmanaged_w_per_node
    assert operator.keeper.nodes_awaited() == {"b": 1}
    assert world.limit_w - node_w - 5 <= before_w <= world.limit_w - node_w, "all else is used, and that much is kept"
    world.add_node("b1", "b", managed=managed)
    world.tell_nodes()
    for _ in range(30):
        operator.settle(1)
        assert world.charged_w() <= world.limit_w
        assert operator.last.budgets[ROOT].charge_w == world.charged_w()
    assert operator.keeper.nodes_awaited() == {}


def test_what_is_kept_for_nodes_to_come_is_kept_in_every_budget_above_and_given_back() -> None:
    world = World(limit_w=2 * DEFAULT_W + 500)
    operator = settled(world)
    assert world.charged_w() == 2 * DEFAULT_W
    room_w = {name: operator.keeper.floor_room_w(name) for name in world.budgets}
    world.lines["b"].max_nodes = 2
    world.tell_budgets()
    operator.settle(10)
    node_w = world.budgets["b"].unmanaged_w_per_node
    lost_w = {name: room_w[name] - operator.keeper.floor_room_w(name) for name in world.budgets}
    assert lost_w == {ROOT: node_w, "b": node_w, "a": 0.0}
    assert world.charged_w() <= world.limit_w - node_w
    world.lines["b"].max_nodes = 0
    world.tell_budgets()
    operator.settle(30)
    assert world.charged_w() == 2 * DEFAULT_W


def test_nobody_who_is_there_is_cut_below_its_floor_for_a_node_to_come() -> None:
    world = World(limit_w=2 * DEFAULT_W + 500)
    world.lines["b"].max_nodes = 2
    world.tell_budgets()
    operator = settled(world)
    world.set_limit(2 * MIN_W + 100)
    operator.settle(20)
    report = operator.last.budgets[ROOT]
    assert report.short_w == 0 and condition(operator, ROOT, "Feasible").status is True
    assert world.charged_w() == 2 * MIN_W, "what is left above floors is kept"
    assert operator.keeper.floor_room_w("b") < 0, "and it is not enough for a node, so nobody passes its gate against it"


# --------------------------------------------------------------------------------------------------------------- gates


def test_from_zero_pods_pass_their_gate_as_far_as_nodes_may_come() -> None:
    made = plan(*(pod(f"d{i}") for i in range(4)))
    assert [(a.leaf, a.reservation_w, a.node) for a in made.admissions] == [(LEAF, 0.0, "")] * 2
    reason, text = message(made)
    assert reason == "InsufficientGPUs"
    assert "PowerBudget cloud may still get 2 nodes, and pods that are on their way there need them all" in text


def test_a_pod_that_waits_for_its_node_holds_it() -> None:
    past = [pod(f"d{i}", gated=False, leaf=LEAF) for i in range(2)]
    assert plan(*past, pod("d2")).admissions == ()
    assert len(plan(past[0], pod("d2")).admissions) == 1


def test_small_pods_share_a_node_to_come() -> None:
    small = [pod(f"d{i}", gpus=4) for i in range(3)]
    assert len(plan(*small, awaited=1).admissions) == 2


def test_a_pod_that_no_node_to_come_would_fit_waits() -> None:
    assert plan(pod("d", pool="other")).admissions == ()
    assert plan(pod("d", gpus=16)).admissions == ()


def test_nodes_that_are_there_come_first_and_their_floors_are_reserved() -> None:
    made = plan(pod("d0"), pod("d1"), nodes=1, room_w=1200.0)
    assert [(a.reservation_w, a.node) for a in made.admissions] == [(1200.0, "n0"), (0.0, "")]
    short = plan(pod("d0"), nodes=1, room_w=1000.0)
    assert short.admissions == (), "the scheduler would put it on the node that is there, whose floor nobody can pay"
    assert message(short)[0] == "InsufficientPower"


def test_watts_that_are_not_free_let_nobody_pass() -> None:
    made = plan(pod("d0"), room_w=-300.0)
    assert made.admissions == ()
    reason, text = message(made)
    assert reason == "InsufficientPower" and "300 W are missing in PowerBudget cloud" in text


def test_without_an_elastic_leaf_the_sentence_says_why_no_node_comes() -> None:
    reason, text = message(plan(pod("d0"), elastic=False))
    assert reason == "NoMatchingNodes"
    assert text.endswith("No autoscaler sees a pod behind the power gate: where one shall add nodes, set spec.elastic on a leaf.")
    reason, text = message(plan(pod("d0"), pod("d1"), nodes=1, awaited=0, room_w=9000.0))
    assert reason == "InsufficientGPUs" and "raise its spec.elastic.maxNodes (1)" in text


@settings(max_examples=sized(200), deadline=None)
@given(st.lists(st.tuples(st.sampled_from([1, 2, 4, 8]), st.booleans()), max_size=4), st.integers(0, 3), st.integers(0, 2))
def test_no_more_pods_pass_than_nodes_there_and_to_come_can_hold(pods: list[tuple[int, bool]], awaited: int, nodes: int) -> None:
    waiting = [pod(f"d{i}", gpus=gpus) for i, (gpus, gated) in enumerate(pods) if gated]
    past = [pod(f"h{i}", gpus=gpus, gated=False, leaf=LEAF) for i, (gpus, gated) in enumerate(pods) if not gated]
    admissions = plan(*past, *waiting, awaited=awaited, nodes=nodes, room_w=1e6).admissions
    held_gpus, new_gpus = sum(p.gpus for p in past), sum(a.need.gpus for a in admissions)
    if held_gpus <= 8 * (awaited + nodes):
        assert held_gpus + new_gpus <= 8 * (awaited + nodes)
    for admission in admissions:
        assert admission.reservation_w == (admission.need.gpus * (350 - 200) if admission.node else 0.0)
