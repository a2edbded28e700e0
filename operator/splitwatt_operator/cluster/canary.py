"""Proof that watches still deliver: our own Lease renewals have to come back through them.

A watch can end silently, and an operator that no longer hears would decide on an old world for ever. Whenever renewals
succeed but none has come back for `SILENCE_S`, the watches are blind and the process must end; while the API server is
away renewals fail too, and nothing is concluded.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

from splitwatt_operator.cluster.store import Change, Key, Kind, Store, Subscription
from splitwatt_operator.metrics import Metrics

SILENCE_S: Final = 30.0
CHECK_PERIOD_S: Final = 1.0


class BlindError(RuntimeError):
    """Renewals no longer come back."""


class Canary:
    """Counts from the reign's beginning; `held` says whether renewals succeed (monotonic clock). Every renewal that comes
    back is counted as the API write that it was."""

    def __init__(
        self,
        store: Store,
        metrics: Metrics,
        *,
        lease: Key,
        identity: str,
        held: Callable[[float], bool],
        silence_s: float = SILENCE_S,
    ) -> None:
        self._store = store
        self._metrics = metrics
        self._lease = lease
        self._identity = identity
        self._held = held
        self._silence_s = silence_s
        self._seen_s = time.monotonic()
        self._held_since_s: float | None = None

    def problem(self) -> str | None:
        """One sentence once the watches have been silent for too long while renewals succeeded."""
        now_s = time.monotonic()
        if self._held_since_s is None:
            return None
        silent_s = now_s - max(self._seen_s, self._held_since_s)
        if silent_s < self._silence_s:
            return None
        return f"no renewal of our own Lease came back through the watch for {silent_s:.0f} s: the watches are blind"

    async def run(self) -> None:
        """Look until cancelled; raises BlindError."""
        subscription = self._store.subscribe([Kind.LEASE])
        try:
            while True:
                await asyncio.sleep(CHECK_PERIOD_S)
                self._look(subscription)
                if (problem := self.problem()) is not None:
                    raise BlindError(problem)
        finally:
            self._store.unsubscribe(subscription)

    def _look(self, subscription: Subscription) -> None:
        now_s = time.monotonic()
        if not self._held(now_s):
            self._held_since_s = None
        elif self._held_since_s is None:
            self._held_since_s = now_s
        if Change(Kind.LEASE, self._lease) in subscription.take():
            lease = self._store.get(Kind.LEASE, self._lease.name, self._lease.namespace)
            if lease is not None and lease["spec"].get("holderIdentity") == self._identity:
                self._seen_s = now_s
                self._metrics.count_write("Lease")
