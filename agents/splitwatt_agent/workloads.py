"""Which pod holds which GPU, as kubelet says (PodResources v1, over its Unix socket).

A poll every few seconds; the API has no watch. While kubelet does not answer, the last answer stands and `error` says so:
that a question failed does not mean that the GPUs are free.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Final

from google.protobuf.message import DecodeError
from grpclib.client import Channel, UnaryUnaryMethod
from grpclib.exceptions import GRPCError, StreamTerminatedError
from splitwatt_client.podresources import (
    LIST_METHOD,
    ListPodResourcesRequest,
    ListPodResourcesResponse,
    owners_of,
)
from splitwatt_core.protocol.contract import Workload

from splitwatt_agent.control import Control

log = logging.getLogger(__name__)

POLL_S: Final = 2.0
ANSWER_S: Final = 5.0
RESOURCE_PREFIX: Final = "nvidia.com/"


class ArgumentError(ValueError):
    """One sentence that says what to change."""


def socket_path(argument: str) -> Path | None:
    """`unix:PATH` or `unix:///PATH` -> the path; "" -> None. Raises ArgumentError."""
    if not argument:
        return None
    scheme, _, path = argument.partition(":")
    if scheme != "unix" or not path:
        raise ArgumentError(f"--pod-resources must be unix:PATH or empty, not {argument!r}")
    return Path(path.removeprefix("//"))


class WorkloadPoll:
    """Tells the control loop what kubelet answers."""

    def __init__(self, socket: Path, control: Control) -> None:
        self._socket = socket
        self._control = control
        self.up = False
        self._told = False

    async def run(self) -> None:
        """Until cancelled."""
        channel = Channel(path=str(self._socket))
        method: UnaryUnaryMethod[object, object] = UnaryUnaryMethod(
            channel, LIST_METHOD, ListPodResourcesRequest, ListPodResourcesResponse
        )
        try:
            while True:
                try:
                    # Not grpclib's own time-out, which swallows a cancellation that comes in the same turn.
                    async with asyncio.timeout(ANSWER_S):
                        answer = await method(ListPodResourcesRequest())
                    owners = owners_of(answer, resource_prefix=RESOURCE_PREFIX)
                except (GRPCError, StreamTerminatedError, DecodeError, OSError, TimeoutError) as error:
                    self._failed(error)
                else:
                    self.up, self._told = True, False
                    self._control.hear_workloads({u: Workload(owner.namespace, owner.pod) for u, owner in owners.items()})
                await asyncio.sleep(POLL_S)
        finally:
            channel.close()

    def _failed(self, error: Exception) -> None:
        reason = f"kubelet's PodResources at {self._socket} gave no usable answer ({str(error) or type(error).__name__})"
        if not self._told:
            log.warning("%s", reason)
        self.up, self._told = False, True
        self._control.miss_workloads(reason)
