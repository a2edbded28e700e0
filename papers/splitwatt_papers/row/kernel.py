"""The inner loops of the row's simulation, over arrays: noise, the row under a policy, requests under locks.

Nothing is decided here: `run_ladder` compiles the core's own function, and `run_levels` reads a policy's table as columns and
walks it as `splitwatt_core.policies.polca_table.step` does; a test holds the two against each other.

Delays need no queue of commands. All locks take the same time, so the lock in force now is the one that the level of that
many steps ago wanted; the same holds for the brake with its own delay.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from splitwatt_core.policies import foresight
from splitwatt_sim.jit import jit

FloatArray = NDArray[np.float64]
LevelArray = NDArray[np.int8]
IntArray = NDArray[np.int64]

BRAKE_LEVEL = 4
"""`polca.Level.BRAKE`: also the last column of a clock table."""
LONG_AGO = -1_000_000_000
"""A step before every trace."""


@jit
def correlated(white: FloatArray, keep: float) -> FloatArray:
    """First-order autoregressive noise of unit variance from white noise of unit variance, both float64[T]; `keep` is the
    share kept from one step to the next, 0..1."""
    out = np.empty_like(white)
    fresh = np.sqrt(1.0 - keep * keep)
    value = white[0]
    for i in range(len(white)):
        value = keep * value + fresh * white[i]
        out[i] = value
    return out


class TableColumns(NamedTuple):
    """A policy's table with everything the loop needs of the row.

    rules float64[R, 5]: at, to, above (1 or 0), threshold, steps to wait. delays int64[3] in steps: telemetry (1 or more),
    command, brake. fixed, scaled float64[L, 2]: with the locks that level l wants, and the brake off (0) or on (1),
    power = fixed + scaled * offered.
    """

    rules: FloatArray
    delays: IntArray
    fixed: FloatArray
    scaled: FloatArray


@jit
def run_levels(offered: FloatArray, table: TableColumns, power: FloatArray, level: LevelArray, braked: LevelArray) -> int:
    """One policy over one trace; fills power, level and braked; returns how often the machine went to the brake.

    offered float64[T]: power when nothing is locked, as a share of provisioned power; power float64[T] likewise, as drawn.
    level int8[T]: what the machine wants; the locks in force are those of `delays[1]` steps before. braked int8[T]: 1
    while the brake is in force.
    """
    rules, fixed, scaled = table.rules, table.fixed, table.scaled
    telemetry, command, brake = table.delays[0], table.delays[1], table.delays[2]
    now = 0
    entered = LONG_AGO
    brakes = 0
    for k in range(len(offered)):
        if k >= telemetry:
            reading = power[k - telemetry]
            for r in range(len(rules)):
                if int(rules[r, 0]) != now or k - entered < rules[r, 4]:
                    continue
                above = rules[r, 2] > 0.5
                if (above and reading > rules[r, 3]) or (not above and reading < rules[r, 3]):
                    now = int(rules[r, 1])
                    entered = k
                    if now == BRAKE_LEVEL:
                        brakes += 1
                    break
        level[k] = now
        wanted = level[k - command] if k >= command else 0
        on = 1 if k >= brake and level[k - brake] == BRAKE_LEVEL else 0
        braked[k] = on
        power[k] = fixed[wanted, on] + scaled[wanted, on] * offered[k]
    return brakes


_advance = jit(foresight.advance)


class LadderColumns(NamedTuple):
    """A ladder of locks with everything the loop needs of the row.

    fixed, scaled float64[K]: at position k power = fixed + scaled * offered. braked float64[2]: the same under the brake.
    settings: `ForesightSettings.vector`. delays int64[4] in steps: telemetry (1 or more), command, brake, and how long a
    brake stands at least. brake float64[2]: the readings above which it is called and below which it is released.
    """

    fixed: FloatArray
    scaled: FloatArray
    braked: FloatArray
    settings: FloatArray
    delays: IntArray
    brake: FloatArray


@jit
def run_ladder(  # noqa: PLR0917 - compiled code takes no keywords
    offered: FloatArray,
    ladder: LadderColumns,
    step_s: float,
    state: FloatArray,
    ring: FloatArray,
    histogram: FloatArray,
    power: FloatArray,
    position: LevelArray,
    braked: LevelArray,
) -> int:
    """The law of `foresight` over one trace; fills power, position and braked as `run_levels` does; returns the brakes.

    The brake is the hardware's, as in POLCA's tables. While it is called or in force the law is told of no reading, for
    the meter then shows the brake and not the load; all locks stand when it is released.
    """
    telemetry, command, brake, stands = ladder.delays[0], ladder.delays[1], ladder.delays[2], ladder.delays[3]
    called = False
    since = LONG_AGO
    brakes = 0
    deepest = len(ladder.fixed) - 1
    call = np.zeros(len(offered), np.int8)
    for k in range(len(offered)):
        reading = power[k - telemetry] if k >= telemetry else np.nan
        if not called and reading > ladder.brake[0]:
            called = True
            since = k
            brakes += 1
        elif called and k - since >= stands and reading < ladder.brake[1]:
            called = False
            since = k
        call[k] = 1 if called else 0
        blind = called or k - since < brake + telemetry
        if called:
            state[foresight.NOW_AT] = deepest
        seen = np.nan if blind else reading
        position[k] = _advance(k * step_s, seen, 1.0, ladder.fixed, ladder.scaled, ladder.settings, state, ring, histogram)
        on = k >= brake and call[k - brake] == 1
        braked[k] = 1 if on else 0
        at = position[k - command] if k >= command else 0
        if on:
            power[k] = ladder.braked[0] + ladder.braked[1] * offered[k]
        else:
            power[k] = ladder.fixed[at] + ladder.scaled[at] * offered[k]
    return brakes


@jit
def served_ms(start: IntArray, work_ms: FloatArray, clock_at: LevelArray, factors: FloatArray, step_ms: float) -> FloatArray:
    """Time each request takes while clocks change under it, float64[Q] in ms.

    start int64[Q]: step of its arrival. work_ms float64[Q, 2]: prefill and decode uncapped, one after the other. clock_at
    int8[T]: which clock is in force at each step. factors float64[2, C]: how many times longer each phase takes at clock c.
    After the trace's last step its last clock stays.
    """
    out = np.empty(len(start))
    for q in range(len(start)):
        k = start[q]
        left_ms = step_ms
        spent_ms = 0.0
        for phase in range(2):
            todo_ms = work_ms[q, phase]
            while True:
                factor = factors[phase, clock_at[min(k, len(clock_at) - 1)]]
                if todo_ms * factor <= left_ms:
                    spent_ms += todo_ms * factor
                    left_ms -= todo_ms * factor
                    break
                todo_ms -= left_ms / factor
                spent_ms += left_ms
                left_ms = step_ms
                k += 1
        out[q] = spent_ms
    return out
