"""The limit in force follows the owner's word: up at once, down after the grace, and nothing else moves it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from splitwatt_core.budget.tree import LimitState, new_limit

GRACE_S = 5.0
FIRST_W = 1000

# Each entry: seconds since the one before, and the limit that the spec then says. Fewer changes within one grace than
# pending limits are kept.
LIMITS_W = st.integers(1, 20).map(lambda n: n * 100)
HISTORIES = st.lists(st.tuples(st.sampled_from([0.5, 1.0, 2.5, 5.0, 7.0]), LIMITS_W), max_size=12)


def play(history: list[tuple[float, int]]) -> tuple[list[tuple[float, int]], LimitState]:
    words, now_s, state = [(0.0, FIRST_W)], 0.0, new_limit(FIRST_W, 0.0)
    for wait_s, limit_w in history:
        now_s += wait_s
        words.append((now_s, limit_w))
        state = state.observe(limit_w, now_s, GRACE_S)
    return words, state


def said(words: list[tuple[float, int]], since_s: float, until_s: float) -> list[int]:
    """All limits that the spec said at some moment of the closed interval."""
    inside = [w for t, w in words if since_s < t <= until_s]
    before = [w for t, w in words if t <= since_s]
    return inside + before[-1:]


@given(history=HISTORIES, later_s=st.floats(0.0, 12.0))
def test_in_force_is_never_below_everything_said_within_the_grace(history: list[tuple[float, int]], later_s: float) -> None:
    words, state = play(history)
    now_s = words[-1][0] + later_s
    assert state.at(now_s).in_force_w >= min(said(words, now_s - GRACE_S, now_s))


@given(history=HISTORIES, later_s=st.floats(0.0, 12.0))
def test_in_force_is_never_above_everything_said_within_the_grace(history: list[tuple[float, int]], later_s: float) -> None:
    words, state = play(history)
    now_s = words[-1][0] + later_s
    assert state.at(now_s).in_force_w <= max(said(words, now_s - GRACE_S - 1e-9, now_s))


@given(history=HISTORIES, waits=st.lists(st.floats(0.0, 4.0), max_size=6))
def test_time_alone_only_lowers_it(history: list[tuple[float, int]], waits: list[float]) -> None:
    words, state = play(history)
    now_s = words[-1][0]
    for wait_s in waits:
        now_s += wait_s
        later = state.at(now_s)
        assert later.in_force_w <= state.in_force_w and later.spec_w == state.spec_w
        state = later
    assert state.at(now_s + GRACE_S).in_force_w == words[-1][1]


@given(history=HISTORIES, later_s=st.floats(0.0, 12.0))
def test_hearing_the_same_word_again_changes_nothing(history: list[tuple[float, int]], later_s: float) -> None:
    words, state = play(history)
    now_s, limit_w = words[-1][0] + later_s, words[-1][1]
    again = state.observe(limit_w, now_s, GRACE_S)
    for t in (now_s, now_s + 1.0, now_s + GRACE_S):
        assert again.at(t).in_force_w == state.at(t).in_force_w
    assert again.observe(limit_w, now_s, GRACE_S) == again


@given(history=HISTORIES)
def test_decisions_aim_no_higher_than_what_is_said_and_what_is_in_force(history: list[tuple[float, int]]) -> None:
    words, state = play(history)
    assert state.aim_w == min(words[-1][1], state.in_force_w) <= words[-1][1]
    assert list(state.pending) == sorted(state.pending, key=lambda p: p[1])


def test_no_limit_waits_longer_than_its_grace_whatever_date_was_noted() -> None:
    """By a clock that was ahead, or by another hand."""
    ahead = LimitState(500, 900, 1000.0, ((500, 1e9),))
    assert ahead.observe(500, 1000.0, 5.0) == LimitState(500, 900, 1000.0, ((500, 1005.0),))
    assert ahead.observe(500, 1000.0, 5.0).at(1005.0).in_force_w == 500
