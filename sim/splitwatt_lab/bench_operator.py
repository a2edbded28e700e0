"""What the operator costs, and how often both sides write, with 200 nodes under 21 budgets.

Operator, API server, Prometheus, kwok's nodes with their leases: real. The 200 agents are stood in for by one process (see
`bench_standin`) that keeps the core's law and the agents' habits of writing. After adoption and a warm-up one minute is
measured, in which power swings, meters move and every sign of life falls due once.

Writes are counted by the API server itself (apiserver_request_total), refused ones included: they are load as well.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

from splitwatt_lab import bench_site
from splitwatt_lab.bench_process import usage
from splitwatt_lab.bench_site import Bench
from splitwatt_lab.errors import LabError
from splitwatt_lab.ports import LOOPBACK
from splitwatt_lab.servers import start_server
from splitwatt_lab.site import LabSite, SiteSpec

SPEC: Final = SiteSpec(racks=20, nodes_per_rack=10, gpus_per_node=8, load=None, agents=False)
WARM_UP_S: Final = 20.0
MEASURED_S: Final = 60.0
WRITING: Final = frozenset({"APPLY", "PATCH", "POST", "PUT", "CREATE", "UPDATE", "DELETE", "DELETECOLLECTION"})
_COUNTER: Final = "apiserver_request_total"
_LABEL: Final = re.compile(r'(\w+)="([^"]*)"')


def writes(lines: Iterable[str], resource: str) -> float:
    """Writing requests on a resource and its subresources so far, from the API server's /metrics. Raises LabError when the
    server has never counted any: a name that changed must not read as no writes."""
    total, found = 0.0, False
    for line in lines:
        if line.startswith(_COUNTER + "{") and f'resource="{resource}"' in line:
            labels = dict(_LABEL.findall(line))
            if labels["resource"] == resource and labels["verb"] in WRITING:
                total, found = total + float(line.rpartition(" ")[2]), True
    if not found:
        raise LabError(f"the API server's {_COUNTER} has no write of {resource}; has the metric been renamed?")
    return total


def start_stand_ins(site: LabSite) -> None:
    """Answer for every node of the site, and be scraped as its agents and meters."""
    file = site.directory / "stand-ins.json"
    config = {
        "kubeconfig": str(site.plane.kubeconfig),
        "nodes": [{"name": n.name, "rack": n.rack, "boot_id": n.boot_id, "gpus": n.gpus} for n in site.node_specs],
    }

    def argv(port: int) -> Sequence[str | Path]:
        file.write_text(json.dumps(config | {"listen": f"{LOOPBACK}:{port}"}))
        return [sys.executable, "-m", "splitwatt_lab.bench_standin", f"--config={file}"]

    _, port = start_server(site.plane.group, "stand-ins", argv, healthy=site._listens)
    site.prometheus.set_targets("twin", {f"{LOOPBACK}:{port}": {}})


def measure(bench: Bench) -> dict[str, float]:
    """The figures of `bench_figures.FIGURES["operator"]`. Raises LabError."""
    with bench.site("operator", SPEC) as site:
        bench.progress.stage("operator: stand-ins for 200 agents")
        start_stand_ins(site)
        budgets = bench_site.apply(site, "PhaseAware")
        adoption_s = bench_site.await_adopted(site, len(budgets), bench.progress)
        bench.progress.stage(f"operator: {len(site.node_specs)} nodes adopted in {adoption_s:.1f} s, warming up")
        time.sleep(WARM_UP_S)
        assert site.operator is not None
        begun_s, before = time.monotonic(), _counts(site)
        spent = usage(site.operator.pid, seconds=MEASURED_S, what="operator's steady minute", progress=bench.progress)
        seconds, after = time.monotonic() - begun_s, _counts(site)
    nodes = len(site.node_specs)
    return {
        "operator_rss_mib": round(spent.highest_rss_mib, 1),
        "api_writes_per_node_per_s": round((after["nodepowers"] - before["nodepowers"]) / nodes / seconds, 4),
        "api_budget_writes_per_s": round((after["powerbudgets"] - before["powerbudgets"]) / seconds, 3),
        "operator_core_percent": round(spent.core_percent, 2),
        "adoption_s": round(adoption_s, 3),
    }


def _counts(site: LabSite) -> Mapping[str, float]:
    lines = site.plane.http.get("/metrics").text.splitlines()
    return {resource: writes(lines, resource) for resource in ("nodepowers", "powerbudgets")}
