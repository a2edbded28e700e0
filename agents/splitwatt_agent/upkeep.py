"""What is kept in order beside the caps: persistence mode and clock locks. Each call off the loop.

Persistence mode, without which the driver forgets limits with its last client (I6), is turned on and proven, again and again,
for others may turn it off; clock locks are repeated until the driver took them. At most one call of either kind per GPU is out
at a time.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Final

from splitwatt_core.protocol.enforcer import LockClock

from splitwatt_agent.nvml import NvmlError, NvmlPort
from splitwatt_agent.threads import daemon_call

log = logging.getLogger(__name__)

PERSISTENCE_EVERY_S: Final = 30.0
PERSISTENCE_HUNG_S: Final = 5.0
"""A call about persistence mode that has not returned for this long proves nothing, whatever was known before."""
CLOCK_RETRY_S: Final = 5.0


class Upkeep:
    """Persistence mode and clock locks of one node's GPUs. `count` is told of every failed call."""

    def __init__(self, port: NvmlPort, *, count: Callable[[NvmlError], None]) -> None:
        self._port = port
        self._count = count
        self._clock_wanted: dict[str, tuple[int | None, float]] = {}
        self._clock_busy: set[str] = set()
        self._persistence_due: dict[str, float] = {}
        self._persistence_busy: dict[str, float] = {}
        """Since when a call is out."""
        self.persistence: dict[str, str] = {}
        """Per GPU: "" when persistence mode is on, else why that is not known."""

    def begin(self, uuids: Iterable[str]) -> None:
        """A new driver load with these GPUs: nothing is known of their persistence mode."""
        self.persistence = {}
        self._persistence_due = dict.fromkeys(uuids, 0.0)
        self._clock_wanted = {uuid: wish for uuid, wish in self._clock_wanted.items() if uuid in self._persistence_due}

    def want_clock(self, lock: LockClock) -> None:
        self._clock_wanted[lock.uuid] = (lock.max_mhz, 0.0)

    def step(self, now_s: float) -> None:
        """Start the calls that are due."""
        for uuid, due_s in list(self._persistence_due.items()):
            if (since_s := self._persistence_busy.get(uuid)) is not None:
                if now_s - since_s >= PERSISTENCE_HUNG_S:
                    self.persistence[uuid] = "the driver does not answer whether persistence mode is on"
            elif now_s >= due_s:
                self._persistence_busy[uuid] = now_s
                future = daemon_call(f"pm-{uuid[-8:]}", partial(_turn_persistence_on, self._port, uuid))
                future.add_done_callback(partial(self._persistence_returned, uuid))
        for uuid, (max_mhz, due_s) in list(self._clock_wanted.items()):
            if now_s >= due_s and uuid not in self._clock_busy:
                self._clock_busy.add(uuid)
                lock = partial(self._port.lock_sm_clock_mhz, uuid, max_mhz)
                daemon_call(f"clk-{uuid[-8:]}", lock).add_done_callback(partial(self._clock_returned, uuid, max_mhz))

    def _persistence_returned(self, uuid: str, future: asyncio.Future[str]) -> None:
        self._persistence_busy.pop(uuid, None)
        error = future.exception()
        if isinstance(error, NvmlError):
            self._count(error)
        self.persistence[uuid] = future.result() if error is None else str(error)
        if uuid in self._persistence_due:
            self._persistence_due[uuid] = time.monotonic() + PERSISTENCE_EVERY_S

    def _clock_returned(self, uuid: str, max_mhz: int | None, future: asyncio.Future[None]) -> None:
        self._clock_busy.discard(uuid)
        error = future.exception()
        if isinstance(error, NvmlError):
            self._count(error)
        elif error is not None:
            log.error("unexpected failure of an NVML call", exc_info=error)
        wanted = self._clock_wanted.get(uuid)
        if wanted is None or wanted[0] != max_mhz:
            return  # another lock is wanted by now; the next step asks for it
        if error is None:
            del self._clock_wanted[uuid]
        else:
            self._clock_wanted[uuid] = (max_mhz, time.monotonic() + CLOCK_RETRY_S)


def _turn_persistence_on(port: NvmlPort, uuid: str) -> str:
    """ "" once the driver says that persistence mode is on, else why not. Raises NvmlError."""
    if not port.persistence_mode(uuid):
        port.enable_persistence_mode(uuid)
        if not port.persistence_mode(uuid):
            return "the driver accepted persistence mode but does not report it on"
    return ""
