"""One agent: its parts started, and ended together. Ending, in whatever way, leaves every limit as it is."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path

from splitwatt_client import Connection

from splitwatt_agent.control import Control
from splitwatt_agent.metrics import AgentCollector, MetricsServer
from splitwatt_agent.node_power import NodePowerLink
from splitwatt_agent.nvml import NvmlPort
from splitwatt_agent.state_dir import StateDir
from splitwatt_agent.workloads import WorkloadPoll

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Settings:
    """What the command line says. `pod_resources` None: workloads are not asked for. `kubeconfig` None: in-cluster."""

    node: str
    state_dir: Path
    boot_id_file: Path
    listen_host: str
    listen_port: int
    pod_resources: Path | None
    kubeconfig: Path | None
    sample_period_s: float


class ListenError(Exception):
    """The address cannot be served; one sentence."""


async def run(settings: Settings, port: NvmlPort) -> None:
    """Until SIGTERM or SIGINT. Raises StateDirError, ListenError, ConfigurationError before anything was touched."""
    state_dir = StateDir(settings.state_dir)
    try:
        control = Control(
            port=port,
            state_dir=state_dir,
            node=settings.node,
            boot_id_file=settings.boot_id_file,
            sample_period_s=settings.sample_period_s,
        )
        async with Connection(settings.kubeconfig, user_agent=f"splitwatt-agent/{settings.node}") as connection:
            link = NodePowerLink(connection, control, node=settings.node)
            poll = None if settings.pod_resources is None else WorkloadPoll(settings.pod_resources, control)
            server = MetricsServer(AgentCollector(control, link, poll, node=settings.node), control)
            try:
                bound = await server.start(host=settings.listen_host, port=settings.listen_port)
            except OSError as error:
                raise ListenError(
                    f"cannot listen on {settings.listen_host}:{settings.listen_port} ({error.strerror}); "
                    "stop what uses it or give another --listen HOST:PORT"
                ) from error
            log.info("agent of %s on http://%s:%d", settings.node, settings.listen_host, bound)
            try:
                parts = [control.run(link), link.watch(), link.resync(), link.write()]
                await _until_signal(parts if poll is None else [*parts, poll.run()])
            finally:
                await server.close()
    finally:
        state_dir.close()


async def _until_signal(parts: Sequence[Coroutine[None, None, None]]) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(part) for part in parts]
        await stop.wait()
        log.info("ending; every limit stays as it is")
        for task in tasks:
            task.cancel()
