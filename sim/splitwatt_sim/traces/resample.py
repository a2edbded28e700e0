"""New arrivals from old ones: another rate, a day's curve, a seeded draw, or the fitted conversation trace alone.

Two ways of asking "what if more came". *Replay* keeps the source's own arrivals, bursts and order, and changes the pace:
`scaled` by one factor, `with_rate_curve` along a curve of the day, through operational time u (see splitwatt_truth.trace):
the request at u arrives at the t with  rate * Integral(multiplier, 0..t) = u. *Resampling* keeps the sizes alone and draws
the gaps: exponential for `poisson`, gamma of a given coefficient of variation for `generated`; both are renewal processes,
with a gap before the first request.

The invariant of the draws: equal seeds give equal arrays, and gaps, prompts and outputs come from three streams of the
seed. So at another rate request i keeps its sizes and its relative gap, and a longer run begins with the shorter one: two
plans compared on one seed meet the same requests. (Promised for one version of numpy; its distributions may change.)
"""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from splitwatt_truth.trace import (
    CONV_GAP_CV,
    CONV_OUTPUT_TOKENS,
    CONV_PROMPT_TOKENS,
    MAX_RATE_POINTS,
    Quantiles,
    RateCurve,
    TraceError,
    gamma_shape,
)
from splitwatt_truth.trace_files import opened
from splitwatt_truth.trace_kinds import quoted

from splitwatt_sim.traces.arrivals import Arrivals

MAX_REQUESTS: Final = 20_000_000
"""Requests of one run, 24 bytes each."""
MAX_GAP_CV: Final = 100.0
"""Above this nearly all gaps are 0 and one gap outlasts any run."""
SPARE_DEVIATIONS: Final = 6.0
"""Gaps drawn beyond the mean count, in its standard deviations: one pass is nearly always enough."""
RATE_COLUMNS: Final = ("seconds", "multiplier")


def poisson(arrivals: Arrivals, *, requests_per_s: float, seconds: float, seed: int, paired: bool = True) -> Arrivals:
    """Poisson arrivals in 0..seconds with sizes drawn from the rows of `arrivals`, with replacement.

    `paired` draws prompt and output from one row, so that their correlation stays; otherwise each is drawn by itself, as
    splitwise-sim does. N is random with mean requests_per_s * seconds and may be 0. Raises TraceError on arguments out of
    bounds or a source without rows.
    """
    if not len(arrivals):
        raise TraceError(f"{arrivals.name} holds no request to draw from")
    gaps, prompts, outputs = _streams(seed)
    at_s = _renewal_s(gaps, shape=1.0, requests_per_s=requests_per_s, seconds=seconds)
    of_prompt = prompts.integers(len(arrivals), size=len(at_s))
    of_output = of_prompt if paired else outputs.integers(len(arrivals), size=len(at_s))
    name = f"{arrivals.name}, Poisson at {requests_per_s:g}/s, seed {seed}"
    return Arrivals(at_s, arrivals.prompt_tokens[of_prompt], arrivals.output_tokens[of_output], name, arrivals.left_out)


def generated(
    *,
    requests_per_s: float,
    seconds: float,
    seed: int,
    cv: float = CONV_GAP_CV,
    prompt: Quantiles = CONV_PROMPT_TOKENS,
    output: Quantiles = CONV_OUTPUT_TOKENS,
) -> Arrivals:
    """Requests shaped like the conversation trace, for machines without it: gamma gaps, independent sizes by inverse
    transform of the fitted quantiles.

    `cv`: coefficient of variation of the gaps. A large one adds (cv^2 - 1) / 2 requests to a run in the mean, for every
    run begins just after a request, which is most likely within a burst. Raises TraceError on arguments out of bounds.
    """
    if not 0 < cv <= MAX_GAP_CV:
        raise TraceError(f"the coefficient of variation of the gaps must be above 0 and at most {MAX_GAP_CV:g}, not {cv}")
    gaps, prompts, outputs = _streams(seed)
    at_s = _renewal_s(gaps, shape=gamma_shape(cv), requests_per_s=requests_per_s, seconds=seconds)
    n = len(at_s)
    name = f"generated at {requests_per_s:g}/s, seed {seed}"
    return Arrivals(at_s, _tokens(prompt, prompts.random(n)), _tokens(output, outputs.random(n)), name)


def scaled(arrivals: Arrivals, requests_per_s: float) -> Arrivals:
    """The same requests in the same order at another mean rate: every time is multiplied by one factor, so gaps keep their
    proportions. Raises TraceError when all arrive at once, or the rate is not above 0."""
    _above_zero("requests_per_s", requests_per_s)
    factor = arrivals.requests_per_s / requests_per_s
    name = f"{arrivals.name} at {requests_per_s:g}/s"
    return Arrivals(arrivals.arrival_s * factor, arrivals.prompt_tokens, arrivals.output_tokens, name, arrivals.left_out)


def with_rate_curve(arrivals: Arrivals, curve: RateCurve, *, requests_per_s: float, seconds: float) -> Arrivals:
    """The arrivals paced to requests_per_s times the curve, in 0..seconds; over and over when they are too few.

    Between two rounds, and before the first request, lies one mean gap, so that the seam is no burst (as core's
    `unit_gaps`). A flat curve repeats or cuts a trace at a steady mean rate. N may be 0 where the curve is. Raises
    TraceError when all arrive at once, on arguments out of bounds, or above MAX_REQUESTS.
    """
    _above_zero("requests_per_s", requests_per_s)
    _above_zero("seconds", seconds)
    n = len(arrivals)
    once = 1.0 + (arrivals.arrival_s - arrivals.arrival_s[:1]) * arrivals.requests_per_s
    wanted = _bounded(requests_per_s * curve.integral(seconds))
    rounds = math.ceil(wanted / n)
    operational = (np.arange(rounds, dtype=np.float64)[:, None] * n + once).ravel()
    at_s = _inverse_s(curve, operational / requests_per_s)
    # Times rise, so those of the run are the first ones.
    kept = int(np.searchsorted(at_s, seconds))
    row = np.arange(kept) % n
    name = f"{arrivals.name} at {requests_per_s:g}/s along a curve"
    return Arrivals(at_s[:kept], arrivals.prompt_tokens[row], arrivals.output_tokens[row], name, arrivals.left_out)


def read_rate_file(path: Path) -> RateCurve:
    """A curve from a CSV with the columns seconds and multiplier (others are ignored), times rising, one point a row.
    Raises TraceError with the line, also when the file cannot be read."""
    with opened(path, what="rate file") as lines:
        reader = csv.reader(lines)
        header = [cell.strip() for cell in next(reader, [])]
        if any(column not in header for column in RATE_COLUMNS):
            raise TraceError(f"{path}: the first line must name {', '.join(RATE_COLUMNS)} (it has: {quoted(', '.join(header))})")
        when, multiplier = (header.index(column) for column in RATE_COLUMNS)
        points: list[tuple[float, float]] = []
        for cells in reader:
            if not cells:
                continue
            where = f"{path} line {reader.line_num}"
            if len(points) == MAX_RATE_POINTS:
                raise TraceError(f"{where}: a rate file may have at most {MAX_RATE_POINTS} points; leave some out")
            try:
                t_s, times = float(cells[when]), float(cells[multiplier])
            except (ValueError, IndexError):
                raise TraceError(f'{where} must hold two numbers, not "{quoted(",".join(cells))}"') from None
            if not 0 <= t_s < math.inf or (points and t_s <= points[-1][0]):
                raise TraceError(f"{where}: seconds must rise from 0 or later, not {t_s:g}")
            if not 0 <= times < math.inf:
                raise TraceError(f"{where}: multiplier must be 0 or more, not {times:g}")
            points.append((t_s, times))
    if not points:
        raise TraceError(f"{path} holds no point; it needs at least one row below its first line")
    return RateCurve(tuple(points))


def _above_zero(what: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise TraceError(f"{what} must be a number above 0, not {value}")


def _bounded(requests: float) -> float:
    # Written so that a NaN or an overflow fails it too.
    if not requests <= MAX_REQUESTS:
        raise TraceError(f"a run may have at most {MAX_REQUESTS} requests, not {requests:.0f}; lower its rate or its seconds")
    return requests


def _streams(seed: int) -> list[np.random.Generator]:
    """Gaps, prompts, outputs. The bit generator is named, for numpy's default may change."""
    if seed < 0:
        raise TraceError(f"a seed must be a whole number, 0 or more, not {seed}")
    return [np.random.Generator(np.random.PCG64(child)) for child in np.random.SeedSequence(seed).spawn(3)]


def _renewal_s(rng: np.random.Generator, *, shape: float, requests_per_s: float, seconds: float) -> NDArray[np.float64]:
    """Times below `seconds` of a renewal process with gamma gaps of this shape and mean 1 / requests_per_s."""
    _above_zero("requests_per_s", requests_per_s)
    _above_zero("seconds", seconds)
    wanted = _bounded(requests_per_s * seconds)
    chunk = max(0, math.ceil(wanted + SPARE_DEVIATIONS * math.sqrt(wanted / shape))) + 16
    passes: list[NDArray[np.float64]] = []
    reached, count = 0.0, 0
    while not passes or reached < wanted:
        _bounded(count)
        gaps = rng.standard_gamma(shape, chunk) / shape
        # The sum goes on from where it was, one by one, so that the size of a chunk never shows in the times.
        gaps[0] += reached
        passes.append(np.cumsum(gaps))
        reached, count = float(passes[-1][-1]), count + chunk
    at_s = np.concatenate(passes) / requests_per_s
    return at_s[: int(np.searchsorted(at_s, seconds))]


def _tokens(quantiles: Quantiles, probability: NDArray[np.float64]) -> NDArray[np.int64]:
    """`Quantiles.at` for an array: the logarithm interpolated between the given points."""
    levels = np.array([level for level, _ in quantiles.points])
    logs = np.log([tokens for _, tokens in quantiles.points])
    return np.rint(np.exp(np.interp(probability, levels, logs))).astype(np.int64)


def _inverse_s(curve: RateCurve, area: NDArray[np.float64]) -> NDArray[np.float64]:
    """`RateCurve.inverse` for an array of rising areas above 0; infinity where the curve ends at 0 before it."""
    t = np.array([0.0, *(t_s for t_s, _ in curve.points)])
    m = np.array([curve.points[0][1], *(multiplier for _, multiplier in curve.points)])
    span = np.diff(t)
    reached = np.concatenate(([0.0], np.cumsum(span * (m[:-1] + m[1:]) / 2)))
    # The piece that begins at `at` reaches the area; the earliest one, for a piece at 0 adds nothing.
    at = np.searchsorted(reached, area) - 1
    slope = np.append(np.divide(np.diff(m), span, out=np.zeros_like(span), where=span > 0), 0.0)[at]
    span = np.append(span, math.inf)[at]
    left, m = area - reached[at], m[at]
    # m*x + slope*x^2/2 = left, in the form that stays exact for small slopes.
    root = np.sqrt(np.maximum(0.0, m * m + 2 * slope * left))
    x = np.divide(2 * left, m + root, out=np.full_like(left, math.inf), where=m + root > 0)
    # Near a multiplier of 0 the root loses half of its digits; what must not fall is held up.
    ends: NDArray[np.float64] = np.maximum.accumulate(t[at] + np.minimum(span, x))
    return ends
