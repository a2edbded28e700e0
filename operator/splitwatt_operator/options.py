"""The command line of `python -m splitwatt_operator`, as one frozen value."""

from __future__ import annotations

import argparse
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from splitwatt_core.protocol.node_account import AGENT_METRICS_SILENT_S
from splitwatt_core.rendering.render import RenderContext
from splitwatt_shell.address import Address, AddressError, parse_address

from splitwatt_operator.telemetry import endpoint
from splitwatt_operator.telemetry.endpoint import EndPoint

LEASE_NAME: Final = "splitwatt-operator"
MIN_AGENT_SILENCE_S: Final = 2.0
MAX_AGENT_SILENCE_S: Final = 300.0
LEASE_S: Final = 15
"""Quick enough where a container that is started again takes over at once (`--state-dir`), and out of reach of a slow API server.
Beside a standby, 3: docs/decisions/0016-how-soon-a-successor-begins.md."""
MIN_LEASE_S: Final = 2
MAX_LEASE_S: Final = 60
LOG_LEVELS: Final = ("debug", "info", "warning", "error")


@dataclass(frozen=True, slots=True)
class Options:
    """`kubeconfig` None: in-cluster. `identity` names this process in the Lease and in Events."""

    end_point: EndPoint
    listen: Address
    namespace: str
    kubeconfig: Path | None
    decision_log: Path | None
    log_level: str
    identity: str
    lease_s: int = LEASE_S
    state_dir: Path | None = None
    agent_silent_s: float = AGENT_METRICS_SILENT_S
    context: RenderContext = field(default_factory=RenderContext)
    publish_profiles: bool = False
    stream_account: str = ""
    """The service account, in `namespace`, by whose tokens agents know us; "": their own connections are not used."""


def parse(arguments: Sequence[str] | None = None) -> Options:
    """Exits with code 2 and a sentence on a wrong command line, as argparse does."""
    parser = argparse.ArgumentParser(
        prog="python -m splitwatt_operator",
        description="Keeps PowerBudgets and serves InferenceClusters; one replica is active at a time.",
    )
    endpoint.add_arguments(parser)
    parser.add_argument(
        "--agent-silence-seconds", type=_silence_s, default=AGENT_METRICS_SILENT_S, metavar="N",
        help="an agent's sample in Prometheus that is older shows no life; more than two scrape intervals (%(default).0f)",
    )  # fmt: skip
    parser.add_argument(
        "--engine-image", type=_image, default=RenderContext().emulated_image, metavar="IMAGE",
        help="image of `engine: {type: Emulated}` where a cluster names none (%(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--router-image", type=_image, default=RenderContext().router_image, metavar="IMAGE",
        help="image of `router: {type: VLLM}` where a cluster names none (%(default)s)",
    )  # fmt: skip
    for flag, image, what in (
        ("--llmd-picker-image", RenderContext().llmd_picker_image, "of llm-d's endpoint picker, where a cluster names none"),
        ("--llmd-sidecar-image", RenderContext().llmd_sidecar_image, "of llm-d's routing sidecar on decode pods"),
        ("--envoy-image", RenderContext().envoy_image, "of the Envoy beside llm-d's endpoint picker"),
    ):
        parser.add_argument(flag, type=_image, default=image, metavar="IMAGE", help=f"image {what} (%(default)s)")
    parser.add_argument(
        "--listen", default="0.0.0.0:9400", metavar="HOST:PORT", help="address of /metrics and /healthz (%(default)s)"
    )
    parser.add_argument("--namespace", default="splitwatt-system", help="namespace of the Lease (%(default)s)")
    parser.add_argument(
        "--lease-seconds", type=_lease_s, default=LEASE_S, metavar="N",
        help="a standby takes over this long after the last renewal it saw; the holder sends for four fifths of it (%(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--state-dir", type=Path, metavar="DIR",
        help="a folder of this process alone that outlives it, by which its successor there knows that it has ended",
    )  # fmt: skip
    parser.add_argument(
        "--stream-account", default="", metavar="NAME",
        help="our service account in --namespace: samples are read from agents that listen themselves, and brakes sent to them",
    )  # fmt: skip
    parser.add_argument("--publish-profiles", action="store_true", help="show the built-in profiles as PowerProfile objects")
    parser.add_argument("--kubeconfig", type=Path, metavar="FILE", help="default: the pod's own service account")
    parser.add_argument("--decision-log", type=Path, metavar="FILE", help="append one JSON line per budget and decision")
    parser.add_argument("--log-level", default="info", choices=LOG_LEVELS)
    given = parser.parse_args(arguments)
    try:
        listen = parse_address(given.listen)
    except AddressError as error:
        parser.error(str(error))
    return Options(
        end_point=endpoint.end_point(parser, given),
        listen=listen,
        namespace=given.namespace,
        kubeconfig=given.kubeconfig,
        decision_log=given.decision_log,
        log_level=given.log_level,
        lease_s=given.lease_seconds,
        state_dir=given.state_dir,
        agent_silent_s=given.agent_silence_seconds,
        context=RenderContext(
            emulated_image=given.engine_image,
            router_image=given.router_image,
            llmd_picker_image=given.llmd_picker_image,
            llmd_sidecar_image=given.llmd_sidecar_image,
            envoy_image=given.envoy_image,
        ),
        publish_profiles=given.publish_profiles,
        stream_account=given.stream_account,
        identity=os.environ.get("POD_NAME") or f"{socket.gethostname()}-{os.getpid()}",
    )


def _image(text: str) -> str:
    if not text or any(c.isspace() for c in text):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no image: write for example registry.example.com/team/splitwatt-engine:0.1.0"
        )
    return text


def _lease_s(text: str) -> int:
    if not (text.isascii() and text.isdigit() and MIN_LEASE_S <= int(text) <= MAX_LEASE_S):
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number of seconds from {MIN_LEASE_S} to {MAX_LEASE_S}")
    return int(text)


def _silence_s(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = float("nan")
    if not MIN_AGENT_SILENCE_S <= seconds <= MAX_AGENT_SILENCE_S:
        raise argparse.ArgumentTypeError(
            f"{text!r} must be between {MIN_AGENT_SILENCE_S:.0f} and {MAX_AGENT_SILENCE_S:.0f} seconds"
        )
    return seconds
