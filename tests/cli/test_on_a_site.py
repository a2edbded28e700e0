"""The command line on a real site: real API server, operator, agents and Prometheus; only GPUs, engines and meters are simulated.

Each of twelve faults is planted where it would happen, and `splitwatt doctor` must print the right line first; healed, it must
find nothing. One site serves all.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from splitwatt_cli import access
from splitwatt_lab.faults.ground import Ground
from splitwatt_lab.faults.observer import API
from splitwatt_lab.nodes import set_labels
from splitwatt_lab.ports import LOOPBACK
from support.commands import command, parser_of
from support.waiting import eventually

CLEAN = "nothing is wrong"
REPOSITORY = Path(__file__).resolve().parents[2]
WITHIN_S = 240.0
CRD = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/powerbudgets.splitwatt.io"
ROLE = "/apis/rbac.authorization.k8s.io/v1/clusterroles/splitwatt-operator"


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    with Ground(tmp_path_factory.mktemp("site"), seed=1) as ground:
        yield ground


def run(ground: Ground, name: str, *arguments: str) -> tuple[int, str]:
    """Exit code and what it printed."""
    flags = [f"--kubeconfig={ground.site.plane.kubeconfig}"]
    if name in ("doctor", "top", "support-bundle"):
        flags.append(f"--prometheus={ground.site.prometheus.url}")
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        code = command(name).run(parser_of(name).parse_args([*arguments, *flags]))
    return code, out.getvalue()


def first_line(ground: Ground) -> str:
    return run(ground, "doctor")[1].splitlines()[0].lstrip("✗!· ")


@dataclass(frozen=True)
class Fault:
    plant: Callable[[Ground], object]
    heal: Callable[[Ground], object]
    line: str


def _meter(ground: Ground, **shows: Any) -> None:
    fresh = ground.site.meter_faults.with_suffix(".new")
    fresh.write_text(json.dumps({"a1": shows} if shows else {}))
    fresh.rename(ground.site.meter_faults)


def _targets(ground: Ground, *, scraped: bool) -> None:
    ports = ground.site._agent_ports
    targets = {f"{LOOPBACK}:{port}": {"node": name} for name, port in ports.items()} if scraped else {}
    ground.site.prometheus.set_targets("agent", targets)


def _engine_metrics(ground: Ground, *, kept: bool) -> None:
    """A scrape job that drops what engines say, as one does to save room."""
    process = ground.site.prometheus.process
    assert process is not None
    file = ground.site.directory / "prometheus" / "prometheus.yml"
    config = json.loads(file.read_text())
    for job in config["scrape_configs"]:
        job.pop("metric_relabel_configs", None)
        if not kept:
            job["metric_relabel_configs"] = [{"source_labels": ["__name__"], "regex": "vllm:.*", "action": "drop"}]
    file.write_text(json.dumps(config))
    os.kill(process.pid, signal.SIGHUP)


_RULE = {"apiGroups": ["policy"], "resources": ["poddisruptionbudgets"]}


def _rights(ground: Ground, *, whole: bool) -> None:
    less = [rule for rule in ground.site.get(ROLE)["rules"] if "poddisruptionbudgets" not in rule["resources"]]
    own = [{**_RULE, "verbs": ["get", "list", "watch", "create", "patch", "delete"]}]
    ground.patch(ROLE, {"rules": [*less, *own] if whole else less})


def _old_definition(ground: Ground) -> None:
    path = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/frozen"
    ground.patch(CRD, [{"op": "remove", "path": path}], kind="json-patch+json")  # type: ignore[arg-type]


def _new_definition(ground: Ground) -> None:
    file = REPOSITORY / "crds" / "powerbudgets.yaml"
    ground.site.kubectl("apply", "--server-side", "--force-conflicts", "-f", file)


def _pod_resources(ground: Ground, node: str, *, there: bool) -> None:
    """kubelet's socket elsewhere than the agent was told, as with another root folder of kubelet's."""
    socket = ground.site._socket(node)
    aside = socket.with_suffix(".aside")
    (aside if there else socket).rename(socket if there else aside)
    ground.site.kill_agent(node)
    ground.site.start_agent(node)


def _overlap(ground: Ground) -> None:
    node = next(spec for spec in ground.site.node_specs if spec.name == "a1-n1")
    leaf = {"limitWatts": 30_000, "nodeSelector": {"matchLabels": {"kubernetes.io/hostname": node.name}}}
    spec = {**leaf, "unmanagedWattsPerNode": 10_200, "nonGpuWattsPerNode": 2800, "overheadPercent": 4, "mode": "Strict"}
    ground.apply({"apiVersion": "splitwatt.io/v1alpha1", "kind": "PowerBudget", "metadata": {"name": "twice"}, "spec": spec})


FAULTS = {
    "no-agent": Fault(
        lambda g: g.site.kill_agent("a1-n1"),
        lambda g: g.site.start_agent("a1-n1"),
        "agents: no agent answers on 1 GPU node: a1-n1; it is down, or its port is closed",
    ),
    "no-scrape": Fault(
        lambda g: _targets(g, scraped=False),
        lambda g: _targets(g, scraped=True),
        "Prometheus: does not scrape any of the agents on 4 nodes, which do run: a1-n1, a1-n2, a2-n1 and 1 more",
    ),
    "meter-dead": Fault(
        lambda g: _meter(g, gone=True),
        _meter,
        'PowerBudget rack-a1: its meter is dead: Prometheus has no sample of rack_power_watts{rack="a1"} now',
    ),
    "meter-in-kilowatts": Fault(
        lambda g: _meter(g, scale=0.001), _meter, "PowerBudget rack-a1: its meter reads .* it counts in kilowatts"
    ),
    "clock-off-by-60-s": Fault(
        lambda g: g.site.clocks.step("operator", 60.0),
        lambda g: g.site.clocks.step("operator", 0.0),
        "operator: the operator's clock is (59|60|61|62) s ahead of the API server's",
    ),
    "missing-rbac": Fault(
        lambda g: _rights(g, whole=False),
        lambda g: _rights(g, whole=True),
        "ServiceAccount splitwatt-system/splitwatt-operator: may not get poddisruptionbudgets.policy, .* and 3 more",
    ),
    "old-crd": Fault(
        _old_definition,
        _new_definition,
        r"CustomResourceDefinition powerbudgets.splitwatt.io: is of another release .* it lacks spec.frozen",
    ),
    "infeasible-limit": Fault(
        lambda g: (g.cuts.setdefault("rack-a1", g.limit_w("rack-a1")), g.set_limit("rack-a1", 6000)),
        lambda g: g.restore_limits(),
        "PowerBudget rack-a1: minimum caps need [0-9]+ W more than the limit",
    ),
    "missing-engine-metrics": Fault(
        lambda g: _engine_metrics(g, kept=False),
        lambda g: _engine_metrics(g, kept=True),
        "InferenceCluster batch/summarize: engine metrics are missing",
    ),
    "node-label-gone": Fault(
        lambda g: set_labels(g.site.plane, "a1-n2", {"splitwatt.io/rack": None}),
        lambda g: set_labels(g.site.plane, "a1-n2", {"splitwatt.io/rack": "a1"}),
        "Node a1-n2: counts in rack-a1, and no leaf budget selects it any more: a label is gone",
    ),
    "pod-resources-closed": Fault(
        lambda g: _pod_resources(g, "a1-n2", there=False),
        lambda g: _pod_resources(g, "a1-n2", there=True),
        "agents: kubelet's PodResources cannot be read on 1 node: a1-n2; nobody knows whose its GPUs are",
    ),
    "label-overlap": Fault(
        _overlap,
        lambda g: g.delete(f"{API}/powerbudgets/twice"),
        r"nodes: 1 node in several leaf budgets \(rack-a1, twice\): a1-n1",
    ),
}


def test_a_healthy_site_is_clean(ground: Ground) -> None:
    eventually("a clean bill of health", lambda: first_line(ground) == CLEAN, within_s=WITHIN_S)
    code, text = run(ground, "doctor", "-o", "json")
    told = json.loads(text)
    assert code == access.OK and told["healthy"] and told["findings"] == []


@pytest.mark.parametrize("name", FAULTS)
def test_the_doctor_names_the_fault_first(ground: Ground, name: str) -> None:
    fault = FAULTS[name]
    fault.plant(ground)
    seen = [""]

    def named() -> bool:
        seen[0] = first_line(ground)
        return re.match(fault.line, seen[0]) is not None

    try:
        eventually(f"{fault.line!r}, has {seen}", named, within_s=WITHIN_S)
        code, text = run(ground, "doctor")
        assert code == access.BROKEN and text.splitlines()[1].strip(), "with its fix"
    finally:
        fault.heal(ground)
    eventually(f"a clean bill of health after {name}, has {seen}", lambda: first_line(ground) == CLEAN, within_s=WITHIN_S)


def test_status_and_explain_speak_of_the_same_site(ground: Ground) -> None:
    code, text = run(ground, "status", "-o", "json")
    told = json.loads(text)
    assert {b["name"] for b in told["budgets"]} >= {"row-a", "rack-a1", "rack-a2"} and len(told["nodes"]) == 4
    assert code == (access.OK if told["healthy"] else access.BROKEN)
    for kind, name in (("budget", "rack-a1"), ("node", "a1-n1"), ("ic", "serving/chat")):
        _, text = run(ground, "explain", kind, name, "-o", "json", f"--decision-log={ground.site.decision_log}")
        explained = json.loads(text)
        assert explained["answer"] and explained["kind"] == "Explanation", kind
    _, text = run(ground, "explain", "budget", "rack-a1", "-o", "json", f"--decision-log={ground.site.decision_log}")
    assert json.loads(text)["decisions"][0]["reasons"], "the policy's own words"


def test_kubectl_runs_it_as_its_plugin(ground: Ground, tmp_path: Path) -> None:
    script = tmp_path / "kubectl-splitwatt"
    script.write_text(f"#!{sys.executable}\nimport sys\nfrom splitwatt_cli.main import main\nsys.exit(main())\n")
    script.chmod(0o755)
    kubectl = ground.site.plane.tools["kubectl"]
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin", "KUBECONFIG": str(ground.site.plane.kubeconfig), "HOME": str(tmp_path)}
    done = subprocess.run([kubectl, "splitwatt", "--version"], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout.startswith("splitwatt "), done.stderr
