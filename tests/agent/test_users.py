"""Who uses a GPU, as the real agent tells it: every way in which kubelet names devices, evidence of use, and floors."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from splitwatt_lab.controlplane import ControlPlane
from splitwatt_nvml_twin.handle import Demand
from support.agent_bench import AgentBench
from support.waiting import eventually

GPUS = 18
DRIVER = "gpu.nvidia.com"


@pytest.fixture
def bench(crds: ControlPlane, tmp_path: Path) -> Iterator[AgentBench]:
    with AgentBench(crds, tmp_path, gpus=GPUS) as bench:
        yield bench


def resource_slice(bench: AgentBench, **uuids: str) -> None:
    devices = [
        {"name": name, "attributes": {"type": {"string": "gpu"}, "uuid": {"string": uuid}}} for name, uuid in uuids.items()
    ]
    manifest: dict[str, Any] = {
        "apiVersion": "resource.k8s.io/v1",
        "kind": "ResourceSlice",
        "metadata": {"name": f"{bench.node}-gpus"},
        "spec": {
            "driver": DRIVER,
            "nodeName": bench.node,
            "pool": {"name": bench.node, "generation": 1, "resourceSliceCount": 1},
            "devices": devices,
        },
    }
    bench.plane.kubectl("create", "-f", "-", stdin=json.dumps(manifest))


def pods(bench: AgentBench, index: int) -> list[str]:
    line = bench.line(index)
    return [pod["pod"] for pod in line.get("workloads") or filter(None, [line.get("workload")])]


def test_all_gpus_are_found_and_traced_to_their_pods_or_told(bench: AgentBench) -> None:
    instances = bench.twin.set_mig(4, 2)
    resource_slice(bench, **{"gpu-5": bench.twin.uuids[5]})
    bench.twin.set_demand(7, Demand(power_w=600.0))
    socket = bench.folder / "kubelet.sock"
    bench.kubelet(
        socket,
        {
            ("ns", "plain"): (0,),
            ("ns", "gke"): ("nvidia1", "nvidia17/gi3"),
            ("ns", "slice-a"): (f"{bench.twin.uuids[2]}::0", instances[0]),
            ("ns", "slice-b"): (f"{bench.twin.uuids[2]}-4", instances[1]),
            ("ns", "lost"): ("nvidia99/vgpu1",),
            ("ns", "by-address"): ("0000:16:00.0",),
            ("ns", "network-card"): ("0000:d8:00.2",),
        },
        {("ns", "claimed"): (DRIVER, bench.node, "gpu-5"), ("ns", "elsewhere"): (DRIVER, bench.node, "gpu-77")},
    )
    bench.create()
    bench.start("--pod-resources", f"unix:{socket}")
    eventually("all GPUs are told", lambda: len((bench.object().get("status") or {}).get("gpus", [])) == GPUS)
    eventually("claims are traced", lambda: pods(bench, 5) == ["claimed"])
    assert [pods(bench, i) for i in (0, 1, 6, 17)] == [["plain"], ["gke"], ["by-address"], ["gke"]]
    assert pods(bench, 2) == pods(bench, 4) == ["slice-a", "slice-b"]
    assert bench.object()["status"]["unresolvedDevices"] == [
        "nvidia.com/gpu nvidia99/vgpu1 (ns/lost)",
        f"{DRIVER}/{bench.node}/gpu-77 of a claim (ns/elsewhere)",
    ]
    bench.grant({0: 400})
    ready: Any = eventually("it is told", lambda: (c := bench.condition("Ready")).get("reason") == "UnknownDevices" and c)
    assert "nvidia99/vgpu1 (ns/lost)" in ready["message"]
    eventually("idleness is proven", lambda: bench.line(8)["use"] == "Idle")
    assert (bench.line(7)["use"], pods(bench, 7)) == ("Busy", [])


def test_a_draw_that_no_cap_lowers_is_told_and_forgotten_with_its_load(bench: AgentBench) -> None:
    bench.create()
    bench.twin.set_floor(0, 230.0)
    bench.twin.set_demands({0: Demand(power_w=400.0), 1: Demand(power_w=400.0)})
    bench.start()
    number = bench.grant({0: 200, 1: 200})
    bench.await_ack(number, (0, 1))
    eventually("its floor is learnt", lambda: bench.line(0).get("floorWatts") == 230)
    assert bench.line(1).get("floorWatts", 0) == 0 and bench.condition("CapsEnforced")["status"] == "True"
    assert bench.limits_w()[:2] == [(200, 200), (200, 200)]
    bench.twin.set_demand(0, Demand(power_w=0.0))
    eventually("it falls", lambda: bench.line(0).get("floorWatts", 0) < 230)
