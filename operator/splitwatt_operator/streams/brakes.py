"""Sends brakes: at once, side by side, and again until an agent says that it holds them.

What it protects: the Lease is asked for before each send, as before each write (R2), though the word can only lower; and a peer
that is slow or dead keeps nobody else waiting.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable, Iterable
from typing import Final

from splitwatt_core.budget.facts import NodeBrake
from splitwatt_core.protocol.brake import BrakeOrder
from splitwatt_core.protocol.stream import BRAKE_PATH, order_to_wire
from splitwatt_shell.supervise import end_all

from splitwatt_operator.metrics import Metrics
from splitwatt_operator.streams.peers import PeerError, Peers

log = logging.getLogger(__name__)

SEND_S: Final = 8.0
"""For one try: more than an agent waits for its disk."""
AGAIN_S: Final = 0.5
TRIES: Final = 20
"""By then the grants of the same step have long said the same, or nobody is there."""


class Braker:
    """`held`: whether the Lease is surely ours at a monotonic time."""

    def __init__(self, peers: Peers, metrics: Metrics, *, held: Callable[[float], bool]) -> None:
        self._peers = peers
        self._metrics = metrics
        self._held = held
        self._newest: dict[str, BrakeOrder] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, brakes: Iterable[NodeBrake]) -> None:
        """Begin to send; returns at once. Who names no connection of his own is told by his grants alone."""
        for brake in brakes:
            if self._peers.endpoint(brake.node) is None or self._newest.get(brake.node) == brake.order:
                continue
            self._newest[brake.node] = brake.order
            task = asyncio.create_task(self._send(brake.node, brake.order))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def stop(self) -> None:
        await end_all(set(self._tasks))

    async def _send(self, node: str, order: BrakeOrder) -> None:
        try:
            await self._say(node, order)
        finally:
            if self._newest.get(node) is order:
                del self._newest[node]  # a later step may ask for the same

    async def _say(self, node: str, order: BrakeOrder) -> None:
        about = {"node": node, "grant": order.grant}
        why = ""
        for _ in range(TRIES):
            if self._newest.get(node) is not order:
                return  # a later one is under way
            if not self._held(time.monotonic()):
                return
            try:
                async with self._peers.ask("POST", node, BRAKE_PATH, body=order_to_wire(order), within_s=SEND_S) as response:
                    answer = json.loads(await response.read())
                    held = answer["held"]
            except (PeerError, ValueError, TypeError, KeyError, RecursionError) as failure:  # no answer, or none of ours
                why = str(failure)
                await asyncio.sleep(AGAIN_S)
                continue
            self._metrics.count_brake("Held" if held else "Over")
            log.warning("braked", extra={**about, "held": bool(held)})
            return
        self._metrics.count_brake("GivenUp")
        log.error("not braked over its own connection, its grants say the same: %s", why, extra=about)
