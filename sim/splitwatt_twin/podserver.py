"""kubelet's PodResources service for one simulated node: which GPU belongs to which pod.

Served on a unix socket by the same message classes that the agent asks with, so the agent cannot tell it from a
kubelet's. Only `List` is there; other methods answer UNIMPLEMENTED, as an old kubelet would.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from grpclib.const import Cardinality, Handler
from grpclib.server import Server, Stream
from splitwatt_client.podresources import (
    LIST_METHOD,
    DeviceOwner,
    ListPodResourcesRequest,
    ListPodResourcesResponse,
    response_of,
)
from splitwatt_core.names import GPU_RESOURCE

from splitwatt_twin.devices import NodeDevices


class PodResourcesServer:
    """`start` binds `path` (an old socket there is replaced), `stop` unbinds it."""

    def __init__(self, devices: NodeDevices, path: Path) -> None:
        self._devices = devices
        self._path = path
        self._server: Server | None = None

    def __mapping__(self) -> dict[str, Handler]:
        return {LIST_METHOD: Handler(self._list, Cardinality.UNARY_UNARY, ListPodResourcesRequest, ListPodResourcesResponse)}

    async def _list(self, stream: Stream[Any, Any]) -> None:
        await stream.recv_message()
        owners = {DeviceOwner(namespace=pod.namespace, pod=pod.name): self._devices.device_ids(pod) for pod in self._devices.held}
        await stream.send_message(response_of(owners, resource_name=GPU_RESOURCE))

    async def start(self) -> None:
        """Raises OSError when the socket cannot be bound."""
        await asyncio.to_thread(self._prepare)
        self._server = Server([self])
        await self._server.start(path=str(self._path))

    def _prepare(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if self._path.is_socket():
            self._path.unlink()

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()
            self._server = None
            self._path.unlink(missing_ok=True)
