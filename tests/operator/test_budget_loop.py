"""The budget loop around a Lease that is in doubt: it rests, forgets nothing, and goes on from complete lists."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import pytest
from splitwatt_core.budget.facts import Plan
from splitwatt_operator.budgets import loop as loops
from splitwatt_operator.cluster.store import Kind
from support.unconnected import Unconnected

PATIENCE_S = 10.0
A_WHILE_S = 0.3
WORK_S = 0.2


def budget(limit_w: int, version: int) -> dict[str, object]:
    meta = {"name": "a", "uid": "u", "resourceVersion": str(version), "generation": version}
    spec = {"limitWatts": limit_w, "mode": "Strict", "nodeSelector": {"matchLabels": {"rack": "a"}}, "unmanagedWattsPerNode": 0}
    return {"apiVersion": "splitwatt.io/v1alpha1", "kind": "PowerBudget", "metadata": meta, "spec": spec}


async def eventually(look: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not look():  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.01)


def known_w(parts: Unconnected) -> int | None:
    found = parts.keeper.budgets.get("a")
    return None if found is None else found.limit_w


async def test_without_the_lease_nothing_is_decided_and_what_happened_counts_afterwards() -> None:
    parts = Unconnected()
    loop = parts.budget_loop()
    parts.store.apply(Kind.BUDGET, budget(9_000, 1))
    await loop.begin()
    running = asyncio.create_task(loop.run())
    await eventually(lambda: known_w(parts) == 9_000)
    book = parts.keeper.books["a"]

    parts.held = False
    await eventually(lambda: parts.told == [False])
    parts.complete.clear()
    parts.store.apply(Kind.BUDGET, budget(5_000, 2))
    await asyncio.sleep(A_WHILE_S)
    assert known_w(parts) == 9_000, "a grace must not begin that nobody could act on"
    parts.held = True
    await eventually(lambda: parts.listed == 2)
    await asyncio.sleep(A_WHILE_S)
    assert known_w(parts) == 9_000, "not before the lists are complete"
    parts.complete.set()
    await eventually(lambda: known_w(parts) == 5_000)
    assert parts.told == [False, True]
    assert parts.keeper.books["a"] is book, "what was remembered is remembered"

    parts.held = False
    await eventually(lambda: len(parts.told) == 3)
    parts.store.remove(Kind.BUDGET, parts.store.keys(Kind.BUDGET)[0], version=3)
    parts.held = True
    await eventually(lambda: known_w(parts) is None)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_a_loop_that_should_decide_and_does_not_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loops, "MAX_STEP_AGE_S", A_WHILE_S)
    monkeypatch.setattr(loops, "MAX_LISTING_S", 2 * A_WHILE_S)
    parts = Unconnected()
    loop = parts.budget_loop()
    parts.complete.clear()
    beginning = asyncio.create_task(loop.begin())
    await asyncio.sleep(1.5 * A_WHILE_S)
    assert loop.problem() is None, "lists may take a while"
    await eventually(lambda: "no complete lists of the cluster" in (loop.problem() or ""))
    parts.complete.set()
    await beginning
    assert loop.problem() is None
    await eventually(lambda: "no budget decision for" in (loop.problem() or ""))
    parts.held = False
    assert loop.problem() is None, "without the Lease there is nothing to decide"


async def test_it_rests_as_long_as_it_worked_and_speaks_after_the_grants_are_on_their_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Woken without end, with decisions that take long: whoever sends and hears must have the other half of the time."""
    parts = Unconnected()
    loop, steps, events = parts.budget_loop(), 0, list[str]()
    deciding = parts.keeper.step

    def slowly(now_s: float) -> Plan:
        nonlocal steps
        steps += 1
        events.append("decided")
        time.sleep(WORK_S)
        return deciding(now_s)

    async def grant() -> None:
        events.append("sent")

    def start(plan: Plan) -> None:
        spawned.append(asyncio.create_task(grant()))

    spawned: list[asyncio.Task[None]] = []
    monkeypatch.setattr(parts.keeper, "step", slowly)
    monkeypatch.setattr(loop._performer, "start", start)
    monkeypatch.setattr(loop._statuses, "show", lambda *_, **__: events.append("told"))
    await loop.begin()
    running = asyncio.create_task(loop.run())
    begun_s = time.monotonic()
    while time.monotonic() - begun_s < 8 * WORK_S:
        loop.wake.set()
        await asyncio.sleep(0.001)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert 2 <= steps <= 5
    assert events[:3] == ["decided", "sent", "told"]
