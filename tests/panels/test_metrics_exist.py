"""No panel, alert or page names a metric or a label that nobody exports, and no metric is exported that nobody looks at."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import promql_parser
import pytest
from splitwatt_core import names
from splitwatt_panels import promql
from splitwatt_panels.alerts import ALERTS
from splitwatt_panels.sets import NOT_SHOWN, SETS
from support.imports import REPOSITORY
from support.registries import exported
from support.some import some

SUFFIX = re.compile(r"_(bucket|count|sum)$")
IN_PROSE = re.compile(
    r"\b(?:splitwatt_(?:gpu|agent|budget|cluster|operator|api|decision|query|report|events|twin)_[a-z0-9_]+|vllm:[a-z0-9_]+)"
)
PAGES = [
    *sorted((REPOSITORY / "docs").rglob("*.md")),
    *sorted((REPOSITORY / "helm").rglob("*.tpl")),
    REPOSITORY / "README.md",
    REPOSITORY / "helm" / "splitwatt" / "values.yaml",
]


def parsed(expr: str) -> promql_parser.Expr:
    """As Prometheus reads it once Grafana has put values in."""
    return promql_parser.parse(re.sub(r"\$\w+", "x", expr.replace(promql.RANGE, "1m")))


def expressions() -> dict[str, str]:
    found = {f"{s.title}: {p.title} {n}": q.expr for s in SETS for p in s.panels for n, q in enumerate(p.queries, 1)}
    return found | {alert.name: alert.expr for alert in ALERTS}


EXPRESSIONS = expressions()
EACH = pytest.mark.parametrize("expr", EXPRESSIONS.values(), ids=EXPRESSIONS.keys())


def selectors(expr: str) -> Iterator[tuple[str, set[str]]]:
    """Each metric that it asks for, with the labels that it matches."""
    found: list[tuple[str, set[str]]] = []

    def visit(node: promql_parser.Expr) -> None:
        if isinstance(node, promql_parser.VectorSelector):
            assert node.name, f"a selector without a name in {expr}"
            found.append((node.name, {matcher.name for matcher in node.matchers.matchers}))

    promql_parser.walk(parsed(expr), visit)
    yield from found


def grouped(expr: str) -> set[str]:
    """Labels by which it sums up or joins."""
    found: set[str] = set()

    def visit(node: promql_parser.Expr) -> None:
        if isinstance(node, promql_parser.AggregateExpr) and node.modifier is not None:
            found.update(node.modifier.labels)
        if isinstance(node, promql_parser.BinaryExpr) and node.modifier is not None and node.modifier.matching is not None:
            found.update(node.modifier.matching.labels)

    promql_parser.walk(parsed(expr), visit)
    return found


@EACH
def test_every_metric_and_label_is_exported(expr: str) -> None:
    known = exported()
    labels: set[str] = set()
    for name, matched in some(list(selectors(expr))):
        assert name in known, f"nobody exports {name}"
        assert matched <= known[name], f"{name} has no label {sorted(matched - known[name])}"
        labels |= known[name]
    assert grouped(expr) <= labels, f"no metric here has {sorted(grouped(expr) - labels)}"


@pytest.mark.parametrize("broken", [
    lambda e: e.replace("splitwatt_budget_limit_watts", "splitwatt_budget_limits_watts"),
    lambda e: e.replace("budget=~", "budgets=~"),
])  # fmt: skip
def test_a_misspelt_metric_or_label_is_found(broken: Callable[[str], str]) -> None:
    expr = broken(promql.budget(names.M_BUDGET_LIMIT_WATTS))
    with pytest.raises(AssertionError, match=r"nobody exports|has no label"):
        test_every_metric_and_label_is_exported(expr)


def test_every_exported_metric_is_on_a_panel_or_excused() -> None:
    shown = {SUFFIX.sub("", name) for s in SETS for p in s.panels for q in p.queries for name, _ in selectors(q.expr)}
    there = {SUFFIX.sub("", name) for name in exported()} - {"up"}
    assert len(there) > 45
    assert there - shown - NOT_SHOWN.keys() == set(), "show them, or say in sets.NOT_SHOWN why not"
    stale = {name for name in NOT_SHOWN if SUFFIX.sub("", name) not in there or name in shown}
    assert stale == set(), "these excuses have no metric, or one that is shown"


def test_every_name_of_ours_is_exported() -> None:
    """A name in the core without a metric behind it would be taken for one by whoever writes the next panel. SGLang's are read
    from its source alone (docs/engines.md)."""
    there = {SUFFIX.sub("", name).removesuffix("_total") for name in exported()}
    ours = [value for name, value in vars(names).items() if name.startswith("M_")]
    assert len(ours) > 50
    assert [name for name in ours if name.removesuffix("_total") not in there and not name.startswith("sglang:")] == []


def test_pages_name_metrics_that_exist() -> None:
    known = {*exported(), *(SUFFIX.sub("", name) for name in exported())}
    known |= {name.removesuffix("_total") for name in known}
    told = {(page.name, name) for page in PAGES for name in IN_PROSE.findall(page.read_text(encoding="utf-8"))}
    assert len(told) > 60
    assert [row for row in sorted(told) if row[1] not in known and not row[1].endswith("_")] == []


def test_a_variables_values_are_labels_of_its_metric() -> None:
    variables = {variable for panels in SETS for variable in panels.variables}
    assert {variable.name for variable in variables} == {"job", "namespace", "cluster", "budget", "role", "node"}
    assert [variable.name for variable in variables if variable.label not in exported()[variable.metric]] == []
