"""The docs' pages of panels and alerts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath

from splitwatt_panels.alerts import ALERTS
from splitwatt_panels.model import Panel, PanelSet, Severity
from splitwatt_panels.sets import NOT_SHOWN, SETS

_DASHBOARDS_HEAD = """# Dashboards

What each panel shows, and what to do with it. The chart brings these as Grafana dashboards, and as
PersesDashboard objects where the Perses operator runs (as on OpenShift): `dashboards` in its values, and
[install.md](install.md) for the rest. They are read-only; save a copy to change one. All of them have the tag `splitwatt`, and
each links the others with the same choices and the same time.

An empty panel means that nothing says so, and never zero: the job is not scraped, or no engine shows such a counter.

Without Grafana, `splitwatt dashboards --prometheus URL` shows the same panels as one page in a browser, straight from
Prometheus: choose a dashboard, a range, a budget or a node; the address holds the choice. It listens on this machine alone,
passes on nothing but what panels ask, and fetches nothing from elsewhere. It asks without credentials: put a proxy that adds
them before an end point that wants them.

Each query was answered by a real Prometheus that had scraped every metric (`tests/panels`), and `make dashboards-check` asks a
real site, to which every kind of event is done. Nobody has looked at the dashboards in a running Grafana or Perses yet.

The pictures are of that page, five minutes of `make demo` on a machine that was busy with other work: gaps are scrapes that
Prometheus missed, and a gap is what such a thing should look like.
"""
_ALERTS_HEAD = """# Alerts

In the chart's PrometheusRule (`metrics.prometheusRule`), and as plain rules in `helm/splitwatt/rules/splitwatt.yaml`. A promise
that is broken pages (`severity: critical`), a margin that shrinks warns. Each has a runbook.
"""


def dashboards_page() -> str:
    return "\n".join([_DASHBOARDS_HEAD, *(line for panels in SETS for line in _set(panels)), *_not_shown()]) + "\n"


def alerts_page() -> str:
    lines = [_ALERTS_HEAD]
    for severity in Severity:
        lines += [f"## {severity.value.capitalize()}", "", "| alert | fires when | for | says |", "|---|---|---|---|"]
        for alert in ALERTS:
            if alert.severity is severity:
                page = PurePosixPath(alert.runbook).relative_to("docs")
                cells = (f"[{alert.name}]({page})", _code(alert.expr), f"{alert.for_s} s", _cell(alert.description))
                lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines).rstrip("\n") + "\n"


def _set(panels: PanelSet) -> Iterator[str]:
    yield from (f"## {panels.title}", "", f"{panels.description} Address in Grafana: `/d/{panels.uid}`.", "")
    yield from (f"![The dashboard {panels.title}, from a demo](img/dashboard-{panels.key}.png)", "")
    for row in panels.rows:
        yield from (f"### {panels.title}: {row.title.lower()}", "", "| panel | shows | why | asks |", "|---|---|---|---|")
        yield from map(_panel, row.panels)
        yield ""


def _panel(panel: Panel) -> str:
    asks = "<br>".join(_code(query.expr) for query in panel.queries)
    return f"| {panel.title} | {_cell(panel.description)} | {_cell(panel.why)} | {asks} |"


def _not_shown() -> Iterator[str]:
    yield from ("## Metrics on no panel", "", "| metric | why |", "|---|---|")
    yield from (f"| `{name}` | {reason} |" for name, reason in sorted(NOT_SHOWN.items()))


def _code(text: str) -> str:
    return f"`{_cell(text)}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
