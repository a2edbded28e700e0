"""`PhaseAware`'s look ahead on a row of unsplit servers: a ladder of clock locks, and what it does to power and requests.

The row's servers run both phases, so the ladder goes by priority alone: first the low priority from its top clock down to
`low_floor`, then the high priority to `high_floor`, then (nothing else is left before the brake) the high priority on to the
low one's floor. Locks come from agents on the servers, so a command takes a second or two and not POLCA's 40 s out of band;
`LadderSettings.command_latency_s` says how long, and the pages show both.

Protects: deeper on the ladder never draws more, at any load above idle; a trace that falls below it is refused.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import numpy as np
from splitwatt_core.gpus.phase_model import clock_factor
from splitwatt_core.policies import foresight
from splitwatt_core.policies.foresight import ForesightSettings
from splitwatt_core.policies.polca_table import PolcaSettings, RowPriority, settings_for
from splitwatt_core.protocol.contract import Phase

from splitwatt_papers.row.kernel import LadderColumns, run_ladder
from splitwatt_papers.row.model import PHASES, FloatArray, IntArray, Row, RowRun, check_above_idle
from splitwatt_papers.row.trace import STEP_S, RowTrace, steps_of

STEPS: Final = 12
"""Positions per section of the ladder: 27 MHz apart for the low priority. Finer ones save little and change more often."""
MAX_POSITIONS: Final = 126
"""A position is kept in a byte, and the brake takes one more."""


@dataclass(frozen=True, slots=True)
class LadderSettings:
    """`low_floor`, `high_floor`: the lowest clock of a priority as a share of the top clock, high's before the last section.
    Below 0.77, the A100's voltage floor, watts fall no faster than the clock. Raises ValueError on other shares."""

    low_floor: float = 0.77
    high_floor: float = 0.92
    steps: int = STEPS
    telemetry_s: float = 2.0
    command_latency_s: float = 2.0
    law: ForesightSettings = field(default_factory=ForesightSettings)
    name: str = "PhaseAware"

    def __post_init__(self) -> None:
        if not 0 < self.low_floor <= self.high_floor <= 1 or not 1 <= self.steps <= MAX_POSITIONS // 3:
            raise ValueError(f"floors must satisfy 0 < low <= high <= 1, and steps lie in 1..{MAX_POSITIONS // 3}")
        if self.telemetry_s < 0 or self.command_latency_s < 0:
            raise ValueError("delays must be 0 s or more")


def in_band(*, command_latency_s: float = 2.0, telemetry_s: float = 2.0, name: str = "PhaseAware") -> LadderSettings:
    """The law with the horizon that these delays ask for: age of a reading, a command, and the time to the next decision."""
    effect_s = STEP_S * (max(steps_of(telemetry_s), 1) + steps_of(command_latency_s))
    law = ForesightSettings(horizon_s=effect_s + STEP_S, effect_s=effect_s)
    return LadderSettings(telemetry_s=telemetry_s, command_latency_s=command_latency_s, law=law, name=name)


def clocks(settings: LadderSettings, row: Row) -> IntArray:
    """int64[K, 2]: the lock of low and high priority at each position, in MHz; 0 = unlocked at the top."""
    top, n = row.profile.max_clock_mhz, settings.steps
    low, high = top * settings.low_floor, top * settings.high_floor
    sections = [
        (np.linspace(top, low, n + 1), np.full(n + 1, top)),
        (np.full(n, low), np.linspace(top, high, n + 1)[1:]),
        (np.full(n, low), np.linspace(high, low, n + 1)[1:]),
    ]
    pairs = np.concatenate([np.stack(section, axis=1) for section in sections])
    whole = np.floor(pairs).astype(np.int64)
    return np.where(whole >= top, 0, whole)


def _power(row: Row, pairs: IntArray) -> tuple[FloatArray, FloatArray]:
    """fixed, scaled float64[K] of `LadderColumns` for pairs of clocks int64[K, 2]."""
    above = np.array([sum(row.class_share(p) * row.above_idle(p, int(pair[p])) for p in RowPriority) for pair in pairs])
    fixed = row.scale * row.idle_power * (1.0 - above)
    return fixed, (1.0 - row.gpu_share) + row.gpu_share * above


def columns(settings: LadderSettings, row: Row, brake: PolcaSettings) -> LadderColumns:
    fixed, scaled = _power(row, clocks(settings, row))
    assert bool(np.all(np.diff(scaled) <= 1e-12)), "deeper locks must not draw more"
    under_brake = _power(row, np.full((1, len(RowPriority)), brake.brake_mhz, dtype=np.int64))
    stands_s = brake.brake_latency_s + settings.telemetry_s
    delays = (
        max(steps_of(settings.telemetry_s), 1),
        steps_of(settings.command_latency_s),
        steps_of(brake.brake_latency_s),
        steps_of(stands_s),
    )
    return LadderColumns(
        fixed=fixed,
        scaled=scaled,
        braked=np.array([under_brake[0][0], under_brake[1][0]]),
        settings=settings.law.vector(),
        delays=np.array(delays, dtype=np.int64),
        brake=np.array([brake.brake_above, brake.t2_release]),
    )


def run_row_ahead(trace: RowTrace, settings: LadderSettings, row: Row) -> RowRun:
    """`PhaseAware` over one trace; `wanted` and `in_force` are positions of the ladder, one more under the brake.
    Raises ValueError where the trace's GPUs would draw less than idle."""
    check_above_idle(trace, row)
    brake = settings_for(row.profile)
    offered = trace.utilisation * row.scale
    table = columns(settings, row, brake)
    power = np.empty_like(offered)
    position = np.zeros(len(offered), dtype=np.int8)
    braked = np.zeros(len(offered), dtype=np.int8)
    state, ring, histogram = foresight.new_state()
    brakes = run_ladder(offered, table, STEP_S, state, ring, histogram, power, position, braked)
    lag = int(table.delays[1])
    standing = np.zeros_like(position)
    standing[lag:] = position[: len(position) - lag]
    in_force = np.where(braked == 1, np.int8(len(table.fixed)), standing).astype(np.int8)
    return RowRun(power, position, braked, in_force, int(brakes))


def slowdowns(settings: LadderSettings, row: Row, priority: RowPriority) -> FloatArray:
    """float64[2, K + 1]: how many times longer each phase takes at each position, and under the brake."""
    brake_mhz = settings_for(row.profile).brake_mhz
    clock = np.append(clocks(settings, row)[:, priority], brake_mhz)
    return np.array([[_factor(row, phase, float(c)) for c in clock] for phase in PHASES])


def _factor(row: Row, phase: Phase, clock_mhz: float) -> float:
    profile = row.profile.phase(phase)
    assert profile is not None
    return clock_factor(row.profile, profile, clock_mhz)
