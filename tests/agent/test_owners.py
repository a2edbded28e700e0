"""Whose GPU is it: every way in which kubelet names a device leads to the GPU, or is told."""

from __future__ import annotations

import pytest
from splitwatt_agent.owners import SliceKey, claimed, owners_of, read_slice
from splitwatt_client.podresources import ClaimedDevice, DeviceOwner, HeldDevice, PluginDevice
from splitwatt_core.protocol.contract import Workload

G0 = "GPU-6f1c0000-1111-2222-3333-444455556666"
G1 = "GPU-6f1c0000-1111-2222-3333-444455556667"
MIG = "MIG-9a0b0000-1111-2222-3333-444455556666"
NAMES = {"nvidia0": G0, "nvidia1": G1, MIG: G1, "0000:3B:00.0": G1}
POD, OTHER = DeviceOwner("ns", "a"), DeviceOwner("ns", "b")


def plugin(device_id: str, owner: DeviceOwner = POD, resource: str = "nvidia.com/gpu") -> PluginDevice:
    return PluginDevice(owner, resource, device_id)


def claim(device: str, driver: str = "gpu.nvidia.com", owner: DeviceOwner = POD) -> ClaimedDevice:
    return ClaimedDevice(owner, driver, "n1", device)


def trace(*held: HeldDevice, slices: dict[SliceKey, str | None] | None = None) -> tuple[dict[str, list[str]], tuple[str, ...]]:
    found = owners_of(held, gpus=(G0, G1), name_of=NAMES.get, slices=slices or {})
    return {uuid: [pod.pod for pod in pods] for uuid, pods in found.by_gpu.items()}, found.unresolved


@pytest.mark.parametrize(
    "device_id",
    [G1, f"{G1}::2", f"{G1}-4", f"{G1}-_-0", f"{G1}/vgpu3", "nvidia1", "nvidia1/gi7", "nvidia1/vgpu1", "nvidia1/gi1/vgpu2",
     MIG, f"{MIG}::1", f"MIG-{G1}/7/0", "0000:3B:00.0"],
)  # fmt: skip
def test_every_name_of_a_gpu_leads_to_it(device_id: str) -> None:
    assert trace(plugin(device_id)) == ({G1: ["a"]}, ())


def test_other_vendors_of_sharing_are_understood_by_the_gpus_own_name() -> None:
    assert trace(plugin(f"{G0}-3", resource="volcano.sh/vgpu-number")) == ({G0: ["a"]}, ())


def test_what_cannot_be_traced_is_told_with_its_pod() -> None:
    held = [plugin("nvidia7"), plugin("MIG-gone", OTHER, "nvidia.com/mig-1g.5gb"), plugin("GPU-elsewhere"), plugin("")]
    owners, unresolved = trace(*held)
    assert owners == {}
    assert unresolved[:2] == ("nvidia.com/gpu nvidia7 (ns/a)", "nvidia.com/mig-1g.5gb MIG-gone (ns/b)")
    assert len(unresolved) == 4


def test_devices_of_others_are_passed_over() -> None:
    assert trace(plugin("0000:d8:00.2", resource="nvidia.com/hostdev")) == ({}, ())
    assert trace(plugin("nic-0", resource="example.com/nic")) == ({}, ())
    compute_domain = ("compute-domain.nvidia.com", "n1", "channel-0")
    assert trace(claim("channel-0", "compute-domain.nvidia.com"), slices={compute_domain: None}) == ({}, ())


def test_pods_that_share_a_gpu_are_all_named_once() -> None:
    held = [plugin("nvidia0/gi1"), plugin("nvidia0/gi2"), plugin("nvidia0/gi3", OTHER)]
    found = owners_of(held, gpus=(G0, G1), name_of=NAMES.get, slices={})
    assert found.by_gpu == {G0: (Workload("ns", "a"), Workload("ns", "b"))}


def slice_of(version: str, *devices: dict[str, object]) -> dict[str, object]:
    return {
        "apiVersion": f"resource.k8s.io/{version}",
        "spec": {"driver": "gpu.nvidia.com", "nodeName": "n1", "pool": {"name": "n1"}, "devices": list(devices)},
    }


@pytest.mark.parametrize("form", ["plain", "basic", "qualified"])
def test_claims_are_traced_by_the_nodes_resource_slices(form: str) -> None:
    def device(name: str, **attributes: str) -> dict[str, object]:
        prefix = "gpu.nvidia.com/" if form == "qualified" else ""
        told = {"attributes": {f"{prefix}{key}": {"string": text} for key, text in attributes.items()}}
        return {"name": name, **({"basic": told} if form == "basic" else told)}

    slices = read_slice(
        slice_of("v1", device("gpu-0", uuid=G0, type="gpu"), device("mig", uuid=MIG, parentUUID=G1), device("bare", type="gpu"))
    )
    held = [claim("gpu-0"), claim("mig", owner=OTHER), claim("bare"), claim("missing")]
    owners, unresolved = trace(*held, slices=slices)
    assert owners == {G0: ["a"], G1: ["b"]}
    assert unresolved == (
        "gpu.nvidia.com/n1/bare of a claim (ns/a)",
        "gpu.nvidia.com/n1/missing of a claim (ns/a)",
    )


def test_only_claims_are_looked_up() -> None:
    assert claimed([plugin(G0), claim("gpu-0")]) == {("gpu.nvidia.com", "n1", "gpu-0")}
