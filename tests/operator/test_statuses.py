"""When a budget's status is worth a write, and what the shell adds to the keeper's conditions."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from splitwatt_api import convert
from splitwatt_client.errors import OutcomeUnknown
from splitwatt_core.budget.facts import BudgetReport
from splitwatt_core.budget.tree import new_limit
from splitwatt_core.columns import Posture
from splitwatt_core.conditions import Condition
from splitwatt_operator.budgets import statuses as statuses_of
from splitwatt_operator.budgets.statuses import (
    IDLE_EVERY_S,
    MIN_GAP_S,
    NUMBERS_EVERY_S,
    BudgetStatuses,
    judged,
    unreadable_status,
    waits_s,
)
from splitwatt_operator.cluster.store import Kind, Store
from splitwatt_operator.metrics import Metrics
from splitwatt_operator.pen import Pen


def status(**changed: Any) -> dict[str, Any]:
    base = {
        "limitInForceWatts": 10000,
        "chargeWatts": 9000,
        "measuredWatts": 8000,
        "posture": "Normal",
        "conditions": [
            {"type": "Ready", "status": "True", "reason": "Holding", "message": "limit 10000 W is kept"},
            {"type": "WithinBudget", "status": "True", "reason": "Within", "message": ""},
        ],
    }
    return {**base, **changed}


def condition(kind: str, value: str, reason: str, message: str) -> list[dict[str, Any]]:
    return [{"type": kind, "status": value, "reason": reason, "message": message}]


def test_an_equal_status_is_never_written_again() -> None:
    assert waits_s(status(), status()) == float("inf")


def test_a_judgement_is_written_at_once() -> None:
    for changed in (
        {"posture": "Brake"},
        {"limitInForceWatts": 9999},
        {"pendingLimits": [{"watts": 1, "inForceAt": "x"}]},
        {"conditions": condition("Ready", "False", "Adopting", "")},
    ):
        assert waits_s(status(), status(**changed)) == MIN_GAP_S
    named = status(conditions=condition("Ready", "False", "InvalidTree", "the parent is missing"))
    renamed = status(conditions=condition("Ready", "False", "InvalidTree", "a cycle through a and b"))
    assert waits_s(named, renamed) == MIN_GAP_S


def test_moving_numbers_wait() -> None:
    assert waits_s(status(), status(measuredWatts=8500)) == NUMBERS_EVERY_S
    assert waits_s(status(), status(measuredWatts=8010)) == IDLE_EVERY_S
    lost = status()
    del lost["measuredWatts"]
    assert waits_s(status(), lost) == NUMBERS_EVERY_S
    over = [status(conditions=condition("WithinBudget", "False", "Over", f"measured {watts} W")) for watts in (11, 12)]
    assert waits_s(*over) == NUMBERS_EVERY_S


def test_the_shell_adds_what_only_it_knows() -> None:
    known = (Condition("Ready", True, "Holding", ""), Condition("TelemetryFresh", False, "MeterStale", "x"))
    assert judged(known, None, None) == known
    rows = {row.type: row for row in judged(known, "the selector sums", "limitWatts: too new")}
    assert rows["TelemetryFresh"] == Condition("TelemetryFresh", False, "InvalidSelector", "the selector sums")
    assert rows["Ready"] == Condition("Ready", False, "InvalidSpec", "limitWatts: too new")


def test_an_unreadable_budget_keeps_what_its_status_said() -> None:
    before = status(conditions=[])
    after = unreadable_status("limitWatts: no", before, generation=3, now_s=0.0)
    assert after["limitInForceWatts"] == 10000
    [row] = after["conditions"]
    assert (row["type"], row["status"], row["reason"], row["observedGeneration"]) == ("Ready", "False", "InvalidSpec", 3)
    again = unreadable_status("limitWatts: no", after, generation=3, now_s=99.0)
    assert again["conditions"][0]["lastTransitionTime"] == row["lastTransitionTime"]


# ------------------------------------------------------------------------------------------------------- many budgets


class Storing:
    """Where the pen writes to: takes every status. While it is `silent`, the writer does not hear of it."""

    def __init__(self) -> None:
        self.taken: list[Mapping[str, Any]] = []
        self.silent = False

    async def apply(self, manifest: Mapping[str, Any], **_: Any) -> Mapping[str, Any]:
        self.taken.append(manifest["status"])
        if self.silent:
            raise OutcomeUnknown("the answer broke off")
        return manifest


async def test_what_says_nothing_new_is_not_even_worded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five hundred budgets without nodes say the same every second."""
    worded = 0
    wording = convert.budget_status

    def counted(*args: Any, **options: Any) -> dict[str, Any]:
        nonlocal worded
        worded += 1
        return wording(*args, **options)

    monkeypatch.setattr(convert, "budget_status", counted)
    store, api = Store(), Storing()
    store.apply(Kind.BUDGET, {"metadata": {"name": "a", "uid": "u", "resourceVersion": "1"}})
    statuses = BudgetStatuses(Pen(api, Metrics(), held=lambda now_s: True), store, Metrics())  # type: ignore[arg-type]
    report = BudgetReport("a", new_limit(900, 1.0), 0.0, None, Posture.ADOPTING, 0, 0, 0.0, None, ())

    async def show(report: BudgetReport, now_s: float, generation: int = 1) -> None:
        statuses.show({"a": report}, generations={"a": generation}, invalid_meters={}, unreadable={}, now_s=now_s)
        await asyncio.sleep(0.05)

    await show(report, 1.0)
    assert len(api.taken) == 1
    for second in range(20):
        await show(report, 2.0 + second)
    assert worded == 1
    for second in range(20):
        await show(replace(report, measured_w=100.0 + second / 10, charge_w=100.0), 22.0 + second)
    assert worded == 1, "numbers that move wait for their turn"
    monkeypatch.setattr(statuses_of, "MIN_GAP_S", 0.0)
    await show(replace(report, posture=Posture.NORMAL), 30.0)
    await show(replace(report, posture=Posture.NORMAL), 31.0, generation=2)
    assert [(t["posture"], t["observedGeneration"]) for t in api.taken] == [("Adopting", 1), ("Normal", 1), ("Normal", 2)]
    await show(report, 32.0)
    assert api.taken[-1]["posture"] == "Adopting", "what was said before it was written over is news again"


async def test_of_hundreds_those_with_nodes_are_told_first_and_none_floods_the_api_server(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = [f"empty-{k}" for k in range(300)]
    worded: list[str] = []
    wording = convert.budget_status

    def counted(report: BudgetReport, **options: Any) -> dict[str, Any]:
        worded.append(report.name)
        return wording(report, **options)

    monkeypatch.setattr(convert, "budget_status", counted)
    store, api = Store(), Storing()
    for name in [*names, "rack"]:
        store.apply(Kind.BUDGET, {"metadata": {"name": name, "uid": name, "resourceVersion": "1"}})
    statuses = BudgetStatuses(Pen(api, Metrics(), held=lambda now_s: True), store, Metrics())  # type: ignore[arg-type]

    def reports(posture: Posture) -> dict[str, BudgetReport]:
        plain = BudgetReport("", new_limit(900, 1.0), 0.0, None, posture, 0, 0, 0.0, None, ())
        return {**{n: replace(plain, name=n) for n in names}, "rack": replace(plain, name="rack", nodes=4)}

    async def show(posture: Posture) -> None:
        statuses.show(reports(posture), generations={}, invalid_meters={}, unreadable={}, now_s=1.0)
        await asyncio.sleep(0.01)

    begun_s = time.monotonic()
    for _ in range(20):
        await show(Posture.ADOPTING)
    most = statuses_of.MAX_BURST + statuses_of.STATUSES_PER_S * (time.monotonic() - begun_s)
    assert worded[0] == "rack"
    assert statuses_of.MAX_BURST <= len(api.taken) <= most + 1
    assert len(worded) == len(api.taken), "who must wait is not even worded"
    monkeypatch.setattr(statuses_of, "MIN_GAP_S", 0.0)
    worded.clear()
    await asyncio.sleep(0.1)
    await show(Posture.NORMAL)
    assert worded[0] == "rack", "a judgement about nodes does not wait behind all that was never told"
    monkeypatch.setattr(statuses_of, "STATUSES_PER_S", 1e6)
    for _ in range(10):
        await show(Posture.NORMAL)
    assert set(worded) == {*names, "rack"}, "and everybody's turn comes"
    await statuses.stop()


@settings(deadline=None)
@given(data=st.data())
def test_no_write_is_missed_by_what_is_not_worded(data: st.DataObject) -> None:
    """Whatever moved: when the worded statuses would be due, the unworded ones are due as well."""
    watts = st.one_of(st.none(), st.floats(0.0, 2e4))
    texts = st.sampled_from(["", "limit 900 W is kept", "limit 901 W is kept", "a cycle"])

    def drawn() -> BudgetReport:
        rows = tuple(
            Condition(kind, data.draw(st.booleans()), data.draw(st.sampled_from(["A", "B"])), data.draw(texts))
            for kind in ("Ready", "WithinBudget")
        )
        return BudgetReport(
            "a", new_limit(10_000, 1.0), data.draw(st.floats(0.0, 2e4)), data.draw(watts),
            data.draw(st.sampled_from([Posture.NORMAL, Posture.TRIM])), 1, 8, data.draw(st.floats(0.0, 300.0)), None, rows,
        )  # fmt: skip

    first = drawn()
    fields = ("charge_w", "measured_w", "posture", "short_w", "conditions")
    changed = data.draw(st.sets(st.sampled_from(fields)))
    other = drawn()
    second = replace(first, **{field: getattr(other, field) for field in changed})
    old, new = (statuses_of._Said(report, 1, None, None) for report in (first, second))
    stands = statuses_of._status(old, previous={}, now_s=1.0)
    worded = statuses_of._status(new, previous=stands, now_s=2.0)
    assert statuses_of.said_waits_s(old, new) <= waits_s(stands, worded)


async def test_a_write_that_may_have_landed_is_written_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """The budget is again as it was before: the status that stands may be the one whose answer was lost."""
    monkeypatch.setattr(statuses_of, "MIN_GAP_S", 0.0)
    monkeypatch.setattr(statuses_of, "RETRY_S", 0.0)
    store, api = Store(), Storing()
    store.apply(Kind.BUDGET, {"metadata": {"name": "a", "uid": "u", "resourceVersion": "1"}})
    statuses = BudgetStatuses(Pen(api, Metrics(), held=lambda now_s: True), store, Metrics())  # type: ignore[arg-type]
    before = BudgetReport("a", new_limit(900, 1.0), 0.0, None, Posture.NORMAL, 0, 0, 0.0, None, ())

    async def show(limit_w: int, now_s: float) -> None:
        report = replace(before, limit=new_limit(limit_w, 1.0))
        statuses.show({"a": report}, generations={"a": 1}, invalid_meters={}, unreadable={}, now_s=now_s)
        await asyncio.sleep(0.05)

    await show(900, 1.0)
    await show(900, 2.0)
    api.silent = True
    await show(800, 3.0)
    api.silent = False
    for second in (4.0, 5.0, 6.0):
        await show(900, second)
    assert [status["limitInForceWatts"] for status in api.taken] == [900, 800, 900]
