"""A thousand nodes on one small machine: 8 000 GPUs in 100 racks under 101 budgets, each with a meter.

As `bench_operator`, with five times the nodes and budgets, and with what breaks first at that size beside it: how many writes
the API server refuses during adoption, for how much of the time a budget's telemetry is fresh, and how soon one rack obeys a
cut while all others swing. A cut begins just before the patch is sent to the API server and ends when the statuses of the
rack's nodes, as the API server has them, say that enforced caps are within it.
"""

from __future__ import annotations

import json
import re
import statistics
import threading
import time
from collections.abc import Iterable, Mapping
from typing import Any, Final

import httpx

from splitwatt_lab import bench_site
from splitwatt_lab.bench_operator import start_stand_ins, writes
from splitwatt_lab.bench_process import usage
from splitwatt_lab.bench_site import Bench
from splitwatt_lab.errors import LabError
from splitwatt_lab.run import API
from splitwatt_lab.site import LabSite, SiteSpec

POLICY: Final = "Uniform"
"""The stand-ins have no pods: under it their caps stand above the minimum, and can fall."""
NODES: Final = 1_000
NODES_PER_RACK: Final = 10
ADOPTION_S: Final = 600.0
WARM_UP_S: Final = 10.0
MEASURED_S: Final = 60.0
CUTS: Final = 3
CUT_RATIO: Final = 0.85
CUT_S: Final = 60.0
CALM_S: Final = 5.0
LOOK_S: Final = 0.05
CONFLICT: Final = "409"
_FRESH: Final = re.compile(r'^splitwatt_budget_telemetry_fresh\{budget="[^"]*"\} (\S+)$')
_LABEL: Final = re.compile(r'(\w+)="([^"]*)"')


def refused(lines: Iterable[str], *, subresource: str) -> float:
    """Writes of NodePowers that the API server refused for their version, of its /metrics."""
    total = 0.0
    for line in lines:
        if line.startswith("apiserver_request_total{") and 'resource="nodepowers"' in line:
            labels = dict(_LABEL.findall(line))
            if labels["code"] == CONFLICT and labels["subresource"] == subresource:
                total += float(line.rpartition(" ")[2])
    return total


class FreshWatch(threading.Thread):
    """Asks the operator once a second which budgets' telemetry is fresh. `share`: of all budget-seconds."""

    def __init__(self, url: str, budgets: int) -> None:
        super().__init__(name="fresh", daemon=True)
        self._url = url
        self._budgets = budgets
        self._ending = threading.Event()
        self._fresh = self._looks = 0

    def run(self) -> None:
        while not self._ending.wait(1.0):
            try:
                lines = httpx.get(f"{self._url}/metrics", timeout=5.0).text.splitlines()
            except httpx.HTTPError:
                lines = []  # who cannot say that it sees does not count as seeing
            self._looks += 1
            self._fresh += sum(float(found.group(1)) > 0 for line in lines if (found := _FRESH.match(line)))

    def stop(self) -> float:
        self._ending.set()
        self.join()
        if not self._looks:
            raise LabError("the operator was never asked which budgets' telemetry is fresh")
        return self._fresh / (self._looks * self._budgets)


def measure(bench: Bench) -> dict[str, float]:
    """The figures of `bench_figures.FIGURES["thousand"]`. Raises LabError."""
    racks = max(1, bench.nodes // NODES_PER_RACK)
    spec = SiteSpec(racks=racks, nodes_per_rack=NODES_PER_RACK, gpus_per_node=8, load=None, agents=False)
    with bench.site("thousand", spec) as site:
        bench.progress.stage(f"thousand nodes: stand-ins for the agents of {len(site.node_specs)}")
        start_stand_ins(site)
        budgets = bench_site.apply(site, POLICY)
        adoption_s = bench_site.await_adopted(site, len(budgets), bench.progress, within_s=ADOPTION_S)
        lines = _api_metrics(site)
        of_specs, of_statuses = refused(lines, subresource=""), refused(lines, subresource="status")
        bench.progress.stage(f"thousand nodes: adopted in {adoption_s:.1f} s, warming up")
        time.sleep(WARM_UP_S)
        assert site.operator is not None and site.operator_url
        fresh = FreshWatch(site.operator_url, len(budgets))
        fresh.start()
        begun_s, before = time.monotonic(), writes(_api_metrics(site), "nodepowers")
        spent = usage(site.operator.pid, seconds=MEASURED_S, what="thousand nodes: steady minute", progress=bench.progress)
        seconds, after = time.monotonic() - begun_s, writes(_api_metrics(site), "nodepowers")
        fresh_share = fresh.stop()
        bench.progress.stage(f"thousand nodes: one rack cut {CUTS} times")
        leaf = next(b for b in budgets if "parent" in b["spec"])
        cuts_s = [_cut(site, leaf) for _ in range(CUTS)]
    return {
        "nodes_of_1000": len(site.node_specs),
        "adoption_1000_s": round(adoption_s, 2),
        "refused_specs_1000": of_specs,
        "refused_statuses_1000": of_statuses,
        "telemetry_fresh_1000_percent": round(100.0 * fresh_share, 2),
        "operator_core_1000_percent": round(spent.core_percent, 2),
        "operator_rss_1000_mib": round(spent.highest_rss_mib, 1),
        "api_writes_per_node_1000_per_s": round((after - before) / len(site.node_specs) / seconds, 4),
        "patch_to_caps_1000_p50_s": round(statistics.median(cuts_s), 3),
        "patch_to_caps_1000_max_s": round(max(cuts_s), 3),
    }


def _api_metrics(site: LabSite) -> list[str]:
    return site.plane.http.get("/metrics", timeout=30.0).text.splitlines()


def _cut(site: LabSite, leaf: Mapping[str, Any]) -> float:
    """Seconds from a leaf's patch to its nodes' caps, as their statuses say them; then the limit goes up again."""
    spec, name = leaf["spec"], leaf["metadata"]["name"]
    rack = set(spec["nodeSelector"]["matchLabels"].values())
    nodes = [node.name for node in site.node_specs if node.rack in rack]
    rest_w = spec.get("fixedWatts", 0) + spec["nonGpuWattsPerNode"] * len(nodes)
    low_w = round(CUT_RATIO * _at_meter_w(site, nodes, spec, rest_w))
    begun_s = time.monotonic()
    _patch(site, name, low_w)
    while (drawn_w := _at_meter_w(site, nodes, spec, rest_w)) > low_w:
        if time.monotonic() - begun_s > CUT_S:
            raise LabError(f"{name}: caps still allow {drawn_w:.0f} W of {low_w} W after {CUT_S:g} s (logs: {site.directory})")
        bench_site.require_running(site)
        time.sleep(LOOK_S)
    took_s = time.monotonic() - begun_s
    _patch(site, name, spec["limitWatts"])
    time.sleep(CALM_S)
    return took_s


def _at_meter_w(site: LabSite, nodes: list[str], spec: Mapping[str, Any], rest_w: float) -> float:
    """What enforced caps allow, as I1 counts it."""
    found = {item["metadata"]["name"]: item.get("status") or {} for item in bench_site.read(site, "nodepowers")}
    caps_w = sum(gpu["enforcedCapWatts"] for node in nodes for gpu in found[node]["gpus"])
    return float(caps_w * (1 + spec["overheadPercent"] / 100) + rest_w)


def _patch(site: LabSite, budget: str, limit_w: int) -> None:
    site.plane.http.patch(
        f"{API}/powerbudgets/{budget}",
        content=json.dumps({"spec": {"limitWatts": limit_w}}),
        headers={"Content-Type": "application/merge-patch+json"},
    ).raise_for_status()
