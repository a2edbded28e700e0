"""`make dashboards-check` finds what is wrong: a panel without data, an alert that is silent or fires twice, a name of nobody."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest
import yaml
from splitwatt_core import names
from splitwatt_lab.processes import ProcessGroup
from splitwatt_lab.prometheus import PrometheusServer
from splitwatt_lab.site import repository
from splitwatt_lab.watch.events import MADE, TOGETHER
from splitwatt_lab.watch.findings import AskedQuery, Points, alert_problem, firings, hastened, name_problems, without_data
from splitwatt_lab.watch.run import WatchFindings, WatchRun, docs_of, find
from splitwatt_panels.alerts import ALERTS
from splitwatt_panels.generate import RULES
from splitwatt_panels.model import Event, PanelSet, Query
from splitwatt_panels.sets import NOT_SHOWN, SETS
from support.every_metric import every_metric
from support.exporter import Exporter
from support.registries import agent, lab, operator
from support.waiting import eventually

QUIET = (100.0, 130.0)
EVENTS = {Event.METER_SILENT: (200.0, 300.0)}
ALERT = next(alert for alert in ALERTS if alert.event is Event.METER_SILENT)
NAN = float("nan")


def points(*rows: tuple[float, float]) -> Points:
    return rows


@pytest.mark.parametrize(
    ("query", "series", "says"),
    [
        (Query("a", "b"), [points((120.0, 0.0))], None),
        (Query("a", "b"), [], "no data while it serves"),
        (Query("a", "b"), [points((120.0, NAN))], "no data while it serves"),
        (Query("a", "b"), [points((210.0, 1.0))], "no data while it serves"),
        (Query("a", "b", Event.METER_SILENT), [points((210.0, 0.0))], None),
        (Query("a", "b", Event.METER_SILENT), [points((120.0, 1.0))], "no data after a meter without a reading"),
        (Query("a", "b", Event.NOBODY_REIGNS), [], None),
        (Query("a", "b", unmade="no address"), [points((120.0, NAN))], None),
        (Query("a", "b", unmade="no address"), [], "no series"),
    ],
)
def test_absent_is_not_zero(query: Query, series: Sequence[Points], says: str | None) -> None:
    found = without_data(AskedQuery("x", query), series, QUIET, EVENTS)
    assert found is None if says is None else found is not None and says in found


def fired(*windows: tuple[float, float]) -> list[Points]:
    return [points(*((at_s, 1.0) for at_s in range(int(a), int(b) + 1, 2))) for a, b in windows]


@pytest.mark.parametrize(
    ("windows", "says"),
    [
        (((210.0, 230.0),), None),
        (((210.0, 230.0), (220.0, 240.0)), None),  # of two budgets
        (((210.0, 220.0), (224.0, 240.0)), None),  # a late evaluation
        ((), "never fired after a meter without a reading"),
        (((210.0, 220.0), (240.0, 250.0)), "fired 2 times: +10..+20 s, +40..+50 s"),
        (((190.0, 230.0),), "fired 10 s before"),
        (((210.0, 300.0),), "never cleared"),
    ],
)
def test_an_alert_fires_once_and_clears_once(windows: Sequence[tuple[float, float]], says: str | None) -> None:
    found = alert_problem(ALERT, firings(fired(*windows)), EVENTS, 300.0)
    assert found is None if says is None else found is not None and says in found


def test_an_alert_that_nothing_was_done_for_stays_silent() -> None:
    assert alert_problem(ALERT, [], {}, 300.0) is None
    assert "nothing was done" in (alert_problem(ALERT, [(210.0, 220.0)], {}, 300.0) or "")
    unmade = next(alert for alert in ALERTS if alert.event is None)
    assert unmade.unmade and "nothing was done" in (alert_problem(unmade, [(210.0, 220.0)], EVENTS, 300.0) or "")


def test_names_are_held_to_what_is_exported_both_ways() -> None:
    live = ["splitwatt_budget_limit_watts", "splitwatt_decision_seconds_bucket", "splitwatt_decision_seconds_created", "up"]
    asked = ["sum(splitwatt_budget_limit_watts)", "rate(splitwatt_decision_seconds_bucket[5m])"]
    docs = {"a.md": "`splitwatt_budget_limit_watts`, `splitwatt_decision_seconds`, `splitwatt_budget_`"}
    assert name_problems(asked, docs, live, ()) == []
    assert name_problems([*asked, "splitwatt_budget_limits_watts"], docs, live, ()) == [
        "splitwatt_budget_limits_watts is asked for, and no process exports it"
    ]
    assert name_problems(asked[1:], docs, live, ()) == ["splitwatt_budget_limit_watts is exported, and no panel shows it"]
    assert name_problems(asked[1:], docs, live, ("splitwatt_budget_limit_watts",)) == []
    assert name_problems(asked, {"a.md": "splitwatt_gpu_watts"}, live, ()) == [
        "a.md names splitwatt_gpu_watts, and no process exports it"
    ]
    observed = {"a.md": "splitwatt_budget_would_cut_watts"}
    assert name_problems(asked, observed, live, ("splitwatt_budget_would_cut_watts",)) == [], "no tree here observes"
    assert len(name_problems(asked, observed, live, ())) == 1


def test_rules_in_a_hurry_are_the_same_rules() -> None:
    text = (repository() / RULES).read_text(encoding="utf-8")
    assert yaml.safe_load(hastened(text, speed=1.0)) == yaml.safe_load(text.replace("[5m]", "[300s]"))
    (group,) = yaml.safe_load(hastened(text, speed=10.0))["groups"]
    times = {rule["alert"]: rule["for"] for rule in group["rules"]}
    assert times["SplitwattPodsGated"] == "60s" and times["SplitwattBudgetAboveLimit"] == "3s"
    assert sum("[30s]" in rule["expr"] for rule in group["rules"]) == 4


def test_every_event_is_made_once_and_no_alert_is_of_two_groups() -> None:
    assert sorted(event for group in TOGETHER for event in group) == sorted(Event) == sorted(MADE)
    asked = {query.event for panels in SETS for panel in panels.panels for query in panel.queries}
    assert {alert.event for alert in ALERTS} | asked == {None, *Event}
    assert all(bool(alert.unmade) == (alert.event is None) for alert in ALERTS)


def test_docs_name_what_operator_agent_and_lab_export() -> None:
    """As the check asks it of a live site."""
    live = {**operator(), **agent(), **lab()}
    expressions = [query.expr for panels in SETS for panel in panels.panels for query in panel.queries]
    assert name_problems(expressions, docs_of(repository() / "docs"), live, NOT_SHOWN) == []


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[PrometheusServer, WatchRun]]:
    exporter = Exporter(every_metric())
    folder = tmp_path_factory.mktemp("prometheus")
    with ProcessGroup(folder / "logs") as group:
        server = PrometheusServer(group, folder / "data")
        server.start()
        server.set_targets("twin", {exporter.address: {}})
        began_s = time.time()
        eventually("rates are there", lambda: len(server.query("rate(splitwatt_decision_seconds_count[8s])")) > 0)
        time.sleep(4.0)
        yield server, WatchRun(quiet=(began_s, time.time()))
    exporter.close()


def findings(served: tuple[PrometheusServer, WatchRun], sets: Sequence[PanelSet]) -> WatchFindings:
    server, run = served
    return find(server, run, sets, ALERTS, rate_interval="8s", docs={}, excused=tuple(NOT_SHOWN))


def test_a_site_that_says_everything_passes(served: tuple[PrometheusServer, WatchRun]) -> None:
    found = findings(served, SETS)
    assert found.problems == []
    assert found.panels == sum(len(panels.panels) for panels in SETS) > 50
    assert found.expressions > 70 and found.alerts == len(ALERTS) and found.metrics > 50


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda expr: expr.replace(names.M_BUDGET_GPUS, "splitwatt_budget_gpu"), "no data while it serves"),
        (lambda expr: expr.replace('budget=~"$budget"', 'budget="nobody"'), "no data while it serves"),
        (lambda expr: f"sum({expr}", "Prometheus refused"),
    ],
    ids=["a misspelt metric", "a label that never meets", "no PromQL"],
)
def test_a_spoilt_panel_makes_it_fail(served: tuple[PrometheusServer, WatchRun], spoil: object, says: str) -> None:
    budgets = SETS[0]
    row = budgets.rows[-1]
    panel = row.panels[-1]
    assert callable(spoil) and panel.title == "GPUs that count"
    spoilt = replace(panel, queries=tuple(replace(query, expr=spoil(query.expr)) for query in panel.queries))
    sets = [replace(budgets, rows=(*budgets.rows[:-1], replace(row, panels=(*row.panels[:-1], spoilt)))), *SETS[1:]]
    found = findings(served, sets)
    assert len(found.empty) == 1 and found.empty[0].startswith("Budgets / GPUs that count / ") and says in found.empty[0]


def test_the_misspelt_name_is_named(served: tuple[PrometheusServer, WatchRun]) -> None:
    spoilt = replace(ALERTS[0], expr="splitwatt_budget_measured_wats > 0")
    server, run = served
    found = find(server, run, SETS, [spoilt], rate_interval="8s", docs={}, excused=tuple(NOT_SHOWN))
    assert "splitwatt_budget_measured_wats is asked for, and no process exports it" in found.names
