"""The words of panels and alerts: frozen data that knows no dashboard program.

An expression may hold Grafana's variables (`$budget`, `$__rate_interval`); alerts hold none.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

ALERT_PREFIX: Final = "Splitwatt"


class Unit(StrEnum):
    """Grafana's names of units."""

    WATTS = "watt"
    SECONDS = "s"
    JOULES = "joule"
    HERTZ = "hertz"
    SHARE = "percentunit"
    COUNT = "short"
    PER_SECOND = "cps"
    BYTES = "bytes"
    BYTES_PER_SECOND = "Bps"


class Drawing(StrEnum):
    """How a panel is drawn."""

    LINES = "lines"
    NUMBER = "number"
    STATES = "states"


class Tone(StrEnum):
    """What a value means, whatever colour a program gives it."""

    GOOD = "good"
    WARNING = "warning"
    BAD = "bad"


class Event(StrEnum):
    """What makes a panel live or an alert fire that a quiet fleet leaves silent. `make dashboards-check` does each to a real
    site and looks."""

    LIMIT_TOO_LOW = "a limit that no caps can keep"
    SETTER_REFUSES = "a driver that refuses a lower cap"
    METER_SILENT = "a meter without a reading"
    FOREIGN_LIMIT = "a second program that sets limits"
    PROMISE_TOO_TIGHT = "a latency that no engine can keep"
    REPLICAS_TOO_MANY = "more replicas than the site has GPUs for"
    RIGHT_TAKEN = "an operator that may not write the status of budgets"
    NOBODY_REIGNS = "an operator that is dead"


@dataclass(frozen=True, slots=True)
class PanelStep:
    """From `value` on it is `level`."""

    value: float
    level: Tone


@dataclass(frozen=True, slots=True)
class Query:
    """One expression in PromQL, and how each of its series is called. `event`: it has no series before that happened; None: a
    quiet fleet that serves has them. `unmade`: why the lab's series are there and say nothing."""

    expr: str
    legend: str
    event: Event | None = None
    unmade: str = ""


@dataclass(frozen=True, slots=True)
class Panel:
    """One question and its answer. `description`: what is shown; `why`: what a reader does with it. `base`: what a value below
    the first threshold means. `states`: words for values."""

    title: str
    unit: Unit
    description: str
    why: str
    queries: tuple[Query, ...]
    look: Drawing = Drawing.LINES
    base: Tone = Tone.GOOD
    thresholds: tuple[PanelStep, ...] = ()
    states: tuple[tuple[int, str], ...] = ()


@dataclass(frozen=True, slots=True)
class PanelRow:
    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True, slots=True)
class Variable:
    """A choice at the head of a dashboard: the values of `label` on `metric`. "All" is whatever there is."""

    name: str
    title: str
    metric: str
    label: str


@dataclass(frozen=True, slots=True)
class PanelSet:
    """One dashboard. `key` never changes: links of people and other dashboards hold it."""

    key: str
    title: str
    description: str
    variables: tuple[Variable, ...]
    rows: tuple[PanelRow, ...]

    @property
    def uid(self) -> str:
        return f"splitwatt-{self.key}"

    @property
    def panels(self) -> tuple[Panel, ...]:
        return tuple(panel for row in self.rows for panel in row.panels)


class Severity(StrEnum):
    """Who is told. A promise broken pages; a margin that shrinks warns."""

    CRITICAL = "critical"
    WARNING = "warning"


@dataclass(frozen=True, slots=True)
class Alert:
    """One rule. `summary` carries the numbers, in Prometheus' templates; `description` says what it means and the first thing to
    look at. `for_s`: how long `expr` has to hold. `event`: what makes it fire on a real site; None where nothing that the lab can
    do does, and `unmade` says why."""

    key: str
    severity: Severity
    expr: str
    for_s: int
    summary: str
    description: str
    event: Event | None
    unmade: str = ""

    @property
    def name(self) -> str:
        return f"{ALERT_PREFIX}{self.key}"

    @property
    def runbook(self) -> str:
        """Its page, below the repository's root."""
        return f"docs/runbooks/{self.name}.md"
