"""The judge counts what an overload did to a breaker, beside the seconds."""

from __future__ import annotations

import pytest
from splitwatt_lab.judge import MAX_GAP_S, BudgetLook, Count
from splitwatt_truth.breaker import PESSIMISTIC_K_S


def look(true_w: float, t_s: float = 0.0, *, in_force: bool = True) -> BudgetLook:
    return BudgetLook(t_s, "rack-a1", true_w, 900.0, 1000, in_force)


def test_theta_rises_with_the_square_of_an_overload_and_its_worst_is_kept() -> None:
    count = Count()
    for _ in range(20):
        count.add(look(1500.0), 0.1)
    assert count.worst_theta == pytest.approx(2.0 * (1.5**2 - 1) / PESSIMISTIC_K_S)
    worst = count.worst_theta
    for _ in range(20):
        count.add(look(800.0), 0.1)
    assert 0 < count.theta < worst == count.worst_theta


def test_nothing_is_counted_before_a_limit_is_in_force_or_while_nobody_looked() -> None:
    count = Count()
    count.add(look(5000.0, in_force=False), 0.5)
    count.add(look(5000.0), MAX_GAP_S + 0.1)
    assert (count.theta, count.worst_theta) == (0.0, 0.0)
    count.add(look(1000.0), 0.5)
    assert count.worst_theta == 0.0, "at the limit a breaker does not heat"
