"""The way to the driver: opened and closed by calls that may hang, one at a time, and never waited for without end.

What it protects: an `nvmlInit`, a scan or an `nvmlShutdown` that hangs in the driver leaves the control loop free to answer
health checks and to say so; and no session begins while a call of the one before it, or its closing, is under way.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from typing import Final

from splitwatt_core.protocol.record import Record

from splitwatt_agent import last_resort
from splitwatt_agent import session as sessions
from splitwatt_agent.durable import KeptInventory
from splitwatt_agent.nvml import NvmlError, NvmlPort
from splitwatt_agent.session import Session
from splitwatt_agent.threads import daemon_call

log = logging.getLogger(__name__)

SESSION_RETRY_S: Final = 2.0
OPEN_WAIT_S: Final = 1.0
"""How long one turn of the loop waits for a call that has just begun."""
NO_ANSWER: Final = "a driver call has not returned"


class Opening:
    """`trouble`: why there is no session, for people; `hopeless`: why only a new container helps, else ""."""

    def __init__(
        self, port: NvmlPort, inventory: KeptInventory, *, read_boot_id: Callable[[], str], count: Callable[[NvmlError], None]
    ) -> None:
        self._port = port
        self._inventory = inventory
        self._read_boot_id = read_boot_id
        self._count = count
        self._opening: asyncio.Future[Session] | None = None
        self._closing: asyncio.Future[None] | None = None
        self._due_s = 0.0
        self._once_open = False
        self._maybe_open = False
        self.trouble = ""
        self.hopeless = ""

    async def open(self, record: Record, now_s: float) -> Session | None:
        """A new session, or None: then `trouble` says why, and it is to be asked again."""
        if self._closing is not None and not await self._closed(0.0):
            return None
        if self._opening is None:
            if now_s < self._due_s:
                return None
            self._due_s = now_s + SESSION_RETRY_S
            try:
                boot_id = self._read_boot_id()
            except OSError as error:
                self._failed(error)
                return None
            begin = partial(sessions.begin, self._port, self._inventory, boot_id=boot_id, record=record)
            self._opening = daemon_call("nvml-start", begin)
            self._maybe_open = True
            wait_s = OPEN_WAIT_S
        else:
            wait_s = 0.0
        await asyncio.wait({self._opening}, timeout=wait_s)
        if not self._opening.done():
            self.trouble = NO_ANSWER
            return None
        future, self._opening = self._opening, None
        failure = future.exception()
        if failure is not None:
            self._failed(failure)
            return None
        self.trouble = self.hopeless = ""
        self._once_open = True
        return future.result()

    async def close(self) -> bool:
        """Give the driver back; True once no handle is open."""
        if self._opening is not None:  # it must be known what came of it before it can be undone
            await asyncio.wait({self._opening}, timeout=0.0)
            if not self._opening.done():
                self.trouble = NO_ANSWER
                return False
            self._opening.exception()
            self._opening = None
        if self._closing is None:
            if not self._maybe_open:
                return True
            self._closing = daemon_call("nvml-stop", self._port.stop)
            return await self._closed(OPEN_WAIT_S)
        return await self._closed(0.0)

    async def _closed(self, wait_s: float) -> bool:
        assert self._closing is not None
        await asyncio.wait({self._closing}, timeout=wait_s)
        if not self._closing.done():
            self.trouble = NO_ANSWER
            return False
        error, self._closing, self._maybe_open = self._closing.exception(), None, False
        self._due_s = 0.0
        if isinstance(error, NvmlError):
            self._count(error)
        elif error is not None:
            log.error("unexpected failure of an NVML call", exc_info=error)
        return True

    def _failed(self, error: BaseException) -> None:
        if isinstance(error, NvmlError):
            self._count(error)
        trouble = f"{error}{last_resort.advice(error)}"
        if trouble != self.trouble:
            log.error("NVML is not usable: %s", trouble)
        self.trouble = trouble
        self.hopeless = (
            last_resort.cause(error, once_open=self._once_open, driver_loaded=last_resort.driver_is_loaded())
            if isinstance(error, NvmlError)
            else ""
        )
