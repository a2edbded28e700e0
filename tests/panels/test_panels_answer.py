"""Every panel returns series from a real Prometheus that has scraped every metric once with every label: an expression can parse,
name metrics that exist, and still join what never meets."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

import pytest
from splitwatt_lab.processes import ProcessGroup
from splitwatt_lab.prometheus import PrometheusServer
from splitwatt_panels import promql
from splitwatt_panels.alerts import ALERTS
from splitwatt_panels.model import PanelSet
from splitwatt_panels.sets import SETS
from support.every_metric import every_metric
from support.exporter import Exporter
from support.some import some
from support.waiting import eventually


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrometheusServer]:
    exporter = Exporter(every_metric())
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
