"""The budget loop: facts in, one decision a second (and at once after a change), the plan out.

Telemetry runs beside it, so that a slow Prometheus never delays a decision; the loop itself awaits nothing but its own
next turn. A change wakes it, but never more often than every `MIN_GAP_S`, and never before it has rested as long as it worked:
what was decided goes out in this rest, and what happened meanwhile comes in. Words about a decision come after its grants.

While the Lease is not surely held it rests: what happens is noted, nothing is decided (a grace must not begin that nobody
could act on, R9), and what the keeper remembers stays. It goes on once the Lease is held again, from complete lists.

Protected: the store was complete before the first step (R3), and a plan that says "resign" sends nothing more (R2).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Final

from splitwatt_client.errors import ApiError, Rejected
from splitwatt_core.budget.facts import NodeBrake
from splitwatt_core.budget.keeper import MIN_GAP_S, STEP_S, Keeper, Note, Plan
from splitwatt_core.names import GROUP_VERSION
from splitwatt_shell.waiting import woken

from splitwatt_operator.budgets.decision_log import DecisionLog
from splitwatt_operator.budgets.feeder import FACT_KINDS, QUIET_KINDS, Feeder
from splitwatt_operator.budgets.performer import Performer
from splitwatt_operator.budgets.statuses import BudgetStatuses
from splitwatt_operator.cluster.owners import OwnerLabels
from splitwatt_operator.cluster.read import subject_of
from splitwatt_operator.cluster.store import Kind, Store
from splitwatt_operator.cluster.view import View
from splitwatt_operator.metrics import Metrics
from splitwatt_operator.recorder import Recorder, Subject
from splitwatt_operator.telemetry.meters import Readings, Telemetry

log = logging.getLogger(__name__)


HELD_POLL_S: Final = 0.1
MAX_REST_S: Final = 1.0
"""After a decision, however long it took."""
MAX_STEP_AGE_S: Final = 10.0
"""A loop that holds the Lease and has not decided for this long is stuck."""
MAX_LISTING_S: Final = 60.0
"""And one that has waited this long for the lists it begins with."""


class SupersededError(RuntimeError):
    """A higher term was seen: this process must stop at once."""


def grants_say_it(brakes: Iterable[NodeBrake]) -> None:
    """Where agents' own connections are not used: the grants of the same step go the same way down."""


class BudgetLoop:
    """`run` and `measure` side by side until cancelled; `run` raises SupersededError. `held` says whether the Lease is surely
    ours at a monotonic time, `complete` returns once the store holds what the API server holds, `reigning` is told when this
    loop rests and goes on. Whoever runs it awaits `begin` first."""

    def __init__(
        self,
        *,
        store: Store,
        view: View,
        owners: OwnerLabels,
        keeper: Keeper,
        performer: Performer,
        telemetry: Telemetry,
        statuses: BudgetStatuses,
        recorder: Recorder,
        metrics: Metrics,
        decisions: DecisionLog,
        held: Callable[[float], bool],
        complete: Callable[[], Awaitable[None]],
        reigning: Callable[[bool], None],
        brake: Callable[[Iterable[NodeBrake]], None] = grants_say_it,
    ) -> None:
        self._store = store
        self._view = view
        self._owners = owners
        self._keeper = keeper
        self._feeder = Feeder(store, view, keeper, recorder)
        self._performer = performer
        self._telemetry = telemetry
        self._statuses = statuses
        self._recorder = recorder
        self._metrics = metrics
        self._decisions = decisions
        self._readings = Readings()
        self._held = held
        self._brake = brake
        self._complete = complete
        self._reigning = reigning
        self._listing = False
        self._alive_s = time.monotonic()
        """When it last decided, or began to wait for lists or for the Lease. Monotonic."""
        self.wake = asyncio.Event()

    async def run(self) -> None:
        changes = self._store.subscribe(FACT_KINDS, wake=self.wake)
        heartbeats = self._store.subscribe(QUIET_KINDS)
        self._owners.wake = self.wake.set
        self._owners.tell_all()
        try:
            while True:
                if not self._held(time.monotonic()):
                    await self._rest()
                self.wake.clear()
                now_s, started_s = time.time(), time.monotonic()
                self._feeder.feed_owners(self._owners.take())
                self._feeder.feed(changes.take(), now_s)
                self._feeder.feed(heartbeats.take(), now_s)
                plan = self._step(now_s)
                self._perform(plan)
                decided_s = time.monotonic()
                await asyncio.sleep(MIN_GAP_S)
                told_s = time.monotonic()
                self._tell(plan, now_s)
                await self._wait(plan, worked_s=decided_s - started_s + time.monotonic() - told_s)
        finally:
            self._store.unsubscribe(changes)
            self._store.unsubscribe(heartbeats)

    async def begin(self) -> None:
        """From complete lists: what happened while nobody decided counts as well."""
        self._listing, self._alive_s = True, time.monotonic()
        await self._complete()
        await self._see_contract()
        self._listing, self._alive_s = False, time.monotonic()

    async def _rest(self) -> None:
        """Until the Lease is held and the store complete."""
        self._reigning(False)
        while not self._held(time.monotonic()):
            while not self._held(time.monotonic()):
                await asyncio.sleep(HELD_POLL_S)
                self._alive_s = time.monotonic()
            await self.begin()
        self._reigning(True)

    def problem(self) -> str | None:
        """One sentence when it should decide and does not."""
        age_s = time.monotonic() - self._alive_s
        if not self._held(time.monotonic()):
            return None
        if self._listing:
            return f"no complete lists of the cluster for {age_s:.0f} s: nothing is decided" if age_s > MAX_LISTING_S else None
        return f"no budget decision for {age_s:.0f} s" if age_s > MAX_STEP_AGE_S else None

    async def _see_contract(self) -> None:
        """Before the first decision: what went with its definition must not look released. Without the right to read it the
        fleet is ruled all the same, as if it had never been made anew."""
        while True:
            try:
                return await self._performer.see_contract()
            except ApiError as error:
                log.error("cannot read the definition of NodePower, grant get to the operator's service account: %s", error)
                if isinstance(error, Rejected):
                    return None
            await asyncio.sleep(STEP_S)

    def _step(self, now_s: float) -> Plan:
        started_s = time.perf_counter()
        plan = self._keeper.step(now_s)
        self._metrics.decision_s.observe(time.perf_counter() - started_s)
        self._alive_s = time.monotonic()
        return plan

    def _perform(self, plan: Plan) -> None:
        if plan.resign is not None:
            raise SupersededError(plan.resign)
        self._brake(plan.brakes)
        self._performer.start(plan)

    def _tell(self, plan: Plan, now_s: float) -> None:
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

    async def _wait(self, plan: Plan, *, worked_s: float) -> None:
        await asyncio.sleep(min(worked_s, MAX_REST_S))
        # At most a step, for `wake_s` lies far ahead once the wall clock was set back.
        rest_s = min(STEP_S, plan.wake_s - time.time())
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
                self._keeper.on_agent_power(node, agent.power_w, agent.sampled_s, gpus=agent.gpus)
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
