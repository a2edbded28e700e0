"""The one signature all power policies share: a frozen snapshot of columns in, caps with reasons out.

A policy decides *targets*. It knows nothing of grants, acknowledgements or the network; `transition` turns targets into
writes that never break I1. Post-condition of every policy, asserted by `check_decision`: for every budget b,

    sum over GPUs below b of loss_factor * cap  <=  allowance_w[b]

or, where even minimum caps do not fit, every GPU below b stands at its minimum and `short_w[b]` says how many watts miss.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

TOLERANCE_W: Final = 1e-6
"""Rounding slack of sums over 80 000 doubles; far below the one-watt grain of caps."""


class PhaseCode(IntEnum):
    """`contract.Phase` as a column value."""

    UNASSIGNED = 0
    PREFILL = 1
    DECODE = 2


class Unassigned(StrEnum):
    """What a GPU without a workload gets."""

    MINIMUM = "Minimum"
    HOLD = "Hold"


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
    limit - non-GPU - unmanaged - fixed - reserve - correction of everything below it; may be negative. posture int8[B].
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


@dataclass(frozen=True, slots=True)
class PowerSnapshot:
    """`meter`, `clocks` None: nothing of the kind is known, and a policy that needs it does without. `slot` float64[N] in
    0..1: each GPU's own moment within a period of raises, hashed from its UUID, so that a fleet does not rise as one; None:
    all at once. `memory`: what the same policy returned with its last decision about this tree, None at the first one."""

    budgets: BudgetColumns
    gpus: GpuColumns
    unassigned: Unassigned = Unassigned.MINIMUM
    meter: MeterColumns | None = None
    clocks: ClockColumns | None = None
    slot: NDArray[np.float64] | None = None
    memory: object | None = None


@dataclass(frozen=True, slots=True)
class Reason:
    """Why the GPUs of one kind in one leaf got what they got; kept per group of GPUs, never per GPU."""

    leaf: int
    phase: PhaseCode
    priority: int
    gpus: int
    mean_cap_w: float
    text: str


@dataclass(frozen=True, slots=True)
class Decision:
    """cap_w int32[N], whole watts. max_clock_mhz int32[N], 0 = unlocked. short_w float64[B], 0 where feasible. `memory`: a
    frozen value for the next snapshot of this tree; whoever loses it loses no safety, only what was learned."""

    cap_w: NDArray[np.int32]
    max_clock_mhz: NDArray[np.int32]
    short_w: NDArray[np.float64]
    reasons: tuple[Reason, ...]
    memory: object | None = None


class Policy(Protocol):
    """`decide` is pure: equal snapshots and times give equal decisions. What a policy has to remember travels through the
    snapshot (`memory`)."""

    name: str

    def decide(self, snapshot: PowerSnapshot, now_s: float) -> Decision: ...


def sum_below(parent: NDArray[np.int32], leaf_sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Add each budget's sum to all its ancestors. Both arrays have shape [B]; parents stand before children."""
    total = leaf_sums.astype(np.float64, copy=True)
    for child in range(len(parent) - 1, -1, -1):
        if parent[child] >= 0:
            total[parent[child]] += total[child]
    return total


def roots_of(parent: NDArray[np.int32]) -> NDArray[np.int64]:
    """The root of each budget, int64[B]; parents stand before children."""
    root = np.arange(len(parent))
    for b in range(len(parent)):
        if parent[b] >= 0:
            root[b] = root[parent[b]]
    return root


def drawn_w(snapshot: PowerSnapshot, cap_w: NDArray[np.int32]) -> NDArray[np.float64]:
    """Meter watts that caps allow below each budget, float64[B]."""
    gpus, budgets = snapshot.gpus, snapshot.budgets
    own = np.bincount(gpus.leaf, weights=gpus.loss_factor * cap_w, minlength=len(budgets.names)).astype(np.float64)
    return sum_below(budgets.parent, own)


def check_decision(snapshot: PowerSnapshot, decision: Decision) -> None:
    """Assert the post-condition above; raises AssertionError naming the budget."""
    gpus, budgets = snapshot.gpus, snapshot.budgets
    assert decision.cap_w.shape == gpus.leaf.shape
    assert bool(np.all(decision.cap_w >= gpus.min_w)) and bool(np.all(decision.cap_w <= gpus.max_w))
    over_w = drawn_w(snapshot, decision.cap_w) - budgets.allowance_w
    for b in np.flatnonzero(over_w > TOLERANCE_W):
        assert decision.short_w[b] > 0, f"budget {budgets.names[b]}: caps exceed the allowance by {over_w[b]:.3f} W"
