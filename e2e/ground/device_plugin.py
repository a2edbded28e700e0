"""A device plugin that tells the kubelet of the node's GPUs: what NVIDIA's does, in small. Runs in the agent's image.

One resource, `nvidia.com/gpu`, whose devices are the UUIDs that NVML knows. It registers with the kubelet, and again whenever
the kubelet has forgotten it, which shows in its own socket being gone (a kubelet empties the folder as it starts). Imports
nothing of ours: it is the machine's part, and runs from a ConfigMap.
Source: k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1/api.proto.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pynvml
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from grpclib.client import Channel, UnaryUnaryMethod
from grpclib.const import Cardinality, Handler
from grpclib.server import Server, Stream

FOLDER = Path("/var/lib/kubelet/device-plugins")
SOCKET = FOLDER / "splitwatt-e2e.sock"
RESOURCE = "nvidia.com/gpu"
VERSION = "v1beta1"
LOOK_S = 1.0

FIELDS = {
    # message: (field, number, message type, or None for a string, repeated)
    "Empty": (),
    "DevicePluginOptions": (),
    "RegisterRequest": (("version", 1, None, False), ("endpoint", 2, None, False), ("resource_name", 3, None, False)),
    "Device": (("ID", 1, None, False), ("health", 2, None, False)),
    "ListAndWatchResponse": (("devices", 1, "Device", True),),
    "ContainerAllocateRequest": (("devices_ids", 1, None, True),),
    "AllocateRequest": (("container_requests", 1, "ContainerAllocateRequest", True),),
    # A map is a repeated pair on the wire.
    "Pair": (("key", 1, None, False), ("value", 2, None, False)),
    "ContainerAllocateResponse": (("envs", 1, "Pair", True),),
    "AllocateResponse": (("container_responses", 1, "ContainerAllocateResponse", True),),
}


def message_classes() -> dict[str, Any]:
    kinds = descriptor_pb2.FieldDescriptorProto
    proto = descriptor_pb2.FileDescriptorProto(name="device-plugin.proto", package=VERSION, syntax="proto3")
    for message, fields in FIELDS.items():
        entry = proto.message_type.add(name=message)
        for name, number, kind, repeated in fields:
            field = entry.field.add(name=name, number=number)
            field.label = kinds.LABEL_REPEATED if repeated else kinds.LABEL_OPTIONAL
            field.type = kinds.TYPE_STRING if kind is None else kinds.TYPE_MESSAGE
            if kind is not None:
                field.type_name = f".{VERSION}.{kind}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(proto)
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{VERSION}.{name}")) for name in FIELDS}


M = message_classes()


class Plugin:
    def __init__(self, uuids: list[str]) -> None:
        self._uuids = uuids

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
        devices = [M["Device"](ID=uuid, health="Healthy") for uuid in self._uuids]
        await stream.send_message(M["ListAndWatchResponse"](devices=devices))
        await asyncio.Event().wait()

    async def _allocate(self, stream: Stream[Any, Any]) -> None:
        request = await stream.recv_message()
        assert request is not None
        answer = M["AllocateResponse"]()
        for container in request.container_requests:
            answer.container_responses.add().envs.add(key="NVIDIA_VISIBLE_DEVICES", value=",".join(container.devices_ids))
        await stream.send_message(answer)


async def register() -> None:
    channel = Channel(path=str(FOLDER / "kubelet.sock"))
    try:
        call = UnaryUnaryMethod(channel, f"/{VERSION}.Registration/Register", M["RegisterRequest"], M["Empty"])
        await call(M["RegisterRequest"](version=VERSION, endpoint=SOCKET.name, resource_name=RESOURCE))
    finally:
        channel.close()
    print(f"registered {RESOURCE}", flush=True)  # noqa: T201 - a pod's log


async def main() -> None:
    pynvml.nvmlInit()
    handles = [pynvml.nvmlDeviceGetHandleByIndex(at) for at in range(pynvml.nvmlDeviceGetCount())]
    plugin = Plugin([pynvml.nvmlDeviceGetUUID(handle) for handle in handles])
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
