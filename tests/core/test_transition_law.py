"""Whatever a policy wants, one step never lifts a sum above its limit, never splits a group, and serves the high first."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from splitwatt_core.budget.transition import UNKNOWN_CAP, TransitionInput, next_caps
from splitwatt_core.columns import TOLERANCE_W
from splitwatt_core.trees import forest_of

MIN_W, MAX_W = 200, 700
# row, rack a, rack b below it, and a root of its own
PARENTS = ((-1, 0, 0), (-1, 0, 1), (-1, 0, 0, -1))


@st.composite
def inputs(draw: st.DrawFn) -> TransitionInput:
    parent = np.array(draw(st.sampled_from(PARENTS)), dtype=np.int32)
    size, n = len(parent), draw(st.integers(1, 10))

    def column(element: st.SearchStrategy[object], dtype: type) -> np.ndarray:
        return np.array(draw(st.lists(element, min_size=n, max_size=n)), dtype=dtype)

    watts = st.integers(MIN_W, MAX_W)
    group = column(st.integers(0, 5), np.int32)
    leaf = (group % size).astype(np.int32)  # a group stands in one leaf
    target = column(watts, np.int32)
    target = target[np.array([np.flatnonzero(group == g)[0] for g in group])]  # one target per group
    granted = column(st.just(UNKNOWN_CAP) | watts, np.int32)
    charge = np.maximum(column(watts, np.float64), granted)
    loss = 1.0 + np.float64(0.1) * leaf
    headroom = np.array([draw(st.integers(-600, 900)) for _ in range(size)], dtype=np.float64)
    return TransitionInput(
        leaf=leaf,
        group=group,
        priority=(group % 3).astype(np.int16),
        target_w=target,
        granted_w=granted,
        min_w=np.full(n, MIN_W, dtype=np.int32),
        charge_w=charge,
        trusted=column(st.booleans(), np.bool_),
        may_raise=column(st.sampled_from([True, True, True, False]), np.bool_),
        over_elsewhere=column(st.sampled_from([False, False, False, True]), np.bool_),
        loss_factor=loss,
        parent=parent,
        headroom_w=headroom,
        withheld_w=np.array([draw(st.sampled_from([0, 0, 50])) for _ in range(size)], dtype=np.float64),
    )


def lifted_w(t: TransitionInput, caps: np.ndarray) -> np.ndarray:
    lift = np.maximum(caps - t.charge_w, 0.0) * t.loss_factor
    return forest_of(t.parent).sum_up(np.bincount(t.leaf, weights=lift, minlength=len(t.parent)).astype(np.float64))


@given(t=inputs())
def test_no_sum_is_lifted_above_its_limit_less_its_reserve(t: TransitionInput) -> None:
    lifted = lifted_w(t, next_caps(t))
    assert np.all((lifted <= TOLERANCE_W) | (lifted <= t.headroom_w - t.withheld_w + TOLERANCE_W))


@given(t=inputs())
def test_below_a_sum_that_is_too_high_nothing_is_raised_and_the_unknown_get_their_minimum(t: TransitionInput) -> None:
    caps = next_caps(t)
    over = (forest_of(t.parent).min_down(t.headroom_w)[t.leaf] < -TOLERANCE_W) | t.over_elsewhere
    known = t.granted_w != UNKNOWN_CAP
    assert np.all(caps[over & known] <= t.granted_w[over & known])
    assert np.all(caps[over & ~known] == MIN_W)
    blind = over & known & ~t.trusted
    assert np.all(caps[blind] == np.minimum(np.minimum(t.granted_w, t.target_w), MIN_W)[blind])


@given(t=inputs())
def test_lowering_waits_for_nobody_and_no_cap_passes_its_target(t: TransitionInput) -> None:
    caps = next_caps(t)
    known = t.granted_w != UNKNOWN_CAP
    lower = known & (t.target_w < t.granted_w)
    assert np.all(caps[lower] <= t.target_w[lower])
    assert np.all(caps[known] <= np.maximum(t.granted_w, t.target_w)[known])
    assert np.all(caps[~known] <= np.maximum(t.target_w, MIN_W)[~known])


@given(t=inputs())
def test_only_what_may_be_raised_is_raised(t: TransitionInput) -> None:
    raised = (t.granted_w != UNKNOWN_CAP) & (next_caps(t) > t.granted_w)
    assert np.all(t.may_raise[raised] & t.trusted[raised])


@given(t=inputs())
def test_a_group_is_raised_as_a_whole_or_not_at_all(t: TransitionInput) -> None:
    caps = next_caps(t)
    for g in np.unique(t.group):
        rows = np.flatnonzero(t.group == g)
        if np.any((t.granted_w[rows] != UNKNOWN_CAP) & (caps[rows] > t.granted_w[rows])):
            assert np.all(caps[rows] == t.target_w[rows])


@given(t=inputs())
def test_a_group_that_waits_has_no_room_left_by_those_that_rank_as_high(t: TransitionInput) -> None:
    caps = next_caps(t)
    over = (forest_of(t.parent).min_down(t.headroom_w)[t.leaf] < -TOLERANCE_W) | t.over_elsewhere
    known = t.granted_w != UNKNOWN_CAP
    for g in np.unique(t.group):
        rows = np.flatnonzero(t.group == g)
        ready = t.may_raise[rows] & t.trusted[rows] & known[rows] & ~over[rows]
        waits = caps[rows] < t.target_w[rows]
        if not (np.all(ready | ~waits) and np.any(waits)):
            continue
        as_high = (t.priority >= t.priority[rows[0]]) & (t.group != g)
        others = np.where(as_high, caps, np.minimum(caps, t.charge_w)).astype(np.float64)
        others[rows] = np.where(waits, t.target_w[rows], caps[rows])
        lifted = lifted_w(t, others)
        chain, b = [], int(t.leaf[rows[0]])
        while b >= 0:
            chain.append(b)
            b = int(t.parent[b])
        assert any(lifted[b] > t.headroom_w[b] - t.withheld_w[b] for b in chain), f"group {g} could have been raised"


@given(t=inputs())
def test_where_everything_stands_as_wanted_nothing_is_written(t: TransitionInput) -> None:
    settled = TransitionInput(
        **{name: getattr(t, name) for name in t.__dataclass_fields__ if name not in ("granted_w", "trusted", "charge_w")},
        granted_w=t.target_w,
        charge_w=t.target_w.astype(np.float64),
        trusted=np.ones(len(t.leaf), dtype=np.bool_),
    )
    assert np.array_equal(next_caps(settled), t.target_w)
