"""A site where InferenceClusters are served: the operator as a process, racks, budgets and namespaces on a real API server.

The nodes' agents are threads around the core's own Enforcer: GPUs that take every cap at once.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
from splitwatt_core.names import LABEL_RACK
from splitwatt_core.protocol.contract import Workload, node_power_from_wire, status_to_wire
from splitwatt_core.protocol.enforcer import GpuIdentity
from splitwatt_lab import nodes
from splitwatt_lab.controlplane import ControlPlane
from splitwatt_lab.ports import free_port
from splitwatt_lab.processes import Process, ProcessGroup
from splitwatt_shell.waiting import NotInTimeError
from splitwatt_truth.agent import MemoryAgent
from support.waiting import eventually

POLL_S = 0.1
OURS = "/apis/splitwatt.io/v1alpha1"
H100_MODEL, MIN_W, MAX_W, CLIFF_W = "NVIDIA H100 80GB HBM3", 200, 700, 350
GPUS = 8
PATHS = {
    "deployment": ("apis/apps/v1", "deployments"),
    "service": ("api/v1", "services"),
    "services": ("api/v1", "services"),
    "pod": ("api/v1", "pods"),
    "poddisruptionbudgets": ("apis/policy/v1", "poddisruptionbudgets"),
    "events.v1.events.k8s.io": ("apis/events.k8s.io/v1", "events"),
    "ic": ("apis/splitwatt.io/v1alpha1", "inferenceclusters"),
    "rolescale": ("apis/splitwatt.io/v1alpha1", "rolescales"),
}
"""Kinds of a namespace that tests ask for again and again, by kubectl's name: asked by HTTP, for a process costs far more."""
PAIR_W = 2 * GPUS * (CLIFF_W - MIN_W)
"""What a prefill and a decode replica of 8 GPUs each need above the minimum caps of their nodes."""


class ScriptedAgents:
    """The agents of some nodes, in one thread."""

    def __init__(self, plane: ControlPlane) -> None:
        self._plane = plane
        self._agents: dict[str, MemoryAgent] = {}
        self._caps_mw: dict[str, dict[str, int]] = {}
        self._boots: dict[str, str] = {}
        self._reported: dict[str, Any] = {}
        self._stop = threading.Event()
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def add(self, node: nodes.NodeSpec) -> None:
        uuids = [f"GPU-{node.name}-{i}" for i in range(node.gpus)]
        gpus = {u: GpuIdentity(u, H100_MODEL, MIN_W * 1000, MAX_W * 1000, MAX_W * 1000) for u in uuids}
        self._caps_mw[node.name] = dict.fromkeys(gpus, MAX_W * 1000)
        self._boots[node.name] = node.boot_id
        self._agents[node.name] = MemoryAgent(gpus)

    def close(self) -> None:
        self._stop.set()
        self._thread.join(10.0)
        if self.error is not None:
            raise self.error

    def _run(self) -> None:
        try:
            while not self._stop.wait(POLL_S):
                found = self._plane.http.get(f"{OURS}/nodepowers").json().get("items", [])
                pods = self._plane.http.get("/api/v1/pods").json().get("items", [])
                for raw in found:
                    if raw["metadata"]["name"] in self._agents:
                        self._tick(raw, pods)
        except httpx.TransportError as error:
            if not self._stop.is_set():
                self.error = error

    def _tick(self, raw: Mapping[str, Any], pods: list[Any]) -> None:
        name = raw["metadata"]["name"]
        agent, caps = self._agents[name], self._caps_mw[name]
        agent.observe(node_power_from_wire(raw), consistent=True)
        agent.settle(time.monotonic(), caps)
        status = agent.status(self._boots[name], self._workloads(name, list(caps), pods))
        wire = status_to_wire(status)
        if self._reported.get(name) == wire:
            return
        body = {
            "apiVersion": raw["apiVersion"],
            "kind": "NodePower",
            "metadata": {k: raw["metadata"][k] for k in ("name", "uid", "resourceVersion")},
            "status": wire,
        }
        answer = self._plane.http.patch(
            f"{OURS}/nodepowers/{name}/status?fieldManager=splitwatt-agent&force=true",
            content=json.dumps(body),
            headers={"Content-Type": "application/apply-patch+yaml"},
        )
        if answer.status_code == 200:
            self._reported[name] = wire
        else:
            assert answer.status_code in (404, 409), answer.text

    def _workloads(self, node: str, gpus: list[str], pods: list[Any]) -> dict[str, Workload]:
        """As kubelet would: GPUs in order, to the pods bound here."""
        free, given = iter(gpus), {}
        for pod in sorted(pods, key=lambda p: p["metadata"]["uid"]):
            if pod["spec"].get("nodeName") == node:
                requests = pod["spec"]["containers"][0].get("resources", {}).get("requests", {})
                for _ in range(int(requests.get("nvidia.com/gpu", 0))):
                    given[next(free)] = Workload(pod["metadata"]["namespace"], pod["metadata"]["name"])
        return given


@dataclass
class Site:
    """One test's rack, budget and namespace."""

    plane: ControlPlane
    agents: ScriptedAgents
    namespace: str
    rack: str
    _nodes: list[str] = field(default_factory=list)

    def add_nodes(self, count: int) -> None:
        made = [nodes.NodeSpec(name=f"{self.rack}-n{i}", rack=self.rack, pool=self.rack) for i in range(count)]
        self._nodes += [node.name for node in made]
        nodes.create(self.plane, made)
        for node in made:
            self.agents.add(node)

    def limit(self, watts: int, **more: Any) -> None:
        spec = {
            "limitWatts": watts,
            "mode": "Strict",
            "nodeSelector": {"matchLabels": {LABEL_RACK: self.rack}},
            "nonGpuWattsPerNode": 0,
            "unmanagedWattsPerNode": 10000,
            **more,
        }
        meta = {"name": self.rack}
        self.apply({"apiVersion": "splitwatt.io/v1alpha1", "kind": "PowerBudget", "metadata": meta, "spec": spec})

    def cluster(self, name: str, *, template: Any = None, **spec: Any) -> None:
        pool: dict[str, Any] = {
            "replicas": 1,
            "gpusPerReplica": GPUS,
            "nodeSelector": {"splitwatt.io/pool": self.rack},
        }
        whole: dict[str, Any] = {
            "model": {"name": "test/model"},
            "engine": {"type": "Emulated"},
            "prefill": pool if template is None else {**pool, "template": template},
            "decode": pool,
            **spec,
        }
        meta = {"name": name, "namespace": self.namespace}
        self.apply({"apiVersion": "splitwatt.io/v1alpha1", "kind": "InferenceCluster", "metadata": meta, "spec": whole})

    def foreign(self, name: str, *, node: int, **labels: str) -> None:
        """A pod of somebody else's, bound to the site's node of that number, with all its GPUs."""
        gpus = {"nvidia.com/gpu": str(GPUS)}
        container = {"name": "engine", "image": "none", "resources": {"requests": gpus, "limits": gpus}}
        meta = {"name": name, "namespace": self.namespace, "labels": labels}
        spec = {"nodeName": f"{self.rack}-n{node}", "containers": [container]}
        self.apply({"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec})

    def lines(self, node: int) -> Sequence[dict[str, Any]]:
        """What stands in the spec of a node's NodePower, by GPU."""
        found = self.plane.http.get(f"{OURS}/nodepowers/{self.rack}-n{node}").json()
        lines: list[dict[str, Any]] = found.get("spec", {}).get("gpus", [])
        return lines

    def budget_conditions(self) -> Mapping[str, dict[str, Any]]:
        rows = self.plane.http.get(f"{OURS}/powerbudgets/{self.rack}").json().get("status", {}).get("conditions", [])
        return {row["type"]: row for row in rows}

    def apply(self, manifest: Mapping[str, Any]) -> None:
        self.plane.kubectl("apply", "-f", "-", stdin=json.dumps(manifest))

    def kubectl(self, *arguments: str) -> str:
        return self.plane.kubectl("-n", self.namespace, *arguments).stdout

    def _path(self, kind: str) -> str:
        group, plural = PATHS[kind]
        return f"/{group}/namespaces/{self.namespace}/{plural}"

    def get(self, kind: str, name: str) -> dict[str, Any] | None:
        if kind in PATHS:
            answer = self.plane.http.get(f"{self._path(kind)}/{name}")
            found: dict[str, Any] = answer.json()
            return found if answer.is_success else None
        result = self.plane.kubectl("-n", self.namespace, "get", kind, name, "-o", "json", check=False)
        return json.loads(result.stdout) if result.returncode == 0 else None

    def list(self, kind: str) -> list[dict[str, Any]]:
        if kind in PATHS:
            found: list[dict[str, Any]] = self.plane.http.get(self._path(kind)).raise_for_status().json()["items"]
            return found
        items: list[dict[str, Any]] = json.loads(self.kubectl("get", kind, "-o", "json"))["items"]
        return items

    def pods(self, cluster: str, role: str | None = None) -> Sequence[dict[str, Any]]:
        wanted = f"splitwatt.io/cluster={cluster}" + ("" if role is None else f",splitwatt.io/role={role}")
        path = f"/api/v1/namespaces/{self.namespace}/pods"
        items: list[dict[str, Any]] = self.plane.http.get(path, params={"labelSelector": wanted}).json()["items"]
        return [pod for pod in items if not pod["metadata"].get("deletionTimestamp")]

    def running(self, cluster: str, role: str) -> int:
        return sum(p.get("status", {}).get("phase") == "Running" for p in self.pods(cluster, role))

    def events(self, reason: str) -> Sequence[dict[str, Any]]:
        """Waits for the first."""
        found: list[dict[str, Any]] = eventually(
            f"an Event {reason}",
            lambda: [e for e in self.list("events.v1.events.k8s.io") if e["reason"] == reason],
        )
        return found

    def condition(self, cluster: str, kind: str) -> dict[str, Any]:
        path = f"{OURS}/namespaces/{self.namespace}/inferenceclusters/{cluster}"
        rows = self.plane.http.get(path).json().get("status", {}).get("conditions", [])
        return next((row for row in rows if row["type"] == kind), {})

    def await_condition(self, cluster: str, kind: str, status: str, reason: str | None = None) -> dict[str, Any]:
        def found() -> dict[str, Any] | None:
            row = self.condition(cluster, kind)
            return row if row.get("status") == status and reason in (None, row.get("reason")) else None

        try:
            row: dict[str, Any] = eventually(f"{kind}={status}", found)
        except NotInTimeError as error:
            has = (self.get("ic", cluster) or {}).get("status")
            raise AssertionError(f"{cluster}: wanted {kind}={status} {reason}, has {json.dumps(has)}") from error
        return row

    def clear(self) -> None:
        self.plane.kubectl("-n", self.namespace, "delete", "ic", "--all", "--wait=false")
        self.plane.kubectl("-n", self.namespace, "delete", "pods", "-l", "!splitwatt.io/cluster", "--force", "--grace-period=0")
        self.plane.http.delete(f"{OURS}/powerbudgets/{self.rack}")
        nodes.delete(self.plane, self._nodes)
        for name in self._nodes:
            self.plane.http.delete(f"{OURS}/nodepowers/{name}")


class OperatorProcess:
    """The operator of this module; `crash` and `start` as a kubelet would."""

    def __init__(self, plane: ControlPlane, group: ProcessGroup, namespace: str) -> None:
        self._plane, self._group, self._namespace = plane, group, namespace
        self._starts = 0
        self.process: Process
        self.url = ""

    def start(self) -> None:
        self._starts += 1
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.process = self._group.start(
            f"operator-{self._starts}",
            [
                *(sys.executable, "-m", "splitwatt_operator", "--prometheus-url", "http://127.0.0.1:1"),
                *("--listen", f"127.0.0.1:{port}", "--namespace", self._namespace),
                *("--kubeconfig", str(self._plane.kubeconfig)),
            ],
        )
        eventually("the operator reigns", lambda: "reigning" in self.process.log.read_text())

    def crash(self) -> None:
        self.process.kill()

    def log(self) -> str:
        return self.process.log.read_text()


def idle_w(count: int) -> int:
    return count * GPUS * MIN_W
