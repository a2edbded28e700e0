"""Locks ahead of the meter: the order of the ladder, nothing loosened on silence, and a lock before the limit is crossed."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from splitwatt_core.columns import MeterColumns, PhaseCode, Posture
from splitwatt_core.policies.clocks import lock_at, looser, power_share, share_of_power
from splitwatt_core.policies.foresight import LEVEL, ForesightSettings
from splitwatt_core.policies.lookout import NOISE_RATIO, NOISE_S, STEPS_PER_CLASS, Watch
from splitwatt_core.policies.phase_aware import PhaseAware, Remembered
from splitwatt_core.policies.signature import Decision, PowerSnapshot, check_decision
from support.forests import (
    DECODE,
    HIGH,
    IDLE,
    IDLE_W,
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
from support.sizes import sized

SETTINGS = ForesightSettings()
POLICY = PhaseAware(foresight=SETTINGS)
PLAIN = PhaseAware()
NAN = math.nan
MIXED = [(PREFILL, HIGH, 4), (DECODE, HIGH, 4), (PREFILL, LOW, 4), (DECODE, LOW, 4), (IDLE, 0, 2)]
HIGH_PREFILL, DECODES, LOW_PREFILL = slice(0, 4), [4, 5, 6, 7, 12, 13, 14, 15], slice(8, 12)
ALL_W = 8 * 700 + 8 * 399 + 2 * 200
"""What MIXED may draw where there is room; a reading above it tells of undeclared watts."""
FLOOR_MHZ = int(TOP_MHZ * 0.769)


def mixed(before: object = 0, *, posture: Posture = Posture.NORMAL) -> PowerSnapshot:
    """Everything is granted already that fits without a limit in sight."""
    bare = rack(MIXED, 99_999, posture=posture)
    return granted(clocked(bare, before), replace(PLAIN.decide(bare, 0.0), max_clock_mhz=_locks(before, 18), memory=None))


def _locks(of: object, size: int) -> np.ndarray:
    return np.broadcast_to(np.asarray(of, dtype=np.int32), size).copy()


def read(snapshot: PowerSnapshot, measured_w: float, limit_w: float, rest_w: float = 0.0) -> PowerSnapshot:
    size = len(snapshot.budgets.names)
    columns = (np.full(size, value) for value in (limit_w, measured_w, rest_w))
    return replace(snapshot, meter=MeterColumns(*columns))


def watch(decision: Decision) -> Watch:
    assert isinstance(decision.memory, Remembered)
    ((_, kept),) = decision.memory.watches
    return kept


def play(
    snapshot: PowerSnapshot, readings: list[float], limit_w: float, policy: PhaseAware = POLICY, start_s: float = 0.0
) -> list[Decision]:
    """A decision a second, each granted before the next."""
    made = []
    for i, reading_w in enumerate(readings):
        made.append(policy.decide(read(snapshot, reading_w, limit_w), start_s + i))
        snapshot = granted(snapshot, made[-1])
    return made


# ------------------------------------------------------------------------------------------------------- watts of clocks


@given(st.floats(0.1, 1.0), st.floats(1.0, 4.0), st.floats(0.3, 1.0))
def test_watts_of_clocks_and_clocks_of_watts_are_inverse_and_monotone(share: float, exponent: float, floor: float) -> None:
    base = clocked(rack([(PREFILL, LOW, 2)], 1_000)).clocks
    assert base is not None
    clocks = replace(base, exponent=np.full(2, exponent), voltage_floor=np.full(2, floor))
    power = power_share(clocks, np.array([share, share * 0.9]))
    assert power[1] < power[0] <= 1.0
    assert share_of_power(clocks, power) == pytest.approx([share, share * 0.9])


def test_locks_are_whole_within_the_range_and_none_at_the_top() -> None:
    clocks = clocked(rack([(PREFILL, LOW, 5)], 1_000), 0, [2000.0, 2000.0, 2000.0, 2000.0, 0.0]).clocks
    assert clocks is not None
    locks = lock_at(clocks, np.array([1.0, 0.9999, 0.5003, 0.01, 0.5]))
    assert locks.tolist() == [0, 1999, 1000, int(MIN_MHZ), 0]


# ------------------------------------------------------------------------------------------------------------- the order


def test_the_lowest_classs_prefill_goes_first_then_the_next_and_decode_never() -> None:
    """Ever more undeclared watts: each class goes all its way down before the next begins."""
    limit_w = ALL_W + 1500.0
    seen: list[tuple[int, int]] = []
    for extra_w in range(0, 6000, 100):
        locks = play(mixed(), [ALL_W + extra_w] * 2, limit_w)[-1].max_clock_mhz
        assert not locks[DECODES].any() and not locks[16:].any()
        (low,), (high,) = set(locks[LOW_PREFILL].tolist()), set(locks[HIGH_PREFILL].tolist())
        assert not high or low == FLOOR_MHZ
        seen.append((low or 9999, high or 9999))
    assert seen == sorted(seen, reverse=True) and len(set(seen)) > STEPS_PER_CLASS
    assert seen[0] == (9999, 9999) and seen[-1] == (FLOOR_MHZ, FLOOR_MHZ)


def test_a_brake_locks_everybody_at_work_at_the_clock_of_its_minimum_cap() -> None:
    decision = POLICY.decide(read(mixed(posture=Posture.BRAKE), ALL_W, 1e6), 0.0)
    prefill = TOP_MHZ * 0.769 * ((200 - IDLE_W) / (700 - IDLE_W)) / 0.769**3
    decode = TOP_MHZ * 0.769 * ((200 - IDLE_W) / (380 - IDLE_W)) / 0.769**3
    locks = decision.max_clock_mhz
    assert set(locks[HIGH_PREFILL].tolist()) == set(locks[LOW_PREFILL].tolist()) == {int(prefill)}
    assert set(locks[DECODES].tolist()) == {int(decode)} and not locks[16:].any()


def test_reasons_say_who_is_locked() -> None:
    _, decision = play(mixed(), [ALL_W + 1400.0] * 2, ALL_W + 1500.0)
    locked = {(r.phase, r.priority) for r in decision.reasons if r.text.endswith("; clock locked")}
    assert (PREFILL, LOW) in locked and not {(DECODE, LOW), (DECODE, HIGH)} & locked


# ---------------------------------------------------------------------------------------------------------- when it locks


@given(st.lists(st.floats(0, ALL_W), min_size=1, max_size=12), st.sampled_from([ALL_W, ALL_W + 300.0]))
def test_what_caps_allow_calls_for_no_lock_however_it_rises(readings: list[float], limit_w: float) -> None:
    for decision in play(mixed(), readings, limit_w):
        assert not decision.max_clock_mhz.any()


def test_caps_that_just_fell_explain_what_the_meter_still_shows() -> None:
    """The root gives 3 kW to another tree: caps fall at once, and the meter follows seconds later."""
    before = mixed()
    first = POLICY.decide(read(before, ALL_W, ALL_W), 0.0)
    less = granted(before, first)
    less = replace(less, budgets=replace(less.budgets, allowance_w=np.array([1e6, ALL_W - 3000.0])))
    for second in range(1, 5):
        decision = POLICY.decide(read(less, ALL_W, ALL_W), float(second))
        assert not decision.max_clock_mhz.any()
        less = granted(less, decision)
    for second in range(5, 12):
        decision = POLICY.decide(read(less, ALL_W, ALL_W), float(second))
        less = granted(less, decision)
    assert decision.max_clock_mhz[LOW_PREFILL].all(), "what lasts was not declared"


def test_of_a_rest_that_nobody_names_all_that_is_withheld_counts() -> None:
    snapshot = mixed()
    snapshot = replace(snapshot, budgets=replace(snapshot.budgets, allowance_w=np.array([ALL_W, ALL_W])))
    limit_w = ALL_W + 500.0
    believed_w = limit_w * (1 + NOISE_RATIO)
    for reading_w, locks in ((believed_w - 1.0, False), (believed_w + 1.0, True)):
        first = POLICY.decide(metered(snapshot, limit_w, reading_w), 0.0)
        assert not first.max_clock_mhz.any(), "one reading is noise"
        after = replace(metered(snapshot, limit_w, reading_w), memory=first.memory)
        assert POLICY.decide(after, NOISE_S).max_clock_mhz.any() == locks


def test_a_noisy_meter_of_a_full_fleet_locks_nobody() -> None:
    """Caps stand at the limit, and the meter strays around it with a standard deviation of a hundredth."""
    noise = np.random.default_rng(3).normal(0.0, 0.01, 600)
    for decision in play(mixed(), (ALL_W * (1 + noise)).tolist(), ALL_W):
        assert not decision.max_clock_mhz.any()


# ------------------------------------------------------------------------------------------- silence, dwell, beginnings


locks_before = st.lists(st.sampled_from([0, 300, 900, 1550, 1700, 1950]), min_size=18, max_size=18)
runs = st.lists(st.tuples(st.one_of(st.just(NAN), st.floats(0, 14_000)), st.integers(1, 25)), min_size=1, max_size=6).map(
    lambda many: [reading for reading, count in many for _ in range(count)]
)


@settings(max_examples=sized(60))
@given(runs, locks_before, st.sampled_from([ALL_W + 200.0, ALL_W + 1500.0]))
def test_nothing_is_loosened_on_silence_nor_before_a_whole_dwell_of_readings(
    readings: list[float], before: list[int], limit_w: float
) -> None:
    snapshot = mixed(before)
    locks = [_locks(before, 18), *(d.max_clock_mhz for d in play(snapshot, readings, limit_w))]
    works = snapshot.gpus.phase != PhaseCode.UNASSIGNED
    spoken = 0
    for reading, (old, new) in zip(readings, pairwise(locks), strict=True):
        if math.isnan(reading):
            assert not looser(new, old).any()
            spoken = 0
            continue
        spoken += 1
        if spoken < SETTINGS.dwell_s:
            assert not (looser(new, old) & works).any()


@settings(max_examples=sized(60))
@given(runs, locks_before)
def test_equal_inputs_give_equal_outputs(readings: list[float], before: list[int]) -> None:
    one, other = (play(mixed(before), readings, ALL_W + 900.0) for _ in range(2))
    for a, b in zip(one, other, strict=True):
        assert np.array_equal(a.max_clock_mhz, b.max_clock_mhz) and np.array_equal(a.cap_w, b.cap_w)
        assert a.reasons == b.reasons


@given(snapshots(), st.data())
def test_for_any_forest_caps_are_those_without_locks_and_locks_within_range(snapshot: PowerSnapshot, data: st.DataObject) -> None:
    size = len(snapshot.gpus.leaf)
    before = data.draw(st.lists(st.sampled_from([0, 500, 1500, 1900]), min_size=size, max_size=size))
    tops = data.draw(st.lists(st.sampled_from([0.0, TOP_MHZ]), min_size=size, max_size=size))
    snapshot = clocked(snapshot, before, tops)
    for second in range(3):
        reading_w = data.draw(st.one_of(st.just(NAN), st.floats(0, 20_000)))
        shown = metered(snapshot, data.draw(st.floats(1, 20_000)), reading_w)
        decision = POLICY.decide(shown, float(second))
        check_decision(shown, decision)
        assert np.array_equal(decision.cap_w, PLAIN.decide(shown, float(second)).cap_w)
        new = decision.max_clock_mhz
        assert bool(np.all((new == 0) | ((new >= MIN_MHZ) & (new < TOP_MHZ))))
        assert np.array_equal(new[np.array(tops) == 0], np.array(before, dtype=np.int32)[np.array(tops) == 0])
        if math.isnan(reading_w):
            assert not looser(new, np.array(before, dtype=np.int32)).any()
        before, snapshot = new.tolist(), granted(snapshot, decision)


@pytest.mark.parametrize(
    ("low", "high", "position", "inherits"),
    [
        (0, 0, 0, False),
        (1999, 0, 1, False),
        (1800, 0, 4, False),
        (FLOOR_MHZ, 0, 8, False),
        (900, 0, 8, True),  # deeper than the ladder goes
        (FLOOR_MHZ, 1990, 9, False),
        (0, 1800, 12, False),  # at this position the lower class stands at its floor
    ],
)
def test_a_first_decision_begins_where_the_locks_are(low: int, high: int, position: int, inherits: bool) -> None:
    before = [high] * 4 + [0] * 4 + [low] * 4 + [0] * 6
    for reading_w in (NAN, 5_000.0):
        (decision,) = play(mixed(before), [reading_w], ALL_W)
        kept = watch(decision)
        assert (kept.outlook.position, kept.inherited_s is not None) == (position, inherits)
        assert not looser(decision.max_clock_mhz, _locks(before, 18)).any()


def test_locks_that_no_position_knows_stay_for_a_dwell_of_readings() -> None:
    """Decode locked by another policy, or by a brake before this operator started."""
    before = [0] * 4 + [1200] * 4 + [0] * 10
    made = play(mixed(before), [NAN] * 30 + [5_000.0] * 90, ALL_W)
    decode = [int(d.max_clock_mhz[4]) for d in made]
    held = 29 + int(SETTINGS.dwell_s)  # the last silent second is the first of the dwell
    assert decode == [1200] * held + [0] * (120 - held)


def test_another_class_at_work_begins_another_ladder_where_the_locks_are_and_keeps_what_was_learned() -> None:
    limit_w = ALL_W + 1500.0
    made = play(mixed(), [ALL_W - 1000.0] * 60 + [ALL_W + 900.0] * 2, limit_w)
    old = watch(made[-1])
    assert 0 < old.outlook.position < STEPS_PER_CLASS + 1 and old.outlook.histogram.sum() > 0
    grown = granted(mixed(), made[-1])
    priority = grown.gpus.priority.copy()
    priority[8] = LOW - 1
    grown = replace(grown, gpus=replace(grown.gpus, priority=priority))
    decision = POLICY.decide(read(grown, NAN, limit_w), 62.0)
    new = watch(decision)
    assert (old.classes, new.classes) == ((LOW, HIGH), (LOW - 1, LOW, HIGH))
    assert new.outlook.position == old.outlook.position + STEPS_PER_CLASS
    assert np.array_equal(new.outlook.histogram, old.outlook.histogram)
    assert not looser(decision.max_clock_mhz, made[-1].max_clock_mhz).any()


def test_nobody_at_work_is_nobody_to_lock() -> None:
    idle = metered(clocked(rack([(IDLE, 0, 3)], 5_000)), 1_000.0, 2_000.0)
    assert not POLICY.decide(idle, 0.0).max_clock_mhz.any()
    none = metered(clocked(rack([], 5_000)), 1_000.0, 2_000.0)
    assert POLICY.decide(none, 0.0).max_clock_mhz.size == 0


def test_without_settings_or_columns_nothing_is_locked() -> None:
    loud = read(mixed(), 9_999.0, 9_000.0)
    assert POLICY.decide(loud, 0.0).max_clock_mhz.any()
    for policy, snapshot in (
        (PLAIN, loud),
        (POLICY, replace(loud, meter=None)),
        (POLICY, replace(loud, clocks=None)),
    ):
        assert not policy.decide(snapshot, 0.0).max_clock_mhz.any()


# ------------------------------------------------------------------------------------------------------- a rising meter


@dataclass
class Plant:
    """Four classes of GPUs at full load behind a meter that is a second and a half old, and locks that act after one."""

    policy: PhaseAware
    limit_w: float
    undeclared_w: Callable[[float], float]
    saves: float = 1.0
    """What a lock saves, as a share of what the model says."""

    def run(self, seconds: int) -> tuple[list[float], list[np.ndarray]]:
        """True draw and the locks decided, second by second."""
        snapshot, drawn, decided = mixed(), [], [np.zeros(18, dtype=np.int32)]
        gpus, clocks = snapshot.gpus, snapshot.clocks
        assert clocks is not None
        works = gpus.phase != PhaseCode.UNASSIGNED
        for second in range(seconds):
            lock = decided[max(len(decided) - 2, 0)]
            share = np.where(lock > 0, lock / clocks.top_mhz, 1.0)
            left = 1.0 - self.saves * (1.0 - power_share(clocks, share))
            wants_w = np.where(works, IDLE_W + (gpus.natural_w - IDLE_W) * left, IDLE_W)
            drawn.append(float(np.minimum(wants_w, gpus.cap_w).sum()) + self.undeclared_w(second))
            shown_w = np.interp(second - 1.5, np.arange(second + 1), drawn)
            decision = self.policy.decide(read(snapshot, float(shown_w), self.limit_w), float(second))
            decided.append(decision.max_clock_mhz)
            snapshot = granted(snapshot, decision)
        return drawn, decided


FULL_W = 8 * 700 + 8 * 380 + 2 * IDLE_W


@pytest.mark.parametrize("rate_w_per_s", [5.0, 20.0, 60.0])
def test_undeclared_watts_that_rise_are_met_before_the_limit_is_crossed(rate_w_per_s: float) -> None:
    limit_w = ALL_W + 800.0
    most_w = limit_w + 900.0 - FULL_W
    rising = [min(rate_w_per_s * second, most_w) for second in range(400)]
    plain, _ = Plant(PLAIN, limit_w, lambda second: rising[int(second)]).run(300)
    drawn, locks = Plant(POLICY, limit_w, lambda second: rising[int(second)]).run(300)
    assert max(plain) > limit_w, "without locks it is crossed"
    assert max(drawn) <= limit_w
    first = next(i for i, lock in enumerate(locks) if lock.any())
    assert drawn[first] < limit_w and not locks[-1][DECODES].any()


def test_when_the_surge_is_over_locks_go_one_position_at_a_time() -> None:
    limit_w = ALL_W + 800.0
    _, locks = Plant(POLICY, limit_w, lambda second: 1500.0 if 10 <= second < 60 else 0.0).run(280)
    low = np.array([int(lock[8]) or int(TOP_MHZ) for lock in locks])
    assert low[55] < TOP_MHZ and low[-1] == TOP_MHZ
    back = np.diff(low[60:])
    moves = np.flatnonzero(back)
    assert (back >= 0).all() and back.max() <= (TOP_MHZ - FLOOR_MHZ) / STEPS_PER_CLASS + 2
    assert moves[0] >= SETTINGS.dwell_s and np.diff(moves).min() >= 1 / SETTINGS.release_per_s - 1


@pytest.mark.parametrize("saves", [0.0, 0.5])
def test_locks_that_save_less_than_the_model_says_are_let_go_when_the_surge_is_over(saves: float) -> None:
    """Thought away, they would make every reading look like a surge for ever."""
    _, locks = Plant(POLICY, ALL_W + 800.0, lambda second: 1500.0 if 60 <= second < 90 else 0.0, saves).run(400)
    assert any(lock.any() for lock in locks[60:95]) and not locks[-1].any()


def test_the_fleets_own_cut_is_not_learned_as_a_rise_of_its_load() -> None:
    """A root's GPUs give 4 kW to another tree for a minute; then undeclared watts take a part of what is spare."""

    def after(cut: bool) -> int:
        limit_w, snapshot, drawn = ALL_W + 800.0, mixed(), []
        gpus = snapshot.gpus
        works = gpus.phase != PhaseCode.UNASSIGNED
        for second in range(300):
            allowance_w = ALL_W - 4000.0 if cut and 150 <= second < 210 else 99_999.0
            snapshot = replace(snapshot, budgets=replace(snapshot.budgets, allowance_w=np.array([1e6, allowance_w])))
            wants_w = np.where(works, IDLE_W + 0.9 * (gpus.natural_w - IDLE_W), IDLE_W)
            drawn.append(float(np.minimum(wants_w, snapshot.gpus.cap_w).sum()))
            decision = POLICY.decide(read(snapshot, drawn[max(second - 2, 0)], limit_w), float(second))
            assert not decision.max_clock_mhz.any()
            snapshot = granted(snapshot, decision)
        for second in range(300, 303):
            decision = POLICY.decide(read(snapshot, ALL_W + 300.0, limit_w), float(second))
            snapshot = granted(snapshot, decision)
        return watch(decision).outlook.position

    assert 0 < after(cut=False) < STEPS_PER_CLASS
    assert after(cut=True) == after(cut=False)


def test_a_brakes_locks_are_let_go_after_a_dwell() -> None:
    braked = POLICY.decide(read(mixed(posture=Posture.BRAKE), ALL_W, 1e6), 0.0)
    snapshot = granted(mixed(), braked)
    for decision in play(snapshot, [5_000.0] * int(SETTINGS.dwell_s - 1), 1e6, start_s=1.0):
        assert not looser(decision.max_clock_mhz, braked.max_clock_mhz).any()
    assert not play(snapshot, [5_000.0] * int(SETTINGS.dwell_s + 2), 1e6, start_s=1.0)[-1].max_clock_mhz.any()


def test_a_clock_that_is_set_back_blinds_nobody() -> None:
    snapshot, limit_w = mixed(), ALL_W + 800.0
    for at_s in (1000.0, 400.0, 401.0):
        decision = POLICY.decide(read(snapshot, ALL_W + 700.0, limit_w), at_s)
        snapshot = granted(snapshot, decision)
    assert decision.max_clock_mhz[LOW_PREFILL].all()


def test_a_tree_that_joins_keeps_its_locks_for_a_dwell() -> None:
    """The root is calm and its ladder at the top; the GPUs that come stand under locks that no position of it knows."""
    snapshot = mixed()
    (made,) = play(snapshot, [5_000.0], 1e6)
    joined = granted(snapshot, made)
    assert joined.clocks is not None
    locked = joined.clocks.granted_mhz.copy()
    locked[LOW_PREFILL] = 1600
    joined = replace(joined, clocks=replace(joined.clocks, granted_mhz=locked))
    decisions = play(joined, [5_000.0] * int(SETTINGS.dwell_s + 3), 1e6, start_s=1.0)
    assert all((d.max_clock_mhz[LOW_PREFILL] == 1600).all() for d in decisions[: int(SETTINGS.dwell_s)])
    assert not decisions[-1].max_clock_mhz.any()


def test_a_reading_taken_under_a_brake_says_nothing_of_the_load() -> None:
    (before,) = play(mixed(), [8_000.0], 1e6)
    snapshot = granted(mixed(posture=Posture.BRAKE), before)
    during = watch(play(snapshot, [3_000.0] * 5, 1e6, start_s=1.0)[-1])
    assert during.outlook.state[LEVEL] == watch(before).outlook.state[LEVEL]


def test_every_second_reading_missing_hides_no_surge() -> None:
    made = play(mixed(), [ALL_W + 700.0, NAN] * 3, ALL_W + 800.0)
    assert made[-1].max_clock_mhz[LOW_PREFILL].all()
