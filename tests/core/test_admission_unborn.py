"""A cluster that grows stays in its ratio, whichever of its pods are seen first: one to come keeps its place for a moment."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st
from splitwatt_core.admission.plan import plan_admission
from splitwatt_core.admission.pods import PodName
from splitwatt_core.admission.snapshot import (
    Admission,
    AdmissionSnapshot,
    BlockedPod,
    BudgetRoom,
    ClusterWant,
    HeldPod,
    NodeRoom,
    PodNeed,
)
from splitwatt_core.admission.unborn import BIRTH_GRACE_S
from splitwatt_core.budget.tree import Selector
from splitwatt_core.clusters import PAIR, ClusterName, Role
from support.some import some

CHAT, BATCH = ClusterName("serving", "chat"), ClusterName("research", "batch")
KIND, IDLE_W, GPUS = "h100", 200.0, 8
FLOOR_W = {Role.PREFILL: 450.0, Role.DECODE: 350.0, Role.MIXED: 450.0}
POD_W = {role: GPUS * (floor_w - IDLE_W) for role, floor_w in FLOOR_W.items()}
PAIR_W = POD_W[Role.PREFILL] + POD_W[Role.DECODE]
BORN_S = 1000.0
"""When the cluster was patched, to the second; the pair that stands is older."""


def need(role: Role, number: int, *, cluster: ClusterName = CHAT, created_s: float = BORN_S, group: str = "") -> PodNeed:
    name = f"{role}-{number}{group}"
    key = f"{cluster.name} {name}"
    return PodNeed(PodName("serving", name), key, cluster, role, GPUS, {KIND: FLOOR_W[role]}, created_s=created_s, group=group)


def past(role: Role, number: int, *, cluster: ClusterName = CHAT, terminating: bool = False) -> HeldPod:
    return HeldPod(need(role, number, cluster=cluster, created_s=0.0), "rack", terminating=terminating)


def rack(
    replicas: dict[Role, int], *waiting: PodNeed, left_w: float, held: Sequence[HeldPod] = (), nodes: int = 30
) -> AdmissionSnapshot:
    """With so many watts left beside what is past its gate."""
    room_w = left_w + sum(POD_W[pod.need.role] for pod in held)
    free = tuple(NodeRoom(f"n{i:02d}", "rack", {"rack": "a"}, GPUS, GPUS, KIND, IDLE_W, 1.0) for i in range(nodes))
    budget = BudgetRoom("rack", room_w, selector=Selector({"rack": "a"}))
    return AdmissionSnapshot((budget,), free, (ClusterWant(CHAT, 100, replicas),), waiting, tuple(held))


def admitted(house: AdmissionSnapshot, now_s: float = BORN_S) -> list[str]:
    return [f"{a.need.role}-{a.need.pod.name.rsplit('-', 1)[1]}" for a in plan_admission(house, now_s=now_s).admissions]


def after(house: AdmissionSnapshot, admissions: Sequence[Admission]) -> AdmissionSnapshot:
    gone = {a.need.uid for a in admissions}
    held = (*house.held, *(HeldPod(a.need, a.leaf) for a in admissions))
    return replace(house, held=held, waiting=tuple(n for n in house.waiting if n.uid not in gone))


THREE = {Role.PREFILL: 3, Role.DECODE: 3}
STANDING = (past(Role.PREFILL, 0), past(Role.DECODE, 0))


@pytest.mark.parametrize("first", PAIR)
def test_pods_of_one_role_that_are_seen_first_do_not_take_the_other_ones_watts(first: Role) -> None:
    """One and one stand, three and three are asked for, and there are watts for two and two, or for three and one."""
    [other] = set(PAIR) - {first}
    house = rack(THREE, need(first, 1), need(first, 2), left_w=max(PAIR_W, 2 * POD_W[first]), held=STANDING)
    assert len(admitted(house, inf)) == 2, "or nothing is at stake"
    plan = plan_admission(house, now_s=BORN_S)
    assert [a.need.pod.name for a in plan.admissions] == [f"{first}-1"]
    assert not plan.verdicts[CHAT].admitted
    later = after(house, plan.admissions)
    later = replace(later, waiting=(*later.waiting, need(other, 1), need(other, 2)))
    assert admitted(later, BORN_S + 1) == [f"{other}-1"]


def test_who_waits_for_a_pod_to_come_is_told_so_and_goes_on_without_when_it_is_not_created() -> None:
    house = rack(THREE, need(Role.DECODE, 2), left_w=POD_W[Role.PREFILL] + 1, held=(*STANDING, past(Role.DECODE, 1)))
    verdict = plan_admission(house, now_s=BORN_S + 1).verdicts[CHAT]
    assert (verdict.admitted, verdict.reason) == (False, "WaitingForPods")
    assert verdict.message == "Waits a moment for the next prefill pod to be created, whose watts or GPUs decode would take."
    assert admitted(house, BORN_S + BIRTH_GRACE_S - 0.1) == []
    assert admitted(house, BORN_S + BIRTH_GRACE_S) == ["decode-2"]
    assert admitted(house, BORN_S - BIRTH_GRACE_S) == ["decode-2"], "a clock that is far off keeps nobody waiting"
    short = rack(THREE, need(Role.DECODE, 2), left_w=POD_W[Role.DECODE] - 1, held=(*STANDING, past(Role.DECODE, 1)))
    told = plan_admission(short, now_s=BORN_S).verdicts[CHAT]
    assert told.reason == "InsufficientPower" and "1199 W left" in told.message, "what is short without it is told"


def test_roles_that_ask_for_the_same_are_told_apart() -> None:
    """What has no room for the one that is to come is still refused to the one that waits, with its numbers."""
    alike = [replace(pod.need, floor_w={KIND: 350.0}) for pod in (*STANDING, past(Role.DECODE, 1))]
    held = tuple(HeldPod(pod, "rack") for pod in alike)
    house = rack(THREE, need(Role.DECODE, 2), left_w=0.0, held=held)
    assert plan_admission(house, now_s=BORN_S).verdicts[CHAT].reason == "InsufficientPower"


def test_where_there_is_room_for_both_nobody_waits() -> None:
    house = rack(THREE, need(Role.DECODE, 1), need(Role.DECODE, 2), left_w=PAIR_W + POD_W[Role.DECODE], held=STANDING)
    assert admitted(house) == ["decode-1", "decode-2"]
    watching = replace(house, budgets=tuple(replace(b, binding=False, floor_room_w=-1e6) for b in house.budgets))
    assert admitted(watching) == ["decode-1", "decode-2"], "a tree that observes holds nothing back"
    few = rack(THREE, need(Role.DECODE, 1), need(Role.DECODE, 2), left_w=1e6, held=STANDING, nodes=4)
    assert admitted(few) == ["decode-1"], "nor are its GPUs taken"


def test_growth_of_one_role_alone_waits_for_nobody() -> None:
    house = rack({Role.PREFILL: 1, Role.DECODE: 3}, need(Role.DECODE, 1), left_w=POD_W[Role.DECODE], held=STANDING)
    assert admitted(house) == ["decode-1"]


@pytest.mark.parametrize("role", PAIR)
def test_a_pod_that_is_told_to_go_stands_for_the_one_that_follows_it(role: Role) -> None:
    """So who is rolled waits for nothing."""
    [other] = set(PAIR) - {role}
    six = {role: 3, other: 6}
    stand = (past(role, 0), past(role, 1), *(past(other, i) for i in range(5)))
    house = rack(six, need(other, 9), left_w=POD_W[other], held=stand)
    assert admitted(house) == [], "one of the three is missing, and six would be five sixths"
    assert admitted(replace(house, held=(*stand, past(role, 8, terminating=True)))) == []
    rolled = rack(six, need(other, 9), left_w=POD_W[other], held=(*stand, past(role, 8, terminating=True)))
    assert admitted(rolled) == [f"{other}-9"]
    kueue = replace(house, blocked=(BlockedPod(need(role, 2), ("kueue.x-k8s.io/admission",)),))
    assert admitted(kueue) == [f"{other}-9"], "nor for one that others have not let in"


def test_a_lower_class_does_not_take_what_is_kept_for_a_moment() -> None:
    house = rack(THREE, need(Role.DECODE, 1), need(Role.DECODE, 2), left_w=PAIR_W, held=STANDING)
    pair = tuple(past(role, 0, cluster=BATCH) for role in PAIR)
    held = (*house.held, *pair)
    batch = ClusterWant(BATCH, 0, {Role.PREFILL: 1, Role.DECODE: 2})
    room = tuple(replace(b, floor_room_w=b.floor_room_w + PAIR_W) for b in house.budgets)
    small = replace(need(Role.DECODE, 1, cluster=BATCH), gpus=1)
    shared = replace(house, budgets=room, held=held, clusters=(*house.clusters, batch), waiting=(*house.waiting, small))
    plan = plan_admission(shared, now_s=BORN_S)
    assert [a.need.cluster for a in plan.admissions] == [CHAT]
    assert plan.verdicts[BATCH].reason in ("WaitingForTurn", "InsufficientPower")


def test_half_a_group_is_still_to_be_created() -> None:
    nodes = {Role.DECODE: 2}
    stands = (past(Role.PREFILL, 0), *(HeldPod(need(Role.DECODE, i, created_s=0.0, group="g0"), "rack") for i in range(2)))
    half = need(Role.DECODE, 10, group="g1")
    house = rack(THREE, need(Role.PREFILL, 1), need(Role.PREFILL, 2), half, left_w=2 * PAIR_W - 1, held=stands)
    house = replace(house, clusters=(ClusterWant(CHAT, 100, THREE, nodes),))
    assert admitted(house, inf) == ["prefill-1", "prefill-2"]
    assert admitted(house) == ["prefill-1"]
    whole = after(house, plan_admission(house, now_s=BORN_S).admissions)
    whole = replace(whole, waiting=(*whole.waiting, need(Role.DECODE, 11, group="g1")))
    assert sorted(a.need.group for a in plan_admission(whole, now_s=BORN_S + 1).admissions) == ["g1", "g1"]


# ------------------------------------------------------------------------------------------------------------ random births


@st.composite
def births(draw: st.DrawFn) -> tuple[dict[Role, int], list[PodNeed], float]:
    """How many are asked for, their pods in the order in which they are seen, and the watts beside the first pair."""
    replicas = {role: draw(st.integers(1, 6)) for role in PAIR}
    pods = [need(role, i, created_s=BORN_S + draw(st.integers(0, 1))) for role in PAIR for i in range(1, replicas[role])]
    return replicas, draw(st.permutations(pods)), draw(st.integers(0, 6)) * PAIR_W / 2 + draw(st.integers(0, 400))


@given(births())
def test_whoever_is_seen_first_no_role_runs_ahead(grown: tuple[dict[Role, int], list[PodNeed], float]) -> None:
    """A look after each birth, all within the grace."""
    replicas, pods, left_w = grown
    house = rack(replicas, left_w=left_w, held=STANDING)
    for pod in pods:
        house = replace(house, waiting=(*house.waiting, pod))
        house = after(house, plan_admission(house, now_s=BORN_S + 2).admissions)
    count = Counter(held.need.role for held in house.held)
    for role, other in (PAIR, PAIR[::-1]):
        if count[other] < replicas[other]:
            assert (count[role] - 1) * replicas[other] <= count[other] * replicas[role], f"{count} of {replicas}"
    assert sum(POD_W[held.need.role] for held in house.held) <= left_w + PAIR_W + 1e-6
    assert house.waiting == () or plan_admission(house).admissions == (), "nothing is kept that could be had"


@given(births(), st.integers(0, 10), st.sampled_from([BIRTH_GRACE_S + 1, 1e6, -BIRTH_GRACE_S, -1e6]))
def test_out_of_its_grace_a_pod_waits_for_nobody_who_is_not_there(
    grown: tuple[dict[Role, int], list[PodNeed], float], seen: int, later_s: float
) -> None:
    replicas, pods, left_w = grown
    house = rack(replicas, *pods[:seen], left_w=left_w, held=STANDING)
    assert plan_admission(house, now_s=BORN_S + later_s) == plan_admission(house)


def test_random_births_hold_some_back() -> None:
    """Or the two searches above would prove nothing."""
    order = [need(Role.PREFILL, 1), need(Role.PREFILL, 2)]
    house = rack(THREE, *some(order), left_w=PAIR_W * 1.4, held=STANDING)
    assert plan_admission(house, now_s=BORN_S + 2) != plan_admission(house)
