"""Dashboards, rules and scrapes of the chart: what is rendered where, and that it fits what is asked of it."""

from __future__ import annotations

import json

import pytest
import yaml
from splitwatt_core import names
from splitwatt_core.clusters import PAIR, Role
from splitwatt_core.rendering import render as objects_of
from splitwatt_operator.serving import slo
from splitwatt_panels.alerts import ALERTS
from splitwatt_panels.perses import perses_json
from splitwatt_panels.sets import SETS
from support.served import cluster
from support.some import some

from .conftest import CHART, Render
from .test_chart_render import MONITORING

GRAFANA = "--api-versions=grafana.integreatly.org/v1beta1"
PERSES = "--api-versions=perses.dev/v1alpha2"
PREFIX = "__meta_kubernetes_pod_label_"


def test_each_dashboard_is_a_config_map_that_the_sidecar_finds(chart: Render) -> None:
    found = chart(values={"dashboards": {"labels": {"grafana_dashboard": "1", "team": "power"}, "annotations": {"a": "b"}}})
    for panels in some(SETS):
        made = found["ConfigMap", panels.uid]
        assert {"grafana_dashboard": "1", "team": "power"}.items() <= made["metadata"]["labels"].items()
        assert made["metadata"]["annotations"] == {"grafana_folder": "Splitwatt", "a": "b"}
        ((file, text),) = made["data"].items()
        assert json.loads(text) == json.loads((CHART / "dashboards" / file).read_text(encoding="utf-8"))
        assert json.loads(text)["uid"] == panels.uid
    assert not [key for key in found if key[0] == "GrafanaDashboard"], "nobody would read them here"


def test_the_grafana_operator_is_told_of_them_where_it_runs(chart: Render) -> None:
    selector = {"matchLabels": {"dashboards": "ours"}}
    found = chart(GRAFANA, values={"dashboards": {"folder": "Power", "grafanaOperator": {"instanceSelector": selector}}})
    for panels in some(SETS):
        spec = found["GrafanaDashboard", panels.uid]["spec"]
        assert spec["folder"] == "Power"
        assert spec["instanceSelector"]["matchLabels"] == selector["matchLabels"]
        assert spec["configMapRef"]["key"] in found["ConfigMap", spec["configMapRef"]["name"]]["data"]
    off = chart(GRAFANA, values={"dashboards": {"grafanaOperator": {"enabled": False}}})
    assert ("GrafanaDashboard", "splitwatt-budgets") not in off and ("ConfigMap", "splitwatt-budgets") in off


def test_perses_is_told_of_them_where_its_operator_runs(chart: Render) -> None:
    selector = {"matchLabels": {"team": "power"}}
    found = chart(PERSES, values={"dashboards": {"perses": {"instanceSelector": selector}}})
    for panels in some(SETS):
        made = found["PersesDashboard", panels.uid]
        assert made["apiVersion"] == "perses.dev/v1alpha2" and made["spec"]["instanceSelector"] == selector
        assert made["spec"]["config"] == json.loads(perses_json(panels)), "Helm must leave legends like {{node}} alone"
    assert "instanceSelector" not in chart(PERSES)["PersesDashboard", "splitwatt-budgets"]["spec"]
    for off in ({"perses": {"enabled": False}}, {"enabled": False}, {"perses": None}):
        assert not [key for key in chart(PERSES, values={"dashboards": off}) if key[0] == "PersesDashboard"]
    assert not [key for key in chart() if key[0] == "PersesDashboard"], "without the definition nothing would take it"


def test_values_of_an_older_release_render_none(chart: Render) -> None:
    """As `helm upgrade --reuse-values` has it."""
    older = {"dashboards": None, "metrics": {"podMonitor": {"engines": None, "operatorInterval": None}}}
    found = chart(MONITORING, GRAFANA, PERSES, values=older)
    assert {kind for kind, _ in found}.isdisjoint({"ConfigMap", "GrafanaDashboard", "PersesDashboard"})
    assert ("PodMonitor", "splitwatt-engines") not in found
    assert found["PodMonitor", "splitwatt-operator"]["spec"]["podMetricsEndpoints"][0]["interval"] == "5s"


@pytest.mark.parametrize("base", ["https://git.example.com/splitwatt/blob/main", "https://git.example.com/splitwatt/blob/main/"])
def test_each_alert_links_its_runbook(chart: Render, base: str) -> None:
    found = chart(MONITORING, values={"metrics": {"prometheusRule": {"runbookUrl": base}}})
    rules = [rule for group in found["PrometheusRule", "splitwatt"]["spec"]["groups"] for rule in group["rules"]]
    assert [rule["alert"] for rule in rules] == [alert.name for alert in ALERTS]
    for rule, alert in zip(rules, ALERTS, strict=True):
        assert rule["annotations"]["runbook_url"] == f"{base.rstrip('/')}/{alert.runbook}"
        assert rule["annotations"]["summary"] == alert.summary, "Helm must leave Prometheus' own templates alone"


def test_engines_are_scraped_with_the_labels_that_latencies_are_asked_by(chart: Render) -> None:
    found = chart(MONITORING, values={"metrics": {"podMonitor": {"labels": {"release": "p"}, "engines": {"interval": "10s"}}}})
    monitor = found["PodMonitor", "splitwatt-engines"]
    assert monitor["metadata"]["labels"]["release"] == "p"
    (scraped,) = monitor["spec"]["podMetricsEndpoints"]
    assert (scraped["interval"], scraped["scrapeTimeout"]) == ("10s", "10s")
    copied = {row["targetLabel"]: row["sourceLabels"] for row in scraped["relabelings"]}
    assert copied.keys() | {names.L_NAMESPACE} >= {names.L_CLUSTER, names.L_ROLE, names.L_NAMESPACE}
    asked = slo.quantile_query(names.M_VLLM_TTFT, tuple(Role), (0.99,))
    assert all(label in asked for label in copied), "the query and the scrape speak of the same labels"
    for role in PAIR:
        (deployment,) = [
            m for m in objects_of.render(cluster("chat"), objects_of.RenderContext())
            if m["kind"] == "Deployment" and m["metadata"]["name"].endswith(role.value)
        ]  # fmt: skip
        pod = deployment["spec"]["template"]
        labels = pod["metadata"]["labels"]
        known = {PREFIX + label.replace(".", "_").replace("/", "_").replace("-", "_"): value for label, value in labels.items()}
        values = {target: known[source] for target, (source,) in copied.items()}
        assert values == {names.L_CLUSTER: "chat", names.L_ROLE: role.value}
        assert all(row["key"] in labels for row in monitor["spec"]["selector"]["matchExpressions"])
        assert scraped["port"] in [port["name"] for c in pod["spec"]["containers"] for port in c.get("ports", ())]


def test_the_operator_says_itself_of_which_namespace_it_speaks(chart: Render) -> None:
    found = chart(MONITORING, values={"metrics": {"podMonitor": {"operatorInterval": "7s"}}})
    (operator,) = found["PodMonitor", "splitwatt-operator"]["spec"]["podMetricsEndpoints"]
    (agent,) = found["PodMonitor", "splitwatt-agent"]["spec"]["podMetricsEndpoints"]
    assert operator["honorLabels"] is True and operator["interval"] == "7s"
    assert "honorLabels" not in agent and agent["interval"] == "1s"


def test_the_rules_of_the_chart_are_plain_yaml() -> None:
    text = (CHART / "rules" / "splitwatt.yaml").read_text(encoding="utf-8")
    assert len(yaml.safe_load(text)["groups"][0]["rules"]) == len(ALERTS)


@pytest.fixture
def chart(render: Render) -> Render:
    return render
