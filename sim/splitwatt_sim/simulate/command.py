"""`splitwatt simulate`: a scenario of pools under caps, in virtual time."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rich.console import Console
from splitwatt_truth.trace import TraceError
from splitwatt_truth.trace_files import WHOLE, TracePart

from splitwatt_sim.fleet.run import FleetError
from splitwatt_sim.forward import PapersMissingError, to_papers
from splitwatt_sim.jit import is_cold
from splitwatt_sim.servers.tables import TableError
from splitwatt_sim.simulate.fleet_run import simulate_scenario
from splitwatt_sim.simulate.parts import ScenarioError
from splitwatt_sim.traces.told import add_part_arguments, part_of

FAILED: Final = 2
OF_A_DESIGN: Final = {
    "requests": "write requests.file in it",
    "rate": "write requests.rate in it",
    "seconds": "write requests.seconds in it",
    "seed": "write requests.seed in it",
    "model": "write model in it",
    "decode_model": "it goes with --design; leave it out",
}
"""Options that go with --design, and what to do instead beside a scenario."""


@dataclass(frozen=True, slots=True)
class SimulateOptions:
    """`out`: a folder for picture and series; `figures_to`: a file for the figures, None: in that folder; `part`: of the file of
    requests."""

    scenario: Path
    out: Path
    figures_to: Path | None = None
    part: TracePart = WHOLE


class SimulateCommand:
    help = "run a fleet against a list of requests in virtual time: latencies, power, energy"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        add = parser.add_argument
        add("scenario", type=Path, nargs="?", help="YAML: model, requests, pools, slo, power")
        add("--out", type=Path, default=Path("out/simulate"), metavar="DIR", help="picture, series (%(default)s)")
        add("--json", metavar="FILE", help="write the figures, name -> number, to this file (simulate.json in --out)")
        add_part_arguments(parser)
        moved = parser.add_argument_group(
            "one of Splitwise's designs", "Now `splitwatt papers simulate`, which says what these options mean."
        )
        for name in ("design", *OF_A_DESIGN):
            moved.add_argument(_flag(name), metavar=name.upper())

    def run(self, args: argparse.Namespace) -> int:
        console = Console(highlight=False)
        design: str | None = args.design
        given = {name: value for name in OF_A_DESIGN if (value := getattr(args, name)) is not None}
        try:
            if (args.scenario is None) == (design is None):
                raise ScenarioError("give a scenario file, or --design; one of them")
            part = part_of(from_s=args.from_s, to_s=args.to_s, unit=args.trace_unit)
            if design is not None:
                if part != WHOLE:
                    raise ScenarioError(
                        "--from, --to and --trace-unit are of a scenario's requests.file: leave them out beside --design"
                    )
                figures = {} if args.json is None else {"json": args.json}
                line = [f"{_flag(name)}={value}" for name, value in {"design": design, **given, **figures}.items()]
                return to_papers(["simulate", *line], instead_of="splitwatt simulate --design")
            for name in given:
                # An option that is not heard must not look as if it were.
                raise ScenarioError(f"{_flag(name)} says nothing beside a scenario: {OF_A_DESIGN[name]}")
            simulate(SimulateOptions(args.scenario, args.out, None if args.json is None else Path(args.json), part), console)
        except (ScenarioError, PapersMissingError, TraceError, TableError, FleetError, OSError) as error:
            Console(stderr=True, highlight=False).print(f"splitwatt simulate: {error}", soft_wrap=True, markup=False)
            return FAILED
        return 0


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def simulate(options: SimulateOptions, console: Console) -> None:
    """Run, print and write. Raises ScenarioError, TraceError, TableError, FleetError, OSError."""
    if is_cold():
        console.print("[dim]compiling the event loop, once: about half a minute[/dim]")
    simulate_scenario(options.scenario, console, out=options.out, figures_to=options.figures_to, part=options.part)


COMMAND = SimulateCommand()
