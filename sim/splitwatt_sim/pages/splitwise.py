"""Splitwise's tables, reproduced: `python -m splitwatt_sim.pages.splitwise` runs them, writes the page and its plot.

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
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from splitwatt_core.trace import TraceError

from splitwatt_sim.jit import is_cold
from splitwatt_sim.latencies import PERCENTILES, Latencies
from splitwatt_sim.pages.markdown import MAX_SEEDS, MIN_SEEDS, interval, markdown
from splitwatt_sim.reference.largest_rate import Question, largest_rate_rps
from splitwatt_sim.reference.run import run_reference
from splitwatt_sim.servers.designs import parse_design
from splitwatt_sim.servers.tables import DecodeModel, builtin, lookup_s
from splitwatt_sim.traces.arrivals import Arrivals, read_arrivals
from splitwatt_sim.traces.resample import generated, poisson

Rates = dict[tuple[DecodeModel, str], tuple[int, ...]]
"""Decode model and design -> one largest rate per seed."""
COMMAND: Final = "python -m splitwatt_sim.pages.splitwise"
DESIGNS: Final = ("A100:70", "H100:40", "AA:45/25", "HH:25/15", "HA:25/26", "HHcap:25/21")
METRICS: Final = ("ttft", "tbt", "e2e")
LABELS: Final = {"ttft": "TTFT", "tbt": "TBT", "e2e": "E2E"}
CELLS: Final = tuple(f"{metric}_ms_p{p}" for metric in METRICS for p in PERCENTILES)

PUBLISHED_MS: Final = {
    "A100:70": (345.6, 841.8, 1395.9, 67.5, 82.7, 108.3, 9528, 30845, 41928),
    "H100:40": (164.8, 413.0, 685.3, 45.8, 54.0, 67.1, 6303, 20526, 28234),
    "AA:45/25": (287.0, 808.3, 1361.9, 47.5, 47.8, 48.6, 6545, 20539, 29316),
    "HH:25/15": (132.0, 387.9, 659.5, 35.4, 35.7, 36.7, 4765, 15232, 21716),
    "HA:25/26": (132.0, 387.9, 659.5, 47.5, 47.8, 48.7, 6309, 20368, 29119),
}
"""`CELLS` of splitwise-sim: BLOOM-176B, 70 requests/s for 120 s, its own decode model (grade D, Mutinifni/splitwise-sim)."""
WHOLE_MS: Final = 2000.0
"""Figures from here on are published in whole milliseconds, the others to a tenth."""
LIST_RPS: Final = 70.0
LIST_S: Final = 120.0

REFERENCE_RPS: Final = {
    (decode, design): rate
    for decode, rates in (
        (DecodeModel.SPLITWISE_2023, (50, 110, 110, 120, 130, 140)),
        (DecodeModel.BATCH, (40, 80, 40, 70, 50, 100)),
    )
    for design, rate in zip(DESIGNS, rates, strict=True)
}
"""Largest rate at which all nine SLOs hold, on a grid of `STEP_RPS` (grade D, as above; with each decode model)."""
STEP_RPS: Final = 10
SECONDS: Final = {DecodeModel.SPLITWISE_2023: 600.0, DecodeModel.BATCH: 120.0}

TOLERANCE_MS: Final = 0.001
"""Golden percentiles are written to the microsecond."""
LISTS_PER_SEED: Final = 4
"""Lists of the second table for each seed of the third: they cost a tenth of a second, and narrow intervals need many."""
TRACE: Final = "AzureLLMInferenceTrace_conv.csv"


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is run. `lists`: draws of the second table; `seeds`: of the third."""

    seeds: int
    lists: int
    seconds: dict[DecodeModel, float]


@dataclass(frozen=True, slots=True)
class Golden:
    """Deviations on the golden list; `request_s` is None where single requests were not kept."""

    design: str
    percentile_ms: float
    request_s: float | None


@dataclass(frozen=True, slots=True)
class Cell:
    """One figure of the second table: published, and over our lists its mean, the half width of the mean's 95 % interval,
    and that of one further list (its prediction interval)."""

    published: float
    mean: float
    half: float
    one_list: float

    @classmethod
    def of(cls, published: float, values: Sequence[float]) -> Cell:
        mean, half = interval(values)
        return cls(published, mean, half, half * (len(values) + 1) ** 0.5)

    def within(self, half: float) -> bool:
        """Whether the published figure, but for its rounding, lies that near our mean."""
        return abs(self.published - self.mean) <= half + (0.5 if self.published >= WHOLE_MS else 0.05)


@dataclass(frozen=True, slots=True)
class Results:
    """`traced`: sizes come from the conversation trace."""

    effort: Effort
    traced: bool
    golden: tuple[Golden, ...]
    cells: dict[tuple[str, str], Cell]
    rates: Rates


def label(cell: str) -> str:
    metric, _, level = cell.partition("_ms_p")
    return f"{LABELS[metric]} P{level}"


def simulated(design: str, arrivals: Arrivals) -> Latencies:
    """One run with the reference's own decode model."""
    return run_reference(
        parse_design(design),
        arrival_s=arrivals.arrival_s,
        prompt=arrivals.prompt_tokens,
        output=arrivals.output_tokens,
        tables=builtin(),
        decode=DecodeModel.SPLITWISE_2023,
    )


def against_golden(folder: Path, tick: Callable[[], None]) -> tuple[Golden, ...]:
    """Deviations on the list that splitwise-sim ran; empty when it is not there. Raises TraceError, OSError, KeyError."""
    if not (folder / "requests_conv_70rps.csv").is_file():
        return ()
    arrivals = read_arrivals(folder / "requests_conv_70rps.csv")
    with (folder / "percentiles_ms.csv").open(encoding="utf-8") as file:
        wanted = {(row["design"], row["metric"]): row for row in csv.DictReader(file)}
    with (folder / "requests_conv_70rps_results.csv").open(encoding="utf-8") as file:
        single = list(csv.DictReader(file))
    found = []
    for design in DESIGNS:
        name = design.partition(":")[0]
        got = simulated(design, arrivals)
        ours = got.percentiles()
        deviations_ms = [
            abs(ours[f"{metric}_ms_p{p}"] - float(wanted[name, theirs][f"p{p}"]))
            for metric, theirs in zip(METRICS, ("ttft", "tbt", "response"), strict=True)
            for p in PERCENTILES
        ]
        request_s = None
        if f"{name}_ttft_s" in single[0]:
            request_s = max(
                float(np.abs(column / 1e3 - np.array([float(row[f"{name}_{metric}_s"]) for row in single])).max())
                for metric, column in (("ttft", got.ttft_ms), ("e2e", got.e2e_ms))
            )
        found.append(Golden(design, max(deviations_ms), request_s))
        tick()
    return tuple(found)


def other_lists(sizes: Arrivals, lists: int, tick: Callable[[], None]) -> dict[tuple[str, str], Cell]:
    """The published table's figures on lists of our own: Poisson, prompt and output drawn apart, as splitwise-sim does."""
    drawn: dict[str, list[dict[str, float]]] = {design: [] for design in PUBLISHED_MS}
    for seed in range(1, lists + 1):
        arrivals = poisson(sizes, requests_per_s=LIST_RPS, seconds=LIST_S, seed=seed, paired=False)
        for design, rows in drawn.items():
            rows.append(simulated(design, arrivals).percentiles())
            tick()
    return {
        (design, cell): Cell.of(published, [row[cell] for row in drawn[design]])
        for design, figures in PUBLISHED_MS.items()
        for cell, published in zip(CELLS, figures, strict=True)
    }


def largest_rates(sizes: Arrivals, effort: Effort, tick: Callable[[], None]) -> Rates:
    """One search per seed, begun one step below the reference's answer to save runs, and at the grid's beginning when
    nothing holds from there on."""
    rates: Rates = dict.fromkeys(REFERENCE_RPS, ())
    for (decode, text), reference in REFERENCE_RPS.items():
        design, seconds = parse_design(text), effort.seconds[decode]
        for seed in range(1, effort.seeds + 1):
            question = Question(sizes, seconds, seed, builtin(), decode=decode, step_rps=STEP_RPS, paired=False)
            rate = largest_rate_rps(design, question, start_rps=max(STEP_RPS, reference - STEP_RPS))
            rates[decode, text] += (rate or largest_rate_rps(design, question),)
            tick()
    return rates


def run_all(data: Path | None, effort: Effort, console: Console) -> Results:
    """Everything, with progress. Raises TraceError, OSError."""
    trace = data / TRACE if data is not None and (data / TRACE).is_file() else None
    # Generated: about as many sizes as the trace has.
    sizes = generated(requests_per_s=100.0, seconds=200.0, seed=0) if trace is None else read_arrivals(trace)
    with Progress(console=console) as progress:

        def ticking(what: str, total: int) -> Callable[[], None]:
            task = progress.add_task(what, total=total)
            return lambda: progress.advance(task)

        golden = against_golden(data / "golden", ticking("the golden list", len(DESIGNS))) if data is not None else ()
        cells = other_lists(sizes, effort.lists, ticking("lists of the same kind", effort.lists * len(PUBLISHED_MS)))
        rates = largest_rates(sizes, effort, ticking("largest rates", effort.seeds * len(REFERENCE_RPS)))
    return Results(effort, trace is not None, golden, cells, rates)


GOLDEN_HEAD: Final = ("design", "nine percentiles: at most", "each request's TTFT, E2E: at most")


def golden_rows(results: Results) -> list[tuple[str, ...]]:
    single = [f"{g.request_s:.1e} s" if g.request_s is not None else "not kept" for g in results.golden]
    return [(g.design, f"{g.percentile_ms:.4f} ms", text) for g, text in zip(results.golden, single, strict=True)]


def cell_rows(results: Results) -> list[tuple[str, ...]]:
    """Three lines a design: published, ours, and the range of one list. What lies outside that range is bold."""
    rows = []
    for design in PUBLISHED_MS:
        cells = [results.cells[design, cell] for cell in CELLS]
        digits = [0 if c.mean >= WHOLE_MS else 1 if c.mean >= 100 else 2 for c in cells]
        ours = (f"{c.mean:.{n}f} ± {c.half:.{n}f}" for c, n in zip(cells, digits, strict=True))
        marks = ["" if c.within(c.one_list) else "**" for c in cells]
        rows.append((design, "published", *(f"{m}{c.published:g}{m}" for c, m in zip(cells, marks, strict=True))))
        rows.append(("", "ours", *ours))
        rows.append(("", "one list", *(f"± {100 * c.one_list / c.mean:.2g} %" for c in cells)))
    return rows


RATE_HEAD: Final = ("decode", "design", "reference", "lowest", "median", "highest", "near")


def near(reference: int, rates: Sequence[float]) -> int:
    """How many lie within one step of the grid."""
    return sum(abs(rate - reference) <= STEP_RPS for rate in rates)


def rate_rows(results: Results) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for (decode, design), reference in REFERENCE_RPS.items():
        rates = results.rates[decode, design]
        found = (f"{value:g}" for value in (reference, min(rates), statistics.median(rates), max(rates)))
        rows.append((decode.value, design, *found, f"{near(reference, rates)} of {len(rates)}"))
    return rows


SLIP_HEAD: Final = ("model", "server", "batch", "measured", "as asked", "too low by", "smallest key")


def slip_rows() -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for model in ("bloom-176b", "llama2-70b"):
        for kind in ("A100", "H100"):
            table = builtin().server(model, kind)
            measured, asked = (lookup_s(points, 65) for points in (table.decode_s, table.slipped_s))
            for n in (32, 64):
                times = (f"{1e3 * measured[n]:.1f} ms", f"{1e3 * asked[n]:.1f} ms")
                low = f"{100 * (1 - asked[n] / measured[n]):.0f} %"
                rows.append((model, kind, f"{n}", *times, low, f"{table.slipped_s[0][0]}"))
    return rows


def headline(results: Results) -> str:
    """What the reference's largest design holds, against unsplit H100."""
    capped, h100 = parse_design("HHcap:25/21"), parse_design("H100:40")
    power, cost = capped.power_units / h100.power_units, capped.usd_per_hour / h100.usd_per_hour
    middle = {key: statistics.median(rates) for key, rates in results.rates.items()}
    times = [f"{middle[d, str(capped)] / middle[d, str(h100)]:.2f} times with `{d.value}`" for d in SECONDS]
    measure = f"on {power:.2f} of its provisioned power and at {cost:.2f} of its cost"
    return f"By medians, {capped} against {h100}, {measure}:\n{', '.join(times)}."


def golden_text(results: Results) -> str:
    if not results.golden:
        return "**Not run**: the golden list was not there."
    worst_ms = max(g.percentile_ms for g in results.golden)
    verdict = "holds" if worst_ms <= TOLERANCE_MS else "**does not hold**"
    return (
        f"Wanted: every percentile within {TOLERANCE_MS} ms. That {verdict}: at most {worst_ms:.4f} ms off, and the golden "
        f"figures\nare rounded to 0.001 ms.\n\n{markdown(GOLDEN_HEAD, golden_rows(results))}"
    )


def sampling_text(results: Results) -> str:
    """How large the sampling error is, and which cells lie outside."""
    cells = list(results.cells.values())
    outside = [f"{design} {label(cell)}" for (design, cell), c in results.cells.items() if not c.within(c.one_list)]
    of_mean = sum(not c.within(c.half) for c in cells)
    # A list and the mean of n others: their difference is sqrt(n + 1) times as wide as the error of that mean.
    expected = 2 * statistics.NormalDist().cdf(-1.96 / (results.effort.lists + 1) ** 0.5)
    spans = []
    for metric in METRICS:
        shares = [100 * c.one_list / c.mean for (_, cell), c in results.cells.items() if cell.startswith(metric)]
        spans.append(f"{LABELS[metric]} ± {min(shares):.2g} to ± {max(shares):.2g} %")
    return (
        f"The sampling error: 95 % of single lists lie, by cell, within these shares of the mean:\n{', '.join(spans)}.\n"
        f"The published table is one list. Outside that range: **{len(outside)} of {len(cells)} cells**"
        f"{' (' + ', '.join(outside) + ')' if outside else ''}.\nOne in twenty would be chance, and cells hang together: one "
        "list feeds all of them, and HH and HA share their prompt\nmachines. Outside the narrower interval of the mean lie "
        f"{of_mean} of {len(cells)}; of a single list about {100 * expected:.0f} % are expected there."
    )


def page(results: Results, command: str) -> str:
    """docs/reproduce/splitwise.md, whole."""
    effort = results.effort
    minutes = [f"{seconds[decode] / 60:g}" for seconds in (effort.seconds, SECONDS) for decode in SECONDS]
    seeds = "1 seed" if effort.seeds == 1 else f"{effort.seeds} seeds"
    source = (
        "Sizes are drawn from the Azure 2023 conversation trace (CC-BY-4.0, Azure/AzurePublicDataset)."
        if results.traced
        else "**The conversation trace was not there.** Sizes come from the seeded generator, fitted to the trace's quantiles:\n"
        "the tables of sections 2 and 3 can differ from the published ones for that reason alone."
    )
    medians = sum(near(ref, (statistics.median(results.rates[key]),)) for key, ref in REFERENCE_RPS.items())
    single = sum(near(ref, results.rates[key]) for key, ref in REFERENCE_RPS.items())
    runs = effort.seeds * len(REFERENCE_RPS)
    return f"""# Splitwise's tables, reproduced in simulation

`{command}`
wrote all of this page, the plot and `out/reproduce_splitwise.csv`. **Simulated**: no GPU was part of it.

Splitwise (arXiv:2311.18677) serves prompts and tokens on machines of their own. Its cluster results are runs of the public
simulator Mutinifni/splitwise-sim (MIT, HEAD 8f99e7d). `splitwatt_sim.reference.model` follows that simulator's rules in code of
our own, slips included, so that a comparison starts from common ground. *Published* and *reference* figures are that
simulator's (grade D: a published data file or repository). SLOs, prices and the headline are the paper's (grade P). All else
on this page was measured by this run.

{source}
BLOOM-176B on servers of eight GPUs, tensor parallel 8. Designs: name, prompt machines / token machines.

## 1. The same list of requests

{golden_text(results)}

## 2. Another list of the same kind

Published: one list of {LIST_RPS:g} requests/s for {LIST_S:g} s, prompt and output sizes drawn apart, the simulator's own decode
model. Ours: {effort.lists} lists drawn in the same way. *ours*: mean ± its 95 % interval over lists (Student's t), milliseconds.
*one list*: 95 % of single lists lie that near the mean. A published figure outside that is **bold** (half a unit of its last
digit is allowed for rounding).

{markdown(("design", "", *(label(cell) for cell in CELLS)), cell_rows(results))}

{sampling_text(results)}

## 3. The largest rate at which all nine SLOs hold

Requests/s, lists drawn as in section 2, on a grid of {STEP_RPS}, {seeds}. `splitwise-2023` is the simulator's decode model,
`batch` the one keyed by sequences; {minutes[0]} and {minutes[1]} minutes long (the reference: {minutes[2]} and {minutes[3]}).
SLOs: slowdown against an unloaded server of eight A100, strict, at P50/P90/P99: TTFT 2/3/6, TBT and E2E 1.25/1.5/5. The
search stops after three rates in a row that miss one. *near*: seeds within one step of the reference.

{markdown(RATE_HEAD, rate_rows(results))}

Within one step of the reference: **{medians} of {len(REFERENCE_RPS)} medians**, {single} of all {runs} answers.

{headline(results)}

![Published figures against ours, and largest rates](../img/reproduce_splitwise.png)

## 4. The unit slip

Proof in one line: decode time is fitted on `prompt_size * batch_size`, whose smallest value in the measurements is 128, and
then asked with the *number of sequences*, so that every batch below 128 is read beyond the end of the table.

{markdown(SLIP_HEAD, slip_rows())}

*measured*: medians of the same measurements (data/perf_model.csv there) by batch.
- Under the slip decode hardly slows as its batch grows: token machines look larger than they are. Prompts are keyed rightly.
- It is a slip of a simulator, not of Splitwise's measurements on machines, and no proof against splitting: other splits do
  better under the right key. There the reference has HHcap 20/28 at 120 requests/s against 85 for H100:40, on a grid of 5
  (not run here).
- It is kept as `--decode-model splitwise-2023`, for comparison alone; the default is `batch`.

## 5. What differs from the paper, and why

| here, as in the simulator | paper | why |
| --- | --- | --- |
| KV cache moves after the prompt, 200 GiB/s, uncontended | by layers above 512 tokens; 8 or 5 ms remain | the simulator's rule |
| decode time does not depend on context length | not said in the figures used here | the simulator's rule |
| TBT is (E2E - TTFT) / output tokens: no single slow token shows | TBT | the simulator's rule |
| power plays no part in time | designs compared at equal provisioned power | the simulator's rule |
| six designs, fixed | 1.4 times at 20 % lower cost; 2.35 times at equal cost and power | found by a search, not run here |
| two decode models, several seeds and lists | one | section 4; how much one list can say |
"""


def plot(results: Results, path: Path) -> None:
    """Left, each published figure against our lists; right, largest rates with their range over seeds."""
    figure = Figure(figsize=(12.5, 5.4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    colors = dict(zip(METRICS, ("#1f5fa8", "#2a8a2a", "#c2410c"), strict=True))
    for i, ((_, cell), c) in enumerate(results.cells.items()):
        color = colors[cell.partition("_")[0]]
        for half, alpha in ((100 * c.one_list / c.mean, 0.2), (100 * c.half / c.mean, 0.5)):
            left.bar(i, 2 * half, 0.8, -half, color=color, alpha=alpha)
        name = LABELS[cell.partition("_")[0]] if i < len(CELLS) and cell.endswith("p50") else None
        left.plot(i, 100 * (c.published / c.mean - 1), "o", ms=5, color=color, mec="black", mew=0.5, label=name)
    left.axhline(0, color="black", lw=0.8)
    for k, design in enumerate(PUBLISHED_MS):
        left.axvline(k * len(CELLS) - 0.5, color="#999999", lw=0.6)
        left.annotate(design, ((k + 0.1) * len(CELLS), 1.01), xycoords=("data", "axes fraction"), fontsize=9)
    left.set_xticks(range(len(results.cells)), [str(p) for p in PERCENTILES] * (len(results.cells) // 3), fontsize=6)
    left.set(xlim=(-0.5, len(results.cells) - 0.5), ylabel="published against our mean, %")
    left.set_xlabel("percentile (dark: 95 % interval of our mean; pale: 95 % of single lists)")
    left.set_title(f"One published list, {results.effort.lists} simulated lists\n", fontsize=10)
    left.set_ylim(1.2 * left.get_ylim()[0], None)
    left.legend(fontsize=8, loc="lower left", ncols=3)
    for at, (decode, color) in enumerate(zip(SECONDS, ("#7b3fa0", "#1f8f8f"), strict=True)):
        x = np.arange(len(DESIGNS)) + 0.4 * (at - 0.5)
        rates = np.array([results.rates[decode, design] for design in DESIGNS])
        median = np.median(rates, axis=1)
        right.bar(x, median, 0.36, color=color, alpha=0.6, label=decode.value)
        span = [median - rates.min(axis=1), rates.max(axis=1) - median]
        right.errorbar(x, median, yerr=span, fmt="none", color="black", lw=1, capsize=4)
        reference = [REFERENCE_RPS[decode, design] for design in DESIGNS]
        right.plot(x, reference, "D", ms=5, color="white", mec="black", label=None if at else "reference")
    right.set_xticks(range(len(DESIGNS)), [design.replace(":", "\n") for design in DESIGNS], fontsize=9)
    right.set_title(f"Largest rate with all SLOs, simulated\n(median and range of {results.effort.seeds})", fontsize=10)
    right.legend(fontsize=8, loc="upper left")
    right.set(ylabel="requests/s", ylim=(0, 1.2 * max(max(rates) for rates in results.rates.values())))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def write_flat(results: Results, path: Path) -> None:
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


def show(results: Results, console: Console) -> None:
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
