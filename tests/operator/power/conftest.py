"""A small datacenter for the operator's power tests: the session's control plane, a real Prometheus, a meter, operators.

Every test gets a rack label, a namespace (and so a Lease) of its own; all its objects are deleted at the end, so that the
next operator, which sees the whole cluster, starts from an empty one.
"""

from __future__ import annotations

import json
import sys
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from splitwatt_core.names import LABEL_RACK
from splitwatt_lab import nodes
from splitwatt_lab.controlplane import ControlPlane
from splitwatt_lab.ports import free_port
from splitwatt_lab.processes import Process, ProcessGroup
from splitwatt_lab.prometheus import PrometheusServer
from splitwatt_nvml_twin.handle import Demand, NodeTwin, environment
from splitwatt_nvml_twin.models import H100_SXM, GpuModel
from splitwatt_shell.waiting import NotInTimeError
from support.asking import HTTP
from support.exporter import Exporter
from support.waiting import PATIENCE_S, eventually

API = "/apis/splitwatt.io/v1alpha1"
STREAM_ACCOUNT = "splitwatt-operator"


class Meter(Exporter):
    """A rack meter whose watts the test sets; a rack that is not among them has no series."""

    def __init__(self) -> None:
        self.watts: dict[str, float] = {}
        super().__init__(lambda: "".join(f'rack_power_watts{{rack="{rack}"}} {w}\n' for rack, w in dict(self.watts).items()))


@dataclass
class Operator:
    process: Process
    url: str
    decision_log: Path

    @property
    def text(self) -> str:
        return self.process.log.read_text()

    def healthy(self) -> bool:
        try:
            return HTTP.get(f"{self.url}/healthz", timeout=2.0).status_code == 200
        except httpx.HTTPError:
            return False

    def metric(self, name: str, **labels: str) -> float | None:
        wanted = f"{name}{{{','.join(f'{k}={json.dumps(v)}' for k, v in labels.items())}}}" if labels else name
        for line in HTTP.get(f"{self.url}/metrics", timeout=5.0).text.splitlines():
            if line.startswith(wanted + " "):
                return float(line.rpartition(" ")[2])
        return None

    def decisions(self, budget: str) -> list[dict[str, Any]]:
        rows = [json.loads(line) for line in self.decision_log.read_text().splitlines()]
        return [row for row in rows if row["budget"] == budget]

    def reigns(self) -> list[int]:
        """Terms of its reigns so far, from its log."""
        lines = [json.loads(line) for line in self.text.splitlines() if line.startswith("{")]
        return [line["term"] for line in lines if line["message"] == "reigning"]


@dataclass
class Datacenter:
    plane: ControlPlane
    group: ProcessGroup
    prometheus: PrometheusServer
    meter: Meter
    namespace: str
    rack: str
    directory: Path
    agent_kubeconfig: Callable[[str], Path] | None = None
    """Gives an agent its own credentials, by node; otherwise it uses the administrator's."""
    streams: bool = False
    """Agents listen themselves, and operators listen to them."""
    twins: dict[str, NodeTwin] = field(default_factory=dict)
    _nodes: list[str] = field(default_factory=list)
    _agents: dict[str, str] = field(default_factory=dict)
    _operators: int = 0

    def eventually(self, what: str, probe: Callable[[], Any], *, within_s: float = PATIENCE_S) -> Any:
        """The first truthy answer of `probe`; fails with `what` when there is none."""
        return eventually(what, probe, within_s=within_s)

    def operator(
        self,
        *,
        prometheus_url: str | None = None,
        kubeconfig: Path | None = None,
        through: Sequence[str] = (),
        arguments: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
    ) -> Operator:
        """Start one, with more `arguments`, by the command `through` where that is given, and wait until it answers."""
        self._operators += 1
        name, port = f"operator-{self._operators}", free_port()
        decision_log = self.directory / f"{name}.jsonl"
        decision_log.touch()
        process = self.group.start(
            name,
            [
                *through,
                *(sys.executable, "-m", "splitwatt_operator"),
                *("--prometheus-url", prometheus_url or self.prometheus.url),
                *("--listen", f"127.0.0.1:{port}"),
                *("--namespace", self.namespace),
                *("--kubeconfig", str(kubeconfig or self.plane.kubeconfig)),
                *("--decision-log", str(decision_log)),
                *arguments,
                *(("--stream-account", STREAM_ACCOUNT) if self.streams else ()),
            ],
            env=env,
        )
        operator = Operator(process, f"http://127.0.0.1:{port}", decision_log)
        process.await_ready(operator.healthy, timeout_s=PATIENCE_S)
        return operator

    def active_operator(self, **options: Any) -> Operator:
        operator = self.operator(**options)
        self.eventually("the operator reigns", operator.reigns)
        return operator

    def add_nodes(self, *names: str, **spec: Any) -> list[nodes.NodeSpec]:
        made = [nodes.NodeSpec(name=f"{self.rack}-{name}", rack=self.rack, **spec) for name in names]
        self._nodes += [node.name for node in made]
        nodes.create(self.plane, made)
        return made

    def add_gpu_nodes(self, *names: str, gpus: int = 4, model: GpuModel = H100_SXM) -> list[NodeTwin]:
        """Nodes with simulated GPUs, each with a real agent that Prometheus scrapes."""
        made = []
        for node in self.add_nodes(*names, gpus=gpus):
            folder = self.directory / node.name
            folder.mkdir()
            (folder / "boot_id").write_text(node.boot_id)
            state = folder / "gpus"
            twin = NodeTwin.create(state, gpus=[model] * gpus, boot_id=node.boot_id, node_name=node.name)
            self.twins[node.name] = twin
            made.append(twin)
            self._start_agent(node.name, folder, state)
        self.prometheus.set_targets("agent", {address: {} for address in self._agents.values()})
        return made

    def _start_agent(self, node: str, folder: Path, state: Path) -> None:
        self._agents[node] = address = f"127.0.0.1:{free_port()}"
        kubeconfig = self.plane.kubeconfig if self.agent_kubeconfig is None else self.agent_kubeconfig(node)
        user = f"system:serviceaccount:{self.namespace}:{STREAM_ACCOUNT}"
        agent = self.group.start(
            f"agent-{node}",
            [
                *(sys.executable, "-m", "splitwatt_agent", "--node-name", node, "--listen", address),
                *("--state-dir", str(folder / "state"), "--boot-id-file", str(folder / "boot_id")),
                *("--pod-resources", "", "--kubeconfig", str(kubeconfig)),
                *(("--stream", "127.0.0.1:0", "--stream-user", user) if self.streams else ()),
            ],
            env=environment(state),
        )

        def answers() -> bool:
            try:
                return HTTP.get(f"http://{address}/metrics", timeout=2.0).status_code == 200
            except httpx.HTTPError:
                return False

        agent.await_ready(answers, timeout_s=PATIENCE_S)

    def load(self, watts_per_gpu: float) -> None:
        for twin in self.twins.values():
            twin.set_demands({gpu: Demand(watts_per_gpu) for gpu in range(twin.gpu_count)})

    def caps_w(self) -> list[float]:
        """The management limits as they truly are, whoever believes what."""
        return [gpu.management_mw / 1000 for twin in self.twins.values() for gpu in twin.read_all()]

    def true_power_w(self) -> float:
        """What really flows at the meter: losses and non-GPU watts a bit below the declared ones."""
        gpu_w = sum(sum(twin.read_power_w()) for twin in self.twins.values())
        return 1.03 * gpu_w + 1800.0 * len(self.twins)

    @contextmanager
    def metered(self) -> Iterator[None]:
        """The rack's meter follows the truth."""
        ending = threading.Event()

        def follow() -> None:
            while not ending.wait(0.2):
                self.meter.watts[self.rack] = self.true_power_w()

        self.meter.watts[self.rack] = self.true_power_w()
        thread = threading.Thread(target=follow)
        thread.start()
        try:
            yield
        finally:
            ending.set()
            thread.join()

    def name(self, short: str) -> str:
        """Cluster-scoped names must not meet those of another test."""
        return f"{self.rack}-{short}"

    def budget(self, short: str, *, rack: str | None = None, **spec: Any) -> str:
        """Apply a PowerBudget; a leaf over this test's rack unless the spec says otherwise."""
        leaf = {
            "nodeSelector": {"matchLabels": {LABEL_RACK: rack or self.rack}},
            "nonGpuWattsPerNode": 2000,
            "unmanagedWattsPerNode": 10000,
            "overheadPercent": 4,
        }
        mode = {} if spec.get("parent") else {"mode": "Strict"}
        whole = {**mode, **leaf, **spec} if spec.pop("leaf", True) else {**mode, **spec}
        manifest = {
            "apiVersion": "splitwatt.io/v1alpha1",
            "kind": "PowerBudget",
            "metadata": {"name": self.name(short)},
            "spec": {key: value for key, value in whole.items() if value is not None},
        }
        self.plane.kubectl("apply", "-f", "-", stdin=json.dumps(manifest))
        return self.name(short)

    def budget_limit(self, budget: str, limit_w: int) -> None:
        """As a person on call would: kubectl patch."""
        self.plane.kubectl("patch", "pb", budget, "--type=merge", "-p", json.dumps({"spec": {"limitWatts": limit_w}}))

    def get(self, path: str) -> dict[str, Any] | None:
        response = self.plane.http.get(path)
        if response.status_code == httpx.codes.NOT_FOUND:
            return None
        response.raise_for_status()
        found: dict[str, Any] = response.json()
        return found

    def status(self, budget: str) -> Mapping[str, Any]:
        return (self.get(f"{API}/powerbudgets/{budget}") or {}).get("status", {})

    def condition(self, budget: str, kind: str) -> Mapping[str, Any]:
        rows = self.status(budget).get("conditions", [])
        return next((row for row in rows if row["type"] == kind), {})

    def await_condition(self, budget: str, kind: str, status: str, reason: str | None = None) -> Mapping[str, Any]:
        def found() -> Mapping[str, Any] | None:
            row = self.condition(budget, kind)
            right = row.get("status") == status and reason in (None, row.get("reason"))
            return row if right else None

        try:
            return self.eventually(f"{kind}={status}", found)
        except NotInTimeError as error:
            raise AssertionError(f"{budget}: wanted {kind}={status} {reason}, has {self.status(budget)}") from error

    def node_power(self, node: str) -> dict[str, Any] | None:
        return self.get(f"{API}/nodepowers/{node}")

    def lease(self) -> dict[str, Any]:
        found = self.get(f"/apis/coordination.k8s.io/v1/namespaces/{self.namespace}/leases/splitwatt-operator")
        assert found is not None
        return found

    def vacate(self) -> None:
        """Take the Lease from a dead holder, so that a successor need not wait for it to run out."""
        path = f"/apis/coordination.k8s.io/v1/namespaces/{self.namespace}/leases/splitwatt-operator"
        nobody, merge = json.dumps({"spec": {"holderIdentity": ""}}), {"Content-Type": "application/merge-patch+json"}
        self.plane.http.patch(path, content=nobody, headers=merge).raise_for_status()

    def events(self, reason: str) -> list[dict[str, Any]]:
        found = self.get("/apis/events.k8s.io/v1/namespaces/default/events") or {}
        return [event for event in found.get("items", []) if event.get("reason") == reason]

    def clear(self) -> None:
        """Delete what this test made, and every NodePower: the next operator must not find charges of ours."""
        budgets = [b["metadata"]["name"] for b in (self.get(f"{API}/powerbudgets") or {}).get("items", [])]
        for name in (b for b in budgets if b.startswith(self.rack)):
            self.plane.http.delete(f"{API}/powerbudgets/{name}")
        nodes.delete(self.plane, self._nodes)
        for name in self._nodes:
            self.plane.http.delete(f"{API}/nodepowers/{name}")


@pytest.fixture
def datacenter(crds: ControlPlane, namespace: str, tmp_path: Path) -> Iterator[Datacenter]:
    meter = Meter()
    with ProcessGroup(tmp_path / "processes") as group:
        prometheus = PrometheusServer(group, tmp_path / "prometheus")
        prometheus.set_targets("twin", {meter.address: {}})
        prometheus.start()
        rack = f"r{uuid.uuid4().hex[:8]}"
        lab = Datacenter(crds, group, prometheus, meter, namespace, rack, tmp_path)
        try:
            yield lab
        finally:
            group.close()
            for twin in lab.twins.values():
                twin.close()
            lab.clear()
            meter.close()
