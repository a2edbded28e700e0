"""InferenceClusters on a real API server with real controllers and kwok's nodes, served by the real operator process.

The nodes' agents are threads around the core's own Enforcer: GPUs that take every cap at once. Each test has a rack, a
budget and a namespace of its own; one operator serves them all.
"""

from __future__ import annotations

import json
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from splitwatt_core.clusters import Role, cluster_label
from splitwatt_core.names import LABEL_RACK
from splitwatt_core.protocol.contract import Workload, node_power_from_wire, status_to_wire
from splitwatt_core.protocol.enforcer import GpuIdentity
from splitwatt_core.rendering.render import object_name
from splitwatt_lab import nodes
from splitwatt_lab.controlplane import ControlPlane
from splitwatt_lab.ports import free_port
from splitwatt_lab.processes import Process, ProcessGroup
from splitwatt_truth.agent import MemoryAgent
from support.waiting import eventually

POLL_S = 0.1
OURS = "/apis/splitwatt.io/v1alpha1"
H100_MODEL, MIN_W, MAX_W, CLIFF_W = "NVIDIA H100 80GB HBM3", 200, 700, 350
GPUS = 8
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
                pods = self._plane.http.get("/api/v1/pods?labelSelector=splitwatt.io/cluster").json().get("items", [])
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
                for _ in range(int(pod["spec"]["containers"][0]["resources"]["requests"]["nvidia.com/gpu"])):
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

    def limit(self, watts: int) -> None:
        spec = {
            "limitWatts": watts,
            "nodeSelector": {"matchLabels": {LABEL_RACK: self.rack}},
            "unmanagedWattsPerNode": 10000,
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

    def apply(self, manifest: Mapping[str, Any]) -> None:
        self.plane.kubectl("apply", "-f", "-", stdin=json.dumps(manifest))

    def kubectl(self, *arguments: str) -> str:
        return self.plane.kubectl("-n", self.namespace, *arguments).stdout

    def get(self, kind: str, name: str) -> dict[str, Any] | None:
        result = self.plane.kubectl("-n", self.namespace, "get", kind, name, "-o", "json", check=False)
        return json.loads(result.stdout) if result.returncode == 0 else None

    def list(self, kind: str) -> list[dict[str, Any]]:
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
        except AssertionError as error:
            has = (self.get("ic", cluster) or {}).get("status")
            raise AssertionError(f"{cluster}: wanted {kind}={status} {reason}, has {json.dumps(has)}") from error
        return row

    def clear(self) -> None:
        self.plane.kubectl("-n", self.namespace, "delete", "ic", "--all", "--wait=false")
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

    def start(self) -> None:
        self._starts += 1
        port = free_port()
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


@pytest.fixture(scope="module")
def operator(crds: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OperatorProcess]:
    folder: Path = tmp_path_factory.mktemp("serving")
    name = f"operator-{uuid.uuid4().hex[:8]}"
    crds.kubectl("create", "namespace", name)
    with ProcessGroup(folder) as group:
        process = OperatorProcess(crds, group, name)
        process.start()
        yield process
    crds.kubectl("delete", "namespace", name, "--wait=false")


@pytest.fixture(scope="module")
def agents(crds: ControlPlane) -> Iterator[ScriptedAgents]:
    threads = ScriptedAgents(crds)
    yield threads
    threads.close()


@pytest.fixture
def site(crds: ControlPlane, operator: OperatorProcess, agents: ScriptedAgents, namespace: str) -> Iterator[Site]:
    made = Site(crds, agents, namespace, f"r{uuid.uuid4().hex[:8]}")
    yield made
    made.clear()
    assert operator.process.running, operator.log()[-4000:]


def idle_w(count: int) -> int:
    return count * GPUS * MIN_W


# ---------------------------------------------------------------------------------------------------------------- scenes


def test_a_cluster_becomes_ready_pods_in_its_budget(site: Site) -> None:
    site.add_nodes(2)
    site.limit(idle_w(2) + PAIR_W + 100)
    site.cluster("chat")
    site.await_condition("chat", "Ready", "True")
    assert site.condition("chat", "PowerAdmitted")["reason"] == "Admitted"
    pods = site.pods("chat")
    assert sorted(p["metadata"]["labels"]["splitwatt.io/role"] for p in pods) == ["decode", "prefill"]
    assert {p["spec"]["nodeName"] for p in pods} == {f"{site.rack}-n0", f"{site.rack}-n1"}
    for pod in pods:
        assert "schedulingGates" not in pod["spec"]
        assert pod["metadata"]["annotations"]["splitwatt.io/power-budget"] == site.rack
        required = pod["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
        [term] = required["nodeSelectorTerms"]
        assert term["matchExpressions"] == [{"key": LABEL_RACK, "operator": "In", "values": [site.rack]}]
    found = site.get("ic", "chat")
    assert found is not None
    status = found["status"]
    assert status["observedGeneration"] == found["metadata"]["generation"]
    for role in ("prefill", "decode"):
        assert status[role] == {
            "replicas": 1,
            "readyReplicas": 1,
            "admittedReplicas": 1,
            "labelSelector": f"splitwatt.io/cluster=chat,splitwatt.io/role={role}",
        }
    assert status["powerFloorWatts"] == 2 * GPUS * CLIFF_W
    assert site.condition("chat", "SLOAttained")["status"] == "Unknown"
    events = site.events("PowerReserved")
    assert f"in {site.rack} (1200 W)" in events[0]["note"]
    assert not found["metadata"].get("finalizers")
    assert {s["metadata"]["name"] for s in site.list("services")} == {"chat", "chat-prefill", "chat-decode"}
    assert len(site.list("poddisruptionbudgets")) == 2


def test_scale_and_patch_change_replicas(site: Site) -> None:
    site.add_nodes(4)
    site.limit(idle_w(4) + 4 * PAIR_W)
    site.cluster("chat")
    site.await_condition("chat", "Ready", "True")
    site.kubectl("scale", "ic", "chat", "--replicas=2")
    eventually("two decode pods run", lambda: site.running("chat", "decode") == 2)
    assert site.running("chat", "prefill") == 1
    site.kubectl("patch", "ic", "chat", "--type=merge", "-p", '{"spec":{"prefill":{"replicas":2}}}')
    eventually("two prefill pods run", lambda: site.running("chat", "prefill") == 2)
    site.kubectl("scale", "ic", "chat", "--replicas=1")
    eventually("one decode pod is left", lambda: len(site.pods("chat", "decode")) == 1)
    site.await_condition("chat", "Ready", "True")


def test_somebody_elses_edit_is_put_right(site: Site) -> None:
    site.add_nodes(2)
    site.limit(idle_w(2) + 2 * PAIR_W)
    site.cluster("chat")
    site.await_condition("chat", "Ready", "True")
    site.kubectl("scale", "deployment", "chat-decode", "--replicas=5")
    eventually("replicas are back", lambda: (site.get("deployment", "chat-decode") or {})["spec"]["replicas"] == 1)
    site.kubectl("delete", "service", "chat-prefill")
    eventually("the service is back", lambda: site.get("service", "chat-prefill"))
    paths = ("/spec/template/spec/schedulingGates", "/metadata/ownerReferences")
    removal = json.dumps([{"op": "remove", "path": path} for path in paths])
    site.kubectl("patch", "deployment", "chat-prefill", "--type=json", "-p", removal)

    def gated_again() -> bool:
        deployment = site.get("deployment", "chat-prefill")
        assert deployment is not None
        gates = deployment["spec"]["template"]["spec"].get("schedulingGates")
        return gates == [{"name": "splitwatt.io/power"}] and bool(deployment["metadata"].get("ownerReferences"))

    eventually("the gate and the owner are back", gated_again)
    site.kubectl("label", "service", "chat", "team=search")
    site.kubectl("annotate", "ic", "chat", "touched=yes")
    events = site.events("DriftRepaired")
    assert any("chat-decode" in e["note"] for e in events)
    service = site.get("service", "chat")
    assert service is not None
    assert service["metadata"]["labels"]["team"] == "search", "what we do not render belongs to others"


def test_a_long_name_is_served_like_any_other(site: Site) -> None:
    """The CRD admits 253 characters, a label value 63."""
    name = "chat-" + "x" * 95
    site.add_nodes(2)
    site.limit(idle_w(2) + PAIR_W + 100)
    site.cluster(name)
    site.await_condition(name, "Ready", "True")
    assert site.condition(name, "PowerAdmitted")["reason"] == "Admitted"
    deployment = object_name(name, Role.DECODE)
    assert len(site.pods(cluster_label(name))) == 2
    found = site.get("ic", name)
    assert found is not None
    assert found["status"]["decode"]["admittedReplicas"] == 1
    assert found["status"]["powerFloorWatts"] == 2 * GPUS * CLIFF_W
    site.kubectl("scale", "deployment", deployment, "--replicas=5")
    eventually("replicas are back", lambda: (site.get("deployment", deployment) or {})["spec"]["replicas"] == 1)


def test_a_spec_that_cannot_be_rendered_leaves_the_former_one_in_force(site: Site) -> None:
    site.add_nodes(2)
    site.limit(idle_w(2) + PAIR_W + 100)
    site.cluster("chat")
    site.await_condition("chat", "Ready", "True")
    wrong = {"spec": {"engine": {"args": ["--port=1"]}, "decode": {"replicas": 0}}}
    site.kubectl("patch", "ic", "chat", "--type=merge", "-p", json.dumps(wrong))
    row = site.await_condition("chat", "Ready", "False", "InvalidSpec")
    assert row["message"].startswith("the former spec stays in force: ") and "--port" in row["message"]
    site.kubectl("delete", "service", "chat-prefill")
    eventually("the service is back", lambda: site.get("service", "chat-prefill"))
    site.kubectl("scale", "deployment", "chat-decode", "--replicas=5")
    eventually("replicas are back", lambda: (site.get("deployment", "chat-decode") or {})["spec"]["replicas"] == 1)
    assert site.running("chat", "decode") == 1
    right = {"spec": {"engine": {"args": []}, "decode": {"replicas": 1}}}
    site.kubectl("patch", "ic", "chat", "--type=merge", "-p", json.dumps(right))
    site.await_condition("chat", "Ready", "True")


def test_deleting_a_cluster_cleans_up(site: Site) -> None:
    site.add_nodes(2)
    site.limit(idle_w(2) + PAIR_W + 100)
    site.cluster("chat")
    site.await_condition("chat", "Ready", "True")
    site.kubectl("delete", "ic", "chat")
    for kind in ("deployments", "services", "poddisruptionbudgets", "pods"):
        eventually(f"no {kind} are left", partial(lambda k: not site.list(k), kind))
    site.cluster("chat")
    site.await_condition("chat", "Ready", "True")


def test_short_of_power_says_how_much_and_a_raised_limit_admits(site: Site) -> None:
    site.add_nodes(2)
    site.limit(idle_w(2) + PAIR_W - 600)
    site.cluster("chat")
    row = site.await_condition("chat", "PowerAdmitted", "False", "InsufficientPower")
    for number in ("1200 W (8 GPUs)", f"PowerBudget {site.rack} has 1800 W left", "600 W are missing"):
        assert number in row["message"]
    assert site.await_condition("chat", "Ready", "False")["reason"] == "WaitingForPower"
    gates = [pod["spec"].get("schedulingGates") for pod in site.pods("chat")]
    assert gates == [[{"name": "splitwatt.io/power"}]] * 2, "both wait, though one alone would fit"
    events = site.events("InsufficientPower")
    assert events[0]["type"] == "Warning"
    site.limit(idle_w(2) + PAIR_W)
    site.await_condition("chat", "Ready", "True")


def test_a_bad_overlay_gets_the_servers_sentence_and_stops_nobody_else(site: Site) -> None:
    site.add_nodes(2)
    site.limit(idle_w(2) + 4 * PAIR_W)
    site.cluster("bad", template={"spec": {"containers": [{"name": "engine", "imagePullPolicy": "Sometimes"}]}})
    row = site.await_condition("bad", "Ready", "False", "ObjectsNotApplied")
    assert "Deployment bad-prefill" in row["message"]
    assert "imagePullPolicy" in row["message"] and "Sometimes" in row["message"]
    site.cluster("sly", template={"spec": {"nodeName": f"{site.rack}-n0"}})
    row = site.await_condition("sly", "Ready", "False", "InvalidSpec")
    assert "spec.prefill.template.spec.nodeName bypasses power admission" in row["message"]
    site.cluster("good")
    site.await_condition("good", "Ready", "True")
    site.cluster("sly")
    site.await_condition("sly", "PowerAdmitted", "False", "InsufficientGPUs")


def test_a_foreign_object_of_the_same_name_is_left_alone(site: Site) -> None:
    site.add_nodes(2)
    site.limit(idle_w(2) + PAIR_W)
    theirs = {"selector": {"app": "theirs"}, "ports": [{"port": 80}]}
    meta = {"name": "chat", "namespace": site.namespace}
    site.apply({"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": theirs})
    site.cluster("chat")
    row = site.await_condition("chat", "Ready", "False", "ObjectsNotApplied")
    assert row["message"] == "Service chat exists already and is not ours: rename it or this InferenceCluster"
    service = site.get("service", "chat")
    assert service is not None
    assert service["spec"]["selector"] == {"app": "theirs"}


def test_a_restarted_operator_reads_the_reservations_back(site: Site, operator: OperatorProcess) -> None:
    site.add_nodes(4)
    site.limit(idle_w(4) + PAIR_W + 100)
    site.cluster("chat")
    site.await_condition("chat", "Ready", "True")
    before = {pod["metadata"]["uid"] for pod in site.pods("chat")}
    operator.crash()
    site.cluster("late", priority="Low")
    operator.start()
    row = site.await_condition("late", "PowerAdmitted", "False", "InsufficientPower")
    assert f"PowerBudget {site.rack} has 100 W left" in row["message"]
    assert {pod["metadata"]["uid"] for pod in site.pods("chat")} == before
    site.kubectl("delete", "ic", "chat")
    site.await_condition("late", "Ready", "True")


def test_a_rollout_does_not_surge_and_is_admitted_again(site: Site) -> None:
    site.add_nodes(2)
    site.limit(idle_w(2) + PAIR_W)
    site.cluster("chat")
    site.await_condition("chat", "Ready", "True")
    before = {pod["metadata"]["uid"] for pod in site.pods("chat")}
    site.cluster("chat", engine={"type": "Emulated", "args": ["--max-num-seqs=64"]})

    def renewed() -> bool:
        pods = site.pods("chat")
        assert len(pods) <= 2
        return {p["metadata"]["uid"] for p in pods}.isdisjoint(before) and all(
            p.get("status", {}).get("phase") == "Running" for p in pods
        )

    eventually("both pods are renewed", renewed)
    site.await_condition("chat", "Ready", "True")
