"""The demo's live view in the terminal: racks, watts against limits, caps by role, latency, and what just happened."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, Final

import httpx
from rich.console import Console, Group, RenderableType
from rich.layout import Layout
from rich.live import Live as RichLive
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text
from splitwatt_core.names import M_BUDGET_CHARGE_WATTS as BUDGET_CHARGE
from splitwatt_core.names import M_BUDGET_MEASURED_WATTS as BUDGET_MEASURED

from splitwatt_lab.errors import LabError
from splitwatt_lab.judge import SILENT_S, Count
from splitwatt_lab.run import API, Live
from splitwatt_lab.site import LabSite

RECENT_S: Final = 15.0
"""Latency percentiles shown are of requests that ended within this time."""
MAX_LINES: Final = 20
MAX_DONE: Final = 6
CONTEXT_EVERY_S: Final = 1.5
BAR: Final = 28
TABLE_LINES: Final = 4
WIDE_COLUMNS: Final = 110
"""Narrower windows get no bars, and panels below one another."""


class LiveView:
    """Draws a `Live` pass. Use as a context manager; call it with each state."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._rich = RichLive(console=console, refresh_per_second=2, screen=False, transient=False)
        self._recent: deque[dict[str, Any]] = deque(maxlen=20_000)
        self._offset = 0
        self._context_s = 0.0
        self._roles: dict[str, dict[str, str]] = {}
        self._events: list[str] = []
        self._metrics: dict[tuple[str, str], float] = {}

    def __enter__(self) -> LiveView:
        self._rich.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._rich.__exit__(None, None, None)

    def __call__(self, live: Live) -> None:
        if time.monotonic() - self._context_s > CONTEXT_EVERY_S:
            self._context_s = time.monotonic()
            self._read_context(live.site)
        self._read_results(live.site)
        self._rich.update(self.render(live))

    def render(self, live: Live) -> RenderableType:
        clock = "starting" if live.clock_s is None else f"{live.clock_s:5.0f} s of {live.timeline.end_s:.0f} s"
        clock += silence(live)
        layout = Layout()
        layout.split_column(
            Layout(
                Panel(self._budgets(live), title=f"Splitwatt  {live.policy}  {clock}", title_align="left"),
                size=max(len(live.judge.latest), 1) + TABLE_LINES,
            ),
            Layout(name="bottom"),
        )
        middle = Group(self._caps(live), Text(), self._latency())
        caps = Layout(Panel(middle, title="caps and latency", title_align="left"))
        happened = Layout(Panel(self._happened(live), title="what happened", title_align="left"))
        if self._wide:
            layout["bottom"].split_row(caps, happened)
        else:
            layout["bottom"].split_column(caps, happened)
            caps.ratio = 2
        return layout

    @property
    def _wide(self) -> bool:
        return self._console.width >= WIDE_COLUMNS

    # --------------------------------------------------------------------------------------------------------- panels

    def _budgets(self, live: Live) -> Table:
        table = Table(expand=self._wide, box=None)
        for name in ("budget", "limit W", "draw W", "caps W", "charge W", "meter W", "posture", "over s"):
            table.add_column(name, justify="left" if name in ("budget", "posture") else "right")
        if self._wide:
            table.add_column("draw/limit", justify="right")
            table.add_column("", ratio=1)
        for name, sample in sorted(live.judge.latest.items(), key=lambda item: _root_first(live, item[0])):
            view, count = live.judge.views[name], live.judge.counts.get(name) or Count()
            status = view.status
            over = sample.true_w > sample.limit_w or sample.capped_w > sample.limit_w
            pending = f" -> {view.limit_w}" if view.limit_w != sample.limit_w else ""
            bar = ProgressBar(
                total=max(sample.limit_w, 1),
                completed=min(sample.true_w, sample.limit_w),
                complete_style="red" if over and sample.in_force else "cyan",
            )
            table.add_row(
                name,
                f"{sample.limit_w}{pending}",
                f"{sample.true_w:.0f}",
                f"{sample.capped_w:.0f}",
                self._now(BUDGET_CHARGE, name),
                self._now(BUDGET_MEASURED, name),
                str(status.get("posture", "-")),
                Text(f"{count.either_over_s:.1f}", style="bold red" if count.either_over_s else "green"),
                *((f"{sample.true_w / max(sample.limit_w, 1):.0%}", bar) if self._wide else ()),
            )
        return table

    def _now(self, metric: str, budget: str) -> str:
        """The operator's own metric as Prometheus scraped it last: fresher than the status, which is written sparingly."""
        value = self._metrics.get((metric, budget))
        return "-" if value is None else f"{value:.0f}"

    def _caps(self, live: Live) -> Table:
        """Enforced caps of each rack's GPUs by what they run: least, mean and most watts."""
        table = Table(expand=True, box=None)
        for name in ("rack", "role", "GPUs", "cap W", *([""] if self._wide else ()), ""):
            table.add_column(name, justify="right" if name in ("GPUs", "cap W") else "left", no_wrap=True)
        groups: dict[tuple[str, str], list[int]] = {}
        for node in live.site.node_specs:
            look = live.judge.looks.get(node.name)
            if look is None:
                continue
            roles = list(self._roles.get(node.name, {}).values()) or ["Unassigned"] * len(look.enforced_each_w)
            for cap_w, role in zip(look.enforced_each_w, roles, strict=False):
                groups.setdefault((node.rack, role), []).append(cap_w)
        for (rack, role), caps in sorted(groups.items()):
            mean_w = sum(caps) / len(caps)
            spread = "" if min(caps) == max(caps) else f"{min(caps)}-{max(caps)}"
            bar = "█" * round(BAR * mean_w / 700)
            bars = [Text(bar, style="yellow")] if self._wide else []
            table.add_row(rack, role, str(len(caps)), f"{mean_w:.0f}", *bars, spread)
        return table

    def _latency(self) -> Table:
        table = Table(expand=True, box=None)
        for name in ("cluster", "requests/s", "TTFT p50/p99 ms", "TBT p50/p99 ms"):
            table.add_column(name, justify="left" if name == "cluster" else "right", no_wrap=True)
        now_s = time.time()
        rows: dict[str, list[dict[str, Any]]] = {}
        for row in self._recent:
            if now_s - row["t_s"] <= RECENT_S:
                rows.setdefault(f"{row['namespace']}/{row['cluster']}", []).append(row)
        for cluster, recent in sorted(rows.items()):
            ttft = sorted(r["ttft_ms"] for r in recent)
            tbt = sorted(r["tbt_ms"] for r in recent if r["tbt_ms"] is not None)
            table.add_row(cluster, f"{len(recent) / RECENT_S:.1f}", _p50_p99(ttft), _p50_p99(tbt))
        return table

    def _happened(self, live: Live) -> Text:
        """What was done, then the operator's Events, newest first. Long ones go on in the next line: their numbers stand last."""
        text = Text(overflow="fold")
        for happening in live.happenings[-MAX_DONE:]:
            text.append(f"{happening.at_s:5.0f} s  {happening.what}\n", style="bold")
        text.append("\n")
        for line in self._events[: -MAX_LINES - 1 : -1]:
            text.append(line + "\n", style="dim")
        return text

    # --------------------------------------------------------------------------------------------------------- reading

    def _read_results(self, site: LabSite) -> None:
        if not site.results.is_file():
            return
        with site.results.open("rb") as file:
            file.seek(self._offset)
            data = file.read()
        end = data.rfind(b"\n") + 1
        self._offset += end
        self._recent.extend(json.loads(line) for line in data[:end].splitlines())

    def _read_context(self, site: LabSite) -> None:
        """Roles and events from the API; while it is down the last ones stay."""
        try:
            powers = site.get(f"{API}/nodepowers?resourceVersion=0")["items"]
            events = site.get("/apis/events.k8s.io/v1/events?limit=200")["items"]
            rows = site.prometheus.query(f'{{__name__=~"{BUDGET_CHARGE}|{BUDGET_MEASURED}"}}')
        except (httpx.TransportError, LabError):
            return
        self._metrics = {(labels["__name__"], labels["budget"]): value for labels, value in rows}
        for obj in powers:
            grants = (obj.get("spec") or {}).get("gpus") or ()
            order = [row["uuid"] for row in (obj.get("status") or {}).get("gpus") or ()]
            phases = {row["uuid"]: row.get("phase", "Unassigned") for row in grants}
            self._roles[obj["metadata"]["name"]] = {uuid: phases.get(uuid, "Unassigned") for uuid in order}
        ours = [e for e in events if str(e.get("reportingController", "")).startswith("splitwatt")]
        ours.sort(key=lambda e: e.get("eventTime") or "")
        self._events = [_event_line(e) for e in ours]


def _event_line(event: Mapping[str, Any]) -> str:
    clock = str(event.get("eventTime") or "")[11:19]
    return f"{clock} {event['regarding'].get('name', '')}: {event.get('reason', '')} {event.get('note', '')}".lstrip()


def _root_first(live: Live, name: str) -> tuple[bool, str]:
    return (live.judge.wiring.depth(name) > 0, name)


def silence(live: Live) -> str:
    """What to add to a line when the judge has not looked at the GPUs for a while; empty when it has."""
    silent_s = live.judge.silent_s
    return f"  JUDGE SILENT for {silent_s:.0f} s" if live.clock_s is not None and silent_s > SILENT_S else ""


def _p50_p99(values: Sequence[float]) -> str:
    if not values:
        return "-"
    return f"{values[len(values) // 2]:.0f} / {values[min(len(values) - 1, int(len(values) * 0.99))]:.0f}"


class HeadlessView:
    """One line every few seconds, for logs and machines."""

    EVERY_S: Final = 10.0

    def __init__(self, console: Console) -> None:
        self._console = console
        self._last_s = float("-inf")
        self._told = 0

    def __enter__(self) -> HeadlessView:
        return self

    def __exit__(self, *_: object) -> None:
        return

    def __call__(self, live: Live) -> None:
        for happening in live.happenings[self._told :]:
            self._console.print(f"{happening.at_s:6.1f} s  {happening.what}", highlight=False, soft_wrap=True)
        self._told = len(live.happenings)
        if live.clock_s is None or time.monotonic() - self._last_s < self.EVERY_S:
            return
        self._last_s = time.monotonic()
        words = [f"{name} {s.true_w:.0f}/{s.limit_w} W (caps {s.capped_w:.0f})" for name, s in sorted(live.judge.latest.items())]
        over_s = live.judge.violations_s()
        self._console.print(
            f"{live.clock_s:6.1f} s  {'  '.join(words)}  over {over_s:.1f} s{silence(live)}", highlight=False, soft_wrap=True
        )
