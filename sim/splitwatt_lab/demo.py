"""`splitwatt demo`: the whole product on one machine, with a judge at the end."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from rich.console import Console
from splitwatt_nvml_twin.build import BuildError
from splitwatt_panels.generate import RULES
from splitwatt_truth.trace import TraceError
from splitwatt_truth.trace_files import TracePart, read_trace, rows_of
from splitwatt_truth.trace_kinds import TraceUnit

from splitwatt_lab.errors import LabError
from splitwatt_lab.live import HeadlessView, LiveView
from splitwatt_lab.report import write_report
from splitwatt_lab.run import PassResult, run_pass
from splitwatt_lab.scenario import Timeline, clusters
from splitwatt_lab.site import MAX_RACKS, LoadSpec, SiteSpec, repository
from splitwatt_lab.toolbuild import Console as BuildConsole

POLICIES: Final = ("PhaseAware", "Uniform", "Polca")
REQUESTS_PER_S: Final = 5.5
MIN_MINUTES: Final = 0.5
"""Shorter and the five happenings would step on each other's feet."""
MAX_MIXED: Final = 100
VIOLATED: Final = 1
FAILED: Final = 2


def _between(low: float, high: float, kind: Callable[[str], float]) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"must be between {low} and {high}, not {text}")
        return value

    return parse


class DemoCommand:
    help = "run control plane, operator, agents, simulated GPUs and load on this machine, and judge the budgets"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        number = parser.add_argument
        number("--minutes", type=_between(MIN_MINUTES, 600, float), default=3.0, help="length of the load (%(default)s)")
        number("--racks", type=_between(1, MAX_RACKS, int), default=2, help="racks (%(default)s)")
        number("--nodes-per-rack", type=_between(2, 40, int), default=4, help="GPU servers per rack (%(default)s)")
        number("--gpus-per-node", type=_between(1, 16, int), default=8, help="GPUs per server (%(default)s)")
        number(
            "--mixed",
            type=_between(0, MAX_MIXED, int),
            default=0,
            help="of the chat service's prefill servers, how many do both phases (%(default)s)",
        )
        number("--trace", type=Path, metavar="FILE", help="CSV with the Azure columns; default: a seeded generator")
        number(
            "--trace-unit", choices=[unit.value for unit in TraceUnit],
            help="unit of the trace's times; default: told by the file",
        )  # fmt: skip
        number("--seed", type=_between(0, 2**31, int), default=1, help="seed of the load (%(default)s)")
        number("--policy", choices=POLICIES, default="PhaseAware", help="policy of the first pass (%(default)s)")
        number("--compare", choices=POLICIES, metavar="POLICY", help="run a second pass under this policy")
        number("--headless", action="store_true", help="lines instead of the live view")
        number("--out", type=Path, default=Path("out/demo"), metavar="DIR", help="report and logs (%(default)s)")

    def run(self, args: argparse.Namespace) -> int:
        console = Console(highlight=False)
        try:
            return run_demo(args, console)
        except (LabError, BuildError, TraceError) as error:
            Console(stderr=True, highlight=False).print(f"splitwatt demo: {error}", soft_wrap=True)
            return FAILED


def run_demo(args: argparse.Namespace, console: Console, *, operator_command: Sequence[str] | None = None) -> int:
    """All passes and the report; 0 when every budget was kept, VIOLATED when not, FAILED when a pass proves nothing. Raises
    LabError, TraceError.

    `operator_command` replaces the operator, so that a test can show a broken one being caught.
    """
    unit = None if args.trace_unit is None else TraceUnit(args.trace_unit)
    if args.trace is not None:
        check_trace(args.trace, console, unit=unit)
    elif unit is not None:
        raise TraceError("--trace-unit is of --trace FILE: give that too, or leave it out")
    timeline = Timeline.of(args.minutes)
    spec = SiteSpec(
        mixed=args.mixed,
        racks=args.racks,
        nodes_per_rack=args.nodes_per_rack,
        gpus_per_node=args.gpus_per_node,
        seed=args.seed,
        load=LoadSpec(trace=args.trace, trace_unit=unit, requests_per_s=REQUESTS_PER_S, rate=timeline.rate),
        operator_command=operator_command or (sys.executable, "-m", "splitwatt_operator"),
        rules=(repository() / RULES,),
    )
    clusters(spec)  # what the site has no nodes for is told before anything is started
    out: Path = args.out.resolve()
    headless = args.headless or not console.is_terminal
    results: list[PassResult] = []
    _tell(console, introduction(timeline))
    for policy in [args.policy, *([args.compare] if args.compare else [])]:
        logs = out / f"logs-{policy}"
        shutil.rmtree(logs, ignore_errors=True)
        with HeadlessView(console) if headless else LiveView(console) as view:
            results.append(
                run_pass(
                    spec,
                    policy=policy,
                    minutes=args.minutes,
                    directory=logs,
                    view=view,
                    progress=BuildConsole(),
                    stage=lambda name: console.print(f"[dim]starting: {name}[/dim]"),
                    serves=lambda site: _tell(console, whereabouts(site.prometheus.url)),
                )
            )
    page = write_report(
        results,
        out,
        site={
            "racks": args.racks,
            "nodes_per_rack": args.nodes_per_rack,
            "gpus_per_node": args.gpus_per_node,
            "mixed": args.mixed,
            "minutes": args.minutes,
            "trace": args.trace.name if args.trace else "seeded generator",
            "seed": args.seed,
        },
    )
    return verdict(results, page, console)


def introduction(timeline: Timeline) -> list[str]:
    """What the demo will do by itself, and what is the reader's to touch."""
    return [
        f"The demo's own: load that rises from {timeline.rise_s:.0f} s on; the rack that serves most is cut by 20 % at "
        f"{timeline.cut_s:.0f} s; a second InferenceCluster at {timeline.second_cluster_s:.0f} s; an agent killed at "
        f"{timeline.kill_s:.0f} s.",
        "Yours meanwhile: patch or delete any PowerBudget, InferenceCluster, pod or label; what you change is told and judged, "
        "and a rack that you set lower is not cut again. Budgets that you make besides are not judged.",
    ]


def whereabouts(prometheus_url: str) -> list[str]:
    """Where a reader looks at it, once it serves."""
    return [
        f"Prometheus, with the chart's alerts: {prometheus_url}/alerts",
        f"Dashboards, in another terminal: .venv/bin/splitwatt dashboards --prometheus {prometheus_url}",
    ]


def _tell(console: Console, lines: Sequence[str]) -> None:
    for line in lines:
        console.print(line, soft_wrap=True, markup=False)


def check_trace(path: Path, console: Console, *, unit: TraceUnit | None = None) -> None:
    """Tell of a wrong file before anything is started, and of what is not taken from a right one. Raises TraceError."""
    columns = read_trace(path, TracePart(unit=unit))
    rows_of(columns, name=str(path))
    for note in columns.notes:
        console.print(f"{path.name}: {note}", soft_wrap=True, markup=False)


def verdict(results: Sequence[PassResult], page: Path, console: Console) -> int:
    for result in results:
        for name, count in sorted(result.counts.items()):
            console.print(
                f"{result.policy:10}  {name:10}  worst draw {count.worst_true_w:+6.0f} W, caps {count.worst_capped_w:+6.0f} W "
                f"against the limit in force; charge over {count.charge_over_s:.1f} s; judged {count.judged_s:.0f} s; "
                f"breaker theta at most {count.worst_theta:.3f}"
            )
        if result.patch_to_enforced_s is not None:
            console.print(f"{result.policy:10}  from kubectl patch to the last enforced cap: {result.patch_to_enforced_s:.2f} s")
        for problem in result.problems:
            console.print(f"{result.policy:10}  {problem}", style="bold red", soft_wrap=True)
    violations_s = results[0].violations_s
    # Rounded up: anything above nothing must not print as 0.0.
    shown_s = violations_s if violations_s == 0 else max(violations_s, 0.1)
    console.print(f"budget violations: {shown_s:.1f} s")
    for result in results[1:]:
        console.print(f"budget violations under {result.policy}: {result.violations_s:.1f} s")
    console.print(f"report: {os.path.relpath(page)}", soft_wrap=True)
    if any(result.violations_s for result in results):
        return VIOLATED
    return FAILED if any(result.problems for result in results) else 0


COMMAND: Final = DemoCommand()
