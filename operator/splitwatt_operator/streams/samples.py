"""Reads the agents' own samples: what each node draws, a second old at most, whether or not anything scrapes it.

What it protects: a sample counts by its own age, by the agent's monotonic clock, so no common clock is asked of anybody; and a
peer that is slow, dead or lying costs nobody else anything: one task each, bounded lines, and the core asks of each number
whether it can be true.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import time
from collections.abc import AsyncIterator, Callable, Collection
from typing import Final

import aiohttp
from splitwatt_core.protocol.contract import ContractError
from splitwatt_core.protocol.stream import CALM_HZ, SAMPLES_PATH, NodeDraw, drawn_from_wire
from splitwatt_shell.supervise import end_all

from splitwatt_operator.metrics import Metrics
from splitwatt_operator.streams.peers import PeerError, Peers

log = logging.getLogger(__name__)

LOOK_S: Final = 1.0
"""How often new and changed endpoints are looked for."""
SILENT_S: Final = 5.0 / CALM_HZ
"""A stream that says nothing for this long is closed and begun anew."""
RETRY_MIN_S: Final = 1.0
RETRY_MAX_S: Final = 30.0

Heard = Callable[[str, NodeDraw, float], None]
"""Node, what it draws, and when that was read, by our own wall clock."""


class SampleReader:
    def __init__(self, peers: Peers, metrics: Metrics, *, nodes: Callable[[], Collection[str]], heard: Heard) -> None:
        """`nodes`: those whose NodePower names a connection."""
        self._peers = peers
        self._metrics = metrics
        self._nodes = nodes
        self._heard = heard
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._speaking: set[str] = set()

    async def run(self) -> None:
        """Until cancelled: one reader for each node that listens."""
        try:
            while True:
                wanted = set(self._nodes())
                for node in self._tasks.keys() - wanted:
                    self._tasks.pop(node).cancel()
                for node in wanted - self._tasks.keys():
                    self._tasks[node] = asyncio.create_task(self._follow(node))
                await asyncio.sleep(LOOK_S)
        finally:
            await end_all(set(self._tasks.values()))
            self._metrics.streams.set(0)

    def _speaks(self, node: str, on: bool) -> None:
        (self._speaking.add if on else self._speaking.discard)(node)
        self._metrics.streams.set(len(self._speaking))

    async def _follow(self, node: str) -> None:
        """One node's stream, begun anew whenever it ends."""
        pause_s, said = RETRY_MIN_S, ""
        while True:
            why = "it ended"
            try:
                async with self._peers.ask("GET", node, f"{SAMPLES_PATH}?hertz={CALM_HZ:g}", within_s=None) as response:
                    async for drawn, received_s in _lines(response):
                        self._heard(node, drawn, received_s - drawn.age_s)
                        self._speaks(node, True)
                        pause_s, said = RETRY_MIN_S, ""
            except (PeerError, ContractError) as failure:
                why = str(failure)
            finally:
                self._speaks(node, False)
            if why != said:
                log.warning("samples of the agent itself are missed: %s", why, extra={"node": node})
                said = why
            await asyncio.sleep(pause_s * random.uniform(1.0, 1.5))
            pause_s = min(RETRY_MAX_S, 2 * pause_s)


async def _lines(response: aiohttp.ClientResponse) -> AsyncIterator[tuple[NodeDraw, float]]:
    """Each line as it comes. Raises PeerError, ContractError."""
    while True:
        try:
            async with asyncio.timeout(SILENT_S):
                line = await response.content.readuntil(b"\n")
        except TimeoutError as error:
            raise PeerError(f"silent for {SILENT_S:.0f} s") from error
        except ValueError as error:  # aiohttp's word for a line without an end
            raise PeerError("a line that does not end") from error
        if not line:
            return
        received_s = time.time()
        try:
            raw = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ContractError("a line is no JSON") from error
        yield drawn_from_wire(raw), received_s
