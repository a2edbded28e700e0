"""The command line of `python -m splitwatt_operator`, as one frozen value."""

from __future__ import annotations

import argparse
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from splitwatt_shell.address import Address, AddressError, parse_address

LEASE_NAME: Final = "splitwatt-operator"
LOG_LEVELS: Final = ("debug", "info", "warning", "error")


@dataclass(frozen=True, slots=True)
class Options:
    """`kubeconfig` None: in-cluster. `identity` names this process in the Lease and in Events."""

    prometheus_url: str
    listen: Address
    namespace: str
    kubeconfig: Path | None
    decision_log: Path | None
    log_level: str
    identity: str


def parse(arguments: Sequence[str] | None = None) -> Options:
    """Exits with code 2 and a sentence on a wrong command line, as argparse does."""
    parser = argparse.ArgumentParser(
        prog="python -m splitwatt_operator",
        description="Keeps PowerBudgets and serves InferenceClusters; one replica is active at a time.",
    )
    parser.add_argument("--prometheus-url", required=True, metavar="URL", help="root of the Prometheus server to ask")
    parser.add_argument(
        "--listen", default="0.0.0.0:9400", metavar="HOST:PORT", help="address of /metrics and /healthz (%(default)s)"
    )
    parser.add_argument("--namespace", default="splitwatt-system", help="namespace of the Lease (%(default)s)")
    parser.add_argument("--kubeconfig", type=Path, metavar="FILE", help="default: the pod's own service account")
    parser.add_argument("--decision-log", type=Path, metavar="FILE", help="append one JSON line per budget and decision")
    parser.add_argument("--log-level", default="info", choices=LOG_LEVELS)
    given = parser.parse_args(arguments)
    if not given.prometheus_url.startswith(("http://", "https://")):
        parser.error(f"--prometheus-url {given.prometheus_url!r} must begin with http:// or https://")
    try:
        listen = parse_address(given.listen)
    except AddressError as error:
        parser.error(str(error))
    return Options(
        prometheus_url=given.prometheus_url,
        listen=listen,
        namespace=given.namespace,
        kubeconfig=given.kubeconfig,
        decision_log=given.decision_log,
        log_level=given.log_level,
        identity=os.environ.get("POD_NAME") or f"{socket.gethostname()}-{os.getpid()}",
    )
