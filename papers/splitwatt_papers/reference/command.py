"""`splitwatt papers simulate`: one of Splitwise's designs by the rules of splitwise-sim, for comparison with its results.

A fleet of one's own is `splitwatt simulate`, by the fleet engine.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from splitwatt_sim.jit import is_cold
from splitwatt_sim.latencies import PERCENTILES, SLOWDOWN_SLOS, Latencies, missed_slos, slowdowns
from splitwatt_sim.plan.arguments import design, positive
from splitwatt_sim.servers.alone import unloaded
from splitwatt_sim.servers.designs import Design
from splitwatt_sim.servers.tables import DecodeModel, TableError, builtin
from splitwatt_sim.traces.arrivals import Arrivals
from splitwatt_truth.trace import TraceError

from splitwatt_papers.lists import ListOptions, requests_of
from splitwatt_papers.reference.run import LABELS, StuckError, run_reference

FAILED: Final = 2
MODEL: Final = "bloom-176b"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayOptions:
    """What is replayed. `figures_to`: a file for the figures, or none."""

    design: Design
    list: ListOptions
    decode_model: DecodeModel = DecodeModel.BATCH
    model: str = MODEL
    figures_to: Path | None = None


def _decode_model(text: str) -> DecodeModel:
    try:
        return DecodeModel(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text} is unknown; use {' or '.join(DecodeModel)}") from None


class ReplayCommand:
    help = "one of Splitwise's designs by the rules of splitwise-sim, slips included"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        add = parser.add_argument
        add(
            "--design", type=design, metavar="D", required=True,
            help="A100:70, H100:40, AA:45/25, HH:25/15, HA:25/26, HHcap:25/21; your counts",
        )  # fmt: skip
        add_list_arguments(parser, ListOptions())
        add(
            "--decode-model", type=_decode_model, default=DecodeModel.BATCH, metavar="MODEL",
            help="batch (default): decode keyed by sequences, as measured; splitwise-2023: the reference's table with its slip",
        )  # fmt: skip
        add("--model", default=MODEL, help="served model (%(default)s)")
        add("--json", type=Path, metavar="FILE", help="write the figures, name -> number")

    def run(self, args: argparse.Namespace) -> int:
        console = Console(highlight=False)
        options = ReplayOptions(
            design=args.design,
            list=list_options(args),
            decode_model=args.decode_model,
            model=args.model,
            figures_to=args.json,
        )
        if is_cold("splitwatt_papers"):
            console.print("[dim]compiling the event loop, once: about half a minute[/dim]")
        try:
            replay(options, console)
        except (TraceError, TableError, StuckError, OSError) as error:
            Console(stderr=True, highlight=False).print(f"splitwatt papers simulate: {error}", soft_wrap=True, markup=False)
            return FAILED
        return 0


def add_list_arguments(parser: argparse.ArgumentParser, default: ListOptions) -> None:
    add = parser.add_argument
    add("--requests", type=Path, metavar="FILE", help="requests with their arrivals; default: a seeded generator")
    add(
        "--rate", type=positive, default=default.rate_rps, metavar="R",
        help="Poisson arrivals at this rate per second, sizes from the file",
    )  # fmt: skip
    add("--seconds", type=positive, default=default.seconds, help="length of such a list (%(default)g)")
    add("--seed", type=int, default=default.seed, help="seed of such a list (%(default)s)")


def list_options(args: argparse.Namespace) -> ListOptions:
    return ListOptions(requests=args.requests, rate_rps=args.rate, seconds=args.seconds, seed=args.seed)


def replay(options: ReplayOptions, console: Console) -> None:
    """Run, print, and write what was asked for. Raises TraceError, TableError, StuckError, OSError."""
    arrivals, tables = requests_of(options.list), builtin()
    columns = {"prompt": arrivals.prompt_tokens, "output": arrivals.output_tokens}
    measured = run_reference(
        options.design, arrival_s=arrivals.arrival_s, tables=tables, model=options.model, decode=options.decode_model, **columns
    )
    slower = slowdowns(measured, unloaded(tables.server(options.model, "A100"), **columns))
    console.print(_table(options.design, measured, slower, arrivals))
    missed = missed_slos(slower)
    console.print("all nine SLOs hold" if not missed else f"SLOs missed: {', '.join(missed)}", soft_wrap=True)
    if options.figures_to is not None:
        options.figures_to.parent.mkdir(parents=True, exist_ok=True)
        values = figures(options.design, measured, slower, arrivals)
        options.figures_to.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


def figures(design: Design, measured: Latencies, slower: dict[str, float], arrivals: Arrivals) -> dict[str, float]:
    """Flat: name -> number, the unit in the name; slowdowns are ratios."""
    return {
        "requests": len(arrivals),
        "servers": design.servers,
        "usd_per_hour": design.usd_per_hour,
        **measured.percentiles(),
        **{f"{name}_slowdown": value for name, value in slower.items()},
        "slos_missed": len(missed_slos(slower)),
    }


def _table(design: Design, measured: Latencies, slower: dict[str, float], arrivals: Arrivals) -> Table:
    title = f"{design}: {len(arrivals)} requests of {escape(arrivals.name)} (simulated)"
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for p in PERCENTILES:
        table.add_column(f"P{p} ms", justify="right")
    for p in PERCENTILES:
        table.add_column(f"P{p} slowdown", justify="right")
    values = measured.percentiles()
    for name, label in LABELS.items():
        cells = [f"{values[f'{name}_ms_p{p}']:.1f}" for p in PERCENTILES]
        for p, limit in zip(PERCENTILES, SLOWDOWN_SLOS[name], strict=True):
            ratio = slower[f"{name}_p{p}"]
            style = "green" if ratio < limit else "red"
            cells.append(f"[{style}]{ratio:.2f}[/{style}] < {limit:g}")
        table.add_row(label, *cells)
    return table
