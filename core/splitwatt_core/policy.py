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
class PowerSnapshot:
    budgets: BudgetColumns
    gpus: GpuColumns
    unassigned: Unassigned = Unassigned.MINIMUM


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
    """cap_w int32[N], whole watts. max_clock_mhz int32[N], 0 = unlocked. short_w float64[B], 0 where feasible."""

    cap_w: NDArray[np.int32]
    max_clock_mhz: NDArray[np.int32]
    short_w: NDArray[np.float64]
    reasons: tuple[Reason, ...]


class Policy(Protocol):
    """`decide` is pure: equal snapshots and times give equal decisions."""

    name: str

    def decide(self, snapshot: PowerSnapshot, now_s: float) -> Decision: ...


def sum_below(parent: NDArray[np.int32], leaf_sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Add each budget's sum to all its ancestors. Both arrays have shape [B]; parents stand before children."""
    total = leaf_sums.astype(np.float64, copy=True)
    for child in range(len(parent) - 1, -1, -1):
        if parent[child] >= 0:
            total[parent[child]] += total[child]
    return total


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
