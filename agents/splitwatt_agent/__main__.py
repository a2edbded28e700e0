"""`python -m splitwatt_agent`: the command line of the node agent."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from splitwatt_client import ConfigurationError
from splitwatt_shell.address import AddressError, parse_address
from splitwatt_shell.serve import ListenError
from splitwatt_shell.supervise import run_main

from splitwatt_agent.agent import AgentSettings, StreamSettings, run
from splitwatt_agent.last_resort import EXIT_CODE, GIVE_UP_S, DeviceAccessLostError
from splitwatt_agent.nvml import PynvmlPort
from splitwatt_agent.state_dir import StateDirError
from splitwatt_agent.workloads import ArgumentError, socket_path

KUBELET_SOCKET = "unix:/var/lib/kubelet/pod-resources/kubelet.sock"
MAX_SAMPLE_HZ = 20.0
MIN_GIVE_UP_S = 1.0
MAX_GIVE_UP_S = 86400.0


class _Parser(argparse.ArgumentParser):
    """Bad input is one sentence, without the usage around it."""

    def error(self, message: str) -> None:  # type: ignore[override]
        self.exit(2, f"splitwatt-agent: {message}; see --help\n")


def parse(argv: Sequence[str] | None = None) -> AgentSettings:
    """Exits with status 2 and one sentence on bad input."""
    parser = _Parser(prog="splitwatt-agent", description="Keeps one node's GPUs at the power caps they were granted.")
    parser.add_argument("--node-name", required=True, metavar="NAME", help="this node's name; its NodePower has the same")
    parser.add_argument("--state-dir", required=True, type=Path, metavar="DIR", help="kept over restarts, one agent each")
    parser.add_argument("--boot-id-file", type=Path, default=Path("/proc/sys/kernel/random/boot_id"), metavar="FILE")
    parser.add_argument("--listen", default="127.0.0.1:9402", metavar="HOST:PORT", help="/metrics, /healthz, /readyz")
    parser.add_argument("--pod-resources", default=KUBELET_SOCKET, metavar="unix:PATH", help="kubelet's socket; '' disables")
    parser.add_argument("--kubeconfig", type=Path, default=None, metavar="FILE", help="default: in-cluster")
    parser.add_argument("--sample-hz", type=float, default=5.0, metavar="HZ")
    parser.add_argument("--observe", action="store_true", help="read and report only: no limit, clock or mode is ever set")
    parser.add_argument(
        "--give-up-after-s",
        type=float,
        default=GIVE_UP_S,
        metavar="SECONDS",
        help="end when only a new container can read the GPUs again (library and driver differ, device files lost)",
    )
    parser.add_argument(
        "--stream", default="", metavar="HOST:PORT", help="TLS: samples for the operator, its brakes; '' for none"
    )
    parser.add_argument("--stream-user", default="", metavar="USER", help="the operator's, system:serviceaccount:NAMESPACE:NAME")
    parser.add_argument("--stream-advertise", default="", metavar="HOST", help="how others reach --stream; default: its own HOST")
    given = parser.parse_args(argv)
    if not 0.1 <= given.sample_hz <= MAX_SAMPLE_HZ:
        parser.error(f"--sample-hz must be from 0.1 to {MAX_SAMPLE_HZ:g}, not {given.sample_hz:g}")
    if not MIN_GIVE_UP_S <= given.give_up_after_s <= MAX_GIVE_UP_S:
        parser.error(f"--give-up-after-s must be from {MIN_GIVE_UP_S:g} to {MAX_GIVE_UP_S:g}, not {given.give_up_after_s:g}")
    if not given.node_name:
        parser.error("--node-name must not be empty")
    if not given.boot_id_file.is_file():
        parser.error(f"--boot-id-file {given.boot_id_file} is not a file that can be read")
    try:
        listen = parse_address(given.listen)
        stream = parse_address(given.stream, option="--stream") if given.stream else None
        pod_resources = socket_path(given.pod_resources)
    except (AddressError, ArgumentError) as error:
        parser.error(str(error))
    if stream is not None and not given.stream_user.startswith("system:serviceaccount:"):
        parser.error(f"--stream needs --stream-user system:serviceaccount:NAMESPACE:NAME, not {given.stream_user!r}")
    return AgentSettings(
        node=given.node_name,
        state_dir=given.state_dir,
        boot_id_file=given.boot_id_file,
        listen=listen,
        pod_resources=pod_resources,
        kubeconfig=given.kubeconfig,
        sample_period_s=1.0 / given.sample_hz,
        give_up_s=given.give_up_after_s,
        observe=given.observe,
        stream=None if stream is None else StreamSettings(stream, given.stream_user, given.stream_advertise),
    )


def main(argv: Sequence[str] | None = None) -> int:
    settings = parse(argv)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    try:
        run_main(run(settings, PynvmlPort()))
    except (StateDirError, ListenError, ConfigurationError) as error:
        sys.stderr.write(f"splitwatt-agent: {error}\n")
        return 1
    except DeviceAccessLostError as error:
        sys.stderr.write(f"splitwatt-agent: {error}\n")
        return EXIT_CODE
    return 0


if __name__ == "__main__":
    sys.exit(main())
