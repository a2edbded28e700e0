"""`Polca` as a policy: Uniform's caps, and the locks of POLCA's own machine, never loosened without a reading."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from splitwatt_core.columns import PhaseCode
from splitwatt_core.policies.clocks import looser
from splitwatt_core.policies.polca import Polca, PolcaMemory
from splitwatt_core.policies.polca_table import (
    BRAKE_MHZ,
    HIGH_T2_MHZ,
    LOW_T1_MHZ,
    LOW_T2_MHZ,
    Level,
    PolcaSettings,
    PolcaState,
    RowPriority,
    step,
    translate_mhz,
)
from splitwatt_core.policies.signature import Decision, PowerSnapshot, check_decision
from splitwatt_core.policies.uniform import Uniform
from support.forests import (
    DECODE,
    HIGH,
    IDLE,
    LOW,
    MIN_MHZ,
    PREFILL,
    TOP_MHZ,
    clocked,
    granted,
    metered,
    rack,
    snapshots,
)

SETTINGS = PolcaSettings()
MIXED = [(PREFILL, HIGH, 2), (DECODE, LOW, 2), (IDLE, HIGH + 1, 1)]
LIMIT_W = 10_000.0
NAN = float("nan")

readings = st.lists(st.tuples(st.one_of(st.just(NAN), st.floats(0.5, 1.05)), st.integers(1, 30)), min_size=1, max_size=8).map(
    lambda runs: [share for share, count in runs for _ in range(count)]
)
"""Shares of the limit that stay for a while, and times without a reading."""
locked = st.sampled_from([0, 300, 408, 1500, 1574, 1809, 1851])


def here(paper_mhz: int) -> int:
    """A clock of the paper on the tests' GPU; no lock is no lock everywhere."""
    return translate_mhz(paper_mhz, top_clock_mhz=int(TOP_MHZ), min_clock_mhz=int(MIN_MHZ)) if paper_mhz else 0


def at(snapshot: PowerSnapshot, share: float) -> PowerSnapshot:
    return metered(snapshot, LIMIT_W, share * LIMIT_W)


def play(snapshot: PowerSnapshot, shares: list[float], period_s: float = 2.0) -> list[Decision]:
    """One decision for each reading, each granted before the next."""
    made = []
    for i, share in enumerate(shares):
        made.append(Polca().decide(at(snapshot, share), period_s * i))
        snapshot = granted(snapshot, made[-1])
    return made


def level(decision: Decision) -> Level:
    assert isinstance(decision.memory, PolcaMemory)
    ((_, machine),) = decision.memory.machines
    return machine.state.level


@given(snapshots(), st.data())
def test_its_caps_are_uniforms_and_its_locks_known(snapshot: PowerSnapshot, data: st.DataObject) -> None:
    size = len(snapshot.gpus.leaf)
    before = data.draw(st.lists(locked, min_size=size, max_size=size))
    tops = data.draw(st.lists(st.sampled_from([0.0, 1980.0, 1410.0]), min_size=size, max_size=size))
    snapshot = at(clocked(snapshot, before, tops), data.draw(st.floats(0, 2)))
    decision = Polca().decide(snapshot, 0.0)
    check_decision(snapshot, decision)
    assert np.array_equal(decision.cap_w, Uniform().decide(snapshot, 0.0).cap_w)
    for top, old, new in zip(tops, before, decision.max_clock_mhz.tolist(), strict=True):
        assert new == old or 0 <= new <= top
        assert top > 0 or new == old
    assert isinstance(decision.memory, PolcaMemory)
    assert len(decision.memory.machines) == int((snapshot.budgets.parent < 0).sum())


@given(readings)
def test_its_levels_and_locks_are_those_of_the_papers_machine(shares: list[float]) -> None:
    state = PolcaState()
    for i, (share, decision) in enumerate(zip(shares, play(clocked(rack(MIXED, 4_000)), shares), strict=True)):
        state, _ = step(state, None if np.isnan(share) else share, 2.0 * i, SETTINGS)
        assert level(decision) is state.level
        if state.level is Level.BRAKE:
            expected = [here(BRAKE_MHZ)] * 5
        else:
            high, low = (here(SETTINGS.standing_mhz(state.level, p)) for p in (RowPriority.HIGH, RowPriority.LOW))
            expected = [high, high, low, low, 0]
        assert decision.max_clock_mhz.tolist() == expected


@given(readings, st.lists(locked, min_size=5, max_size=5))
def test_nothing_is_loosened_without_a_reading_nor_before_the_machine_comes_to_a_milder_level(
    shares: list[float], before: list[int]
) -> None:
    snapshot = clocked(rack(MIXED, 4_000), before)
    decisions = play(snapshot, shares)
    locks = [np.array(before, dtype=np.int32), *(d.max_clock_mhz for d in decisions)]
    for share, (old, new) in zip(shares, pairwise(locks), strict=True):
        if np.isnan(share):
            assert not looser(new, old).any()
    works = snapshot.gpus.phase != PhaseCode.UNASSIGNED
    for one, next_ in pairwise(decisions):
        if level(next_) >= level(one):
            assert not (looser(next_.max_clock_mhz, one.max_clock_mhz) & works).any()


@given(st.lists(locked, min_size=5, max_size=5), st.floats(0.5, 1.0))
def test_a_first_decision_loosens_nothing_above_the_release_of_its_level(before: list[int], share: float) -> None:
    snapshot = clocked(rack(MIXED, 4_000), before)
    decision = Polca().decide(at(snapshot, share), 0.0)
    works = snapshot.gpus.phase != PhaseCode.UNASSIGNED
    eased = (looser(decision.max_clock_mhz, np.array(before, dtype=np.int32)) & works).any()
    assert not eased or share < SETTINGS.t2_release
    again = Polca().decide(at(snapshot, share), 0.0)
    assert np.array_equal(again.max_clock_mhz, decision.max_clock_mhz) and again.memory == decision.memory


@pytest.mark.parametrize(
    ("before", "begins"),
    [
        ([0, 0, 0, 0, 0], Level.FREE),
        ([0, 0, 0, 0, 1200], Level.FREE),  # nobody's work is slowed by the lock of an idle GPU
        ([0, 0, here(LOW_T1_MHZ), here(LOW_T1_MHZ), 0], Level.LOW_T1),
        ([0, 0, here(LOW_T2_MHZ), here(LOW_T2_MHZ), 0], Level.LOW_T2),
        ([0, 0, here(LOW_T1_MHZ), here(LOW_T2_MHZ), 0], Level.LOW_T2),
        ([here(HIGH_T2_MHZ), 0, 0, 0, 0], Level.ALL_T2),
        ([0, 0, 900, 900, 0], Level.LOW_T2),  # deeper than any level short of the brake: kept, and nobody is braked
        ([300, 0, 0, 0, 0], Level.ALL_T2),
        ([here(BRAKE_MHZ)] * 4 + [0], Level.BRAKE),
        ([300] * 5, Level.BRAKE),
    ],
)
def test_a_first_decision_begins_where_the_locks_are(before: list[int], begins: Level) -> None:
    snapshot = clocked(rack(MIXED, 4_000), before)
    decision = Polca().decide(at(snapshot, NAN), 1000.0)
    assert level(decision) is begins
    assert not looser(decision.max_clock_mhz, np.array(before, dtype=np.int32)).any()
    free = [i for i in range(4) if not before[i]]
    assert begins is Level.ALL_T2 or not decision.max_clock_mhz[free].any(), "nobody is locked because others are"


def test_inherited_locks_go_when_the_machine_comes_to_a_milder_level() -> None:
    snapshot = clocked(rack(MIXED, 4_000), [0, 0, 900, 900, 0])
    made = play(snapshot, [0.86, 0.88, 0.80, 0.70])
    assert [level(d) for d in made] == [Level.LOW_T2, Level.LOW_T2, Level.LOW_T1, Level.FREE]
    low = here(LOW_T1_MHZ)
    assert [d.max_clock_mhz.tolist()[2:4] for d in made] == [[900] * 2] * 2 + [[low, low], [0] * 2]


def test_one_class_alone_is_the_highest() -> None:
    (decision,) = play(clocked(rack([(PREFILL, LOW, 2), (IDLE, HIGH, 1)], 4_000)), [0.95])
    assert level(decision) is Level.LOW_T2 and not decision.max_clock_mhz.any()


def test_each_tree_has_a_machine_of_its_own_and_the_roots_meter_counts() -> None:
    one = clocked(rack([(PREFILL, HIGH, 2), (DECODE, LOW, 2)], 4_000))
    parent = np.array([-1, -1, 0], dtype=np.int32)
    budgets = replace(one.budgets, names=("row", "other", "rack"), parent=parent, allowance_w=np.full(3, 1e6))
    budgets = replace(budgets, posture=np.ones(3, dtype=np.int8))
    gpus = replace(one.gpus, leaf=np.array([2, 1, 2, 1], dtype=np.int32))
    both = metered(replace(one, budgets=budgets, gpus=gpus), LIMIT_W, 0.0)
    assert both.meter is not None
    both.meter.measured_w[:] = [8_500.0, 9_500.0, 9_900.0]
    decision = Polca().decide(both, 0.0)
    assert decision.max_clock_mhz.tolist() == [0, 0, here(LOW_T1_MHZ), here(LOW_T2_MHZ)]
    texts = {reason.leaf: reason.text for reason in decision.reasons}
    assert texts[2] == "maximum cap; low priority locked at T1"
    assert texts[1] == "maximum cap; low priority locked at T2"


def test_without_columns_of_clocks_it_is_uniform() -> None:
    bare = rack(MIXED, 4_000)
    assert not Polca().decide(bare, 0.0).max_clock_mhz.any() and Polca().decide(bare, 0.0).memory is None
    unmetered = Polca().decide(clocked(bare, 1500), 0.0)
    assert unmetered.max_clock_mhz.tolist() == [1500, 1500, 1500, 1500, 1500]
