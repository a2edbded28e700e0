"""A synthetic six-week trace of one row's power: the shape is ours, three published figures are met.

No production trace of such a row is public. POLCA's paper (arXiv:2308.12908) gives three numbers for six weeks of 40
inference servers, all as shares of provisioned power: peak 79 %, largest rise 9 % within 2 s and 11.8 % within
40 s. The shape here is made of

    a day's wave (trough at 4 h, long afternoon peak), quieter weekends, days of different height, a drift of half an hour,
    noise of about a minute that the servers share, and white noise from one reading to the next,

and the two noises are scaled, seed by seed, until the largest rises are the published ones; then the whole is shifted so
that its peak is. The noise is Gaussian: for a given largest rise that means many rises nearly as large, which is harder on
a policy than rare bursts would be.

Protects: `make` returns no trace that misses a target by more than `TOLERANCE`; equal seeds give equal traces.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from splitwatt_papers.row.kernel import correlated

FloatArray = NDArray[np.float64]

STEP_S: Final = 2.0
DAY_S: Final = 86_400.0
WEEK_DAYS: Final = 7
DAYS: Final = 42

PEAK: Final = 0.79
RISE_2_S: Final = 0.09
RISE_40_S: Final = 0.118
"""Published, as shares of provisioned row power (grade P)."""
TOLERANCE: Final = 0.03
"""Relative, of each of the three."""

DAY_DEPTH: Final = 0.25
"""From the afternoon's mean down to the night's, as a share of provisioned power (ours)."""
WEEKEND_SHARE: Final = 0.6
"""How much of a weekday's wave a weekend day has (ours)."""
DAY_SPREAD: Final = 0.04
"""Standard deviation of a day's height, as a share of the wave (ours)."""
DRIFT_S: Final = 1800.0
DRIFT_SPREAD: Final = 0.04
SHARED_S: Final = 60.0
"""How long noise that the servers share lasts (ours)."""
BURST_SHARE: Final = 0.002
BETWEEN_BURSTS: Final = 0.3
"""With `bursts`: the share of loud readings, and how loud the others are beside them (ours)."""
MAX_ROUNDS: Final = 30
MAX_RATIO: Final = 4.0
"""Shared noise over white noise, at most; far above what the published rises ask for."""
_CLOSE: Final = 0.005
"""Calibration ends when both rises are this close; well inside the tolerance."""


@dataclass(frozen=True, slots=True)
class Targets:
    """Shares of provisioned power. Raises ValueError unless 0 < rise_2_s < rise_40_s < peak < 1."""

    peak: float = PEAK
    rise_2_s: float = RISE_2_S
    rise_40_s: float = RISE_40_S

    def __post_init__(self) -> None:
        if not 0 < self.rise_2_s < self.rise_40_s < self.peak < 1:
            raise ValueError("targets must satisfy 0 < rise in 2 s < rise in 40 s < peak < 1")


@dataclass(frozen=True, slots=True)
class RowTrace:
    """`utilisation` float64[T]: power of 40 unlocked servers / provisioned row power, one value each STEP_S."""

    seed: int
    utilisation: FloatArray

    def measured(self) -> Targets:
        u = self.utilisation
        return Targets(float(u.max()), largest_rise(u, 2.0), largest_rise(u, 40.0))


def steps_of(duration_s: float) -> int:
    """Whole steps that a delay takes; a part of a step counts as one, so no delay is ever too short."""
    return int(np.ceil(duration_s / STEP_S))


def largest_rise(series: FloatArray, duration_s: float) -> float:
    """Largest rise from any value to one at most `duration_s` later; negative where all fall."""
    return max(float((series[lag:] - series[:-lag]).max()) for lag in range(1, steps_of(duration_s) + 1))


def make(seed: int, *, days: int = DAYS, targets: Targets | None = None, bursts: bool = False) -> RowTrace:
    """The trace of a seed. `bursts`: rare bursts upwards over calm readings, in place of Gaussian noise between readings.

    Raises ValueError on days < 1, RuntimeError where the targets cannot be met (some seeds of a few days).
    """
    if days < 1:
        raise ValueError(f"days must be 1 or more, not {days}")
    targets = targets or Targets()
    rng = np.random.Generator(np.random.PCG64(seed))
    wave = _wave(rng, days)
    count = len(wave)
    drift = correlated(rng.standard_normal(count), float(np.exp(-STEP_S / DRIFT_S)))
    shared = correlated(rng.standard_normal(count), float(np.exp(-STEP_S / SHARED_S)))
    white = rng.standard_normal(count)
    if bursts:
        white = np.where(rng.random(count) < BURST_SHARE, np.abs(white), BETWEEN_BURSTS * white)
    # More load is more requests at once: their noise grows with the root of it.
    loudness = np.sqrt(1.0 - DAY_DEPTH * (1.0 - wave))
    slow = DAY_DEPTH * (wave + DRIFT_SPREAD * drift)
    shared *= loudness
    white *= loudness
    series = _calibrated(slow, shared, white, targets)
    trace = RowTrace(seed, series + (targets.peak - float(series.max())))
    _check(trace, targets)
    return trace


def _wave(rng: np.random.Generator, days: int) -> FloatArray:
    """0 at the deepest night to about 1 at a weekday's peak, float64[T]."""
    at_s = np.arange(int(days * DAY_S / STEP_S)) * STEP_S
    hour = at_s % DAY_S / 3600.0
    # Trough at 4 h; the power below 1 makes the afternoon broad and the night short.
    day = (0.5 - 0.5 * np.cos(2 * np.pi * (hour - 4.0) / 24.0)) ** 0.8
    weekend = np.arange(days) % WEEK_DAYS >= WEEK_DAYS - 2
    height = np.where(weekend, WEEKEND_SHARE, 1.0) * (1.0 + DAY_SPREAD * rng.standard_normal(days))
    # Heights join at the trough, where the wave is 0 and a step in them does not show.
    index = np.clip(np.floor((at_s - 4 * 3600.0) / DAY_S).astype(np.int64), 0, days - 1)
    wave: FloatArray = day * height[index]
    return wave


def _calibrated(slow: FloatArray, shared: FloatArray, white: FloatArray, targets: Targets) -> FloatArray:
    """slow + scale * (white + ratio * shared) with the rises wanted.

    For any ratio the scale follows from the rise in 2 s, nearly in proportion; the rise in 40 s then grows with the ratio,
    so halving finds it. Both are continuous, so only a shape whose white noise alone rises too far in 40 s has none.
    """

    def loud(ratio: float) -> FloatArray:
        noise = white + ratio * shared
        scale = targets.rise_2_s / largest_rise(noise, 2.0)
        for _ in range(MAX_ROUNDS):
            series: FloatArray = slow + scale * noise
            short = targets.rise_2_s / largest_rise(series, 2.0)
            if abs(short - 1) <= _CLOSE:
                break
            scale *= short
        return series

    low, high = 0.0, MAX_RATIO
    for _ in range(MAX_ROUNDS):
        ratio = (low + high) / 2
        series = loud(ratio)
        long = largest_rise(series, 40.0) / targets.rise_40_s
        if abs(long - 1) <= _CLOSE:
            return series
        low, high = (low, ratio) if long > 1 else (ratio, high)
    raise RuntimeError(f"rises not met in {MAX_ROUNDS} rounds: the shape does not allow them together")


def _check(trace: RowTrace, targets: Targets) -> None:
    got = trace.measured()
    for name in ("peak", "rise_2_s", "rise_40_s"):
        wanted = getattr(targets, name)
        error = abs(getattr(got, name) / wanted - 1)
        assert error <= TOLERANCE, f"seed {trace.seed}: {name} misses {wanted} by {error:.1%}"
    assert float(trace.utilisation.min()) > 0, f"seed {trace.seed}: utilisation below 0"
