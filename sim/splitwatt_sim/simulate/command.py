"""`splitwatt simulate`: a scenario of pools under caps, or one of Splitwise's designs, in virtual time."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from splitwatt_papers.reference.run import StuckError, run_reference
from splitwatt_truth.trace import TraceError

from splitwatt_sim.fleet.run import FleetError
from splitwatt_sim.jit import is_cold
from splitwatt_sim.latencies import PERCENTILES, SLOWDOWN_SLOS, Latencies, missed_slos, slowdowns, unloaded
from splitwatt_sim.servers.designs import Design, DesignError, parse_design
from splitwatt_sim.servers.tables import DecodeModel, TableError, builtin
from splitwatt_sim.simulate.fleet_run import simulate_scenario
from splitwatt_sim.simulate.parts import ScenarioError
from splitwatt_sim.traces.arrivals import Arrivals, read_arrivals
from splitwatt_sim.traces.resample import generated, poisson

FAILED: Final = 2
MODEL: Final = "bloom-176b"
MAX_REQUESTS: Final = 5_000_000
SECONDS: Final = 120.0
SEED: Final = 1
OF_A_SCENARIO: Final = {
    "requests": "requests.file", "rate": "requests.rate", "seconds": "requests.seconds", "seed": "requests.seed",
    "model": "model",
}  # fmt: skip
"""Options of a design, by the key that says the same in a scenario."""
NAMES: Final = {"ttft": "TTFT", "tbt": "TBT", "e2e": "E2E"}


def _design(text: str) -> Design:
    try:
        return parse_design(text)
    except DesignError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e9:
        raise argparse.ArgumentTypeError(f"must be a number above 0, not {text}")
    return value


def _decode_model(text: str) -> DecodeModel:
    try:
        return DecodeModel(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text} is unknown; use {' or '.join(DecodeModel)}") from None


class SimulateCommand:
    help = "run a fleet against a list of requests in virtual time: latencies, power, energy"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        add = parser.add_argument
        add("scenario", type=Path, nargs="?", help="YAML: model, requests, pools, slo, power; or give --design")
        add("--out", type=Path, default=Path("out/simulate"), metavar="DIR", help="a scenario's picture, series (%(default)s)")
        add(
            "--design", type=_design, metavar="D",
            help="as splitwise-sim runs it: A100:70, H100:40, AA:45/25, HH:25/15, HA:25/26, HHcap:25/21; your counts",
        )  # fmt: skip
        add("--requests", type=Path, metavar="FILE", help="requests with their arrivals; default: a seeded generator")
        add("--rate", type=_positive, metavar="R", help="Poisson arrivals at this rate per second, sizes from the file")
        add("--seconds", type=_positive, help=f"length of such a list ({SECONDS:g})")
        add("--seed", type=int, help=f"seed of such a list ({SEED})")
        add(
            "--decode-model", type=_decode_model, metavar="MODEL",
            help="batch (default): decode keyed by sequences, as measured; splitwise-2023: the reference's table with its slip",
        )  # fmt: skip
        add("--model", help=f"served model ({MODEL})")
        add("--json", type=Path, metavar="FILE", help="write the figures, name -> number")

    def run(self, args: argparse.Namespace) -> int:
        console = Console(highlight=False)
        if is_cold():
            console.print("[dim]compiling the event loop, once: about half a minute[/dim]")
        try:
            if (args.scenario is None) == (args.design is None):
                raise ScenarioError("give a scenario file, or --design; one of them")
            if args.scenario is not None:
                _check_scenario_alone(args)
                simulate_scenario(args.scenario, console, out=args.out, figures_to=args.json)
            else:
                simulate(args, console)
        except (ScenarioError, TraceError, TableError, FleetError, StuckError, OSError) as error:
            Console(stderr=True, highlight=False).print(f"splitwatt simulate: {error}", soft_wrap=True, markup=False)
            return FAILED
        return 0


def _check_scenario_alone(args: argparse.Namespace) -> None:
    """An option that is not heard must not look as if it were. Raises ScenarioError."""
    for name, key in OF_A_SCENARIO.items():
        if getattr(args, name) is not None:
            raise ScenarioError(f"--{name} says nothing beside a scenario: write {key} in it")
    if args.decode_model is not None:
        raise ScenarioError("--decode-model says nothing beside a scenario: it goes with --design; leave it out")


def requests_of(args: argparse.Namespace) -> Arrivals:
    """The list of requests that the command line asks for. Raises TraceError."""
    seconds, seed = args.seconds or SECONDS, SEED if args.seed is None else args.seed
    if args.requests is None:
        rate = args.rate or 5.5
        _bound(rate * seconds)
        return generated(requests_per_s=rate, seconds=seconds, seed=seed)
    given = read_arrivals(args.requests)
    if args.rate is None:
        return given
    _bound(args.rate * seconds)
    return poisson(given, requests_per_s=args.rate, seconds=seconds, seed=seed)


def _bound(requests: float) -> None:
    if requests > MAX_REQUESTS:
        raise TraceError(f"{requests:.0f} requests are more than the {MAX_REQUESTS} of one run: lower --rate or --seconds")


def simulate(args: argparse.Namespace, console: Console) -> None:
    """Run, print, and write what was asked for. Raises TraceError, TableError, StuckError, OSError."""
    arrivals, tables, design = requests_of(args), builtin(), args.design
    model = args.model or MODEL
    if len(arrivals) == 0:
        raise TraceError("the list holds no request: raise --rate or --seconds")
    measured = run_reference(
        design,
        arrival_s=arrivals.arrival_s,
        prompt=arrivals.prompt_tokens,
        output=arrivals.output_tokens,
        tables=tables,
        model=model,
        decode=args.decode_model or DecodeModel.BATCH,
    )
    alone = unloaded(tables.server(model, "A100"), prompt=arrivals.prompt_tokens, output=arrivals.output_tokens)
    slower = slowdowns(measured, alone)
    console.print(_table(design, measured, slower, arrivals))
    missed = missed_slos(slower)
    console.print("all nine SLOs hold" if not missed else f"SLOs missed: {', '.join(missed)}", soft_wrap=True)
    if args.json is not None:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(figures(design, measured, slower, arrivals), indent=1) + "\n", encoding="utf-8")


def figures(design: Design, measured: Latencies, slower: dict[str, float], arrivals: Arrivals) -> dict[str, float]:
    """Flat: name -> number, the unit in the name; slowdowns are ratios."""
    return {
        "requests": len(arrivals.arrival_s),
        "servers": design.servers,
        "usd_per_hour": design.usd_per_hour,
        **measured.percentiles(),
        **{f"{name}_slowdown": value for name, value in slower.items()},
        "slos_missed": len(missed_slos(slower)),
    }


def _table(design: Design, measured: Latencies, slower: dict[str, float], arrivals: Arrivals) -> Table:
    count = len(arrivals.arrival_s)
    table = Table(title=f"{design}: {count} requests of {escape(arrivals.name)} (simulated)", title_justify="left")
    table.add_column("")
    for p in PERCENTILES:
        table.add_column(f"P{p} ms", justify="right")
    for p in PERCENTILES:
        table.add_column(f"P{p} slowdown", justify="right")
    values = measured.percentiles()
    for name, label in NAMES.items():
        cells = [f"{values[f'{name}_ms_p{p}']:.1f}" for p in PERCENTILES]
        for p, limit in zip(PERCENTILES, SLOWDOWN_SLOS[name], strict=True):
            ratio = slower[f"{name}_p{p}"]
            style = "green" if ratio < limit else "red"
            cells.append(f"[{style}]{ratio:.2f}[/{style}] < {limit:g}")
        table.add_row(label, *cells)
    return table


COMMAND = SimulateCommand()
