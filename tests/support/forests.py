"""Snapshots for tests of policies: one rack with numbers to check by hand, and forests of any shape."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from hypothesis import strategies as st
from splitwatt_core.columns import BudgetColumns, ClockColumns, GpuColumns, MeterColumns, PhaseCode, Posture
from splitwatt_core.policies.signature import Decision, PowerSnapshot, Unassigned, cap_sums_w

LOW, HIGH = 0, 100
IDLE, PREFILL, DECODE = PhaseCode.UNASSIGNED, PhaseCode.PREFILL, PhaseCode.DECODE
MODELS = ((200, 700, 350, 700, 350, 380), (100, 400, 200, 400, 230, 250), (400, 1000, 400, 710, 430, 435))
"""min, max, prefill cliff and natural draw, decode cliff and natural draw."""


def rack(
    kinds: list[tuple[PhaseCode, int, int]],
    allowance_w: float,
    *,
    posture: Posture = Posture.NORMAL,
    held_w: float = 700,
    unassigned: Unassigned = Unassigned.MINIMUM,
) -> PowerSnapshot:
    """One leaf below one roomy root; `kinds` are (phase, priority, GPUs), every GPU a group of its own."""
    rows = [(phase, priority) for phase, priority, gpus in kinds for _ in range(gpus)]
    size = len(rows)
    decodes = np.array([phase is DECODE for phase, _ in rows], dtype=np.bool_)
    return PowerSnapshot(
        budgets=BudgetColumns(
            names=("row", "rack"),
            parent=np.array([-1, 0], dtype=np.int32),
            allowance_w=np.array([1e6, allowance_w]),
            posture=np.array([Posture.NORMAL, posture], dtype=np.int8),
        ),
        gpus=GpuColumns(
            leaf=np.ones(size, dtype=np.int32),
            group=np.arange(size, dtype=np.int32),
            phase=np.array([phase for phase, _ in rows], dtype=np.int8),
            priority=np.array([priority for _, priority in rows], dtype=np.int16),
            loss_factor=np.ones(size),
            min_w=np.full(size, 200.0),
            max_w=np.full(size, 700.0),
            natural_w=np.where(decodes, 380.0, 700.0),
            cliff_w=np.full(size, 350.0),
            cap_w=np.full(size, float(held_w)),
        ),
        unassigned=unassigned,
    )


@dataclass(frozen=True)
class Group:
    leaves: tuple[int, ...]
    model: int
    phase: PhaseCode
    priority: int
    held_w: int


def build(
    parent: list[int],
    groups: list[Group],
    share: list[float],
    *,
    loss: list[float],
    posture: list[Posture] | None = None,
    unassigned: Unassigned = Unassigned.MINIMUM,
) -> PowerSnapshot:
    """`share` of each budget: 0 gives its minimum caps no more than they need, 1 its maximum caps; beyond is legal."""
    rows = [
        (leaf, index, g.phase, g.priority, loss[leaf], *_model(g), g.held_w)
        for index, g in enumerate(groups)
        for leaf in g.leaves
    ]
    columns = list(zip(*rows, strict=True)) if rows else [()] * 10
    gpus = GpuColumns(
        leaf=np.array(columns[0], dtype=np.int32),
        group=np.array(columns[1], dtype=np.int32),
        phase=np.array(columns[2], dtype=np.int8),
        priority=np.array(columns[3], dtype=np.int16),
        loss_factor=np.array(columns[4], dtype=np.float64),
        min_w=np.array(columns[5], dtype=np.float64),
        max_w=np.array(columns[6], dtype=np.float64),
        natural_w=np.array(columns[7], dtype=np.float64),
        cliff_w=np.array(columns[8], dtype=np.float64),
        cap_w=np.array(columns[9], dtype=np.float64),
    )
    budgets = BudgetColumns(
        names=tuple(f"b{i}" for i in range(len(parent))),
        parent=np.array(parent, dtype=np.int32),
        allowance_w=np.zeros(len(parent)),
        posture=np.array(posture or [Posture.NORMAL] * len(parent), dtype=np.int8),
    )
    bare = PowerSnapshot(budgets=budgets, gpus=gpus, unassigned=unassigned)
    low = cap_sums_w(bare, gpus.min_w.astype(np.int32))
    high = cap_sums_w(bare, gpus.max_w.astype(np.int32))
    allowance_w = np.round(low + np.array(share) * (high - low) - 20)
    return replace(bare, budgets=replace(budgets, allowance_w=allowance_w))


def _model(g: Group) -> tuple[int, int, int, int]:
    low, top, prefill_cliff, prefill, decode_cliff, decode = MODELS[g.model]
    natural, cliff = (decode, decode_cliff) if g.phase is PhaseCode.DECODE else (prefill, prefill_cliff)
    return low, top, natural, cliff


@st.composite
def snapshots(draw: st.DrawFn, *, calm: bool = False, spanning: bool = True, one: bool = False) -> PowerSnapshot:
    size = 1 if one else draw(st.integers(1, 7))
    parent = [draw(st.integers(-1, b - 1)) for b in range(size)]
    leaves = [b for b in range(size) if b not in parent]
    loss = [draw(st.sampled_from([1.0, 1.0625, 1.25])) for _ in range(size)]
    groups = []
    for _ in range(draw(st.integers(0, 12))):
        gpus = draw(st.integers(1, 3))
        home = draw(st.sampled_from(leaves))
        at = tuple(draw(st.sampled_from(leaves)) if spanning else home for _ in range(gpus))
        phase = draw(st.sampled_from(list(PhaseCode)))
        model = draw(st.integers(0, len(MODELS) - 1))
        held = draw(st.integers(MODELS[model][0], MODELS[model][1]))
        alone = phase is PhaseCode.UNASSIGNED
        groups.append(Group(at[:1] if alone else at, model, phase, draw(st.sampled_from([-5, 0, 100])), held))
    share = [draw(st.floats(-0.1, 1.1)) for _ in range(size)]
    posture = None if calm else [draw(st.sampled_from(list(Posture))) for _ in range(size)]
    hold = draw(st.sampled_from(list(Unassigned)))
    return build(parent, groups, share, loss=loss, posture=posture, unassigned=hold)


TOP_MHZ, MIN_MHZ, IDLE_W = 2000.0, 300.0, 70.0


def clocked(snapshot: PowerSnapshot, granted_mhz: object = 0, top_mhz: object = TOP_MHZ) -> PowerSnapshot:
    """The same with columns of clocks; `granted_mhz`, `top_mhz`: one for all or one per GPU."""
    size = len(snapshot.gpus.leaf)
    columns = ClockColumns(
        granted_mhz=np.broadcast_to(np.asarray(granted_mhz, dtype=np.int32), size).copy(),
        top_mhz=np.broadcast_to(np.asarray(top_mhz, dtype=np.float64), size).copy(),
        min_mhz=np.full(size, MIN_MHZ),
        idle_w=np.full(size, IDLE_W),
        exponent=np.full(size, 3.0),
        voltage_floor=np.full(size, 0.769),
    )
    return replace(snapshot, clocks=columns)


def metered(snapshot: PowerSnapshot, limit_w: float, measured_w: float) -> PowerSnapshot:
    """Every budget's meter shows `measured_w` of `limit_w`."""
    size = len(snapshot.budgets.names)
    return replace(snapshot, meter=MeterColumns(np.full(size, float(limit_w)), np.full(size, float(measured_w))))


def granted(snapshot: PowerSnapshot, decision: Decision) -> PowerSnapshot:
    """The next snapshot, once every cap and every lock was granted."""
    clocks = snapshot.clocks
    return replace(
        snapshot,
        gpus=replace(snapshot.gpus, cap_w=decision.cap_w.astype(np.float64)),
        clocks=None if clocks is None else replace(clocks, granted_mhz=decision.max_clock_mhz),
        memory=decision.memory,
    )
