"""Waiting with a bound: for an event of the loop, or for something that can only be asked again and again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final, TypeVar

T = TypeVar("T")

PAUSE_S: Final = 0.05


class NotInTimeError(Exception):
    """What was waited for did not come; the message names it, and what was seen last."""


async def woken(event: asyncio.Event, *, within_s: float | None) -> bool:
    """Whether the event came within `within_s`; None: wait for as long as it takes. An event that is set already counts,
    also with no time left. It is not cleared: whoever waits knows what it stood for."""
    try:
        async with asyncio.timeout(None if within_s is None else max(within_s, 0.0)):
            await event.wait()
    except TimeoutError:
        return False
    return True


def poll_until(what: str, look: Callable[[], T | None], *, within_s: float, pause_s: float = PAUSE_S) -> T:
    """The first true answer of `look`, which is asked once at least. Raises NotInTimeError; what `look` raises passes."""
    deadline_s = time.monotonic() + within_s
    while not (answer := look()):
        if time.monotonic() > deadline_s:
            raise NotInTimeError(f"not within {within_s:g} s: {what}; last seen: {answer!r}")
        time.sleep(pause_s)
    return answer
