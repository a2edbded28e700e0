"""One agent: its parts started, and ended together. Ending, in whatever way, leaves every limit as it is."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from splitwatt_client import Connection
from splitwatt_core.protocol.endpoint import StreamEndpoint
from splitwatt_shell.address import Address
from splitwatt_shell.serve import serve
from splitwatt_shell.supervise import first_to_end, on_stop_signal

from splitwatt_agent.control import Control
from splitwatt_agent.metrics import AgentCollector, health_of, unready
from splitwatt_agent.node_power import NodePowerLink
from splitwatt_agent.nvml import NvmlPort
from splitwatt_agent.own_node import watch_own_node
from splitwatt_agent.state_dir import StateDir
from splitwatt_agent.stream import stream
from splitwatt_agent.workloads import Slices, WorkloadPoll

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class AgentSettings:
    """What the command line says. `pod_resources` None: workloads are not asked for. `kubeconfig` None: in-cluster."""

    node: str
    state_dir: Path
    boot_id_file: Path
    listen: Address
    pod_resources: Path | None
    kubeconfig: Path | None
    sample_period_s: float
    give_up_s: float
    observe: bool
    stream: StreamSettings | None = None


@dataclass(frozen=True, slots=True)
class StreamSettings:
    """The agent's own connection: where it listens, for whom (`system:serviceaccount:NAMESPACE:NAME`), and by which host others
    reach it ("": the address itself)."""

    listen: Address
    user: str
    advertise: str = ""


async def run(settings: AgentSettings, port: NvmlPort) -> None:
    """Until SIGTERM or SIGINT. Raises StateDirError, ListenError, ConfigurationError before anything was touched, and
    DeviceAccessLostError when only a new container can read the GPUs again."""
    state_dir = StateDir(settings.state_dir)
    try:
        control = Control(
            port=port,
            state_dir=state_dir,
            node=settings.node,
            boot_id_file=settings.boot_id_file,
            sample_period_s=settings.sample_period_s,
            give_up_s=settings.give_up_s,
            observe=settings.observe,
        )
        async with Connection(settings.kubeconfig, user_agent=f"splitwatt-agent/{settings.node}") as connection:
            link = NodePowerLink(connection, control, node=settings.node)
            slices = Slices(connection, node=settings.node)
            poll = (
                None
                if settings.pod_resources is None
                else WorkloadPoll(settings.pod_resources, control, port=port, slices=slices)
            )
            collector = AgentCollector(control, link, poll, node=settings.node)
            health, ready = lambda: health_of(control, link), lambda: unready(control)
            async with (
                serve(settings.listen, collector, health=health, ready=ready) as bound,
                _stream(settings, connection, control) as link.stream,
            ):
                log.info("agent of %s on http://%s", settings.node, bound)
                stop = asyncio.Event()
                on_stop_signal(stop.set)
                parts = {
                    "control": control.run(link),
                    "watch": link.watch(),
                    "resync": link.resync(),
                    "write": link.write(),
                    "node": watch_own_node(connection, control, node=settings.node),
                }
                if poll is not None:
                    parts["workloads"] = poll.run()
                await first_to_end(stop=_told_to_end(stop), **parts)
    finally:
        state_dir.close()


@asynccontextmanager
async def _stream(settings: AgentSettings, connection: Connection, control: Control) -> AsyncIterator[StreamEndpoint | None]:
    if settings.stream is None:
        yield None
        return
    own = settings.stream
    async with stream(own.listen, connection, control, node=settings.node, user=own.user, advertise=own.advertise) as endpoint:
        log.info("samples and brakes on https://%s", endpoint.address)
        yield endpoint


async def _told_to_end(stop: asyncio.Event) -> None:
    await stop.wait()
    log.info("ending; every limit stays as it is")
