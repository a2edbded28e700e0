"""Splitwise's tables, reproduced: `python -m splitwatt_papers.pages.splitwise` runs them, writes the page and its plot.

Three questions, each harder to pass by luck than the one after it. Given the very list of requests that splitwise-sim ran,
are its numbers met? Given another list of the same kind, does its published list look like one of ours? And how large a
rate does each design hold, over seeds? Splitwise (arXiv:2311.18677) is published as runs of Mutinifni/splitwise-sim; both
decode models are run, the simulator's own with its unit slip and the one keyed by sequences.

Protects: the page says what the run gave, also where it missed; every figure of ours in it was measured by that run.
"""

from __future__ import annotations

import argparse
import csv
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.table import Table
from splitwatt_sim.jit import is_cold
from splitwatt_truth.trace import TraceError

from splitwatt_papers.pages.markdown import MAX_SEEDS, MIN_SEEDS
from splitwatt_papers.pages.splitwise_plot import plot
from splitwatt_papers.pages.splitwise_runs import LISTS_PER_SEED, SECONDS, TRACE, Effort, SplitwiseResults, run_all
from splitwatt_papers.pages.splitwise_text import (
    GOLDEN_HEAD,
    RATE_HEAD,
    SLIP_HEAD,
    golden_rows,
    page,
    rate_rows,
    sampling_text,
    slip_rows,
)

COMMAND: Final = "python -m splitwatt_papers.pages.splitwise"


def write_flat(results: SplitwiseResults, path: Path) -> None:
    """One figure a line: name, value; units in the names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        out = csv.writer(file)
        out.writerow(("name", "value"))
        for g in results.golden:
            out.writerow((f"golden/{g.design}/largest_deviation_ms", f"{g.percentile_ms:.6g}"))
        for (design, cell), c in results.cells.items():
            out.writerows((f"lists/{design}/{cell}/{name}", f"{value:.6g}") for name, value in asdict(c).items())
        for (decode, design), rates in results.rates.items():
            name = f"largest_rate_rps/{decode.value}/{design}/seed"
            out.writerows((f"{name}_{seed}", rate) for seed, rate in enumerate(rates, 1))


def show(results: SplitwiseResults, console: Console) -> None:
    for title, head, rows in (
        ("The golden list: deviations", GOLDEN_HEAD, golden_rows(results)),
        ("Largest rates with all nine SLOs, requests/s (simulated)", RATE_HEAD, rate_rows(results)),
        ("The unit slip", SLIP_HEAD, slip_rows()),
    ):
        table = Table(*head, title=title, title_justify="left")
        for row in rows:
            table.add_row(*row)
        console.print(table)
    console.print(sampling_text(results).replace("**", "").replace("\n", " "))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog=COMMAND, description="Splitwise's tables, simulated.")
    add = parser.add_argument
    add("--data", type=Path, default=os.environ.get("SPLITWATT_DATA") or None, metavar="DIR",
        help=f"folder of {TRACE} and golden/; default: $SPLITWATT_DATA, else the seeded generator")  # fmt: skip
    add("--seeds", type=int, default=MIN_SEEDS, help=f"of the largest rates, {MIN_SEEDS} to {MAX_SEEDS} (%(default)s)")
    add("--out", type=Path, default=Path("docs/reproduce"), help="folder of splitwise.md; the plot goes to ../img")
    add("--flat", type=Path, default=Path("out/reproduce_splitwise.csv"), help="figures, one a line")
    add("--quick", action="store_true", help=f"a look: one seed, {MIN_SEEDS} lists, two-minute traces for both models")
    options = parser.parse_args(arguments)
    if not MIN_SEEDS <= options.seeds <= MAX_SEEDS:
        parser.error(f"--seeds must lie in {MIN_SEEDS}..{MAX_SEEDS}")
    quick = Effort(1, MIN_SEEDS, dict.fromkeys(SECONDS, min(SECONDS.values())))
    effort = quick if options.quick else Effort(options.seeds, LISTS_PER_SEED * options.seeds, SECONDS)
    console = Console(highlight=False)
    if is_cold():
        console.print("[dim]compiling the event loop, once: about half a minute[/dim]")
    try:
        results = run_all(options.data, effort, console)
    except (TraceError, OSError) as error:
        parser.error(str(error))
    show(results, console)
    command = COMMAND + (" --data DIR" if results.traced or results.golden else "")
    command += " --quick" if options.quick else f" --seeds {options.seeds}"
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "splitwise.md").write_text(page(results, command), encoding="utf-8")
    plot(results, options.out.parent / "img" / "reproduce_splitwise.png")
    write_flat(results, options.flat)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
