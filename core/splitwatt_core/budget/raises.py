"""What holds raises back besides the headroom itself, as columns and names over one fleet.

Protected: no raise leans on watts that a meter already shows as drawn by others, on safe caps that do not fit (I4), or on a
sum that only some of a node's budgets can afford (R9).
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from splitwatt_core.budget.moment import Moment
from splitwatt_core.columns import TOLERANCE_W

MAX_UNCLAIMED: Final = 256
"""Nodes that a budget's status names because no leaf claims them; above it nothing is raised there (R34)."""


@dataclass(frozen=True, slots=True)
class RaiseHolds:
    """What stands in the way of raises. held: budgets below which nothing may be raised now, each with the reason. safe_over_w:
    budgets whose safe caps do not fit, with the watts that miss. nodes: those that stand in one leaf only, which claims them.
    headroom_w, withheld_w float64[B]: aim less charges, and the part of it that raises leave alone. over_elsewhere: nodes that
    also count in a budget above its limit outside their own path."""

    held: Mapping[str, str]
    safe_over_w: Mapping[str, float]
    nodes: Set[str]
    headroom_w: NDArray[np.float64]
    withheld_w: NDArray[np.float64]
    over_elsewhere: Set[str]


def holds_of(m: Moment, withheld_w: NDArray[np.float64]) -> RaiseHolds:
    aim_w = m.aim_w()
    headroom_w = aim_w - m.charged_w()
    return RaiseHolds(
        held=held(m),
        safe_over_w=safe_sums_over(m, aim_w),
        nodes={p.node.name for p in m.placements if len(p.leaves) == 1 and p.claimed and p.node.name not in m.conflicts},
        headroom_w=headroom_w,
        withheld_w=withheld_w,
        over_elsewhere=over_elsewhere(m, headroom_w),
    )


def held(m: Moment) -> dict[str, str]:
    """Budgets below which nothing may be raised now, each with the reason (R3, I5)."""
    found: dict[str, str] = {}
    for p in m.placements:
        # Who vanished from the list of Nodes may live on, and a predecessor's write to it may still land.
        if not p.node.stamped and (p.node.present or p.node.object is not None):
            unstamped = f"NodePower {p.node.name} does not carry this operator's term yet"
            found.update(dict.fromkeys((m.tree.root[leaf] for leaf in p.leaves), unstamped))
    found.update(m.unconfirmed)
    for spec, book, survey in zip(m.budgets, m.books, m.surveys, strict=True):
        reason = book.raise_forbidden(spec, survey, m.now_s)
        if reason is not None:
            found.setdefault(spec.name, reason)
        if spec.name in m.tree.fault:
            found.setdefault(spec.name, m.tree.fault[spec.name])
        if spec.name in m.tree.gone:
            found.setdefault(spec.name, f"PowerBudget {spec.name} is gone")
    for leaf, count in unclaimed(m).items():
        if count > MAX_UNCLAIMED:
            text = f"{count} nodes count here that no leaf selects, more than the {MAX_UNCLAIMED} that a status can name (R34)"
            found.setdefault(leaf, text)
    return found


def unclaimed(m: Moment) -> dict[str, int]:
    """By leaf, how many nodes count there though no leaf selects them or their Node is gone."""
    found: dict[str, int] = {}
    for p in m.placements:
        if not p.claimed or not p.node.present:
            found[p.leaves[0]] = found.get(p.leaves[0], 0) + 1
    return found


def may_raise(m: Moment, holds: RaiseHolds) -> NDArray[np.bool_]:
    """Which GPUs may be given more now as far as the holds are concerned, watts or clocks, bool[N]."""
    fleet = m.fleet
    shut = np.array([-1.0 if name in holds.held or name in holds.safe_over_w else 0.0 for name in m.tree.order])
    open_leaf = fleet.forest.min_down(shut) >= 0.0
    single = np.array([node.name in holds.nodes for node in fleet.owner], dtype=np.bool_)
    allowed: NDArray[np.bool_] = open_leaf[fleet.gpus.leaf] & single & fleet.steerable
    return allowed


def withheld_w(m: Moment) -> NDArray[np.float64]:
    """Watts of each limit that nobody may be given, float64[B]: the reserve, and what meters show beyond the model."""
    return m.reserve_w() + m.beyond_w()


def safe_sums_over(m: Moment, aim_w: NDArray[np.float64]) -> dict[str, float]:
    """Budgets whose safe caps alone do not fit (I4), with the watts that miss."""
    roots = [m.root(b) for b in range(len(m.budgets))]
    bounded = [b for b, root in enumerate(roots) if root.safe_cap_w is not None]
    if not bounded:
        return {}
    fleet = m.fleet
    safe_cap_w = np.array([float(root.safe_cap_w or 0) for root in roots])[fleet.gpus.leaf]
    safe_w = np.clip(safe_cap_w, fleet.gpus.min_w, fleet.gpus.max_w) * fleet.gpus.loss_factor
    missing_w = fleet.below(safe_w) + fleet.rest_w - aim_w
    return {m.tree.order[b]: float(missing_w[b]) for b in bounded if missing_w[b] > 0}


def over_elsewhere(m: Moment, headroom_w: NDArray[np.float64]) -> frozenset[str]:
    """Nodes that also count, by a move or a conflict, in a budget whose sum is above its limit outside their own path, or in a
    tree whose sum nobody knows (R35)."""
    over = {m.tree.order[b] for b in np.flatnonzero(headroom_w < -TOLERANCE_W)}
    unknown = {p.node.name for p in m.placements if m.tree.root[p.leaves[0]] in m.unconfirmed}
    elsewhere = {p.node.name for p in m.placements for leaf in p.leaves[1:] if not over.isdisjoint(m.tree.chain(leaf))}
    return frozenset(unknown | elsewhere)
