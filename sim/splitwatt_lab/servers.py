"""Starting a server on a loopback port and waiting until it answers: the one retry loop of the lab.

A port is free until somebody binds it, so a server that finds its port taken is started again on another one. Where the
port is fixed, or a stopped server comes back to its old one, there is nothing to choose and a person is told.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

import httpx

from splitwatt_lab.errors import LabError, PortInUseError, log_tail
from splitwatt_lab.ports import ADDRESS_IN_USE, LOOPBACK, free_port, require_free
from splitwatt_lab.processes import Process, ProcessGroup

PORT_ATTEMPTS: Final = 5
READY_S: Final = 90.0
"""A server here is ready within a second or two; on a machine that builds something else it takes longer."""

Healthy = Callable[[int], bool]
"""Asked again and again with the port; must answer within a few seconds."""


def start_server(
    group: ProcessGroup,
    name: str,
    command: Callable[[int], Sequence[str | Path]],
    *,
    healthy: Healthy,
    port: int | None = None,
    env: Mapping[str, str] | None = None,
    log: Path | None = None,
    timeout_s: float = READY_S,
) -> tuple[Process, int]:
    """Start `command(port)` and wait until `healthy(port)`. `port` None: any free one.

    Raises PortInUseError when a fixed port is taken, LabError (one sentence with the log) when it ends or stays silent.
    """
    if port is not None:
        require_free(port, purpose=name)
    for attempt in range(1, PORT_ATTEMPTS + 1):
        chosen = port or free_port()
        process = group.start(name, command(chosen), env=env, log=log)
        try:
            await_server(process, chosen, healthy=healthy, timeout_s=timeout_s)
            return process, chosen
        except PortInUseError:
            if port is not None or attempt == PORT_ATTEMPTS:
                raise
    raise AssertionError("unreachable")


def restart_server(process: Process, port: int, *, healthy: Healthy, timeout_s: float = READY_S) -> None:
    """Start a stopped server again on its old port. Raises as start_server does."""
    require_free(port, purpose=process.name)
    process.start()
    await_server(process, port, healthy=healthy, timeout_s=timeout_s)


def await_server(process: Process, port: int, *, healthy: Healthy, timeout_s: float = READY_S) -> None:
    try:
        process.await_ready(lambda: healthy(port), timeout_s=timeout_s)
    except LabError as error:
        if not process.running and any(ADDRESS_IN_USE in line.lower() for line in log_tail(process.log)):
            raise PortInUseError(
                f"port {port} on {LOOPBACK}, wanted for {process.name}, is in use; "
                f"stop its user or choose another (log: {process.log})"
            ) from error
        raise


def answers(client: httpx.Client, url: str) -> bool:
    """True when `url` answers 200; a refused or broken connection is a no, not an error."""
    try:
        return client.get(url).status_code == httpx.codes.OK
    except httpx.TransportError:
        return False
