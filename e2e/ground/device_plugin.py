"""A device plugin that tells the kubelet of the node's GPUs: what NVIDIA's does, in small. Runs in the agent's image.

One resource, whose devices are the UUIDs that NVML knows; or those named in DEVICES, each offered REPLICAS times, as NVIDIA's
offers a GPU that is shared by time slicing. It registers with the kubelet, and again whenever the kubelet has forgotten it,
which shows in its own socket being gone (a kubelet empties the folder as it starts). Imports nothing of the product: it is the
machine's part, and runs from a ConfigMap.
Source: k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1/api.proto.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pynvml
from grpclib.client import Channel, UnaryUnaryMethod
from grpclib.const import Cardinality, Handler
from grpclib.server import Server, Stream

from ground.wire import TEXT, Field, message_classes

FOLDER = Path("/var/lib/kubelet/device-plugins")
RESOURCE = os.environ.get("RESOURCE", "nvidia.com/gpu")
SOCKET = FOLDER / f"splitwatt-e2e-{RESOURCE.rpartition('/')[2]}.sock"
VERSION = "v1beta1"
REPLICA = "::"
"""Between a UUID and the number of a replica."""
LOOK_S = 1.0

MESSAGES: dict[str, list[Field]] = {
    "Empty": [],
    "DevicePluginOptions": [],
    "RegisterRequest": [("version", 1, TEXT, False), ("endpoint", 2, TEXT, False), ("resource_name", 3, TEXT, False)],
    "Device": [("ID", 1, TEXT, False), ("health", 2, TEXT, False)],
    "ListAndWatchResponse": [("devices", 1, "Device", True)],
    "ContainerAllocateRequest": [("devices_ids", 1, TEXT, True)],
    "AllocateRequest": [("container_requests", 1, "ContainerAllocateRequest", True)],
    "Pair": [("key", 1, TEXT, False), ("value", 2, TEXT, False)],
    "ContainerAllocateResponse": [("envs", 1, "Pair", True)],
    "AllocateResponse": [("container_responses", 1, "ContainerAllocateResponse", True)],
}
M = message_classes(VERSION, MESSAGES)


class Plugin:
    def __init__(self, devices: list[str]) -> None:
        self._devices = devices

    def __mapping__(self) -> dict[str, Handler]:
        service = f"/{VERSION}.DevicePlugin"
        unary, stream = Cardinality.UNARY_UNARY, Cardinality.UNARY_STREAM
        return {
            f"{service}/GetDevicePluginOptions": Handler(self._options, unary, M["Empty"], M["DevicePluginOptions"]),
            f"{service}/ListAndWatch": Handler(self._list, stream, M["Empty"], M["ListAndWatchResponse"]),
            f"{service}/Allocate": Handler(self._allocate, unary, M["AllocateRequest"], M["AllocateResponse"]),
        }

    async def _options(self, stream: Stream[Any, Any]) -> None:
        await stream.recv_message()
        await stream.send_message(M["DevicePluginOptions"]())

    async def _list(self, stream: Stream[Any, Any]) -> None:
        await stream.recv_message()
        devices = [M["Device"](ID=device, health="Healthy") for device in self._devices]
        await stream.send_message(M["ListAndWatchResponse"](devices=devices))
        await asyncio.Event().wait()

    async def _allocate(self, stream: Stream[Any, Any]) -> None:
        request = await stream.recv_message()
        assert request is not None
        answer = M["AllocateResponse"]()
        for container in request.container_requests:
            uuids = ",".join(device.partition(REPLICA)[0] for device in container.devices_ids)
            answer.container_responses.add().envs.add(key="NVIDIA_VISIBLE_DEVICES", value=uuids)
        await stream.send_message(answer)


async def register() -> None:
    channel = Channel(path=str(FOLDER / "kubelet.sock"))
    try:
        call = UnaryUnaryMethod(channel, f"/{VERSION}.Registration/Register", M["RegisterRequest"], M["Empty"])
        await call(M["RegisterRequest"](version=VERSION, endpoint=SOCKET.name, resource_name=RESOURCE))
    finally:
        channel.close()
    print(f"registered {RESOURCE}", flush=True)  # noqa: T201 - a pod's log


def offered() -> list[str]:
    replicas = int(os.environ.get("REPLICAS", "0"))
    if not replicas:
        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(at) for at in range(pynvml.nvmlDeviceGetCount())]
        return [pynvml.nvmlDeviceGetUUID(handle) for handle in handles]
    return [f"{uuid}{REPLICA}{number}" for uuid in os.environ["DEVICES"].split(",") for number in range(replicas)]


async def main() -> None:
    plugin = Plugin(offered())
    while True:
        SOCKET.unlink(missing_ok=True)
        server = Server([plugin])
        await server.start(path=str(SOCKET))
        try:
            await register()
            while SOCKET.exists():  # noqa: ASYNC110 - the kubelet gives no other sign
                await asyncio.sleep(LOOK_S)
        except OSError as error:
            print(f"the kubelet does not answer: {error}", flush=True)  # noqa: T201
            await asyncio.sleep(LOOK_S)
        server.close()


if __name__ == "__main__":
    asyncio.run(main())
