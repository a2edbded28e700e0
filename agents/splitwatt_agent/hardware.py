"""The GPUs as the control loop sees them: all of them read in one sweep, limits set by calls that may hang.

Invariant (R13): a readback that may have begun before a setter of its GPU returned is taken again, and where setters return
faster than GPUs can be read, nothing is concluded from it this time.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

from splitwatt_core.protocol.contract import Health
from splitwatt_core.protocol.enforcer import SetCap

from splitwatt_agent.nvml import NvmlError, NvmlPort
from splitwatt_agent.sampling import GpuReading, read_gpu
from splitwatt_agent.session import Session
from splitwatt_agent.threads import Sweeper, daemon_call

log = logging.getLogger(__name__)

MAX_REREADS: Final = 3
FACTS_EVERY_S: Final = 1.0


class Hardware:
    """Lives as long as the process, over sessions. `on_return(uuid, health)` is called on the loop when a setter returned;
    `health` None: it reported success, which proves nothing yet."""

    def __init__(self, port: NvmlPort, *, on_return: Callable[[str, Health | None], None]) -> None:
        self._port = port
        self._on_return = on_return
        self._sweeper: Sweeper[GpuReading] = Sweeper()
        self._outstanding: Counter[str] = Counter()
        self._returned: set[str] = set()
        self._claims_mw: dict[str, int] = {}
        """Milliwatts that a setter says it applied, not yet compared with a readback."""
        self._facts_due_s = 0.0
        self.errors: Counter[tuple[str, str]] = Counter()
        """Failed calls by call and code."""
        self.mismatches: Counter[str] = Counter()
        """Setter calls that reported success and left a higher limit."""

    @property
    def stuck(self) -> frozenset[str]:
        """GPUs whose read has not returned."""
        return self._sweeper.stuck

    @property
    def facts_due(self) -> bool:
        """Whether the next sweep asks for what changes slowly."""
        return time.monotonic() >= self._facts_due_s

    def adopt(self, session: Session) -> None:
        """A new driver load. Setter calls of the one before that have not returned may still set limits in it."""
        self._claims_mw.clear()
        for uuid, count in self._outstanding.items():
            for _ in range(count if uuid in session.gpus else 0):
                session.enforcer.setter_started(uuid, time.monotonic())

    async def read(self, session: Session) -> dict[str, GpuReading]:
        """Fresh readings of all GPUs that answer."""
        facts = self.facts_due
        if facts:
            self._facts_due_s = time.monotonic() + FACTS_EVERY_S
        wanted = tuple(uuid for uuid in session.gpus if uuid not in session.lost)
        read = partial(read_gpu, self._port, facts=facts)
        readings: dict[str, GpuReading] = {}
        for _ in range(MAX_REREADS):
            self._returned.clear()
            swept = await self._sweeper.sweep(wanted, read)
            readings.update(swept)
            wanted = tuple(self._returned & swept.keys())
            if not wanted:
                break
        for uuid in wanted:
            del readings[uuid]
        self._examine(readings)
        return readings

    def set_cap(self, session: Session, call: SetCap, now_s: float) -> None:
        """Begin a setter call, in a thread of its own."""
        session.enforcer.setter_started(call.uuid, now_s)
        self._outstanding[call.uuid] += 1
        future = daemon_call(f"set-{call.uuid[-8:]}", partial(self._port.set_management_limit_mw, call.uuid, call.cap_mw))
        future.add_done_callback(partial(self._setter_returned, call))

    def count(self, error: NvmlError) -> None:
        key = (error.call, error.code_name)
        if not self.errors[key]:
            log.warning("%s", error)
        self.errors[key] += 1

    def close(self) -> None:
        """Every limit stays as it is."""
        self._sweeper.close()

    def _setter_returned(self, call: SetCap, future: asyncio.Future[None]) -> None:
        error = future.exception()
        if isinstance(error, NvmlError):
            self.count(error)
            health: Health | None = error.health
        elif error is not None:
            log.error("unexpected failure of an NVML call", exc_info=error)
            health = Health.UNKNOWN
        else:
            health = None
            self._claims_mw[call.uuid] = call.cap_mw
        self._outstanding[call.uuid] -= 1
        self._returned.add(call.uuid)
        self._on_return(call.uuid, health)

    def _examine(self, readings: Mapping[str, GpuReading]) -> None:
        for uuid, reading in readings.items():
            for error in reading.errors:
                self.count(error)
            management_mw = reading.readback.management_mw
            if uuid not in self._claims_mw or management_mw is None:
                continue
            claimed_mw = self._claims_mw.pop(uuid)
            if management_mw > claimed_mw:
                self.mismatches[uuid] += 1
                log.warning("%s: the setter reported %d mW, the limit reads %d mW", uuid, claimed_mw, management_mw)
