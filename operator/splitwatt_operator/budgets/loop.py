"""The budget loop: facts in, one decision a second (and at once after a change), the plan out.

Telemetry runs beside it, so that a slow Prometheus never delays a decision; the loop itself awaits nothing but its own
next turn. A change wakes it, but never more often than every `MIN_GAP_S`.

Protected: the store was complete before the first step (R3), and a plan that says "resign" sends nothing more (R2).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

from splitwatt_core.budget.keeper import MIN_GAP_S, STEP_S, Keeper, Note, Plan
from splitwatt_core.names import GROUP_VERSION
from splitwatt_shell.waiting import woken

from splitwatt_operator.budgets.decision_log import DecisionLog
from splitwatt_operator.budgets.feeder import FACT_KINDS, QUIET_KINDS, Feeder
from splitwatt_operator.budgets.performer import Performer
from splitwatt_operator.budgets.statuses import BudgetStatuses
from splitwatt_operator.cluster.read import subject_of
from splitwatt_operator.cluster.store import Kind, Store
from splitwatt_operator.cluster.view import View
from splitwatt_operator.metrics import Metrics
from splitwatt_operator.recorder import Recorder, Subject
from splitwatt_operator.telemetry.meters import Readings, Telemetry

log = logging.getLogger(__name__)


class SupersededError(RuntimeError):
    """A higher term was seen: this process must stop at once."""


class BudgetLoop:
    """`run` and `measure` side by side until cancelled; `run` raises SupersededError.

    `stepped_s` is the monotonic time of the last decision."""

    def __init__(
        self,
        *,
        store: Store,
        view: View,
        keeper: Keeper,
        performer: Performer,
        telemetry: Telemetry,
        statuses: BudgetStatuses,
        recorder: Recorder,
        metrics: Metrics,
        decisions: DecisionLog,
    ) -> None:
        self._store = store
        self._view = view
        self._keeper = keeper
        self._feeder = Feeder(store, view, keeper, recorder)
        self._performer = performer
        self._telemetry = telemetry
        self._statuses = statuses
        self._recorder = recorder
        self._metrics = metrics
        self._decisions = decisions
        self._readings = Readings()
        self.wake = asyncio.Event()
        self.stepped_s = time.monotonic()

    async def run(self) -> None:
        changes = self._store.subscribe(FACT_KINDS, wake=self.wake)
        heartbeats = self._store.subscribe(QUIET_KINDS)
        try:
            while True:
                self.wake.clear()
                now_s = time.time()
                self._feeder.feed(changes.take(), now_s)
                self._feeder.feed(heartbeats.take(), now_s)
                plan = self._step(now_s)
                self._perform(plan, now_s)
                await self._wait(plan)
        finally:
            self._store.unsubscribe(changes)
            self._store.unsubscribe(heartbeats)

    def _step(self, now_s: float) -> Plan:
        started_s = time.perf_counter()
        plan = self._keeper.step(now_s)
        self._metrics.decision_s.observe(time.perf_counter() - started_s)
        self.stepped_s = time.monotonic()
        return plan

    def _perform(self, plan: Plan, now_s: float) -> None:
        if plan.resign is not None:
            raise SupersededError(plan.resign)
        self._performer.start(plan)
        with self._telling(Kind.BUDGET):
            self._show(plan, now_s)
        with self._telling("Metrics"):
            self._metrics.show_budgets(plan.budgets)
        with self._telling("DecisionLog"):
            self._decisions.write(plan.budgets, now_s)
        with self._telling("Event"):
            for note in plan.notes:
                self._recorder.note(self._subject(note), reason=note.reason, message=note.message, warning=note.warning)

    @contextmanager
    def _telling(self, what: str) -> Iterator[None]:
        """Words about a decision, which is already under way: what goes wrong with them stops nothing else."""
        try:
            yield
        except Exception:  # numbers from outside stand in these words, and none of them is worth a fleet without control
            self._metrics.count_report_failure(what)
            log.exception("a decision could not be told", extra={"told": what})

    def _show(self, plan: Plan, now_s: float) -> None:
        self._statuses.show(
            plan.budgets,
            generations={name: spec.generation for name, spec in self._keeper.budgets.items()},
            invalid_meters=self._readings.invalid,
            unreadable=self._view.budgets.problems(),
            now_s=now_s,
        )

    async def _wait(self, plan: Plan) -> None:
        await asyncio.sleep(MIN_GAP_S)
        # At most a step, for `wake_s` lies far ahead once the wall clock was set back.
        rest_s = min(STEP_S, plan.wake_s - time.time()) - MIN_GAP_S
        if rest_s > 0:
            await woken(self.wake, within_s=rest_s)

    async def measure(self) -> None:
        """One round of telemetry a second until cancelled. Its results are facts for the next step, and wake it."""
        while True:
            started_s = time.monotonic()
            readings = await self._read()
            now_s = time.time()
            for name, reading in readings.meters.items():
                self._keeper.on_meter(name, reading, now_s)
            for node, agent in readings.agents.items():
                self._keeper.on_agent_power(node, agent.power_w, agent.sampled_s)
            for node, problem in readings.doubts.items():
                self._keeper.on_agent_doubt(node, problem)
            self._readings = readings
            self._metrics.query_failures.inc(readings.failures)
            self.wake.set()
            await asyncio.sleep(max(MIN_GAP_S, STEP_S - (time.monotonic() - started_s)))

    async def _read(self) -> Readings:
        try:
            return await self._telemetry.read(list(self._keeper.budgets.values()))
        except Exception:  # an answer of a shape that nobody foresaw is no answer: meters grow stale, decisions go on
            log.exception("telemetry could not be read")
            return Readings(failures=1)

    def _subject(self, note: Note) -> Subject:
        try:
            obj = self._store.get(Kind(note.kind), note.name)
        except ValueError:
            obj = None
        if obj is not None:
            found = subject_of(obj)
            return Subject(found.api_version, note.kind, found.name, found.namespace, found.uid)
        core = note.kind in (Kind.NODE, Kind.POD)
        return Subject("v1" if core else GROUP_VERSION, note.kind, note.name)
