"""What holds raises back besides the head room itself, as columns and names over one fleet.

Protected: no raise leans on watts that a meter already shows as drawn by others, on safe caps that do not fit (I4), or on a
sum that only some of a node's budgets can afford (R9).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from splitwatt_core.budget.books import Book
from splitwatt_core.budget.fleet import Fleet
from splitwatt_core.budget.roster import Placement
from splitwatt_core.budget.survey import Survey
from splitwatt_core.budget.tree import BudgetSpec, Tree
from splitwatt_core.columns import TOLERANCE_W
from splitwatt_core.trees import chain_min


@dataclass(frozen=True, slots=True)
class Gate:
    """What raises must pass: budgets that hold them back, nodes that stand in one leaf only, head room float64[B] and the
    part of it that raises leave alone; names of nodes that also count in a budget above its limit outside their own path."""

    frozen: Set[str]
    nodes: Set[str]
    headroom_w: NDArray[np.float64]
    withheld_w: NDArray[np.float64]
    over_elsewhere: Set[str]


def frozen(
    fleet: Fleet,
    placements: Sequence[Placement],
    surveys: Sequence[Survey],
    *,
    budgets: Mapping[str, BudgetSpec],
    books: Mapping[str, Book],
    tree: Tree,
    now_s: float,
) -> dict[str, str]:
    """Budgets below which nothing may be raised now, each with the reason (R3, I5)."""
    found: dict[str, str] = {}
    for p in placements:
        # Who vanished from the list of Nodes may live on, and a predecessor's write to it may still land.
        if not p.node.stamped and (p.node.present or p.node.object is not None):
            unstamped = f"NodePower {p.node.name} does not carry this operator's term yet"
            found.update(dict.fromkeys((tree.root[leaf] for leaf in p.leaves), unstamped))
    for name, survey in zip(fleet.names, surveys, strict=True):
        reason = books[name].raise_forbidden(budgets[name], survey, now_s)
        if reason is not None:
            found.setdefault(name, reason)
        if name in tree.fault:
            found.setdefault(name, tree.fault[name])
    return found


def may_raise(fleet: Fleet, gate: Gate) -> NDArray[np.bool_]:
    """Which GPUs may be given more now as far as the gate is concerned, watts or clocks, bool[N]."""
    shut = np.array([-1.0 if name in gate.frozen else 0.0 for name in fleet.names])
    open_leaf = chain_min(fleet.parent, shut) >= 0.0
    single = np.array([node.name in gate.nodes for node in fleet.owner], dtype=np.bool_)
    allowed: NDArray[np.bool_] = open_leaf[fleet.gpus.leaf] & single & fleet.steerable
    return allowed


def withheld_w(fleet: Fleet, budgets: Mapping[str, BudgetSpec], books: Mapping[str, Book]) -> NDArray[np.float64]:
    """Watts of each limit that nobody may be given, float64[B]: the reserve for surprises, and what meters show beyond the
    model; of the latter the larger of the budget's own and the sum of its children's."""
    reserve_w = np.array([budgets[n].reserve_w for n in fleet.names], dtype=np.float64)
    beyond_w = np.array([books[n].correction.power_w for n in fleet.names], dtype=np.float64)
    children_w = np.zeros_like(beyond_w)
    for b in range(len(beyond_w) - 1, -1, -1):
        beyond_w[b] = max(beyond_w[b], children_w[b])
        if fleet.parent[b] >= 0:
            children_w[fleet.parent[b]] += beyond_w[b]
    return reserve_w + beyond_w


def safe_sums_over(
    fleet: Fleet, budgets: Mapping[str, BudgetSpec], tree: Tree, target_w: NDArray[np.float64]
) -> dict[str, float]:
    """Budgets whose safe caps alone do not fit (I4), with the watts that miss."""
    over: dict[str, float] = {}
    for b, name in enumerate(fleet.names):
        root = budgets[tree.root[name]]
        if root.safe_cap_w is None:
            continue
        safe = np.clip(float(root.safe_cap_w), fleet.gpus.min_w, fleet.gpus.max_w) * fleet.gpus.loss_factor
        missing = float(fleet.below(safe)[b] + fleet.rest_w[b] - target_w[b])
        if missing > 0:
            over[name] = missing
    return over


def over_elsewhere(fleet: Fleet, placements: Sequence[Placement], tree: Tree, headroom_w: NDArray[np.float64]) -> frozenset[str]:
    """Nodes that also count, by a move or a conflict, in a budget whose sum is above its limit outside their own path."""
    over = {name for name, left_w in zip(fleet.names, headroom_w, strict=True) if left_w < -TOLERANCE_W}
    return frozenset(p.node.name for p in placements for leaf in p.leaves[1:] if not over.isdisjoint(tree.chain(leaf)))
