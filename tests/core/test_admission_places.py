"""Where pods go is decided with GPUs and watts of each leaf in view, and a refusal names what is short where.

The accounting is written anew from the rule, and shares no code with it.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st
from splitwatt_core.admission.plan import plan_admission
from splitwatt_core.admission.pods import PodName
from splitwatt_core.admission.scheduling import NodeRules
from splitwatt_core.admission.snapshot import AdmissionPlan, AdmissionSnapshot, BudgetRoom, ClusterWant, NodeRoom, PodNeed
from splitwatt_core.budget.tree import Selector
from splitwatt_core.clusters import PAIR, ClusterName, Role
from support.sizes import sized

CHAT = ClusterName("s", "chat")
FLOOR_W, IDLE_W = 350.0, 200.0
KIND = "h100"


def need(role: Role, index: int = 0, *, gpus: int = 8, pool: str | None = None) -> PodNeed:
    rules = NodeRules(Selector({} if pool is None else {"pool": pool}))
    name = f"{role.value}-{index}"
    return PodNeed(PodName("s", name), name, CHAT, role, gpus, {KIND: FLOOR_W}, rules, created_s=float(index))


def price_w(gpus: int = 8) -> float:
    return gpus * (FLOOR_W - IDLE_W)


def house(watts: dict[str, float], free: dict[str, list[tuple[str, int]]], *waiting: PodNeed) -> AdmissionSnapshot:
    """Leaves by name: watts left, and for each node of 8 GPUs its pool and how many are free."""
    replicas = {role: sum(n.role is role for n in waiting) for role in Role}
    return AdmissionSnapshot(
        budgets=tuple(BudgetRoom(leaf, left, selector=Selector({"rack": leaf})) for leaf, left in watts.items()),
        nodes=tuple(
            NodeRoom(f"{leaf}-n{i}", leaf, {"rack": leaf, "pool": pool}, 8, gpus, KIND, IDLE_W)
            for leaf, nodes in free.items()
            for i, (pool, gpus) in enumerate(nodes)
        ),
        clusters=(ClusterWant(CHAT, 0, replicas),),
        waiting=waiting,
    )


@st.composite
def one_pod(draw: st.DrawFn) -> AdmissionSnapshot:
    leaves = [f"l{i}" for i in range(draw(st.integers(1, 4)))]
    watts = {leaf: float(draw(st.integers(-3000, 6000))) for leaf in leaves}
    free = {leaf: draw(st.lists(st.tuples(st.sampled_from("pd"), st.integers(0, 8)), min_size=1, max_size=3)) for leaf in leaves}
    return house(watts, free, need(Role.DECODE, gpus=draw(st.sampled_from([1, 4, 8])), pool=draw(st.sampled_from([None, "d"]))))


def lacks(whole: AdmissionSnapshot, pod: PodNeed) -> dict[str, tuple[float, int]]:
    """By leaf that has nodes for it: the watts that are missing, and the most GPUs free on one node."""
    found = {}
    for budget in whole.budgets:
        nodes = [n for n in whole.nodes if n.leaf == budget.name and pod.rules.matches(n.name, n.labels)]
        if nodes:
            missing_w = max(0.0, pod.gpus * (FLOOR_W - IDLE_W) - budget.floor_room_w)
            found[budget.name] = missing_w, max(n.free_gpus for n in nodes)
    return found


@settings(max_examples=sized(400), deadline=None)
@given(one_pod())
def test_a_pod_is_admitted_exactly_where_one_leaf_has_both_and_else_the_true_shortage_is_named(whole: AdmissionSnapshot) -> None:
    [pod] = whole.waiting
    plan, leaves = plan_admission(whole), lacks(whole, pod)
    both = {leaf for leaf, (missing_w, freest) in leaves.items() if missing_w == 0 and freest >= pod.gpus}
    verdict = plan.verdicts[CHAT]
    if both:
        [admission] = plan.admissions
        assert admission.leaf in both and verdict.admitted
        return
    assert plan.admissions == ()
    housed = {leaf: missing_w for leaf, (missing_w, freest) in leaves.items() if freest >= pod.gpus}
    if not leaves:
        assert verdict.reason == "NoMatchingNodes"
    elif housed:
        assert verdict.reason == "InsufficientPower"
        assert f"{min(housed.values()):.0f} W are missing" in verdict.message
        told = re.search(r"PowerBudget (\S+) has (\S+) W left", verdict.message)
        assert told is not None and housed[told[1]] == min(housed.values())
    else:
        assert verdict.reason == "InsufficientGPUs"
        told = re.search(r"in PowerBudget (\S+) the freest of [^,]* has (\d+), and", verdict.message)
        assert told is not None and leaves[told[1]][1] == int(told[2]) < pod.gpus
        powered = [freest for missing_w, freest in leaves.values() if missing_w == 0]
        assert not powered or leaves[told[1]] == (0.0, max(powered)), "where the watts are, GPUs alone are short"


@st.composite
def pairs(draw: st.DrawFn) -> AdmissionSnapshot:
    leaves = [f"l{i}" for i in range(draw(st.integers(1, 3)))]
    watts = {leaf: float(draw(st.integers(0, 4))) * price_w() + 1 for leaf in leaves}
    free = {
        leaf: draw(st.lists(st.tuples(st.sampled_from("pd"), st.sampled_from([0, 4, 8])), min_size=1, max_size=3))
        for leaf in leaves
    }
    pods = [
        need(role, gpus=draw(st.sampled_from([4, 8])), pool=draw(st.sampled_from([None, None, pool])))
        for role, pool in zip(PAIR, "pd", strict=True)
    ]
    return house(watts, free, *pods)


def can_pair(whole: AdmissionSnapshot) -> bool:
    """By trying every two nodes."""
    first, second = whole.waiting
    left_w = {b.name: b.floor_room_w for b in whole.budgets}

    def takes(pod: PodNeed, node: NodeRoom, used_gpus: int, used_w: float) -> bool:
        return (
            pod.rules.matches(node.name, node.labels)
            and node.free_gpus - used_gpus >= pod.gpus
            and left_w[node.leaf] - used_w >= pod.gpus * (FLOOR_W - IDLE_W)
        )

    return any(
        takes(first, a, 0, 0.0)
        and takes(second, b, first.gpus if a is b else 0, price_w(first.gpus) if a.leaf == b.leaf else 0.0)
        for a in whole.nodes
        for b in whole.nodes
    )


@settings(max_examples=sized(400), deadline=None)
@given(pairs())
def test_a_pair_is_admitted_exactly_when_two_nodes_with_watts_can_be_found(whole: AdmissionSnapshot) -> None:
    plan = plan_admission(whole)
    assert bool(plan.admissions) is can_pair(whole)
    verdict = plan.verdicts[CHAT]
    if plan.admissions:
        taken_w: dict[str, float] = defaultdict(float)
        for admission in plan.admissions:
            taken_w[admission.leaf] += admission.reservation_w
        assert all(taken_w[budget.name] <= budget.floor_room_w for budget in whole.budgets)
        return
    assert verdict.reason in ("InsufficientPower", "InsufficientGPUs", "NoMatchingNodes")
    if verdict.reason == "InsufficientPower":
        told = re.search(r"has (-?\d+) W left above all floors: (\d+) W are missing", verdict.message)
        assert told is not None and int(told[2]) > 0
        asked_w = [float(watts) for watts in re.findall(r"(\d+) W \(", verdict.message)]
        assert sum(asked_w) - int(told[1]) == int(told[2]), "the numbers of the sentence add up"


# ----------------------------------------------------------------------------------------------------------------- scenes


def test_gpus_of_one_leaf_and_watts_of_another_are_told_as_what_they_are() -> None:
    whole = house({"a1": 100.0, "a2": 9000.0}, {"a1": [("d", 8)], "a2": [("d", 0), ("d", 4)]}, need(Role.DECODE))
    verdict = plan_admission(whole).verdicts[CHAT]
    assert verdict.reason == "InsufficientPower"
    assert verdict.message == (
        "To keep its GPUs above the cliff, decode 1200 W (8 GPUs) in a1 must be reserved; PowerBudget a1 has 100 W left above "
        "all floors: 1100 W are missing. PowerBudget a2 has the watts, but on the freest of 2 matching nodes there 4 of 8 GPUs "
        "are free."
    )


def test_a_pair_that_fits_one_by_one_is_told_what_it_lacks_together() -> None:
    """Each pod could have the one node: GPUs are short, and watts are not."""
    whole = house({"a1": 9000.0}, {"a1": [("p", 8)]}, need(Role.PREFILL), need(Role.DECODE))
    verdict = plan_admission(whole).verdicts[CHAT]
    assert (verdict.reason, verdict.message) == (
        "InsufficientGPUs",
        "With the prefill replica in a1, the decode replica needs 8 free GPUs on one node; in PowerBudget a1 the freest of 1 "
        "matching node has 0, and no other leaf has both GPUs and watts.",
    )
    watts = house(
        {"a1": 1500.0, "a2": 0.0}, {"a1": [("p", 8), ("d", 8)], "a2": [("d", 8)]}, need(Role.PREFILL), need(Role.DECODE)
    )
    assert plan_admission(watts).verdicts[CHAT].message == (
        "To keep their GPUs above the cliff, prefill 1200 W (8 GPUs) in a1 and decode 1200 W (8 GPUs) in a1 must be reserved; "
        "PowerBudget a1 has 1500 W left above all floors: 900 W are missing."
    )


def leaves_of(plan: AdmissionPlan) -> dict[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    for admission in plan.admissions:
        found[admission.leaf].append(admission.need.role.value)
    return {leaf: sorted(roles) for leaf, roles in found.items()}


def test_each_role_is_spread_by_its_own_nodes_whatever_was_born_first() -> None:
    nodes = [("p", 8), ("p", 8), ("d", 8), ("d", 8)]
    pods = [need(Role.PREFILL, i, pool="p") for i in range(2)] + [need(Role.DECODE, i, pool="d") for i in range(3)]
    for late in range(1, len(pods)):
        for noise_w in (-400.0, 0.0, 400.0):
            whole = house({"a1": 7500.0 + noise_w, "a2": 7500.0}, {"a1": nodes, "a2": nodes}, *pods)
            before = replace(whole, waiting=tuple(p for i, p in enumerate(pods) if i != late))
            found = {a.need.uid: a.leaf for a in plan_admission(before).admissions}
            assert len(found) in (4, 0), "all but the one that is born late, or none without a first pair"
            roles = leaves_of(plan_admission(whole))
            assert roles == {"a1": ["decode", "decode", "prefill"], "a2": ["decode", "prefill"]}


def test_a_rack_with_far_more_watts_comes_first_among_equals() -> None:
    whole = house({"a1": 2000.0, "a2": 20_000.0}, {"a1": [("d", 8)], "a2": [("d", 8)]}, need(Role.DECODE))
    assert [a.leaf for a in plan_admission(whole).admissions] == ["a2"]


def test_a_second_pod_of_a_pair_goes_where_no_pair_is_broken() -> None:
    """Two racks of one prefill and one decode node each: chat's pair takes one rack, and a whole pair still fits the other."""
    nodes = [("p", 8), ("d", 8)]
    whole = house(
        {"a1": 3700.0, "a2": 3700.0}, {"a1": nodes, "a2": nodes}, need(Role.PREFILL, pool="p"), need(Role.DECODE, pool="d")
    )
    assert leaves_of(plan_admission(whole)) == {"a1": ["decode", "prefill"]}
