"""What the keeper remembers of one PowerBudget between steps: its limit in force, its meter, its posture, its adoption."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from splitwatt_core.budget.facts import MeterFailure, MeterReading, Note
from splitwatt_core.budget.posture import Correction, PostureState, step_posture
from splitwatt_core.budget.survey import Survey
from splitwatt_core.budget.tree import BudgetSpec, LimitState, Tree, new_limit
from splitwatt_core.columns import Posture
from splitwatt_core.trees import NO_BUDGET

FIRST_JUDGEMENT_S: Final = 3.0
"""Meters lag by a second or two: until then they may still show what was drawn before a new budget's first caps held."""

MODEL_KEPT_S: Final = 30.0
MODEL_EVERY_S: Final = 0.5
"""Two steps within it are kept as the later one; so at most 2 * MODEL_KEPT_S / MODEL_EVERY_S are kept."""


@dataclass(slots=True)
class Book:
    """`measured_w` is None while nothing fresh is known; `meter_reason` then says why."""

    name: str
    uid: str
    limit: LimitState
    opened_s: float
    adopted: bool = False
    complete: bool = False
    """Nothing was left to adopt one step ago; what that step decided under this budget may need an answer first."""
    adopted_s: float = float("-inf")
    adoption_s: float | None = None
    reading: MeterReading | None = None
    meter_reason: str = "no answer from Prometheus yet"
    measured_w: float | None = None
    correction: Correction = field(default_factory=Correction)
    state: PostureState = field(default_factory=PostureState)
    conditions: dict[str, tuple[bool | None, str]] = field(default_factory=dict)
    modelled: tuple[tuple[float, float], ...] = ()
    """When a step was, and the watts that it modelled; the newest last."""

    @classmethod
    def open(cls, spec: BudgetSpec, now_s: float) -> Book:
        limit = spec.limit_state or new_limit(spec.limit_w, now_s)
        return cls(name=spec.name, uid=spec.uid, limit=limit, opened_s=now_s, adopted=spec.adopted)

    @property
    def posture(self) -> Posture:
        return self.state.posture

    def see_limit(self, spec: BudgetSpec, now_s: float) -> list[Note]:
        """Take in the limit that the spec says now; a lowered one starts its grace (R9)."""
        before = self.limit
        self.limit = before.observe(spec.limit_w, now_s, spec.limit_grace_s)
        if spec.limit_w == before.spec_w:
            return []
        verb = "lowered" if spec.limit_w < before.spec_w else "raised"
        text = f"limit {verb} from {before.spec_w} W to {spec.limit_w} W"
        if self.limit.pending:
            text += f", in force in {max(at for _, at in self.limit.pending) - now_s:.1f} s"
        return [Note("PowerBudget", self.name, f"Limit{verb.capitalize()}", text)]

    def see_meter(self, spec: BudgetSpec, reading: MeterReading | MeterFailure, now_s: float) -> None:
        """Keep a usable reading; say why otherwise. An old value is no value, and no value is not zero (I5)."""
        if isinstance(reading, MeterFailure):
            self.meter_reason = reading.reason
            return
        if not math.isfinite(reading.power_w) or reading.power_w < 0:
            self.meter_reason = f"meter returned {reading.power_w} W"
            return
        if spec.meter is not None and reading.series != spec.meter.expected_series:
            self.meter_reason = (
                f"meter returned {reading.series} series, spec.meter.expectedSeries is {spec.meter.expected_series}"
            )
            return
        # A sample from the future would stay fresh after its meter died.
        self.reading = replace(reading, sampled_s=min(reading.sampled_s, now_s))
        self.meter_reason = f"newest complete sample is {now_s - reading.sampled_s:.1f} s old"

    def fresh_reading(self, spec: BudgetSpec, now_s: float) -> MeterReading | None:
        if self.reading is None or spec.meter is None or now_s - self.reading.sampled_s > spec.meter.max_age_s:
            return None
        return self.reading

    def advance(self, now_s: float) -> None:
        self.limit = self.limit.at(now_s)

    def judge(self, spec: BudgetSpec, survey: Survey, now_s: float, *, adopted: bool, below_w: float | None) -> list[Note]:
        """Settle this step's measurement, correction, adoption and posture. `below_w`: what the children measured together
        with this budget's own fixed watts, None at a leaf or when a child measured nothing."""
        notes: list[Note] = []
        reading = self.fresh_reading(spec, now_s)
        if spec.meter is None:
            self.correction = Correction()
        kept = [m for m in self.modelled if 0 <= now_s - m[0] <= MODEL_KEPT_S]
        if len(kept) > 1 and now_s - kept[-2][0] < MODEL_EVERY_S:
            kept.pop()  # steps may follow each other faster than the span can be held
        self.modelled = (*kept, (now_s, survey.modelled_w))
        if reading is not None:
            self.measured_w = reading.power_w
            self.correction = self.correction.observe(
                measured_w=reading.power_w,
                modelled_w=self.modelled_at(reading.sampled_s),
                limit_w=self.limit.in_force_w,
                now_s=now_s,
            )
        elif below_w is not None:
            self.measured_w = below_w
        else:
            # Declared watts of a node that nobody measures are no measurement (I5).
            self.measured_w = survey.modelled_w if survey.nodes and not survey.unmeasured else None
        if adopted and self.complete and not self.adopted:
            self.adopted, self.adopted_s, self.adoption_s = True, now_s, now_s - self.opened_s
            bare = survey.bare == survey.nodes
            what = "no agent tells of a GPU, all nodes at their flat rate" if bare else "every GPU acknowledged"
            notes.append(Note("PowerBudget", self.name, "Adopted", f"{what} after {self.adoption_s:.1f} s: in force"))
        self.complete = adopted
        before = self.posture
        ratio = None if self.measured_w is None else self.measured_w / self.limit.in_force_w
        if now_s - self.adopted_s < FIRST_JUDGEMENT_S:
            ratio = None
        self.state = step_posture(self.state, ratio=ratio, adopted=self.adopted, now_s=now_s)
        if self.posture is not before and Posture.ADOPTING not in (before, self.posture):
            worse = self.posture > before
            text = f"{before.name.capitalize()} -> {self.posture.name.capitalize()}"
            if self.measured_w is not None:
                text += f": measured {self.measured_w:.0f} W of {self.limit.in_force_w} W"
            notes.append(Note("PowerBudget", self.name, "Posture", text, warning=worse))
        return notes

    def modelled_at(self, sampled_s: float) -> float:
        """What the model said at a sample's time: between the two steps around it, or at the nearest.

        A meter's sample is older than the agents'. Held against what they say now, every falling load would look like watts
        that nobody declared. Raises IndexError before the first judgement.
        """
        earlier = [m for m in self.modelled if m[0] <= sampled_s]
        later = [m for m in self.modelled if m[0] > sampled_s]
        if not earlier or not later:
            return (later[0] if later else earlier[-1])[1]
        (before_s, before_w), (after_s, after_w) = earlier[-1], later[0]
        return before_w + (after_w - before_w) * (sampled_s - before_s) / (after_s - before_s)

    def raise_forbidden(self, spec: BudgetSpec, survey: Survey, now_s: float) -> str | None:
        """Why nothing below this budget may be raised now, None when something may (I5)."""
        if self.posture > Posture.NORMAL:
            return f"posture is {self.posture.name.capitalize()}"
        if spec.meter is not None and self.fresh_reading(spec, now_s) is None:
            return f"meter is stale: {self.meter_reason}"
        if spec.meter is None and spec.selector is not None and survey.stale_agents:
            return f"{survey.stale_agents} agents gave no sample lately and there is no meter"
        return None


def judge_all(
    budgets: Sequence[BudgetSpec], books: Sequence[Book], surveys: Sequence[Survey], *, tree: Tree, now_s: float
) -> list[Note]:
    """Settle every book, children before parents. A budget without nodes has nothing to adopt, and waits for some."""
    notes: list[Note] = []
    below_w: dict[int, float | None] = {}
    for b, above in reversed(list(enumerate(tree.forest.parent.tolist()))):
        spec, book, survey = budgets[b], books[b], surveys[b]
        adopted = survey.unadopted == 0 and survey.nodes > 0
        children_w = below_w.get(b)
        own_w = None if children_w is None else children_w + spec.fixed_w
        notes.extend(book.judge(spec, survey, now_s, adopted=adopted, below_w=own_w))
        if above != NO_BUDGET:
            so_far_w = below_w.get(above, 0.0)
            # A budget without nodes has nothing to measure, which must not make those above it forget what theirs read.
            empty = book.measured_w is None and survey.nodes == 0
            mine_w = float(spec.fixed_w) if empty else book.measured_w
            below_w[above] = None if so_far_w is None or mine_w is None else so_far_w + mine_w
    return notes
