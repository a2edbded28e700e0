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
    "ContainerResources": (
        ("name", 1, None, False),
        ("devices", 2, "ContainerDevices", True),
        ("dynamic_resources", 5, "DynamicResource", True),
    ),
    "ContainerDevices": (("resource_name", 1, None, False), ("device_ids", 2, None, True)),
    "DynamicResource": (
        ("claim_name", 2, None, False),
        ("claim_namespace", 3, None, False),
        ("claim_resources", 4, "ClaimResource", True),
    ),
    "ClaimResource": (("driver_name", 2, None, False), ("pool_name", 3, None, False), ("device_name", 4, None, False)),
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


@dataclass(frozen=True, slots=True)
class PluginDevice:
    """A device of a device plugin, under the plugin's own name for it."""

    owner: DeviceOwner
    resource: str
    device_id: str


@dataclass(frozen=True, slots=True)
class ClaimedDevice:
    """A device of a ResourceClaim (dynamic resource allocation). Driver, pool and device name find it in a ResourceSlice."""

    owner: DeviceOwner
    driver: str
    pool: str
    device: str


HeldDevice = PluginDevice | ClaimedDevice


def response_of(
    assignments: Mapping[DeviceOwner, Iterable[str]], *, resource_name: str, claims: Iterable[ClaimedDevice] = ()
) -> Any:
    """The answer a kubelet gives: each pod with one container that holds the devices `resource_name`; `claims`: more pods,
    one for each claimed device."""
    response = ListPodResourcesResponse()
    for owner, device_ids in assignments.items():
        pod = response.pod_resources.add(name=owner.pod, namespace=owner.namespace)
        pod.containers.add(name="main").devices.add(resource_name=resource_name, device_ids=list(device_ids))
    for claim in claims:
        pod = response.pod_resources.add(name=claim.owner.pod, namespace=claim.owner.namespace)
        dynamic = pod.containers.add(name="main").dynamic_resources.add(claim_name="gpus", claim_namespace=claim.owner.namespace)
        dynamic.claim_resources.add(driver_name=claim.driver, pool_name=claim.pool, device_name=claim.device)
    return response


def devices_of(response: Any) -> tuple[HeldDevice, ...]:
    """All devices that containers hold, in kubelet's order, each once per pod."""
    held: dict[HeldDevice, None] = {}
    for pod in response.pod_resources:
        owner = DeviceOwner(namespace=pod.namespace, pod=pod.name)
        for container in pod.containers:
            for devices in container.devices:
                for device_id in devices.device_ids:
                    held[PluginDevice(owner, devices.resource_name, device_id)] = None
            for dynamic in container.dynamic_resources:
                for claim in dynamic.claim_resources:
                    held[ClaimedDevice(owner, claim.driver_name, claim.pool_name, claim.device_name)] = None
    return tuple(held)
