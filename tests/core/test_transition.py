"""Lower first, then raise: single decisions about a handful of GPUs, in words."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from splitwatt_core.budget.transition import UNKNOWN_CAP, TransitionInput, check_sums, next_caps
from splitwatt_core.trees import forest_of


def asked(
    target_w: list[int],
    granted_w: list[int],
    charge_w: list[int] | None = None,
    *,
    headroom_w: float = 0.0,
    withheld_w: float = 0.0,
    group: list[int] | None = None,
    priority: list[int] | None = None,
) -> TransitionInput:
    """GPUs of one leaf without a parent, all trusted and free to be raised."""
    n = len(target_w)
    return TransitionInput(
        leaf=np.zeros(n, dtype=np.int32),
        group=np.array(group or range(n), dtype=np.int32),
        priority=np.array(priority or [0] * n, dtype=np.int16),
        target_w=np.array(target_w, dtype=np.int32),
        granted_w=np.array(granted_w, dtype=np.int32),
        min_w=np.full(n, 200, dtype=np.int32),
        charge_w=np.array(charge_w or granted_w, dtype=np.float64),
        trusted=np.ones(n, dtype=np.bool_),
        may_raise=np.ones(n, dtype=np.bool_),
        over_elsewhere=np.zeros(n, dtype=np.bool_),
        loss_factor=np.ones(n),
        parent=np.array([-1], dtype=np.int32),
        headroom_w=np.array([headroom_w]),
        withheld_w=np.array([withheld_w]),
    )


def caps(t: TransitionInput) -> list[int]:
    return [int(w) for w in next_caps(t)]


def test_no_gpus_need_no_decision() -> None:
    assert caps(asked([], [])) == []


def test_the_lower_goes_first_and_the_raise_waits_for_its_watts() -> None:
    assert caps(asked([300, 600], [600, 300])) == [300, 300]
    assert caps(asked([300, 600], [300, 300], [600, 300])) == [300, 300]
    assert caps(asked([300, 600], [300, 300], headroom_w=300.0)) == [300, 600]


def test_a_raise_within_what_is_charged_anyway_needs_no_head_room() -> None:
    assert caps(asked([500], [300], [600])) == [500]


def test_raises_leave_the_reserve_alone() -> None:
    assert caps(asked([500], [300], headroom_w=200.0, withheld_w=1.0)) == [300]
    assert caps(asked([500], [300], headroom_w=201.0, withheld_w=1.0)) == [500]


def test_the_higher_priority_is_raised_first() -> None:
    assert caps(asked([500, 500], [300, 300], headroom_w=250.0, priority=[0, 5])) == [300, 500]


def test_a_group_that_does_not_fit_leaves_its_watts_to_smaller_ones() -> None:
    t = asked([500, 500, 400], [300, 300, 300], headroom_w=350.0, group=[0, 0, 1], priority=[5, 5, 0])
    assert caps(t) == [300, 300, 400]


def test_nobody_of_a_group_is_raised_while_one_of_it_may_not_be() -> None:
    t = asked([500, 500, 500], [300, 300, 300], headroom_w=900.0, group=[0, 0, 1])
    for name in ("may_raise", "trusted"):
        one_may_not = replace(t, **{name: np.array([True, False, True])})
        assert caps(one_may_not) == [300, 300, 500]


def test_a_grant_below_the_lowest_cap_is_put_right_within_what_is_charged_for_it() -> None:
    """Its status said once that it takes less; below a sum that is too high as well, or it would owe the acknowledgement for
    ever and keep that sum too high."""
    assert caps(asked([163, 300], [163, 300], [350, 300], headroom_w=-50.0)) == [200, 300]
    assert caps(asked([163], [163], [163])) == [163], "not what is not charged"


def test_a_first_grant_is_no_higher_than_what_is_charged_anyway() -> None:
    assert caps(asked([650], [UNKNOWN_CAP], [600])) == [600]
    assert caps(asked([450], [UNKNOWN_CAP], [700])) == [450]


@pytest.mark.parametrize("granted_w", [UNKNOWN_CAP, 450])
def test_an_unknown_cap_below_a_sum_that_is_too_high_gets_its_minimum(granted_w: int) -> None:
    t = replace(asked([450], [granted_w], [700], headroom_w=-1.0), trusted=np.array([False]))
    assert caps(t) == [200]


@pytest.mark.parametrize("granted_w", [UNKNOWN_CAP, 450])
def test_also_when_that_sum_is_one_it_only_counts_in(granted_w: int) -> None:
    t = asked([450], [granted_w], [700], headroom_w=500.0)
    t = replace(t, trusted=np.array([False]), over_elsewhere=np.array([True]))
    assert caps(t) == [200]


def test_a_budget_is_as_tight_as_the_tightest_above_it() -> None:
    parent = np.array([-1, 0, 1, 0], dtype=np.int32)
    assert forest_of(parent).min_down(np.array([5.0, 9.0, 7.0, 3.0])).tolist() == [5.0, 5.0, 5.0, 3.0]


def test_a_decision_that_lifts_a_sum_too_high_is_caught() -> None:
    t = asked([500], [300], headroom_w=100.0)
    with pytest.raises(AssertionError, match=r"budget 0: a decision lifts 200\.0 W over 100\.0 W"):
        check_sums(t, np.array([500], dtype=np.int32))
    check_sums(t, np.array([400], dtype=np.int32))
