"""`python -m splitwatt_papers.bench`: how many requests per second the simulators take, on one core of this machine.

Theory. Every rate is requests over processor time of this one process, so that other work on the machine counts less; best
and median of a few runs, after one that compiles. A run counts whole, from a list of requests to its latencies: state made,
events played, times taken out. What compiling costs is measured in a process of its own with an empty cache. The design is
Splitwise's HH:25/15 and as many H100 unsplit, near what they can serve.

Protected: a rate is of one list and one design, both named beside it; a figure that others published is shown as such, and
is never part of a ratio.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
from rich.console import Console
from rich.table import Table
from splitwatt_sim.fleet.plain import run_plain
from splitwatt_sim.fleet.run import FleetError, run_fleet
from splitwatt_sim.fleet.state import DECODE, MIXED, PREFILL, Pool
from splitwatt_sim.jit import COMPILED
from splitwatt_sim.servers.designs import Design, parse_design
from splitwatt_sim.servers.kinds import tables_kind
from splitwatt_sim.servers.tables import DecodeModel, builtin
from splitwatt_sim.traces.arrivals import Arrivals
from splitwatt_truth.trace import TraceError

from splitwatt_papers.equal_power.search import ORDER, best_split, goal_of
from splitwatt_papers.lists import ListOptions, requests_of
from splitwatt_papers.reference.command import MODEL, add_list_arguments, list_options
from splitwatt_papers.reference.run import StuckError, run_reference

FAILED: Final = 2
SPLIT: Final = parse_design("HH:25/15")
UNSPLIT: Final = parse_design("H100:40")
LIST: Final = ListOptions(rate_rps=70.0, seconds=4_500.0)
RUNS: Final = 5
SLOWER_RUNS: Final = 3
REFERENCE_REQUESTS: Final = 50_000
PLAIN_REQUESTS: Final = 10_000
"""The slower ones take the first requests of the list."""
COMPILE_TIMEOUT_S: Final = 300.0
AIMS: Final = {"requests_per_s_per_core": 2e6}
PUBLISHED: Final = {"published_low_requests_per_s": 150.0, "published_high_requests_per_s": 340.0}
NOTES: Final = {
    "requests_per_s_per_core": f"fleet engine, {SPLIT}, best of {RUNS} runs",
    "fleet_split_median_requests_per_s": "the same, median",
    "fleet_unsplit_requests_per_s": f"fleet engine, {UNSPLIT}, best of {RUNS} runs",
    "fleet_unsplit_median_requests_per_s": "the same, median",
    "reference_requests_per_s": f"reference model, {SPLIT}, at most {REFERENCE_REQUESTS} requests, best of {SLOWER_RUNS}",
    "plain_requests_per_s": f"plain specification, {SPLIT}, at most {PLAIN_REQUESTS} requests, best of {SLOWER_RUNS}",
    "speedup_over_reference": "best split run over the plain Python specification of the same rules",
    "speedup_over_reference_model": "best split run over the compiled model of splitwise-sim's rules",
    "plan_four_designs_s": "every split of HHcap, HH, HA and AA at the power of 40 H100, one process; aim 10 s or less",
    "compile_s": "first run of the fleet engine with an empty cache, in a process of its own",
    "published_low_requests_per_s": "splitwise-sim, from; published, not measured here",
    "published_high_requests_per_s": "splitwise-sim, up to; published, not measured here",
    "requests": "in the list of the fleet runs",
    "output_tokens_mean": "generated per request",
    "machine_cores": "",
    "machine_load_before": "load average over a minute",
}
"""What exactly each figure is, in the order in which they are shown."""


class BenchError(RuntimeError):
    """A figure that cannot be measured; the message is one sentence."""


def pools_of(design: Design, arrivals: Arrivals) -> list[Pool]:
    """Uncapped machines of 2023 for this list. Raises TableError."""
    longest = int(arrivals.prompt_tokens.max())
    prompt, token = (
        tables_kind(builtin(), MODEL, name, cap_w=None, longest_prompt=longest)
        for name in (design.prompt_kind, design.token_kind)
    )
    if not design.split:
        return [Pool(MIXED, prompt, design.prompt_machines)]
    return [Pool(PREFILL, prompt, design.prompt_machines), Pool(DECODE, token, design.token_machines)]


def first(arrivals: Arrivals, count: int) -> Arrivals:
    """The first requests of a list, all of a shorter one."""
    return Arrivals(arrivals.arrival_s[:count], arrivals.prompt_tokens[:count], arrivals.output_tokens[:count], arrivals.name)


def rates_requests_per_s(run: Callable[[], object], *, requests: int, runs: int) -> list[float]:
    """One rate per run, by processor time; a run before them compiles and is not counted."""
    run()
    rates = []
    for _ in range(runs):
        begun_s = time.process_time()
        run()
        rates.append(requests / max(time.process_time() - begun_s, 1e-9))
    return rates


def first_run_s() -> float:
    """Processor seconds that the engine's first run in this process takes beyond its second, for one request."""
    one = Arrivals(np.zeros(1), np.full(1, 512), np.full(1, 2), "one request")
    pools = pools_of(SPLIT, one)
    ends_s = []
    for _ in range(2):
        begun_s = time.process_time()
        run_fleet(pools, one)
        ends_s.append(time.process_time() - begun_s)
    return ends_s[0] - ends_s[1]


def compile_s() -> float:
    """`first_run_s` in a new process with an empty cache. Raises BenchError."""
    code = "import sys; from splitwatt_papers.bench import first_run_s; sys.stdout.write(str(first_run_s()))"
    with tempfile.TemporaryDirectory() as cache:
        try:
            done = subprocess.run(
                [sys.executable, "-c", code], env=os.environ | {"NUMBA_CACHE_DIR": cache},
                capture_output=True, text=True, timeout=COMPILE_TIMEOUT_S, check=True,
            )  # fmt: skip
        except subprocess.SubprocessError as error:
            raise BenchError(f"the time to compile was not measured: {error}") from error
    return float(done.stdout)


def measure(arrivals: Arrivals, stage: Callable[[str], None], *, runs: int = RUNS) -> dict[str, float]:
    """The figures of `NOTES` that are measured, by name. `stage` is told what begins. Raises FleetError, StuckError,
    BenchError."""
    values: dict[str, float] = {}
    for name, design in (("fleet_split", SPLIT), ("fleet_unsplit", UNSPLIT)):
        stage(f"{name.replace('_', ' ')}: {design}, {len(arrivals)} requests, {runs} runs and one that compiles")
        rates = rates_requests_per_s(partial(run_fleet, pools_of(design, arrivals), arrivals), requests=len(arrivals), runs=runs)
        values["requests_per_s_per_core" if design is SPLIT else f"{name}_requests_per_s"] = max(rates)
        values[f"{name}_median_requests_per_s"] = statistics.median(rates)
    some, few = first(arrivals, REFERENCE_REQUESTS), first(arrivals, PLAIN_REQUESTS)
    stage(f"reference model: {len(some)} requests")
    values["reference_requests_per_s"] = max(
        rates_requests_per_s(partial(_reference, some), requests=len(some), runs=SLOWER_RUNS)
    )
    stage(f"plain specification: {len(few)} requests")
    values["plain_requests_per_s"] = max(
        rates_requests_per_s(partial(run_plain, pools_of(SPLIT, few), few), requests=len(few), runs=SLOWER_RUNS)
    )
    for other, ratio in (("plain", "speedup_over_reference"), ("reference", "speedup_over_reference_model")):
        values[ratio] = values["requests_per_s_per_core"] / values[f"{other}_requests_per_s"]
    stage("planning four pairs at equal power: every split, in steps of 5 requests/s")
    goal = goal_of(arrivals, margin=0.0)
    begun_s = time.perf_counter()
    for name in ORDER:
        best_split(name, goal)
    values["plan_four_designs_s"] = time.perf_counter() - begun_s
    stage("compiling the fleet engine with an empty cache")
    values["compile_s"] = compile_s()
    return values


def _reference(arrivals: Arrivals) -> object:
    return run_reference(
        SPLIT,
        arrival_s=arrivals.arrival_s,
        prompt=arrivals.prompt_tokens,
        output=arrivals.output_tokens,
        tables=builtin(),
        decode=DecodeModel.BATCH,
    )


def table(values: Mapping[str, float]) -> Table:
    """Figure, value, and what it is, with its aim."""
    shown = Table(title="simulators on one core", title_justify="left", pad_edge=False)
    shown.add_column("figure", no_wrap=True)
    shown.add_column("value", justify="right", no_wrap=True)
    shown.add_column("what was measured", style="dim", overflow="fold")
    for name, note in NOTES.items():
        if name not in values:
            continue
        value, aim, met = values[name], AIMS.get(name), ""
        if aim is not None:
            met = f"; aim {aim:,.0f}: " + ("[green]met[/green]" if value >= aim else "[red]missed[/red]")
        shown.add_row(name, f"{value:,.0f}" if value >= 1000 else f"{value:.4g}", note + met)
    return shown


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m splitwatt_papers.bench", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "--out", type=Path, default=Path("out/bench-sim.json"), metavar="FILE", help="figures, flat (%(default)s)"
    )
    add_list_arguments(parser, LIST)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, show the table, write the file; FAILED with one sentence when a figure cannot be measured."""
    args, console = _arguments(argv), Console(highlight=False)
    load_before = os.getloadavg()[0]
    try:
        if not COMPILED:
            raise BenchError("the simulators are interpreted here, which says nothing of their speed: install numba")
        arrivals = requests_of(list_options(args))
        with console.status("") as status:

            def stage(what: str) -> None:
                if console.is_terminal:
                    status.update(what)
                else:
                    console.print(what, style="dim", soft_wrap=True)

            values = measure(arrivals, stage)
        values |= PUBLISHED
        values |= {"requests": len(arrivals), "output_tokens_mean": float(arrivals.output_tokens.mean())}
        values |= {"machine_cores": os.cpu_count() or 0, "machine_load_before": round(load_before, 2)}
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    except (BenchError, FleetError, StuckError, TraceError, OSError) as error:
        Console(stderr=True, highlight=False).print(f"splitwatt_papers.bench: {error}", soft_wrap=True)
        return FAILED
    console.print(table(values))
    console.print(f"{arrivals.name}; figures: {args.out}", soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
