"""A loop that is told to end ends, also when what it waits for comes in the very same turn of the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from splitwatt_operator.cluster.resync import Resync
from splitwatt_operator.cluster.store import Key, Store
from splitwatt_operator.serving.admission import Admitter
from support.endings import Loop, ends_in_the_turn_of_its_wake
from support.unconnected import Unconnected

PATIENCE_S = 2.0
"""Less than the resync's pause, which is where one that missed its cancellation would be."""
SETTLED_S = 0.3
"""By then each loop has begun to wait."""


def resync() -> Loop:
    relisted = asyncio.Event()
    return Resync(Store(), None, own_lease=Key("s", "operator"), relisted=relisted).run(), relisted.set  # type: ignore[arg-type]


def budgets() -> Loop:
    loop = Unconnected().budget_loop()
    return loop.run(), loop.wake.set


def budgets_at_rest() -> Loop:
    parts = Unconnected(held=False)
    loop = parts.budget_loop()

    def give_lease() -> None:
        parts.held = True

    return loop.run(), give_lease


def admission() -> Loop:
    parts = Unconnected()
    admitter = Admitter(
        store=parts.store, view=parts.view, keeper=parts.keeper, reader=parts.connection, pen=parts.pen,
        recorder=parts.recorder, changed=lambda name: None,
    )  # fmt: skip

    def wake() -> None:
        for subscription in parts.store._subscriptions:
            subscription.wake.set()

    return admitter.run(), wake


@pytest.mark.parametrize("make", [resync, budgets, budgets_at_rest, admission], ids=lambda make: make.__name__)
async def test_an_end_that_meets_its_wake_is_not_missed(make: Callable[[], Loop]) -> None:
    await ends_in_the_turn_of_its_wake(make(), settled_s=SETTLED_S, patience_s=PATIENCE_S)
