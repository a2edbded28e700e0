"""`Feasible`: whether minimum caps fit a limit.

False tells a person to raise a limit or to take machines away. So it rests on what is declared and on what no cap can go
below, and on nothing that passes: not on a charge that cannot be lowered just now, not on a node that still counts where it
leaves, not on what a meter shows. Those are in the way, and are said as that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np

from splitwatt_core.budget.claims import Rates, charged_w, lowest_gpu_w, lowest_w
from splitwatt_core.budget.fleet import count_elsewhere
from splitwatt_core.budget.moment import Moment
from splitwatt_core.columns import FloatArray
from splitwatt_core.conditions import Condition, counted, some
from splitwatt_core.policies.signature import shortfall_w
from splitwatt_core.protocol.node_account import NodeAccount

KIND: Final = "Feasible"


class Short(NamedTuple):
    """Watts that miss below one budget, each 0 where none do. at_minimum_w: with every GPU at its lowest legal cap, by what is
    declared. beyond_w: what meters show beyond that; with_beyond_w: at_minimum_w, were it declared. in_the_way_w: with every
    GPU that can be lowered now at its lowest, the others at their charge. safe_w: with all safe caps, None where they fit."""

    at_minimum_w: float
    beyond_w: float
    with_beyond_w: float
    in_the_way_w: float
    safe_w: float | None = None


def shorts(m: Moment, *, in_the_way_w: FloatArray, safe_over_w: Mapping[str, float]) -> tuple[Short, ...]:
    """One for each budget, in the tree's order. `in_the_way_w` float64[B]: as the policies found it."""
    lowest_gpus_w = np.array([lowest_gpu_w(account) for account in m.fleet.accounts], dtype=np.float64)
    elsewhere_w = _elsewhere_w(m, lowest_w) - _elsewhere_w(m, charged_w)
    minimum_w = m.fleet.below(m.fleet.gpus.loss_factor * lowest_gpus_w) + m.fleet.rest_w + elsewhere_w
    may_be_w = m.aim_w() - m.reserve_w()
    beyond_w = m.beyond_w()
    columns = (shortfall_w(minimum_w, may_be_w), beyond_w, shortfall_w(minimum_w + beyond_w, may_be_w), in_the_way_w)
    safe_w = [safe_over_w.get(name) for name in m.tree.order]
    return tuple(map(Short._make, zip(*(column.tolist() for column in columns), safe_w, strict=True)))


def _elsewhere_w(m: Moment, counts_w: Callable[[Rates, NodeAccount], float]) -> FloatArray:
    """What nodes count for besides their first leaf, float64[B]."""
    found_w = np.zeros(len(m.budgets))
    moving = [p for p in m.placements if len(p.leaves) > 1]
    budgets = {spec.name: spec for spec in m.budgets} if moving else {}
    for p in moving:
        count_elsewhere(found_w, p, counts_w, tree=m.tree, budgets=budgets)
    return found_w


def feasible(short: Short, *, aside: Sequence[str]) -> Condition:
    """`aside`: GPUs below it that cannot be lowered now."""
    if short.safe_w is not None:
        text = f"safe caps need {short.safe_w:.0f} W more than the limit: lower policy.safeCapWatts or raise the limit"
        return Condition(KIND, False, "SafeCapsAboveLimit", text)
    if short.at_minimum_w > 0:
        text = f"minimum caps need {short.at_minimum_w:.0f} W more than the limit: raise limitWatts or remove nodes"
        return Condition(KIND, False, "MinimumCapsAboveLimit", text)
    if short.with_beyond_w > 0:
        text = (
            f"minimum caps fit the limit by what is declared, but meters show {short.beyond_w:.0f} W more, which leaves them "
            f"{short.with_beyond_w:.0f} W too few: find what draws there, and declare it or raise limitWatts"
        )
        return Condition(KIND, True, "UndeclaredInTheWay", text)
    if short.in_the_way_w > 0 and aside:
        text = (
            f"minimum caps fit the limit, but the charges of {counted(len(aside), 'GPU')} that cannot be lowered now are "
            f"{short.in_the_way_w:.0f} W in the way: {some(aside)}"
        )
        return Condition(KIND, True, "ChargesInTheWay", text)
    return Condition(KIND, True, "Feasible", "minimum caps fit the limit")
