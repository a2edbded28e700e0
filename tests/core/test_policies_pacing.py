"""Paced raises: each unit at its own moment, a step at a time, never above the target; down at once."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from splitwatt_core.policies.pacing import Pace, paced
from splitwatt_core.policies.phase_aware import PhaseAware
from splitwatt_core.policies.signature import PowerSnapshot, check_decision
from support.forests import DECODE, HIGH, LOW, PREFILL, granted, rack, snapshots

PACE = Pace(raise_w_per_s=150.0, slot_s=2.0)
STEP_W = 300
AT_ONCE, STEPPED = PhaseAware(), PhaseAware(pace=PACE)

paces = st.builds(Pace, raise_w_per_s=st.floats(1, 400), slot_s=st.floats(0.3, 5))
periods_s = st.lists(st.floats(0.01, 4), min_size=1, max_size=20)


def with_slots(snapshot: PowerSnapshot, seed: int) -> PowerSnapshot:
    """A moment for every group."""
    moments = np.random.default_rng(seed).random(int(snapshot.gpus.group.max(initial=0)) + 1)
    return replace(snapshot, slot=moments[snapshot.gpus.group])


@given(snapshots(), st.integers(0, 99), paces, periods_s)
def test_a_paced_cap_is_the_target_or_on_the_way_up_to_it(
    snapshot: PowerSnapshot, seed: int, pace: Pace, waits_s: list[float]
) -> None:
    policy, snapshot, now_s = PhaseAware(pace=pace), with_slots(snapshot, seed), 1000.0
    gpus = snapshot.gpus
    for wait_s in [0.0, *waits_s]:
        now_s += wait_s
        target = AT_ONCE.decide(snapshot, now_s)
        decision = policy.decide(snapshot, now_s)
        check_decision(snapshot, decision)
        assert np.array_equal(decision.short_w, target.short_w)
        for group in np.unique(gpus.group):
            mine = gpus.group == group
            caps, targets = set(decision.cap_w[mine].tolist()), set(target.cap_w[mine].tolist())
            assert len(caps) == len(targets) == 1
            (cap,), (wanted,) = caps, targets
            held = snapshot.gpus.cap_w[mine].min()
            if wanted <= held:
                assert cap == wanted, "down at once"
            else:
                floor = max(gpus.cliff_w[mine].max(), gpus.min_w[mine].max())
                assert min(wanted, held) <= cap <= min(wanted, max(held + pace.raise_w_per_s * pace.slot_s, floor))
                assert cap >= min(wanted, floor), "out of a collapse at once"
        snapshot = granted(snapshot, decision)


@given(snapshots(), st.integers(0, 99), st.floats(0.05, 1.5))
def test_everybody_arrives(snapshot: PowerSnapshot, seed: int, period_s: float) -> None:
    """1000 W are four steps of 300 W, each in a slot of its own, and the first slot may have begun already."""
    snapshot, now_s = with_slots(snapshot, seed), 1000.0
    for _ in range(int(6 * PACE.slot_s / period_s) + 2):
        decision = STEPPED.decide(snapshot, now_s)
        snapshot, now_s = granted(snapshot, decision), now_s + period_s
    assert np.array_equal(decision.cap_w, AT_ONCE.decide(snapshot, now_s).cap_w)
    assert not any("rising" in reason.text for reason in decision.reasons)


@given(paces, st.floats(0, 1), periods_s)
def test_each_slot_is_used_once_however_often_decisions_come(pace: Pace, moment: float, waits_s: list[float]) -> None:
    slot, last_s, rises, now_s = np.array([moment]), 1000.0, 0, 1000.0
    for wait_s in waits_s:
        now_s += wait_s
        rises += int(pace.due(slot, last_s=last_s, now_s=now_s)[0])
        last_s = now_s
    assert rises <= sum(waits_s) / pace.slot_s + 1 + 1e-6
    if max(waits_s) <= pace.slot_s:
        assert rises >= int(sum(waits_s) / pace.slot_s - 1e-6)


def test_a_fleet_rises_in_parts() -> None:
    """A hundred groups, a decision a second: in every second about half of them rise, and nobody twice in a row."""
    snapshot = with_slots(rack([(PREFILL, LOW, 100)], 99_999, held_w=350), 3)
    moved = []
    decision = STEPPED.decide(snapshot, 1000.0)
    assert decision.cap_w.tolist() == [350] * 100, "at a first decision nobody's moment has come"
    for second in range(1, 5):
        snapshot = granted(snapshot, decision)
        decision = STEPPED.decide(snapshot, 1000.0 + second)
        moved.append(decision.cap_w > snapshot.gpus.cap_w)
        assert np.max(decision.cap_w - snapshot.gpus.cap_w) <= STEP_W
    assert all(35 <= int(m.sum()) <= 65 for m in moved[:2])
    assert not any(bool(np.any(one & next_)) for one, next_ in pairwise(moved))
    assert decision.cap_w.tolist() == [700] * 100


def test_without_slots_all_rise_at_one_moment() -> None:
    snapshot = replace(rack([(PREFILL, LOW, 3)], 99_999, held_w=350), memory=STEPPED.decide(rack([], 0), 999.9).memory)
    assert STEPPED.decide(snapshot, 999.95).cap_w.tolist() == [350] * 3
    assert STEPPED.decide(snapshot, 1000.0).cap_w.tolist() == [650] * 3


def test_a_collapsed_phase_comes_up_to_its_cliff_at_once_and_then_waits() -> None:
    snapshot = rack([(PREFILL, HIGH, 2), (DECODE, LOW, 2)], 99_999, held_w=200)
    assert STEPPED.decide(snapshot, 1000.0).cap_w.tolist() == [350] * 4
    tight = rack([(PREFILL, HIGH, 2), (DECODE, LOW, 2)], 2 * 300 + 2 * 200, held_w=200)
    assert STEPPED.decide(tight, 1000.0).cap_w.tolist() == [300, 300, 200, 200], "as far as the budget has it"


def test_reasons_say_who_is_still_rising() -> None:
    snapshot = rack([(PREFILL, HIGH, 2), (DECODE, LOW, 2)], 99_999, held_w=380)
    texts = {reason.phase: reason.text for reason in STEPPED.decide(snapshot, 1000.0).reasons}
    assert texts == {PREFILL: "natural draw and margin; rising", DECODE: "natural draw and margin; rising"}
    held = replace(snapshot, gpus=replace(snapshot.gpus, cap_w=np.array([700.0, 700.0, 399.0, 390.0])))
    texts = {reason.phase: reason.text for reason in STEPPED.decide(held, 1000.0).reasons}
    assert texts == {PREFILL: "natural draw and margin", DECODE: "natural draw and margin; rising"}


def test_one_step_however_long_nothing_was_decided_and_a_clock_set_back_holds_nobody_for_long() -> None:
    slot = np.zeros(1)
    assert PACE.due(slot, last_s=1000.0, now_s=1002.0).tolist() == [True]
    assert not PACE.due(slot, last_s=1000.0, now_s=998.5).any(), "set back: a new slot has to come"
    caps = paced(
        PACE,
        cap_w=np.array([1000], dtype=np.int32),
        granted_w=np.array([100.5]),
        cliff_w=slot,
        min_w=slot,
        slot=slot,
        last_s=0.0,
        now_s=1e6,
    )
    assert caps.tolist() == [400]


@pytest.mark.parametrize("wrong", [{"raise_w_per_s": 0.0}, {"slot_s": -1.0}, {"slot_s": float("inf")}])
def test_a_pace_is_positive(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="positive and finite"):
        Pace(**wrong)
