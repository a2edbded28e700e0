"""How deep to lock clocks, one reading of a meter at a time: look ahead to act, look at the reading to let go.

A reading is old when it comes, and a lock acts later still. So the law looks `horizon_s` ahead of the reading: age of the
reading, time a command takes, and the time until the next decision.

Model. One number, the load x, says how busy everybody is; at position k of a ladder of ever deeper locks the meter shows

    power(k, x) = fixed_w[k] + scaled_w[k] * x                (fixed: idle and the rest; scaled: what grows with work)

Position 0 is unlocked. From a reading and the position that was in force when it was taken follows x, so a lock's own
effect is never taken for a change of load.

Prediction. x is smoothed to a level and a slope (Holt's two exponential averages; NIST handbook 6.4.3.3). Ahead of it goes

    ahead = level + max(slope, 0) * horizon_s + spike * sqrt(level)

where `spike` is learned: of every earlier decision, by how much the highest reading within its horizon came above what it
foresaw, over the root of the level (many independent requests are as loud as the root of their number). Its quantile
`spike_quantile`, stretched by `tail` to what a normal law would show far more rarely, is added. Before enough has been seen
the `first_spike` counts where it is larger. Never less than the reading itself is reckoned with. What no law foresees is
the brake's and the breaker's.

Action. The least position whose power(k, ahead) keeps the limit; deeper at once, without any bound on speed. Back only
`dwell_s` after the last time that the position was needed, at most `release_per_s` positions a second, on the level itself
without its slope, and not for less than `deadband` positions.

Protects: without a reading nothing is released (I5), and a missing one begins the dwell anew; equal inputs give equal outputs.

A ladder whose positions mean something else (other GPUs, other classes) is a new ladder: begin with `Outlook.at` the position
whose locks are at least as deep as those in force.

`advance` keeps to what a compiler of array code can take (scalars, arrays, loops), so the simulator compiles this very
function; `look` is the same for frozen values.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from splitwatt_core.columns import FloatArray

RING: Final = 64
"""Decisions remembered: those within a horizon. A faster pace than one in horizon_s / 64 forgets the oldest early."""
BINS: Final = 500
BIN: Final = 0.001
"""Spikes are kept to a thousandth of the load, up to a half."""
MAX_WEIGHT: Final = 1e12
SETTLED: Final = 3.0
"""Time constants of the slope after which a prediction is one to learn from."""

# Columns of a remembered decision.
AT_S, POSITION, FORESEEN, ROOT, HIGHEST = range(5)
# Places of the state vector.
LEVEL, SLOPE, LAST_S, NEEDED_S, NOW_AT, BEFORE, HEAD, WEIGHT, TOTAL, COUNT, BEGAN_S = range(11)
STATE: Final = 11


@dataclass(frozen=True, slots=True)
class ForesightSettings:
    """`horizon_s`: see the module's docstring; longer is safer and locks more. `effect_s`: age of a reading plus time of a
    command, so that a reading taken now shows the position of that long ago. `level_s`, `slope_s`: time constants of the
    two averages. `spike_quantile`, `tail`, `first_spike`, `memory_s` (time constant of forgetting), `learnt_after`
    (decisions): the spike. `dwell_s`, `release_per_s`, `deadband`: letting go. Raises ValueError on senseless numbers."""

    horizon_s: float = 4.0
    effect_s: float = 3.0
    level_s: float = 8.0
    slope_s: float = 15.0
    spike_quantile: float = 0.9999
    tail: float = 1.4
    first_spike: float = 0.10
    memory_s: float = 86_400.0
    learnt_after: int = 1_800
    dwell_s: float = 60.0
    release_per_s: float = 0.2
    deadband: int = 1

    def __post_init__(self) -> None:
        times = (self.horizon_s, self.level_s, self.slope_s, self.memory_s, self.release_per_s)
        if not all(0 < x < math.inf for x in times) or min(self.effect_s, self.dwell_s, self.first_spike) < 0:
            raise ValueError("times and rates must be positive and finite; effect_s, dwell_s and first_spike 0 or more")
        if not 0.5 <= self.spike_quantile < 1 or self.tail < 1 or self.learnt_after < 1 or self.deadband < 0:
            raise ValueError("spike_quantile must lie in 0.5..1, tail and learnt_after be 1 or more, deadband 0 or more")

    def vector(self) -> FloatArray:
        """As `advance` takes them."""
        return np.array(
            [
                self.horizon_s, self.effect_s, self.level_s, self.slope_s, self.spike_quantile, self.tail,
                self.first_spike, self.memory_s, self.learnt_after, self.dwell_s, self.release_per_s, self.deadband,
            ]
        )  # fmt: skip


def new_state(position: float = 0.0) -> tuple[FloatArray, FloatArray, FloatArray]:
    """state float64[STATE], ring float64[RING, 5], histogram float64[BINS] before the first reading, at `position`."""
    state = np.zeros(STATE)
    state[LAST_S] = math.nan
    state[NOW_AT] = state[BEFORE] = position
    state[WEIGHT] = 1.0
    ring = np.full((RING, 5), math.nan)
    return state, ring, np.zeros(BINS)


def advance(  # noqa: PLR0917 - compiled code takes no keywords
    now_s: float,
    reading_w: float,
    limit_w: float,
    fixed_w: FloatArray,
    scaled_w: FloatArray,
    settings: FloatArray,
    state: FloatArray,
    ring: FloatArray,
    histogram: FloatArray,
) -> int:
    """One decision: the position to command now, 0 .. K - 1. Changes state, ring and histogram.

    fixed_w, scaled_w float64[K]: see the module's docstring; scaled_w positive, and power(k, x) not rising with k for any x
    in question. reading_w NaN: no fresh reading. settings: `ForesightSettings.vector`.
    """
    horizon_s, effect_s, level_s, slope_s = settings[0], settings[1], settings[2], settings[3]
    deepest = len(fixed_w) - 1
    at: float = min(float(state[NOW_AT]), float(deepest))
    state[NOW_AT] = at
    if math.isnan(reading_w):
        state[NEEDED_S] = now_s
        return math.ceil(at)

    # What was in force when the reading was taken.
    shown = int(state[BEFORE])
    newest_s = -math.inf
    for i in range(RING):
        taken_s = ring[i, AT_S]
        if taken_s <= now_s - effect_s + 1e-9 and taken_s > newest_s:  # never true of NaN
            newest_s = taken_s
            shown = int(ring[i, POSITION])
    shown = min(shown, deepest)
    load = max((reading_w - fixed_w[shown]) / scaled_w[shown], 0.0)

    # Level and slope.
    if math.isnan(state[LAST_S]):
        state[LEVEL], state[SLOPE] = load, 0.0
        state[BEGAN_S] = now_s
        elapsed_s = 0.0
        state[NEEDED_S] = now_s
    else:
        elapsed_s = max(now_s - state[LAST_S], 1e-9)
        expected = state[LEVEL] + state[SLOPE] * elapsed_s
        level = max(expected + (1.0 - math.exp(-elapsed_s / level_s)) * (load - expected), 0.0)
        rate = (level - state[LEVEL]) / elapsed_s
        state[SLOPE] += (1.0 - math.exp(-elapsed_s / slope_s)) * (rate - state[SLOPE])
        state[LEVEL] = level
    state[LAST_S] = now_s
    root = math.sqrt(max(state[LEVEL], 1e-6))

    # Learn from the decisions whose horizon is over.
    state[WEIGHT] *= math.exp(min(elapsed_s / settings[7], 30.0))
    for i in range(RING):
        if math.isnan(ring[i, HIGHEST]):
            continue
        if now_s - ring[i, AT_S] <= horizon_s + 1e-9:
            ring[i, HIGHEST] = max(ring[i, HIGHEST], load)
        if now_s - ring[i, AT_S] >= horizon_s - 1e-9:
            highest = ring[i, HIGHEST]
            ring[i, HIGHEST] = math.nan
            if highest == -math.inf:
                continue  # no reading came within its horizon
            spike = (highest - ring[i, FORESEEN]) / ring[i, ROOT]
            histogram[min(max(int(spike / BIN), 0), BINS - 1)] += state[WEIGHT]
            state[TOTAL] += state[WEIGHT]
            state[COUNT] += 1.0
    if state[WEIGHT] > MAX_WEIGHT:
        for i in range(BINS):
            histogram[i] /= state[WEIGHT]
        state[TOTAL] /= state[WEIGHT]
        state[WEIGHT] = 1.0

    # The spike to reckon with: the upper edge of the quantile's bin, stretched.
    spike = 0.0
    above = 0.0
    for j in range(BINS):
        i = BINS - 1 - j
        above += histogram[i]
        if above > (1.0 - settings[4]) * state[TOTAL]:
            spike = (i + 1) * BIN * settings[5]
            break
    if state[COUNT] < settings[8]:
        spike = max(spike, settings[6])

    foreseen = state[LEVEL] + max(state[SLOPE], 0.0) * horizon_s
    ahead = max(foreseen + spike * root, load)
    calm = state[LEVEL] + spike * root
    need = deepest
    for k in range(deepest + 1):
        if fixed_w[k] + scaled_w[k] * ahead <= limit_w:
            need = k
            break
    need_calm = deepest
    for k in range(deepest + 1):
        if fixed_w[k] + scaled_w[k] * calm <= limit_w:
            need_calm = k
            break
    if need >= at:
        state[NEEDED_S] = now_s
        at = float(need)
    elif need_calm + settings[11] >= at and need_calm > 0:  # too near to be worth a command; but the top is reached
        state[NEEDED_S] = now_s
    elif now_s - state[NEEDED_S] >= settings[9]:
        at = max(at - float(settings[10]) * elapsed_s, float(need_calm), float(need))
    state[NOW_AT] = at

    commanded = math.ceil(at)
    head = int(state[HEAD])
    if not math.isnan(ring[head, AT_S]):
        state[BEFORE] = ring[head, POSITION]
    ring[head, AT_S] = now_s
    ring[head, POSITION] = commanded
    ring[head, FORESEEN] = foreseen
    ring[head, ROOT] = root
    # Level and slope are guesses at first: what exceeds them then is no spike.
    ring[head, HIGHEST] = -math.inf if now_s - state[BEGAN_S] >= SETTLED * slope_s else math.nan
    state[HEAD] = float((head + 1) % RING)
    return commanded


@dataclass(frozen=True, slots=True)
class Outlook:
    """What `look` remembers: the arrays of `new_state`, and the position commanded last. Never changed in place."""

    state: FloatArray = field(default_factory=lambda: new_state()[0])
    ring: FloatArray = field(default_factory=lambda: new_state()[1])
    histogram: FloatArray = field(default_factory=lambda: new_state()[2])
    position: int = 0

    @staticmethod
    def at(position: int) -> Outlook:
        """Before the first reading, with the locks of this position in force."""
        return Outlook(*new_state(float(position)), position)


def look(
    outlook: Outlook,
    *,
    now_s: float,
    reading_w: float,
    limit_w: float,
    fixed_w: FloatArray,
    scaled_w: FloatArray,
    settings: ForesightSettings,
) -> Outlook:
    """`advance` on copies. Raises ValueError on ladders of unlike or no length, or a scaled_w that is not positive."""
    if len(fixed_w) != len(scaled_w) or len(fixed_w) == 0 or not bool(np.all(scaled_w > 0)):
        raise ValueError("a ladder needs fixed_w and scaled_w of one length, at least 1, and scaled_w above 0")
    state, ring, histogram = outlook.state.copy(), outlook.ring.copy(), outlook.histogram.copy()
    position = advance(now_s, reading_w, limit_w, fixed_w, scaled_w, settings.vector(), state, ring, histogram)
    return Outlook(state, ring, histogram, position)
