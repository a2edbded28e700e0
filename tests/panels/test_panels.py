"""What every panel and alert has: what linters of Grafana's and Prometheus' mixins ask for, and what they do not."""

from __future__ import annotations

import re
import subprocess
from collections import Counter

import pytest
import yaml
from splitwatt_lab import prometheus
from splitwatt_panels import promql
from splitwatt_panels.alerts import ALERTS
from splitwatt_panels.generate import ROOT, RULES
from splitwatt_panels.model import Alert, Drawing, Panel, PanelSet, Tone, Unit
from splitwatt_panels.sets import SETS

PANELS = [(panels, panel) for panels in SETS for panel in panels.panels]
EACH_PANEL = pytest.mark.parametrize(("panels", "panel"), PANELS, ids=[f"{s.key}: {p.title}" for s, p in PANELS])
EACH_ALERT = pytest.mark.parametrize("alert", ALERTS, ids=[alert.name for alert in ALERTS])


def test_addresses_and_titles_stand_once() -> None:
    assert len(PANELS) > 50
    for words in ([s.uid for s in SETS], [a.name for a in ALERTS], *([p.title for p in s.panels] for s in SETS)):
        assert [word for word, times in Counter(words).items() if times > 1] == []


@EACH_PANEL
def test_a_panel_says_what_it_shows_and_why(panels: PanelSet, panel: Panel) -> None:
    for text in (panel.description, panel.why):
        assert text[0].isupper() or text[0].isdigit() or text[0] == "k", text
        assert text.endswith((".", "?")) and len(text) > 20, text
    assert panel.queries and isinstance(panel.unit, Unit)
    assert all(query.legend for query in panel.queries)
    values = [step.value for step in panel.thresholds]
    assert values == sorted(values)
    if panel.look is Drawing.STATES:
        assert panel.states, "a state without a word is a number"
    if panel.base is not Tone.GOOD:
        assert any(step.level is Tone.GOOD for step in panel.thresholds), "nothing would ever be good"


@EACH_PANEL
def test_a_panel_obeys_the_variables_of_its_dashboard(panels: PanelSet, panel: Panel) -> None:
    offered = {variable.name for variable in panels.variables}
    for query in panel.queries:
        asked = set(re.findall(r"\$(\w+)", query.expr)) - {"__rate_interval"}
        assert asked <= offered, f"{panels.title} has no variable {sorted(asked - offered)}"
        for selector in re.findall(r"\{[^}]*\}", query.expr):
            assert 'job=~"$job"' in selector
        for window in re.findall(r"\[([^\]]+)\]", query.expr):
            assert window == promql.RANGE, "a fixed window holds no two samples where scrapes are slower"


@EACH_PANEL
def test_no_variable_is_offered_that_no_panel_obeys(panels: PanelSet, panel: Panel) -> None:
    asked = {name for p in panels.panels for q in p.queries for name in re.findall(r"\$(\w+)", q.expr)}
    assert {variable.name for variable in panels.variables} <= asked


@EACH_ALERT
def test_an_alert_carries_its_numbers_and_its_runbook(alert: Alert) -> None:
    assert "$value" in alert.summary, "what is it now?"
    assert alert.for_s >= 10 and "$" not in alert.expr
    assert alert.description.endswith(".")
    page = (ROOT / alert.runbook).read_text(encoding="utf-8")
    assert page.startswith(f"# {alert.name}\n")
    parts = re.findall(r"^## (.+)$", page, re.MULTILINE)
    assert parts == ["Meaning", "Impact", "Diagnosis", "Mitigation"]
    for part in page.split("\n## ")[1:]:
        assert len(part.split("\n", 1)[1].strip()) > 60, f"{alert.name} says nothing under {part.splitlines()[0]}"
    assert "```sh\n" in page.split("## Diagnosis")[1].split("## Mitigation")[0], "which command comes first?"


def test_there_is_no_runbook_without_its_alert() -> None:
    there = {path.stem for path in (ROOT / "docs" / "runbooks").glob("*.md")}
    assert there == {alert.name for alert in ALERTS}


def test_promises_page_and_margins_warn() -> None:
    tiers = Counter(alert.severity.value for alert in ALERTS)
    assert 12 <= len(ALERTS) <= 15 and tiers["critical"] >= 5 and tiers["warning"] >= 5


def test_prometheus_itself_reads_every_expression(tmp_path: object) -> None:
    """The panels' expressions as recording rules, once Grafana has put values in."""
    rules = [
        {"record": f"panel:{panels.key}:{number}", "expr": re.sub(r"\$\w+", "x", query.expr.replace(promql.RANGE, "1m"))}
        for panels in SETS
        for number, query in enumerate((q for p in panels.panels for q in p.queries), 1)
    ]
    file = f"{tmp_path}/panels.yaml"
    with open(file, "w", encoding="utf-8") as out:  # noqa: PTH123
        yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}, out)
    promtool = prometheus.program().with_name("promtool")
    for checked in (file, ROOT / RULES):
        result = subprocess.run([promtool, "check", "rules", checked], capture_output=True, text=True, timeout=60, check=False)
        assert result.returncode == 0, result.stdout + result.stderr
    assert f"{len(ALERTS)} rules found" in result.stdout
