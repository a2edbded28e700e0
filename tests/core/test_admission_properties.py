"""Power admission over random houses: never more watts than there are, pairs together, order kept, nobody starves.

The accounting in here is written anew, from the rule in `admission`'s docstring, and shares no code with it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace

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
from splitwatt_core.budget.facts import CountedFloor
from splitwatt_core.budget.tree import Selector
from splitwatt_core.clusters import PAIR, ClusterName, Role

FLOORS_W = {Role.PREFILL: {"h100": 450.0, "a100": 300.0}, Role.DECODE: {"h100": 350.0, "a100": 220.0}}
FLOORS_W[Role.MIXED] = FLOORS_W[Role.PREFILL]
IDLE_W = {"h100": 200.0, "a100": 100.0}


def pod(cluster: ClusterName, role: Role, index: int, *, gpus: int, pool: str | None, created_s: float = 0.0) -> PodNeed:
    return PodNeed(
        pod=PodName(cluster.namespace, f"{cluster.name}-{role.value}-{index}"),
        uid=f"{cluster.name}-{role.value}-{index}",
        cluster=cluster,
        role=role,
        gpus=gpus,
        floor_w=FLOORS_W[role],
        rules=NodeRules(Selector({} if pool is None else {"pool": pool})),
        created_s=created_s,
    )


def on(need: PodNeed, kind: str) -> CountedFloor:
    """The keeper counts all its GPUs, of this kind."""
    return CountedFloor(need.gpus, need.gpus * need.floor_w[kind])


def running(need: PodNeed, node: str, *, terminating: bool = False) -> HeldPod:
    return HeldPod(need, "rack", node=node, counted=on(need, "h100"), terminating=terminating)


@st.composite
def houses(draw: st.DrawFn) -> AdmissionSnapshot:
    leaves = draw(st.integers(1, 3))
    limit = st.integers(-500, 14_000)
    budgets = [BudgetRoom("row", float(draw(limit)))]
    nodes = []
    for i in range(leaves):
        rack = f"rack-{i}"
        budgets.append(BudgetRoom(rack, float(draw(limit)), parent="row", selector=Selector({"rack": rack})))
        for j in range(draw(st.integers(1, 3))):
            kind = draw(st.sampled_from(["h100", "a100"]))
            labels = {"rack": rack, "pool": draw(st.sampled_from(["p", "d"]))}
            nodes.append(NodeRoom(f"{rack}-n{j}", rack, labels, 8, 8, kind, IDLE_W[kind], 1.04))
    clusters, waiting = [], []
    for i in range(draw(st.integers(1, 4))):
        cluster = ClusterName("serving", f"c{i}")
        roles = draw(st.sampled_from([PAIR, (Role.MIXED,), tuple(Role)]))
        replicas = {role: draw(st.integers(0, 3)) for role in roles}
        clusters.append(ClusterWant(cluster, draw(st.sampled_from([0, 50, 100])), replicas))
        gpus = draw(st.sampled_from([1, 4, 8]))
        for role in roles:
            pool = draw(st.sampled_from([None, "p", "d"]))
            born = draw(st.integers(0, replicas[role]))
            for k in range(born):
                waiting.append(pod(cluster, role, k, gpus=gpus, pool=pool, created_s=float(draw(st.integers(0, 5)))))
    return AdmissionSnapshot(tuple(budgets), tuple(nodes), tuple(clusters), tuple(waiting))


def dearest_w(house: AdmissionSnapshot, need: PodNeed, leaf: str) -> float:
    nodes = [n for n in house.nodes if n.leaf == leaf and n.gpus >= need.gpus and need.may_use(n)]
    return max((need.floor_w[n.gpu_kind] - n.idle_floor_w) * n.loss_factor * need.gpus for n in nodes)


def reserved_w(house: AdmissionSnapshot, admitted: Sequence[tuple[PodNeed, str]]) -> dict[str, float]:
    total: dict[str, float] = defaultdict(float)
    for need, leaf in admitted:
        for budget in (leaf, "row"):
            total[budget] += dearest_w(house, need, leaf)
    return total


def after(house: AdmissionSnapshot, admissions: Sequence[Admission]) -> AdmissionSnapshot:
    """The gates are lifted; the scheduler has done nothing yet."""
    gone = {a.need.uid for a in admissions}
    held = house.held + tuple(HeldPod(a.need, a.leaf) for a in admissions)
    return replace(house, waiting=tuple(n for n in house.waiting if n.uid not in gone), held=held)


def scheduled(house: AdmissionSnapshot) -> AdmissionSnapshot:
    """The scheduler binds what it can, first fit, and the agents report it: floor room falls by the floors really bound."""
    free = {n.name: n.free_gpus for n in house.nodes}
    nodes = {n.name: n for n in house.nodes}
    floor_room_w = {b.name: b.floor_room_w for b in house.budgets}
    held = []
    for h in house.held:
        spot = next(
            (n for n in house.nodes if h.node is None and n.leaf == h.leaf and free[n.name] >= h.need.gpus and h.need.may_use(n)),
            None,
        )
        if spot is None:
            held.append(h)
            continue
        free[spot.name] -= h.need.gpus
        for budget in (spot.leaf, "row"):
            floor_room_w[budget] -= (h.need.floor_w[spot.gpu_kind] - spot.idle_floor_w) * spot.loss_factor * h.need.gpus
        held.append(replace(h, node=spot.name, counted=on(h.need, spot.gpu_kind)))
    return replace(
        house,
        budgets=tuple(replace(b, floor_room_w=floor_room_w[b.name]) for b in house.budgets),
        nodes=tuple(replace(nodes[name], free_gpus=left) for name, left in free.items()),
        held=tuple(held),
    )


def rounds(house: AdmissionSnapshot, bind: bool) -> Iterator[tuple[AdmissionSnapshot, tuple[Admission, ...]]]:
    while True:
        plan = plan_admission(house)
        yield house, plan.admissions
        if not plan.admissions:
            return
        house = after(house, plan.admissions)
        if bind:
            house = scheduled(house)


@given(houses())
def test_no_budget_is_promised_more_watts_than_it_has(house: AdmissionSnapshot) -> None:
    """While nothing is scheduled yet, over all rounds: what is assumed counts."""
    admitted: list[tuple[PodNeed, str]] = []
    for _, admissions in rounds(house, bind=False):
        admitted += [(a.need, a.leaf) for a in admissions]
    total = reserved_w(house, admitted)
    for budget in house.budgets:
        assert total[budget.name] <= max(0.0, budget.floor_room_w) + 1e-6


@given(houses())
def test_floor_room_never_turns_negative_when_the_scheduler_binds(house: AdmissionSnapshot) -> None:
    before = {b.name: b.floor_room_w for b in house.budgets}
    for state, _ in rounds(house, bind=True):
        for budget in state.budgets:
            assert budget.floor_room_w >= min(0.0, before[budget.name]) - 1e-6


@given(houses())
def test_no_pod_is_sent_where_it_cannot_run(house: AdmissionSnapshot) -> None:
    free = {n.name: n.free_gpus for n in house.nodes}
    seen: Counter[str] = Counter()
    for a in plan_admission(house).admissions:
        seen[a.need.uid] += 1
        leaf_nodes = [n for n in house.nodes if n.leaf == a.leaf]
        assert all(a.selector.matches(n.labels) for n in leaf_nodes)
        fits = [n for n in leaf_nodes if a.need.may_use(n) and free[n.name] >= a.need.gpus]
        assert fits, f"{a.need.pod} was sent to {a.leaf}, which has no room"
        free[min(fits, key=lambda n: (free[n.name], n.name)).name] -= a.need.gpus
    assert all(count == 1 for count in seen.values())


@given(houses(), st.booleans())
def test_a_cluster_has_both_roles_or_none(house: AdmissionSnapshot, bind: bool) -> None:
    """A mixed pod is no part of it: it comes as it fits."""
    wanted = {c.cluster: {role for role in PAIR if c.replicas.get(role, 0) > 0} for c in house.clusters}
    roles: dict[ClusterName, set[Role]] = defaultdict(set)
    for _, admissions in rounds(house, bind):
        for a in admissions:
            assert a.need.cluster is not None, "a pod of nobody waits for nobody"
            if a.need.role in PAIR:
                roles[a.need.cluster].add(a.need.role)
        for cluster, present in roles.items():
            assert present == wanted[cluster]


@given(houses())
def test_nobody_is_worse_off_for_lower_classes_being_there(house: AdmissionSnapshot) -> None:
    """What the highest class gets is what it would get alone."""
    top = max(c.priority for c in house.clusters)
    alone = {c.cluster for c in house.clusters if c.priority == top}
    only = replace(
        house,
        clusters=tuple(c for c in house.clusters if c.cluster in alone),
        waiting=tuple(n for n in house.waiting if n.cluster in alone),
    )
    together = [(a.need.uid, a.leaf) for a in plan_admission(house).admissions if a.need.cluster in alone]
    assert together == [(a.need.uid, a.leaf) for a in plan_admission(only).admissions]


@given(houses(), st.randoms(use_true_random=False))
def test_every_cluster_that_fits_alone_is_admitted_once_others_leave(house: AdmissionSnapshot, random: object) -> None:
    """While anyone waits, some admitted cluster leaves at random; each cluster that fits an empty house has its turn."""
    born = {
        c.cluster
        for c in house.clusters
        if all(
            not n or any(pod.cluster == c.cluster and pod.role is role for pod in house.waiting) for role, n in c.replicas.items()
        )
    }
    admissible = set()
    for want in house.clusters:
        mine = tuple(n for n in house.waiting if n.cluster == want.cluster)
        alone = replace(house, clusters=(want,), waiting=mine)
        if want.cluster in born and mine and plan_admission(alone).admissions:
            admissible.add(want.cluster)
    served: set[ClusterName] = set()
    state = house
    for _ in range(4 * len(house.clusters) + 4):
        for settled, _admissions in rounds(state, bind=True):
            state = settled
        standing = sorted({h.need.cluster for h in state.held if h.need.cluster is not None})
        served |= set(standing)
        if not standing or served >= admissible:
            break
        leaver = random.choice(standing)  # type: ignore[attr-defined]
        state = without(state, leaver)
    assert served >= admissible


def without(house: AdmissionSnapshot, leaver: ClusterName) -> AdmissionSnapshot:
    """The cluster is deleted: its pods go, and their floors come back."""
    nodes = {n.name: n for n in house.nodes}
    floor_room_w = {b.name: b.floor_room_w for b in house.budgets}
    for h in house.held:
        if h.need.cluster != leaver or h.node is None:
            continue
        node = nodes[h.node]
        nodes[h.node] = replace(node, free_gpus=node.free_gpus + h.need.gpus)
        for budget in (node.leaf, "row"):
            floor_room_w[budget] += (h.need.floor_w[node.gpu_kind] - node.idle_floor_w) * node.loss_factor * h.need.gpus
    return replace(
        house,
        budgets=tuple(replace(b, floor_room_w=floor_room_w[b.name]) for b in house.budgets),
        nodes=tuple(nodes.values()),
        clusters=tuple(c for c in house.clusters if c.cluster != leaver),
        waiting=tuple(n for n in house.waiting if n.cluster != leaver),
        held=tuple(h for h in house.held if h.need.cluster != leaver),
    )


# -------------------------------------------------------------------------------------------------- scenes worth a name

CHAT, BATCH = ClusterName("serving", "chat"), ClusterName("research", "batch")


def rack(floor_room_w: float, *, row_w: float = 1e6, nodes: int = 2, free: int = 8) -> AdmissionSnapshot:
    return AdmissionSnapshot(
        budgets=(
            BudgetRoom("row", row_w),
            BudgetRoom("rack", floor_room_w, parent="row", selector=Selector({"rack": "a"})),
        ),
        nodes=tuple(NodeRoom(f"n{i}", "rack", {"rack": "a"}, 8, free, "h100", IDLE_W["h100"], 1.0) for i in range(nodes)),
        clusters=(ClusterWant(CHAT, 100, {Role.PREFILL: 1, Role.DECODE: 1}),),
        waiting=(pod(CHAT, Role.PREFILL, 0, gpus=8, pool=None), pod(CHAT, Role.DECODE, 0, gpus=8, pool=None)),
    )


def test_exactly_enough_watts_admit_and_one_watt_less_does_not() -> None:
    need_w = 8 * (450 - 200) + 8 * (350 - 200)
    plan = plan_admission(rack(need_w))
    assert [a.reservation_w for a in plan.admissions] == [2000.0, 1200.0]
    assert plan.verdicts[CHAT].admitted
    short = plan_admission(rack(need_w - 1))
    assert short.admissions == ()
    assert short.verdicts[CHAT].reason == "InsufficientPower"
    for number in ("2000 W", "1200 W", "3199 W left", "1 W are missing", "PowerBudget rack"):
        assert number in short.verdicts[CHAT].message


def test_an_ancestor_that_is_short_is_named() -> None:
    plan = plan_admission(rack(10_000, row_w=100.0))
    assert plan.admissions == ()
    assert "PowerBudget row, above rack," in plan.verdicts[CHAT].message


def test_missing_gpus_missing_nodes_and_missing_agents_are_told_apart() -> None:
    house = rack(10_000, free=4)
    assert plan_admission(house).verdicts[CHAT].reason == "InsufficientGPUs"
    elsewhere = replace(house, waiting=tuple(replace(n, rules=NodeRules(Selector({"pool": "x"}))) for n in house.waiting))
    assert "pool=x" in plan_admission(elsewhere).verdicts[CHAT].message
    silent = replace(house, nodes=tuple(replace(n, gpu_kind="") for n in house.nodes))
    assert plan_admission(silent).verdicts[CHAT].reason == "NoAgentReport"
    small = replace(house, nodes=tuple(replace(n, gpus=4) for n in house.nodes))
    assert "the largest of 2 matching nodes has 4" in plan_admission(small).verdicts[CHAT].message


def test_observe_mode_holds_nothing_back() -> None:
    house = rack(-5000.0)
    watching = replace(house, budgets=tuple(replace(b, binding=False) for b in house.budgets))
    assert len(plan_admission(watching).admissions) == 2
    assert plan_admission(house).admissions == ()


def test_a_waiting_unit_is_not_overtaken_by_a_smaller_one_behind_it() -> None:
    house = rack(2500.0)
    batch = tuple(pod(BATCH, role, 0, gpus=1, pool=None) for role in PAIR)
    runner = pod(ClusterName("serving", "old"), Role.DECODE, 0, gpus=1, pool=None)
    house = replace(
        house,
        clusters=(*house.clusters, ClusterWant(BATCH, 0, {Role.PREFILL: 1, Role.DECODE: 1})),
        waiting=(*house.waiting, *batch),
        nodes=(*house.nodes, NodeRoom("n9", "rack", {"rack": "a"}, 8, 7, "h100", IDLE_W["h100"], 1.0)),
    )
    # Nothing that could leave would make room for chat: it claims nothing, and the small one goes ahead.
    assert {a.need.cluster for a in plan_admission(house).admissions} == {BATCH}
    # Somebody runs who might leave one day, and then chat would fit: now the small one waits for its turn.
    big_runner = running(replace(runner, gpus=8), "n9")
    plan = plan_admission(replace(house, held=(big_runner,)))
    assert plan.admissions == ()
    assert plan.verdicts[BATCH].reason == "WaitingForTurn"
    assert "serving/chat" in plan.verdicts[BATCH].message


def test_a_lost_role_comes_back_before_anyone_grows() -> None:
    house = rack(1300.0)
    decode = running(pod(BATCH, Role.DECODE, 0, gpus=8, pool=None), "n0")
    prefill = running(pod(BATCH, Role.PREFILL, 0, gpus=8, pool=None), "n1")
    chat = running(pod(CHAT, Role.PREFILL, 0, gpus=8, pool=None), "n2")
    house = replace(
        house,
        nodes=tuple(NodeRoom(f"n{i}", "rack", {"rack": "a"}, 8, 8 if i == 3 else 0, "h100", 200.0, 1.0) for i in range(4)),
        clusters=(
            ClusterWant(CHAT, 100, {Role.PREFILL: 1, Role.DECODE: 1}),
            ClusterWant(BATCH, 100, {Role.PREFILL: 1, Role.DECODE: 2}),
        ),
        waiting=(pod(BATCH, Role.DECODE, 1, gpus=8, pool=None), pod(CHAT, Role.DECODE, 0, gpus=8, pool=None)),
        held=(decode, prefill, chat),
    )
    assert [a.need.cluster for a in plan_admission(house).admissions] == [CHAT]


def test_a_terminating_pod_keeps_its_watts_but_not_its_place() -> None:
    house = rack(1200.0)
    old = running(pod(CHAT, Role.PREFILL, 9, gpus=8, pool=None), "n0", terminating=True)
    house = replace(house, held=(old,))
    plan = plan_admission(house)
    assert plan.admissions == (), "decode alone would fit, but its prefill is on its way out"
    assert plan.verdicts[CHAT].reason == "InsufficientPower"


def test_a_cluster_whose_pods_are_not_born_yet_waits_for_them() -> None:
    house = rack(10_000)
    house = replace(house, waiting=house.waiting[:1])
    plan = plan_admission(house)
    assert plan.admissions == ()
    assert plan.verdicts[CHAT].message == "Waits for the first decode pod to be created."


def test_a_role_scaled_to_zero_is_not_waited_for() -> None:
    house = rack(10_000)
    house = replace(house, clusters=(ClusterWant(CHAT, 100, {Role.PREFILL: 1, Role.DECODE: 0}),), waiting=house.waiting[:1])
    assert [a.need.role for a in plan_admission(house).admissions] == [Role.PREFILL]


def test_the_gpus_of_an_admitted_pod_are_taken_before_the_scheduler_binds_it() -> None:
    house = rack(10_000, nodes=2)
    ghost = HeldPod(pod(BATCH, Role.DECODE, 0, gpus=8, pool=None), "rack")
    plan = plan_admission(replace(house, held=(ghost,)))
    assert plan.admissions == ()
    assert plan.verdicts[CHAT].reason == "InsufficientGPUs"


def test_the_dearest_node_that_the_scheduler_may_pick_is_reserved() -> None:
    house = rack(2800 + 1199, nodes=0)
    nodes = (
        NodeRoom("cheap", "rack", {"rack": "a"}, 8, 8, "a100", IDLE_W["a100"], 1.0),
        NodeRoom("dear", "rack", {"rack": "a"}, 8, 8, "h100", IDLE_W["h100"], 1.0),
    )
    plan = plan_admission(replace(house, nodes=nodes))
    assert [a.reservation_w for a in plan.admissions] == [8 * (450 - 200), 8 * (350 - 200)]


def test_roles_grow_in_the_ratio_that_was_asked_for() -> None:
    house = rack(1e6, nodes=16)
    waiting = [pod(CHAT, role, i, gpus=8, pool=None) for role, n in ((Role.PREFILL, 3), (Role.DECODE, 6)) for i in range(n)]
    house = replace(house, clusters=(ClusterWant(CHAT, 100, {Role.PREFILL: 3, Role.DECODE: 6}),), waiting=tuple(waiting))
    roles = "".join(a.need.role.value[0] for a in plan_admission(house).admissions)
    assert roles == "pdddpddpd", "the first pair, then whoever lags most; of equals decode"
