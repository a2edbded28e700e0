"""Named cases of the policies, with numbers one can check by hand, on H100s (prefill 350..700 W, decode 350..380 W)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from splitwatt_core.columns import BudgetColumns, PhaseCode, Posture
from splitwatt_core.policies.phase_aware import PhaseAware
from splitwatt_core.policies.signature import Decision, PowerSnapshot, Unassigned, check_decision
from splitwatt_core.policies.uniform import Uniform
from splitwatt_core.policies.waterfill import Filling
from splitwatt_core.trees import forest_of
from splitwatt_lab import bench_allocator
from support.forests import DECODE, HIGH, IDLE, LOW, PREFILL, rack
from support.some import some


def caps(decision: Decision, snapshot: PowerSnapshot) -> dict[tuple[PhaseCode, int], int]:
    """The one cap of each kind."""
    found: dict[tuple[PhaseCode, int], set[int]] = {}
    for phase, priority, cap in zip(
        snapshot.gpus.phase.tolist(), snapshot.gpus.priority.tolist(), decision.cap_w.tolist(), strict=True
    ):
        found.setdefault((PhaseCode(phase), priority), set()).add(cap)
    assert all(len(values) == 1 for values in found.values())
    return {kind: values.pop() for kind, values in found.items()}


MIXED = [(PREFILL, HIGH, 4), (DECODE, HIGH, 4), (PREFILL, LOW, 4), (DECODE, LOW, 4), (IDLE, 0, 4)]
KINDS = ((PREFILL, HIGH), (DECODE, HIGH), (PREFILL, LOW), (DECODE, LOW), (IDLE, 0))
FLOORS_W = 4 * (4 * 350 + 200)


@pytest.mark.parametrize(
    ("allowance_w", "expected"),
    [
        (20 * 200 - 1, (200, 200, 200, 200, 200)),  # not even minimum caps
        (20 * 200, (200, 200, 200, 200, 200)),
        (20 * 200 + 8 * 75, (275, 275, 200, 200, 200)),  # half of the high floors
        (20 * 200 + 8 * 150, (350, 350, 200, 200, 200)),  # high at its cliffs, low pays
        (FLOORS_W, (350, 350, 350, 350, 200)),
        (FLOORS_W + 4 * 175, (525, 350, 350, 350, 200)),  # high prefill halfway, decode gives first
        (FLOORS_W + 4 * 350, (700, 350, 350, 350, 200)),
        (FLOORS_W + 4 * 350 + 4 * 30, (700, 380, 350, 350, 200)),
        (FLOORS_W + 4 * 350 + 4 * 30 + 4 * 100, (700, 380, 450, 350, 200)),
        (FLOORS_W + 8 * 350 + 8 * 30, (700, 380, 700, 380, 200)),
        (FLOORS_W + 8 * 350 + 8 * 30 + 8 * 19, (700, 399, 700, 399, 200)),  # 5 % of margin where there is room
        (99_999, (700, 399, 700, 399, 200)),
    ],
)
def test_the_order_of_phase_aware_in_watts(allowance_w: int, expected: tuple[int, ...]) -> None:
    snapshot = rack(MIXED, allowance_w)
    decision = PhaseAware().decide(snapshot, 0.0)
    assert caps(decision, snapshot) == dict(zip(KINDS, expected, strict=True))
    assert decision.short_w.tolist() == [0.0, 1.0 if allowance_w < 4000 else 0.0]
    assert not decision.max_clock_mhz.any()


@pytest.mark.parametrize(
    ("posture", "expected"),
    [
        (Posture.ADOPTING, (700, 399, 700, 399, 700)),
        (Posture.NORMAL, (700, 399, 700, 399, 700)),
        (Posture.TRIM, (700, 380, 700, 350, 200)),
        (Posture.SHED, (700, 350, 350, 350, 200)),
        (Posture.BRAKE, (200, 200, 200, 200, 200)),
    ],
)
def test_postures_sharpen_step_by_step(posture: Posture, expected: tuple[int, ...]) -> None:
    snapshot = rack(MIXED, 99_999, posture=posture, unassigned=Unassigned.HOLD)
    assert caps(PhaseAware().decide(snapshot, 0.0), snapshot) == dict(zip(KINDS, expected, strict=True))


def test_the_highest_class_at_work_is_not_shed_even_if_its_number_is_low() -> None:
    snapshot = rack([(PREFILL, LOW, 4), (DECODE, LOW, 4), (IDLE, HIGH, 1)], 99_999, posture=Posture.SHED)
    assert caps(PhaseAware().decide(snapshot, 0.0), snapshot) == {
        (PREFILL, LOW): 700,
        (DECODE, LOW): 350,
        (IDLE, HIGH): 200,
    }


def test_held_caps_give_before_anybody_at_work_and_never_rise() -> None:
    kinds = [(DECODE, LOW, 2), (IDLE, 0, 2)]
    for allowance_w, idle in ((2 * 380 + 2 * 450, 450), (2 * 380 + 2 * 300, 300), (2 * 365 + 400, 200), (9_999, 450)):
        snapshot = rack(kinds, allowance_w, held_w=450, unassigned=Unassigned.HOLD)
        assert caps(PhaseAware().decide(snapshot, 0.0), snapshot)[(IDLE, 0)] == idle


def test_a_tight_rack_does_not_drag_its_neighbour_down() -> None:
    """Rack 1 has 300 W per GPU, rack 2 plenty, the row 500 W per GPU on average."""
    one = rack([(PREFILL, LOW, 20)], 0)
    both = PowerSnapshot(
        budgets=BudgetColumns(
            names=("row", "r1", "r2"),
            parent=np.array([-1, 0, 0], dtype=np.int32),
            allowance_w=np.array([20 * 450.0, 10 * 300.0, 99_999.0]),
            posture=np.ones(3, dtype=np.int8),
        ),
        gpus=replace(one.gpus, leaf=np.repeat([1, 2], 10).astype(np.int32)),
    )
    assert Uniform().decide(both, 0.0).cap_w.tolist() == [300] * 10 + [600] * 10
    assert PhaseAware().decide(both, 0.0).cap_w.tolist() == [300] * 10 + [600] * 10


def test_a_group_across_two_racks_gets_the_cap_of_the_tighter_and_frees_the_rest() -> None:
    one = rack([(PREFILL, LOW, 4)], 0)
    both = PowerSnapshot(
        budgets=BudgetColumns(
            names=("r1", "r2"),
            parent=np.array([-1, -1], dtype=np.int32),
            allowance_w=np.array([2 * 300.0, 2 * 450.0]),
            posture=np.ones(2, dtype=np.int8),
        ),
        gpus=replace(
            one.gpus,
            leaf=np.array([0, 0, 1, 1], dtype=np.int32),
            group=np.array([7, 8, 8, 9], dtype=np.int32),
        ),
    )
    for policy in (Uniform(), PhaseAware()):
        assert policy.decide(both, 0.0).cap_w.tolist() == [300, 300, 300, 600]


def test_a_group_whose_members_cannot_share_a_minimum_is_taken_apart() -> None:
    snapshot = rack([(DECODE, LOW, 3)], 3 * 200 + 100)
    odd = replace(
        snapshot,
        gpus=replace(snapshot.gpus, group=np.zeros(3, dtype=np.int32), min_w=np.array([200.0, 200.0, 300.0])),
    )
    for policy in (Uniform(), PhaseAware()):
        decision = policy.decide(odd, 0.0)
        check_decision(odd, decision)
        assert decision.cap_w.tolist() == [200, 200, 300]


def test_small_raises_wait_and_nothing_flaps() -> None:
    """Under a flicker of +-1 W a cap that stands between two stages moves twice, down, and then no more."""
    policy = PhaseAware(raise_deadband_w=4)
    held, seen = 700.0, []
    for flicker_w in [0, 1, -1, 1, 0, 1, -1, -1, 0, 1] * 3:
        snapshot = rack([(PREFILL, LOW, 1)], 500 + flicker_w, held_w=held)
        held = float(policy.decide(snapshot, 0.0).cap_w[0])
        seen.append(held)
    assert seen == [500.0] * 2 + [499.0] * (len(seen) - 2)
    grown = rack([(PREFILL, LOW, 1)], 503, held_w=held)
    assert policy.decide(grown, 0.0).cap_w.tolist() == [503]


def test_a_waiting_raise_never_keeps_a_cap_below_its_cliff() -> None:
    for held in range(344, 352):
        last = 0
        for allowance_w in range(340, 360):
            cap = int(PhaseAware().decide(rack([(PREFILL, LOW, 1)], allowance_w, held_w=held), 0.0).cap_w[0])
            assert cap >= last and (cap >= 350 or allowance_w < 350)
            last = cap


def test_reasons_name_who_is_short() -> None:
    texts = {r.phase: r.text for r in PhaseAware().decide(rack(MIXED, FLOORS_W + 700), 0.0).reasons if r.priority == HIGH}
    assert texts[PREFILL] == "gives to rack: 50% of the way from cliff to natural draw"
    assert texts[DECODE] == "gives to rack: 0% of the way from cliff to natural draw"
    short = PhaseAware().decide(rack(MIXED, 3_990), 0.0).reasons
    assert all("rack misses 10 W" in r.text for r in some(r for r in short if r.phase is not IDLE))
    below = PhaseAware().decide(rack(MIXED, 4_600), 0.0).reasons
    assert {r.text for r in below if r.priority == HIGH} == {
        "below its cliff, 50% of the way up from minimum: the cliffs do not all fit in rack"
    }
    for posture, text in (
        (Posture.SHED, "at its cliff: posture Shed in rack"),
        (Posture.BRAKE, "brake in rack: minimum cap"),
    ):
        said = PhaseAware().decide(rack(MIXED, 99_999, posture=posture), 0.0).reasons
        assert text in {r.text for r in said}
    assert {r.text for r in Uniform().decide(rack(MIXED, 10_000), 0.0).reasons} == {"an equal share of rack"}
    assert {r.text for r in Uniform().decide(rack(MIXED, 99_999), 0.0).reasons} == {"maximum cap"}
    assert {r.text for r in Uniform().decide(rack(MIXED, 3_990), 0.0).reasons} == {"minimum cap; rack misses 10 W even so"}
    assert {r.text for r in Uniform().decide(rack(MIXED, 9_999, posture=Posture.BRAKE), 0.0).reasons} == {
        "brake in rack: minimum cap"
    }


def test_bad_input_says_what_to_change() -> None:
    snapshot = rack([(PREFILL, LOW, 2)], 1_000)
    empty = replace(snapshot, gpus=replace(snapshot.gpus, min_w=np.array([200.0, 350.2]), max_w=np.array([700.0, 350.8])))
    with pytest.raises(ValueError, match=r"GPU row 1: no whole watt lies between min_w 350\.2 and max_w 350\.8"):
        PhaseAware().decide(empty, 0.0)
    with pytest.raises(ValueError, match="sort them"):
        forest_of(np.array([1, -1], dtype=np.int32))
    with pytest.raises(ValueError, match="0 or more"):
        PhaseAware(raise_deadband_w=-1)


def test_no_gpus_at_all() -> None:
    nothing = rack([], 1_000)
    for policy in (Uniform(), PhaseAware()):
        decision = policy.decide(nothing, 0.0)
        assert decision.cap_w.size == 0 and decision.reasons == () and not decision.short_w.any()


def test_sums_of_80_000_doubles_stay_within_every_allowance() -> None:
    fleet = bench_allocator.snapshot(80_000)
    for policy in (Uniform(), PhaseAware()):
        check_decision(fleet, policy.decide(fleet, 0.0))
    exact = replace(fleet, budgets=replace(fleet.budgets, allowance_w=fleet.budgets.allowance_w * 0 + 1.04 * 80_000 * 333))
    assert set(Uniform().decide(exact, 0.0).cap_w.tolist()) <= {332, 333}


def test_the_benchmark_names_its_figures() -> None:
    figures = bench_allocator.measure(repeats=1)
    assert {f"allocator_{size}_ms" for size in (64, 1_000, 80_000)} < figures.keys()
    assert all(value > 0 for value in figures.values())


def test_a_sum_that_rounding_alone_put_above_its_allowance_loses_its_last_watt() -> None:
    filling = Filling(rack([(PREFILL, LOW, 4)], 4 * 400 - 1e-3))
    filling.level_w = np.full(4, 400.0)
    assert filling.caps_w().tolist() == [399] * 4
    filling.level_w = np.full(4, 399.0)
    assert filling.caps_w().tolist() == [399] * 4
