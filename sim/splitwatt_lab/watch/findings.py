"""What a run of events showed of panels and alerts, and what is wrong with it: pure rules over series of Prometheus.

Absent is not zero: a panel without a series is a finding, one whose series say 0 is none.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import yaml
from splitwatt_panels.model import ALERT_PREFIX, Alert, Event, PanelSet, Query
from splitwatt_panels.promql import RANGE

Window = tuple[float, float]
"""Begin and end, Unix seconds."""
Points = Sequence[tuple[float, float]]
"""Unix seconds and value."""

LEAST_FOR_S: Final = 3
"""However fast time goes: shorter than three scrapes is noise."""
BREATH_S: Final = 5.0
"""A pause this short within a firing is a scrape or an evaluation that came late, not a second firing."""
METRIC: Final = re.compile(r"\b(?:splitwatt_(?!twin_)\w+|splitwatt_twin_\w+|vllm:\w+|process_\w+)\b")
IN_DOCS: Final = re.compile(r"\bsplitwatt_(?:gpu|agent|budget|cluster|operator|api|decision|query|report|events|twin)_[a-z0-9_]+")
_PART: Final = re.compile(r"_(?:bucket|count|sum|total)$")
_MINUTES: Final = re.compile(r"\[(\d+)m\]")


@dataclass(frozen=True, slots=True)
class AskedQuery:
    """One expression of a panel."""

    name: str
    query: Query


def asked_of(sets: Iterable[PanelSet]) -> list[AskedQuery]:
    return [
        AskedQuery(f"{panels.title} / {panel.title} / {query.legend}", query)
        for panels in sets
        for panel in panels.panels
        for query in panel.queries
    ]


def filled(expr: str, *, rate_interval: str) -> str:
    """As Grafana asks it with All of everything."""
    return re.sub(r"\$\w+", ".*", expr.replace(RANGE, rate_interval))


def hastened(rules: str, *, speed: float) -> str:
    """Rules whose times and windows are `speed` times as short, and no shorter than `LEAST_FOR_S`."""
    document: dict[str, Any] = yaml.safe_load(rules)
    for group in document["groups"]:
        for rule in group["rules"]:
            if "for" in rule:
                rule["for"] = f"{max(LEAST_FOR_S, round(int(rule['for'].removesuffix('s')) / speed))}s"
            rule["expr"] = _MINUTES.sub(lambda found: f"[{max(10, round(60 * int(found[1]) / speed))}s]", rule["expr"])
    return yaml.safe_dump(document, sort_keys=False)


def without_data(asked: AskedQuery, series: Iterable[Points], quiet: Window, events: Mapping[Event, Window]) -> str | None:
    """What is wrong with an expression's answer; None: it is live when it should be. `quiet`: while nothing was done but to
    serve; `events`: from the moment that each was begun to the end of all."""
    rows = list(series)
    if asked.query.unmade:
        return None if rows else f"{asked.name}: no series, not even of unknown value"
    event = asked.query.event
    if event is not None and event not in events:
        return None
    begin_s, end_s = quiet if event is None else events[event]
    if any(begin_s <= at_s <= end_s and not math.isnan(value) for row in rows for at_s, value in row):
        return None
    return f"{asked.name}: no data {'while it serves' if event is None else f'after {event.value}'}"


def firings(series: Iterable[Points]) -> list[Window]:
    """When an alert fired, whatever its labels: of `ALERTS{alertstate="firing"}`."""
    times = sorted({at_s for row in series for at_s, _ in row})
    found: list[Window] = []
    for at_s in times:
        if found and at_s - found[-1][1] <= BREATH_S:
            found[-1] = (found[-1][0], at_s)
        else:
            found.append((at_s, at_s))
    return found


def alert_problem(alert: Alert, found: Sequence[Window], events: Mapping[Event, Window], end_s: float) -> str | None:
    """What is wrong with when an alert fired; `events` as in `without_data`."""
    if alert.event is None or alert.event not in events:
        return f"{alert.name} fired, though nothing was done that it is for" if found else None
    begin_s = events[alert.event][0]
    if not found:
        return f"{alert.name} never fired after {alert.event.value}"
    if len(found) > 1:
        return (
            f"{alert.name} fired {len(found)} times: {', '.join(f'{a - begin_s:+.0f}..{b - begin_s:+.0f} s' for a, b in found)}"
        )
    if found[0][0] < begin_s:
        return f"{alert.name} fired {begin_s - found[0][0]:.0f} s before {alert.event.value}"
    if end_s - found[0][1] <= BREATH_S:
        return f"{alert.name} never cleared"
    return None


def name_problems(
    expressions: Iterable[str], docs: Mapping[str, str], live: Iterable[str], excused: Collection[str]
) -> Sequence[str]:
    """Names that are asked for or written about and that no process exports, and names that are exported for nobody. `docs`: text
    by page; `live`: all names that Prometheus scraped from ours; `excused`: shown nowhere, for a reason, which may be that a site
    like this one has no such series: docs may name them all the same."""
    there = {name for name in live if METRIC.fullmatch(name) and not name.endswith("_created")}
    stems = {_PART.sub("", name) for name in there}
    may_be_told = stems | {_PART.sub("", name) for name in excused}
    wanted = {name for expr in expressions for name in METRIC.findall(expr)}
    shown = {_PART.sub("", name) for name in (*wanted, *excused)}
    told = {(page, name) for page, text in docs.items() for name in IN_DOCS.findall(text)}
    return [
        *(f"{name} is asked for, and no process exports it" for name in sorted(wanted - there)),
        *(f"{name} is exported, and no panel shows it" for name in sorted(stems - shown)),
        *(
            f"{page} names {name}, and no process exports it"
            for page, name in sorted(told)
            if _PART.sub("", name) not in may_be_told and not name.endswith("_") and not name.startswith(ALERT_PREFIX)
        ),
    ]
