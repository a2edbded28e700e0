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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from splitwatt_core.budget.demand import Demand, GpuKind, demand_of
from splitwatt_core.budget.facts import PodFact
from splitwatt_core.budget.roster import Placement, managed
from splitwatt_core.budget.tree import BudgetSpec, Tree
from splitwatt_core.columns import TOLERANCE_W, ClockColumns, GpuColumns, PhaseCode
from splitwatt_core.gpus import profiles as profile_law
from splitwatt_core.gpus.profiles import Profile
from splitwatt_core.protocol.contract import NO_GRANT, Health, Phase
from splitwatt_core.protocol.ledger import AGENT_METRICS_SILENT_S, GpuAccount, NodeAccount
from splitwatt_core.trees import chain_min, sum_below

LATE_ACK_S: Final = 3.0
"""A grant unacknowledged for this long is late; agents answer in well under a second."""
MUTE_S: Final = 60.0
"""Late for this long, without a word since: no way is that slow. An agent that lives writes its status once a minute."""
SLOTS_KEPT: Final = 1 << 17
"""Hashes kept between steps; beyond it the least used are computed anew."""

PHASE_CODE: Final = {
    Phase.UNASSIGNED: PhaseCode.UNASSIGNED,
    Phase.PREFILL: PhaseCode.PREFILL,
    Phase.DECODE: PhaseCode.DECODE,
}


@dataclass(frozen=True, slots=True)
class Fleet:
    """`accounts[i]` is the ledger's account behind row i of `gpus`; `owner[i]` its node. B budgets in `names`.

    charge_w float64[N], granted_w int32[N] (0 = none), trusted, steerable, late and mute bool[N]. clocks, slot: as in the
    policy's snapshot; a GPU that cannot be steered is not locked either (top_mhz 0).
    rest_w float64[B]: non-GPU, unmanaged and fixed watts below each budget, plus GPU watts of nodes that only count there.
    nodes, gpu_count int64[B].
    """

    names: tuple[str, ...]
    parent: NDArray[np.int32]
    gpus: GpuColumns
    clocks: ClockColumns
    slot: NDArray[np.float64]
    accounts: tuple[GpuAccount, ...]
    owner: tuple[NodeAccount, ...]
    phases: tuple[Phase, ...]
    charge_w: NDArray[np.float64]
    granted_w: NDArray[np.int32]
    trusted: NDArray[np.bool_]
    steerable: NDArray[np.bool_]
    late: NDArray[np.bool_]
    mute: NDArray[np.bool_]
    rest_w: NDArray[np.float64]
    nodes: NDArray[np.int64]
    gpu_count: NDArray[np.int64]

    def charged_w(self) -> NDArray[np.float64]:
        """The sum of I1 below each budget, float64[B]."""
        return self.below(self.gpus.loss_factor * self.charge_w) + self.rest_w

    def below(self, per_gpu: NDArray[np.float64]) -> NDArray[np.float64]:
        """Sums of a per-GPU column below each budget, float64[B]."""
        own = np.bincount(self.gpus.leaf, weights=per_gpu, minlength=len(self.names)).astype(np.float64)
        return sum_below(self.parent, own)

    def without_late(self, allowance_w: NDArray[np.float64]) -> Fleet:
        """The same fleet, in which nobody counts on GPUs that are mute, or late below a sum that is too high. `allowance_w`
        float64[B]: meter watts that may be charged for GPUs below each budget."""
        left_w = allowance_w + self.rest_w - self.charged_w()
        over = chain_min(self.parent, left_w)[self.gpus.leaf] < -TOLERANCE_W
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
    silent = now_s - node.sample_s > AGENT_METRICS_SILENT_S
    return silent or (now_s - since_s > MUTE_S and node.status_s < since_s)


def build_fleet(
    *,
    tree: Tree,
    budgets: Mapping[str, BudgetSpec],
    placements: Sequence[Placement],
    pods: Mapping[tuple[str, str], PodFact],
    profiles: Sequence[Profile],
    now_s: float,
) -> Fleet:
    """Lay out all GPUs of all placed nodes. Budgets come in `tree.order`, GPUs node by node."""
    index = {name: b for b, name in enumerate(tree.order)}
    parent = np.array([-1 if (up := tree.parent[n]) is None else index[up] for n in tree.order], dtype=np.int32)
    size = len(tree.order)
    own_rest_w, nodes, gpu_count = np.zeros(size), np.zeros(size), np.zeros(size)
    extra_w = np.zeros(size)
    rows: list[tuple[object, ...]] = []
    accounts: list[GpuAccount] = []
    owner: list[NodeAccount] = []
    phases: list[Phase] = []
    groups: dict[tuple[str, str], int] = {}
    clocks: list[_Clock] = []
    slots: list[float] = []
    clock_of_model: dict[str, _Clock] = {}
    known: Known = {}
    for name, b in index.items():
        own_rest_w[b] += budgets[name].fixed_w
    for placement in placements:
        node = placement.node
        leaf = budgets[placement.leaves[0]]
        b = index[leaf.name]
        own_rest_w[b] += _node_rest_w(leaf, node)
        nodes[b] += 1
        counted = set(tree.chain(leaf.name))
        for other_name in placement.leaves[1:]:
            other = budgets[other_name]
            watts = _node_rest_w(other, node) + other.loss_factor * sum(g.charge_w for g in node.gpus.values())
            for above in tree.chain(other_name):
                if above not in counted:
                    counted.add(above)
                    extra_w[index[above]] += watts
        trusted = node.trusted(now_s)
        for account in node.gpus.values():
            wants = _demand(account, pods, profiles, known)
            key = ("", account.uuid)
            can = steerable(account, node, now_s)
            if account.workload is not None and can:
                key = (account.workload.namespace, account.workload.pod)
            place = (b, groups.setdefault(key, len(groups)))
            acknowledged = trusted and account.acked > NO_GRANT
            answers = (can, acknowledged, late(account, now_s), mute(account, node, now_s))
            rows.append((*place, *_row(account, wants, leaf, can), *answers))
            if account.model not in clock_of_model:
                clock_of_model[account.model] = _clock(profile_law.find(profiles, account.model))
            clocks.append(clock_of_model[account.model] if can else _UNKNOWN_CLOCK)
            slots.append(slot(*key))
            accounts.append(account)
            owner.append(node)
            phases.append(wants.phase)
            gpu_count[b] += 1
    columns = list(zip(*rows, strict=True)) if rows else [()] * 14
    return Fleet(
        names=tree.order,
        parent=parent,
        gpus=GpuColumns(
            leaf=np.array(columns[0], dtype=np.int32),
            group=np.array(columns[1], dtype=np.int32),
            phase=np.array(columns[2], dtype=np.int8),
            priority=np.array(columns[3], dtype=np.int16),
            loss_factor=np.array(columns[4], dtype=np.float64),
            min_w=np.array(columns[5], dtype=np.float64),
            max_w=np.array(columns[6], dtype=np.float64),
            natural_w=np.array(columns[7], dtype=np.float64),
            cliff_w=np.array(columns[8], dtype=np.float64),
            cap_w=np.array(columns[9], dtype=np.float64),
        ),
        clocks=_clock_columns(clocks, accounts),
        slot=np.array(slots, dtype=np.float64),
        accounts=tuple(accounts),
        owner=tuple(owner),
        phases=tuple(phases),
        charge_w=np.array([a.charge_w for a in accounts], dtype=np.float64),
        granted_w=np.array([a.latest_cap_w or 0 for a in accounts], dtype=np.int32),
        trusted=np.array(columns[11], dtype=np.bool_),
        steerable=np.array(columns[10], dtype=np.bool_),
        late=np.array(columns[12], dtype=np.bool_),
        mute=np.array(columns[13], dtype=np.bool_),
        rest_w=sum_below(parent, own_rest_w) + extra_w,
        nodes=sum_below(parent, nodes).astype(np.int64),
        gpu_count=sum_below(parent, gpu_count).astype(np.int64),
    )


@lru_cache(maxsize=SLOTS_KEPT)
def slot(namespace: str, name: str) -> float:
    """A moment in 0..1, the same at every start of the operator: of a pod's GPUs, which rise as one, or ("") of one GPU."""
    digest = hashlib.blake2b(f"{namespace}/{name}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") / 2.0**32


_Clock = tuple[float, float, float, float, float]
"""top_mhz, min_mhz, idle_w, exponent, voltage_floor."""
_UNKNOWN_CLOCK: Final[_Clock] = (0.0, 0.0, 0.0, 1.0, 1.0)


def _clock(profile: Profile | None) -> _Clock:
    if profile is None:
        return _UNKNOWN_CLOCK
    shape = (profile.clock_exponent_permille / 1000, profile.voltage_floor_permille / 1000)
    return float(profile.max_clock_mhz), float(profile.min_clock_mhz), float(profile.idle_w), *shape


def _clock_columns(clocks: Sequence[_Clock], accounts: Sequence[GpuAccount]) -> ClockColumns:
    top, low, idle, exponent, floor = np.array(clocks, dtype=np.float64).reshape(-1, 5).T
    granted = [0 if a.row is None else a.row.max_clock_mhz or 0 for a in accounts]
    return ClockColumns(
        granted_mhz=np.array(granted, dtype=np.int32),
        top_mhz=top,
        min_mhz=low,
        idle_w=idle,
        exponent=exponent,
        voltage_floor=floor,
    )


def _node_rest_w(leaf: BudgetSpec, node: NodeAccount) -> int:
    return leaf.non_gpu_w_per_node if managed(node) else leaf.unmanaged_w_per_node


Known = dict[tuple[GpuKind, PodFact], Demand]
"""The demands of one step. A fleet has few kinds and pods, and many GPUs."""


def _demand(account: GpuAccount, pods: Mapping[tuple[str, str], PodFact], profiles: Sequence[Profile], known: Known) -> Demand:
    kind = GpuKind(account.model, account.min_w, account.max_w, account.default_w)
    work = account.workload
    pod = None if work is None else pods.get((work.namespace, work.pod))
    if pod is None:
        return demand_of(kind, busy=work is not None, pod=None, profiles=profiles)
    if (kind, pod) not in known:
        known[kind, pod] = demand_of(kind, busy=True, pod=pod, profiles=profiles)
    return known[kind, pod]


def _row(
    account: GpuAccount, wants: Demand, leaf: BudgetSpec, can: bool
) -> tuple[int, int, float, float, float, float, float, float]:
    """phase, priority, loss_factor, min_w, max_w, natural_w, cliff_w, cap_w."""
    ranks = (int(PHASE_CODE[wants.phase]), wants.priority, leaf.loss_factor)
    charge = float(account.charge_w)
    if not can:
        return *ranks, charge, charge, charge, charge, charge
    watts = (float(account.min_w), float(wants.ceiling_w), float(wants.natural_w), float(wants.cliff_w))
    return *ranks, *watts, float(account.latest_cap_w or account.default_w)
