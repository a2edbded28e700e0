"""Decision time of the policies on fleets of 64, 1 000 and 80 000 GPUs, in milliseconds, median of several decisions.

The fleet: nodes of eight H100, eight nodes to a rack, twenty-five racks to a row, one site above the rows. Half the GPUs
run decode and a third prefill in tensor-parallel groups of eight, two priorities; racks have allowances of their own, so
that many of them fill at different levels. The policies are those that the operator runs, and what they remember travels
from one decision to the next. The snapshot is built outside the measured time, as the keeper holds it.
"""

from __future__ import annotations

import statistics
import sys
import time
from dataclasses import replace
from typing import Final

import numpy as np
from splitwatt_core.columns import BudgetColumns, ClockColumns, GpuColumns, MeterColumns, PhaseCode
from splitwatt_core.policies.shipped import POLICIES
from splitwatt_core.policies.signature import Policy, PowerSnapshot

FLEETS: Final = (64, 1_000, 80_000)
REPEATS: Final = 9
GPUS_PER_NODE: Final = 8
NODES_PER_RACK: Final = 8
RACKS_PER_ROW: Final = 25
SEED: Final = 1


def snapshot(gpus: int, seed: int = SEED) -> PowerSnapshot:
    """A fleet of `gpus` GPUs as the module's docstring says; equal seeds give equal fleets."""
    random = np.random.default_rng(seed)
    node = np.arange(gpus) // GPUS_PER_NODE
    rack = node // NODES_PER_RACK
    racks = int(rack[-1]) + 1
    rows = -(-racks // RACKS_PER_ROW)
    parent = np.concatenate([[-1], np.zeros(rows), 1 + np.arange(racks) // RACKS_PER_ROW]).astype(np.int32)
    rack_w = np.bincount(rack, minlength=racks) * random.uniform(280, 480, racks)
    row_w = np.bincount(np.arange(racks) // RACKS_PER_ROW, weights=rack_w, minlength=rows) * random.uniform(0.85, 1, rows)
    phase_of_node = random.choice(
        [PhaseCode.UNASSIGNED, PhaseCode.PREFILL, PhaseCode.DECODE], size=int(node[-1]) + 1, p=[1 / 6, 1 / 3, 1 / 2]
    )
    phase = phase_of_node[node]
    decodes = phase == PhaseCode.DECODE
    allowance_w = np.concatenate([[row_w.sum() * 0.97], row_w, rack_w])
    return PowerSnapshot(
        budgets=BudgetColumns(
            names=("site", *(f"row-{i}" for i in range(rows)), *(f"rack-{i}" for i in range(racks))),
            parent=parent,
            allowance_w=allowance_w,
            posture=np.ones(1 + rows + racks, dtype=np.int8),
        ),
        gpus=GpuColumns(
            leaf=(1 + rows + rack).astype(np.int32),
            group=np.where(phase == PhaseCode.UNASSIGNED, int(node[-1]) + 1 + np.arange(gpus), node).astype(np.int32),
            phase=phase.astype(np.int8),
            priority=random.choice([0, 100], size=int(node[-1]) + 1)[node].astype(np.int16),
            loss_factor=np.full(gpus, 1.04),
            min_w=np.full(gpus, 200.0),
            max_w=np.full(gpus, 700.0),
            natural_w=np.where(decodes, 380.0, 700.0),
            cliff_w=np.full(gpus, 350.0),
            cap_w=np.full(gpus, 700.0),
        ),
        meter=MeterColumns(limit_w=allowance_w, measured_w=0.8 * allowance_w, rest_w=np.zeros(len(allowance_w))),
        clocks=ClockColumns(
            granted_mhz=np.zeros(gpus, dtype=np.int32),
            top_mhz=np.full(gpus, 1980.0),
            min_mhz=np.full(gpus, 345.0),
            idle_w=np.full(gpus, 80.0),
            exponent=np.full(gpus, 3.0),
            voltage_floor=np.full(gpus, 0.7),
        ),
        slot=random.random(gpus),
    )


def decision_ms(policy: Policy, fleet: PowerSnapshot, repeats: int = REPEATS) -> float:
    """Median wall time of one `decide`, after one warm-up."""
    memory = policy.decide(fleet, 0.0).memory
    times = []
    for repeat in range(repeats):
        asked = replace(fleet, memory=memory)
        started = time.perf_counter()
        memory = policy.decide(asked, 1.0 + repeat).memory
        times.append((time.perf_counter() - started) * 1e3)
    return statistics.median(times)


def measure(repeats: int = REPEATS) -> dict[str, float]:
    """Flat figures for out/bench.json: `allocator_<gpus>_ms` is PhaseAware, `allocator_uniform_<gpus>_ms` is Uniform."""
    figures = {}
    for gpus in FLEETS:
        fleet = snapshot(gpus)
        figures[f"allocator_{gpus}_ms"] = round(decision_ms(POLICIES["PhaseAware"], fleet, repeats), 3)
        figures[f"allocator_uniform_{gpus}_ms"] = round(decision_ms(POLICIES["Uniform"], fleet, repeats), 3)
    return figures


def main() -> int:
    for name, value_ms in measure().items():
        sys.stdout.write(f"{name:32} {value_ms:10.3f}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
