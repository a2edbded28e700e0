"""Power admission: which pods may leave their gate, and in which leaf budget.

**Reservation.** A pod's GPUs must never be capped below their floor (the cliff of its phase), so its leaf and every budget
above it have to find

    reserve = GPUs x max(0, floor - idle floor) x loss factor            (the dearest matching node of the leaf counts)

meter watts: the headroom counts an unused GPU at its idle floor already. The headroom takes all *running* pods at their
floors too, so a higher class shrinks lower ones to their floors simply by being admitted; nobody is evicted here. A pod
past its gate whose GPUs the headroom does not count yet stays reserved (assume), so the same watts are never promised twice.

**Order.** Units are served by priority, then pairs before extra replicas, then the role that lags most, then age. A
cluster's first prefill and decode pod are one unit: both are admitted, or neither, so that half-admitted clusters cannot
wait for each other; further replicas follow when every role of the cluster stands.

**No overtaking.** A unit that has to wait, but would fit if others left, claims the nodes it could use and the budgets that
are short for it: nobody behind it in the order gets these, or small units would starve it for ever. A unit that could not
fit even into empty leaves claims nothing.

Invariant: no plan makes any binding budget's headroom, less all reservations below it, negative or more negative.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from splitwatt_core.admission_snapshot import (
    Admission,
    AdmissionPlan,
    AdmissionSnapshot,
    BudgetRoom,
    ClusterWant,
    HeldPod,
    Name,
    NodeRoom,
    PodNeed,
    Verdict,
)
from splitwatt_core.budgets import MAX_DEPTH
from splitwatt_core.policy import TOLERANCE_W
from splitwatt_core.render_spec import Role

PAIR_RANK: Final = 0
EXTRA_RANK: Final = 1


@dataclass(frozen=True, slots=True)
class _Unit:
    """Pods that are admitted together."""

    want: ClusterWant
    rank: int
    lag: float
    pods: tuple[PodNeed, ...]

    @property
    def order(self) -> tuple[object, ...]:
        first = self.pods[0]
        return (-self.want.priority, self.rank, self.lag, first.created_s, self.want.cluster, first.role, first.pod)


@dataclass(frozen=True, slots=True)
class _Choice:
    need: PodNeed
    leaf: str
    node: str
    reserve_w: float


@dataclass(slots=True)
class _Claims:
    """What waiting units hold back from everyone behind them, each with who claims it."""

    nodes: dict[str, Name]
    budgets: dict[str, Name]


class _House:
    """The unchanging part of a snapshot: which budgets stand above a leaf, which nodes a pod may use there."""

    def __init__(self, snapshot: AdmissionSnapshot) -> None:
        self.budgets: dict[str, BudgetRoom] = {b.name: b for b in snapshot.budgets}
        self.nodes: dict[str, NodeRoom] = {n.name: n for n in snapshot.nodes if n.leaf in self.budgets}
        self._by_leaf: dict[str, list[NodeRoom]] = {}
        for node in sorted(self.nodes.values(), key=lambda n: n.name):
            self._by_leaf.setdefault(node.leaf, []).append(node)
        self._seen: dict[object, dict[str, tuple[NodeRoom, ...]]] = {}

    def chain(self, leaf: str) -> Iterator[BudgetRoom]:
        """The leaf and its ancestors; ends at a parent that is not there, and at a cycle."""
        name: str | None = leaf
        for _ in range(MAX_DEPTH):
            room = self.budgets.get(name) if name is not None else None
            if room is None:
                return
            yield room
            name = room.parent

    def usable(self, need: PodNeed) -> Mapping[str, tuple[NodeRoom, ...]]:
        """By leaf, the nodes that the pod could run on if they were empty."""
        key = (need.gpus, repr((need.selector, need.terms)), tuple(sorted(need.floor_w)))
        if key not in self._seen:
            found = {}
            for leaf, nodes in self._by_leaf.items():
                fit = tuple(n for n in nodes if n.gpus >= need.gpus and n.gpu_kind in need.floor_w and need.matches(n.labels))
                if fit:
                    found[leaf] = fit
            self._seen[key] = found
        return self._seen[key]

    def reserve_w(self, need: PodNeed, leaf: str, gpus: int) -> float:
        """The formula above for `gpus` of the pod's GPUs, on the dearest node that the scheduler may pick."""
        nodes: Sequence[NodeRoom] = self.usable(need).get(leaf) or self._by_leaf.get(leaf, [])
        return max((_extra_w(need, node) * gpus for node in nodes), default=0.0)

    def reserve_on_w(self, held: HeldPod, gpus: int) -> float:
        """The same for a pod past its gate: on its own node once it is bound."""
        node = self.nodes.get(held.node or "")
        if node is not None:
            return _extra_w(held.need, node) * gpus
        return self.reserve_w(held.need, held.leaf, gpus) if held.leaf is not None else 0.0


def _extra_w(need: PodNeed, node: NodeRoom) -> float:
    """Meter watts that one GPU's floor needs beyond what the headroom counts for it idle. A GPU of unknown kind counts as
    the dearest kind the pod knows."""
    floor_w = need.floor_w.get(node.gpu_kind, max(need.floor_w.values(), default=0.0))
    return max(0.0, floor_w - node.idle_floor_w) * node.loss_factor


class _Room:
    """Watts left per budget and free GPUs per node, as units are placed."""

    def __init__(self, house: _House, left_w: dict[str, float], free: dict[str, int]) -> None:
        self.house, self.left_w, self.free = house, left_w, free

    @classmethod
    def now(cls, house: _House, held: Sequence[HeldPod]) -> _Room:
        """What is left after all pods past their gates."""
        left_w = {b.name: b.headroom_floor_w for b in house.budgets.values()}
        room = cls(house, left_w, {n.name: n.free_gpus for n in house.nodes.values()})
        for pod in sorted(held, key=lambda h: (-h.need.gpus, h.need.pod)):
            leaf = _leaf_of(house, pod)
            if leaf is None:
                continue
            room.take_w(leaf, house.reserve_on_w(pod, max(0, pod.need.gpus - pod.counted_gpus)))
            if pod.node is None and (node := room.best_fit(pod.need, leaf, {})) is not None:
                room.free[node] -= pod.need.gpus
        return room

    @classmethod
    def empty(cls, house: _House, held: Sequence[HeldPod]) -> _Room:
        """What would be left if every pod of ours left."""
        left_w = {b.name: b.headroom_floor_w for b in house.budgets.values()}
        room = cls(house, left_w, {n.name: n.gpus for n in house.nodes.values()})
        for pod in held:
            if (leaf := _leaf_of(house, pod)) is not None:
                room.take_w(leaf, -house.reserve_on_w(pod, min(pod.need.gpus, pod.counted_gpus)))
        return room

    def take_w(self, leaf: str, watts: float) -> None:
        for budget in self.house.chain(leaf):
            self.left_w[budget.name] -= watts

    def short(self, leaf: str, need_w: float) -> BudgetRoom | None:
        """The budget from the leaf up that has the fewest watts left, if `need_w` does not fit below it."""
        binding = [b for b in self.house.chain(leaf) if b.binding]
        tightest = min(binding, key=lambda b: self.left_w[b.name], default=None)
        if tightest is None or need_w <= 0 or need_w <= self.left_w[tightest.name] + TOLERANCE_W:
            return None
        return tightest

    def best_fit(self, need: PodNeed, leaf: str, claimed: Mapping[str, Name]) -> str | None:
        """The fullest node that still has the GPUs: large holes are kept for large replicas."""
        fits = [
            n.name
            for n in self.house.usable(need).get(leaf, ())
            if self.free[n.name] >= need.gpus and n.name not in claimed
        ]
        return min(fits, key=lambda name: (self.free[name], name), default=None)

    def slack_w(self, leaf: str) -> float:
        return min(self.left_w[b.name] for b in self.house.chain(leaf))

    def place(self, pods: Sequence[PodNeed], claims: _Claims) -> tuple[_Choice, ...] | None:
        """A leaf for every pod, taken; or None, and nothing is taken. Leaves with most watts left come first, which
        spreads a cluster over failure domains and leaves every leaf room above its floors."""
        if not pods:
            return ()
        need, rest = pods[0], pods[1:]
        usable = self.house.usable(need)
        for leaf in sorted(usable, key=lambda name: (-self.slack_w(name), name)):
            reserve_w = self.house.reserve_w(need, leaf, need.gpus)
            if self.short(leaf, reserve_w) is not None:
                continue
            if reserve_w > 0 and any(b.name in claims.budgets for b in self.house.chain(leaf)):
                continue
            node = self.best_fit(need, leaf, claims.nodes)
            if node is None:
                continue
            self.take_w(leaf, reserve_w)
            self.free[node] -= need.gpus
            others = self.place(rest, claims)
            if others is not None:
                return (_Choice(need, leaf, node, reserve_w), *others)
            self.give_back((_Choice(need, leaf, node, reserve_w),))
        return None

    def give_back(self, choices: Iterable[_Choice]) -> None:
        for choice in choices:
            self.take_w(choice.leaf, -choice.reserve_w)
            self.free[choice.node] += choice.need.gpus

    def could_place(self, pods: Sequence[PodNeed]) -> bool:
        """Whether they would fit; nothing is taken."""
        placed = self.place(pods, _Claims({}, {}))
        self.give_back(placed or ())
        return placed is not None


def _leaf_of(house: _House, held: HeldPod) -> str | None:
    """A bound pod draws where its node is, whatever its annotation says."""
    node = house.nodes.get(held.node or "")
    return node.leaf if node is not None else held.leaf


# ----------------------------------------------------------------------------------------------------------------- plan


def plan_admission(snapshot: AdmissionSnapshot) -> AdmissionPlan:
    """Decide once. Pure: equal snapshots give equal plans. Cost: units x leaves, squared only for a pair that waits."""
    house = _House(snapshot)
    room, empty = _Room.now(house, snapshot.held), _Room.empty(house, snapshot.held)
    claims = _Claims({}, {})
    standing = _standing(snapshot)
    admissions: list[Admission] = []
    verdicts: dict[Name, Verdict] = {}
    units, unborn = _units(snapshot, standing)
    verdicts |= unborn
    for unit in units:
        cluster = unit.want.cluster
        if unit.rank == EXTRA_RANK and not _wanted(unit.want) <= standing.get(cluster, set()):
            continue  # its first pair waits; that verdict stands
        placed = room.place(unit.pods, claims)
        if placed is None:
            if cluster not in verdicts:
                verdicts[cluster] = _refusal(snapshot, house, room, claims, unit)
            if empty.could_place(unit.pods):
                _claim(unit, room, claims)
            continue
        for choice in placed:
            standing.setdefault(cluster, set()).add(choice.need.role)
            selector = house.budgets[choice.leaf].selector
            assert selector is not None, f"leaf {choice.leaf} has nodes but no selector"
            admissions.append(Admission(choice.need, choice.leaf, selector, choice.reserve_w))
    for want in snapshot.clusters:
        verdicts.setdefault(want.cluster, _all_admitted(want))
    return AdmissionPlan(tuple(admissions), verdicts)


def _wanted(want: ClusterWant) -> set[Role]:
    return {role for role in Role if want.replicas.get(role, 0) > 0}


def _standing(snapshot: AdmissionSnapshot) -> dict[Name, set[Role]]:
    """The roles of each cluster that have a pod past its gate which is to stay."""
    standing: dict[Name, set[Role]] = {}
    for held in snapshot.held:
        if not held.terminating:
            standing.setdefault(held.need.cluster, set()).add(held.need.role)
    return standing


def _units(
    snapshot: AdmissionSnapshot, standing: Mapping[Name, set[Role]]
) -> tuple[list[_Unit], dict[Name, Verdict]]:
    """What is to be admitted, in order, and the clusters that wait for their own pods to be created."""
    waiting: dict[tuple[Name, Role], list[PodNeed]] = {}
    for need in sorted(snapshot.waiting, key=lambda n: (n.created_s, n.pod)):
        waiting.setdefault((need.cluster, need.role), []).append(need)
    past: dict[tuple[Name, Role], int] = {}
    for held in snapshot.held:
        if not held.terminating:
            past[held.need.cluster, held.need.role] = past.get((held.need.cluster, held.need.role), 0) + 1
    units: list[_Unit] = []
    verdicts: dict[Name, Verdict] = {}
    for want in snapshot.clusters:
        missing = sorted(_wanted(want) - standing.get(want.cluster, set()), key=list(Role).index)
        queues = {role: list(waiting.get((want.cluster, role), ())) for role in Role}
        unborn = [role.value for role in missing if not queues[role]]
        if unborn:
            verdicts[want.cluster] = Verdict(
                False, "WaitingForPods", f"Waits for the first {' and '.join(unborn)} pod to be created."
            )
            continue
        if missing:
            units.append(_Unit(want, PAIR_RANK, 0.0, tuple(queues[role].pop(0) for role in missing)))
        for role, queue in queues.items():
            admitted = past.get((want.cluster, role), 0) + (1 if role in missing else 0)
            replicas = want.replicas.get(role, 0)
            for ordinal, need in enumerate(queue[: max(0, replicas - admitted)], start=admitted):
                units.append(_Unit(want, EXTRA_RANK, ordinal / replicas, (need,)))
    return sorted(units, key=lambda unit: unit.order), verdicts


def _claim(unit: _Unit, room: _Room, claims: _Claims) -> None:
    """Hold back what the waiting unit needs from everyone behind it."""
    house, cluster = room.house, unit.want.cluster
    dearest_w = sum(max(house.reserve_w(need, leaf, need.gpus) for leaf in house.usable(need)) for need in unit.pods)
    for need in unit.pods:
        for leaf, nodes in house.usable(need).items():
            for node in nodes:
                claims.nodes.setdefault(node.name, cluster)
            for budget in house.chain(leaf):
                if budget.binding and room.left_w[budget.name] < dearest_w:
                    claims.budgets.setdefault(budget.name, cluster)


# ------------------------------------------------------------------------------------------------------------ sentences


def _all_admitted(want: ClusterWant) -> Verdict:
    counts = " and ".join(f"{want.replicas.get(role, 0)} {role.value}" for role in Role)
    return Verdict(True, "Admitted", f"The floors of {counts} replicas are reserved.")


def _refusal(snapshot: AdmissionSnapshot, house: _House, room: _Room, claims: _Claims, unit: _Unit) -> Verdict:
    """Why the unit waits: what is missing for the first of its pods that cannot go anywhere, with the numbers."""
    for need in unit.pods:
        verdict = _no_node(snapshot, house, need) or _no_gpus(house, room, need) or _no_watts(house, room, (need,))
        if verdict is not None:
            return verdict
    behind = _ahead(house, claims, unit.pods)
    if behind:
        names = ", ".join(str(name) for name in behind)
        return Verdict(False, "WaitingForTurn", f"Waits behind {names}, which comes first for the same watts or GPUs.")
    together = _no_watts(house, room, unit.pods)
    if together is not None:
        return together
    roles = " and ".join(need.role.value for need in unit.pods)
    return Verdict(False, "InsufficientGPUs", f"The {roles} replicas fit one by one, but not together: GPUs are short.")


def _no_node(snapshot: AdmissionSnapshot, house: _House, need: PodNeed) -> Verdict | None:
    if house.usable(need):
        return None
    matching = [n for n in snapshot.nodes if need.matches(n.labels)]
    labels = ", ".join(f"{k}={v}" for k, v in sorted(need.selector.match_labels.items())) or "any label"
    if not matching:
        return Verdict(
            False,
            "NoMatchingNodes",
            f"The {need.role.value} role asks for nodes with {labels}, but no schedulable node of any leaf PowerBudget "
            "has them: change its nodeSelector, label the nodes, or select them in a PowerBudget.",
        )
    largest = max(n.gpus for n in matching)
    if largest < need.gpus:
        return Verdict(
            False,
            "NoMatchingNodes",
            f"The {need.role.value} role asks for {need.gpus} GPUs on one node, but the largest of {len(matching)} "
            f"matching nodes has {largest}: lower gpusPerReplica or add larger nodes.",
        )
    return Verdict(
        False,
        "NoAgentReport",
        f"None of {len(matching)} nodes for the {need.role.value} role has GPUs reported by its power agent yet.",
    )


def _no_gpus(house: _House, room: _Room, need: PodNeed) -> Verdict | None:
    nodes = [n for nodes in house.usable(need).values() for n in nodes]
    freest = max(room.free[n.name] for n in nodes)
    if freest >= need.gpus:
        return None
    return Verdict(
        False,
        "InsufficientGPUs",
        f"The {need.role.value} replica needs {need.gpus} free GPUs on one node; of {len(nodes)} matching nodes the "
        f"freest has {freest}.",
    )


def _no_watts(house: _House, room: _Room, pods: Sequence[PodNeed]) -> Verdict | None:
    """The sentence for the leaf that misses least, or None when the watts are there somewhere."""
    best: tuple[float, str] | None = None
    for leaf in _common_leaves(house, pods):
        need_w = sum(house.reserve_w(need, leaf, need.gpus) for need in pods)
        short = room.short(leaf, need_w)
        if short is None:
            return None
        missing_w = need_w - room.left_w[short.name]
        what = " and ".join(
            f"{need.role.value} {house.reserve_w(need, leaf, need.gpus):.0f} W ({need.gpus} GPUs)" for need in pods
        )
        left_w = room.left_w[short.name]
        where = f"PowerBudget {short.name}" + ("" if short.name == leaf else f", above {leaf},")
        text = (
            f"To keep their GPUs above the cliff, {what} must be reserved; {where} has {left_w:.0f} W left above all "
            f"floors: {missing_w:.0f} W are missing."
        )
        if best is None or missing_w < best[0]:
            best = (missing_w, text)
    return None if best is None else Verdict(False, "InsufficientPower", best[1])


def _common_leaves(house: _House, pods: Sequence[PodNeed]) -> list[str]:
    """Leaves that any of the pods could use."""
    return sorted({leaf for need in pods for leaf in house.usable(need)})


def _ahead(house: _House, claims: _Claims, pods: Iterable[PodNeed]) -> list[Name]:
    """Who claims something that the pods could use."""
    found: dict[Name, None] = {}
    for need in pods:
        for leaf, nodes in house.usable(need).items():
            claimants = [claims.nodes.get(n.name) for n in nodes]
            claimants += [claims.budgets.get(b.name) for b in house.chain(leaf)]
            found |= dict.fromkeys(name for name in claimants if name is not None)
    return list(found)
