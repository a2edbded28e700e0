"""`splitwatt doctor`, rule by rule: each fault has its line, a healthy site has none, and causes stand before what follows."""

from __future__ import annotations

import copy
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from splitwatt_api.kinds import KINDS
from splitwatt_cli.doctor.command import looked_at
from splitwatt_cli.doctor.definitions import differences
from splitwatt_cli.doctor.facts import Clock, MeterAnswer, Right, TelemetryFacts
from splitwatt_cli.doctor.meters import UNITS, Behind, unit_of
from splitwatt_cli.doctor.rights import AGENT, OPERATOR, needed
from splitwatt_cli.doctor.verdict import diagnose
from splitwatt_cli.finding import Finding, Gravity
from splitwatt_cli.snapshot import SiteSnapshot
from splitwatt_core.names import LABEL_CLUSTER
from splitwatt_lab.toolbuild import Console, ensure_tools
from support.cli_objects import NOW_S, answers, budget, cluster, facts, gpu, healthy, lease, node, node_power, row

CRDS = tuple(kind.manifest() for kind in KINDS)


def found(telemetry: TelemetryFacts | None = None, *, told: Any = None, **parts: Any) -> list[Finding]:
    return diagnose(facts(healthy(definitions=CRDS, **parts), telemetry, **(told or {})))


def first(telemetry: TelemetryFacts | None = None, **rest: Any) -> tuple[str, str]:
    finding = found(telemetry, **rest)[0]
    return finding.check, finding.fix


def test_a_healthy_site_has_no_finding_at_all() -> None:
    assert found() == []


@pytest.mark.parametrize(
    ("telemetry", "check"),
    [
        (answers(age_s={}, down=frozenset({"n1"})), "NoAgent"),
        (answers(age_s={}), "NotScraped"),
        (answers(gap_s={"n1": 15.0}), "ScrapedSeldom"),
        (answers(closed=frozenset({"n1"})), "PodResourcesClosed"),
        (answers(meters={"rack-a1": MeterAnswer()}), "MeterDead"),
        (answers(meters={"rack-a1": MeterAnswer(problem="refused")}), "MeterDead"),
        (answers(meters={"rack-a1": MeterAnswer(value=2700.0, series=1, age_s=31.0)}), "MeterDead"),
        (answers(meters={"rack-a1": MeterAnswer(value=5400.0, series=2, age_s=0.5)}), "MeterSeries"),
        (answers(meters={"rack-a1": MeterAnswer(value=2.7, series=1, age_s=0.5)}), "MeterUnit"),
        (answers(meters={"rack-a1": MeterAnswer(value=2_700_000.0, series=1, age_s=0.5)}), "MeterUnit"),
        (answers(meters={"rack-a1": MeterAnswer(value=0.0, series=1, age_s=0.5)}), "MeterImplausible"),
        (answers(meters={"rack-a1": MeterAnswer(value=65535.0, series=1, age_s=0.5)}), "MeterNoValue"),
        (answers(engines=frozenset()), "NoEngineMetrics"),
        (answers(clock=Clock(60.0, 0.01)), "ClockOff"),
        (TelemetryFacts(where="asked", problem="refused"), "NoPrometheus"),
    ],
)
def test_what_prometheus_shows_has_its_line_and_its_fix(telemetry: TelemetryFacts, check: str) -> None:
    assert first(telemetry)[0] == check and first(telemetry)[1]


@pytest.mark.parametrize(
    ("parts", "check", "fix"),
    [
        ({"lease": lease(renewed_s=NOW_S + 58, came_s=NOW_S - 2)}, "ClockOff", "chronyc"),
        ({"lease": lease(renewed_s=NOW_S - 100)}, "NobodyReigns", "logs deploy/splitwatt-operator"),
        ({"nodes": (node("n1", rack=""),)}, "LabelGone", "kubectl label node n1 splitwatt.io/rack=a1"),
    ],
)
def test_what_the_api_server_shows_has_its_line_and_its_fix(parts: Any, check: str, fix: str) -> None:
    assert first(**parts)[0] == check and fix in first(**parts)[1]


def test_an_agent_that_never_was_is_missing_and_one_that_writes_is_not_scraped() -> None:
    silent = answers(age_s={})
    assert first(silent, node_powers=(node_power("n1", agent=False),))[0] == "NoAgent"
    assert first(silent, node_powers=(node_power("n1", gpu(), said_s=NOW_S - 300),))[0] == "NoAgent"
    assert first(silent, node_powers=(node_power("n1", gpu(), said_s=NOW_S - 30),))[0] == "NotScraped"
    nobody_asked = TelemetryFacts(problem="nobody says where Prometheus is")
    assert [f.check for f in found(nobody_asked)] == ["NoPrometheus"], "who was not asked said nothing of agents"


def test_two_leaves_over_one_node_stand_before_what_that_causes() -> None:
    both = (*healthy().budgets, budget("twice", rack="a1"))
    findings = found(answers(meters={"rack-a1": MeterAnswer()}), budgets=both)
    assert [f.check for f in findings] == ["LabelOverlap", "MeterDead"]
    assert findings[0].line == "nodes: 1 node in several leaf budgets (rack-a1, twice): n1"


def test_a_gpu_node_outside_every_budget_is_a_warning() -> None:
    more = (*healthy().nodes, node("n2", rack=""))
    findings = found(answers(age_s={"n1": 0.5, "n2": 0.5}), nodes=more)
    assert [(f.check, f.severity) for f in findings] == [("NoBudget", Gravity.WARNING)]


def test_a_limit_that_cannot_be_kept_says_which_could() -> None:
    short = budget("rack-a1", rack="a1", status={"shortWatts": 900}, conditions=[row("Feasible", False, "X", "need 900 W more")])
    assert first(budgets=(short,))[1].startswith("""kubectl patch pb rack-a1 --type=merge -p '{"spec":{"limitWatts":26900}}'""")


@pytest.mark.parametrize(("rating_w", "severity"), [(20_000, Gravity.BROKEN), (30_000, Gravity.WARNING), (40_000, None)])
def test_a_limit_is_held_against_its_breaker(rating_w: int, severity: Gravity | None) -> None:
    findings = found(told={"breakers_w": {"rack-a1": rating_w}})
    assert [f.severity for f in findings] == ([] if severity is None else [severity])


def test_an_agents_own_clock_is_told_by_what_the_api_server_noted() -> None:
    off = node_power("n1", gpu(), budgets=("rack-a1", "row-a"), said_s=NOW_S - 70, came_s=NOW_S - 5)
    assert [(f.check, f.text[:50]) for f in found(node_powers=(off,))] == [
        ("ClockOff", "clocks of 1 node are off, n1's 66 s behind the API")
    ]


def test_a_slow_answer_is_no_clock_that_is_off() -> None:
    assert found(answers(clock=Clock(5.0, 4.0))) == []
    assert found(told={"server": None, "local_s": NOW_S}) == []


def test_every_unit_is_told_from_the_others() -> None:
    assert {unit: unit_of(2700.0 * down / up, Behind(600.0, 2600.0, 3400.0)) for unit, (up, down) in UNITS.items()} == {
        unit: unit for unit in UNITS
    }
    assert unit_of(2.7, Behind(0.0, 2000.0, 3000.0)) is None, "without agents nobody can tell"


def test_engines_without_our_labels_are_told_from_engines_that_nobody_scrapes() -> None:
    pod = {"metadata": {"name": "p", "namespace": "serving", "uid": "p", "labels": {LABEL_CLUSTER: "chat"}}}
    unlabelled = answers(engines=frozenset(), pods=frozenset({("serving", "p")}))
    assert "without the labels" in found(unlabelled, pods=(pod,))[0].text
    assert found(answers(engines=frozenset()), clusters=(cluster(ready=0),)) == [], "who does not run tells nothing"


def test_a_missing_right_names_account_and_verb() -> None:
    lacks = {"refused": [Right(OPERATOR, "patch", "splitwatt.io", "nodepowers")]}
    [finding] = found(told=lacks)
    assert finding.line == "ServiceAccount splitwatt-system/splitwatt-operator: may not patch nodepowers.splitwatt.io"


def test_the_rights_are_those_of_the_chart(render_chart: list[dict[str, Any]]) -> None:
    for account in (OPERATOR, AGENT):
        rules = [
            (rule, document["kind"])
            for document in render_chart
            if document["kind"] in ("ClusterRole", "Role") and document["metadata"]["name"] == account
            for rule in document["rules"]
        ]
        granted = {
            (verb, group, resource, name)
            for rule, _ in rules
            for group in rule["apiGroups"]
            for resource in rule["resources"]
            for verb in rule["verbs"]
            for name in rule.get("resourceNames") or [""]
        }
        # Profiles as objects are a choice of the chart's, and none of the operator's needs.
        optional = {row for row in granted if row[2] == "powerprofiles" and row[0] in ("create", "get", "patch")}
        asked = {(r.verb, r.group, r.resource, r.name) for r in needed("ns") if r.account == account}
        assert asked == granted - optional and asked


@pytest.fixture(scope="module")
def render_chart(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    chart = Path(__file__).resolve().parents[2] / "helm" / "splitwatt"
    helm, home = ensure_tools(Console())["helm"], tmp_path_factory.mktemp("helm")
    done = subprocess.run(
        [helm, "template", "splitwatt", chart, "--set=image.registry=localhost"],
        env={"HOME": str(home), "PATH": os.environ["PATH"]}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return [document for document in yaml.safe_load_all(done.stdout) if document]


def test_an_older_definition_lacks_fields_and_a_newer_one_has_more() -> None:
    ours = CRDS[2]
    other = copy.deepcopy(ours)
    properties = other["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]
    frozen = properties.pop("frozen")
    assert differences(ours, other) == (["spec.frozen"], []) and differences(other, ours) == ([], ["spec.frozen"])
    properties["frozen"] = frozen
    assert differences(ours, other) == ([], []) and differences(ours, ours) == ([], [])
    other["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["x-kubernetes-validations"].pop()
    assert len(differences(ours, other)[0]) == 1, "a rule that is missing lets through what ours refuses"


def test_before_anything_is_installed_it_says_so_and_looks_at_what_there_is() -> None:
    bare = SiteSnapshot(now_s=NOW_S, nodes=(node("n1", gpus=0),))
    findings = diagnose(facts(bare, TelemetryFacts(problem="nobody says where Prometheus is")))
    assert [f.check for f in findings] == ["NotInstalled", "NoGPUs", "NoPrometheus"]
    assert findings[0].fix.startswith("helm install")
    assert "no Prometheus" in looked_at(facts(bare, TelemetryFacts(problem="x")))


def test_an_old_kubernetes_is_named_before_all_else() -> None:
    assert first(told={"version": "v1.29.4-gke.1"})[0] == "OldKubernetes"
    assert found(told={"version": "v1.32.0"}) == []
