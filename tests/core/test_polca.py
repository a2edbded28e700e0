"""POLCA's law and its baselines: one state machine, four tables."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from splitwatt_core.gpus.profiles import builtin, find
from splitwatt_core.policies.polca_table import (
    BRAKE_MHZ,
    HIGH_T2_MHZ,
    LOW_T1_MHZ,
    LOW_T2_MHZ,
    NO_CAP,
    ONE_THRESH_ALL,
    ONE_THRESH_LOW_PRI,
    POLCA,
    ClockCommand,
    Level,
    Path,
    PolcaSettings,
    PolcaState,
    RowPriority,
    comparison,
    settings_for,
    step,
    translate_mhz,
)

LOW, HIGH = RowPriority.LOW, RowPriority.HIGH
SETTINGS = PolcaSettings()
FOUR = comparison(SETTINGS)
# Readings that stay for a while, or no waiting rule would ever be reached.
utilisations = st.lists(st.tuples(st.floats(0.0, 1.1), st.integers(1, 30)), max_size=12).map(
    lambda runs: [reading for reading, count in runs for _ in range(count)]
)


def play(
    *readings: float | None, settings: PolcaSettings = SETTINGS, state: PolcaState | None = None, period_s: float = 2.0
) -> tuple[list[Level], list[ClockCommand]]:
    """One reading each period from time 0: the level after each, and all commands."""
    state = state or PolcaState()
    levels: list[Level] = []
    sent: list[ClockCommand] = []
    for i, reading in enumerate(readings):
        state, commands = step(state, reading, i * period_s, settings)
        levels.append(state.level)
        sent.extend(commands)
    return levels, sent


def lock(priority: RowPriority, clock_mhz: int, effective_s: float) -> ClockCommand:
    return ClockCommand(Path.LOCK, priority, clock_mhz, effective_s)


def test_the_papers_numbers() -> None:
    s = SETTINGS
    assert (s.t1, s.t2, s.t1_release, s.t2_release, s.brake_above) == (0.80, 0.89, 0.75, 0.84, 1.0)
    assert (s.low_t1_mhz, s.low_t2_mhz, s.high_t2_mhz, s.brake_mhz) == (1275, 1110, 1305, 288)
    assert (s.telemetry_s, s.command_latency_s, s.brake_latency_s) == (2.0, 40.0, 5.0)


def test_above_t1_low_priority_alone_is_locked_in_force_forty_seconds_later() -> None:
    assert play(0.81) == ([Level.LOW_T1], [lock(LOW, LOW_T1_MHZ, 40.0)])


def test_above_t2_low_priority_goes_to_the_deeper_lock_from_free_or_from_t1() -> None:
    assert play(0.90) == ([Level.LOW_T2], [lock(LOW, LOW_T2_MHZ, 40.0)])
    assert play(0.85, 0.90)[1] == [lock(LOW, LOW_T1_MHZ, 40.0), lock(LOW, LOW_T2_MHZ, 42.0)]


def test_high_priority_is_locked_only_when_still_above_once_the_low_lock_was_read() -> None:
    levels, sent = play(*[0.90] * 22)
    assert levels == [Level.LOW_T2] * 21 + [Level.ALL_T2]
    assert sent[1:] == [lock(HIGH, HIGH_T2_MHZ, 82.0)]
    assert play(*[0.90] * 21, *[0.88] * 40)[0][-1] is Level.LOW_T2


def test_between_release_and_threshold_every_level_stays() -> None:
    assert set(play(0.81, *[0.755, 0.795] * 30)[0]) == {Level.LOW_T1}
    assert set(play(0.90, *[0.845, 0.885] * 30)[0]) == {Level.LOW_T2}
    assert play(*[0.90] * 22, *[0.845, 0.885] * 30)[0][-1] is Level.ALL_T2


@pytest.mark.parametrize("before", [[0.90], [0.90] * 22], ids=["low only", "all"])
def test_below_the_release_of_t2_the_lock_at_t1_stands_and_high_priority_is_free(before: list[float]) -> None:
    levels, sent = play(*before, 0.83)
    last_s = 2.0 * len(before)
    assert levels[-1] is Level.LOW_T1
    assert lock(LOW, LOW_T1_MHZ, last_s + 40) in sent
    assert (lock(HIGH, 0, last_s + 40) in sent) == (len(before) > 1)


def test_below_the_release_of_t1_everything_is_free() -> None:
    levels, sent = play(0.81, 0.74)
    assert levels[-1] is Level.FREE and sent[-1] == lock(LOW, 0, 42.0)


def test_one_reading_takes_one_step_down() -> None:
    assert play(0.90, 0.10, 0.10)[0] == [Level.LOW_T2, Level.LOW_T1, Level.FREE]


def test_exactly_at_a_threshold_or_a_release_nothing_happens() -> None:
    assert play(0.80)[0] == [Level.FREE]
    assert play(0.81, 0.89, 0.75)[0] == [Level.LOW_T1] * 3
    assert play(0.90, 0.84, 1.0)[0] == [Level.LOW_T2] * 3


def test_the_brake_takes_everybody_within_five_seconds_and_sends_the_hardest_locks_along() -> None:
    levels, sent = play(1.01)
    assert levels == [Level.BRAKE]
    assert sent == [
        ClockCommand(Path.BRAKE, LOW, BRAKE_MHZ, 5.0),
        ClockCommand(Path.BRAKE, HIGH, BRAKE_MHZ, 5.0),
        lock(LOW, LOW_T2_MHZ, 40.0),
        lock(HIGH, HIGH_T2_MHZ, 40.0),
    ]


def test_the_brake_is_released_when_those_locks_stand_and_the_row_is_below_the_release_of_t2() -> None:
    levels, sent = play(1.01, *[0.83] * 21)
    assert levels == [Level.BRAKE] * 21 + [Level.ALL_T2]
    assert sent[-2:] == [ClockCommand(Path.BRAKE, LOW, 0, 47.0), ClockCommand(Path.BRAKE, HIGH, 0, 47.0)]
    assert play(1.01, *[0.85] * 60)[0][-1] is Level.BRAKE


@pytest.mark.parametrize("settings", FOUR, ids=lambda s: s.table.name)
def test_every_policy_brakes_from_every_level_it_has(settings: PolcaSettings) -> None:
    for level in settings.table.levels:
        assert play(1.01, settings=settings, state=PolcaState(level, 0.0))[0] == [Level.BRAKE]


@pytest.mark.parametrize("settings", FOUR, ids=lambda s: s.table.name)
def test_no_reading_changes_nothing_at_any_level(settings: PolcaSettings) -> None:
    for level in settings.table.levels:
        state = PolcaState(level, 0.0)
        assert step(state, None, 1e6, settings) == (state, ())


def test_the_baselines_lock_what_their_names_say() -> None:
    locked = {s.table.name: {(c.priority, c.clock_mhz) for c in play(0.95, settings=s)[1]} for s in FOUR}
    assert locked == {
        NO_CAP.name: set(),
        ONE_THRESH_LOW_PRI.name: {(LOW, LOW_T2_MHZ)},
        ONE_THRESH_ALL.name: {(LOW, LOW_T2_MHZ), (HIGH, LOW_T2_MHZ)},
        POLCA.name: {(LOW, LOW_T2_MHZ)},
    }


@pytest.mark.parametrize("settings", FOUR[1:3], ids=lambda s: s.table.name)
def test_single_threshold_policies_know_only_the_second_threshold(settings: PolcaSettings) -> None:
    levels = play(0.85, 0.90, 0.845, 0.835, settings=settings)[0]
    assert levels[0] is levels[3] is Level.FREE and levels[1] is levels[2] is not Level.FREE


def test_delays_are_parameters() -> None:
    quick = replace(SETTINGS, command_latency_s=4.0, telemetry_s=1.0, brake_latency_s=0.5)
    levels, sent = play(0.90, 0.90, 0.90, 0.90, settings=quick)
    assert levels == [Level.LOW_T2] * 3 + [Level.ALL_T2]
    assert [c.effective_s for c in sent] == [4.0, 10.0]
    assert play(1.01, settings=quick)[1][0].effective_s == 0.5


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"t1": 0.9}, "T1 < T2"),
        ({"brake_above": 0.85}, "T2 < brake"),
        ({"t1_release": 0.81}, "below its threshold"),
        ({"t2_release": 0.89}, "below its threshold"),
        ({"low_t2_mhz": 1300}, "low at T2"),
        ({"brake_mhz": 0}, "0 < brake"),
        ({"command_latency_s": -1.0}, "delays"),
    ],
)
def test_settings_out_of_order_are_refused(wrong: dict[str, float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        replace(SETTINGS, **wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("reading", [-0.1, float("nan"), float("inf")])
def test_a_reading_that_cannot_be_is_refused(reading: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        step(PolcaState(), reading, 0.0, SETTINGS)


def test_a_level_that_a_table_does_not_have_is_a_bug() -> None:
    with pytest.raises(AssertionError, match="LOW_T1"):
        step(PolcaState(Level.LOW_T1), 0.5, 0.0, replace(SETTINGS, table=NO_CAP))


def test_clocks_translate_by_share_of_the_top_clock_within_the_range() -> None:
    a100, h100 = find(builtin(), "A100-SXM-80GB"), find(builtin(), "H100-SXM")
    assert a100 is not None and h100 is not None
    assert settings_for(a100) == SETTINGS
    there = settings_for(h100)
    assert (there.low_t1_mhz, there.low_t2_mhz, there.high_t2_mhz) == (1790, 1559, 1833)
    assert there.brake_mhz == 404 > h100.min_clock_mhz
    assert translate_mhz(288, top_clock_mhz=1000, min_clock_mhz=300) == 300
    with pytest.raises(ValueError, match="range"):
        translate_mhz(288, top_clock_mhz=1000, min_clock_mhz=1001)


# ---------------------------------------------------------------------------------------------------------- properties


@given(utilisations)
def test_a_row_that_never_exceeds_t1_is_never_locked(readings: list[float]) -> None:
    quiet = [min(r, SETTINGS.t1) for r in readings]
    for settings in FOUR:
        assert play(*quiet, settings=settings) == ([Level.FREE] * len(quiet), [])


@given(utilisations, st.sampled_from(FOUR))
def test_the_brake_comes_above_one_hundred_percent_and_only_there(readings: list[float], settings: PolcaSettings) -> None:
    levels = [Level.FREE, *play(*readings, settings=settings)[0]]
    for reading, before, after in zip(readings, levels, levels[1:], strict=False):
        if before is not Level.BRAKE:
            assert (after is Level.BRAKE) == (reading > 1.0)


@given(utilisations, st.sampled_from(FOUR))
def test_a_level_is_left_downwards_only_below_its_release(readings: list[float], settings: PolcaSettings) -> None:
    levels = [Level.FREE, *play(*readings, settings=settings)[0]]
    for reading, before, after in zip(readings, levels, levels[1:], strict=False):
        if after < before:
            assert reading < (settings.t1_release if before is Level.LOW_T1 else settings.t2_release)


@given(utilisations)
def test_high_priority_is_locked_only_after_low_priority_stood_at_its_deeper_lock(readings: list[float]) -> None:
    levels = play(*[min(r, 1.0) for r in readings])[0]
    for i, level in enumerate(levels):
        if level is Level.ALL_T2 and levels[i - 1] is not Level.ALL_T2:
            assert levels[i - 21 : i] == [Level.LOW_T2] * 21


@given(utilisations, st.sampled_from(FOUR))
def test_commands_carried_out_leave_the_clocks_that_the_level_wants(readings: list[float], settings: PolcaSettings) -> None:
    levels, sent = play(*readings, settings=settings)
    clock = {(path, p): 0 for path in Path for p in RowPriority}
    for command in sent:
        clock[command.path, command.priority] = command.clock_mhz
    last = levels[-1] if levels else Level.FREE
    for priority in RowPriority:
        assert clock[Path.LOCK, priority] == settings.standing_mhz(last, priority)
        assert clock[Path.BRAKE, priority] == (settings.brake_mhz if last is Level.BRAKE else 0)


@given(utilisations, st.sampled_from(FOUR), st.floats(0, 1e6))
def test_equal_readings_give_equal_commands_whenever_they_begin(
    readings: list[float], settings: PolcaSettings, start_s: float
) -> None:
    start_s = float(round(start_s))
    state, levels = PolcaState(), []
    for i, reading in enumerate(readings):
        state, _ = step(state, reading, start_s + 2.0 * i, settings)
        levels.append(state.level)
    assert levels == play(*readings, settings=settings)[0]
