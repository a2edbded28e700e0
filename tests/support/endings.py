"""Loops that are told to end in the very turn of the event loop in which what they wait for comes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

Loop = tuple[Coroutine[Any, Any, Any], Callable[[], object]]
"""What runs, and what wakes it."""


async def ends_in_the_turn_of_its_wake(loop: Loop, *, settled_s: float, patience_s: float) -> None:
    """`settled_s`: by then it has begun to wait. `patience_s`: less than the pause in which a loop would be that missed it."""
    work, wake = loop
    running = asyncio.create_task(work)
    await asyncio.sleep(settled_s)
    wake()
    await asyncio.sleep(0)
    running.cancel()
    done, _ = await asyncio.wait({running}, timeout=patience_s)
    assert done == {running}
    with pytest.raises(asyncio.CancelledError):
        await running
