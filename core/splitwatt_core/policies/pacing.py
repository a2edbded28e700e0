"""How fast caps may rise: each unit at a moment of its own, a step at a time; down is never held back.

A fleet whose caps all rise in one second draws more in that second, and the meter tells of it seconds later: whatever was
wrong with the raise is then wrong everywhere at once. So time is cut into slots, and a unit rises once in each, by a step at
most, at the moment that the hash of its name gives it. Of a slot longer than the time between two decisions a part of the
fleet rises with each.

Out of a collapse nobody waits: below its cliff a phase does next to no work, so every second there costs all of it, while
the watts up to the cliff are the ones that power admission promised.

Protects: a paced cap is never above the policy's, so what holds for the sums of the one holds for the other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from splitwatt_core.columns import BoolArray, FloatArray


@dataclass(frozen=True, slots=True)
class Pace:
    """`raise_w_per_s`: of each unit. `slot_s`: the longer, the fewer rise at once and the later the last; at the period of
    decisions or below it all rise with every decision. Raises ValueError unless both are positive and finite."""

    raise_w_per_s: float = 150.0
    slot_s: float = 2.0

    def __post_init__(self) -> None:
        if not all(0 < x < math.inf for x in (self.raise_w_per_s, self.slot_s)):
            raise ValueError(f"pace must be positive and finite, not {self.raise_w_per_s} W/s in slots of {self.slot_s} s")

    def due(self, slot: FloatArray, *, last_s: float, now_s: float) -> BoolArray:
        """Whose moment came after `last_s`, up to `now_s`; `slot` float64[N] in 0..1. A clock that was set back starts anew,
        or nothing would rise until it has caught up."""
        passed: BoolArray = self._slots(slot, now_s) > self._slots(slot, min(last_s, now_s))
        return passed

    def _slots(self, slot: FloatArray, at_s: float) -> FloatArray:
        return np.floor(at_s / self.slot_s - slot)


def paced(
    pace: Pace,
    *,
    cap_w: NDArray[np.int32],
    granted_w: FloatArray,
    cliff_w: FloatArray,
    min_w: FloatArray,
    slot: FloatArray,
    last_s: float,
    now_s: float,
) -> NDArray[np.int32]:
    """Of the caps that a policy would grant those that may be granted now, int32[N]; all arrays have shape [N].

    granted_w: the caps granted last. min_w: the legal minimum, below which no pace keeps a cap. One step however many slots
    went by: who was away knows less of the fleet, not more.
    """
    step_w = np.where(pace.due(slot, last_s=last_s, now_s=now_s), math.floor(pace.raise_w_per_s * pace.slot_s), 0.0)
    reach_w = np.maximum.reduce([np.floor(granted_w) + step_w, np.ceil(cliff_w), min_w])
    allowed: NDArray[np.int32] = np.minimum(cap_w, reach_w.astype(np.int32))
    return allowed
