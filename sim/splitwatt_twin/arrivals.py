"""Where requests come from: a trace or a seeded generator, paced to a wanted rate over the run.

Both give (gap, prompt tokens, output tokens) with gaps of mean 1 in operational time; `arrivals` maps them onto
the run (see splitwatt_truth.trace). Same seed, same requests, whatever the machine does.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from splitwatt_truth import trace_files
from splitwatt_truth.trace import (
    CONV_GAP_CV,
    CONV_OUTPUT_TOKENS,
    CONV_PROMPT_TOKENS,
    Quantiles,
    RateCurve,
    TraceRow,
    gamma_shape,
    unit_gaps,
)
from splitwatt_truth.trace_files import rows_of
from splitwatt_truth.trace_kinds import TraceUnit

Sample = tuple[float, int, int]
"""(gap before the request in operational time, prompt tokens, output tokens)."""


def read_trace(path: Path, *, unit: TraceUnit | None = None) -> tuple[TraceRow, ...]:
    """The whole file, by rising time, checked. `unit` of its times; None: told by the file. Raises TraceError, also when it
    cannot be read."""
    return rows_of(trace_files.read_trace(path, trace_files.TracePart(unit=unit)), name=str(path))


def replay(rows: Sequence[TraceRow], *, first: int = 0) -> Iterator[Sample]:
    """The trace over and over, beginning at row `first`."""
    gaps = unit_gaps(rows)
    i = first % len(rows)
    while True:
        yield gaps[i], rows[i].prompt_tokens, rows[i].output_tokens
        i = (i + 1) % len(rows)


def generate(
    seed: str,
    *,
    prompt: Quantiles = CONV_PROMPT_TOKENS,
    output: Quantiles = CONV_OUTPUT_TOKENS,
    gap_cv: float = CONV_GAP_CV,
) -> Iterator[Sample]:
    """Endless requests shaped like the conversation trace: gamma gaps, independent sizes by inverse transform."""
    rng = random.Random(seed)
    shape = gamma_shape(gap_cv)
    while True:
        yield rng.gammavariate(shape, 1 / shape), prompt.at(rng.random()), output.at(rng.random())


@dataclass(frozen=True, slots=True)
class Arrival:
    """`at_s`: seconds since the load began."""

    at_s: float
    prompt_tokens: int
    output_tokens: int


def arrivals(
    samples: Iterator[Sample], *, requests_per_s: float, curve: RateCurve, begin_s: float, end_s: float
) -> Iterator[Arrival]:
    """Arrivals at `requests_per_s` times the curve, from `begin_s` on and before `end_s`; both since the load began."""
    if requests_per_s <= 0:
        return
    operational = requests_per_s * curve.integral(begin_s)
    for gap, prompt_tokens, output_tokens in samples:
        operational += gap
        at_s = curve.inverse(operational / requests_per_s)
        if at_s >= end_s:
            return
        yield Arrival(at_s, prompt_tokens, output_tokens)
