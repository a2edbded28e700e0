"""Whose GPU is it: from the names by which kubelet knows devices to the UUIDs of NVML. Pure.

Device plugins name GPUs each in their own way, and dynamic resource allocation names none at all:

    GPU-6f1c…                          NVIDIA's plugin
    GPU-6f1c…::2   GPU-6f1c…-2         one GPU shared by time slicing (NVIDIA, HAMi): the UUID, then a replica's number
    MIG-9a0b…      MIG-GPU-6f1c…/1/0   a MIG instance; in the older form its GPU's UUID stands in the name
    nvidia0   nvidia0/gi7   nvidia0/vgpu1   GKE's plugin: the device file, then a part of it
    0000:3b:00.0                       a PCI address: of a GPU, or of a network card (`nvidia.com/hostdev`)
    driver, pool, device               a claim; the UUID stands in the node's ResourceSlice

What cannot be traced is told, never dropped: a GPU whose owner is unknown is not a free one. Devices of other resources than
`nvidia.com/`, PCI addresses that are no GPU's here (network cards bear that prefix too, and a GPU handed to a virtual machine
is nothing that the driver could cap) and claims of other drivers that carry no UUID (channels of a compute domain) are none of
ours, and are passed over.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from splitwatt_client.podresources import ClaimedDevice, HeldDevice, PluginDevice
from splitwatt_core.protocol.contract import Workload

RESOURCE_PREFIX: Final = "nvidia.com/"
DRIVER_SUFFIX: Final = "nvidia.com"
GPU_DRIVER_PREFIX: Final = "gpu."
_DEVICE_FILE: Final = re.compile(r"nvidia\d+")
_PCI_ADDRESS: Final = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]", re.IGNORECASE)
_PARTS: Final = ("::", "/", "-", "_", ".", ":")
"""What may stand between a GPU's own name and the number of a replica or part."""

SliceKey = tuple[str, str, str]
"""Driver, pool and device name."""
NameOf = Callable[[str], str | None]
"""The UUID of the GPU that a device file (`nvidia0`), a MIG instance's UUID or a PCI address means; None: of none."""


@dataclass(frozen=True, slots=True)
class Owners:
    """`by_gpu`: the pods that hold each GPU, by UUID. `unresolved`: devices that could not be traced, each with its pod, in
    words. `error`: why kubelet was not heard lately; what it said last stands."""

    by_gpu: Mapping[str, tuple[Workload, ...]] = field(default_factory=dict)
    unresolved: tuple[str, ...] = ()
    error: str = ""


def owners_of(
    held: Iterable[HeldDevice], *, gpus: Collection[str], name_of: NameOf, slices: Mapping[SliceKey, str | None]
) -> Owners:
    """`gpus`: UUIDs of this node's GPUs. `slices`: by claimed device its UUID, None where it has none; a device that is
    missing there was not found."""
    by_gpu: dict[str, dict[Workload, None]] = {}
    unresolved: dict[str, None] = {}
    for device in held:
        workload = Workload(device.owner.namespace, device.owner.pod)
        if isinstance(device, ClaimedDevice):
            key = (device.driver, device.pool, device.device)
            name = slices.get(key)
            known, ours = f"{'/'.join(key)} of a claim", device.driver.endswith(DRIVER_SUFFIX)
            if name is None and key in slices and not device.driver.startswith(GPU_DRIVER_PREFIX):
                continue
        else:
            name, known, ours = device.device_id, f"{device.resource} {device.device_id}", _is_ours(device)
        gpu = None if name is None else gpu_of(name, gpus=gpus, name_of=name_of)
        if gpu is not None:
            by_gpu.setdefault(gpu, {})[workload] = None
        elif ours:
            unresolved[f"{known} ({workload.namespace}/{workload.pod})"] = None
    return Owners({uuid: tuple(pods) for uuid, pods in by_gpu.items()}, tuple(unresolved))


def _is_ours(device: PluginDevice) -> bool:
    return device.resource.startswith(RESOURCE_PREFIX) and not _PCI_ADDRESS.fullmatch(device.device_id)


def gpu_of(name: str, *, gpus: Collection[str], name_of: NameOf) -> str | None:
    """The UUID among `gpus` that a device's name means; None: of none of them."""
    whole = name.partition("::")[0]
    if whole in gpus:
        return whole
    bare = whole.removeprefix("MIG-")
    for uuid in gpus:
        if bare.startswith(uuid) and bare[len(uuid) :].startswith(_PARTS):
            return uuid
    asked = whole if whole.startswith("MIG-") else whole.partition("/")[0]
    if not (asked.startswith("MIG-") or _DEVICE_FILE.fullmatch(asked) or _PCI_ADDRESS.fullmatch(asked)):
        return None
    found = name_of(asked)
    return found if found in gpus else None


def claimed(held: Iterable[HeldDevice]) -> frozenset[SliceKey]:
    """The claimed devices among those held, to be looked up."""
    return frozenset((d.driver, d.pool, d.device) for d in held if isinstance(d, ClaimedDevice))


def read_slice(raw: Mapping[str, Any]) -> dict[SliceKey, str | None]:
    """The devices of one ResourceSlice as the API server gives it: by driver, pool and name their UUID, None without one.

    Of a MIG instance its GPU's UUID where that is told, for a cap is the whole GPU's."""
    spec = raw.get("spec") or {}
    driver, pool = str(spec.get("driver", "")), str((spec.get("pool") or {}).get("name", ""))
    found: dict[SliceKey, str | None] = {}
    for device in spec.get("devices") or ():
        attributes = (device.get("basic") or device).get("attributes") or {}
        uuid = _text(attributes, driver, "parentUUID") or _text(attributes, driver, "uuid")
        found[(driver, pool, str(device.get("name", "")))] = uuid
    return found


def _text(attributes: Mapping[str, Any], driver: str, name: str) -> str | None:
    """An attribute, by its short name or under the driver's domain, which mean the same."""
    value = attributes.get(name) or attributes.get(f"{driver}/{name}") or {}
    text = value.get("string")
    return text if isinstance(text, str) and text else None
