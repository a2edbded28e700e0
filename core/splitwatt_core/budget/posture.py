"""A budget's posture: how hard it must give watts back, from what its meter says. One table, no other state.

Caps hold the charge, so in a healthy fleet the meter stays below the limit by itself and the posture stays NORMAL. It
climbs when the meter tells of draw that the ledger does not know (under-declared non-GPU watts, a liar among the GPUs) and
comes down one step at a time. A meter that says nothing changes nothing (I5): no data is not zero watts.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from splitwatt_core.columns import Posture
from splitwatt_core.policies.signature import CORRECTION_WINDOW_S

RELEASE_RATIO: Final = 0.97
"""Below this share of the limit in force the next milder posture is reached for."""
RELEASE_DWELL_S: Final = 10.0
BRAKE_RATIO: Final = 1.10
"""docs/facts.md, breakers: an overload that a UPS carries for some seconds only; no dwell above it."""


@dataclass(frozen=True, slots=True)
class Escalation:
    """From any milder posture to `to`, once measured / limit has been above `ratio` for `dwell_s`."""

    to: Posture
    ratio: float
    dwell_s: float


TABLE: Final = (
    Escalation(Posture.BRAKE, BRAKE_RATIO, 0.0),
    Escalation(Posture.BRAKE, 1.0, 6.0),
    Escalation(Posture.SHED, 1.0, 2.0),
    Escalation(Posture.TRIM, 1.0, 0.0),
)


@dataclass(frozen=True, slots=True)
class PostureState:
    """`over_since_s`, `under_since_s`: since when the meter is above the limit, or below the release ratio."""

    posture: Posture = Posture.ADOPTING
    over_since_s: float | None = None
    under_since_s: float | None = None


def step_posture(state: PostureState, *, ratio: float | None, adopted: bool, now_s: float) -> PostureState:
    """The posture after one reading. `ratio` is measured / limit in force, None when there is no fresh measurement."""
    if not adopted:
        return PostureState()
    posture = Posture.NORMAL if state.posture is Posture.ADOPTING else state.posture
    if ratio is None:
        return replace(state, posture=posture, under_since_s=None)  # time without data releases nothing
    over_s = None if ratio <= 1.0 else (now_s if state.over_since_s is None else state.over_since_s)
    under_s = None if ratio >= RELEASE_RATIO else (now_s if state.under_since_s is None else state.under_since_s)
    for rule in TABLE:
        if rule.to > posture and ratio > rule.ratio and over_s is not None and now_s - over_s >= rule.dwell_s:
            return PostureState(rule.to, over_s, None)
    if under_s is not None and now_s - under_s >= RELEASE_DWELL_S and posture > Posture.NORMAL:
        return PostureState(Posture(posture - 1), None, now_s)
    return PostureState(posture, over_s, under_s)


UNDER_DECLARED_MIN_RATIO: Final = 0.01
"""Smaller gaps between meter and model are sensor noise, as a share of the limit."""
CORRECTION_HOLD_S: Final = 60.0
GAP_EVERY_S: Final = 0.25
"""Gaps closer together are kept as one, the smaller: decisions may follow each other faster than the window can hold."""


@dataclass(frozen=True, slots=True)
class Correction:
    """Watts that the meter shows above the model (agents' GPU watts with losses + declared non-GPU + fixed). They lessen
    what GPUs may have. `power_w` is the largest lasting gap of the last `CORRECTION_HOLD_S`, so caps do not follow noise;
    a gap lasts when it is the smallest of a full `CORRECTION_WINDOW_S`."""

    power_w: float = 0.0
    seen_s: float = float("-inf")
    gaps: tuple[tuple[float, float], ...] = ()

    def observe(self, *, measured_w: float, modelled_w: float, limit_w: float, now_s: float) -> Correction:
        gap_w = measured_w - modelled_w
        gap_w = gap_w if gap_w > UNDER_DECLARED_MIN_RATIO * limit_w else 0.0
        kept = [g for g in self.gaps if now_s - g[0] <= CORRECTION_WINDOW_S]
        full = bool(kept) and now_s - self.gaps[0][0] >= CORRECTION_WINDOW_S
        if kept and now_s - kept[-1][0] < GAP_EVERY_S:
            at_s, smaller_w = kept.pop()
            gaps = (*kept, (at_s, min(smaller_w, gap_w)))
        else:
            gaps = (*kept, (now_s, gap_w))
        if not full:
            return replace(self, gaps=gaps)
        lasting_w = min(g for _, g in gaps)
        if lasting_w >= self.power_w or now_s - self.seen_s > CORRECTION_HOLD_S:
            return Correction(lasting_w, now_s, gaps)
        return replace(self, gaps=gaps)
