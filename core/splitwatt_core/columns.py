"""Fleet-sized data as columns, one array per attribute, and the arithmetic types that every room shares.

80 000 GPUs as objects cost a second to walk; as columns they cost milliseconds. Columns of one value have one length: N
GPUs or B budgets, budgets with parents before children.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Final

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

TOLERANCE_W: Final = 1e-6
"""Rounding slack of sums over 80 000 doubles; far below the one-watt grain of caps."""


class PhaseCode(IntEnum):
    """`contract.Phase` as a column value."""

    UNASSIGNED = 0
    PREFILL = 1
    DECODE = 2


class Posture(IntEnum):
    """A budget's state, worst last."""

    ADOPTING = 0
    NORMAL = 1
    TRIM = 2
    SHED = 3
    BRAKE = 4


@dataclass(frozen=True, slots=True)
class BudgetColumns:
    """B budgets, parents before children.

    parent int32[B]: index of the parent, -1 at a root. allowance_w float64[B]: watts at the meter left for GPUs, that is
    aim - rest - reserve - correction of everything below it (docs/glossary.md); may be negative. posture int8[B].
    """

    names: tuple[str, ...]
    parent: NDArray[np.int32]
    allowance_w: NDArray[np.float64]
    posture: NDArray[np.int8]


@dataclass(frozen=True, slots=True)
class GpuColumns:
    """N GPUs. All arrays have shape [N].

    leaf int32: index of its leaf budget. group int32: GPUs that must share one cap (a tensor-parallel replica) share the
    number; every other GPU has one of its own. phase int8 (PhaseCode). priority int16, higher is served first.
    loss_factor float64: watts at the meter per GPU watt, 1 + overhead. min_w, max_w: the legal range of caps. natural_w:
    draw in its phase when uncapped. cliff_w: the cap below which the phase collapses. cap_w: the cap granted last
    (default limit when none). All watts float64.
    """

    leaf: NDArray[np.int32]
    group: NDArray[np.int32]
    phase: NDArray[np.int8]
    priority: NDArray[np.int16]
    loss_factor: NDArray[np.float64]
    min_w: NDArray[np.float64]
    max_w: NDArray[np.float64]
    natural_w: NDArray[np.float64]
    cliff_w: NDArray[np.float64]
    cap_w: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class MeterColumns:
    """What the meters say of B budgets, float64[B]. limit_w: the limit in force. measured_w: NaN without a fresh reading,
    which is not zero watts. rest_w: what is drawn below besides the snapshot's GPUs, as declared, and what a correction
    found beyond; None where nobody says."""

    limit_w: NDArray[np.float64]
    measured_w: NDArray[np.float64]
    rest_w: NDArray[np.float64] | None = None


@dataclass(frozen=True, slots=True)
class ClockColumns:
    """What a clock lock does to N GPUs. granted_mhz int32[N]: the lock granted last, 0 = unlocked. top_mhz, min_mhz
    float64[N]: the range of SM clocks; top_mhz 0: nothing is known of its clocks, and it is never locked. idle_w float64[N].
    exponent, voltage_floor float64[N]: watts above idle go with the clock to this power, down to this share of the top
    clock, and in proportion to the clock below it (phase_model)."""

    granted_mhz: NDArray[np.int32]
    top_mhz: NDArray[np.float64]
    min_mhz: NDArray[np.float64]
    idle_w: NDArray[np.float64]
    exponent: NDArray[np.float64]
    voltage_floor: NDArray[np.float64]
