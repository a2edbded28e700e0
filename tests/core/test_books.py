"""What is remembered of one budget: limit, meter, adoption, posture."""

from __future__ import annotations

from dataclasses import replace

import pytest
from splitwatt_core.budget.books import Book, Measured
from splitwatt_core.budget.facts import MeterFailure, MeterReading, Note
from splitwatt_core.budget.survey import Survey
from splitwatt_core.budget.tree import BudgetSpec, LimitState, MeterSpec, Selector
from splitwatt_core.columns import Posture

SPEC = BudgetSpec("a", "uid-a", 1, 1000, selector=Selector({"rack": "a"}), meter=MeterSpec("m", expected_series=2))
BARE = replace(SPEC, meter=None)
CALM = Survey(
    charged_w=800.0, modelled_w=500.0, explained_w=1500.0, drawn_w=400.0, known_w=400.0, drawn_s=0.0,
    stale_agents=0, unmeasured=0, unadopted=0, nodes=2,
)  # fmt: skip


def judged(book: Book, spec: BudgetSpec = SPEC, survey: Survey = CALM, now_s: float = 0.0, **more: object) -> list[Note]:
    options: dict[str, object] = {"adopted": True, "below": None, **more}
    return book.judge(spec, survey, now_s, **options)  # type: ignore[arg-type]


def metered(power_w: float, sampled_s: float = 0.0, *, now_s: float | None = None, series: int = 2) -> Book:
    book = Book.open(SPEC, 0.0)
    book.see_meter(SPEC, MeterReading(power_w, sampled_s, series), sampled_s if now_s is None else now_s)
    return book


def test_a_new_budget_adopts_first_and_says_how_long_it_took() -> None:
    book = Book.open(SPEC, 0.0)
    assert judged(book, adopted=False) == [] and book.posture is Posture.ADOPTING
    assert judged(book, now_s=6.0) == [] and book.posture is Posture.ADOPTING, "its first decision needs an answer"
    assert judged(book, adopted=False, now_s=6.5) == judged(book, now_s=7.0) == []
    (note,) = judged(book, now_s=7.25)
    assert (note.reason, note.message) == ("Adopted", "every GPU acknowledged after 7.2 s: in force")
    assert (book.adopted, book.adoption_s, book.posture) == (True, 7.25, Posture.NORMAL)
    assert judged(book, adopted=False, now_s=9.0) == [] and book.adopted, "a node that joins later is a surprise, no more"


def test_what_a_predecessor_brought_into_force_stays_in_force() -> None:
    kept = LimitState(900, 950, 5.0, ((900, 12.0),))
    book = Book.open(replace(SPEC, limit_state=kept, adopted=True), 10.0)
    assert book.limit is kept and book.adopted
    book.advance(12.0)
    assert book.limit.in_force_w == 900


def test_a_changed_limit_is_noted_with_the_time_until_it_counts() -> None:
    book = Book.open(SPEC, 0.0)
    assert book.see_limit(SPEC, 1.0) == []
    (lowered,) = book.see_limit(replace(SPEC, limit_w=600), 2.0)
    assert (lowered.reason, lowered.message) == (
        "LimitLowered",
        "limit lowered from 1000 W to 600 W, in force in 5.0 s",
    )
    (raised,) = book.see_limit(replace(SPEC, limit_w=2000), 3.0)
    assert (raised.reason, raised.message) == ("LimitRaised", "limit raised from 600 W to 2000 W")


SLOW = replace(SPEC, meter=MeterSpec("m", expected_series=2, max_age_s=90.0))


def test_what_was_drawn_before_a_cut_is_not_above_the_limit_after_it() -> None:
    """A PDU that answers once a minute."""
    book = Book.open(replace(SLOW, adopted=True), 0.0)
    book.see_meter(SLOW, MeterReading(900.0, 10.0, 2), 10.0)
    judged(book, SLOW, now_s=10.0)
    lowered = replace(SLOW, limit_w=700)
    book.see_limit(lowered, 11.0)
    for now_s in (12.0, 16.0, 40.0):
        book.advance(now_s)
        judged(book, lowered, now_s=now_s)
        assert book.posture is Posture.NORMAL and book.measured is not None
        assert (book.limit_over_w(book.measured), book.measured_w) == (1000, 900.0)
    assert book.limit.in_force_w == 700
    book.see_meter(lowered, MeterReading(750.0, 70.0, 2), 70.0)
    judged(book, lowered, now_s=70.0)
    assert book.posture is Posture.TRIM and book.limit_over_w(Measured(750.0, 70.0)) == 700
    book.see_limit(replace(SLOW, limit_w=800), 71.0)
    assert book.limit_over_w(Measured(750.0, 70.0)) == 800, "raised, the present one counts"
    assert book.limit_over_w(Measured(750.0, 15.0)) == 1000


def test_a_draw_above_limits_that_fall_again_and_again_is_not_hidden_by_them() -> None:
    book = Book.open(replace(SPEC, adopted=True), 0.0)
    seen = []
    for second in range(40):
        spec = replace(SPEC, limit_w=1000 - 5 * second)
        book.see_limit(spec, float(second))
        book.advance(float(second))
        book.see_meter(spec, MeterReading(1010.0, second - 2.0, 2), float(second))
        judged(book, spec, now_s=float(second))
        seen.append(book.posture)
    assert seen[-1] is Posture.BRAKE and Posture.TRIM in seen[:8]


def test_the_meter_is_believed_while_it_is_fresh() -> None:
    book = metered(700.0)
    judged(book, now_s=5.0)
    assert book.measured_w == 700.0
    judged(book, now_s=5.1)
    assert book.measured_w == 500.0
    assert book.raise_forbidden(SPEC, CALM, 5.1) == "meter is stale: newest complete sample is 5.1 s old"


@pytest.mark.parametrize(
    ("reading", "why"),
    [
        (MeterFailure("no answer"), "no answer"),
        (MeterReading(700.0, 0.0, 1), "meter returned 1 series, spec.meter.expectedSeries is 2"),
        (MeterReading(float("nan"), 0.0, 2), "meter returned nan W"),
        (MeterReading(float("inf"), 0.0, 2), "meter returned inf W"),
        (MeterReading(-5.0, 0.0, 2), "meter returned -5.0 W"),
    ],
)
def test_what_is_no_reading_is_no_zero_and_forbids_raises(reading: MeterReading | MeterFailure, why: str) -> None:
    book = Book.open(SPEC, 0.0)
    book.see_meter(SPEC, reading, 0.0)
    judged(book, survey=replace(CALM, unmeasured=1))
    assert book.measured_w is None
    assert book.raise_forbidden(SPEC, CALM, 0.0) == f"meter is stale: {why}"


def test_a_sample_from_the_future_grows_old_from_now_on() -> None:
    book = metered(700.0, 1000.0, now_s=10.0)
    judged(book, now_s=10.0)
    assert book.fresh_reading(SPEC, 15.0) is not None
    assert book.fresh_reading(SPEC, 15.1) is None


def test_without_a_meter_the_agents_sum_stands_in_for_it() -> None:
    book = Book.open(BARE, 0.0)
    judged(book, BARE)
    assert book.measured_w == 500.0
    assert book.raise_forbidden(BARE, CALM, 0.0) is None
    stale = replace(CALM, stale_agents=2, unmeasured=2, silent=("n1", "n2"))
    judged(book, BARE, stale)
    assert book.measured_w is None
    assert book.raise_forbidden(BARE, stale, 0.0) == "there is no meter, and 2 agents gave no sample lately: n1, n2"


def test_a_parent_without_a_meter_adds_up_what_its_children_measured() -> None:
    parent = replace(BARE, selector=None)
    book = Book.open(parent, 0.0)
    judged(book, parent, below=Measured(640.0, 0.0))
    assert book.measured_w == 640.0
    assert book.raise_forbidden(parent, replace(CALM, stale_agents=1), 0.0) is None, "its leaves hold back for themselves"


def in_force(spec: BudgetSpec = SPEC) -> Book:
    """A budget that was adopted long ago."""
    return Book.open(replace(spec, adopted=True), 0.0)


def test_a_meter_above_the_limit_changes_the_posture_says_so_and_holds_raises_back() -> None:
    book = in_force()
    book.see_meter(SPEC, MeterReading(700.0, 0.0, 2), 0.0)
    assert judged(book) == []
    book.see_meter(SPEC, MeterReading(1040.0, 1.0, 2), 1.0)
    (note,) = judged(book, now_s=1.0)
    assert (note.message, note.warning) == ("Normal -> Trim: measured 1040 W of 1000 W", True)
    assert book.raise_forbidden(SPEC, CALM, 1.0) == "posture is Trim"
    for t in range(2, 30):
        book.see_meter(SPEC, MeterReading(900.0, float(t), 2), float(t))
        notes = judged(book, now_s=float(t))
        if notes:
            break
    assert (notes[0].message, notes[0].warning) == ("Trim -> Normal: measured 900 W of 1000 W", False)


def test_a_new_budget_is_judged_by_what_was_measured_after_its_caps_held() -> None:
    book = metered(1500.0)
    judged(book)
    judged(book, now_s=1.0)
    assert book.adopted
    # The second sample above 110 % brakes.
    for now_s, posture in ((2.0, Posture.NORMAL), (3.9, Posture.NORMAL), (4.0, Posture.TRIM), (4.5, Posture.BRAKE)):
        book.see_meter(SPEC, MeterReading(1500.0, now_s, 2), now_s)
        judged(book, now_s=now_s)
        assert book.posture is posture


def test_a_meter_that_was_removed_takes_its_correction_along() -> None:
    book = Book.open(SPEC, 0.0)
    for t in range(10):
        book.see_meter(SPEC, MeterReading(600.0, float(t), 2), float(t))
        judged(book, now_s=float(t))
    assert book.correction.power_w == 100.0
    judged(book, SPEC, now_s=60.0)
    assert book.correction.power_w == 100.0, "a stale meter does not"
    judged(book, BARE, now_s=61.0)
    assert book.correction.power_w == 0.0


def test_a_meter_that_is_late_is_held_against_the_model_of_its_samples_time() -> None:
    """The load falls by 20 W a second for 20 s, and the meter tells of it 2 s later: nothing is undeclared."""
    book = Book.open(SPEC, 0.0)

    def load_w(at_s: float) -> float:
        return 900.0 - 20.0 * min(max(at_s - 10.0, 0.0), 20.0)

    for t in range(60):
        book.see_meter(SPEC, MeterReading(load_w(t - 2.0), t - 2.0, 2), float(t))
        judged(book, now_s=float(t), survey=replace(CALM, modelled_w=load_w(t)))
        assert book.correction.power_w == 0.0, t


def test_watts_that_nobody_declared_are_found_while_the_load_falls() -> None:
    book = Book.open(SPEC, 0.0)
    for t in range(60):
        load_w = 800.0 - 5.0 * t
        book.see_meter(SPEC, MeterReading(load_w + 10.0 + 150.0, t - 2.0, 2), float(t))
        judged(book, now_s=float(t), survey=replace(CALM, modelled_w=load_w))
    # The model of two seconds ago, give or take one, was 10 W to 15 W higher.
    assert book.correction.power_w == pytest.approx(145.0, abs=5.0)
