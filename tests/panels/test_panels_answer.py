"""Every panel returns series from a real Prometheus that has scraped every metric once with every label: an expression can parse,
name metrics that exist, and still join what never meets."""

from __future__ import annotations

import itertools
import math
import re
import time
from collections.abc import Iterator, Mapping

import pytest
from splitwatt_lab.processes import ProcessGroup
from splitwatt_lab.prometheus import PrometheusServer
from splitwatt_panels import promql
from splitwatt_panels.alerts import ALERTS
from splitwatt_panels.model import PanelSet
from splitwatt_panels.sets import NOT_SHOWN, SETS
from support.exporter import Exporter
from support.registries import SCRAPED, exported
from support.some import some
from support.waiting import eventually

SAID: Mapping[str, tuple[str, ...]] = {
    "condition": ("Ready", "CapsEnforced", "ForeignLimit", "KVTransferVerified"),
    "state": ("Wanted", "Admitted", "Ready"),
    "latency": ("TTFT", "TBT"),
    "source": ("local_compute", "local_cache_hit", "external_kv_transfer"),
    "kind": ("Lease", "NodePower"),
    "le": ("0.5", "1.0", "+Inf"),
}
"""Values that somebody asks for; of any other label one is enough."""
RISES = re.compile(r"_(total|bucket|count|sum)$")
PER_S = 10.0


def values_of(metric: str, label: str) -> tuple[str, ...]:
    if label == "role":
        return ("Prefill", "Decode") if metric.startswith("splitwatt_gpu_") else ("prefill", "decode")
    return SAID.get(label, (f"some-{label}",))


def lines_of(metric: str, labels: frozenset[str], now_s: float) -> Iterator[str]:
    """Counters rise ten a second from the start of the test, gauges say 1."""
    own = sorted(labels - SCRAPED) + (["namespace"] if "cluster" in labels else [])
    for row in itertools.product(*(values_of(metric, label) for label in own)):
        told = ",".join(f'{label}="{value}"' for label, value in zip(own, row, strict=True))
        yield f"{metric}{{{told}}} {PER_S * now_s if RISES.search(metric) else 1.0}"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrometheusServer]:
    began_s = time.monotonic()
    asked = {name: labels for name, labels in exported().items() if name != "up" and name not in NOT_SHOWN}

    def page() -> str:
        now_s = time.monotonic() - began_s
        return "\n".join(line for name, labels in asked.items() for line in lines_of(name, labels, now_s)) + "\n"

    exporter = Exporter(page)
    folder = tmp_path_factory.mktemp("prometheus")
    try:
        with ProcessGroup(folder / "logs") as group:
            server = PrometheusServer(group, folder / "data")
            server.start()
            server.set_targets("twin", {exporter.address: {}})  # whose own labels win, as with honorLabels
            active = "rate(splitwatt_decision_seconds_count[5s])"
            eventually("two scrapes are there", lambda: len(server.query(active)) > 0)
            yield server
    finally:
        exporter.close()


def filled(expr: str) -> str:
    """As Grafana asks it with All of everything."""
    return re.sub(r"\$\w+", ".*", expr.replace(promql.RANGE, "5s"))


@pytest.mark.parametrize("panels", SETS, ids=[s.key for s in SETS])
def test_every_panel_returns_series(server: PrometheusServer, panels: PanelSet) -> None:
    queries = {f"{panel.title}: {query.legend}": query.expr for panel in panels.panels for query in panel.queries}
    for name, expr in some(sorted(queries.items())):
        numbers = [value for _, value in server.query(filled(expr)) if not math.isnan(value)]
        assert numbers, f"{name}: No data"


@pytest.mark.parametrize("panels", SETS, ids=[s.key for s in SETS])
def test_every_legend_names_labels_that_its_series_have(server: PrometheusServer, panels: PanelSet) -> None:
    for panel in some(panels.panels):
        for query in panel.queries:
            wanted = set(re.findall(r"\{\{(\w+)\}\}", query.legend))
            for labels, _ in some(server.query(filled(query.expr))):
                assert wanted <= labels.keys(), f"{panel.title}: no {sorted(wanted - labels.keys())} in {sorted(labels)}"


def test_every_alert_asks_what_prometheus_can_answer(server: PrometheusServer) -> None:
    for alert in ALERTS:
        server.query(alert.expr)


def test_what_nobody_exports_returns_none(server: PrometheusServer) -> None:
    """So that the first test can fail."""
    assert server.query(filled(promql.budget("splitwatt_budget_limits_watts"))) == []
