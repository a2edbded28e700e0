"""The runs behind docs/reproduce/splitwise.md: the golden list, lists of the same kind, the largest rate of each design.

Every figure of splitwise-sim that ours are held to stands here, with its grade; nothing in these runs is fitted to it. Both
decode models are run: the simulator's own with its unit slip, and the one keyed by sequences.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from rich.console import Console
from rich.progress import Progress
from splitwatt_sim.latencies import PERCENTILES, Latencies
from splitwatt_sim.servers.designs import parse_design
from splitwatt_sim.servers.tables import DecodeModel, builtin
from splitwatt_sim.traces.arrivals import Arrivals, read_arrivals
from splitwatt_sim.traces.resample import generated, poisson

from splitwatt_papers.pages.markdown import interval
from splitwatt_papers.reference.largest_rate import Question, largest_rate_rps
from splitwatt_papers.reference.run import run_reference

Rates = dict[tuple[DecodeModel, str], tuple[int, ...]]
"""Decode model and design -> one largest rate per seed."""
DESIGNS: Final = ("A100:70", "H100:40", "AA:45/25", "HH:25/15", "HA:25/26", "HHcap:25/21")
METRICS: Final = ("ttft", "tbt", "e2e")
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
class SplitwiseResults:
    """`traced`: sizes come from the conversation trace."""

    effort: Effort
    traced: bool
    golden: tuple[Golden, ...]
    cells: dict[tuple[str, str], Cell]
    rates: Rates


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


def run_all(data: Path | None, effort: Effort, console: Console) -> SplitwiseResults:
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
    return SplitwiseResults(effort, trace is not None, golden, cells, rates)
