"""A resync that is told to end ends, also when a stream began anew in the very same turn of the loop."""

from __future__ import annotations

import asyncio

import pytest
from splitwatt_operator.cluster.resync import Resync
from splitwatt_operator.cluster.store import Key, Store

PATIENCE_S = 2.0
"""Less than the resync's pause, which is where one that missed its cancellation would be."""


async def test_an_end_that_meets_a_relist_is_not_missed() -> None:
    relisted = asyncio.Event()
    resync = Resync(Store(), None, own_lease=Key("s", "operator"), relisted=relisted)  # type: ignore[arg-type]
    running = asyncio.create_task(resync.run())
    await asyncio.sleep(0.01)
    relisted.set()
    await asyncio.sleep(0)
    running.cancel()
    done, _ = await asyncio.wait({running}, timeout=PATIENCE_S)
    assert done == {running}
    with pytest.raises(asyncio.CancelledError):
        await running
