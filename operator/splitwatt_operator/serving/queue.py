"""A work queue of keys: each key once, one worker at a time per key, and a growing pause after each failure.

The rules of Kubernetes controllers: a key that changes while it is worked on is worked on again afterwards; nothing is
lost and nothing is done twice at once. Each key stands in it once, so it is no longer than the store that the keys are of.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Hashable
from typing import Final, Generic, TypeVar

K = TypeVar("K", bound=Hashable)

FIRST_PAUSE_S: Final = 0.5
LONGEST_PAUSE_S: Final = 60.0


class WorkQueue(Generic[K]):
    """Used from one event loop."""

    def __init__(self) -> None:
        self._ready: OrderedDict[K, None] = OrderedDict()
        self._working: set[K] = set()
        self._again: set[K] = set()
        self._failures: dict[K, int] = {}
        self._timers: dict[K, asyncio.TimerHandle] = {}
        self._filled = asyncio.Event()

    def add(self, key: K) -> None:
        """Have `key` worked on as soon as possible."""
        self._cancel_timer(key)
        if key in self._working:
            self._again.add(key)
            return
        self._ready[key] = None
        self._filled.set()

    def add_after(self, key: K, delay_s: float) -> None:
        """Have `key` worked on after a pause, or earlier when it is added. An earlier timer stays."""
        loop = asyncio.get_running_loop()
        known = self._timers.get(key)
        if known is not None and known.when() <= loop.time() + delay_s:
            return
        self._cancel_timer(key)
        self._timers[key] = loop.call_later(delay_s, self._due, key)

    async def get(self) -> K:
        """The key that has waited longest. Whoever gets it calls `done` or `failed`."""
        while not self._ready:
            self._filled.clear()
            await self._filled.wait()
        key, _ = self._ready.popitem(last=False)
        self._working.add(key)
        return key

    def done(self, key: K) -> None:
        """Worked on with success: its pauses start anew."""
        self._failures.pop(key, None)
        self._release(key)

    def failed(self, key: K) -> float:
        """Worked on without success: it comes back after the returned pause, doubled with each failure in a row."""
        count = self._failures.get(key, 0)
        self._failures[key] = count + 1
        pause_s = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0**count)
        if not self._release(key):
            self.add_after(key, pause_s)
        return pause_s

    def forget(self, key: K) -> None:
        """The object is gone for good."""
        self._failures.pop(key, None)
        self._cancel_timer(key)

    def close(self) -> None:
        for key in list(self._timers):
            self._cancel_timer(key)

    def _release(self, key: K) -> bool:
        self._working.discard(key)
        if key in self._again:
            self._again.discard(key)
            self.add(key)
            return True
        return False

    def _due(self, key: K) -> None:
        del self._timers[key]
        self.add(key)

    def _cancel_timer(self, key: K) -> None:
        timer = self._timers.pop(key, None)
        if timer is not None:
            timer.cancel()
