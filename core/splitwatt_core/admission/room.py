"""Where pods could go: watts left per budget, free GPUs per node, and what has to be reserved where.

`House` is what a snapshot says and never changes; `Room` is what is left of it as pods are placed, and can be given back.
Invariants: `Room.place` takes watts from the leaf and from every budget above it, or from none; and a leaf counts only when it
has the GPUs *and* the watts, for GPUs of one leaf and watts of another start no pod.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from splitwatt_core.admission.replicas import blocks_of
from splitwatt_core.admission.snapshot import AdmissionSnapshot, BudgetRoom, HeldPod, NodeRoom, PodNeed
from splitwatt_core.budget.tree import MAX_DEPTH
from splitwatt_core.clusters import PAIR, ClusterName, Role
from splitwatt_core.columns import TOLERANCE_W

ALIKE: Final = 2.0 / 3.0
"""Leaves with at least this share of the most watts left count as alike: a few watts on which meters differ, or one replica
more, must not decide where the next one goes."""
_NOBODY: Final[Mapping[str, ClusterName]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Choice:
    """`node` may be one to come, whose watts are kept free already: `reservation_w` is 0 then."""

    need: PodNeed
    leaf: str
    node: str
    reservation_w: float


@dataclass(slots=True)
class KeptBack:
    """What waiting gangs keep from everyone behind them, each with the first of them."""

    nodes: dict[str, ClusterName] = field(default_factory=dict)
    budgets: dict[str, ClusterName] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Offer:
    """What a snapshot offers to pods that ask for the same. By leaf: the `nodes` that would do, and the `dearest` of them,
    or of all there where none would; `anywhere`: the dearest of the whole house, None in an empty one."""

    key: object
    nodes: Mapping[str, tuple[NodeRoom, ...]]
    dearest: Mapping[str, NodeRoom]
    anywhere: NodeRoom | None


class House:
    """The unchanging part of a snapshot: which budgets stand above a leaf, which nodes a pod may use there."""

    def __init__(self, snapshot: AdmissionSnapshot) -> None:
        self.budgets: dict[str, BudgetRoom] = {b.name: b for b in snapshot.budgets}
        present = [n for n in snapshot.nodes if n.leaf in self.budgets and not n.to_come]
        self.nodes: dict[str, NodeRoom] = {n.name: n for n in present}
        self.to_come: dict[str, NodeRoom] = {n.name: n for n in snapshot.nodes if n.leaf in self.budgets and n.to_come}
        self._by_leaf: dict[str, list[NodeRoom]] = {}
        for node in sorted(self.nodes.values(), key=lambda n: n.name):
            self._by_leaf.setdefault(node.leaf, []).append(node)
        self._offers: dict[object, Offer] = {}
        self._by_pod: dict[str, Offer] = {}
        self._roles: dict[ClusterName, dict[Role, PodNeed]] = {}
        for need in (*snapshot.waiting, *(held.need for held in snapshot.held)):
            if need.cluster is not None:
                self._roles.setdefault(need.cluster, {}).setdefault(need.role, need)

    def chain(self, leaf: str) -> Iterator[BudgetRoom]:
        """The leaf and its ancestors; ends at a parent that is not there, and at a cycle."""
        name: str | None = leaf
        for _ in range(MAX_DEPTH):
            room = self.budgets.get(name) if name is not None else None
            if room is None:
                return
            yield room
            name = room.parent

    def offer_to(self, need: PodNeed) -> Offer:
        """Pods that get one offer are interchangeable for placement."""
        if need.uid not in self._by_pod:
            key = (need.gpus, repr(need.rules), tuple(sorted(need.floor_w.items())), need.leaves)
            if key not in self._offers:
                self._offers[key] = self._offer(key, need)
            self._by_pod[need.uid] = self._offers[key]
        return self._by_pod[need.uid]

    def _offer(self, key: object, need: PodNeed) -> Offer:
        found = {}
        for leaf, nodes in self._by_leaf.items():
            if self.budgets[leaf].fault:
                continue  # what the budgets above it can spare is not known
            fit = tuple(n for n in nodes if n.gpus >= need.gpus and n.gpu_kind in need.floor_w and need.may_use(n))
            if fit:
                found[leaf] = fit

        def price(node: NodeRoom) -> tuple[float, str]:
            return _extra_w(need, node), node.name

        dearest = {leaf: max(found.get(leaf, nodes), key=price) for leaf, nodes in self._by_leaf.items()}
        return Offer(key, found, dearest, max(dearest.values(), key=price, default=None))

    def partner(self, need: PodNeed) -> PodNeed | None:
        """A pod of the other role of its pair, as far as one is known. A mixed pod has none."""
        roles = self._roles.get(need.cluster, {}) if need.cluster is not None and need.role in PAIR else {}
        return next((other for role, other in roles.items() if role is not need.role and role in PAIR), None)

    def usable(self, need: PodNeed) -> Mapping[str, tuple[NodeRoom, ...]]:
        """By leaf, the nodes that the pod could run on if they were empty."""
        return self.offer_to(need).nodes

    def growing(self, need: PodNeed) -> list[NodeRoom]:
        """Nodes to come that the pod could run on."""
        nodes = self.to_come.values()
        return [n for n in nodes if n.gpus >= need.gpus and not self.budgets[n.leaf].fault and need.may_use(n)]

    def reservation_w(self, need: PodNeed, leaf: str, gpus: int) -> float:
        """What has to be reserved for `gpus` of the pod's GPUs (the formula of `plan`), on the dearest node that it may get."""
        node = self.offer_to(need).dearest.get(leaf)
        return 0.0 if node is None else _extra_w(need, node) * gpus

    def counted_w(self, held: HeldPod) -> float:
        """Meter watts that the floor room counts for a pod past its gate beyond its GPUs' idle floor."""
        node = self._place(held)
        if node is None:
            return 0.0
        return max(0.0, held.counted.floor_w - held.counted.gpus * node.idle_floor_w) * node.loss_factor

    def floor_w(self, held: HeldPod) -> float:
        """Meter watts of the floors of all its GPUs, idle or not."""
        node = self._place(held)
        kind, loss_factor = ("", 1.0) if node is None else (node.gpu_kind, node.loss_factor)
        return _floor_w(held.need, kind) * held.need.gpus * loss_factor

    def owed_w(self, held: HeldPod) -> float:
        """What has to be reserved for it besides: GPUs that are not counted yet, and what their floor has risen by since
        they were (a ceiling, a profile or a served model that changed between two steps of the keeper)."""
        node = self._place(held)
        return 0.0 if node is None else max(0.0, _extra_w(held.need, node) * held.need.gpus - self.counted_w(held))

    def _place(self, held: HeldPod) -> NodeRoom | None:
        """Its own node once it is bound and the node is known, else the dearest of its leaf. A leaf that shows no node may
        show them again, and the pod is promised to go there: then the dearest of the house."""
        node = self.nodes.get(held.node or "")
        if node is not None:
            return node
        offer = self.offer_to(held.need)
        return offer.dearest.get(held.leaf or "", offer.anywhere)


def _floor_w(need: PodNeed, gpu_kind: str) -> float:
    """Of one GPU. One of unknown kind counts as the dearest kind the pod knows."""
    return need.floor_w.get(gpu_kind, max(need.floor_w.values(), default=0.0))


def _extra_w(need: PodNeed, node: NodeRoom) -> float:
    """Meter watts that one GPU's floor needs beyond what the floor room counts for it idle."""
    return max(0.0, _floor_w(need, node.gpu_kind) - node.idle_floor_w) * node.loss_factor


class Room:
    """Watts left per budget and free GPUs per node, as gangs are placed."""

    def __init__(self, house: House, left_w: dict[str, float], free: dict[str, int]) -> None:
        self.house, self.left_w, self.free = house, left_w, free
        self._slots: dict[str, dict[object, int]] = {}

    @classmethod
    def now(cls, house: House, held: Sequence[HeldPod]) -> Room:
        """What is left after all pods past their gates."""
        left_w = {b.name: b.floor_room_w for b in house.budgets.values()}
        room = cls(house, left_w, {n.name: n.free_gpus for n in (*house.nodes.values(), *house.to_come.values())})
        for pod in sorted(held, key=lambda h: (-h.need.gpus, h.need.pod)):
            leaf = _leaf_of(house, pod)
            if leaf is None:
                continue
            node = room.best_fit(pod.need, leaf) if pod.node is None else None
            if pod.node is None and node is None and (coming := room._coming(pod.need, leaf)) is not None:
                room._take_gpus(coming, pod.need.gpus)  # its watts are those that are kept for the node
                continue
            room.take_w(leaf, house.owed_w(pod))
            if node is not None:
                room._take_gpus(node, pod.need.gpus)
        return room

    @classmethod
    def empty(cls, house: House, held: Sequence[HeldPod]) -> Room:
        """What would be left if every pod of ours left."""
        left_w = {b.name: b.floor_room_w for b in house.budgets.values()}
        room = cls(house, left_w, {n.name: n.gpus for n in (*house.nodes.values(), *house.to_come.values())})
        for pod in held:
            if (leaf := _leaf_of(house, pod)) is not None:
                room.take_w(leaf, -house.counted_w(pod))
        return room

    def take_w(self, leaf: str, watts: float) -> None:
        for budget in self.house.chain(leaf):
            self.left_w[budget.name] -= watts

    def tightest(self, leaf: str) -> BudgetRoom | None:
        """Of the binding budgets from the leaf up, the one that has the fewest watts left; None where none binds."""
        return min((b for b in self.house.chain(leaf) if b.binding), key=lambda b: self.left_w[b.name], default=None)

    def short(self, leaf: str, need_w: float) -> BudgetRoom | None:
        """The tightest budget, if `need_w` does not fit below it."""
        tightest = self.tightest(leaf)
        if tightest is None or need_w <= 0 or need_w <= self.left_w[tightest.name] + TOLERANCE_W:
            return None
        return tightest

    def freest(self, need: PodNeed, leaf: str) -> int:
        """The most free GPUs on one node of the leaf that the pod may use."""
        return max((self.free[n.name] for n in self.house.usable(need).get(leaf, ())), default=0)

    def fits(self, need: PodNeed, leaf: str) -> int:
        """For how many pods like this the leaf has GPUs and watts left: of both the one that ends first."""
        slots = self._slots.setdefault(leaf, {})
        key = self.house.offer_to(need).key
        if key not in slots:
            slots[key] = sum(max(0, self.free[n.name]) // max(1, need.gpus) for n in self.house.usable(need).get(leaf, ()))
        reservation_w, tightest = self.house.reservation_w(need, leaf, need.gpus), self.tightest(leaf)
        if tightest is None or reservation_w <= 0:
            return slots[key]
        return min(slots[key], max(0, math.floor((self.left_w[tightest.name] + TOLERANCE_W) / reservation_w)))

    def by_preference(self, need: PodNeed) -> list[str]:
        """The leaves that have both GPUs and watts for the pod, best first: where most pods like it still fit, which spreads
        a cluster over failure domains; then where it takes no place that the cluster's other role would need for a pair in one
        leaf; then where most watts are left, so that caps can stay above floors; then by name."""
        fits = {leaf: count for leaf in self.house.usable(need) if (count := self.fits(need, leaf)) > 0}
        partner = self.house.partner(need)

        def rank(leaf: str) -> tuple[int, bool]:
            return -fits[leaf], partner is not None and fits[leaf] <= self.fits(partner, leaf)

        ranks = {leaf: rank(leaf) for leaf in fits}
        slack_w = {leaf: self._slack_w(leaf) for leaf in fits}
        most_w: dict[tuple[int, bool], float] = {}
        for leaf, of in ranks.items():
            most_w[of] = max(most_w.get(of, slack_w[leaf]), slack_w[leaf])

        def order(leaf: str) -> tuple[object, ...]:
            of = ranks[leaf]
            alike = slack_w[leaf] >= ALIKE * most_w[of]
            return of, 0.0 if alike else 1.0 - slack_w[leaf] + most_w[of], leaf

        return sorted(fits, key=order)

    def best_fit(
        self, need: PodNeed, leaf: str, kept: Mapping[str, ClusterName] = _NOBODY, rest: Sequence[PodNeed] = ()
    ) -> str | None:
        """The fullest node that still has the GPUs: large holes are kept for large replicas. Before that, one that the `rest`
        of its gang cannot use."""
        nodes = [n for n in self.house.usable(need).get(leaf, ()) if self.free[n.name] >= need.gpus and n.name not in kept]
        wanted = {n.name for other in rest for n in self.house.usable(other).get(leaf, ())}
        return min((n.name for n in nodes), key=lambda name: (name in wanted, self.free[name], name), default=None)

    def place(self, pods: Sequence[PodNeed], kept: KeptBack) -> tuple[Choice, ...] | None:
        """A leaf for every pod, taken; or None, and nothing is taken. Every leaf that has both GPUs and watts is tried."""
        if not pods:
            return ()
        block = next(blocks_of(pods))
        rest = pods[len(block) :]
        for choices in self._together(block, kept, rest):
            for choice in choices:
                self.take(choice)
            others = self.place(rest, kept)
            if others is not None:
                return (*choices, *others)
            self.give_back(choices)
        return None

    def _together(self, block: Sequence[PodNeed], kept: KeptBack, rest: Sequence[PodNeed]) -> Iterator[tuple[Choice, ...]]:
        """Where one replica could go, best first; of a group over several nodes into one leaf, and last where there is room,
        one pod after the other: its pods are alike, so that which of them goes where is no matter. Nothing is taken."""
        if len(block) == 1:
            yield from ((choice,) for choice in self.choices(block[0], kept, rest))
            return
        for leaf in [choice.leaf for choice in self.choices(block[0], kept, rest)]:
            found = self.fill(block, kept, rest, leaf=leaf)
            if len(found) == len(block):
                yield found
        spread = self.fill(block, kept, rest)
        if len(spread) == len(block):
            yield spread

    def fill(
        self, block: Sequence[PodNeed], kept: KeptBack, rest: Sequence[PodNeed] = (), *, leaf: str | None = None
    ) -> tuple[Choice, ...]:
        """Places for as many pods of a group as there is room for, one after the other; nothing is taken in the end."""
        found: list[Choice] = []
        for need in block:
            choice = next((c for c in self.choices(need, kept, rest) if leaf in (None, c.leaf)), None)
            if choice is None:
                break
            self.take(choice)
            found.append(choice)
        self.give_back(found)
        return tuple(found)

    def choices(self, need: PodNeed, kept: KeptBack, rest: Sequence[PodNeed] = ()) -> Iterator[Choice]:
        """Where the pod could go, best first: leaves that have a node for it, then leaves that may get one."""
        for leaf in self.by_preference(need):
            reservation_w = self.house.reservation_w(need, leaf, need.gpus)
            if reservation_w > 0 and any(b.name in kept.budgets for b in self.house.chain(leaf)):
                continue
            node = self.best_fit(need, leaf, kept.nodes, rest)
            if node is not None:
                yield Choice(need, leaf, node, reservation_w)
        yield from self.elastic(need, kept)

    def elastic(self, need: PodNeed, kept: KeptBack) -> list[Choice]:
        """Leaves that may grow for the pod, one node to come of each: where no node that is there has the GPUs, or the scheduler
        would put it on that one, whose floor nobody reserved; and where what is kept for nodes to come truly is left."""
        found = {}
        for leaf in dict.fromkeys(n.leaf for n in self.house.growing(need)):
            tightest = self.tightest(leaf)
            kept_free = tightest is None or self.left_w[tightest.name] >= -TOLERANCE_W
            node = self._coming(need, leaf, kept.nodes)
            if node is not None and kept_free and self.freest(need, leaf) < need.gpus:
                found[leaf] = Choice(need, leaf, node, 0.0)
        return [found[leaf] for leaf in sorted(found, key=lambda leaf: (-self._slack_w(leaf), leaf))]

    def _coming(self, need: PodNeed, leaf: str, kept: Mapping[str, ClusterName] = _NOBODY) -> str | None:
        """The fullest node to come of the leaf that still has the GPUs."""
        nodes = [n.name for n in self.house.growing(need) if n.leaf == leaf and self.free[n.name] >= need.gpus]
        return min((name for name in nodes if name not in kept), key=lambda name: (self.free[name], name), default=None)

    def take(self, choice: Choice) -> None:
        self.take_w(choice.leaf, choice.reservation_w)
        self._take_gpus(choice.node, choice.need.gpus)

    def give_back(self, choices: Iterable[Choice]) -> None:
        for choice in choices:
            self.take_w(choice.leaf, -choice.reservation_w)
            self._take_gpus(choice.node, -choice.need.gpus)

    def could_place(self, pods: Sequence[PodNeed]) -> bool:
        """Whether they would fit, whoever comes first; nothing is taken."""
        placed = self.place(pods, KeptBack())
        self.give_back(placed or ())
        return placed is not None

    def _take_gpus(self, node: str, gpus: int) -> None:
        self.free[node] -= gpus
        if node in self.house.nodes:
            self._slots.pop(self.house.nodes[node].leaf, None)

    def _slack_w(self, leaf: str) -> float:
        return min(self.left_w[b.name] for b in self.house.chain(leaf))


def _leaf_of(house: House, held: HeldPod) -> str | None:
    """A bound pod draws where its node is, whatever its annotation says."""
    node = house.nodes.get(held.node or "")
    return node.leaf if node is not None else held.leaf
