"""Loopback ports for the lab's servers.

Ports are taken below the kernel's ephemeral range: a port inside it could be handed to some client's outgoing connection
while its server restarts, and a client that keeps dialling a closed ephemeral port on loopback can even connect to itself.
Between the probe and the server's own bind anyone may take the port; whoever starts a server retries on a fresh one.
"""

from __future__ import annotations

import random
import socket
from pathlib import Path
from typing import Final

from splitwatt_lab.errors import LabError, PortInUseError

LOOPBACK: Final = "127.0.0.1"
_LOWEST: Final = 10_240
_PROBES: Final = 200
_EPHEMERAL_RANGE: Final = Path("/proc/sys/net/ipv4/ip_local_port_range")
_USUAL_EPHEMERAL_LOW: Final = 32_768

ADDRESS_IN_USE: Final = "address already in use"
"""How Go and C programs word EADDRINUSE in their logs."""


def is_free(port: int) -> bool:
    """True when a server could bind `port` on loopback now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: TIME_WAIT is no obstacle
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
        return True


def free_port() -> int:
    """A port that is free now. Raises LabError when none is found."""
    high = _ephemeral_low()
    for _ in range(_PROBES):
        port = random.randrange(_LOWEST, high)
        if is_free(port):
            return port
    raise LabError(f"no free port on {LOOPBACK} between {_LOWEST} and {high}; stop some local servers")


def require_free(port: int, *, purpose: str) -> None:
    """Raises PortInUseError, one sentence, when `port` is taken."""
    if not 0 < port < 65_536:
        raise LabError(f"port {port} for {purpose} is not between 1 and 65535; choose another")
    if not is_free(port):
        raise PortInUseError(f"port {port} on {LOOPBACK}, wanted for {purpose}, is in use; stop its user or choose another")


def _ephemeral_low() -> int:
    try:
        low = int(_EPHEMERAL_RANGE.read_text().split()[0])
    except (OSError, ValueError, IndexError):
        low = _USUAL_EPHEMERAL_LOW
    return low if low > _LOWEST + _PROBES else 65_536
