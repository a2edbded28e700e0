"""`splitwatt bench`: speed and size of every part, on this machine, on real parts wherever they fit.

Each measurement says in its own module how it is taken: `bench_allocator` and `bench_keeper` in memory, `bench_agent`,
`bench_operator`, `bench_steps`, `bench_takeover` and `bench_thousand` on a whole site each. They run one after another, never
side by side. Missing an aim is no failure of the command: figures of a busy machine are noise, so the load is shown beside
them. A measurement that cannot be taken is one: its reason is shown, and the others go on.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import httpx
from rich.console import Console
from rich.status import Status
from splitwatt_nvml_twin.build import BuildError

from splitwatt_lab import bench_agent, bench_allocator, bench_keeper, bench_operator, bench_steps, bench_takeover, bench_thousand
from splitwatt_lab.bench_figures import FIGURES, choose, table, write
from splitwatt_lab.bench_site import Bench
from splitwatt_lab.errors import LabError

FAILED: Final = 2
MAX_STEPS: Final = 1_000
STEPS: Final = 30


class ConsoleProgress:
    """One line that changes on a terminal; elsewhere a line per stage."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._status = Status("", console=console)

    def __enter__(self) -> ConsoleProgress:
        if self._console.is_terminal:
            self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._status.stop()

    def stage(self, what: str) -> None:
        if self._console.is_terminal:
            self._status.update(what)
        else:
            self._console.print(what, style="dim")

    def waiting(self, what: str, done_s: float, total_s: float) -> None:
        self._status.update(f"{what}: {done_s:.0f} of {total_s:.0f} s")


def _in_memory(bench: Bench) -> dict[str, float]:
    bench.progress.stage("allocator: 64, 1 000 and 80 000 GPUs")
    allocator = bench_allocator.measure()
    bench.progress.stage("keeper: 1 000 GPUs, 500 root budgets")
    return allocator | bench_keeper.measure()


MEASUREMENTS: Final[Mapping[str, Callable[[Bench], dict[str, float]]]] = {
    "allocator": _in_memory,
    "agent": bench_agent.measure,
    "operator": bench_operator.measure,
    "patch": bench_steps.measure,
    "takeover": bench_takeover.measure,
    "thousand": bench_thousand.measure,
}
"""By the names of `bench_figures.FIGURES`."""


def _steps(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= MAX_STEPS):
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 to {MAX_STEPS}, not {text!r}")
    return int(text)


def _nodes(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 10 <= int(text) <= 10 * bench_thousand.NODES):
        raise argparse.ArgumentTypeError(f"must be a whole number from 10 to {10 * bench_thousand.NODES}, not {text!r}")
    return int(text)


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    try:
        choose(names)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return names


class BenchCommand:
    help = "measure speed and size of allocator, agent, operator and the way from a patched limit to the last cap"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--out", type=Path, default=Path("out"), metavar="DIR", help="bench.json, logs (%(default)s)")
        parser.add_argument(
            "--only", type=_names, default=[], metavar="NAMES",
            help=f"only what gives these figures, separated by commas; {', '.join(FIGURES)} name whole measurements",
        )  # fmt: skip
        parser.add_argument("--steps", type=_steps, default=STEPS, metavar="N", help="lowered limits to time (%(default)s)")

        parser.add_argument(
            "--nodes", type=_nodes, default=bench_thousand.NODES, metavar="N",
            help="of the large site, fewer where the machine is too small; ten make a rack (%(default)s)",
        )  # fmt: skip

    def run(self, args: argparse.Namespace) -> int:
        console = Console(highlight=False)
        try:
            return run_bench(args, console)
        except OSError as error:
            Console(stderr=True, highlight=False).print(f"splitwatt bench: {error}", soft_wrap=True)
            return FAILED


def run_bench(
    args: argparse.Namespace,
    console: Console,
    measurements: Mapping[str, Callable[[Bench], dict[str, float]]] = MEASUREMENTS,
) -> int:
    """Measure what is asked for, show the table, write the file; FAILED when something could not be measured. Raises OSError
    when `--out` cannot be written."""
    out: Path = args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    begun_s, load_before = time.monotonic(), os.getloadavg()[0]
    values: dict[str, float] = {}
    failed: list[str] = []
    with ConsoleProgress(console) as progress:
        bench = Bench(out, args.steps, progress, args.nodes)
        for group in choose(args.only):
            try:
                measured = measurements[group](bench)
            except (LabError, BuildError, httpx.HTTPError) as error:
                failed.append(f"{group} was not measured: {error}")
                console.print(failed[-1], style="red", soft_wrap=True)
                continue
            values |= measured
            console.print(", ".join(f"{name} {value:.4g}" for name, value in measured.items()), soft_wrap=True)
    # What a reader needs to judge the figures by; a machine whose cores are busy with other things gives other ones.
    values |= {"machine_cores": os.cpu_count() or 0, "machine_load_before": round(load_before, 2)}
    file = write(values, out)
    console.print(table(values))
    console.print(
        f"{values['machine_cores']:.0f} cores, load average {load_before:.1f} before and {os.getloadavg()[0]:.1f} after "
        f"{time.monotonic() - begun_s:.0f} s; figures: {os.path.relpath(file)}",
        soft_wrap=True,
    )
    for sentence in failed:
        Console(stderr=True, highlight=False).print(f"splitwatt bench: {sentence}", soft_wrap=True)
    return FAILED if failed else 0


COMMAND: Final = BenchCommand()
