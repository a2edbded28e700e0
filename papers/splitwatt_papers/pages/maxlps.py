"""GPUs in one budget, against a closed system's claim: `python -m splitwatt_papers.pages.maxlps` runs it and writes the page.

The claim (NVIDIA DPS / MaxLPS): 192 GPUs on the watts of 140, at a price in P99 TTFT. Asked here: how many does a budget hold
under caps that provably fit it while users hardly notice, and how much of it is then used? The room's watts are not
published in parts, so the answer is given as a function of what is assumed, and every assumption is listed.

Protects: the page says what the run gave, also where an aim was missed, and no count stands without the rest it assumes.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.table import Table

from splitwatt_papers.oversubscribe.study import Case, StudyResults, run_study
from splitwatt_papers.pages.markdown import MAX_SEEDS, MIN_SEEDS
from splitwatt_papers.pages.maxlps_plot import plot
from splitwatt_papers.pages.maxlps_tables import ARRANGEMENT, MAIN_HEAD, REST_HEAD, main_rows, rest_rows
from splitwatt_papers.pages.maxlps_text import page

COMMAND: Final = "python -m splitwatt_papers.pages.maxlps"
SEEDS: Final = 10


def flat(results: StudyResults) -> Iterator[tuple[str, str]]:
    """Name and value of every figure; units in the names, changes and shares as numbers from 0 to 1."""
    yield "largest_rest_that_reaches_the_aim_w", f"{results.even_rest_w}"
    for group, cases in (("main", results.main), ("rest", results.rests), ("other", results.others)):
        for case in cases:
            name = f"{group}/{case.name}/{ARRANGEMENT[case.static.fleet.split]}/{case.way.name}"
            yield f"{name}/gpus", f"{case.gpus:g}"
            yield from ((f"{name}/{figure}", value) for figure, value in _by_seed(case, results.seeds))


def _by_seed(case: Case, seeds: Sequence[int]) -> Iterator[tuple[str, str]]:
    if case.verdict is None:
        return
    rows = zip(seeds, case.verdict.changes, case.verdict.share, case.verdict.peak, strict=True)
    for seed, change, share, peak in rows:
        for figure, value in (
            ("tokens_change", change.tokens), ("ttft_p99_change", change.ttft), ("tbt_p99_change", change.tbt),
            ("e2e_p99_change", change.e2e), ("budget_share", share), ("budget_share_peak", peak),
        ):  # fmt: skip
            yield f"seed_{seed}/{figure}", f"{value:.6f}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog=COMMAND, description="GPUs in one budget, simulated.")
    add = parser.add_argument
    add("--seeds", type=int, default=SEEDS, help=f"lists that judge, {MIN_SEEDS} to {MAX_SEEDS} (%(default)s)")
    add("--out", type=Path, default=Path("docs/reproduce"), help="folder of maxlps.md; the plot goes to ../img")
    add("--flat", type=Path, default=Path("out/reproduce_maxlps.csv"), help="figures, one a line")
    options = parser.parse_args(arguments)
    if not MIN_SEEDS <= options.seeds <= MAX_SEEDS:
        parser.error(f"--seeds must lie in {MIN_SEEDS}..{MAX_SEEDS}")
    console = Console(highlight=False)
    with console.status("simulating") as status:
        results = run_study(options.seeds, lambda what: status.update(f"simulating {what}"))
    for head, rows in ((MAIN_HEAD, main_rows(results)), (REST_HEAD, rest_rows(results))):
        table = Table(*head)
        for row in rows:
            table.add_row(*row)
        console.print(table)
    options.out.mkdir(parents=True, exist_ok=True)
    command = COMMAND if options.seeds == SEEDS else f"{COMMAND} --seeds {options.seeds}"
    (options.out / "maxlps.md").write_text(page(results, command), encoding="utf-8")
    plot(results, options.out.parent / "img" / "reproduce_maxlps.png")
    options.flat.parent.mkdir(parents=True, exist_ok=True)
    with options.flat.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows((("name", "value"), *flat(results)))
    console.print(f"written: {options.out / 'maxlps.md'}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
