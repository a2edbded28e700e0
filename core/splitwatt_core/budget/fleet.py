"""The fleet at one moment as columns: which GPU stands where, what it may draw, what it wants.

Protected: every watt is counted once in every budget that must count it. A node that moved between racks is charged in
both leaves until the move is acknowledged (R9), and once in each budget above them. A GPU that cannot be steered now
(silent or sick) stands in the policy's snapshot at exactly its charge, so that its neighbours make room for it. One that
is only late with its acknowledgement does so while some sum above it is too high, or once it is mute: its agent shows no
sample, or said nothing for a minute. While the sums hold and agents live, late means that the way to them is slow, and
dealing their watts anew would only send more writes down it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Final, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from splitwatt_core.budget.claims import Placement, Rates, charged_w, leads_up_to, node_rest_w, rates_in
from splitwatt_core.budget.demand import Demand, Demands
from splitwatt_core.budget.facts import PodFact
from splitwatt_core.budget.modes import as_it_is, releases
from splitwatt_core.budget.tree import BudgetSpec, Tree
from splitwatt_core.budget.workloads import Workloads, unit_of
from splitwatt_core.columns import TOLERANCE_W, ClockColumns, GpuColumns, PhaseCode
from splitwatt_core.gpus import profiles as profile_law
from splitwatt_core.gpus.profiles import Profile
from splitwatt_core.protocol.contract import NO_GRANT, SIGN_OF_LIFE_S, Health, Phase
from splitwatt_core.protocol.ledger import GpuAccount
from splitwatt_core.protocol.node_account import NodeAccount
from splitwatt_core.trees import Forest

Scalar = TypeVar("Scalar", bound=np.generic)

LATE_ACK_S: Final = 3.0
"""A grant unacknowledged for this long is late; agents answer in well under a second."""
MUTE_S: Final = SIGN_OF_LIFE_S
"""Late for this long, without a word since: no way is that slow."""
SLOTS_KEPT: Final = 1 << 17
"""Hashes kept between steps; beyond it the least used are computed anew."""

PHASE_CODE: Final = {
    Phase.UNASSIGNED: int(PhaseCode.UNASSIGNED),
    Phase.PREFILL: int(PhaseCode.PREFILL),
    Phase.DECODE: int(PhaseCode.DECODE),
}


@dataclass(frozen=True, slots=True)
class Fleet:
    """`accounts[i]` is the ledger's account behind row i of `gpus`; `owner[i]` its node; `holders[i]` what is known of each pod
    that holds it, None of a stranger; `wants[i]` what its pods want of it, whatever it may have now. B budgets in the tree's
    order.

    charge_w float64[N], granted_w int32[N] (0 = none), trusted, steerable, late, mute and still bool[N]. still: a person wants
    its cap left as it is (frozen budget, excluded node). freed bool[N]: its default limit is to be given back. clocks, slot: as
    in the policy's snapshot; a GPU that cannot be steered is not locked either (top_mhz 0).
    rest_w float64[B]: non-GPU, unmanaged and fixed watts below each budget, plus GPU watts of nodes that only count there.
    nodes, gpu_count int64[B].
    """

    tree: Tree
    gpus: GpuColumns
    clocks: ClockColumns
    slot: NDArray[np.float64]
    accounts: tuple[GpuAccount, ...]
    owner: tuple[NodeAccount, ...]
    wants: tuple[Demand, ...]
    holders: tuple[tuple[PodFact | None, ...], ...]
    charge_w: NDArray[np.float64]
    granted_w: NDArray[np.int32]
    trusted: NDArray[np.bool_]
    steerable: NDArray[np.bool_]
    late: NDArray[np.bool_]
    mute: NDArray[np.bool_]
    still: NDArray[np.bool_]
    freed: NDArray[np.bool_]
    rest_w: NDArray[np.float64]
    nodes: NDArray[np.int64]
    gpu_count: NDArray[np.int64]

    @property
    def forest(self) -> Forest:
        return self.tree.forest

    def charged_w(self) -> NDArray[np.float64]:
        """The sum of I1 below each budget, float64[B]."""
        return self.below(self.gpus.loss_factor * self.charge_w) + self.rest_w

    def below(self, per_gpu: NDArray[np.float64]) -> NDArray[np.float64]:
        """Sums of a per-GPU column below each budget, float64[B]."""
        own = np.bincount(self.gpus.leaf, weights=per_gpu, minlength=self.forest.size).astype(np.float64)
        return self.forest.sum_up(own)

    def with_late_aside(self, allowance_w: NDArray[np.float64]) -> Fleet:
        """The same fleet, with GPUs aside, which nobody counts on, that are mute, or late below a sum that is too high.
        `allowance_w` float64[B]: meter watts that may be charged for GPUs below each budget."""
        left_w = allowance_w + self.rest_w - self.charged_w()
        over = self.forest.min_down(left_w)[self.gpus.leaf] < -TOLERANCE_W
        return self._fixed_at_charge(self.late & self.steerable & (over | self.mute))

    def floor_w(self) -> NDArray[np.float64]:
        """GPU watts that must be counted on for each GPU whatever the policy does, float64[N]: its cliff, and its charge
        while it owes an acknowledgement."""
        return np.where(self.late, np.maximum(self.gpus.cliff_w, self.charge_w), self.gpus.cliff_w)

    def _fixed_at_charge(self, rows: NDArray[np.bool_]) -> Fleet:
        """These rows bool[N] no longer steerable: exactly their charge, each in a group of its own, clocks as they are."""
        if not rows.any():
            return self
        group = self.gpus.group.copy()
        group[rows] = int(group.max()) + 1 + np.arange(int(rows.sum()), dtype=np.int32)
        watts = ("min_w", "max_w", "natural_w", "cliff_w", "cap_w")
        fixed = {name: np.where(rows, self.charge_w, getattr(self.gpus, name)) for name in watts}
        return replace(
            self,
            gpus=replace(self.gpus, group=group, **fixed),
            clocks=replace(self.clocks, top_mhz=np.where(rows, 0.0, self.clocks.top_mhz)),
            steerable=self.steerable & ~rows,
        )


def steerable(account: GpuAccount, node: NodeAccount, now_s: float) -> bool:
    """Whether a grant of this step can be expected to be acknowledged, unless it is late already."""
    return node.present and node.alive(now_s) and account.health is Health.OK and account.min_w > 0


def late(account: GpuAccount, now_s: float) -> bool:
    """Whether it owes the acknowledgement of a grant for too long."""
    return account.unacked_since_s is not None and now_s - account.unacked_since_s > LATE_ACK_S


def mute(account: GpuAccount, node: NodeAccount, now_s: float) -> bool:
    """Late, and it is the agent and not the way to it: no sample lately, or no word for a minute."""
    since_s = account.unacked_since_s
    if since_s is None or not late(account, now_s):
        return False
    return node.sample_stale(now_s) or (now_s - since_s > MUTE_S and node.status_s < since_s)


class _Clock(NamedTuple):
    """The clocks of a GPU model, as in ClockColumns."""

    top_mhz: float
    min_mhz: float
    idle_w: float
    exponent: float
    voltage_floor: float


_UNKNOWN_CLOCK: Final = _Clock(0.0, 0.0, 0.0, 1.0, 1.0)


class _Row(NamedTuple):
    """One GPU; the names are those of the columns that it becomes part of."""

    leaf: int
    group: int
    phase: int
    priority: int
    loss_factor: float
    min_w: float
    max_w: float
    natural_w: float
    cliff_w: float
    cap_w: float
    granted_mhz: int
    clock: _Clock
    slot: float
    charge_w: int
    granted_w: int
    trusted: bool
    steerable: bool
    late: bool
    mute: bool
    still: bool
    freed: bool


def build_fleet(
    *,
    tree: Tree,
    budgets: Mapping[str, BudgetSpec],
    placements: Sequence[Placement],
    pods: Mapping[tuple[str, str], PodFact],
    profiles: Sequence[Profile],
    now_s: float,
    workloads: Workloads | None = None,
) -> Fleet:
    """Lay out all GPUs of all placed nodes, node by node. `workloads`: pods that are not among `pods`, None: nobody tells
    of any."""
    size = len(tree.order)
    own_rest_w = np.array([budgets[name].fixed_w for name in tree.order], dtype=np.float64)
    nodes, gpu_count, extra_w = np.zeros(size), np.zeros(size), np.zeros(size)
    left_behind: set[tuple[str, str]] = set()
    rows: list[_Row] = []
    accounts: list[GpuAccount] = []
    owner: list[NodeAccount] = []
    told: list[Demand] = []
    groups: dict[tuple[str, str], int] = {}
    told_holders: list[tuple[PodFact | None, ...]] = []
    demands, clocks = Demands(pods, workloads or Workloads(), profiles), _Clocks(profiles)
    below_gone = tree.forest.nearest(np.array([name in tree.gone for name in tree.order], dtype=np.bool_)) >= 0
    for placement in placements:
        node = placement.node
        rates = rates_in(placement.leaves[0], placement, budgets)
        b = tree.index[placement.leaves[0]]
        kept = not placement.claimed or bool(below_gone[b])
        own_rest_w[b] += node_rest_w(rates, node)
        nodes[b] += 1
        gpu_count[b] += len(node.gpus)
        if len(placement.leaves) > 1:
            count_elsewhere(extra_w, placement, charged_w, tree=tree, budgets=budgets)
            left_behind |= fixed_elsewhere(placement, tree, budgets)
        trusted = node.trusted(now_s)
        still = node.excluded or bool(tree.frozen_by(placement.leaves[0], budgets))
        root = budgets[tree.root[placement.leaves[0]]]
        frees = releases(node, root, tree)
        for account in node.gpus.values():
            holders = demands.holders(account, root)
            wants = demands.of(account, holders)
            told.append(wants)
            told_holders.append(holders)
            can = not still and steerable(account, node, now_s)
            key = ("", account.uuid)
            if len(account.owners) == 1 and can:  # one that several pods share rises by itself
                key = unit_of(account.owners[0], holders[0])
            charge_w = float(account.charge_w)
            if kept:  # nothing is raised there, so nobody else need make room for it
                top_w = max(account.min_w, min(wants.ceiling_w, account.latest_cap_w or 0))
                natural_w = min(wants.natural_w, top_w)
                wants = replace(wants, ceiling_w=top_w, natural_w=natural_w, cliff_w=min(wants.cliff_w, natural_w))
            freed = can and frees
            if freed:
                wants = as_it_is(account, wants)
            lowest_w = min(max(account.min_w, account.floor_w), max(account.min_w, account.max_w))
            outside_w = account.outside_ceiling_w
            highest_w = account.max_w if outside_w is None else outside_w
            rows.append(
                _Row(
                    leaf=b,
                    group=groups.setdefault(key, len(groups)),
                    phase=PHASE_CODE[wants.phase],
                    priority=wants.priority,
                    loss_factor=rates.loss_factor,
                    # A cap below its floor takes nothing from it: it would be charged the floor all the same.
                    min_w=lowest_w if can else charge_w,
                    max_w=max(min(wants.ceiling_w, highest_w), lowest_w) if can else charge_w,
                    natural_w=max(min(wants.natural_w, highest_w), lowest_w) if can else charge_w,
                    cliff_w=max(min(wants.cliff_w, highest_w), lowest_w) if can else charge_w,
                    cap_w=account.present_cap_w if can else charge_w,
                    granted_mhz=0 if account.row is None else account.row.max_clock_mhz or 0,
                    clock=clocks.of(account.model) if can else _UNKNOWN_CLOCK,
                    slot=slot(*key),
                    charge_w=account.charge_w,
                    granted_w=account.latest_cap_w or 0,
                    trusted=trusted and account.acked > NO_GRANT,
                    steerable=can,
                    late=late(account, now_s),
                    mute=mute(account, node, now_s),
                    still=still,
                    freed=freed,
                )
            )
            accounts.append(account)
            owner.append(node)
    columns: dict[str, tuple[Any, ...]] = (
        dict(zip(_Row._fields, zip(*rows, strict=True), strict=True)) if rows else dict.fromkeys(_Row._fields, ())
    )

    def column(name: str, dtype: type[Scalar]) -> NDArray[Scalar]:
        return np.array(columns[name], dtype=dtype)

    for above, below in left_behind:
        extra_w[tree.index[above]] += budgets[below].fixed_w
    top, low, idle, exponent, floor = column("clock", np.float64).reshape(-1, len(_Clock._fields)).T
    forest = tree.forest
    return Fleet(
        tree=tree,
        gpus=GpuColumns(
            leaf=column("leaf", np.int32),
            group=column("group", np.int32),
            phase=column("phase", np.int8),
            priority=column("priority", np.int16),
            loss_factor=column("loss_factor", np.float64),
            min_w=column("min_w", np.float64),
            max_w=column("max_w", np.float64),
            natural_w=column("natural_w", np.float64),
            cliff_w=column("cliff_w", np.float64),
            cap_w=column("cap_w", np.float64),
        ),
        clocks=ClockColumns(
            granted_mhz=column("granted_mhz", np.int32),
            top_mhz=top,
            min_mhz=low,
            idle_w=idle,
            exponent=exponent,
            voltage_floor=floor,
        ),
        slot=column("slot", np.float64),
        accounts=tuple(accounts),
        owner=tuple(owner),
        wants=tuple(told),
        holders=tuple(told_holders),
        charge_w=column("charge_w", np.float64),
        granted_w=column("granted_w", np.int32),
        trusted=column("trusted", np.bool_),
        steerable=column("steerable", np.bool_),
        late=column("late", np.bool_),
        mute=column("mute", np.bool_),
        still=column("still", np.bool_),
        freed=column("freed", np.bool_),
        rest_w=forest.sum_up(own_rest_w) + extra_w,
        nodes=forest.sum_up(nodes).astype(np.int64),
        gpu_count=forest.sum_up(gpu_count).astype(np.int64),
    )


@lru_cache(maxsize=SLOTS_KEPT)
def slot(namespace: str, name: str) -> float:
    """A moment in 0..1, the same at every start of the operator: of a pod's GPUs, which rise as one, or ("") of one GPU."""
    digest = hashlib.blake2b(f"{namespace}/{name}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") / 2.0**32


def count_elsewhere(
    extra_w: NDArray[np.float64],
    placement: Placement,
    counts_w: Callable[[Rates, NodeAccount], float],
    *,
    tree: Tree,
    budgets: Mapping[str, BudgetSpec],
) -> None:
    """Add what a node counts for (`counts_w`) besides what its first leaf declares of it: in each budget once, at the most that
    any leaf below declares. Which of them it truly stands in nobody knows."""
    node = placement.node
    counted_w: dict[str, float] = {}
    for name in placement.leaves:
        watts = counts_w(rates_in(name, placement, budgets), node)
        for above in tree.chain(name):
            more_w = watts - counted_w.get(above, 0.0)
            if more_w > 0.0:
                counted_w[above] = watts
                extra_w[tree.index[above]] += more_w if name != placement.leaves[0] else 0.0


def fixed_elsewhere(placement: Placement, tree: Tree, budgets: Mapping[str, BudgetSpec]) -> set[tuple[str, str]]:
    """Whose fixed watts count with this node in which budgets off its way up: (budget, one below it). A leaf that names another
    parent, or none, leaves a rack's switches and fans where they were, as it does its nodes (R32). Which of the budgets on the
    present way moved with it nobody wrote down, so all of them count. A budget above another leaf of the node counts that one
    by itself."""
    own = tree.chain(placement.leaves[0])
    others = [tree.chain(name) for name in placement.leaves[1:]]
    by_leaf = {above for way in others if not leads_up_to(way[0], placement, budgets) for above in way}
    off = {above for way in others for above in way}.difference(own, by_leaf)
    return {(above, below) for above in off for below in own if below not in tree.chain(above)}


class _Clocks:
    """The clocks of each GPU model of one step."""

    def __init__(self, profiles: Sequence[Profile]) -> None:
        self._profiles = profiles
        self._known: dict[str, _Clock] = {}

    def of(self, model: str) -> _Clock:
        if model not in self._known:
            self._known[model] = self._read(model)
        return self._known[model]

    def _read(self, model: str) -> _Clock:
        found = profile_law.find(self._profiles, model)
        if found is None:
            return _UNKNOWN_CLOCK
        return _Clock(
            top_mhz=float(found.max_clock_mhz),
            min_mhz=float(found.min_clock_mhz),
            idle_w=float(found.idle_w),
            exponent=found.clock_exponent,
            voltage_floor=found.voltage_floor,
        )
