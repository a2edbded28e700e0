"""The agent's disk as the control loop sees it: written off the loop, one write of a kind at a time, asked again when it refuses.

What it protects: a disk that is full, read-only, broken or silent never keeps GPUs from being governed downward. What could
not be written is held in memory and told; no cap rises meanwhile (docs/protocol.md, R12).
"""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import Final

from splitwatt_core.protocol.enforcer import GpuIdentity
from splitwatt_core.protocol.record import Record

from splitwatt_agent.state_dir import StateDir, StateDirError
from splitwatt_agent.threads import daemon_call

log = logging.getLogger(__name__)

PERSIST_WAIT_S: Final = 1.0
"""How long the loop waits for the disk before it lowers without it."""
INVENTORY_RETRY_S: Final = 2.0


class DurableRecord:
    """The record of docs/protocol.md, R12 on disk. `error`: why the last write is not durable, "" when it is."""

    def __init__(self, state: StateDir) -> None:
        """Raises StateDirError when the record cannot be understood."""
        self._state = state
        self.current: Record = state.read_record()
        self._writing: tuple[Record, asyncio.Future[None]] | None = None
        self.error = ""
        try:
            state.settle()
        except OSError as error:
            log.error("the record that was found may not be durable: %s", error)
            self.error = str(error)

    async def write(self, record: Record) -> bool:
        """False when the disk refused or did not answer in time: then only lowering may go on. Ask again later."""
        if record == self.current and not self.error:
            return True  # after a failure another one may lie there, that is not durable or lands yet
        if self._writing is None:
            self._writing = (record, daemon_call("record", partial(self._state.write_record, record)))
            self._writing[1].add_done_callback(_heard)  # where the agent ends before anybody asks
        pending, future = self._writing
        # A disk that is known to hang is not waited for again in every cycle.
        await asyncio.wait({future}, timeout=0.0 if self.error else PERSIST_WAIT_S)
        if not future.done():
            self.error = self.error or "the disk has not answered"
            return False
        self._writing = None
        error = future.exception()
        if error is not None:
            if not self.error:
                log.error("the record cannot be written: %s", error)
            self.error = str(error)
            return False
        self.current, self.error = pending, ""
        return pending == record


class KeptInventory:
    """The GPUs that were seen since a boot: in memory at once, on disk as soon as it takes them. `error`: why they are not
    there yet, "" when they are."""

    def __init__(self, state: StateDir) -> None:
        self._state = state
        self._boot_id = ""
        self._gpus: tuple[GpuIdentity, ...] = ()
        self._stored: tuple[str, tuple[GpuIdentity, ...]] | None = None
        """What surely lies on the disk; None: that is not known."""
        self._writing: asyncio.Future[None] | None = None
        self._due_s = 0.0
        self.error = ""

    def known(self, boot_id: str) -> tuple[GpuIdentity, ...]:
        """Seen since this boot, by this process or one before. Blocks. A file that cannot be read is told and written anew:
        only a GPU that was lost before this start would be missing, and the operator keeps the charge of that."""
        if boot_id == self._boot_id:
            return self._gpus
        try:
            found = self._state.read_inventory(boot_id)
        except StateDirError as error:
            log.error("%s", error)
            return ()
        self._stored = (boot_id, found)
        return found

    def keep(self, boot_id: str, gpus: tuple[GpuIdentity, ...]) -> None:
        self._boot_id, self._gpus = boot_id, gpus

    def step(self, now_s: float) -> None:
        """Begin the write that is due."""
        wanted = (self._boot_id, self._gpus)
        if wanted == self._stored or not self._boot_id:
            return
        if self._writing is not None:
            self.error = self.error or "the disk has not answered"
            return
        if now_s < self._due_s:
            return
        self._due_s = now_s + INVENTORY_RETRY_S
        self._writing = daemon_call("inventory", partial(self._state.write_inventory, *wanted))
        self._writing.add_done_callback(partial(self._written, wanted))

    def _written(self, wanted: tuple[str, tuple[GpuIdentity, ...]], future: asyncio.Future[None]) -> None:
        self._writing = None
        error = future.exception()
        if error is None:
            self._stored, self.error = wanted, ""
            return
        if not self.error:
            log.error("the inventory cannot be written: %s", error)
        self._stored, self.error = None, str(error)


def _heard(future: asyncio.Future[None]) -> None:
    if not future.cancelled():
        future.exception()
