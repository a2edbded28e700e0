"""The breaker's law: its closed form is the differential equation's, and it trips where standards and reports say."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from splitwatt_truth.breaker import (
    NOMINAL_K_S,
    PESSIMISTIC_K_S,
    TRIP_THETA,
    step_breaker,
    trips_in_s,
)  # fmt: skip

LOADS = st.floats(0.0, 3.0)
THETAS = st.floats(0.0, 2.0)
SPANS = st.floats(0.0, 600.0)
KS = st.sampled_from([PESSIMISTIC_K_S, NOMINAL_K_S])


@given(THETAS, LOADS, st.floats(0.1, 60.0), KS)
def test_the_closed_form_is_what_small_steps_of_the_equation_come_to(
    theta: float, load: float, span_s: float, k_s: float
) -> None:
    steps = 4000
    small_s, at = span_s / steps, theta
    for _ in range(steps):
        at += small_s * ((load * load - 1.0) / k_s if load > 1.0 else -at / (k_s / 2))
    got = step_breaker(theta, load_ratio=load, elapsed_s=span_s, k_s=k_s)
    assert got == pytest.approx(at, rel=5e-3, abs=1e-9)


@given(THETAS, LOADS, SPANS, SPANS, KS)
def test_it_does_not_matter_how_often_anyone_looks(theta: float, load: float, a_s: float, b_s: float, k_s: float) -> None:
    once = step_breaker(theta, load_ratio=load, elapsed_s=a_s + b_s, k_s=k_s)
    between = step_breaker(theta, load_ratio=load, elapsed_s=a_s, k_s=k_s)
    assert step_breaker(between, load_ratio=load, elapsed_s=b_s, k_s=k_s) == pytest.approx(once, rel=1e-9, abs=1e-12)


@given(THETAS, LOADS, SPANS, KS)
def test_only_an_overload_heats(theta: float, load: float, span_s: float, k_s: float) -> None:
    after = step_breaker(theta, load_ratio=load, elapsed_s=span_s, k_s=k_s)
    assert after >= 0.0
    assert after >= theta if load > 1.0 else after <= theta


@given(st.floats(0.0, 0.99), st.floats(1.001, 3.0), KS)
def test_it_trips_in_the_very_moment_that_was_told(theta: float, load: float, k_s: float) -> None:
    told_s = trips_in_s(theta, load_ratio=load, k_s=k_s)
    assert step_breaker(theta, load_ratio=load, elapsed_s=told_s, k_s=k_s) == pytest.approx(TRIP_THETA)


@pytest.mark.parametrize(
    ("load", "at_least_s", "at_most_s"),
    [
        (1.35, 60.0, 3600.0),  # UL 489: 135 % trips within an hour
        (2.00, 10.0, 120.0),  # UL 489: 200 % within two minutes (small frames)
        (1.10, 16 * 60.0, 18 * 60.0),  # Meta: a rack takes 10 % for about 17 minutes
    ],
)
def test_with_the_nominal_constant_it_trips_within_published_times(load: float, at_least_s: float, at_most_s: float) -> None:
    assert at_least_s < trips_in_s(0.0, load_ratio=load) < at_most_s


@pytest.mark.parametrize(("load", "at_least_s", "at_most_s"), [(1.25, 30.0, 600.0), (1.50, 10.0, 60.0)])
def test_with_the_pessimistic_one_it_trips_as_a_ups_does(load: float, at_least_s: float, at_most_s: float) -> None:
    assert at_least_s < trips_in_s(0.0, load_ratio=load, k_s=PESSIMISTIC_K_S) < at_most_s


def test_it_never_trips_at_its_rating_and_has_tripped_at_one() -> None:
    assert trips_in_s(0.9, load_ratio=1.0) == math.inf
    assert trips_in_s(1.0, load_ratio=0.0) == 0.0


@pytest.mark.parametrize(
    "wrong", [{"load_ratio": -0.1}, {"load_ratio": math.nan}, {"k_s": 0.0}, {"elapsed_s": -1.0}, {"theta": -1.0}]
)
def test_what_makes_no_sense_is_refused(wrong: dict[str, float]) -> None:
    arguments = {"theta": 0.0, "load_ratio": 1.0, "elapsed_s": 1.0, "k_s": 20.0, **wrong}
    with pytest.raises(ValueError, match="must be 0 or more"):
        step_breaker(arguments.pop("theta"), **arguments)
