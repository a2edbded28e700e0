"""A whole site on one machine: control plane, chart, racks of simulated GPUs, agents, operator, load and Prometheus.

    with Site(SiteSpec(racks=2, nodes_per_rack=4)) as site:
        site.kubectl("get", "np")

Every part but the GPUs, the engines and the rack meters is the real one: operator and agents run as processes under the
tokens of the chart's own service accounts, so a missing permission shows at once. Any process can be killed and started
again. Nothing outlives the block.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import httpx
from splitwatt_nvml_twin.handle import NodeTwin, environment
from splitwatt_nvml_twin.models import H100_SXM, GpuModel
from splitwatt_nvml_twin.plant import RackPlant
from splitwatt_shell.waiting import NotInTimeError, poll_until
from splitwatt_truth.trace_kinds import TraceUnit

from splitwatt_lab import nodes as lab_nodes
from splitwatt_lab.controlplane import ControlPlane
from splitwatt_lab.errors import LabError
from splitwatt_lab.install import NAMESPACE, install_chart
from splitwatt_lab.nodes import NodeSpec
from splitwatt_lab.ports import LOOPBACK
from splitwatt_lab.processes import Process
from splitwatt_lab.prometheus import PrometheusServer
from splitwatt_lab.servers import answers, restart_server, start_server
from splitwatt_lab.toolbuild import Progress, silent

Stage = Callable[[str], None]
"""Told the name of each part as it is being started."""

CHART: Final = Path("helm/splitwatt")
OPERATOR_ACCOUNT: Final = "splitwatt-operator"
AGENT_ACCOUNT: Final = "splitwatt-agent"
POOLS: Final = ("h100-prefill", "h100-decode")
"""Nodes of a rack alternate between the two pools, so that every rack runs both phases."""
MAX_RACKS: Final = 26
AGENTS_AT_ONCE: Final = 4
GET_S: Final = 30.0
READY_S: Final = 60.0
READY_S_PER_NODE: Final = 0.3
"""For nodes to become ready on a busy machine: kwok makes a thousand of them in half a minute on an idle one."""


def repository() -> Path:
    """The checkout that this package is installed from. Raises LabError when it is not one."""
    root = Path(__file__).resolve().parents[2]
    if not (root / CHART / "Chart.yaml").is_file():
        raise LabError(f"{root} has no {CHART}; run the lab from a checkout (pip install -e .)")
    return root


@dataclass(frozen=True, slots=True)
class LoadSpec:
    """What the twin serves: see `splitwatt_twin.config`. `rate` is (seconds, multiplier) of `requests_per_s`."""

    duration_s: float = float("inf")
    trace: Path | None = None
    trace_unit: TraceUnit | None = None
    requests_per_s: float = 5.5
    rate: Sequence[tuple[float, float]] = ((0.0, 1.0),)
    shares: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SiteSpec:
    """`operator_command`, `agent_command`: argv heads, so that a test can run a broken one. `agents` False: neither agents
    nor GPUs are started, for whoever answers in their place; such a site takes no load. `mixed`: so many of the
    conversation service's prefill servers do both phases. `rules`: files of Prometheus rules. `lease_s`: of every operator; 3 is
    what the chart says beside a standby."""

    racks: int = 2
    nodes_per_rack: int = 4
    gpus_per_node: int = 8
    model: GpuModel = H100_SXM
    plant: RackPlant = field(default_factory=RackPlant)
    load: LoadSpec | None = field(default_factory=LoadSpec)
    agents: bool = True
    mixed: int = 0
    rules: Sequence[Path] = ()
    seed: int = 1
    lease_s: int = 15
    operator_command: Sequence[str] = (sys.executable, "-m", "splitwatt_operator")
    agent_command: Sequence[str] = (sys.executable, "-m", "splitwatt_agent")

    @property
    def rack_names(self) -> tuple[str, ...]:
        return tuple(f"a{k + 1}" for k in range(self.racks))

    def nodes(self) -> list[NodeSpec]:
        return [
            NodeSpec(f"{rack}-n{k + 1}", rack=rack, pool=POOLS[k % 2], gpus=self.gpus_per_node)
            for rack in self.rack_names
            for k in range(self.nodes_per_rack)
        ]


class LabSite:
    """See the module's docstring. `directory` keeps every log; without it all is deleted at the end."""

    def __init__(
        self,
        spec: SiteSpec,
        directory: Path | None = None,
        *,
        progress: Progress = silent,
        stage: Stage = lambda _: None,
    ) -> None:
        self.spec = spec
        self.plane = ControlPlane(directory, progress=progress)
        self._stage = stage
        self._short = tempfile.TemporaryDirectory(prefix="sw-")  # unix sockets take 107 bytes of path at most
        self.node_specs = spec.nodes()
        self.twins: dict[str, NodeTwin] = {}
        self.agents: dict[str, Process] = {}
        self._targets_lock = threading.Lock()
        self._agent_ports: dict[str, int] = {}
        self.operator: Process | None = None
        self.operator_url = ""
        self.load: Process | None = None

    def __enter__(self) -> Self:
        self._stage("control plane")
        self.plane.__enter__()
        try:
            self._stage("GPUs")
            self._make_twins()
            self._furnish()
            self._stage("nodes and chart")
            lab_nodes.create(self.plane, self.node_specs, ready_s=READY_S + READY_S_PER_NODE * len(self.node_specs))
            install_chart(self.plane, repository() / CHART)
            self._stage("Prometheus")
            self.prometheus = PrometheusServer(self.plane.group, self.directory / "prometheus", rules=self.spec.rules)
            self.prometheus.start()
            self._stage("agents and operator")
            self.start_operator()
            if self.spec.agents:
                with ThreadPoolExecutor(AGENTS_AT_ONCE) as pool:
                    list(pool.map(self.start_agent, [node.name for node in self.node_specs]))
            if self.spec.load is not None:
                self._stage("load")
                self.start_load()
        except BaseException:  # whatever ended the start, Ctrl-C too: no process of the site may outlive it
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self.plane.close()
        for twin in self.twins.values():
            twin.close()
        self.twins.clear()
        self._short.cleanup()

    # ------------------------------------------------------------------------------------------------------------ parts

    @property
    def directory(self) -> Path:
        return self.plane.directory

    @property
    def decision_log(self) -> Path:
        return self.directory / "decisions.jsonl"

    @property
    def results(self) -> Path:
        return self.directory / "results.jsonl"

    def _state_file(self, node: str) -> Path:
        return self.directory / "gpus" / f"{node}.state"

    @property
    def meter_faults(self) -> Path:
        """Read by the twin at every scrape: see `splitwatt_twin.meter_faults`."""
        return self.directory / "meter-faults.json"

    def state_dir(self, node: str) -> Path:
        """Where the node's agent keeps its record."""
        return self.directory / "agents" / node

    def boot_file(self, node: str) -> Path:
        return self.directory / "gpus" / f"{node}.boot-id"

    def _socket(self, node: str) -> Path:
        return Path(self._short.name) / f"{node}.sock"

    def _make_twins(self) -> None:
        (self.directory / "gpus").mkdir(parents=True, exist_ok=True)
        for node in self.node_specs if self.spec.agents else ():
            self.boot_file(node.name).write_text(node.boot_id + "\n")
            self.twins[node.name] = NodeTwin.create(
                self._state_file(node.name),
                gpus=[self.spec.model] * node.gpus,
                boot_id=node.boot_id,
                node_name=node.name,
            )

    def _furnish(self) -> None:
        """For a site that puts more around its processes: called before any of them starts, the control plane's but."""

    def start_agent(self, node: str) -> None:
        """Start this node's agent (again, on its old port) and wait until it answers."""
        if node in self.agents:
            restart_server(self.agents[node], self._agent_ports[node], healthy=self._listens)
            return
        kubeconfig = self._kubeconfig(AGENT_ACCOUNT, node)

        def argv(port: int) -> Sequence[str | Path]:
            return [
                *self.spec.agent_command,
                f"--node-name={node}",
                f"--state-dir={self.state_dir(node)}",
                f"--boot-id-file={self.boot_file(node)}",
                f"--listen={LOOPBACK}:{port}",
                f"--pod-resources=unix:{self._socket(node)}",
                f"--kubeconfig={kubeconfig}",
            ]

        env = {**environment(self._state_file(node)), **self._environment(f"agent-{node}")}
        self.agents[node], self._agent_ports[node] = start_server(
            self.plane.group, f"agent-{node}", argv, healthy=self._listens, env=env
        )
        targets = {f"{LOOPBACK}:{port}": {"node": name} for name, port in dict(self._agent_ports).items()}
        with self._targets_lock:
            self.prometheus.set_targets("agent", targets)

    def kill_agent(self, node: str) -> None:
        """SIGKILL, as a crash would be."""
        self.agents[node].kill()

    def start_operator(self) -> None:
        """Start the operator (again)."""
        if self.operator is not None:
            self.operator.start()
            return
        self.operator, port = self.start_another_operator("operator")
        self.operator_url = f"http://{LOOPBACK}:{port}"
        self.prometheus.set_targets("operator", {f"{LOOPBACK}:{port}": {}})

    def start_another_operator(self, name: str) -> tuple[Process, int]:
        """Start an operator beside those that run; it waits for the Lease. Returns it and its port."""
        kubeconfig = self._kubeconfig(OPERATOR_ACCOUNT, None)

        def argv(port: int) -> Sequence[str | Path]:
            return [
                *self.spec.operator_command,
                f"--prometheus-url={self.prometheus.url}",
                f"--listen={LOOPBACK}:{port}",
                f"--namespace={NAMESPACE}",
                f"--kubeconfig={kubeconfig}",
                f"--decision-log={self.decision_log}",
                f"--state-dir={self.directory / f'{name}-state'}",
                f"--lease-seconds={self.spec.lease_s}",
                "--publish-profiles",
            ]

        return start_server(self.plane.group, name, argv, healthy=self._listens, env=self._environment(name))

    def _kubeconfig(self, account: str, node: str | None) -> Path:
        """The way to the API server of an agent (with its node) or of an operator."""
        return self.plane.token_kubeconfig(NAMESPACE, account, node=node)

    def _environment(self, process: str) -> Mapping[str, str]:
        """What to add to the environment of an operator or agent, by its name."""
        return {}

    def start_load(self) -> None:
        """Start the twin: engines, router, rack meters and the kubelets' PodResources."""
        load = self.spec.load
        assert load is not None
        config: dict[str, Any] = {
            "kubeconfig": str(self.plane.kubeconfig),
            "seed": self.spec.seed,
            "trace": None if load.trace is None else str(load.trace.resolve()),
            "trace_unit": load.trace_unit,
            "requests_per_s": load.requests_per_s,
            "rate": [list(point) for point in load.rate],
            "clusters": {name: {"share": share} for name, share in load.shares.items()},
            "plant": {name: getattr(self.spec.plant, name) for name in self.spec.plant.__dataclass_fields__},
            "meter": {"noise_percent": 0.5, "delay_s": 0.5},
            "meter_faults": str(self.meter_faults),
            "results": str(self.results),
            "nodes": [
                {
                    "name": node.name,
                    "rack": node.rack,
                    "state_file": str(self._state_file(node.name)),
                    "boot_id_file": str(self.boot_file(node.name)),
                    "pod_resources_socket": f"unix:{self._socket(node.name)}",
                }
                for node in self.node_specs
            ],
        }
        if load.duration_s != float("inf"):
            config["duration_s"] = load.duration_s
        file = self.directory / "twin.json"

        def argv(port: int) -> Sequence[str | Path]:
            file.write_text(json.dumps(config | {"listen": f"{LOOPBACK}:{port}"}, indent=1))
            return [sys.executable, "-m", "splitwatt_twin", f"--config={file}"]

        self.load, port = start_server(self.plane.group, "twin", argv, healthy=self._listens)
        self.prometheus.set_targets("twin", {f"{LOOPBACK}:{port}": {}})

    @staticmethod
    def _listens(port: int) -> bool:
        with httpx.Client(timeout=2.0) as client:
            return answers(client, f"http://{LOOPBACK}:{port}/metrics")

    # -------------------------------------------------------------------------------------------------------------- use

    def kubectl(self, *arguments: str | Path, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        return self.plane.kubectl(*arguments, stdin=stdin)

    def get(self, path: str, *, within_s: float = GET_S) -> dict[str, Any]:
        """One object or list by its API path, as administrator. Raises LabError."""
        response = self.plane.http.get(path, timeout=within_s)
        body: dict[str, Any] = response.json()
        if response.is_error:
            raise LabError(f"GET {path} was refused: {body.get('message', body)}")
        return body

    def await_(self, what: str, holds: Callable[[], bool], *, timeout_s: float) -> float:
        """Poll until `holds`; the seconds it took. Raises LabError naming `what`."""
        started_s = time.monotonic()
        try:
            poll_until(what, holds, within_s=timeout_s)
        except NotInTimeError as error:
            raise LabError(f"{error} (logs: {self.plane.logs.parent})") from error
        return time.monotonic() - started_s
