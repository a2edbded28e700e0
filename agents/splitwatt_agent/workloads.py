"""Which pod holds which GPU, as kubelet says (PodResources v1, over its Unix socket).

A poll every few seconds; the API has no watch. While kubelet does not answer, or NVML cannot say what a name means, the last
answer stands and `error` says so: that a question failed does not mean that the GPUs are free. ResourceSlices are read when
a claim names a device that is not known yet.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final, Protocol

import pynvml
from google.protobuf.message import DecodeError
from grpclib.client import Channel, UnaryUnaryMethod
from grpclib.exceptions import GRPCError, StreamTerminatedError
from splitwatt_client import ApiError, Connection, Rejected
from splitwatt_client.podresources import LIST_METHOD, HeldDevice, ListPodResourcesRequest, ListPodResourcesResponse, devices_of
from splitwatt_client.resources import RESOURCE_SLICES

from splitwatt_agent.nvml import NvmlError, NvmlPort
from splitwatt_agent.owners import Owners, SliceKey, claimed, owners_of, read_slice
from splitwatt_agent.threads import daemon_call

log = logging.getLogger(__name__)

POLL_S: Final = 2.0
ANSWER_S: Final = 5.0
NAMES_S: Final = 5.0
"""A question to NVML that has not returned for this long is given up for this time; the next one waits for its end."""
SLICES_EVERY_S: Final = 10.0
"""ResourceSlices are read at most this often."""
_OLDER: Final = replace(RESOURCE_SLICES, api_version="resource.k8s.io/v1beta2")
"""Before Kubernetes 1.34; of the same form."""


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


class Hearer(Protocol):
    """The control loop, as far as this module needs it."""

    @property
    def gpus(self) -> tuple[str, ...]:
        """UUIDs of the GPUs that are known now; empty while no driver is spoken to."""

    def hear_owners(self, owners: Owners) -> None: ...

    def miss_owners(self, why: str) -> None: ...


class Slices:
    """The claimed devices of this node, as its ResourceSlices tell."""

    def __init__(self, connection: Connection, *, node: str) -> None:
        self._connection = connection
        self._node = node
        self._known: dict[SliceKey, str | None] = {}
        self._due_s = float("-inf")
        self._resource = RESOURCE_SLICES

    async def of(self, wanted: frozenset[SliceKey]) -> dict[SliceKey, str | None]:
        """By device its UUID, as far as known. Failures are logged; what is missing is told as unresolved."""
        if not wanted <= self._known.keys() and time.monotonic() >= self._due_s:
            self._due_s = time.monotonic() + SLICES_EVERY_S
            try:
                await self._read()
            except ApiError as failure:
                log.warning("this node's ResourceSlices cannot be read, so claimed GPUs have no owner: %s", failure)
        return {key: self._known[key] for key in wanted if key in self._known}

    async def _read(self) -> None:
        selector = f"spec.nodeName={self._node}"
        try:
            found = await self._connection.list(self._resource, field_selector=selector)
        except Rejected as refusal:
            if not refusal.not_found or self._resource is _OLDER:
                raise
            found = await self._connection.list(_OLDER, field_selector=selector)
            self._resource = _OLDER
        self._known = {key: uuid for raw in found.items for key, uuid in read_slice(raw).items()}


class WorkloadPoll:
    """Tells the control loop what kubelet answers."""

    def __init__(self, socket: Path, control: Hearer, *, port: NvmlPort, slices: Slices) -> None:
        self._socket = socket
        self._control = control
        self._port = port
        self._slices = slices
        self._naming: asyncio.Future[Owners] | None = None
        """A question to NVML that has not returned: until it does no other is asked."""
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
                        held = devices_of(await method(ListPodResourcesRequest()))
                    owners = await self._owners(held)
                except (GRPCError, StreamTerminatedError, DecodeError, OSError, TimeoutError) as error:
                    self._failed(await self._unanswered(), error)
                except NvmlError as error:
                    self._failed("NVML does not say which GPU a pod's device is", error)
                else:
                    self.up, self._told = True, False
                    if owners is not None:
                        self._control.hear_owners(owners)
                await asyncio.sleep(POLL_S)
        finally:
            channel.close()

    async def _owners(self, held: tuple[HeldDevice, ...]) -> Owners | None:
        """None while no GPU is known: then nothing can be traced, and nothing is said. Raises NvmlError."""
        gpus = frozenset(self._control.gpus)
        if not gpus:
            return None
        slices = await self._slices.of(claimed(held))
        if self._naming is not None:
            if not self._naming.done():
                raise _hung("nothing yet")
            self._naming.exception()  # it was given up for; what it says by now is of an older answer
        trace = partial(owners_of, held, gpus=gpus, name_of=self._port.gpu_of, slices=slices)
        self._naming = daemon_call("nvml-names", trace)
        await asyncio.wait({self._naming}, timeout=NAMES_S)
        if not self._naming.done():
            raise _hung(f"nothing for {NAMES_S:g} s")
        naming, self._naming = self._naming, None
        return naming.result()

    async def _unanswered(self) -> str:
        if await asyncio.to_thread(self._socket.exists):
            return f"kubelet's PodResources at {self._socket} gave no usable answer"
        folder = "agent.podResourcesDir must be the folder of that socket, below the kubelet's own"
        return f"kubelet's PodResources is not at {self._socket}: {folder}"

    def _failed(self, what: str, error: Exception) -> None:
        reason = f"{what} ({str(error) or type(error).__name__})"
        if not self._told:
            log.warning("%s", reason)
        self.up, self._told = False, True
        self._control.miss_owners(reason)


def _hung(said: str) -> NvmlError:
    return NvmlError(call="a question for a device's name", code=pynvml.NVML_ERROR_TIMEOUT, said=said)
