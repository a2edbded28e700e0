"""Postures and corrections: what a budget's meter makes it do."""

from __future__ import annotations

import itertools

import pytest
from splitwatt_core.budget.meters.posture import (
    BRAKE_RATIO,
    CORRECTION_HOLD_S,
    RELEASE_DWELL_S,
    TABLE,
    Correction,
    MeasuredRatio,
    PostureState,
    Run,
    step_posture,
)
from splitwatt_core.columns import Posture
from splitwatt_core.policies.signature import CORRECTION_WINDOW_S

LIMIT_W = 1000.0


def play(*ratios: float | None, period_s: float = 1.0, state: PostureState | None = None) -> list[Posture]:
    """One sample a second, oldest first; None: no data."""
    state = state or PostureState(Posture.NORMAL)
    seen = []
    for i, ratio in enumerate(ratios):
        state = step_posture(state, None if ratio is None else MeasuredRatio(ratio, i * period_s), adopted=True)
        seen.append(state.posture)
    return seen


def test_a_budget_that_is_not_adopted_only_adopts() -> None:
    brake = PostureState(Posture.BRAKE, Run(0.0, 1.0, 2))
    assert step_posture(brake, MeasuredRatio(2.0, 3.0), adopted=False) == PostureState(Posture.ADOPTING)


def test_adoption_ends_in_normal_even_without_a_reading() -> None:
    assert step_posture(PostureState(), None, adopted=True).posture is Posture.NORMAL


def test_above_the_limit_it_trims_at_once_sheds_after_two_seconds_and_brakes_after_six() -> None:
    seen = play(*[1.01] * 8)
    assert seen == [Posture.TRIM] * 2 + [Posture.SHED] * 4 + [Posture.BRAKE] * 2


def test_far_above_the_limit_it_brakes_at_the_second_sample() -> None:
    far = BRAKE_RATIO + 0.01
    assert play(far, far) == [Posture.TRIM, Posture.BRAKE]
    assert play(far, far, period_s=0.1)[-1] is Posture.BRAKE, "whatever their distance"
    assert play(far, 1.01, far) == [Posture.TRIM, Posture.TRIM, Posture.SHED], "in a row"


@pytest.mark.parametrize("ratio", [1.03, 1.5, 65.0])
def test_one_sample_looked_at_many_times_is_one_sample(ratio: float) -> None:
    """A meter that answers once a minute."""
    state = PostureState(Posture.NORMAL)
    for sampled_s, shown in ((0.0, ratio), (60.0, 0.9), (120.0, 0.9)):
        for _ in range(60):
            state = step_posture(state, MeasuredRatio(shown, sampled_s), adopted=True)
            assert state.posture <= Posture.TRIM
    assert state.posture is Posture.NORMAL


def test_two_samples_a_minute_apart_are_enough_for_the_brake() -> None:
    assert play(1.03, 1.03, period_s=60.0) == [Posture.TRIM, Posture.BRAKE]


def test_what_is_not_firm_tightens_and_releases_nothing() -> None:
    state = PostureState(Posture.SHED)
    for second in range(60):
        state = step_posture(state, MeasuredRatio(0.3, float(second), firm=False), adopted=True)
    assert state.posture is Posture.SHED
    for second in range(60, 70):
        state = step_posture(state, MeasuredRatio(1.2, float(second), firm=False), adopted=True)
    assert state.posture is Posture.BRAKE


def test_a_clock_that_is_set_back_begins_the_count_anew() -> None:
    state = PostureState(Posture.NORMAL)
    for sampled_s in (100.0, 40.0):
        state = step_posture(state, MeasuredRatio(1.05, sampled_s), adopted=True)
    assert state.posture is Posture.TRIM
    assert step_posture(state, MeasuredRatio(1.05, 42.0), adopted=True).posture is Posture.SHED


def test_exactly_at_the_limit_nothing_happens() -> None:
    assert play(*[1.0] * 20) == [Posture.NORMAL] * 20


def test_a_moment_below_the_limit_begins_the_count_anew() -> None:
    assert play(1.01, 1.01, 0.99, 1.01, 1.01) == [Posture.TRIM] * 5


def test_it_comes_down_one_step_for_each_dwell_well_below_the_limit() -> None:
    seen = play(1.2, 1.2, *[0.9] * 35)
    steps = [i for i in range(1, len(seen)) if seen[i] is not seen[i - 1]]
    assert seen[steps[0]] is Posture.BRAKE and seen[-1] is Posture.NORMAL
    assert [b - a for a, b in itertools.pairwise(steps[1:])] == [RELEASE_DWELL_S] * 2
    assert seen[steps[1]] is Posture.SHED and seen[steps[2]] is Posture.TRIM


def test_between_release_and_limit_it_stays() -> None:
    assert set(play(1.2, 1.2, *[0.98] * 60)[1:]) == {Posture.BRAKE}


def test_a_meter_that_says_nothing_changes_nothing() -> None:
    assert play(1.2, 1.2, *[None] * 60)[-1] is Posture.BRAKE
    assert play(0.5, *[None] * 60)[-1] is Posture.NORMAL


def test_time_without_data_does_not_count_towards_a_release() -> None:
    seen = play(1.2, 1.2, 0.9, *[None] * 60, 0.9)
    assert seen[-1] is Posture.BRAKE
    assert play(1.2, 1.2, 0.9, *[None] * 60, *[0.9] * 11)[-1] is Posture.SHED


def test_the_table_goes_from_the_harshest_to_the_mildest() -> None:
    assert [rule.to for rule in TABLE] == sorted((rule.to for rule in TABLE), reverse=True)


# --------------------------------------------------------------------------------------------------------- corrections


def correct(
    *gaps_w: float,
    period_s: float = 1.0,
    state: Correction | None = None,
    start_s: float = 0.0,
    explained_w: float = 900.0,
) -> Correction:
    state = state or Correction()
    for i, gap_w in enumerate(gaps_w):
        state = state.observe(
            measured_w=500.0 + gap_w,
            modelled_w=500.0,
            limit_w=LIMIT_W,
            sampled_s=start_s + i * period_s,
            explained_w=explained_w,
        )
    return state


def test_a_lasting_gap_between_meter_and_model_is_believed() -> None:
    assert correct(*[80.0] * 5).power_w == 0.0
    assert correct(*[80.0] * 6).power_w == 80.0


def test_the_smallest_gap_of_the_window_counts() -> None:
    assert correct(80.0, 60.0, 90.0, 80.0, 80.0, 80.0).power_w == 60.0


def test_a_step_in_load_is_no_gap() -> None:
    assert correct(0.0, 0.0, 300.0, 300.0, 0.0, 0.0, 0.0, 0.0).power_w == 0.0


def test_noise_and_a_model_above_the_meter_are_no_gap() -> None:
    assert correct(*[9.0] * 10).power_w == 0.0
    assert correct(*[-200.0] * 10).power_w == 0.0


@pytest.mark.parametrize("period_s", [0.05, 0.1, 0.26, 1.0, 4.9])
def test_it_learns_however_fast_decisions_follow_each_other(period_s: float) -> None:
    count = int(2 * CORRECTION_WINDOW_S / period_s) + 2
    learnt = correct(*[80.0] * count, period_s=period_s)
    assert learnt.power_w == 80.0
    assert len(learnt.gaps) <= 22


def test_one_odd_sample_of_a_slow_meter_teaches_nothing() -> None:
    state = correct(0.0, 300.0, 0.0, 0.0, period_s=60.0)
    assert state.power_w == 0.0
    odd = correct(300.0)
    for _ in range(60):
        odd = correct(300.0, state=odd)
    assert odd.power_w == 0.0, "one sample, looked at sixty times"


def test_two_samples_of_a_slow_meter_teach_the_smaller_gap() -> None:
    assert correct(90.0, 80.0, period_s=60.0).power_w == 80.0


def test_what_was_learnt_holds_for_a_minute_and_is_then_measured_anew() -> None:
    learnt = correct(*[80.0] * 6)
    assert correct(*[20.0] * 30, state=learnt, start_s=6.0).power_w == 80.0
    late_s = CORRECTION_HOLD_S + 10.0
    assert correct(*[20.0] * 10, state=learnt, start_s=late_s).power_w == 20.0


@pytest.mark.parametrize("explained_w", [500.0, 911.0], ids=["a node left", "a node came, or watts were declared"])
def test_what_was_learnt_of_other_machines_goes_with_the_first_full_window_of_the_present_ones(explained_w: float) -> None:
    learnt = correct(*[80.0] * 6)
    assert correct(*[0.0] * 5, state=learnt, start_s=6.0, explained_w=explained_w).power_w == 80.0, "not a moment sooner"
    assert correct(*[0.0] * 6, state=learnt, start_s=6.0, explained_w=explained_w).power_w == 0.0
    assert correct(*[70.0] * 6, state=learnt, start_s=6.0, explained_w=explained_w).power_w == 70.0
    assert correct(*[0.0] * 6, state=learnt, start_s=6.0, explained_w=900.0 + 1e-9).power_w == 80.0, "nothing changed"


def test_small_changes_of_a_large_fleet_keep_nothing_from_being_learnt_and_add_up_to_a_large_one() -> None:
    state = Correction()
    for second in range(12):
        state = correct(80.0, state=state, start_s=second, explained_w=900.0 + 6.0 * (second // 3 % 2))
    assert state.power_w == 80.0, "a node comes and goes every three seconds"
    for second in range(12, 30):
        state = correct(0.0, state=state, start_s=second, explained_w=900.0 + 1.0 * (second - 11))
    assert state.power_w == 0.0, "more and more is declared"


def test_one_reading_after_a_silence_is_not_a_window() -> None:
    quiet = correct(*[0.0] * 8)
    assert correct(80.0, state=quiet, start_s=100.0).power_w == 0.0


def test_it_is_not_forgotten_for_want_of_a_full_window() -> None:
    learnt = correct(*[80.0] * 6)
    assert correct(80.0, 80.0, state=learnt, start_s=CORRECTION_HOLD_S + 100.0).power_w == 80.0
