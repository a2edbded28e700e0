"""A budget's posture: how hard it must give watts back, from what its meter says. One table, no other state.

Caps hold the charge, so in a healthy fleet the meter stays below the limit by itself and the posture stays NORMAL. It
climbs when the meter tells of draw that the ledger does not know (under-declared non-GPU watts, a liar among the GPUs) and
comes down one step at a time. A meter that says nothing changes nothing (I5): no data is not zero watts.

Time here is the samples' own. A meter that answers once a minute is looked at sixty times in between, and sixty looks at one
sample say no more than one: whatever costs much needs two.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from splitwatt_core.columns import TOLERANCE_W, Posture
from splitwatt_core.policies.signature import CORRECTION_WINDOW_S

RELEASE_RATIO: Final = 0.97
"""Below this share of the limit in force the next milder posture is reached for."""
RELEASE_DWELL_S: Final = 10.0
BRAKE_RATIO: Final = 1.10
"""docs/facts.md, breakers: an overload that a UPS carries for some seconds only; no dwell above it."""


@dataclass(frozen=True, slots=True)
class Escalation:
    """From any milder posture to `to`, once measured / limit was above `ratio` in so many samples in a row, the first and the
    last of them `dwell_s` apart."""

    to: Posture
    ratio: float
    dwell_s: float
    samples: int


TABLE: Final = (
    Escalation(Posture.BRAKE, BRAKE_RATIO, 0.0, 2),
    Escalation(Posture.BRAKE, 1.0, 6.0, 2),
    Escalation(Posture.SHED, 1.0, 2.0, 2),
    Escalation(Posture.TRIM, 1.0, 0.0, 1),
)


@dataclass(frozen=True, slots=True)
class Run:
    """Samples in a row that have something in common: the times of the first and the last, and how many they are."""

    first_s: float
    last_s: float
    samples: int = 1

    @property
    def lasts_s(self) -> float:
        return self.last_s - self.first_s


def _run(before: Run | None, sampled_s: float, *, holds: bool) -> Run | None:
    if not holds:
        return None
    if before is None or sampled_s < before.last_s:  # a clock that was set back begins anew
        return Run(sampled_s, sampled_s)
    return before if sampled_s == before.last_s else Run(before.first_s, sampled_s, before.samples + 1)


@dataclass(frozen=True, slots=True)
class PostureState:
    """The samples in a row above the limit, far above it (BRAKE_RATIO), and below the release ratio."""

    posture: Posture = Posture.ADOPTING
    over: Run | None = None
    far_over: Run | None = None
    under: Run | None = None


@dataclass(frozen=True, slots=True)
class MeasuredRatio:
    """measured / limit in force, and when it was measured. `firm` False: a stand-in for a meter that is there and cannot be
    believed, a sample under suspicion, or one of a time when a higher limit held; it may tighten a posture, and releases none."""

    ratio: float
    sampled_s: float
    firm: bool = True


def step_posture(state: PostureState, sample: MeasuredRatio | None, *, adopted: bool) -> PostureState:
    """The posture after one look. `sample` None: there is no fresh measurement; the same one again says nothing new."""
    if not adopted:
        return PostureState()
    posture = Posture.NORMAL if state.posture is Posture.ADOPTING else state.posture
    if sample is None:
        return replace(state, posture=posture, under=None)  # time without data releases nothing
    over = _run(state.over, sample.sampled_s, holds=sample.ratio > 1.0)
    far_over = _run(state.far_over, sample.sampled_s, holds=sample.ratio > BRAKE_RATIO)
    under = _run(state.under, sample.sampled_s, holds=sample.firm and sample.ratio < RELEASE_RATIO)
    for rule in TABLE:
        run = far_over if rule.ratio == BRAKE_RATIO else over
        if rule.to > posture and run is not None and run.samples >= rule.samples and run.lasts_s >= rule.dwell_s:
            return PostureState(rule.to, over, far_over)
    if under is not None and under.lasts_s >= RELEASE_DWELL_S and posture > Posture.NORMAL:
        return PostureState(Posture(posture - 1), under=Run(under.last_s, under.last_s))
    return PostureState(posture, over, far_over, under)


UNDER_DECLARED_MIN_RATIO: Final = 0.01
"""Smaller gaps between meter and model are sensor noise, as a share of the limit."""
CORRECTION_HOLD_S: Final = 60.0
CORRECTION_SAMPLES: Final = 2
GAP_EVERY_S: Final = 0.25
"""Gaps closer together are kept as one, the smaller: samples may follow each other faster than the window can hold."""


@dataclass(frozen=True, slots=True)
class Correction:
    """Watts that the meter shows above the model (agents' GPU watts with losses + declared non-GPU + fixed). They lessen
    what GPUs may have. `power_w` is the largest lasting gap of the last `CORRECTION_HOLD_S`, so caps do not follow noise;
    a gap lasts when it is the smallest of a full `CORRECTION_WINDOW_S`, or of two samples that are further apart. What was
    learnt of other machines or under other declarations stands only until a full window of the present ones is there: a node
    that came back, or watts that were declared as asked for, would be taken off twice. A change that is less than noise begins
    no window anew: in a large fleet some node comes or goes all the time, and nothing would ever be learnt."""

    power_w: float = 0.0
    seen_s: float = float("-inf")
    gaps: tuple[tuple[float, float], ...] = ()
    """By the samples' own times; the newest last."""
    explained_w: float | None = None
    """What the gaps lie above: all that could be drawn by what is known and declared."""

    def observe(
        self, *, measured_w: float, modelled_w: float, limit_w: float, sampled_s: float, explained_w: float
    ) -> Correction:
        """One sample; the same one again teaches nothing. `explained_w`: GPU maxima with losses and all declared watts."""
        noise_w = max(TOLERANCE_W, UNDER_DECLARED_MIN_RATIO * limit_w)
        if self.explained_w is None or abs(explained_w - self.explained_w) > noise_w:
            anew = Correction(self.power_w, explained_w=explained_w)
            return anew.observe(
                measured_w=measured_w, modelled_w=modelled_w, limit_w=limit_w, sampled_s=sampled_s, explained_w=explained_w
            )
        if self.gaps and sampled_s == self.gaps[-1][0]:
            return self
        before = self.gaps if self.gaps and sampled_s > self.gaps[-1][0] else ()  # a clock that was set back begins anew
        gap_w = measured_w - modelled_w
        gap_w = gap_w if gap_w > noise_w else 0.0
        kept = [g for g in before if sampled_s - g[0] <= CORRECTION_WINDOW_S] or list(before[-1:])
        full = bool(before) and sampled_s - before[0][0] >= CORRECTION_WINDOW_S
        if kept and sampled_s - kept[-1][0] < GAP_EVERY_S:
            at_s, smaller_w = kept.pop()
            gaps = (*kept, (at_s, min(smaller_w, gap_w)))
        else:
            gaps = (*kept, (sampled_s, gap_w))
        if not full or len(gaps) < CORRECTION_SAMPLES:
            return replace(self, gaps=gaps)
        lasting_w = min(g for _, g in gaps)
        if lasting_w >= self.power_w or sampled_s - self.seen_s > CORRECTION_HOLD_S:
            return Correction(lasting_w, sampled_s, gaps, self.explained_w)
        return replace(self, gaps=gaps)
