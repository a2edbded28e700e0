"""The one signature all power policies share: a frozen snapshot of columns in, caps with reasons out.

A policy decides *targets*. It knows nothing of grants, acknowledgements or the network; `transition` turns targets into
writes that never break I1. Post-condition of every policy, asserted by `check_decision`: for every budget b,

    sum over GPUs below b of loss_factor * cap  <=  allowance_w[b]

or, where even minimum caps do not fit, every GPU below b stands at its minimum and `short_w[b]` says how many watts miss.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from splitwatt_core.columns import TOLERANCE_W, BudgetColumns, ClockColumns, GpuColumns, MeterColumns, PhaseCode
from splitwatt_core.trees import forest_of

CORRECTION_WINDOW_S: Final = 5.0
"""Meter and agents are sampled at different moments, so a step in load shows as a gap for a second or two. Only a gap that
lasts this long tells of watts nobody declared."""


class Unassigned(StrEnum):
    """What a GPU without a workload gets."""

    MINIMUM = "Minimum"
    HOLD = "Hold"


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


def cap_sums_w(snapshot: PowerSnapshot, cap_w: NDArray[np.int32]) -> NDArray[np.float64]:
    """Meter watts that caps allow below each budget, float64[B]."""
    gpus, budgets = snapshot.gpus, snapshot.budgets
    own = np.bincount(gpus.leaf, weights=gpus.loss_factor * cap_w, minlength=len(budgets.names)).astype(np.float64)
    return forest_of(budgets.parent).sum_up(own)


def shortfall_w(minimum_w: NDArray[np.float64], allowance_w: NDArray[np.float64]) -> NDArray[np.float64]:
    """`Decision.short_w` where minimum caps draw `minimum_w` below each budget, all float64[B]."""
    over_w = minimum_w - allowance_w
    return np.where(over_w > TOLERANCE_W / 2, over_w, 0.0)


def check_decision(snapshot: PowerSnapshot, decision: Decision) -> None:
    """Assert the post-condition above; raises AssertionError naming the budget."""
    gpus, budgets = snapshot.gpus, snapshot.budgets
    assert decision.cap_w.shape == gpus.leaf.shape
    assert bool(np.all(decision.cap_w >= gpus.min_w)) and bool(np.all(decision.cap_w <= gpus.max_w))
    over_w = cap_sums_w(snapshot, decision.cap_w) - budgets.allowance_w
    for b in np.flatnonzero(over_w > TOLERANCE_W):
        assert decision.short_w[b] > 0, f"budget {budgets.names[b]}: caps exceed the allowance by {over_w[b]:.3f} W"
