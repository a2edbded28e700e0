"""Kubernetes Nodes for kwok to keep alive: created whole, with the GPUs, boot and rack the lab gives them.

A Node is posted with its status, as a kubelet registers itself; kwok then reports it Ready, renews its lease and leaves
what it finds in status alone. `nodeInfo.bootID` is the boot of the simulated machine: a new one says "rebooted".
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final

import httpx
from splitwatt_core.names import GPU_RESOURCE, LABEL_POOL, LABEL_RACK

from splitwatt_lab.components import KWOK_ANNOTATION
from splitwatt_lab.controlplane import ControlPlane
from splitwatt_lab.errors import LabError

CONNECTIONS: Final = 8
"""Requests in flight at once: beyond this a small machine only queues."""
_POLL_S: Final = 0.1
_CPUS: Final = "192"
_MEMORY: Final = "2Ti"
_PODS: Final = "110"


def new_boot_id() -> str:
    return str(uuid.uuid4())


@dataclass(frozen=True, slots=True)
class NodeSpec:
    """One GPU server. `rack` and `pool` become labels (an empty one none at all), `labels` are added as they are."""

    name: str
    rack: str = ""
    pool: str = ""
    gpus: int = 8
    boot_id: str = field(default_factory=new_boot_id)
    labels: Mapping[str, str] = field(default_factory=dict)

    def manifest(self) -> dict[str, Any]:
        labels = {"kubernetes.io/hostname": self.name, "kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64"}
        labels |= {key: value for key, value in ((LABEL_RACK, self.rack), (LABEL_POOL, self.pool)) if value}
        resources = {"cpu": _CPUS, "memory": _MEMORY, "pods": _PODS, GPU_RESOURCE: str(self.gpus)}
        return {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {
                "name": self.name,
                "labels": {**labels, **self.labels},
                "annotations": {KWOK_ANNOTATION: "fake", "node.alpha.kubernetes.io/ttl": "0"},
            },
            "status": {
                "capacity": resources,
                "allocatable": resources,
                "nodeInfo": {
                    "bootID": self.boot_id,
                    **dict.fromkeys(("machineID", "systemUUID", "kernelVersion", "osImage"), ""),
                    **dict.fromkeys(("containerRuntimeVersion", "kubeletVersion", "kubeProxyVersion"), ""),
                    "operatingSystem": "linux",
                    "architecture": "amd64",
                },
            },
        }


def create(plane: ControlPlane, nodes: Sequence[NodeSpec], *, ready_s: float = 60.0) -> None:
    """Create all nodes and wait until each is Ready. Raises LabError."""
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        for response in pool.map(lambda node: plane.http.post("/api/v1/nodes", json=node.manifest()), nodes):
            _check(response)
    await_ready(plane, [node.name for node in nodes], timeout_s=ready_s)


def await_ready(plane: ControlPlane, names: Sequence[str], *, timeout_s: float) -> None:
    """Wait until every one of these nodes is Ready and untainted. Raises LabError naming one that is not."""
    deadline_s = time.monotonic() + timeout_s
    while waiting := set(names) - _ready(plane):
        if time.monotonic() > deadline_s:
            raise LabError(
                f"{len(waiting)} nodes, {min(waiting)} among them, were not ready after {timeout_s:g} s "
                f"(log: {plane.log('kwok')})"
            )
        time.sleep(_POLL_S)


def set_labels(plane: ControlPlane, name: str, labels: Mapping[str, str | None]) -> None:
    """Set labels; None removes one. A changed rack label is a move."""
    _merge(plane, f"/api/v1/nodes/{name}", {"metadata": {"labels": dict(labels)}})


def reboot(plane: ControlPlane, name: str, boot_id: str | None = None) -> str:
    """Give the node a new boot; returns its id."""
    boot_id = boot_id or new_boot_id()
    _merge(plane, f"/api/v1/nodes/{name}/status", {"status": {"nodeInfo": {"bootID": boot_id}}})
    return boot_id


def delete(plane: ControlPlane, names: Sequence[str]) -> None:
    """Delete these nodes; one that is gone already is fine."""
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        for response in pool.map(lambda name: plane.http.delete(f"/api/v1/nodes/{name}"), names):
            if response.status_code != httpx.codes.NOT_FOUND:
                _check(response)


def _ready(plane: ControlPlane) -> set[str]:
    nodes = _check(plane.http.get("/api/v1/nodes", params={"resourceVersion": "0"}))["items"]
    return {
        node["metadata"]["name"]
        for node in nodes
        if not node["spec"].get("taints")
        and any(c["type"] == "Ready" and c["status"] == "True" for c in node["status"].get("conditions", ()))
    }


def _merge(plane: ControlPlane, path: str, body: Mapping[str, Any]) -> None:
    headers = {"Content-Type": "application/merge-patch+json"}
    _check(plane.http.patch(path, json=body, headers=headers))


def _check(response: httpx.Response) -> dict[str, Any]:
    answer: dict[str, Any] = response.json()
    if response.is_error:
        raise LabError(f"{response.request.method} {response.request.url.path} was refused: {answer.get('message', answer)}")
    return answer
