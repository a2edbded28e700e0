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
from splitwatt_lab import scenario
from splitwatt_lab.faults.ground import FaultSite
from splitwatt_lab.faults.observer import API
from splitwatt_lab.nodes import set_labels
from splitwatt_lab.ports import LOOPBACK
from splitwatt_lab.site import LoadSpec, SiteSpec
from support.commands import command, parser_of
from support.waiting import eventually

CLEAN = "nothing is wrong"
REPOSITORY = Path(__file__).resolve().parents[2]
WITHIN_S = 240.0
CRD = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/powerbudgets.splitwatt.io"
ROLE = "/apis/rbac.authorization.k8s.io/v1/clusterroles/splitwatt-operator"


SPEC = SiteSpec(racks=2, nodes_per_rack=2, gpus_per_node=2, load=LoadSpec(requests_per_s=1.0))
"""Small, so that it leaves the machine to others: four agents with two GPUs each, and hardly any load."""


class Site(FaultSite):
    def apply(self, *docs: dict[str, Any]) -> None:
        self.kubectl("apply", "-f", "-", stdin=scenario.to_yaml(list(docs)))

    def patch(self, path: str, body: Any, *, kind: str = "merge-patch+json") -> None:
        headers = {"Content-Type": f"application/{kind}"}
        self.plane.http.patch(path, content=json.dumps(body), headers=headers).raise_for_status()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with Site(SPEC, tmp_path_factory.mktemp("site")) as site:
        clusters, budgets = scenario.clusters(SPEC), scenario.budgets(SPEC, "PhaseAware")
        # Of so few GPUs nodes are nearly all, and floors must fit as well: the reserve would be as much as one cluster.
        budgets[0]["spec"] |= {"limitWatts": 2 * RACK_W, "reserveWatts": 0}
        site.apply(*budgets, *scenario.namespaces(list(clusters)), *clusters)
        yield site


def run(site: Site, name: str, *arguments: str) -> tuple[int, str]:
    """Exit code and what it printed."""
    flags = [f"--kubeconfig={site.plane.kubeconfig}"]
    if name in ("doctor", "top", "support-bundle"):
        flags.append(f"--prometheus={site.prometheus.url}")
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        code = command(name).run(parser_of(name).parse_args([*arguments, *flags]))
    return code, out.getvalue()


def first_line(site: Site) -> str:
    """ "" where the question could not be asked."""
    return next(iter(run(site, "doctor")[1].splitlines()), "").lstrip("✗!· ")


@dataclass(frozen=True)
class Fault:
    plant: Callable[[Site], object]
    heal: Callable[[Site], object]
    line: str


def _meter(site: Site, **shows: Any) -> None:
    fresh = site.meter_faults.with_suffix(".new")
    fresh.write_text(json.dumps({"a1": shows} if shows else {}))
    fresh.rename(site.meter_faults)


def _targets(site: Site, *, scraped: bool) -> None:
    ports = site._agent_ports
    targets = {f"{LOOPBACK}:{port}": {"node": name} for name, port in ports.items()} if scraped else {}
    site.prometheus.set_targets("agent", targets)


def _engine_metrics(site: Site, *, kept: bool) -> None:
    """A scrape job that drops what engines say, as one does to save room."""
    process = site.prometheus.process
    assert process is not None
    file = site.directory / "prometheus" / "prometheus.yml"
    config = json.loads(file.read_text())
    for job in config["scrape_configs"]:
        job.pop("metric_relabel_configs", None)
        if not kept:
            job["metric_relabel_configs"] = [{"source_labels": ["__name__"], "regex": "vllm:.*", "action": "drop"}]
    file.write_text(json.dumps(config))
    os.kill(process.pid, signal.SIGHUP)


_RULE = {"apiGroups": ["policy"], "resources": ["poddisruptionbudgets"]}


def _rights(site: Site, *, whole: bool) -> None:
    less = [rule for rule in site.get(ROLE)["rules"] if "poddisruptionbudgets" not in rule["resources"]]
    own = [{**_RULE, "verbs": ["get", "list", "watch", "create", "patch", "delete"]}]
    site.patch(ROLE, {"rules": [*less, *own] if whole else less})


def _old_definition(site: Site) -> None:
    path = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/frozen"
    site.patch(CRD, [{"op": "remove", "path": path}], kind="json-patch+json")


def _new_definition(site: Site) -> None:
    file = REPOSITORY / "crds" / "powerbudgets.splitwatt.io.yaml"
    site.kubectl("apply", "--server-side", "--force-conflicts", "-f", file)


def _pod_resources(site: Site, node: str, *, there: bool) -> None:
    """kubelet's socket elsewhere than the agent was told, as with another root folder of kubelet's."""
    socket = site._socket(node)
    aside = socket.with_suffix(".aside")
    (aside if there else socket).rename(socket if there else aside)
    site.kill_agent(node)
    site.start_agent(node)


def _overlap(site: Site) -> None:
    node = next(spec for spec in site.node_specs if spec.name == "a1-n1")
    leaf = {"limitWatts": 30_000, "nodeSelector": {"matchLabels": {"kubernetes.io/hostname": node.name}}}
    spec = {**leaf, "unmanagedWattsPerNode": 10_200, "nonGpuWattsPerNode": 2800, "overheadPercent": 4, "mode": "Strict"}
    site.apply({"apiVersion": "splitwatt.io/v1alpha1", "kind": "PowerBudget", "metadata": {"name": "twice"}, "spec": spec})


RACK_W = next(doc for doc in scenario.budgets(SPEC, "PhaseAware") if "parent" in doc["spec"])["spec"]["limitWatts"]


def _limit(site: Site, watts: int) -> None:
    site.patch(f"{API}/powerbudgets/rack-a1", {"spec": {"limitWatts": watts}})


FAULTS = {
    "no-agent": Fault(
        lambda g: g.kill_agent("a1-n1"),
        lambda g: g.start_agent("a1-n1"),
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
        lambda g: g.clocks.step("operator", 60.0),
        lambda g: g.clocks.step("operator", 0.0),
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
        lambda g: _limit(g, 6000),
        lambda g: _limit(g, RACK_W),
        "PowerBudget rack-a1: minimum caps need [0-9]+ W more than the limit",
    ),
    "missing-engine-metrics": Fault(
        lambda g: _engine_metrics(g, kept=False),
        lambda g: _engine_metrics(g, kept=True),
        "InferenceCluster batch/summarize: engine metrics are missing",
    ),
    "node-label-gone": Fault(
        lambda g: set_labels(g.plane, "a1-n2", {"splitwatt.io/rack": None}),
        lambda g: set_labels(g.plane, "a1-n2", {"splitwatt.io/rack": "a1"}),
        "Node a1-n2: counts in rack-a1, and no leaf budget selects it any more: a label is gone",
    ),
    "pod-resources-closed": Fault(
        lambda g: _pod_resources(g, "a1-n2", there=False),
        lambda g: _pod_resources(g, "a1-n2", there=True),
        "agents: kubelet's PodResources cannot be read on 1 node: a1-n2; nobody knows whose its GPUs are",
    ),
    "label-overlap": Fault(
        _overlap,
        lambda g: g.kubectl("delete", "pb", "twice"),
        r"nodes: 1 node in several leaf budgets \(rack-a1, twice\): a1-n1",
    ),
}


def test_a_healthy_site_is_clean(site: Site) -> None:
    eventually("both clusters serve", lambda: run(site, "status", "-o", "json")[1].count('"Serving"') == 2, within_s=WITHIN_S)
    eventually("a clean bill of health", lambda: first_line(site) == CLEAN, within_s=WITHIN_S)
    code, text = run(site, "doctor", "-o", "json")
    told = json.loads(text)
    assert code == access.OK and told["healthy"] and told["findings"] == []


@pytest.mark.parametrize("name", FAULTS)
def test_the_doctor_names_the_fault_first(site: Site, name: str) -> None:
    fault = FAULTS[name]
    fault.plant(site)
    seen = [""]

    def named() -> bool:
        seen[0] = first_line(site)
        return re.match(fault.line, seen[0]) is not None

    try:
        eventually(f"{fault.line!r}, has {seen}", named, within_s=WITHIN_S)
        code, text = run(site, "doctor")
        assert code == access.BROKEN and text.splitlines()[1].strip(), "with its fix"
    finally:
        fault.heal(site)
    eventually(f"a clean bill of health after {name}, has {seen}", lambda: first_line(site) == CLEAN, within_s=WITHIN_S)


def test_status_and_explain_speak_of_the_same_site(site: Site) -> None:
    code, text = run(site, "status", "-o", "json")
    told = json.loads(text)
    assert {b["name"] for b in told["budgets"]} >= {"row-a", "rack-a1", "rack-a2"} and len(told["nodes"]) == 4
    assert code == (access.OK if told["healthy"] else access.BROKEN)
    for kind, name in (("budget", "rack-a1"), ("node", "a1-n1"), ("ic", "serving/chat")):
        _, text = run(site, "explain", kind, name, "-o", "json", f"--decision-log={site.decision_log}")
        explained = json.loads(text)
        assert explained["answer"] and explained["kind"] == "Explanation", kind
    _, text = run(site, "explain", "budget", "rack-a1", "-o", "json", f"--decision-log={site.decision_log}")
    assert json.loads(text)["decisions"][0]["reasons"], "the policy's own words"


def test_kubectl_runs_it_as_its_plugin(site: Site, tmp_path: Path) -> None:
    script = tmp_path / "kubectl-splitwatt"
    script.write_text(f"#!{sys.executable}\nimport sys\nfrom splitwatt_cli.main import main\nsys.exit(main())\n")
    script.chmod(0o755)
    kubectl = site.plane.tools["kubectl"]
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin", "KUBECONFIG": str(site.plane.kubeconfig), "HOME": str(tmp_path)}
    done = subprocess.run([kubectl, "splitwatt", "--version"], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout.startswith("splitwatt "), done.stderr
