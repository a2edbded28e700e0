"""Max-min fair filling of a forest of budgets, in stages: the arithmetic that all our policies share.

Theory. A *stage* lifts a set of units (GPU groups that share one cap) from where they stand towards a target. Every unit
of the stage has come the same fraction f of its own way when water stops rising for it, and it stops only because some
budget above one of its GPUs is full. That is the max-min fair point: nobody's f can grow without lowering the f of a unit
that has no more. A full budget stops only what lies below it, so a tight rack does not drag its neighbours down.

Let l(b) = remaining(b) / weight still rising below b: the f at which b would fill if nothing else stopped first. l only
grows while others stop, so a budget whose l is the least among all budgets that touch its own units stops exactly there.
All such budgets stop in the same round; each round stops at least one, hence at most B rounds, in practice a handful.

Protects the post-condition of `signature`: what is handed out below a budget never exceeds what remained.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from splitwatt_core.columns import TOLERANCE_W, BoolArray, FloatArray, GpuColumns, IntArray
from splitwatt_core.policies.signature import PowerSnapshot, cap_sums_w, shortfall_w
from splitwatt_core.trees import NO_BUDGET, Forest, forest_of

WHOLE_WATT_SLACK_W: Final = 1e-11
"""A level this close below a whole watt counts as that watt; 80 000 of them stay below TOLERANCE_W."""


@dataclass(frozen=True, slots=True)
class Units:
    """G groups of GPUs that share one cap, as columns of shape [G], in whole watts where they bound a cap.

    of_gpu int64[N]: the unit of each GPU. lo_w, top_w: the legal range all members share. held_w: the least cap a member
    was granted last. leaf: the leaf of a unit that lies in one, NO_BUDGET where it spans several; the span_ columns then
    have a row per GPU of it. loss: summed loss factors.
    """

    of_gpu: IntArray
    lo_w: FloatArray
    top_w: FloatArray
    natural_w: FloatArray
    cliff_w: FloatArray
    held_w: FloatArray
    phase: IntArray
    priority: IntArray
    leaf: IntArray
    loss: FloatArray
    span_unit: IntArray
    span_leaf: IntArray
    span_loss: FloatArray

    @property
    def count(self) -> int:
        return len(self.lo_w)


class _Members:
    """GPUs sorted by unit, so that a column shrinks to one value per unit."""

    def __init__(self, group: IntArray) -> None:
        ids, of_gpu = np.unique(group, return_inverse=True)
        self.size = len(ids)
        self.of_gpu: IntArray = of_gpu.astype(np.int64)
        self._order = np.argsort(self.of_gpu, kind="stable")
        self._first = np.searchsorted(self.of_gpu[self._order], np.arange(self.size))

    def least(self, column: FloatArray) -> FloatArray:
        return np.minimum.reduceat(column[self._order], self._first) if self.size else column

    def most(self, column: FloatArray) -> FloatArray:
        return np.maximum.reduceat(column[self._order], self._first) if self.size else column


def _sum_by(index: IntArray, weight: FloatArray, size: int) -> FloatArray:
    return np.bincount(index, weights=weight, minlength=size).astype(np.float64, copy=False)


def _legal_range(gpus: GpuColumns) -> tuple[FloatArray, FloatArray]:
    lo_w, top_w = np.ceil(gpus.min_w), np.floor(gpus.max_w)
    if bool(np.any(bad := ~(lo_w <= top_w))):
        row = int(np.flatnonzero(bad)[0])
        raise ValueError(
            f"GPU row {row}: no whole watt lies between min_w {gpus.min_w[row]} and max_w {gpus.max_w[row]}; "
            "give its legal range of caps"
        )
    return lo_w, top_w


def units_of(gpus: GpuColumns) -> Units:
    """Reduce GPUs to units. Raises ValueError on an empty legal range.

    Members whose legal ranges start differently or do not meet cannot share one cap at the bottom; such a group is taken
    apart, so that "everything at its minimum" stays possible for every GPU.
    """
    lo_gpu, top_gpu = _legal_range(gpus)
    members = _Members(gpus.group.astype(np.int64))
    apart = (members.least(lo_gpu) != members.most(lo_gpu)) | (members.most(lo_gpu) > members.least(top_gpu))
    if bool(np.any(apart)):
        alone = np.flatnonzero(apart[members.of_gpu])
        group = members.of_gpu.copy()
        group[alone] = members.size + np.arange(len(alone))
        members = _Members(group)
    lo, top = members.most(lo_gpu), members.least(top_gpu)
    natural = np.clip(members.most(gpus.natural_w), lo, top)
    leaf_gpu = gpus.leaf.astype(np.float64)
    leaf = members.least(leaf_gpu).astype(np.int64)
    spans = leaf != members.most(leaf_gpu).astype(np.int64)
    rows = np.flatnonzero(spans[members.of_gpu])
    return Units(
        of_gpu=members.of_gpu,
        lo_w=lo,
        top_w=top,
        natural_w=natural,
        cliff_w=np.clip(members.most(gpus.cliff_w), lo, natural),
        held_w=np.floor(members.least(gpus.cap_w)),
        phase=members.most(gpus.phase.astype(np.float64)).astype(np.int64),
        priority=members.most(gpus.priority.astype(np.float64)).astype(np.int64),
        leaf=np.where(spans, NO_BUDGET, leaf),
        loss=_sum_by(members.of_gpu, gpus.loss_factor, members.size),
        span_unit=members.of_gpu[rows],
        span_leaf=gpus.leaf[rows].astype(np.int64),
        span_loss=gpus.loss_factor[rows],
    )


@dataclass(frozen=True, slots=True)
class Stop:
    """Where one stage ended for its members, both arrays of their shape. fraction 0..1; budget: the one that was full,
    NO_BUDGET where fraction is 1."""

    members: IntArray
    fraction: FloatArray
    budget: IntArray


class Filling:
    """One decision in the making: the level of every unit and what remains below every budget, changed by `lift` alone.

    level_w float64[G]: the cap so far. settled_w: the last target a unit reached in full. short_w, remaining_w float64[B]:
    watts missing even at minimum caps, and watts still to give, at the meter.
    """

    def __init__(self, snapshot: PowerSnapshot) -> None:
        """Starts with every GPU at its minimum cap. Raises ValueError on an empty legal range or an unsorted tree."""
        self._snapshot = snapshot
        self.forest = forest_of(snapshot.budgets.parent)
        self.units = units_of(snapshot.gpus)
        self.level_w = self.units.lo_w.copy()
        self.settled_w = self.units.lo_w.copy()
        minimum_w = cap_sums_w(snapshot, self.units.lo_w[self.units.of_gpu].astype(np.int32))
        allowance_w = snapshot.budgets.allowance_w
        self.short_w = shortfall_w(minimum_w, allowance_w)
        self.remaining_w: FloatArray = np.maximum(allowance_w - minimum_w, 0.0)
        self._spanning = np.flatnonzero(self.units.leaf == NO_BUDGET)

    def worst_posture(self) -> tuple[IntArray, IntArray]:
        """int64[G] each: the worst posture on the way up from any member, and one budget that has it."""
        posture = self._snapshot.budgets.posture.astype(np.int64)
        worst = self.forest.max_down(posture)
        holder = self.forest.nearest(posture == worst)
        size = max(self.forest.size, 1)
        both = self.most_of_leaves(worst * size + holder)
        return both // size, both % size

    def most_of_leaves(self, of_budget: IntArray) -> IntArray:
        """Of each unit the largest value among its leaves, int64[G]."""
        units = self.units
        value = of_budget[np.maximum(units.leaf, 0)] if self.forest.size else np.zeros(units.count, dtype=np.int64)
        if len(self._spanning):
            value = value.copy()
            value[self._spanning] = np.iinfo(np.int64).min
            np.maximum.at(value, units.span_unit, of_budget[units.span_leaf])
        return value

    def lift(self, members: IntArray, target_w: FloatArray) -> Stop:
        """Raise `members` (unit indices) from their settled level towards `target_w` (same shape, clipped below it).

        A member that an earlier stage left short of its target stays there: its budget is full.
        """
        units, forest = self.units, self.forest
        way_w = np.maximum(target_w - self.settled_w[members], 0.0)
        single = units.leaf[members] != NO_BUDGET
        way_of_unit = np.zeros(units.count)
        way_of_unit[members] = way_w
        own_w = _sum_by(units.leaf[members[single]], (units.loss[members] * way_w)[single], forest.size)
        in_stage = np.zeros(units.count, dtype=np.bool_)
        in_stage[members] = True
        rows = np.flatnonzero(in_stage[units.span_unit])
        level = _Fill(
            forest=forest,
            remaining_w=self.remaining_w,
            leaf_weight_w=own_w,
            span_unit=units.span_unit[rows],
            span_leaf=units.span_leaf[rows],
            span_weight_w=units.span_loss[rows] * way_of_unit[units.span_unit[rows]],
            units=units.count,
        )
        level.run()
        self.remaining_w = level.remaining_w
        leaf = np.maximum(units.leaf[members], 0)
        fraction = np.where(single, level.leaf_fraction[leaf], level.unit_fraction[members])
        budget = np.where(single, level.leaf_budget[leaf], level.unit_budget[members])
        fraction = np.where(way_w > 0, fraction, 1.0)
        budget = np.where(way_w > 0, budget, NO_BUDGET)
        self.level_w[members] += fraction * way_w
        done = fraction >= 1.0
        reached = np.maximum(target_w, self.level_w[members])[done]
        self.level_w[members[done]] = reached
        self.settled_w[members[done]] = reached
        return Stop(members=members, fraction=fraction, budget=budget)

    def caps_w(self, raise_deadband_w: int = 0) -> NDArray[np.int32]:
        """Whole-watt caps int32[N]: levels rounded down, so that rounding frees watts and never spends them.

        A unit that stands between two stages is kept where it was while its raise would be smaller than the deadband, but
        never below the last stage it completed: such levels follow every flicker of an allowance, and each change is a
        write. Decreases are never held back.
        """
        units = self.units
        caps = np.floor(self.level_w + WHOLE_WATT_SLACK_W)
        if raise_deadband_w > 0:
            near = (units.held_w <= caps) & (caps < units.held_w + raise_deadband_w)
            caps = np.where(near, np.maximum(units.held_w, np.floor(self.settled_w)), caps)
        cap_w: NDArray[np.int32] = np.maximum(caps, units.lo_w)[units.of_gpu].astype(np.int32)
        self._shave(cap_w)
        return cap_w

    def _shave(self, cap_w: NDArray[np.int32]) -> None:
        """Take back the last watt where sums of many doubles came out above the allowance by rounding alone."""
        over = (cap_sums_w(self._snapshot, cap_w) - self._snapshot.budgets.allowance_w > TOLERANCE_W) & (self.short_w == 0)
        if not bool(np.any(over)):
            return
        units = self.units
        below = self.most_of_leaves((self.forest.nearest(over) >= 0).astype(np.int64)) > 0
        cap_w[:] = np.where(below[units.of_gpu], np.maximum(cap_w - 1, units.lo_w[units.of_gpu]), cap_w)


class _Fill:
    """The rounds of one stage; see the module's docstring. Weights are meter watts per unit of f."""

    def __init__(
        self,
        *,
        forest: Forest,
        remaining_w: FloatArray,
        leaf_weight_w: FloatArray,
        span_unit: IntArray,
        span_leaf: IntArray,
        span_weight_w: FloatArray,
        units: int,
    ) -> None:
        self._forest = forest
        self._at_start_w = remaining_w
        self.remaining_w = remaining_w
        self._leaf_weight_w = leaf_weight_w
        self._span_unit, self._span_leaf, self._span_weight_w = span_unit, span_leaf, span_weight_w
        self.leaf_fraction = np.zeros(forest.size)
        self.leaf_budget = np.full(forest.size, NO_BUDGET, dtype=np.int64)
        self.unit_fraction = np.zeros(units)
        self.unit_budget = np.full(units, NO_BUDGET, dtype=np.int64)
        self._leaf_rises = leaf_weight_w > 0
        self._unit_rises = np.zeros(units, dtype=np.bool_)
        self._unit_rises[span_unit[span_weight_w > 0]] = True
        self._full = np.zeros(forest.size, dtype=np.bool_)

    def run(self) -> None:
        for _ in range(self._forest.size + 1):
            if not self._round():
                break
        else:
            raise AssertionError("a stage took more rounds than there are budgets")
        self._account()

    def _weight_w(self, leaves: BoolArray, units: BoolArray, factor_leaf: FloatArray, factor_unit: FloatArray) -> FloatArray:
        own = np.where(leaves, self._leaf_weight_w * factor_leaf, 0.0)
        if len(self._span_unit):
            weight = np.where(units[self._span_unit], self._span_weight_w * factor_unit[self._span_unit], 0.0)
            own = own + np.bincount(self._span_leaf, weights=weight, minlength=self._forest.size)
        return self._forest.sum_up(own)

    def _round(self) -> bool:
        """Stop every budget that fills first on all its own ways; False when nothing rises any more."""
        forest, leaves, units = self._forest, self._leaf_rises, self._unit_rises
        if not (bool(leaves.any()) or bool(units.any())):
            return False
        ones_leaf, ones_unit = np.ones(forest.size), np.ones(len(units))
        weight_w = self._weight_w(leaves, units, ones_leaf, ones_unit)
        stopped_w = self._weight_w(~leaves, ~units, self.leaf_fraction, self.unit_fraction)
        left_w = np.where(self._full, 0.0, np.maximum(self._at_start_w - stopped_w, 0.0))
        fills_at = np.full(forest.size, np.inf)
        np.divide(left_w, weight_w, out=fills_at, where=weight_w > 0)
        on_way = forest.min_down(fills_at)
        touched = np.where(leaves, on_way, np.inf)
        unit_level = np.full(len(units), np.inf)
        if len(self._span_unit):
            np.minimum.at(unit_level, self._span_unit, on_way[self._span_leaf])
            unit_level[~units] = np.inf
            np.minimum.at(touched, self._span_leaf, unit_level[self._span_unit])
        first = (fills_at < 1.0) & (forest.min_up(touched) >= fills_at)
        if not bool(first.any()):
            self.leaf_fraction[leaves] = 1.0
            self.unit_fraction[units] = 1.0
            return False
        stopper = forest.nearest(first)
        stopping = leaves & (stopper != NO_BUDGET)
        self.leaf_fraction[stopping] = on_way[stopping]
        self.leaf_budget[stopping] = stopper[stopping]
        self._leaf_rises = leaves & ~stopping
        if len(self._span_unit):
            by = np.full(len(units), NO_BUDGET, dtype=np.int64)
            np.maximum.at(by, self._span_unit, stopper[self._span_leaf])
            caught = units & (by != NO_BUDGET)
            self.unit_fraction[caught] = unit_level[caught]
            self.unit_budget[caught] = by[caught]
            self._unit_rises = units & ~caught
        self._full |= first
        return True

    def _account(self) -> None:
        used_w = self._weight_w(
            np.ones(self._forest.size, dtype=np.bool_),
            np.ones(len(self.unit_fraction), dtype=np.bool_),
            self.leaf_fraction,
            self.unit_fraction,
        )
        self.remaining_w = np.where(self._full, 0.0, np.maximum(self._at_start_w - used_w, 0.0))
