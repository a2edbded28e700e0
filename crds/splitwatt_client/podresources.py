"""kubelet's PodResources API v1: message classes made at run time, the method's path, and reading an answer.

The descriptor below is the part of `k8s.io/kubelet/pkg/apis/podresources/v1/api.proto` that tells which device belongs
to which pod; field numbers are the API's. Fields it leaves out are skipped by protobuf. Building the classes from a
descriptor spares generated code and a protoc in the build. No channel code here: the agent calls the service, and
whoever stands in for kubelet serves it, from the same classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

LIST_METHOD: Final = "/v1.PodResourcesLister/List"
"""Path of the unary call: ListPodResourcesRequest -> ListPodResourcesResponse."""

_STRING: Final = descriptor_pb2.FieldDescriptorProto.TYPE_STRING
_REPEATED: Final = descriptor_pb2.FieldDescriptorProto.LABEL_REPEATED
_SINGLE: Final = descriptor_pb2.FieldDescriptorProto.LABEL_OPTIONAL
_MESSAGES: Final[Mapping[str, tuple[tuple[str, int, str | None, bool], ...]]] = {
    # message: (field, number, message type or None for a string, repeated)
    "ListPodResourcesRequest": (),
    "ListPodResourcesResponse": (("pod_resources", 1, "PodResources", True),),
    "PodResources": (("name", 1, None, False), ("namespace", 2, None, False), ("containers", 3, "ContainerResources", True)),
    "ContainerResources": (("name", 1, None, False), ("devices", 2, "ContainerDevices", True)),
    "ContainerDevices": (("resource_name", 1, None, False), ("device_ids", 2, None, True)),
}


def _classes() -> dict[str, Any]:
    proto = descriptor_pb2.FileDescriptorProto(name="splitwatt/podresources.proto", package="v1", syntax="proto3")
    for message, fields in _MESSAGES.items():
        entry = proto.message_type.add(name=message)
        for name, number, kind, repeated in fields:
            label = _REPEATED if repeated else _SINGLE
            field = entry.field.add(name=name, number=number, label=label)
            if kind is None:
                field.type = _STRING
            else:
                field.type = descriptor_pb2.FieldDescriptorProto.TYPE_MESSAGE
                field.type_name = f".v1.{kind}"
    pool = descriptor_pool.DescriptorPool()  # our own: another user of the same package name must not collide
    pool.Add(proto)
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"v1.{name}")) for name in _MESSAGES}


_CLASSES: Final = _classes()
ListPodResourcesRequest: Final[Any] = _CLASSES["ListPodResourcesRequest"]
ListPodResourcesResponse: Final[Any] = _CLASSES["ListPodResourcesResponse"]


@dataclass(frozen=True, slots=True)
class DeviceOwner:
    """A pod that holds a device."""

    namespace: str
    pod: str


def response_of(assignments: Mapping[DeviceOwner, Iterable[str]], *, resource_name: str) -> Any:
    """The answer a kubelet gives: each pod with one container that holds the devices `resource_name`."""
    response = ListPodResourcesResponse()
    for owner, device_ids in assignments.items():
        pod = response.pod_resources.add(name=owner.pod, namespace=owner.namespace)
        pod.containers.add(name="main").devices.add(resource_name=resource_name, device_ids=list(device_ids))
    return response


def owners_of(response: Any, *, resource_prefix: str) -> dict[str, DeviceOwner]:
    """Device id -> its pod, for devices whose resource name starts with `resource_prefix` ("nvidia.com/").

    A shared GPU's replicas ("GPU-1::0", "GPU-1::1") count for the GPU; the pod listed last then stands for it.
    """
    owners: dict[str, DeviceOwner] = {}
    for pod in response.pod_resources:
        owner = DeviceOwner(namespace=pod.namespace, pod=pod.name)
        for container in pod.containers:
            for devices in container.devices:
                if devices.resource_name.startswith(resource_prefix):
                    for device_id in devices.device_ids:
                        owners[device_id.partition("::")[0]] = owner
    return owners
