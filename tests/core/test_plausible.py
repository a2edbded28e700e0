"""Numbers that cannot be true are told and acted on by nobody; honest ones, however noisy and late, are believed."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from splitwatt_core.budget.books import Book
from splitwatt_core.budget.facts import MeterReading
from splitwatt_core.budget.meters import plausible
from splitwatt_core.budget.reporting.freshness import telemetry_fresh
from splitwatt_core.budget.survey import Survey
from splitwatt_core.budget.tree import BudgetSpec, MeterSpec, Selector
from splitwatt_core.columns import Posture

LIMIT_W = 40_000
EXPLAINED_W = 30_400.0
"""Four servers of eight H100 with losses, and 7.1 kW declared."""
REST_W = 7_100.0
GPUS_W = 22_400.0
Load = Callable[[float], float]


def spec_of(meter: MeterSpec | None = None, limit_w: int = LIMIT_W) -> BudgetSpec:
    return BudgetSpec("rack", "uid", 1, limit_w, selector=Selector({"rack": "a"}), meter=meter or MeterSpec("m"), adopted=True)


@dataclass(slots=True)
class Rack:
    """A budget in force, looked at once a second. `gpus_w`: what its GPUs draw by time; `rest_w`: what else really flows.
    Agents read with an error and with samples as old as told."""

    gpus_w: Load
    rest_w: float = REST_W
    limit_w: int = LIMIT_W
    meter: MeterSpec | None = None
    agents_every_s: float = 1.0
    agents_error: float = 0.0
    explained_w: float = EXPLAINED_W
    silent: int = 0
    spec: BudgetSpec = field(init=False)
    book: Book = field(init=False)
    worst: Posture = Posture.ADOPTING

    def __post_init__(self) -> None:
        self.spec = spec_of(self.meter, self.limit_w)
        self.book = Book.open(self.spec, 0.0)

    def truth_w(self, at_s: float) -> float:
        return 1.04 * self.gpus_w(at_s) + self.rest_w

    def step(self, now_s: float, *samples: MeterReading) -> None:
        for sample in samples:
            self.book.see_meter(self.spec, sample, now_s)
        self.book.advance(now_s)
        drawn_s = math.floor(now_s / self.agents_every_s) * self.agents_every_s
        read_w = self.gpus_w(drawn_s) * (1.0 + self.agents_error)
        survey = Survey(
            charged_w=EXPLAINED_W,
            modelled_w=1.04 * read_w + REST_W,
            explained_w=self.explained_w,
            drawn_w=0.0 if self.silent else read_w,
            known_w=read_w,
            drawn_s=math.inf if self.silent else drawn_s,
            stale_agents=self.silent,
            unmeasured=self.silent,
            unadopted=0,
            nodes=4,
        )
        self.book.judge(self.spec, survey, now_s, adopted=True, below=None)
        self.worst = max(self.worst, self.book.posture)

    def said(self, now_s: float) -> tuple[bool | None, str, str]:
        condition = telemetry_fresh(self.spec, self.book, now_s, nodes=1)
        return condition.status, condition.reason, condition.message

    def held(self, now_s: float) -> str | None:
        survey = Survey(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0, 0, 0, 4)
        return self.book.raise_forbidden(self.spec, survey, now_s)


def steady(power_w: float) -> Load:
    return lambda at_s: power_w


def play(rack: Rack, shown_w: Callable[[float], float], seconds: int, start: int = 0) -> None:
    """A meter that is sampled and read once a second."""
    for now in range(start, start + seconds):
        rack.step(now + 0.5, MeterReading(shown_w(now + 0.1), now + 0.1, 1))


# ------------------------------------------------------------------------------------------------------- above all reason


@pytest.mark.parametrize("power_w", [65535.0, 4294967295.0, 9.2e18, 1.4e14, 65534.0, 131071.0, 2.15e7, 215_000.0])
@pytest.mark.parametrize("count", [1, 10])
def test_what_nothing_can_explain_is_named_and_neither_brakes_nor_raises(power_w: float, count: int) -> None:
    rack = Rack(steady(14_000.0))
    play(rack, rack.truth_w, 10)
    play(rack, steady(power_w), count, start=10)
    now_s = 9.5 + count
    status, reason, message = rack.said(now_s)
    assert (status, reason) == (False, "Implausible")
    assert f"reads {power_w:.0f}" in message and "meter.scale" in message
    assert str(rack.held(now_s)).startswith("meter is implausible")
    assert rack.worst is Posture.NORMAL
    assert rack.book.measured_w != power_w
    play(rack, rack.truth_w, 1, start=10 + count)
    assert rack.said(now_s + 1.0)[1] == "Fresh" and rack.held(now_s + 1.0) is None


@pytest.mark.parametrize("times", [10.0, 1000.0, 100.0])
def test_a_wrong_unit_is_refused_from_its_first_sample_on(times: float) -> None:
    rack = Rack(steady(14_000.0))
    play(rack, lambda at_s: times * rack.truth_w(at_s), 30)
    assert rack.said(29.5)[1] == "Implausible" and rack.worst is Posture.NORMAL


def test_a_register_of_ones_is_no_value_even_where_it_could_flow() -> None:
    """A row of two such racks could draw 65 535 W."""
    row = Rack(steady(28_000.0), rest_w=14_200.0, limit_w=70_000, explained_w=2 * EXPLAINED_W)
    play(row, row.truth_w, 5)
    play(row, steady(65_535.0), 5, start=5)
    status, reason, message = row.said(9.5)
    assert (status, reason) == (False, "Implausible")
    assert message.startswith("the meter reads 65535, which meters send when they have no value")


def test_the_sign_bit_alone_is_no_value_either() -> None:
    """What stands for "no value" in a signed register, read unsigned: 32 768 W would brake a rack of 26 kW."""
    rack = Rack(steady(14_000.0), limit_w=26_000)
    play(rack, rack.truth_w, 5)
    play(rack, steady(32_768.0), 5, start=5)
    assert rack.said(9.5)[1] == "Implausible" and rack.worst is Posture.NORMAL


def test_a_counter_that_was_taken_for_a_meter_is_not_believed_step_by_step() -> None:
    """Energy since the exporter's start: it passes by what is drawn, and rises for ever."""
    rack = Rack(steady(14_000.0))
    play(rack, lambda at_s: 20_000.0 + 500.0 * at_s, 200)
    assert rack.said(199.5)[1] == "Implausible"
    assert rack.book.meter.reading is not None
    assert rack.book.meter.reading.power_w <= plausible.BELIEVED_TIMES * plausible.EXPLAINED_TIMES * EXPLAINED_W


def test_after_a_cut_of_the_limit_an_honest_meter_is_believed_at_every_sample() -> None:
    rack = Rack(steady(14_000.0), rest_w=40_000.0)
    rack.explained_w = EXPLAINED_W
    play(rack, rack.truth_w, 10)
    rack.limit_w = 20_000
    rack.spec = spec_of(limit_w=20_000)
    rack.book.see_limit(rack.spec, 10.0)
    rack.explained_w = 20_000.0
    play(rack, rack.truth_w, 60, start=10)
    assert rack.said(69.5)[1] != "Implausible"


def test_a_meter_may_pass_by_such_a_number() -> None:
    rack = Rack(steady(24_679.0))
    assert abs(rack.truth_w(0.0) - 32_767.0) < 5.0
    play(rack, steady(32_767.0), 5)
    assert rack.said(4.5)[0] is True


def test_a_sentinel_among_good_series_is_found() -> None:
    rack = Rack(steady(14_000.0), meter=MeterSpec("m", expected_series=2))
    rack.step(1.0, MeterReading(21_000.0, 0.9, 2, extremes_w=(10_400.0, 10_600.0)))
    assert rack.said(1.0)[0] is True
    rack.step(2.0, MeterReading(10_599.0, 1.9, 2, extremes_w=(-1.0, 10_600.0)))
    assert rack.said(2.0)[1:] == (
        "Implausible",
        "one of the meter's 2 series reads -1 W; look at the meter, meter.selector and meter.scale",
    )
    rack.step(3.0, MeterReading(43_367.0, 2.9, 2, extremes_w=(10_600.0, 32_767.0)))
    assert rack.said(3.0)[1] == "Implausible"


def test_a_sentinel_is_known_in_the_meters_own_unit() -> None:
    rack = Rack(steady(14_000.0), meter=MeterSpec("m", scale=(1, 10)))
    rack.step(1.0, MeterReading(6_553.5, 0.9, 1))
    assert rack.said(1.0)[1] == "Implausible"


@given(
    number=st.sampled_from(sorted(plausible.NO_VALUES)), divided=st.sampled_from([1, 10, 100, 1000]), scale=st.integers(1, 5000)
)
def test_an_empty_register_is_known_whatever_divided_it(number: float, divided: int, scale: int) -> None:
    """The exporter, or meter.scale, or both."""
    raw = number / divided
    assert plausible.is_no_value(raw * (1.0 / scale) / (1.0 / scale), 20_000.0, None, 9_000.0)
    assert not plausible.is_no_value(raw * (1.0 + 1e-6), 20_000.0, None, 9_000.0)


@given(most_w=st.integers(0, 100_000), power_w=st.floats())
def test_an_agents_sum_is_believed_where_its_gpus_could_draw_it(most_w: int, power_w: float) -> None:
    said = plausible.agent_problem("n1", power_w, most_w=most_w)
    if 0 <= power_w <= (most_w or 10_000):
        assert not said
    elif not 0 <= power_w <= max(2 * most_w, 15_000):
        assert said.startswith("the agent on n1 says that its GPUs draw ")


@pytest.mark.parametrize("power_w", [28_000.0, 33_000.0, 38_000.0])
def test_an_under_declared_rack_above_its_limit_still_brakes(power_w: float) -> None:
    rack = Rack(steady(20_000.0), limit_w=26_000)
    play(rack, steady(power_w), 12)
    assert rack.book.posture is Posture.BRAKE
    assert rack.book.measured_w == power_w


def test_nodes_that_nobody_declared_are_believed_up_to_half_again_the_limit() -> None:
    rack = Rack(steady(0.0), explained_w=0.0)
    play(rack, steady(24_000.0), 3)
    assert rack.book.measured_w == 24_000.0
    play(rack, steady(59_000.0), 3, start=3)
    assert rack.book.measured_w == 59_000.0


def test_a_cut_of_the_limit_makes_no_honest_reading_a_lie() -> None:
    rack = Rack(steady(5_000.0), explained_w=8_000.0)
    play(rack, steady(32_000.0), 5)
    rack.spec = replace(rack.spec, limit_w=5_000, limit_grace_s=0.0)
    rack.book.see_limit(rack.spec, 5.0)
    play(rack, steady(32_000.0), 12, start=5)
    assert rack.said(16.5)[1] != "Implausible" and rack.book.posture is Posture.BRAKE


# ------------------------------------------------------------------------------------------------ below the GPUs' own draw


def braked(shown_w: float) -> Rack:
    """Above its limit until it braked, and then the meter fails."""
    rack = Rack(steady(20_000.0), limit_w=26_000)
    play(rack, steady(28_000.0), 10)
    assert rack.book.posture is Posture.BRAKE
    play(rack, steady(shown_w), 60, start=10)
    return rack


@pytest.mark.parametrize("shown_w", [0.0, 27.9, 2_790.0, 279.0, 12_000.0, 16_500.0])
def test_a_meter_that_falls_below_what_gpus_draw_lets_go_of_nothing(shown_w: float) -> None:
    rack = braked(shown_w)
    assert rack.book.posture is Posture.BRAKE
    status, reason, message = rack.said(69.5)
    assert (status, reason) == (False, "Contradicted")
    assert f"reads {shown_w:.0f} W while the GPUs behind it draw 20000 W" in message
    assert "the agents' sum with what is declared, 27900 W, is used instead" in message
    assert rack.book.measured_w == pytest.approx(1.04 * 20_000 + REST_W)
    assert rack.held(69.5) == "posture is Brake"


def test_it_is_named_within_seconds_and_cleared_by_two_good_samples() -> None:
    rack = Rack(steady(14_000.0))
    play(rack, rack.truth_w, 10)
    play(rack, steady(0.0), 9, start=10)
    assert rack.said(18.5)[1] == "Contradicted"
    assert rack.held(18.5) == "meter is contradicted: it reads 0 W while GPUs draw 14000 W"
    play(rack, rack.truth_w, 1, start=19)
    assert rack.said(19.5)[1] == "Contradicted", "one may be odd"
    play(rack, rack.truth_w, 2, start=20)
    assert rack.said(21.5)[1] == "Fresh"


def test_one_odd_sample_contradicts_nothing_and_teaches_nothing() -> None:
    rack = Rack(steady(14_000.0), rest_w=REST_W + 3_000.0)
    play(rack, rack.truth_w, 20)
    learnt_w = rack.book.correction.power_w
    assert learnt_w == pytest.approx(3_000.0)
    play(rack, steady(0.0), 1, start=20)
    play(rack, rack.truth_w, 5, start=21)
    assert rack.said(25.5)[1] == "NonGpuUnderDeclared"
    assert rack.book.correction.power_w == learnt_w


def test_what_the_meter_taught_while_it_was_right_is_kept() -> None:
    rack = Rack(steady(14_000.0), rest_w=REST_W + 3_000.0)
    play(rack, rack.truth_w, 20)
    play(rack, lambda at_s: 0.1 * rack.truth_w(at_s), 300, start=20)
    assert rack.book.correction.power_w == pytest.approx(3_000.0)
    assert rack.book.measured_w == pytest.approx(rack.truth_w(0.0))


def test_agents_that_fall_silent_clear_no_meter() -> None:
    rack = braked(0.0)
    rack.silent = 4
    play(rack, steady(0.0), 60, start=70)
    assert rack.said(129.5)[1] == "Contradicted"
    assert "nothing is used instead" in rack.said(129.5)[2]
    assert rack.book.posture is Posture.BRAKE and rack.book.measured_w is None


def test_idle_gpus_contradict_a_meter_in_the_wrong_unit_too() -> None:
    rack = Rack(steady(32 * 70.0))
    play(rack, lambda at_s: 0.1 * rack.truth_w(at_s), 12)
    assert rack.said(11.5)[1] == "Contradicted"


# --------------------------------------------------------------------------------------------------- honest meters are believed

LEVELS = st.lists(
    st.tuples(st.integers(2, 40), st.floats(0.1, 1.0), st.sampled_from([0.0, 2.0, 8.0, 30.0])), min_size=1, max_size=8
)
"""So many seconds, at a share of all GPUs' maxima, reached by a ramp of so many seconds."""


def load_of(levels: list[tuple[int, float, float]]) -> Load:
    def at(at_s: float) -> float:
        before, start_s = levels[0][1], 0.0
        for seconds, share, ramp_s in levels:
            since_s = at_s - start_s
            if since_s < seconds or (seconds, share, ramp_s) == levels[-1]:
                done = 1.0 if ramp_s == 0.0 else min(1.0, max(0.0, since_s) / ramp_s)
                return GPUS_W * (before + (share - before) * done)
            before += (share - before) * (1.0 if ramp_s == 0.0 else min(1.0, seconds / ramp_s))
            start_s += seconds
        raise AssertionError("the last level has no end")

    return at


@given(
    levels=LEVELS,
    every_s=st.sampled_from([1, 1, 5, 15, 60]),
    late_s=st.sampled_from([0, 1, 3]),
    agents_every_s=st.sampled_from([1.0, 1.0, 5.0, 30.0]),
    meter_error=st.floats(-0.02, 0.02),
    agents_error=st.floats(-0.05, 0.05),
    step_w=st.sampled_from([1.0, 10.0, 100.0]),
)
def test_noise_lag_and_any_load_never_make_an_honest_meter_a_liar(
    *, levels: list[tuple[int, float, float]], every_s: int, late_s: int, agents_every_s: float, meter_error: float,
    agents_error: float, step_w: float,
) -> None:  # fmt: skip
    """A PDU that measures every so often, rounds, and is read each second with a fresh time on it."""
    max_age_s = 5.0 if every_s == 1 else 1.5 * every_s
    slowest_s = max(every_s, int(agents_every_s))  # a load that both can see
    levels = [(max(seconds, slowest_s), share, ramp_s) for seconds, share, ramp_s in levels]
    rack = Rack(
        load_of(levels), meter=MeterSpec("m", max_age_s=max_age_s), agents_every_s=agents_every_s, agents_error=agents_error
    )
    for now in range(sum(seconds for seconds, _, _ in levels) + 20):
        measured_s = math.floor(now / every_s) * every_s - late_s
        shown_w = round(rack.truth_w(max(0.0, measured_s)) * (1.0 + meter_error) / step_w) * step_w
        rack.step(now + 0.5, MeterReading(shown_w, now + 0.2, 1))
        assert not rack.book.meter.doubt.contradicted
        assert not rack.book.meter.refused


@given(share=st.floats(0.0, 2.0), explained_w=st.floats(0.0, 1e6), limit_w=st.floats(1.0, 1e6), rest=st.floats(0.0, 0.99))
def test_no_bound_lies_below_what_physics_allows(share: float, explained_w: float, limit_w: float, rest: float) -> None:
    """GPUs at their maxima and as much again that nobody declared, or an overload that a breaker carries for minutes."""
    most_w = plausible.most_w(explained_w=explained_w, limit_w=limit_w, believed_w=None)
    assert most_w >= explained_w * (1.0 + rest)
    assert most_w >= 1.35 * limit_w
    assert not plausible.contradicts(share * explained_w + explained_w, 1.05 * explained_w)
