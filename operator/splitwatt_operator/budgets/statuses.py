"""PowerBudget statuses: conditions and limits at once, moving numbers seldom.

Charge and measured watts move every second, and a write a second per budget would burden the API server for nobody:
numbers that people look at may be `NUMBERS_EVERY_S` old, Prometheus has the rest. What changes a judgement (a condition,
the posture, the limit in force, which a successor reads back, R9) is written at once.

Hundreds of budgets that have something to say at once say it one after another, at a rate that leaves the API server free for
grants: first where nodes stand and a judgement changed, then other judgements, then numbers. What waits is not even worded.

A report that cannot be worded is logged, counted and left out: it is one budget's, and words about a decision must stop
neither the decision nor what is said of the others.

Each write carries the uid: the status of a budget that was deleted and made anew is never written onto its namesake.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any, Final, NamedTuple

from splitwatt_api import convert
from splitwatt_client.errors import OutcomeUnknown, Rejected
from splitwatt_core.budget.keeper import BudgetReport
from splitwatt_core.conditions import Condition, ConditionChange, change_of, condition_from_wire
from splitwatt_core.names import GROUP_VERSION
from splitwatt_shell.supervise import end_all

from splitwatt_operator.cluster.store import JsonObject, Kind, Store
from splitwatt_operator.metrics import Metrics
from splitwatt_operator.pen import NotSent, Pen, Stored

log = logging.getLogger(__name__)

MIN_GAP_S: Final = 1.0
"""Between two writes of one budget's status, whatever happens."""
NUMBERS_EVERY_S: Final = 10.0
IDLE_EVERY_S: Final = 60.0
RETRY_S: Final = 5.0
NOTABLE_SHARE: Final = 0.02
"""Of the limit: a number that moved by less is refreshed at `IDLE_EVERY_S` only."""
MAX_CONCURRENT: Final = 4
STATUSES_PER_S: Final = 25.0
MAX_BURST: Final = 50
NUMBERS: Final = ("chargeWatts", "measuredWatts", "shortWatts")


class _Rank(IntEnum):
    """Whose turn is first."""

    JUDGEMENT = 0
    EMPTY = 1
    NUMBERS = 2


class _Said(NamedTuple):
    """All that a status is worded from: report, generation acted on, why its meter and why its newest spec cannot be used."""

    report: BudgetReport
    generation: int
    invalid_meter: str | None
    unreadable: str | None


@dataclass(slots=True)
class _Shown:
    """What was last written for one budget (by uid), and when (monotonic). `unsure`: a later write may have landed as well.
    `said`: what was to be said when that came to the very status that stands, None where that is not known. Of many budgets
    most say the same every second, or the same with other numbers: those are not even worded before a write is due."""

    uid: str
    status: Mapping[str, Any]
    written_s: float
    not_before_s: float = 0.0
    writing: bool = False
    unsure: bool = False
    said: _Said | None = None


class BudgetStatuses:
    """`show` every step; it starts the writes that are due."""

    def __init__(self, pen: Pen, store: Store, metrics: Metrics) -> None:
        self._pen = pen.lane(MAX_CONCURRENT)
        self._metrics = metrics
        self._store = store
        self._shown: dict[str, _Shown] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._unworded: dict[str, str] = {}
        """Why a budget's status could not be made, by its name: logged when it changes."""
        self._tokens, self._refilled_s = float(MAX_BURST), time.monotonic()

    def show(
        self,
        reports: Mapping[str, BudgetReport],
        *,
        generations: Mapping[str, int],
        invalid_meters: Mapping[str, str],
        unreadable: Mapping[str, str],
        now_s: float,
    ) -> None:
        """`generations`: those acted on. `invalid_meters` and `unreadable`: sentences for budgets whose meter, or whole
        spec, cannot be used."""
        for name in [name for name in self._shown if self._store.get(Kind.BUDGET, name) is None]:
            del self._shown[name]
        due: list[tuple[_Rank, float, str]] = []
        says: dict[str, _Said | str] = {}
        for name in dict.fromkeys((*reports, *unreadable)):
            budget = self._store.get(Kind.BUDGET, name)
            if budget is None:
                continue
            report = reports.get(name)
            said: _Said | str = unreadable.get(name, "")
            if report is not None:
                said = _Said(report, generations.get(name, 0), invalid_meters.get(name), unreadable.get(name))
            shown = self._shown_of(budget)
            if (rank := self._due(shown, said)) is not None:
                due.append((rank, shown.written_s, name))
                says[name] = said
        self._offer_in_turn((name for *_, name in sorted(due)), says, now_s)

    def _due(self, shown: _Shown, said: _Said | str) -> _Rank | None:
        """Whether it may be worth a write now, and how urgent that is."""
        if shown.writing or time.monotonic() < shown.not_before_s:
            return None
        if isinstance(said, str):
            return _Rank.EMPTY
        urgent = _Rank.JUDGEMENT if said.report.nodes else _Rank.EMPTY
        if shown.unsure or shown.said is None:
            return urgent
        waits_s = said_waits_s(shown.said, said)
        if self._age_s(shown) < waits_s:
            return None
        return _Rank.NUMBERS if waits_s else urgent

    def _offer_in_turn(self, names: Iterable[str], says: Mapping[str, _Said | str], now_s: float) -> None:
        now_mono_s = time.monotonic()
        self._tokens = min(float(MAX_BURST), self._tokens + (now_mono_s - self._refilled_s) * STATUSES_PER_S)
        self._refilled_s = now_mono_s
        for name in names:
            if self._tokens < 1.0:
                return
            budget = self._store.get(Kind.BUDGET, name)
            assert budget is not None, "it was there just now"
            try:
                self._tokens -= self._show(name, budget, says[name], now_s)
                self._unworded.pop(name, None)
            except Exception as error:  # whatever a number or a former status holds, the other budgets have theirs to say
                self._metrics.count_report_failure(Kind.BUDGET)
                if self._unworded.get(name) != repr(error):
                    log.exception("status not made, the caps go out all the same", extra={"budget": name})
                self._unworded[name] = repr(error)

    def _show(self, name: str, budget: JsonObject, said: _Said | str, now_s: float) -> bool:
        """Whether a write began. `said` is a sentence where no version of the budget could be read yet."""
        shown = self._shown_of(budget)
        if isinstance(said, str):
            newest = budget["metadata"].get("generation", 0)
            return self._offer(name, shown, unreadable_status(said, shown.status, generation=newest, now_s=now_s))
        status = _status(said, previous=shown.status, now_s=now_s)
        if status == shown.status and not shown.unsure:
            shown.said = said
            return False
        return self._offer(name, shown, status, said)

    async def stop(self) -> None:
        await end_all(set(self._tasks))

    def _shown_of(self, budget: JsonObject) -> _Shown:
        """What stands in the status now: our last write, or what a predecessor left."""
        name, uid = budget["metadata"]["name"], budget["metadata"]["uid"]
        shown = self._shown.get(name)
        if shown is None or shown.uid != uid:
            shown = self._shown[name] = _Shown(uid, budget.get("status", {}), float("-inf"))
        return shown

    @staticmethod
    def _age_s(shown: _Shown) -> float:
        return time.monotonic() - shown.written_s

    def _offer(self, name: str, shown: _Shown, status: Mapping[str, Any], said: _Said | None = None) -> bool:
        if self._age_s(shown) < (MIN_GAP_S if shown.unsure else waits_s(shown.status, status)):
            return False
        shown.writing = True
        self._spawn(self._write(name, shown, status, said))
        return True

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _write(self, name: str, shown: _Shown, status: Mapping[str, Any], said: _Said | None) -> None:
        manifest = {
            "apiVersion": GROUP_VERSION,
            "kind": "PowerBudget",
            "metadata": {"name": name, "uid": shown.uid},
            "status": status,
        }
        try:
            match await self._pen.apply(manifest, subresource="status"):
                case Stored():
                    shown.status, shown.written_s, shown.unsure, shown.said = status, time.monotonic(), False, said
                case NotSent():
                    pass  # the next step offers it again
                case Rejected(not_found=True):
                    shown.not_before_s = time.monotonic() + RETRY_S  # deleted meanwhile, which the watch is about to tell
                case Rejected() | OutcomeUnknown() as error:
                    shown.not_before_s = time.monotonic() + RETRY_S
                    self._metrics.count_report_failure(Kind.BUDGET)
                    if isinstance(error, OutcomeUnknown):
                        shown.unsure, shown.said = True, None
                    log.warning("status not written: %s", error, extra={"budget": name})
        finally:
            shown.writing = False


def _status(said: _Said, *, previous: Mapping[str, Any], now_s: float) -> dict[str, Any]:
    told = replace(said.report, conditions=judged(said.report.conditions, said.invalid_meter, said.unreadable))
    return convert.budget_status(told, generation=said.generation, previous=previous, now_s=now_s)


def said_waits_s(old: _Said, new: _Said) -> float:
    """What `waits_s` will say of the statuses that these come to, or less; for a fraction of the cost of wording them."""
    if old == new:
        return float("inf")
    was, now = old.report, new.report
    numberless = [
        replace(r, charge_w=0.0, measured_w=None, short_w=0.0, conditions=(), reasons=(), would=None) for r in (was, now)
    ]
    if old[1:] != new[1:] or numberless[0] != numberless[1]:
        return 0.0
    if was.conditions != now.conditions:
        if change_of(was.conditions, now.conditions) >= ConditionChange.WORDS:
            return 0.0
        if any(not c.status and c not in was.conditions for c in now.conditions):
            return NUMBERS_EVERY_S
    notable_w = NOTABLE_SHARE * now.limit.in_force_w - 1.0  # whole watts may differ by one more
    short_w = (was.short_w if was.short_w > 1e-6 else None, now.short_w if now.short_w > 1e-6 else None)  # 0 is not told
    for before_w, after_w in ((was.charge_w, now.charge_w), (was.measured_w, now.measured_w), short_w):
        if (before_w is None) != (after_w is None) or abs((after_w or 0.0) - (before_w or 0.0)) > notable_w:
            return NUMBERS_EVERY_S
    return IDLE_EVERY_S


def waits_s(old: Mapping[str, Any], new: Mapping[str, Any]) -> float:
    """How old the written status must be before the new one is worth a write."""
    if old == new:
        return float("inf")
    before, after = _conditions(old), _conditions(new)
    if change_of(before, after) >= ConditionChange.WORDS or _still(old) != _still(new):
        return MIN_GAP_S
    notable_w = NOTABLE_SHARE * float(new.get("limitInForceWatts") or 0)
    for field in NUMBERS:
        was, now = old.get(field), new.get(field)
        if (was is None) != (now is None):
            return NUMBERS_EVERY_S
        if was is not None and now is not None and abs(now - was) > notable_w:
            return NUMBERS_EVERY_S
    # People read the numbers in the words about what does not hold.
    failing = [[c for c in conditions if not c.status] for conditions in (before, after)]
    return NUMBERS_EVERY_S if change_of(*failing) is not ConditionChange.NOTHING else IDLE_EVERY_S


def _still(status: Mapping[str, Any]) -> dict[str, Any]:
    """What does not move all the time."""
    return {field: value for field, value in status.items() if field not in (*NUMBERS, "conditions")}


def _conditions(status: Mapping[str, Any]) -> list[Condition]:
    return [condition_from_wire(row) for row in status.get("conditions", ())]


def judged(conditions: Sequence[Condition], invalid_meter: str | None, unreadable: str | None) -> tuple[Condition, ...]:
    """The keeper's conditions, with what only the shell knows: why a selector or a newer spec cannot be used."""
    found = {condition.type: condition for condition in conditions}
    if invalid_meter is not None:
        found["TelemetryFresh"] = Condition("TelemetryFresh", False, "InvalidSelector", invalid_meter)
    if unreadable is not None:
        found["Ready"] = Condition("Ready", False, "InvalidSpec", unreadable)
    return tuple(found.values())


def unreadable_status(sentence: str, previous: Mapping[str, Any], *, generation: int, now_s: float) -> dict[str, Any]:
    """For a budget that was never readable: what is there already, and Ready=False."""
    ready = Condition("Ready", False, "InvalidSpec", sentence)
    rows = convert.conditions([ready], generation=generation, previous=previous, now_s=now_s)
    return {**previous, "conditions": rows}
