"""`make dashboards-check`: each panel has data, each alert fires and clears, each name is exported; or it says which do not."""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import httpx
from rich.console import Console
from splitwatt_nvml_twin.build import BuildError
from splitwatt_panels.alerts import ALERTS
from splitwatt_panels.generate import RULES
from splitwatt_panels.sets import NOT_SHOWN, SETS

from splitwatt_lab.errors import LabError
from splitwatt_lab.faults.ground import Ground
from splitwatt_lab.site import repository
from splitwatt_lab.toolbuild import Console as BuildConsole
from splitwatt_lab.watch.events import TOGETHER
from splitwatt_lab.watch.findings import hastened
from splitwatt_lab.watch.run import WatchFindings, WatchRun, docs_of, find, play

SPEED: Final = 10.0
RATE_INTERVAL: Final = "10s"
"""Of a site that is scraped every second."""
WRONG: Final = 1
FAILED: Final = 2


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m splitwatt_lab.watch", description=__doc__)
    option = parser.add_argument
    option("--speed", type=float, default=SPEED, help="alerts' times and windows are so many times as short (%(default)s)")
    option("--groups", type=int, default=len(TOGETHER), help="of events that are made, 0: none, and no alert is asked for")
    option("--out", type=Path, help="keep the logs of all processes in this folder")
    args = parser.parse_args(argv)
    console = Console(highlight=False, soft_wrap=True)
    if args.speed < 1 or not 0 <= args.groups <= len(TOGETHER):
        console.print(f"--speed is 1 or more, --groups 0 to {len(TOGETHER)}")
        return FAILED
    started_s = time.monotonic()
    try:
        with tempfile.TemporaryDirectory(prefix="watch-") as temporary:
            directory = args.out.resolve() if args.out is not None else Path(temporary)
            shutil.rmtree(directory / "site", ignore_errors=True)
            run, findings = check(directory, speed=args.speed, groups=args.groups, console=console)
    except (LabError, BuildError, httpx.TransportError) as error:
        console.print(f"dashboards-check: {error}", style="bold red")
        return FAILED
    report(findings, run, console, speed=args.speed, minutes=(time.monotonic() - started_s) / 60)
    return WRONG if run.problems or findings.problems else 0


def check(directory: Path, *, speed: float, groups: int, console: Console) -> tuple[WatchRun, WatchFindings]:
    """Raises LabError."""
    directory.mkdir(parents=True, exist_ok=True)
    rules = directory / "rules.yaml"
    rules.write_text(hastened((repository() / RULES).read_text(encoding="utf-8"), speed=speed), encoding="utf-8")
    started_s = time.monotonic()

    def tell(what: str) -> None:
        console.print(f"[dim]{time.monotonic() - started_s:5.0f} s[/dim]  {what}", markup=True)

    with Ground(
        directory / "site", seed=1, rules=(rules,), progress=BuildConsole(), stage=lambda what: tell(f"starting: {what}")
    ) as ground:
        run = play(ground, TOGETHER[:groups], ALERTS, speed=speed, tell=tell)
        tell("asking Prometheus for every panel, alert and name")
        docs = docs_of(repository() / "docs")
        findings = find(
            ground.site.prometheus, run, SETS, ALERTS, rate_interval=RATE_INTERVAL, docs=docs, excused=tuple(NOT_SHOWN)
        )
    return run, findings


def report(findings: WatchFindings, run: WatchRun, console: Console, *, speed: float, minutes: float) -> None:
    for alert in ALERTS:
        if alert.event is None:
            console.print(f"by promtool alone: {alert.name}, because {alert.unmade}")
    for panels in SETS:
        for panel in panels.panels:
            for reason in dict.fromkeys(query.unmade for query in panel.queries if query.unmade):
                console.print(f"of unknown value here: {panels.title} / {panel.title}, because {reason}")
    for problem in (*run.problems, *findings.problems):
        console.print(problem, style="bold red", markup=False)
    made = sum(alert.event in run.events for alert in ALERTS)
    console.print(
        f"{findings.panels} panels on {len(SETS)} dashboards, {findings.expressions} expressions, {findings.alerts} alerts, "
        f"{findings.metrics} metrics, {len(run.events)} events; {minutes:.1f} min"
    )
    console.print(
        f"{len(findings.empty)} without data, {sum('never fired' in problem for problem in findings.silent)} that never fired; "
        f"{len(findings.fired)} of {made} alerts fired once and cleared once, at {1 / speed:.2g} of their times; "
        f"{len(findings.names)} names without a metric or a panel"
    )
