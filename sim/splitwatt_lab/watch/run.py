"""One run: a site serves, events are made to it one group after the other, and Prometheus is asked what was seen of them."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import httpx
from splitwatt_panels.model import Alert, Event, PanelSet

from splitwatt_lab.errors import LabError
from splitwatt_lab.faults.ground import Ground
from splitwatt_lab.prometheus import PrometheusServer
from splitwatt_lab.watch.events import MADE
from splitwatt_lab.watch.findings import (
    AskedQuery,
    Points,
    Window,
    alert_problem,
    asked_of,
    filled,
    firings,
    name_problems,
    without_data,
)

FIRING: Final = 'ALERTS{alertstate="firing"}'
OURS: Final = '{job=~"agent|operator|twin"}'
CALM_S: Final = 240.0
"""Until a fresh site has no alert: its first requests waited for pods."""
QUIET_S: Final = 90.0
"""Of serving: joules per token are those of a whole minute, in which every pod of a role has tokens."""
SLACK_S: Final = 120.0
"""Beside its own time, what an alert may take to fire or to clear on a busy machine."""
LINGER_S: Final = 10.0
"""After the last alert of a group fired: what it is to be seen by is scraped meanwhile."""
STEP_S: Final = 2.0
MAX_POINTS: Final = 10_000
"""Prometheus gives 11 000 of a series."""

Tell = Callable[[str], None]


@dataclass(slots=True)
class WatchRun:
    """`quiet` and `events` as in `findings`; `ended_s`: when all had cleared, or was given up."""

    quiet: Window = (0.0, 0.0)
    events: dict[Event, Window] = field(default_factory=dict)
    ended_s: float = 0.0
    problems: list[str] = field(default_factory=list)


def play(ground: Ground, groups: Sequence[Sequence[Event]], alerts: Sequence[Alert], *, speed: float, tell: Tell) -> WatchRun:
    """Make all events. What does not fire or clear in time is no error here: the findings name it. Raises LabError."""
    player = _Player(ground, alerts, speed=speed, tell=tell)
    player.be_quiet()
    for group in groups:
        player.make(group)
    return player.end()


class _Player:
    def __init__(self, ground: Ground, alerts: Sequence[Alert], *, speed: float, tell: Tell) -> None:
        self._ground, self._alerts, self._speed, self._tell = ground, alerts, speed, tell
        self._rng = random.Random("watch")
        self._run = WatchRun()
        self._begins: dict[Event, float] = {}

    def _firing(self) -> set[str]:
        return firing(self._ground.site.prometheus)

    def _calm_s(self, within_s: float) -> float | None:
        """Seconds until no alert fires; None when some still do."""
        return self._ground.until(lambda: not self._firing(), within_s=within_s, look_s=1.0)

    def be_quiet(self) -> None:
        self._tell("a site that serves, until no alert is left")
        if self._calm_s(CALM_S) is None:
            self._run.problems.append(f"before anything was done: {', '.join(sorted(self._firing()))} for {CALM_S:.0f} s")
        begun_s = time.time()
        time.sleep(QUIET_S)
        self._run.quiet = (begun_s, time.time())

    def make(self, group: Sequence[Event]) -> None:
        wanted = {alert.name: alert.for_s for alert in self._alerts if alert.event in group}
        patience_s = max(wanted.values(), default=0) / self._speed + SLACK_S
        seen: set[str] = set()

        def all_fired() -> bool:
            seen.update(self._firing())
            return wanted.keys() <= seen

        self._tell(f"made: {'; '.join(group)}")
        laid: list[Event] = []
        try:
            for event in group:
                self._begins[event] = time.time()
                MADE[event].lay(self._ground, self._rng)
                laid.append(event)
            took_s = self._ground.until(all_fired, within_s=patience_s, look_s=1.0)
            within = "" if took_s is None else f" within {took_s:.0f} s"
            self._tell(f"  {len(wanted.keys() & seen)} of {len(wanted)} alerts fired{within}")
            time.sleep(LINGER_S)
        except (LabError, httpx.TransportError) as error:  # of the first that was not laid, if one was not
            self._run.problems.append(f"{group[min(len(laid), len(group) - 1)]} cannot be made: {error}")
        finally:
            for event in reversed(laid):
                MADE[event].heal(self._ground)
        cleared_s = self._calm_s(patience_s)
        left = ", ".join(sorted(self._firing()))
        self._tell(f"  healed: {left} still there" if cleared_s is None else f"  healed: all clear after {cleared_s:.0f} s")
        time.sleep(LINGER_S)

    def end(self) -> WatchRun:
        self._run.ended_s = time.time()
        self._run.events = {event: (begin_s, self._run.ended_s) for event, begin_s in self._begins.items()}
        return self._run


def firing(prometheus: PrometheusServer) -> set[str]:
    """Names of alerts. A Prometheus that is too busy to answer says nothing of them."""
    try:
        return {labels["alertname"] for labels, _ in prometheus.query(FIRING)}
    except httpx.TransportError:
        return {"?"}


def series_of(prometheus: PrometheusServer, expr: str, window: Window) -> list[Points]:
    """Raises LabError where Prometheus refuses the expression."""
    step_s = max(STEP_S, math.ceil((window[1] - window[0]) / MAX_POINTS))
    return [points for _, points in prometheus.query_range(expr, *window, step_s=step_s)]


@dataclass(frozen=True, slots=True)
class WatchFindings:
    """What was asked, how much of it, and what is wrong with it: a sentence each."""

    panels: int
    expressions: int
    alerts: int
    metrics: int
    empty: Sequence[str]
    silent: Sequence[str]
    names: Sequence[str]
    fired: Mapping[str, Window]

    @property
    def problems(self) -> Sequence[str]:
        return [*self.empty, *self.silent, *self.names]


def find(
    prometheus: PrometheusServer, run: WatchRun, sets: Sequence[PanelSet], alerts: Sequence[Alert], *,
    rate_interval: str, docs: Mapping[str, str], excused: Sequence[str],
) -> WatchFindings:  # fmt: skip
    """Raises LabError where Prometheus does not answer at all."""
    asked = asked_of(sets)
    whole = (run.quiet[0], max(run.ended_s, run.quiet[1]))
    empty = [said for one in asked if (said := _empty(prometheus, one, run, whole, rate_interval)) is not None]
    fired: dict[str, Window] = {}
    silent = []
    for alert in alerts:
        windows = firings(series_of(prometheus, f'{FIRING[:-1]}, alertname="{alert.name}"}}', whole)) if run.events else []
        problem = alert_problem(alert, windows, run.events, whole[1])
        if problem is not None:
            silent.append(problem)
        elif windows:
            fired[alert.name] = windows[0]
    live = prometheus.names(OURS, *whole)
    expressions = [*(one.query.expr for one in asked), *(alert.expr for alert in alerts)]
    return WatchFindings(
        panels=sum(len(panels.panels) for panels in sets), expressions=len(expressions), alerts=len(alerts), metrics=len(live),
        empty=empty, silent=silent, names=name_problems(expressions, docs, live, excused), fired=fired,
    )  # fmt: skip


def _empty(prometheus: PrometheusServer, asked: AskedQuery, run: WatchRun, whole: Window, rate_interval: str) -> str | None:
    try:
        series = series_of(prometheus, filled(asked.query.expr, rate_interval=rate_interval), whole)
    except LabError as error:
        return f"{asked.name}: {error}"
    return without_data(asked, series, run.quiet, run.events)


def docs_of(folder: Path) -> dict[str, str]:
    """Text by page."""
    return {str(page.relative_to(folder)): page.read_text(encoding="utf-8") for page in sorted(folder.rglob("*.md"))}
