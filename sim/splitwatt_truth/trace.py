"""Request traces as pure data: one request, the shape of the conversation trace, and rates over time. `trace_files` reads them.

Arrivals live in *operational time* u, in which the mean rate is one request per unit. A run maps u onto its own clock
through the integral of its rate curve: the request at u arrives at the t with  rate * Integral(multiplier, 0..t) = u.
The invariant this keeps: rescaling changes only the pace; order, sizes and burstiness (the coefficient of variation of
the gaps, locally) stay those of the source.

Quantiles of the conversation trace: Azure/AzurePublicDataset, AzureLLMInferenceTrace_conv (CC-BY-4.0), 19 366 requests
of 2023-11-16; 5.53 requests/s, CV of the gaps 1.09, rank correlation of prompt and output 0.07 (taken as none).
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Final

MAX_TOKENS: Final = 2_000_000
"""No request of any trace is longer; more is a mix-up of columns."""
MAX_RATE_POINTS: Final = 50_000
"""A month at one a minute."""


class TraceError(ValueError):
    """A trace or rate curve that cannot be used; the message is one sentence that says what to change."""


@dataclass(frozen=True, slots=True)
class TraceRow:
    """One request. `at_s` counts from the first request of the trace."""

    at_s: float
    prompt_tokens: int
    output_tokens: int


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
    that the trace can be repeated without a burst at the seam. Needs rows by rising time, not all of them at one."""
    mean_s = rows[-1].at_s / (len(rows) - 1)
    return (1.0, *((b.at_s - a.at_s) / mean_s for a, b in pairwise(rows)))


@dataclass(frozen=True, slots=True)
class RateCurve:
    """A multiplier over time: (seconds, multiplier), linear between the points, constant before the first and after
    the last. Raises TraceError on points that are not usable."""

    points: tuple[tuple[float, float], ...] = ((0.0, 1.0),)
    _pieces: tuple[tuple[float, float, float, float], ...] = field(init=False, repr=False, compare=False)
    """(start, end, multiplier at start, slope), covering 0..infinity."""
    _areas: tuple[float, ...] = field(init=False, repr=False, compare=False)
    """Integral from 0 to the start of each piece."""

    def __post_init__(self) -> None:
        if not 1 <= len(self.points) <= MAX_RATE_POINTS:
            raise TraceError(f"a rate curve needs 1 to {MAX_RATE_POINTS} points, not {len(self.points)}")
        before = -math.inf
        for number, (t_s, multiplier) in enumerate(self.points, 1):
            if not max(0.0, math.nextafter(before, math.inf)) <= t_s < math.inf:
                raise TraceError(f"the times of a rate curve must rise from 0 or later, and point {number} is at {t_s:g} s")
            if not 0 <= multiplier < math.inf:
                raise TraceError(f"the multipliers of a rate curve must be 0 or more, and point {number} has {multiplier:g}")
            before = t_s
        (first_s, first), (last_s, last) = self.points[0], self.points[-1]
        pieces = [(0.0, first_s, first, 0.0)] if first_s > 0 else []
        pieces += [(t0, t1, m0, (m1 - m0) / (t1 - t0)) for (t0, m0), (t1, m1) in pairwise(self.points)]
        pieces.append((last_s, math.inf, last, 0.0))
        spans = ((end - start, m, slope) for start, end, m, slope in pieces[:-1])
        areas = accumulate((m * span + slope * span * span / 2 for span, m, slope in spans), initial=0.0)
        object.__setattr__(self, "_pieces", tuple(pieces))
        object.__setattr__(self, "_areas", tuple(areas))

    def at(self, t_s: float) -> float:
        start, _, m, slope = self._piece_at(t_s)[1]
        return m + slope * (max(t_s, 0.0) - start)

    def integral(self, t_s: float) -> float:
        """Integral of the multiplier from 0 to t_s, in seconds at multiplier 1. t_s >= 0."""
        area, (start, _, m, slope) = self._piece_at(t_s)
        span = t_s - start
        return area + m * span + slope * span * span / 2

    def inverse(self, area: float) -> float:
        """The earliest t with integral(t) >= area; infinity when the curve ends at 0 before it."""
        # The piece that begins at or after the area is one too far: the earliest one counts, and a piece at 0 adds nothing.
        i = max(0, bisect_left(self._areas, area) - 1)
        start, end, m, slope = self._pieces[i]
        left = area - self._areas[i]
        if left <= 0:
            return start
        # m*x + slope*x^2/2 = left, in the form that stays exact for small slopes.
        root = math.sqrt(max(0.0, m * m + 2 * slope * left))
        if m + root == 0:  # at 0 for ever; or the area is too small for its root, and reached at once
            return start if slope > 0 else end
        return start + min(end - start, 2 * left / (m + root))

    def _piece_at(self, t_s: float) -> tuple[float, tuple[float, float, float, float]]:
        """The integral up to the piece that holds this time, and the piece."""
        i = max(0, bisect_right(self._pieces, t_s, key=lambda piece: piece[0]) - 1)
        return self._areas[i], self._pieces[i]
