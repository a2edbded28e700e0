"""From targets to writes: lower first, read back, then raise (I1, I2).

A policy says where caps should be; this says which of them may be granted *now*. Granting cap c to a GPU charged C makes
its charge max(C, c). So a grant at or below the charge never lifts a sum, and goes out at once; a grant above it needs
headroom in the leaf and in every ancestor, counted with the charges of this moment, which fall only after lower caps were
acknowledged and have settled. Where a sum is already above its limit (a surprise), nothing below it is raised and a GPU
whose true cap is unknown gets its minimum only (R7).

Protected: no decision makes the sum of charges below any budget exceed its limit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from splitwatt_core.columns import TOLERANCE_W
from splitwatt_core.trees import forest_of

UNKNOWN_CAP: Final = 0
"""In `granted_w`: no grant yet."""


@dataclass(frozen=True, slots=True)
class TransitionInput:
    """N GPUs and B budgets, indexed as in the policy's snapshot.

    int32[N]: leaf, group, priority, target_w (the policy's), granted_w (cap of the newest grant, UNKNOWN_CAP when none),
    min_w. charge_w float64[N]: GPU watts charged now. trusted bool[N]: acknowledgements count. may_raise bool[N]: nothing
    else forbids a raise. over_elsewhere bool[N]: it also counts, by a move or a conflict, in a budget off its own path, and
    that sum is above its limit. loss_factor float64[N]. parent int32[B]. headroom_w float64[B]: aim - all charges below,
    at the meter. withheld_w float64[B]: the part of the headroom that raises leave alone, for surprises and for watts
    that nobody declared.
    """

    leaf: NDArray[np.int32]
    group: NDArray[np.int32]
    priority: NDArray[np.int16]
    target_w: NDArray[np.int32]
    granted_w: NDArray[np.int32]
    min_w: NDArray[np.int32]
    charge_w: NDArray[np.float64]
    trusted: NDArray[np.bool_]
    may_raise: NDArray[np.bool_]
    over_elsewhere: NDArray[np.bool_]
    loss_factor: NDArray[np.float64]
    parent: NDArray[np.int32]
    headroom_w: NDArray[np.float64]
    withheld_w: NDArray[np.float64]


def next_caps(t: TransitionInput) -> NDArray[np.int32]:
    """The caps to stand in the specs after this step, int32[N]; equal to `granted_w` where nothing is to be written."""
    if t.leaf.size == 0:
        return t.granted_w.copy()
    over = (forest_of(t.parent).min_down(t.headroom_w)[t.leaf] < -TOLERANCE_W) | t.over_elsewhere
    known = t.granted_w != UNKNOWN_CAP
    caps = t.granted_w.copy()

    lower = known & (t.target_w < t.granted_w)
    caps[lower] = t.target_w[lower]
    # No grant yet, or its true cap unknown: below a sum that is too high even a "lowering" may raise the truth.
    first = ~known
    caps[first] = np.where(over[first], t.min_w[first], np.minimum(t.target_w[first], t.charge_w[first].astype(np.int32)))
    untrusted = known & ~t.trusted & over
    caps[untrusted] = np.minimum(caps[untrusted], t.min_w[untrusted])

    # No driver takes a cap below its lowest, so such a grant (of a time when its status said less) is never acknowledged.
    untakable = known & (caps < t.min_w) & (t.min_w <= t.charge_w)
    caps[untakable] = t.min_w[untakable]

    wants = t.may_raise & t.trusted & known & ~over & (t.target_w > caps)
    within = wants & (t.target_w <= t.charge_w)
    above = wants & ~within
    extra_w = np.where(above, (t.target_w - t.charge_w) * t.loss_factor, 0.0)
    granted = _affordable(t, above, extra_w) | within
    # One cap for all GPUs of a group: a group is raised as a whole or not at all.
    held_groups = np.unique(t.group[(t.target_w > caps) & ~granted])
    granted &= ~np.isin(t.group, held_groups)
    caps[granted] = t.target_w[granted]
    check_sums(t, caps)
    return caps


def _affordable(t: TransitionInput, above: NDArray[np.bool_], extra_w: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which raises fit: all, when they do; otherwise group by group, highest priority first."""
    total_w = forest_of(t.parent).sum_up(np.bincount(t.leaf, weights=extra_w, minlength=len(t.parent)).astype(np.float64))
    left_w = t.headroom_w - t.withheld_w
    if bool(np.all(total_w <= np.maximum(left_w, 0.0))):
        return above
    accepted = np.zeros_like(above)
    index = np.flatnonzero(above)
    order = index[np.lexsort((index, t.group[index], -t.priority[index].astype(np.int64)))]
    start = 0
    while start < len(order):
        end = start
        while end < len(order) and t.group[order[end]] == t.group[order[start]]:
            end += 1
        members = order[start:end]
        if _spend(t, members, extra_w, left_w):
            accepted[members] = True
        start = end
    return accepted


def _spend(t: TransitionInput, members: NDArray[np.intp], extra_w: NDArray[np.float64], left_w: NDArray[np.float64]) -> bool:
    """Take the members' watts from every budget above them, or change nothing and say False."""
    spent: list[tuple[int, float]] = []
    for i in members:
        b = int(t.leaf[i])
        while b >= 0:
            spent.append((b, float(extra_w[i])))
            left_w[b] -= extra_w[i]
            b = int(t.parent[b])
    if all(left_w[b] >= 0.0 for b, _ in spent):
        return True
    for b, watts in spent:
        left_w[b] += watts
    return False


def check_sums(t: TransitionInput, caps: NDArray[np.int32]) -> None:
    """Assert I1 for a decision: no sum is lifted above its limit, and none that is above already is lifted at all."""
    lift_w = np.maximum(caps - t.charge_w, 0.0) * t.loss_factor
    lifted_w = forest_of(t.parent).sum_up(np.bincount(t.leaf, weights=lift_w, minlength=len(t.parent)).astype(np.float64))
    bad = np.flatnonzero((lifted_w > TOLERANCE_W) & (lifted_w > t.headroom_w + TOLERANCE_W))
    assert bad.size == 0, f"budget {int(bad[0])}: a decision lifts {lifted_w[bad[0]]:.1f} W over {t.headroom_w[bad[0]]:.1f} W"
