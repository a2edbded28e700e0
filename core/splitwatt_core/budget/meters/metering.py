"""What is remembered of one budget's meter: the newest sample that is believed, and why a newer one is not.

A sample counts once, by its own time: a meter is asked every second, and one that answers once a minute gives the same sample
sixty times. What comes in waits for the next step, which knows what could be drawn (`plausible`); what was believed is held
against what the GPUs drew as soon as their own samples are newer.

Protected: an old value is no value, no value is not zero (I5), and a value that cannot be true is neither.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Final

from splitwatt_core.budget.facts import MeterFailure, MeterReading
from splitwatt_core.budget.meters import plausible
from splitwatt_core.budget.meters.past import Past
from splitwatt_core.budget.meters.plausible import Doubt
from splitwatt_core.budget.tree import MeterSpec

MAX_WAITING: Final = 16
"""Samples that wait to be judged, or to be held against agents; beyond it the oldest are let go."""
LATE_SAMPLES: Final = 2
"""So many new samples in a row that were too old when they came: lateness is how they are made, and no accident."""
STOPPED_AFTER_S: Final = 10.0
"""Without a new sample for so long, and twice the time between the last two, a meter has stopped."""


@dataclass(slots=True)
class MeterMemory:
    """`reading`: the newest that is believed, in watts. `refused`: why the newest sample is not, "" when it is. `failure`: why
    the newest answer was no sample at all."""

    reading: MeterReading | None = None
    refused: str = ""
    failure: str = "no answer from Prometheus yet"
    doubt: Doubt = field(default_factory=Doubt)
    _within_w: float | None = None
    """The newest that was believed for what could be drawn then, and not for what the meter had read before."""
    _waiting: list[MeterReading] = field(default_factory=list)
    _unheld: list[MeterReading] = field(default_factory=list)
    _newest_s: float = float("-inf")
    _told_s: float = float("-inf")
    """The time of the newest sample as it was told."""
    _came_s: float = float("-inf")
    """When the newest sample was first seen."""
    _apart_s: float = 0.0
    """Between the newest two."""
    _late: int = 0

    # -------------------------------------------------------------------------------------------------- what comes in

    def take(self, spec: MeterSpec | None, answer: MeterReading | MeterFailure, now_s: float) -> None:
        """One answer. A sample from the future is one of now: it would stay fresh after its meter died."""
        if isinstance(answer, MeterFailure):
            self.failure = answer.reason
            return
        beyond = [w for w in (answer.power_w, *(answer.extremes_w or ())) if not math.isfinite(w)]
        if beyond or answer.power_w < 0:
            self.failure = f"meter returned {beyond[0] if beyond else answer.power_w} W"
            return
        if spec is not None and answer.series != spec.expected_series:
            self.failure = f"meter returned {answer.series} series, spec.meter.expectedSeries is {spec.expected_series}"
            return
        self.failure = ""
        # Told again it is no younger, however far its clock is ahead.
        taken_s = self._newest_s if answer.sampled_s == self._told_s else answer.sampled_s
        self._told_s = answer.sampled_s
        at_s = min(taken_s, now_s)
        sample = answer if at_s == answer.sampled_s else replace(answer, sampled_s=at_s)
        self._newest_s = min(self._newest_s, now_s)  # the wall clock may have been set back
        if sample.sampled_s > self._newest_s:
            late = spec is not None and now_s - sample.sampled_s > spec.max_age_s
            self._late = self._late + 1 if late else 0
            if math.isfinite(self._newest_s):
                self._apart_s = sample.sampled_s - self._newest_s
            self._newest_s, self._came_s = sample.sampled_s, now_s
        self._waiting = [*self._waiting, sample][-MAX_WAITING:]

    # ----------------------------------------------------------------------------------------------------- what is judged

    def judge(self, spec: MeterSpec, past: Past, *, explained_w: float, limit_w: float) -> tuple[MeterReading, ...]:
        """Believe or refuse what came in since the last step; returns the samples that are believed and new. `past` ends with
        this step; `explained_w`: GPU maxima with losses and all declared watts, at the meter."""
        new: list[MeterReading] = []
        now_s = past.looks[-1].at_s
        for sample in self._waiting:
            self.refused = self._refusal(spec, sample, past, explained_w=explained_w, limit_w=limit_w)
            if self.refused:
                continue
            if sample.power_w <= plausible.most_w(explained_w=explained_w, limit_w=limit_w, believed_w=None):
                self._within_w = sample.power_w
            before_s = float("-inf") if self.reading is None else min(self.reading.sampled_s, now_s)
            self.reading = sample
            if sample.sampled_s > before_s:
                new.append(sample)
        self._waiting = []
        self._unheld = [*self._unheld, *new][-MAX_WAITING:]
        back_s = max(spec.max_age_s, plausible.CONTRADICTED_AFTER_S)
        for sample in [s for s in self._unheld if past.caught_up(s.sampled_s)]:
            self._unheld.remove(sample)
            drawn_w, known_w = past.least_since(sample.sampled_s - back_s)
            self.doubt = self.doubt.hold(
                power_w=sample.power_w,
                sampled_s=sample.sampled_s,
                drawn_w=drawn_w,
                known_w=known_w,
                agents_s=past.looks[-1].drawn_s,
            )
        return tuple(new)

    def teaches(self, spec: MeterSpec, sample: MeterReading, past: Past) -> bool:
        """Whether a sample may tell of watts that nobody declared: not while it may be a meter that reads too little."""
        drawn_w, _ = past.least_since(sample.sampled_s - spec.max_age_s)
        return not (self.doubt.suspect or plausible.contradicts(sample.power_w, drawn_w))

    def _refusal(self, spec: MeterSpec, sample: MeterReading, past: Past, *, explained_w: float, limit_w: float) -> str:
        believed_w = None if self.reading is None else self.reading.power_w
        most_w = plausible.most_w(explained_w=explained_w, limit_w=limit_w, believed_w=self._within_w)
        advice = "look at the meter, meter.selector and meter.scale"
        if sample.power_w > most_w:
            return (
                f"the meter reads {_plain(sample.power_w)} W, and no more than {most_w:.0f} W can flow there: GPUs at their "
                f"maxima and all that is declared come to {explained_w:.0f} W, the limit is {limit_w:.0f} W; {advice}"
            )
        rows = (sample.power_w,) if sample.extremes_w is None else sample.extremes_w
        for row_w in rows:
            raw = row_w / spec.watts_per_unit
            if row_w < 0:
                return f"one of the meter's {sample.series} series reads {_plain(row_w)} W; {advice}"
            if plausible.is_no_value(raw, row_w, believed_w, past.modelled_at(sample.sampled_s)):
                return f"the meter reads {_plain(raw)}, which meters send when they have no value; {advice}"
        return ""

    # -------------------------------------------------------------------------------------------------------- what is told

    def fresh(self, spec: MeterSpec | None, now_s: float) -> MeterReading | None:
        """The newest believed sample while it is young enough and nothing contradicts the meter."""
        if self.reading is None or spec is None or self.doubt.contradicted:
            return None
        return self.reading if now_s - self.reading.sampled_s <= spec.max_age_s else None

    def stale_reason(self, spec: MeterSpec | None, now_s: float) -> str:
        """Why there is nothing fresh now; the age is that of now."""
        if self.failure:
            return self.failure
        age_s = now_s - self._newest_s
        if spec is None or not math.isfinite(age_s):
            return "no sample yet"
        moves = now_s - self._came_s <= max(STOPPED_AFTER_S, 2.0 * self._apart_s)
        if moves and self._late >= LATE_SAMPLES:
            return (
                f"newest sample is {age_s:.0f} s old at every look: scrape interval or query latency (VictoriaMetrics: "
                f"-search.latencyOffset); make them shorter, or meter.maxAgeSeconds, now {spec.max_age_s:.0f}, longer"
            )
        if moves and self._apart_s > spec.max_age_s:
            return (
                f"newest sample is {age_s:.1f} s old, and they come every {self._apart_s:.0f} s: scrape the meter more often, or "
                f"make meter.maxAgeSeconds, now {spec.max_age_s:.0f}, longer"
            )
        return f"newest complete sample is {age_s:.1f} s old"


def _plain(number: float) -> str:
    """A number as its meter gave it: whole where it is, and never in powers of ten."""
    return f"{number:.0f}" if number == round(number) or abs(number) >= 1e6 else f"{number:g}"
