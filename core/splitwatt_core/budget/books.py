"""What the keeper remembers of one PowerBudget between steps: its limit in force, its meter, its posture, its adoption."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from splitwatt_core.budget.facts import MeterFailure, MeterReading, Note
from splitwatt_core.budget.meters.metering import MeterMemory
from splitwatt_core.budget.meters.past import Look, Past
from splitwatt_core.budget.meters.posture import Correction, MeasuredRatio, PostureState, step_posture
from splitwatt_core.budget.survey import Survey
from splitwatt_core.budget.tree import BudgetSpec, LimitState, Tree, new_limit
from splitwatt_core.columns import Posture
from splitwatt_core.conditions import counted, some
from splitwatt_core.trees import NO_BUDGET

FIRST_JUDGEMENT_S: Final = 3.0
"""Meters lag by a second or two: until then they may still show what was drawn before a new budget's first caps held."""
MAX_FORMER: Final = 64
"""Former limits kept; a sample that is older is held against the lowest limits."""


@dataclass(frozen=True, slots=True)
class Measured:
    """Watts at the meter, and when they were measured. `firm` False: it stands in for a meter, here or below, that is there and
    gives nothing to be believed; nothing is released by it."""

    power_w: float
    sampled_s: float
    firm: bool = True


@dataclass(slots=True)
class Book:
    """`measured` is None while nothing fresh is known; `meter` then says why."""

    name: str
    uid: str
    limit: LimitState
    opened_s: float
    adopted: bool = False
    complete: bool = False
    """Nothing was left to adopt one step ago; what that step decided under this budget may need an answer first."""
    adopted_s: float = float("-inf")
    adoption_s: float | None = None
    meter: MeterMemory = field(default_factory=MeterMemory)
    measured: Measured | None = None
    correction: Correction = field(default_factory=Correction)
    state: PostureState = field(default_factory=PostureState)
    conditions: dict[str, tuple[bool | None, str]] = field(default_factory=dict)
    past: Past = field(default_factory=Past)
    _former: tuple[tuple[float, int], ...] = ()
    """Limits that were in force, in watts, each with the time until which."""
    _advanced_s: float = float("-inf")

    @classmethod
    def open(cls, spec: BudgetSpec, now_s: float) -> Book:
        limit = spec.limit_state or new_limit(spec.limit_w, now_s)
        return cls(name=spec.name, uid=spec.uid, limit=limit, opened_s=now_s, adopted=spec.adopted)

    @property
    def posture(self) -> Posture:
        return self.state.posture

    @property
    def measured_w(self) -> float | None:
        return None if self.measured is None else self.measured.power_w

    def see_limit(self, spec: BudgetSpec, now_s: float) -> list[Note]:
        """Take in the limit that the spec says now; a lowered one starts its grace (R9)."""
        self.advance(now_s)
        before = self.limit
        self._hold(before.observe(spec.limit_w, now_s, spec.limit_grace_s))
        if spec.limit_w == before.spec_w:
            return []
        verb = "lowered" if spec.limit_w < before.spec_w else "raised"
        text = f"limit {verb} from {before.spec_w} W to {spec.limit_w} W"
        if self.limit.pending:
            text += f", in force in {max(at for _, at in self.limit.pending) - now_s:.1f} s"
        return [Note("PowerBudget", self.name, f"Limit{verb.capitalize()}", text)]

    def see_meter(self, spec: BudgetSpec, answer: MeterReading | MeterFailure, now_s: float) -> None:
        """What the meter answered, in watts; the next step says whether it can be believed."""
        self.meter.take(spec.meter, answer, now_s)

    def fresh_reading(self, spec: BudgetSpec, now_s: float) -> MeterReading | None:
        """What the meter says and can be believed now."""
        return self.meter.fresh(spec.meter, now_s)

    def advance(self, now_s: float) -> None:
        if now_s < self._advanced_s:
            self._set_back(self._advanced_s - now_s, now_s)
        self._advanced_s = now_s
        self._hold(self.limit.at(now_s))

    def _set_back(self, by_s: float, now_s: float) -> None:
        """Our clock was set back: what has to last still lasts no longer for that, and what has lasted did so until now."""
        pending = tuple((limit_w, at_s - by_s) for limit_w, at_s in self.limit.pending)
        self.limit = replace(self.limit, since_s=min(self.limit.since_s, now_s), pending=pending)
        self._former = tuple((min(until_s, now_s), limit_w) for until_s, limit_w in self._former)
        self.opened_s, self.adopted_s = min(self.opened_s, now_s), min(self.adopted_s, now_s)
        self.correction = replace(self.correction, seen_s=min(self.correction.seen_s, now_s))

    def _hold(self, limit: LimitState) -> None:
        if limit.in_force_w != self.limit.in_force_w:
            self._former = (*self._former, (limit.since_s, self.limit.in_force_w))[-MAX_FORMER:]
        self.limit = limit

    def limit_over_w(self, measured: Measured) -> int:
        """The limit that the draw had to keep when it was measured, and the present one where that is higher: a meter that
        answers once a minute shows for so long what was drawn before a cut."""
        return max([self.limit.in_force_w, *(limit_w for until_s, limit_w in self._former if until_s > measured.sampled_s)])

    def judge(self, spec: BudgetSpec, survey: Survey, now_s: float, *, adopted: bool, below: Measured | None) -> list[Note]:
        """Settle this step's measurement, correction, adoption and posture. `below`: what the children measured together
        with this budget's own fixed watts, None at a leaf or when a child measured nothing."""
        notes: list[Note] = []
        new = self._read(spec, survey, now_s)
        self.measured = self._measure(spec, survey, now_s, below)
        if adopted and self.complete and not self.adopted:
            self.adopted, self.adopted_s, self.adoption_s = True, now_s, max(0.0, now_s - self.opened_s)
            bare = survey.bare == survey.nodes
            what = "no agent tells of a GPU, all nodes at their flat rate" if bare else "every GPU acknowledged"
            notes.append(Note("PowerBudget", self.name, "Adopted", f"{what} after {self.adoption_s:.1f} s: in force"))
        self.complete = adopted
        before = self.posture
        known = (*new, self.measured) if self.measured is not None and self.measured.firm else (self.measured,)
        judged = now_s - self.adopted_s >= FIRST_JUDGEMENT_S
        for measured in known:
            sample = self._sample(measured) if judged and measured is not None else None
            self.state = step_posture(self.state, sample, adopted=self.adopted)
        if self.posture is not before and Posture.ADOPTING not in (before, self.posture):
            worse = self.posture > before
            text = f"{before.name.capitalize()} -> {self.posture.name.capitalize()}"
            if self.measured_w is not None:
                text += f": measured {self.measured_w:.0f} W of {self.limit.in_force_w} W"
            notes.append(Note("PowerBudget", self.name, "Posture", text, warning=worse))
        return notes

    def _read(self, spec: BudgetSpec, survey: Survey, now_s: float) -> tuple[Measured, ...]:
        """Judge what the meter said since the last step: the new samples that are believed."""
        if spec.meter is None:
            self.correction, self.meter, self.past = Correction(), MeterMemory(), Past()
            return ()
        look = Look(now_s, survey.modelled_w, survey.drawn_w, survey.known_w, survey.drawn_s)
        self.past = self.past.with_look(look, max_age_s=spec.meter.max_age_s)
        limit_w = max(self.limit.spec_w, self.limit.in_force_w)
        new = self.meter.judge(spec.meter, self.past, explained_w=survey.explained_w, limit_w=limit_w)
        for sample in new:
            if self.meter.teaches(spec.meter, sample, self.past):
                self.correction = self.correction.observe(
                    measured_w=sample.power_w,
                    modelled_w=self.past.modelled_at(sample.sampled_s),
                    limit_w=self.limit.in_force_w,
                    sampled_s=sample.sampled_s,
                    explained_w=survey.explained_w,
                )
        return tuple(Measured(sample.power_w, sample.sampled_s) for sample in new)

    def _measure(self, spec: BudgetSpec, survey: Survey, now_s: float, below: Measured | None) -> Measured | None:
        """What is drawn now, by the best that can be believed."""
        reading = self.fresh_reading(spec, now_s)
        if reading is not None:
            return Measured(reading.power_w, reading.sampled_s)
        firm = spec.meter is None
        if below is not None:
            return Measured(below.power_w, below.sampled_s, firm and below.firm)
        agents_s = min(survey.drawn_s, now_s)
        if self.meter.doubt.contradicted and not survey.stale_agents:
            # The agents' sum with what is declared, and what the meter taught while it was right.
            return Measured(survey.modelled_w + self.correction.power_w, agents_s, firm=False)
        # Declared watts of a node that nobody measures are no measurement (I5).
        return Measured(survey.modelled_w, agents_s, firm) if survey.nodes and not survey.unmeasured else None

    def _sample(self, measured: Measured) -> MeasuredRatio:
        limit_w = self.limit_over_w(measured)
        firm = measured.firm and not self.meter.doubt.suspect and limit_w == self.limit.in_force_w
        return MeasuredRatio(measured.power_w / limit_w, measured.sampled_s, firm)

    def raise_forbidden(self, spec: BudgetSpec, survey: Survey, now_s: float) -> str | None:
        """Why nothing below this budget may be raised now, None when something may (I5)."""
        if self.posture > Posture.NORMAL:
            return f"posture is {self.posture.name.capitalize()}"
        if spec.meter is not None and self.meter.doubt.contradicted:
            doubt = self.meter.doubt
            return f"meter is contradicted: it reads {doubt.meter_w:.0f} W while GPUs draw {doubt.drawn_w:.0f} W"
        if spec.meter is not None and self.meter.refused:
            return f"meter is implausible: {self.meter.refused}"
        if spec.meter is not None and self.fresh_reading(spec, now_s) is None:
            return f"meter is stale: {self.meter.stale_reason(spec.meter, now_s)}"
        if spec.meter is None and spec.selector is not None and survey.silent:
            return f"there is no meter, and {counted(len(survey.silent), 'agent')} gave no sample lately: {some(survey.silent)}"
        return None


def judge_all(
    budgets: Sequence[BudgetSpec], books: Sequence[Book], surveys: Sequence[Survey], *, tree: Tree, now_s: float
) -> list[Note]:
    """Settle every book, children before parents. A budget without nodes has nothing to adopt, and waits for some."""
    notes: list[Note] = []
    below: dict[int, Measured | None] = {}
    for b, above in reversed(list(enumerate(tree.forest.parent.tolist()))):
        spec, book, survey = budgets[b], books[b], surveys[b]
        adopted = survey.unadopted == 0 and survey.nodes > 0
        children = below.get(b)
        own = None if children is None else _sum(children, Measured(spec.fixed_w, float("inf")))
        notes.extend(book.judge(spec, survey, now_s, adopted=adopted, below=own))
        if above != NO_BUDGET:
            so_far = below.get(above, Measured(0.0, float("inf")))
            # A budget without nodes has nothing to measure, which must not make those above it forget what theirs read.
            empty = book.measured is None and survey.nodes == 0
            mine = Measured(spec.fixed_w, now_s) if empty else book.measured
            below[above] = None if so_far is None or mine is None else _sum(so_far, mine)
    return notes


def _sum(a: Measured, b: Measured) -> Measured:
    """As old as the older, and as firm as the less firm."""
    return Measured(a.power_w + b.power_w, min(a.sampled_s, b.sampled_s), a.firm and b.firm)
