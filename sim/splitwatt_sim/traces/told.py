"""A trace as a command reads it: with its progress, for published files have millions of rows, and with what was decided."""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.progress import Progress
from splitwatt_truth.trace_files import WHOLE, TracePart
from splitwatt_truth.trace_kinds import TraceUnit

from splitwatt_sim.traces.arrivals import Arrivals, read_arrivals

LOGGED_EVERY_S: Final = 10.0
"""Between two lines about progress where there is no terminal for a bar."""

Read = Callable[[Path, TracePart], Arrivals]


def seconds_of_trace(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"must be seconds of the trace, 0 or more, not {text}")
    return value


def add_part_arguments(parser: argparse.ArgumentParser) -> None:
    """`from_s`, `to_s`, `trace_unit`: which part of a file of requests is read."""
    add = parser.add_argument
    add(
        "--from", dest="from_s", type=seconds_of_trace, metavar="S",
        help="read only requests that came S seconds after the trace's first row, or later",
    )  # fmt: skip
    add("--to", dest="to_s", type=seconds_of_trace, metavar="S", help="read only requests before this second of the trace")
    add(
        "--trace-unit", choices=[unit.value for unit in TraceUnit],
        help="unit of the trace's times; default: told by the file",
    )  # fmt: skip


def part_of(*, from_s: float | None, to_s: float | None, unit: str | None) -> TracePart:
    """Raises TraceError."""
    return TracePart(from_s=from_s, to_s=to_s, unit=None if unit is None else TraceUnit(unit))


def lines_on(console: Console) -> Callable[[str], None]:
    """One line on a console, as it is."""
    return lambda text: console.print(text, soft_wrap=True, markup=False)


def read_told(console: Console) -> Read:
    """`read_arrivals` that prints on a console."""

    def read(path: Path, part: TracePart = WHOLE) -> Arrivals:
        arrivals = _read(path, part, console)
        for note in arrivals.notes:
            lines_on(console)(f"{path.name}: {note}")
        return arrivals

    return read


def _read(path: Path, part: TracePart, console: Console) -> Arrivals:
    if console.is_terminal:
        with Progress(console=console, transient=True) as bar:
            task = bar.add_task(f"reading {path.name.replace('[', '(')}")
            return read_arrivals(path, part, progress=lambda done, of: bar.update(task, completed=done, total=of))
    logged_s = time.monotonic()

    def log(done: int, of: int) -> None:
        nonlocal logged_s
        if time.monotonic() - logged_s >= LOGGED_EVERY_S:
            logged_s = time.monotonic()
            console.print(f"reading {path.name}: {done / of:.0%}", soft_wrap=True, markup=False)

    return read_arrivals(path, part, progress=log)
