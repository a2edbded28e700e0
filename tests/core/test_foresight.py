"""Looking ahead of a meter: what locks, what lets go, what is learned. Readings once a second, load in shares of the limit."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from splitwatt_core.policies.foresight import BIN, COUNT, LEVEL, ForesightSettings, Outlook, look

LIMIT_W = 1000.0
FIXED_W = np.full(11, 200.0)
SCALED_W = np.linspace(1000.0, 600.0, 11)
"""Power at position k: 200 W + (1000 - 40 k) W times the load."""
QUIET = ForesightSettings(first_spike=0.0, spike_quantile=0.5, tail=1.0)
"""Hardly a spike: the least bin's edge."""


def see(outlook: Outlook, now_s: float, reading_w: float, settings: ForesightSettings = QUIET) -> Outlook:
    return look(outlook, now_s=now_s, reading_w=reading_w, limit_w=LIMIT_W, fixed_w=FIXED_W, scaled_w=SCALED_W, settings=settings)


def power_w(position: int, load: float) -> float:
    return float(FIXED_W[position] + SCALED_W[position] * load)


def play(loads: list[float], settings: ForesightSettings = QUIET, outlook: Outlook | None = None) -> list[Outlook]:
    """Readings of the true power under the locks of `effect_s` ago, one each second."""
    outlook = outlook or Outlook()
    lag = round(settings.effect_s)
    seen: list[Outlook] = []
    for k, load in enumerate(loads):
        in_force = seen[k - lag].position if k >= lag else outlook.position
        seen.append(see(seen[-1] if seen else outlook, float(k), power_w(in_force, load), settings))
    return seen


def test_a_steady_load_takes_the_least_lock_that_keeps_the_limit_and_stays_there() -> None:
    # 0.9: 1100 W unlocked; 200 + (1000 - 40 k) 0.9 <= 1000 asks for k >= 2.8, and a spike of a thousandth changes nothing.
    positions = [o.position for o in play([0.9] * 120)]
    assert positions == [3] * 120


def test_a_locks_own_effect_is_not_taken_for_less_load() -> None:
    last = play([0.9] * 60)[-1]
    assert float(last.state[LEVEL]) == pytest.approx(0.9, abs=1e-9)


def first_lock(seen: list[Outlook]) -> int:
    return next(k for k, outlook in enumerate(seen) if outlook.position > 0)


def test_a_rise_is_met_before_it_comes() -> None:
    # 0.5 % of the load a second from 0.6 on: unlocked, the limit would be crossed at 0.8, after 40 s.
    loads = [0.6] * 60 + [0.6 + 0.005 * i for i in range(45)]
    seen = play(loads)
    assert loads[first_lock(seen)] < 0.8 - 0.005 * QUIET.effect_s / 2
    lag = round(QUIET.effect_s)
    drawn = [power_w(seen[max(k - lag, 0)].position, load) for k, load in enumerate(loads)]
    assert max(drawn) <= LIMIT_W
    assert first_lock(play(loads, replace(QUIET, slope_s=1e9))) > first_lock(seen)


def test_locks_deepen_at_once_and_are_let_go_late_and_slowly() -> None:
    seen = play([0.5] * 30 + [1.1] * 30 + [0.5] * 300)
    positions = [o.position for o in seen]
    assert positions[29] == 0
    # The smoothed level follows in a few of its time constants; nothing bounds a step.
    assert max(np.diff(positions)) >= 3
    deepest = max(positions)
    let_go = next(k for k in range(60, 360) if positions[k] < deepest)
    assert let_go - 60 >= QUIET.dwell_s
    falling = positions[let_go:]
    assert falling[-1] == 0
    assert all(b - a >= -1 for a, b in itertools.pairwise(falling))
    assert len([1 for a, b in itertools.pairwise(falling) if b < a]) == deepest - 1
    # One position in 1 / release_per_s seconds, not one a second.
    assert falling.index(0) >= (deepest - 2) / QUIET.release_per_s


def test_no_reading_changes_nothing_and_the_dwell_begins_anew() -> None:
    settings = replace(QUIET, dwell_s=10.0, release_per_s=10.0)
    seen = play([1.0] * 30 + [0.3] * 5, settings)
    held = seen[-1].position
    assert held > 0
    outlook = seen[-1]
    for k in range(35, 1035):
        outlook = see(outlook, float(k), math.nan, settings)
        assert outlook.position == held
    back = see(outlook, 1035.0, power_w(held, 0.3), settings)
    assert back.position == held
    for k in range(1036, 1036 + round(settings.dwell_s) - 2):
        back = see(back, float(k), power_w(held, 0.3), settings)
        assert back.position == held


def test_the_spike_is_learned_from_what_exceeded_earlier_predictions() -> None:
    rng = np.random.default_rng(5)
    noisy = (0.64 + 0.02 * rng.standard_normal(4000)).tolist()
    settings = ForesightSettings(first_spike=0.3, learnt_after=1000, memory_s=3600.0)
    seen = play(noisy, settings)
    # The prior of 0.3 * sqrt(0.64) asks for locks until enough was seen; what was learned does not.
    assert seen[500].position > 0
    assert seen[-1].position == 0
    assert seen[-1].state[COUNT] > 3900
    counts = seen[-1].histogram
    mean = float((counts * (np.arange(len(counts)) + 0.5)).sum() / counts.sum()) * BIN
    # Of five readings with sigma 0.02 the highest lies about 1.16 sigma above their mean: 0.023, over root 0.8.
    assert mean == pytest.approx(0.029, abs=0.006)


def test_a_start_with_locks_in_force_keeps_them_until_they_are_needless() -> None:
    outlook = Outlook.at(7)
    seen = play([0.3] * 70, QUIET, outlook)
    assert [o.position for o in seen[: round(QUIET.dwell_s)]] == [7] * round(QUIET.dwell_s)
    assert seen[-1].position < 7


@pytest.mark.parametrize(("fixed_w", "scaled_w"), [([0.0], [1.0, 1.0]), ([], []), ([0.0, 0.0], [1.0, 0.0]), ([0.0], [math.nan])])
def test_ladders_without_sense_are_refused(fixed_w: list[float], scaled_w: list[float]) -> None:
    with pytest.raises(ValueError, match="ladder"):
        look(
            Outlook(), now_s=0.0, reading_w=1.0, limit_w=1.0, fixed_w=np.array(fixed_w), scaled_w=np.array(scaled_w),
            settings=QUIET,
        )  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [{"horizon_s": 0.0}, {"tail": 0.5}, {"spike_quantile": 1.0}, {"dwell_s": -1.0}, {"memory_s": math.inf}],
)
def test_settings_without_sense_are_refused(change: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"must|or more"):
        ForesightSettings(**change)  # type: ignore[arg-type]


readings = st.lists(st.one_of(st.floats(0.0, 2500.0), st.just(math.nan)), min_size=1, max_size=80)


@given(readings, st.integers(0, 10))
def test_decisions_are_pure_and_within_the_ladder(values: list[float], start: int) -> None:
    def run() -> list[Outlook]:
        seen = [Outlook.at(start)]
        for k, value in enumerate(values):
            before = [a.copy() for a in (seen[-1].state, seen[-1].ring, seen[-1].histogram)]
            seen.append(see(seen[-1], float(k), value))
            now = (seen[-2].state, seen[-2].ring, seen[-2].histogram)
            assert all(np.array_equal(a, b, equal_nan=True) for a, b in zip(before, now, strict=True))
        return seen

    first, second = run(), run()
    assert [o.position for o in first] == [o.position for o in second]
    assert all(0 <= o.position < len(FIXED_W) for o in first)
    # Nothing is let go within the dwell, and never without a reading.
    for k, value in enumerate(values):
        if math.isnan(value) or k < QUIET.dwell_s:
            assert first[k + 1].position >= first[k].position


@given(st.floats(0.0, 1.5), st.floats(0.0, 1.5), st.integers(0, 10))
def test_a_higher_first_reading_never_locks_less(a: float, b: float, start: int) -> None:
    low, high = sorted((a, b))
    first = see(Outlook.at(start), 0.0, power_w(start, low)).position
    assert see(Outlook.at(start), 0.0, power_w(start, high)).position >= first


@given(st.floats(0.0, 1.2))
def test_a_lock_that_keeps_the_limit_is_found_where_there_is_one(load: float) -> None:
    position = see(Outlook(), 0.0, power_w(0, load)).position
    reckoned = load + BIN * math.sqrt(max(load, 1e-6))
    assert position == len(FIXED_W) - 1 or power_w(position, reckoned) <= LIMIT_W + 1e-6 or power_w(position, load) <= LIMIT_W
    if position > 0:
        assert power_w(position - 1, reckoned) > LIMIT_W - 1e-6


def test_nothing_is_learned_from_the_first_guesses() -> None:
    """A start into a rising load: level and slope do not know it yet, which is no spike of it."""
    rising = [0.1 + 0.01 * min(k, 30) for k in range(600)]
    last = play(rising)[-1]
    assert last.state[COUNT] > 400 and last.histogram[int(0.02 / BIN) :].sum() == 0.0


def test_readings_years_apart_are_no_error() -> None:
    first = see(Outlook(), 0.0, 500.0)
    assert see(first, 3e9, 500.0).position == first.position


def test_a_decision_whose_horizon_had_no_reading_teaches_nothing() -> None:
    outlook = play([0.5] * 60)[-1]
    known = outlook.state[COUNT]
    for k in range(60, 70):
        outlook = see(outlook, float(k), math.nan)
    after = see(outlook, 70.0, power_w(0, 0.5))
    # Of the last decisions those before the gap had readings within their horizon; the last one had none.
    assert known <= after.state[COUNT] < known + QUIET.horizon_s
    assert after.position == 0
