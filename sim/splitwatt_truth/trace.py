"""Request traces as pure data: reading the Azure columns, the shape of the conversation trace, and rates over time.

Arrivals live in *operational time* u, in which the mean rate is one request per unit. A run maps u onto its own clock
through the integral of its rate curve: the request at u arrives at the t with  rate * Integral(multiplier, 0..t) = u.
The invariant this keeps: rescaling changes only the pace; order, sizes and burstiness (the coefficient of variation of
the gaps, locally) stay those of the source.

Quantiles of the conversation trace: Azure/AzurePublicDataset, AzureLLMInferenceTrace_conv (CC-BY-4.0), 19 366 requests
of 2023-11-16; 5.53 requests/s, CV of the gaps 1.09, rank correlation of prompt and output 0.07 (taken as none).
"""

from __future__ import annotations

import csv
import math
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from typing import Final

COLUMNS: Final = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
MAX_TRACE_ROWS: Final = 2_000_000
"""Rows held in memory, about 200 bytes each."""
MAX_TOKENS: Final = 2_000_000
"""No request of any trace is longer; more is a mix-up of columns."""
MAX_RATE_POINTS: Final = 1_000


class TraceError(ValueError):
    """A trace or rate curve that cannot be used; the message is one sentence that says what to change."""


@dataclass(frozen=True, slots=True)
class TraceRow:
    """One request. `at_s` counts from the first request of the trace."""

    at_s: float
    prompt_tokens: int
    output_tokens: int


def parse_trace(lines: Iterable[str], *, name: str) -> tuple[TraceRow, ...]:
    """Rows of a CSV with `COLUMNS` (others are ignored), by rising time. `name` is used in messages.

    TIMESTAMP is ISO 8601 (with more or fewer fractional digits) or a number of seconds. Raises TraceError, which names
    the missing columns or the line.
    """
    reader = csv.reader(lines)
    header = [cell.strip().lstrip("\ufeff") for cell in next(reader, [])]
    missing = [column for column in COLUMNS if column not in header]
    if missing:
        raise TraceError(
            f"{name} lacks the column{'s' if len(missing) > 1 else ''} {', '.join(missing)}; "
            f"its first line must name {', '.join(COLUMNS)} (it has: {', '.join(header) or 'nothing'})"
        )
    when, prompt, output = (header.index(column) for column in COLUMNS)
    rows: list[tuple[float, int, int]] = []
    for cells in reader:
        if not cells:
            continue
        where = f"{name} line {reader.line_num}"
        if len(rows) == MAX_TRACE_ROWS:
            raise TraceError(f"{where}: a trace may have at most {MAX_TRACE_ROWS} requests; cut the file there")
        if len(cells) < len(header):
            raise TraceError(f"{where} has {len(cells)} cells where the first line names {len(header)} columns")
        rows.append(
            (_seconds(cells[when], where), _tokens(cells[prompt], where, COLUMNS[1]),
             _tokens(cells[output], where, COLUMNS[2]))
        )  # fmt: skip
    rows.sort(key=lambda row: row[0])
    if len(rows) < 2 or rows[-1][0] <= rows[0][0]:
        raise TraceError(f"{name} must hold at least two requests at different times; it has {len(rows)} rows")
    return tuple(TraceRow(at_s - rows[0][0], p, o) for at_s, p, o in rows)


def _seconds(cell: str, where: str) -> float:
    text = cell.strip()
    try:
        value = float(text)
    except ValueError:
        try:
            return datetime.fromisoformat(text).timestamp()
        except (ValueError, OverflowError) as error:
            raise TraceError(f'{where}: TIMESTAMP must be a date with a time, or seconds, not "{text}"') from error
    if not math.isfinite(value):
        raise TraceError(f'{where}: TIMESTAMP must be a finite number of seconds, not "{text}"')
    return value


def _tokens(cell: str, where: str, column: str) -> int:
    try:
        value = int(cell)
    except ValueError:
        value = 0
    if not 1 <= value <= MAX_TOKENS:
        raise TraceError(f'{where}: {column} must be a whole number from 1 to {MAX_TOKENS}, not "{cell.strip()}"')
    return value


@dataclass(frozen=True, slots=True)
class Quantiles:
    """A distribution of token counts by its quantiles: (probability, tokens), both rising, from 0 to 1.

    Between two quantiles the logarithm is interpolated, so every given quantile is met exactly.
    """

    points: tuple[tuple[float, int], ...]

    def __post_init__(self) -> None:
        levels = [p for p, _ in self.points]
        tokens = [t for _, t in self.points]
        if len(levels) < 2 or levels[0] != 0 or levels[-1] != 1 or sorted(set(levels)) != levels:
            raise TraceError(f"quantile levels must rise from 0 to 1, not {levels}")
        if tokens[0] < 1 or sorted(tokens) != tokens:
            raise TraceError(f"quantiles must rise and be at least 1 token, not {tokens}")

    def at(self, probability: float) -> int:
        """The quantile function: tokens at a probability 0..1."""
        i = min(len(self.points) - 1, max(1, bisect_right(self.points, (probability, MAX_TOKENS))))
        (p0, t0), (p1, t1) = self.points[i - 1], self.points[i]
        share = min(1.0, max(0.0, (probability - p0) / (p1 - p0)))
        return round(math.exp(math.log(t0) + share * (math.log(t1) - math.log(t0))))


CONV_PROMPT_TOKENS: Final = Quantiles((
    (0.0, 2), (0.01, 29), (0.05, 181), (0.10, 207), (0.25, 396), (0.50, 1020), (0.75, 1189), (0.90, 2734),
    (0.95, 4083), (0.99, 4142), (0.999, 6179), (1.0, 14050),
))  # fmt: skip
CONV_OUTPUT_TOKENS: Final = Quantiles((
    (0.0, 7), (0.01, 16), (0.05, 41), (0.10, 54), (0.25, 85), (0.50, 129), (0.75, 395), (0.90, 424),
    (0.95, 451), (0.99, 601), (0.999, 954), (1.0, 1000),
))  # fmt: skip
CONV_GAP_CV: Final = 1.09


def gamma_shape(cv: float) -> float:
    """Shape k of gamma-distributed gaps with this coefficient of variation (CV = 1/sqrt k); the scale for mean 1 is 1/k."""
    if cv <= 0:
        raise TraceError(f"the coefficient of variation of gaps must be above 0, not {cv}")
    return 1.0 / (cv * cv)


def unit_gaps(rows: Sequence[TraceRow]) -> tuple[float, ...]:
    """Gaps *before* each row in operational time, mean 1 over one round; row 0's gap leads on from the last row, so
    that the trace can be repeated without a burst at the seam. Needs rows as `parse_trace` returns them."""
    mean_s = rows[-1].at_s / (len(rows) - 1)
    return (1.0, *((b.at_s - a.at_s) / mean_s for a, b in pairwise(rows)))


@dataclass(frozen=True, slots=True)
class RateCurve:
    """A multiplier over time: (seconds, multiplier), linear between the points, constant before the first and after
    the last. Raises TraceError on points that are not usable."""

    points: tuple[tuple[float, float], ...] = ((0.0, 1.0),)

    def __post_init__(self) -> None:
        if not 1 <= len(self.points) <= MAX_RATE_POINTS:
            raise TraceError(f"a rate curve needs 1 to {MAX_RATE_POINTS} points, not {len(self.points)}")
        times = [t for t, _ in self.points]
        if sorted(set(times)) != times or times[0] < 0 or not math.isfinite(times[-1]):
            raise TraceError(f"the times of a rate curve must rise from 0 or later, not {times}")
        if any(m < 0 or not math.isfinite(m) for _, m in self.points):
            raise TraceError(f"the multipliers of a rate curve must be 0 or more, not {[m for _, m in self.points]}")

    def at(self, t_s: float) -> float:
        i = bisect_right(self.points, (t_s, math.inf))
        if i == 0:
            return self.points[0][1]
        if i == len(self.points):
            return self.points[-1][1]
        (t0, m0), (t1, m1) = self.points[i - 1], self.points[i]
        return m0 + (m1 - m0) * (t_s - t0) / (t1 - t0)

    def _pieces(self) -> list[tuple[float, float, float, float]]:
        """(start, end, multiplier at start, slope), covering 0..infinity."""
        pieces = [(0.0, self.points[0][0], self.points[0][1], 0.0)] if self.points[0][0] > 0 else []
        for (t0, m0), (t1, m1) in pairwise(self.points):
            pieces.append((t0, t1, m0, (m1 - m0) / (t1 - t0)))
        pieces.append((self.points[-1][0], math.inf, self.points[-1][1], 0.0))
        return pieces

    def integral(self, t_s: float) -> float:
        """Integral of the multiplier from 0 to t_s, in seconds at multiplier 1. t_s >= 0."""
        total = 0.0
        for start, end, m, slope in self._pieces():
            if t_s <= start:
                break
            span = min(t_s, end) - start
            total += m * span + slope * span * span / 2
        return total

    def inverse(self, area: float) -> float:
        """The earliest t with integral(t) >= area; infinity when the curve ends at 0 before it."""
        left = area
        for start, end, m, slope in self._pieces():
            if left <= 0:
                return start
            span = end - start
            whole = math.inf if span == math.inf and m > 0 else (m * span + slope * span * span / 2 if m or slope else 0)
            if left > whole:
                left -= whole
                continue
            # m*x + slope*x^2/2 = left, in the form that stays exact for small slopes.
            root = math.sqrt(max(0.0, m * m + 2 * slope * left))
            return start + min(span, 2 * left / (m + root))
        return math.inf
