"""Traces as the twin replays them: rows, pacing, and the generator's fit to the conversation trace."""

import itertools
import statistics
import time
from pathlib import Path

import pytest
from splitwatt_truth.trace import (
    CONV_OUTPUT_TOKENS,
    CONV_PROMPT_TOKENS,
    MAX_RATE_POINTS,
    Quantiles,
    RateCurve,
    TraceError,
    TraceRow,
)
from splitwatt_truth.trace_files import parse_trace, rows_of
from splitwatt_twin.arrivals import arrivals, generate, read_trace, replay

GOOD = [
    "TIMESTAMP,ContextTokens,GeneratedTokens\r\n",
    "2023-11-16 18:15:46.6805900,374,44\r\n",
    "2023-11-16 18:15:50.9951690,396,109\r\n",
    "2023-11-16 18:15:51.2225670,879,55",
]


def rows_in(lines: list[str]) -> tuple[TraceRow, ...]:
    return rows_of(parse_trace(lines, name="t.csv"), name="t.csv")


def test_reads_the_azure_columns() -> None:
    rows = rows_in(GOOD)
    assert [(r.prompt_tokens, r.output_tokens) for r in rows] == [(374, 44), (396, 109), (879, 55)]
    assert [r.at_s for r in rows] == pytest.approx([0.0, 4.314579, 4.541977], abs=1e-5)


def test_other_columns_and_orders_and_plain_seconds_are_fine(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("\ufeffGeneratedTokens,model,TIMESTAMP,ContextTokens\n5,x,20,100\n\n7,y,10.5,200\n")
    assert [(r.at_s, r.prompt_tokens, r.output_tokens) for r in read_trace(path)] == [(0.0, 200, 7), (9.5, 100, 5)]


@pytest.mark.parametrize("rows", [1, 2])
def test_a_trace_without_a_rate_cannot_be_repeated(rows: int) -> None:
    with pytest.raises(TraceError, match=f"^t.csv must hold at least two requests at different times; it has {rows} rows$"):
        rows_in([GOOD[0], *[GOOD[1]] * rows])


def test_an_unreadable_trace_says_so(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"there is no trace .*missing\.csv; check the path"):
        read_trace(tmp_path / "missing.csv")
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(TraceError, match="cannot read the trace"):
        read_trace(tmp_path / "binary.csv")


def _quantile(values: list[float], level: float) -> float:
    return sorted(values)[round(level * (len(values) - 1))]


def test_the_generator_fits_the_conversation_trace() -> None:
    samples = list(itertools.islice(generate("fit"), 40_000))
    gaps, prompts, outputs = ([float(s[i]) for s in samples] for i in range(3))
    for values, wanted in ((prompts, (1020, 2734, 4142)), (outputs, (129, 424, 601))):
        for level, quantile in zip((0.5, 0.9, 0.99), wanted, strict=True):
            assert _quantile(values, level) == pytest.approx(quantile, rel=0.05)
    assert statistics.mean(gaps) == pytest.approx(1.0, rel=0.03)
    assert statistics.stdev(gaps) / statistics.mean(gaps) == pytest.approx(1.09, abs=0.04)
    assert statistics.mean(prompts) == pytest.approx(1155, rel=0.05)
    assert statistics.mean(outputs) == pytest.approx(211, rel=0.05)


def test_the_quantiles_are_met_exactly() -> None:
    for table in (CONV_PROMPT_TOKENS, CONV_OUTPUT_TOKENS):
        assert [table.at(p) for p, _ in table.points] == [t for _, t in table.points]


@pytest.mark.parametrize(
    "points", [((0.0, 1),), ((0.0, 1), (0.9, 2)), ((0.0, 2), (1.0, 1)), ((0.0, 0), (1.0, 1)), ((0.5, 1), (0.5, 2))]
)
def test_quantiles_must_rise(points: tuple[tuple[float, int], ...]) -> None:
    with pytest.raises(TraceError, match="must rise"):
        Quantiles(points)


def test_the_same_seed_gives_the_same_requests_and_another_one_others() -> None:
    first, again, other = (list(itertools.islice(generate(s), 50)) for s in ("1/a", "1/a", "1/b"))
    assert first == again != other


def test_replay_keeps_sizes_order_and_gaps_and_goes_round() -> None:
    rows = rows_in(GOOD)
    samples = list(itertools.islice(replay(rows, first=1), 4))
    assert [s[1] for s in samples] == [396, 879, 374, 396]
    gaps = [s[0] for s in samples]
    assert gaps[0] / gaps[1] == pytest.approx(4.314579 / 0.227398, rel=1e-4)
    assert gaps[0] == gaps[3]


def test_arrivals_keep_the_wanted_rate_on_a_rising_curve() -> None:
    curve = RateCurve(((0.0, 1.0), (100.0, 3.0)))
    times = [a.at_s for a in arrivals(generate("r"), requests_per_s=20, curve=curve, begin_s=0, end_s=200)]
    assert times == sorted(times) and times[-1] < 200
    first, second = sum(t < 50 for t in times), sum(t >= 100 for t in times)
    assert first == pytest.approx(20 * 50 * 1.5, rel=0.1)
    assert second == pytest.approx(20 * 100 * 3, rel=0.06)


def test_arrivals_of_a_late_cluster_begin_when_it_does() -> None:
    stream = arrivals(generate("r"), requests_per_s=5, curve=RateCurve(), begin_s=60, end_s=80)
    times = [a.at_s for a in stream]
    assert 60 <= times[0] < 63 and times[-1] < 80 and len(times) == pytest.approx(100, rel=0.35)
    assert not list(arrivals(generate("r"), requests_per_s=0, curve=RateCurve(), begin_s=0, end_s=10))


def test_the_curve_is_linear_between_points_and_constant_outside() -> None:
    curve = RateCurve(((10.0, 2.0), (20.0, 4.0)))
    assert [curve.at(t) for t in (0, 10, 15, 20, 99)] == [2, 2, 3, 4, 4]
    assert [curve.integral(t) for t in (0, 10, 20, 30)] == [0, 20, 50, 90]


def test_a_curve_of_a_month_is_asked_as_fast_as_a_short_one() -> None:
    curve = RateCurve(tuple((60.0 * i, 1.0 + i % 2) for i in range(MAX_RATE_POINTS)))
    assert curve.integral(60.0 * (MAX_RATE_POINTS - 1)) == pytest.approx(90.0 * (MAX_RATE_POINTS - 1))
    began_s = time.process_time()
    at_s = [curve.inverse(90.0 * i) for i in range(0, 40_000, 4)]
    assert time.process_time() - began_s < 2, "10 000 requests; a search through all points would take a minute"
    assert at_s == pytest.approx([60.0 * i for i in range(0, 40_000, 4)])


@pytest.mark.parametrize("points", [(), ((5.0, 1.0), (5.0, 2.0)), ((-1.0, 1.0),), ((0.0, -1.0),), ((0.0, float("nan")),)])
def test_a_bad_curve_is_refused_in_a_short_sentence(points: tuple[tuple[float, float], ...]) -> None:
    week = tuple((300.0 * i, 1.0) for i in range(2017))
    for bad in (points, (*week, *((604_800.0 + t, m) for t, m in points[1:]), (0.0, 1.0))):
        with pytest.raises(TraceError, match="rate curve") as failure:
            RateCurve(bad)
        assert len(str(failure.value)) < 120
