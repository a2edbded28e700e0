"""The agent's two errands at the API server: watching its own NodePower, and writing that object's status.

Both run beside the control loop, which never waits for them. What they protect: the first version that counts after a start
comes from a consistent read (R11: the list that begins every watch is one); every status write carries the uid and the
resourceVersion of the version that the enforcer saw, so a late one bounces instead of landing on a newer object (R14). A
conflict is answered by a fresh read, an unknown outcome too. Nothing that happens here changes a cap by itself.

The status is written when the report changed, acknowledgements at once and the rest at most once a second, and otherwise
once a minute, as a sign of life that the operator sees even where Prometheus is down.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime
from typing import Final

from splitwatt_client import (
    ApiError,
    Changed,
    Connection,
    Deleted,
    Interrupted,
    OutcomeUnknown,
    Rejected,
    Synced,
    watch,
)
from splitwatt_client.resources import NODE_POWERS
from splitwatt_core.conditions import Condition
from splitwatt_core.names import FIELD_MANAGER_AGENT
from splitwatt_core.protocol.contract import SIGN_OF_LIFE_S, NodePower, status_to_wire
from splitwatt_core.protocol.endpoint import StreamEndpoint
from splitwatt_shell.waiting import woken

from splitwatt_agent.conditions import Report, status_to_write
from splitwatt_agent.control import Control

log = logging.getLogger(__name__)

URGENT_SPACING_S: Final = 0.05
"""Between two writes of acknowledgements; lets those that arrive together travel together."""
SPACING_S: Final = 1.0
RESYNC_RETRY_S: Final = 1.0
RETRY_MIN_S: Final = 0.02
RETRY_MAX_S: Final = 10.0


def due_s(report: Report | None, *, written: Report | None, written_s: float) -> float:
    """When `report` is to be written, monotonic. `written`: what stands since `written_s`; None and -inf before the first."""
    if report is None or report == written:
        return written_s + SIGN_OF_LIFE_S
    if written is None or report.urgent_part() != written.urgent_part():
        return written_s + URGENT_SPACING_S
    return written_s + SPACING_S


class NodePowerLink:
    """See the module's docstring. It listens to the control loop, and reads what that has put up last."""

    def __init__(self, connection: Connection, control: Control, *, node: str) -> None:
        self._connection = connection
        self._control = control
        self._node = node
        self.round_s = time.monotonic()
        """When `write` came round last."""
        self._wake = asyncio.Event()
        self._resync = asyncio.Event()
        self._written: Report | None = None
        self._written_s = float("-inf")
        self._said: tuple[Condition, ...] = ()
        """The conditions of our last write."""
        self.stream: StreamEndpoint | None = None
        """Where this agent listens itself, for the status."""
        self.live = False
        """Whether the watch is connected, as far as is known."""
        self.writes: Counter[str] = Counter()
        """Status writes by outcome: Done, Rejected, Unknown."""

    async def watch(self) -> None:
        """Until cancelled: every version of the object goes into the control loop's inbox."""
        async for event in watch(self._connection, NODE_POWERS, name=self._node):
            self.live = not isinstance(event, Interrupted)
            match event:
                case Synced(items=items):
                    self._control.offer(items[0] if items else None, consistent=True)
                case Changed(obj=obj):
                    self._control.offer(obj, consistent=False)
                case Deleted():
                    self._control.offer(None, consistent=False)
                case Interrupted(failure=failure):
                    log.warning("NodePower %s cannot be watched: %s", self._node, failure)

    def report_changed(self) -> None:
        self._wake.set()

    def read_anew(self) -> None:
        self._resync.set()

    async def resync(self) -> None:
        """Until cancelled: a consistent read whenever the control loop needs one (a new driver load)."""
        while True:
            await self._resync.wait()
            self._resync.clear()
            if not await self._read_now():
                self._resync.set()
                await asyncio.sleep(RESYNC_RETRY_S)

    async def write(self) -> None:
        """Until cancelled: keeps the object's status equal to the control loop's report."""
        backoff_s = RETRY_MIN_S
        while True:
            await self._await_reason()
            state = self._control.state
            observed, report = state.observed, state.report
            if observed is None or report is None:
                await woken(self._wake, within_s=SIGN_OF_LIFE_S)
                continue
            try:
                await self._send(observed, report)
            except ApiError as failure:
                if isinstance(failure, OutcomeUnknown):
                    self._written = None  # what stands is not known: also a report that says again what stood before is due
                    self.writes["Unknown"] += 1
                else:
                    self.writes["Rejected"] += 1
                expected = isinstance(failure, Rejected) and (failure.conflict or failure.not_found)
                log.log(logging.DEBUG if expected else logging.WARNING, "status not written: %s", failure)
                await self._read_now()  # the control loop takes the answer in during the pause
                await asyncio.sleep(backoff_s * random.uniform(1.0, 2.0))
                backoff_s = min(RETRY_MAX_S, 2 * backoff_s)
            else:
                backoff_s = RETRY_MIN_S

    # --------------------------------------------------------------------------------------------------------- below

    async def _await_reason(self) -> None:
        """Returns when a write is due."""
        while True:
            self.round_s = time.monotonic()
            self._wake.clear()
            left_s = due_s(self._control.state.report, written=self._written, written_s=self._written_s) - time.monotonic()
            if left_s <= 0:
                return
            await woken(self._wake, within_s=left_s)

    async def _send(self, observed: NodePower, report: Report) -> None:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        # What we wrote last counts before what was observed, which may be older.
        status = status_to_write(report, written_at=now, previous=(*observed.status.conditions, *self._said))
        manifest = {
            "apiVersion": NODE_POWERS.api_version,
            "kind": NODE_POWERS.kind,
            "metadata": {
                "name": self._node,
                "uid": observed.uid,
                "resourceVersion": str(observed.resource_version),
            },
            "status": status_to_wire(replace(status, stream=self.stream)),
        }
        self._written_s = time.monotonic()
        stored = await self._connection.apply(
            manifest, field_manager=FIELD_MANAGER_AGENT, subresource="status", resource=NODE_POWERS
        )
        self.writes["Done"] += 1
        self._written, self._said = report, status.conditions
        self._control.offer(stored, consistent=False)

    async def _read_now(self) -> bool:
        """A consistent read into the inbox; False when the API server gave none."""
        try:
            self._control.offer(await self._connection.get(NODE_POWERS, self._node), consistent=True)
        except ApiError as failure:
            log.debug("NodePower %s cannot be read: %s", self._node, failure)
            return False
        return True
