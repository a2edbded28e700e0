"""The rate curve's inverse undoes its integral, whatever the curve."""

import math

from hypothesis import example, given
from hypothesis import strategies as st
from splitwatt_truth.trace import RateCurve

MULTIPLIER = st.one_of(st.just(0.0), st.floats(0.01, 10))


@st.composite
def curves(draw: st.DrawFn) -> RateCurve:
    gaps = draw(st.lists(st.floats(0.1, 50), min_size=1, max_size=6))
    times = [sum(gaps[:i]) for i in range(len(gaps))]
    shift = draw(st.sampled_from([0.0, 3.0]))
    return RateCurve(tuple((t + shift, draw(MULTIPLIER)) for t in times))


@given(curves(), st.floats(0, 500))
@example(RateCurve(((0.0, 0.0), (4.0, 1.0))), 5e-324)
def test_the_inverse_undoes_the_integral(curve: RateCurve, area: float) -> None:
    t_s = curve.inverse(area)
    if t_s == math.inf:
        assert curve.integral(1e9) < area + 1e-6
        return
    assert math.isclose(curve.integral(t_s), area, rel_tol=1e-6, abs_tol=1e-6)
    earlier = t_s - 1e-3 * max(1.0, t_s)
    assert earlier < 0 or curve.integral(earlier) <= area


@given(curves(), st.floats(0, 300), st.floats(0, 300))
def test_the_integral_never_falls(curve: RateCurve, a: float, b: float) -> None:
    assert curve.integral(min(a, b)) <= curve.integral(max(a, b)) + 1e-9


def test_what_is_due_where_the_curve_ends_does_not_wait_for_its_return() -> None:
    assert RateCurve(((0.0, 2.0), (1.0, 0.0), (5.0, 0.0), (6.0, 2.0))).inverse(1.0) == 1.0
