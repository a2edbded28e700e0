"""The agent's own connection: samples out, brakes in, over TLS (core `protocol.stream`).

What it protects: nothing that comes in here raises anything, and a peer that is slow, dead or lying costs the control loop
nothing. A stream keeps no queue: it sends the newest sample, and whoever reads slowly reads fewer.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Final

from aiohttp import web
from splitwatt_client import Connection
from splitwatt_core.protocol.contract import ContractError
from splitwatt_core.protocol.endpoint import StreamEndpoint
from splitwatt_core.protocol.milliwatts import MW_PER_W
from splitwatt_core.protocol.stream import (
    BRAKE_PATH,
    CALM_HZ,
    MAX_ORDER_BYTES,
    MAX_SAMPLES_HZ,
    SAMPLES_PATH,
    GpuSample,
    NodeSample,
    order_from_wire,
    sample_to_wire,
)
from splitwatt_shell.address import Address
from splitwatt_shell.serve import SHUTDOWN_S, listening

from splitwatt_agent import certificate
from splitwatt_agent.callers import Callers
from splitwatt_agent.control import Control
from splitwatt_agent.state import ControlState

log = logging.getLogger(__name__)

BRAKE_WAIT_S: Final = 5.0
"""How long an answer waits for a brake to be durable and read back; then it says that it is not, yet."""
MAX_STREAMS: Final = 8
"""Open at once: operators that take over from one another, and a person who looks."""
STALLED_S: Final = 10.0
"""A peer that takes nothing for this long is hung up on."""


def sample_of(state: ControlState, *, node: str, now_s: float, wall_s: float) -> NodeSample:
    """`now_s` monotonic, `wall_s` the wall clock at that moment."""
    read_s = state.read_at_s if state.readings else state.ticked_s
    age_s = max(0.0, now_s - read_s)
    gpus = tuple(
        GpuSample(
            uuid,
            _watts(reading.readback.power_mw),
            _watts(reading.readback.management_mw),
            _watts(reading.readback.enforced_mw),
            reading.readback.health.value,
        )
        for uuid, reading in state.readings.items()
    )
    return NodeSample(node, state.boot_id, wall_s - age_s, age_s, gpus, state.trouble)


def _watts(milliwatts: int | None) -> float | None:
    return None if milliwatts is None else milliwatts / MW_PER_W


def _healths(state: ControlState) -> object:
    """What is told at once when it changes."""
    return state.trouble, {uuid: reading.readback.health for uuid, reading in state.readings.items()}


class StreamServer:
    """See the module's docstring."""

    def __init__(self, control: Control, callers: Callers, *, node: str) -> None:
        self._control = control
        self._callers = callers
        self._node = node
        self._open = 0

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        why = await self._callers.why_not(request.headers.get("Authorization", ""))
        if why:
            return _refused(401, why)
        match (request.method, request.path):
            case ("POST", path) if path == BRAKE_PATH:
                return await self._brake(request)
            case ("GET", path) if path == SAMPLES_PATH:
                return await self._samples(request)
        return _refused(404, f"GET {SAMPLES_PATH} or POST {BRAKE_PATH}")

    async def _brake(self, request: web.BaseRequest) -> web.Response:
        try:
            order = order_from_wire(json.loads(await request.content.read(MAX_ORDER_BYTES)))
        except (ContractError, ValueError, RecursionError) as error:
            return _refused(400, str(error))
        heard = self._control.hear_brake(order)
        log.warning("braked by the operator: to %s, under grant %d", order.to.value, order.grant)
        try:
            async with asyncio.timeout(BRAKE_WAIT_S):
                held = await asyncio.shield(heard)
        except TimeoutError:
            return _refused(503, "the brake is not in force yet: send it again")
        return web.json_response({"held": list(held)})

    async def _samples(self, request: web.BaseRequest) -> web.StreamResponse:
        try:
            hertz = float(request.query.get("hertz", CALM_HZ))
        except ValueError:
            hertz = 0.0
        if not 0.0 < hertz <= MAX_SAMPLES_HZ:
            return _refused(400, f"hertz must be above 0 and at most {MAX_SAMPLES_HZ:g}")
        if self._open >= MAX_STREAMS:
            return _refused(503, f"{MAX_STREAMS} streams are open already")
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        self._open += 1
        try:
            await response.prepare(request)
            async for sample in self._newest(1.0 / hertz):
                async with asyncio.timeout(STALLED_S):
                    await response.write(json.dumps(sample_to_wire(sample)).encode() + b"\n")
        except (ConnectionError, TimeoutError):
            log.info("a reader of samples has left")
        finally:
            self._open -= 1
        return response

    async def _newest(self, period_s: float) -> AsyncIterator[NodeSample]:
        told, due_s = _healths(self._control.state), float("-inf")
        while True:
            state, now_s = self._control.state, time.monotonic()
            healths = _healths(state)
            if now_s >= due_s or healths != told:
                told, due_s = healths, now_s + period_s
                yield sample_of(state, node=self._node, now_s=now_s, wall_s=time.time())
            await self._control.ticked(within_s=max(0.0, due_s - time.monotonic()))


@asynccontextmanager
async def stream(
    address: Address, connection: Connection, control: Control, *, node: str, user: str, advertise: str
) -> AsyncIterator[StreamEndpoint]:
    """While the context lasts; yields what the NodePower's status says of it. `advertise`: the host by which others reach this
    one, "" for the address itself. Raises ListenError."""
    own = certificate.make(node)
    server = StreamServer(control, Callers(connection, node=node, user=user), node=node)
    runner = web.ServerRunner(web.Server(server.answer, access_log=None), shutdown_timeout=SHUTDOWN_S)
    async with listening(runner, address, tls=own.context) as used:
        told = replace(used, host=advertise) if advertise else used
        yield StreamEndpoint(str(told), own.sha256)


def _refused(status: int, why: str) -> web.Response:
    return web.json_response({"error": why}, status=status)
