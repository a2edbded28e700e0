"""Replicas over several nodes at the power gate: a group leaves it whole or not at all, over random houses and in scenes."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from splitwatt_core.admission.plan import plan_admission
from splitwatt_core.admission.pods import PodName
from splitwatt_core.admission.scheduling import NodeRules
from splitwatt_core.admission.snapshot import (
    Admission,
    AdmissionSnapshot,
    BudgetRoom,
    ClusterWant,
    HeldPod,
    NodeRoom,
    PodNeed,
)
from splitwatt_core.admission.standing import standings
from splitwatt_core.budget.tree import Selector
from splitwatt_core.clusters import ClusterName, Role

CHAT = ClusterName("serving", "chat")
KIND, FLOOR_W, IDLE_W, GPUS = "h100", 350.0, 200.0, 8
POD_W = GPUS * (FLOOR_W - IDLE_W)
"""What has to be reserved for one pod."""


def need(cluster: ClusterName, role: Role, group: int, index: int, *, grouped: bool = True, gpus: int = GPUS) -> PodNeed:
    name = f"{cluster.name}-{role}-{group}-{index}"
    key = f"{cluster.name}-{role}-{group}" if grouped else ""
    rules = NodeRules(Selector({}))
    return PodNeed(PodName("serving", name), name, cluster, role, gpus, {KIND: FLOOR_W}, rules, float(group), key)


def group(role: Role, number: int, size: int) -> tuple[PodNeed, ...]:
    return tuple(need(CHAT, role, number, i, grouped=size > 1) for i in range(size))


def rack(name: str, room_w: float, nodes: int) -> tuple[BudgetRoom, tuple[NodeRoom, ...]]:
    rooms = tuple(NodeRoom(f"{name}-n{i}", name, {"rack": name}, GPUS, GPUS, KIND, IDLE_W) for i in range(nodes))
    return BudgetRoom(name, room_w, "row", Selector({"rack": name})), rooms


Asked = Mapping[Role, tuple[int, int]]
"""By role, how many replicas, and how many nodes each has."""


def house(
    racks: Mapping[str, tuple[float, int]],
    waiting: Sequence[PodNeed],
    asked: Asked,
    *,
    held: Sequence[HeldPod] = (),
) -> AdmissionSnapshot:
    made = [rack(name, *of) for name, of in racks.items()]
    replicas = {role: count for role, (count, _) in asked.items()}
    want = ClusterWant(CHAT, 100, replicas, {role: nodes for role, (_, nodes) in asked.items()})
    return AdmissionSnapshot(
        (BudgetRoom("row", 1e9), *(budget for budget, _ in made)),
        tuple(node for _, rooms in made for node in rooms),
        (want,),
        tuple(waiting),
        tuple(held),
    )  # fmt: skip


def let_in(snapshot: AdmissionSnapshot) -> list[str]:
    return sorted(a.need.pod.name for a in plan_admission(snapshot).admissions)


DECODE_ALONE: Asked = {Role.DECODE: (2, 4)}


@pytest.mark.parametrize(("pods_w", "nodes", "reason"), [(3, 4, "InsufficientPower"), (4, 3, "InsufficientGPUs")])
def test_a_group_waits_whole_while_one_of_its_pods_has_no_room(pods_w: int, nodes: int, reason: str) -> None:
    waiting = group(Role.DECODE, 0, 4)
    snapshot = house({"a": (pods_w * POD_W, nodes)}, waiting, DECODE_ALONE)
    plan = plan_admission(snapshot)
    assert plan.admissions == () and plan.verdicts[CHAT].reason == reason
    assert plan.verdicts[CHAT].message == (
        f"A decode replica is 4 pods of 8 GPUs, which start together: there are GPUs for {nodes} of them, and GPUs and watts "
        "for 3."
    )
    enough = house({"a": (4 * POD_W, 4)}, waiting, DECODE_ALONE)
    assert let_in(enough) == sorted(pod.pod.name for pod in waiting)
    assert standings(enough, plan_admission(enough))[CHAT].admitted == {Role.DECODE: 1}, "one replica of four pods"


def test_a_group_of_which_a_pod_is_not_born_yet_waits() -> None:
    waiting = group(Role.DECODE, 0, 4)[:3]
    plan = plan_admission(house({"a": (9 * POD_W, 9)}, waiting, DECODE_ALONE))
    assert plan.admissions == () and plan.verdicts[CHAT].reason == "WaitingForPods"


def test_one_rack_is_taken_where_it_has_room_for_all_and_several_where_none_has() -> None:
    waiting = group(Role.DECODE, 0, 4)
    together = plan_admission(house({"a": (2 * POD_W, 2), "b": (4 * POD_W, 4)}, waiting, DECODE_ALONE))
    assert {a.leaf for a in together.admissions} == {"b"} and len(together.admissions) == 4
    spread = plan_admission(house({"a": (2 * POD_W, 2), "b": (3 * POD_W, 3)}, waiting, DECODE_ALONE))
    assert Counter(a.leaf for a in spread.admissions).total() == 4 and {a.leaf for a in spread.admissions} == {"a", "b"}


def test_the_first_pair_is_admitted_with_all_its_nodes_or_not_at_all() -> None:
    waiting = (*group(Role.PREFILL, 0, 2), *group(Role.DECODE, 0, 3))
    asked: Asked = {Role.PREFILL: (1, 2), Role.DECODE: (1, 3)}
    assert let_in(house({"a": (5 * POD_W, 5)}, waiting, asked)) == sorted(pod.pod.name for pod in waiting)
    short = plan_admission(house({"a": (4 * POD_W, 5)}, waiting, asked))
    assert short.admissions == () and short.verdicts[CHAT].message.startswith("The first prefill and the first decode replica")


def test_the_rest_of_a_group_that_is_past_its_gate_in_part_follows_first() -> None:
    """An operator died between two of its pods, or one was made anew."""
    first, second = group(Role.DECODE, 0, 4), group(Role.DECODE, 1, 4)
    held = [HeldPod(pod, "a") for pod in second[:3]]
    snapshot = house({"a": (7 * POD_W, 8)}, (*first, second[3]), DECODE_ALONE, held=held)
    assert let_in(snapshot) == [second[3].pod.name], "of 7 pods' watts 3 are held; the other group needs 4"
    assert standings(snapshot, plan_admission(snapshot))[CHAT].admitted == {Role.DECODE: 1}
    leaving = house({"a": (7 * POD_W, 8)}, (second[3],), DECODE_ALONE, held=[replace(pod, terminating=True) for pod in held])
    assert let_in(leaving) == [], "a group that is going has no rest"


def test_no_more_groups_than_replicas() -> None:
    waiting = [pod for number in range(3) for pod in group(Role.DECODE, number, 4)]
    assert len(let_in(house({"a": (99 * POD_W, 16)}, waiting, DECODE_ALONE))) == 8


# ------------------------------------------------------------------------------------------------------------ random houses


@st.composite
def houses(draw: st.DrawFn) -> AdmissionSnapshot:
    budgets = [BudgetRoom("row", draw(st.integers(0, 30)) * POD_W / 2)]
    nodes: list[NodeRoom] = []
    for i in range(draw(st.integers(1, 3))):
        budget, rooms = rack(f"rack-{i}", draw(st.integers(-1, 12)) * POD_W / 2, draw(st.integers(1, 4)))
        budgets.append(budget)
        nodes += rooms
    clusters, waiting, held = [], [], []
    for i in range(draw(st.integers(1, 3))):
        cluster = ClusterName("serving", f"c{i}")
        size = {role: draw(st.integers(1, 3)) for role in Role}
        replicas = {role: draw(st.integers(0, 2)) for role in Role}
        clusters.append(ClusterWant(cluster, draw(st.sampled_from([0, 100])), replicas, size))
        for role in Role:
            for number in range(draw(st.integers(0, 3))):
                born = draw(st.integers(0, size[role]))
                for index in range(born):
                    gpus = 4 if i else 8
                    pod = need(cluster, role, number, index, grouped=size[role] > 1, gpus=gpus)
                    if draw(st.integers(0, 5)) == 0:
                        held.append(HeldPod(pod, draw(st.sampled_from(budgets[1:])).name, terminating=draw(st.booleans())))
                    else:
                        waiting.append(pod)
    return AdmissionSnapshot(tuple(budgets), tuple(nodes), tuple(clusters), tuple(waiting), tuple(held))


def reserved_w(pods: Sequence[tuple[PodNeed, str | None]]) -> dict[str, float]:
    total: dict[str, float] = defaultdict(float)
    for pod, leaf in pods:
        for budget in (leaf or "", "row"):
            total[budget] += pod.gpus * (FLOOR_W - IDLE_W)
    return total


@given(houses())
def test_groups_leave_whole_within_watts_and_gpus(snapshot: AdmissionSnapshot) -> None:
    plan = plan_admission(snapshot)
    size = {(want.cluster, role): want.nodes_of(role) for want in snapshot.clusters for role in Role}
    gone = {a.need.uid for a in plan.admissions}
    staying = {h.need.uid for h in snapshot.held if not h.terminating}
    for pod in (a.need for a in plan.admissions):
        assert pod.cluster is not None
        if size[pod.cluster, pod.role] > 1:
            mates = [p.uid for p in (*snapshot.waiting, *(h.need for h in snapshot.held)) if p.group == pod.group]
            past = [uid for uid in mates if uid in gone or uid in staying]
            assert len(past) == size[pod.cluster, pod.role], "whole, with what is past the gate already"
    before, after = reserved_w([(h.need, h.leaf) for h in snapshot.held]), _after(snapshot, plan.admissions)
    for budget in snapshot.budgets:
        left_w = budget.floor_room_w - after[budget.name]
        assert left_w >= -1e-6 or after[budget.name] == before[budget.name], "no admission where watts are short"
    used: Counter[str] = Counter()
    for admission in plan.admissions:
        used[admission.node] += admission.need.gpus
    free = {node.name: node.free_gpus for node in snapshot.nodes}
    assert all(gpus <= free[node] for node, gpus in used.items())


def _after(snapshot: AdmissionSnapshot, admissions: Sequence[Admission]) -> dict[str, float]:
    return reserved_w([*((h.need, h.leaf) for h in snapshot.held), *((a.need, a.leaf) for a in admissions)])


@given(houses())
def test_what_is_let_in_is_said_to_stand_group_by_group(snapshot: AdmissionSnapshot) -> None:
    plan = plan_admission(snapshot)
    for cluster, stands in standings(snapshot, plan).items():
        want = next(w for w in snapshot.clusters if w.cluster == cluster)
        for role in Role:
            pods = [h.need for h in snapshot.held if not h.terminating] + [a.need for a in plan.admissions]
            mine = [p for p in pods if p.cluster == cluster and p.role is role]
            groups = Counter(p.group or p.uid for p in mine)
            whole = sum(count == want.nodes_of(role) for count in groups.values())
            assert stands.admitted.get(role, 0) == whole
