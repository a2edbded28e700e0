"""What is remembered of one meter: why nothing is fresh, in words that say what to change; and samples that count once."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from splitwatt_core.budget.books import Book, judge_all
from splitwatt_core.budget.facts import MeterFailure, MeterReading
from splitwatt_core.budget.reporting.freshness import telemetry_fresh
from splitwatt_core.budget.survey import Survey
from splitwatt_core.budget.tree import BudgetSpec, MeterSpec, Selector, build_tree
from splitwatt_core.columns import Posture

CALM = Survey(
    charged_w=800.0, modelled_w=600.0, explained_w=1500.0, drawn_w=400.0, known_w=400.0, drawn_s=0.0,
    stale_agents=0, unmeasured=0, unadopted=0, nodes=2,
)  # fmt: skip


def metered(name: str = "a", *, max_age_s: float = 5.0, parent: str | None = None) -> tuple[BudgetSpec, Book]:
    spec = BudgetSpec(
        name,
        "u",
        1,
        1000,
        parent=parent,
        selector=Selector({"rack": name}),
        meter=MeterSpec("m", max_age_s=max_age_s),
        adopted=True,
    )
    return spec, Book.open(spec, 0.0)


def look(spec: BudgetSpec, book: Book, now_s: float, answer: MeterReading | MeterFailure | None = None) -> str:
    """One step; the message of the condition."""
    if answer is not None:
        book.see_meter(spec, answer, now_s)
    book.judge(spec, replace(CALM, drawn_s=now_s), now_s, adopted=True, below=None)
    return telemetry_fresh(spec, book, now_s, nodes=1).message


def test_samples_that_are_late_by_construction_are_told_from_a_dead_meter() -> None:
    """VictoriaMetrics keeps the newest 30 s back: each second brings a new sample that is too old already."""
    spec, book = metered()
    for now in range(100, 130):
        said = look(spec, book, now + 0.5, MeterReading(600.0, now - 31.0, 1))
    assert said == (
        "no fresh meter reading: newest sample is 32 s old at every look: scrape interval or query latency (VictoriaMetrics: "
        "-search.latencyOffset); make them shorter, or meter.maxAgeSeconds, now 5, longer"
    )
    for now in range(130, 160):
        said = look(spec, book, now + 0.5, MeterReading(600.0, 98.0, 1))
    assert said == "no fresh meter reading: newest complete sample is 61.5 s old", "it moves no more"
    assert look(spec, book, 160.5, MeterReading(600.0, 160.0, 1)) == "the meter's samples are fresh"


def test_a_meter_that_is_scraped_too_seldom_is_told_how_often() -> None:
    spec, book = metered()
    for now in range(100, 178):
        said = look(spec, book, now + 0.5, MeterReading(700.0, now // 30 * 30.0, 1))
    assert said == (
        "no fresh meter reading: newest sample is 27.5 s old, and they come every 30 s: scrape the meter more often, or make "
        "meter.maxAgeSeconds, now 5, longer"
    )


def test_the_age_in_the_sentence_is_that_of_now() -> None:
    """Nothing was asked since: the process was stopped, or Prometheus does not answer at all."""
    spec, book = metered()
    look(spec, book, 1.0, MeterReading(700.0, 0.5, 1))
    assert look(spec, book, 21.0) == "no fresh meter reading: newest complete sample is 20.5 s old"
    assert look(spec, book, 22.0, MeterFailure("no answer")) == "no fresh meter reading: no answer"


@pytest.mark.parametrize(("second", "worst"), [(900.0, Posture.TRIM), (1030.0, Posture.BRAKE)])
def test_a_pdu_that_answers_once_a_minute_brakes_on_two_samples_and_not_on_one(second: float, worst: Posture) -> None:
    spec, book = metered(max_age_s=90.0)
    postures = []
    for now in range(300):
        shown_w = (900.0, 1030.0, second, 900.0, 900.0)[now // 60]
        look(spec, book, float(now), MeterReading(shown_w, now // 60 * 60.0, 1))
        postures.append(book.posture)
    assert max(postures) is worst
    assert postures[60] is Posture.TRIM
    assert postures[119] is Posture.TRIM, "sixty looks at one sample"


def test_one_odd_sample_of_a_slow_meter_corrects_nothing() -> None:
    spec, book = metered(max_age_s=90.0)
    for now in range(300):
        shown_w = 900.0 if now // 60 == 2 else 610.0
        look(spec, book, float(now), MeterReading(shown_w, now // 60 * 60.0, 1))
        assert book.correction.power_w == 0.0


def test_a_clock_that_is_set_back_stops_no_counting() -> None:
    spec, book = metered()
    for now in (*range(5000, 5010), *range(1000, 1012)):
        look(spec, book, float(now), MeterReading(1040.0 if now < 5000 else 700.0, now - 0.5, 1))
    assert book.posture is Posture.BRAKE


@pytest.mark.parametrize("ahead_s", [3, 3600])
def test_a_sample_from_the_future_counts_once_and_grows_old(ahead_s: int) -> None:
    """The meter's clock, or Prometheus', is ahead of ours, and then the meter dies."""
    spec, book = metered()
    for now in range(10):
        look(spec, book, float(now), MeterReading(900.0, float(now + ahead_s), 1))
    for now in range(10, 30):
        said = look(spec, book, float(now), MeterReading(1150.0, 10.0 + ahead_s, 1))
    assert book.posture is Posture.TRIM, "one sample, looked at twenty times"
    assert said == "no fresh meter reading: newest complete sample is 19.0 s old"


def test_a_meter_that_dies_lets_go_of_nothing_whoever_stands_in_for_it() -> None:
    """The agents tell of what is declared alone: it would look like watts that nobody draws any more."""
    spec, book = metered()
    for now in range(10):
        look(spec, book, float(now), MeterReading(1200.0, float(now), 1))
    assert book.posture is Posture.BRAKE
    for now in range(10, 120):
        look(spec, book, float(now), MeterFailure("no series"))
    assert book.measured_w == 600.0 and book.posture is Posture.BRAKE
    for now in range(120, 160):
        look(spec, book, float(now), MeterReading(700.0, float(now), 1))
    assert book.posture is Posture.NORMAL


def test_nor_does_the_budget_above_that_adds_it_up() -> None:
    (leaf, leaf_book), (other, other_book) = metered("a", parent="row"), metered("b", parent="row")
    row = BudgetSpec("row", "u", 1, 2000, adopted=True)
    row_book = Book.open(row, 0.0)
    specs = {"row": row, "a": leaf, "b": other}
    tree = build_tree(specs)
    books = {"row": row_book, "a": leaf_book, "b": other_book}

    def step(now_s: float, a: MeterReading | MeterFailure, b: MeterReading) -> None:
        leaf_book.see_meter(leaf, a, now_s)
        other_book.see_meter(other, b, now_s)
        surveys = [replace(CALM, drawn_s=now_s) for _ in tree.order]
        judge_all([specs[n] for n in tree.order], [books[n] for n in tree.order], surveys, tree=tree, now_s=now_s)

    for now in range(10):
        step(float(now), MeterReading(1200.0, float(now), 1), MeterReading(950.0, float(now), 1))
    assert row_book.posture is Posture.BRAKE and row_book.measured_w == 2150.0
    for now in range(10, 100):
        step(float(now), MeterFailure("no series"), MeterReading(800.0, float(now), 1))
    assert row_book.measured_w == 1400.0
    assert row_book.posture is Posture.BRAKE, "one of its meters is missing"
    for now in range(100, 140):
        step(float(now), MeterReading(700.0, float(now), 1), MeterReading(800.0, float(now), 1))
    assert row_book.posture is Posture.NORMAL


ANY = st.one_of(st.floats(), st.sampled_from([0.0, -0.0, 1e308, -1e308, 5e-324, float("inf"), float("-inf"), 4294967295.0]))


@given(power_w=ANY, least_w=ANY, most_w=ANY, ago_s=st.floats(allow_nan=False, allow_infinity=False), scale=st.integers(1, 10**6))
def test_no_number_of_a_meter_ends_a_step(power_w: float, least_w: float, most_w: float, ago_s: float, scale: int) -> None:
    """Of one series of many as well, and beyond what a float can hold once it is in watts."""
    spec, book = metered()
    meter = MeterSpec("m", scale=(scale, 1))
    spec = replace(spec, meter=meter)
    reading = MeterReading(scale * power_w, 100.0 - ago_s, 1, (scale * least_w, scale * most_w))
    assert look(spec, book, 100.0, reading)
    assert book.measured_w is None or 0.0 <= book.measured_w < float("inf")


@pytest.mark.parametrize("beyond", [(float("-inf"), 400.0), (400.0, float("inf"))])
def test_one_series_beyond_all_numbers_makes_the_whole_meter_fail(beyond: tuple[float, float]) -> None:
    spec, book = metered()
    said = look(spec, book, 1.0, MeterReading(500.0, 1.0, 1, beyond))
    assert "meter returned" in said and "inf W" in said
