"""Arrivals of the simulator: each format and each refusal, replay that keeps what it must, draws that a seed decides."""

from __future__ import annotations

import gzip
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from splitwatt_sim.traces import resample
from splitwatt_sim.traces.arrivals import Arrivals, read_arrivals
from splitwatt_sim.traces.resample import MAX_REQUESTS, generated, poisson, read_rate_file, scaled, with_rate_curve
from splitwatt_truth.trace import CONV_OUTPUT_TOKENS, CONV_PROMPT_TOKENS, MAX_TOKENS, RateCurve, TraceError

GIVEN = "request_id,arrival_timestamp,prompt_size,token_size\n"
AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
BURST = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
BURST_3 = "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
MOON = '{"timestamp": 3052, "input_length": 7234, "output_length": 794, "hash_ids": [0, 28]}\n'


def read(tmp_path: Path, text: str, name: str = "t.csv") -> Arrivals:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return read_arrivals(path)


def rows(arrivals: Arrivals) -> list[tuple[float, int, int]]:
    columns = (arrivals.arrival_s, arrivals.prompt_tokens, arrivals.output_tokens)
    return list(zip(*(column.tolist() for column in columns), strict=True))


def columns(at_s: list[float], prompt: list[int] | None = None, output: list[int] | None = None) -> Arrivals:
    tokens = list(range(1, len(at_s) + 1))
    return Arrivals(np.array(at_s, np.float64), np.array(prompt or tokens, np.int64), np.array(output or tokens, np.int64), "c")


def same(a: Arrivals, b: Arrivals) -> bool:
    return rows(a) == rows(b)


def test_a_given_list_keeps_its_times_to_the_last_bit_and_ties_in_the_order_of_the_file(tmp_path: Path) -> None:
    text = GIVEN + "0,0.30000000000000004,10,1\n1,0.1,20,2\n\n2,7,30,3\n3,0.1,40,4\n4,0.1,50,5\n"
    got = read(tmp_path, text, "list.csv")
    assert rows(got) == [(0.1, 20, 2), (0.1, 40, 4), (0.1, 50, 5), (0.1 + 0.2, 10, 1), (7.0, 30, 3)]
    assert (got.name, got.left_out, len(got)) == ("list", 0, 5)
    assert [column.dtype for column in (got.arrival_s, got.prompt_tokens, got.output_tokens)] == ["f8", "i8", "i8"]


def test_many_ties_keep_the_order_of_the_file(tmp_path: Path) -> None:
    text = GIVEN + "".join(f"{i},{i % 2},{i + 1},1\n" for i in range(200))
    assert read(tmp_path, text).prompt_tokens.tolist() == [*range(1, 201, 2), *range(2, 201, 2)]


def test_a_given_list_may_have_other_columns_and_another_order_and_no_id(tmp_path: Path) -> None:
    text = "\ufefftoken_size, prompt_size,request_type,arrival_timestamp,batch_size\r\n5,6,2,1.5,1\r\n"
    assert rows(read(tmp_path, text)) == [(1.5, 6, 5)]


def test_azure_2023_begins_at_zero(tmp_path: Path) -> None:
    got = read(tmp_path, AZURE + "2023-11-16 18:15:50.9951690,396,109\n2023-11-16 18:15:46.6805900,374,44\n")
    assert rows(got) == [(0.0, 374, 44), (pytest.approx(4.314579, abs=1e-6), 396, 109)]


def test_azure_2024_gives_an_offset_from_utc_and_sometimes_no_fraction(tmp_path: Path) -> None:
    text = AZURE + "2024-05-10 00:00:00.009930+00:00,2162,5\n2024-05-10 00:00:01+00:00,7,6\n2024-05-10 02:00:02+02:00,8,9\n"
    got = read(tmp_path, text)
    assert got.arrival_s == pytest.approx([0.0, 0.99007, 1.99007], abs=1e-6)
    assert got.prompt_tokens.tolist() == [2162, 7, 8] and got.output_tokens.tolist() == [5, 6, 9]


def test_mooncake_counts_milliseconds(tmp_path: Path) -> None:
    later = '{"hash_ids": [], "timestamp": 4053, "output_length": 3, "input_length": 2, "other": {}}\n'
    assert rows(read(tmp_path, MOON + "\n" + later, "t.jsonl")) == [(0.0, 7234, 794), (1.001, 2, 3)]


def test_burstgpt_leaves_out_and_counts_what_failed(tmp_path: Path) -> None:
    text = BURST + (
        "5,ChatGPT,472,18,490,Conversation log\n45,ChatGPT,0,0,0,Conversation log\n"
        "45,GPT-4,300,0,300,API log\n118,GPT-4,417,276,693,Conversation log\n"
    )
    got = read(tmp_path, text)
    assert rows(got) == [(0.0, 472, 18), (113.0, 417, 276)] and got.left_out == 2
    assert scaled(got, 1.0).left_out == 2


def test_burstgpt_of_the_second_release_has_two_columns_more(tmp_path: Path) -> None:
    got = read(tmp_path, BURST_3 + "2.5,,9,GPT-4,1,2,3,API log\n3.0,a-b,8,GPT-4,4,5,9,Conversation log\n")
    assert rows(got) == [(0.0, 1, 2), (0.5, 4, 5)]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is empty or begins with an empty line; its first line must name arrival_timestamp"),
        ("\n" + GIVEN, "begins with an empty line"),
        ("a,b\n1,2\n", r"no trace of a known kind.*input_length.*it has: a, b"),
        ("x" * 999 + "\n", r"it has: x{120}…\)$"),
        ("arrival_timestamp,prompt_size\n", r"like a list of arrivals but lacks the column token_size;.*it has: arrival_"),
        ("TIMESTAMP\n", "like an Azure trace but lacks the columns ContextTokens, GeneratedTokens"),
        ("Timestamp,Model,Request tokens\n", "like a BurstGPT trace but lacks the column Response tokens"),
        (GIVEN, "holds no request; it needs at least one row"),
        (BURST + "1,m,0,0,0,l\n2,m,9,0,9,l\n", "holds no request, for all of its 2 rows failed"),
        (GIVEN + "0,0.5,1\n", "line 2 has 3 cells where the first line names 4 columns"),
        (GIVEN + "0,0.5,1,1\n\n1,-0.1,1,1\n", 'line 4: arrival_timestamp must be a number, 0 or more, not "-0.1"'),
        (GIVEN + "0,soon,1,1\n", 'line 2: arrival_timestamp must be a number.*"soon"'),
        (GIVEN + "0,nan,1,1\n", "line 2: arrival_timestamp must be a number"),
        (GIVEN + "0,inf,1,1\n", "line 2: arrival_timestamp must be a number"),
        (GIVEN + "0,1,-1,1\n", f'line 2: prompt_size must be a whole number from 1 to {MAX_TOKENS}, or 0.*not "-1"'),
        (GIVEN + "0,1,1,\n", 'line 2: token_size must be a whole number.*""'),
        (GIVEN + f"0,1,{MAX_TOKENS + 1},1\n", "line 2: prompt_size must be a whole number"),
        (GIVEN + "0,1,1,1.5\n", 'line 2: token_size must be a whole number.*"1.5"'),
        (BURST + "1,m,nan,5,5,l\n", 'line 2: Request tokens must be a whole number.*"nan"'),
        (BURST + "-1,m,5,5,5,l\n", 'line 2: Timestamp must be a number, 0 or more, not "-1"'),
        (AZURE + "1,2,3\n2,many,3\n", 'line 3: ContextTokens must be a whole number.*"many"'),
        (AZURE + "1,2,3\nyesterday,2,3\n", 'line 3: TIMESTAMP must be a date with a time, or seconds.* not "yesterday"'),
        (AZURE + "-1,2,3\n", "line 2: TIMESTAMP must be a date with a time, or seconds, 0 or more"),
        (MOON + "{\n", 'line 2 must be one whole JSON object, not "{"'),
        (MOON + "[1]\n", "line 2 must be one whole JSON object"),
        (MOON + '{"timestamp": 1, "input_length": 2}\n', r"line 2 lacks output_length \(it has: timestamp, input_length\)"),
        (MOON.replace("3052", "-5"), 'line 1: timestamp must be a number, 0 or more, not "-5"'),
        (MOON.replace("3052", "NaN"), "line 1: timestamp must be a number"),
        (MOON.replace("7234", "true"), 'line 1: input_length must be a whole number.*"True"'),
        (MOON.replace("794", "0.5"), 'line 1: output_length must be a whole number.*"0.5"'),
        (MOON.replace("794", "0"), r"holds no request, for all of its 1 rows failed \(0 tokens\)"),
        (MOON.replace("794", "null"), "line 1: output_length must be a whole number"),
    ],
)  # fmt: skip
def test_a_bad_trace_gets_one_sentence(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(TraceError, match=says) as failure:
        read(tmp_path, text)
    assert str(failure.value).startswith(str(tmp_path / "t.csv")) and "\n" not in str(failure.value)


def test_an_unreadable_trace_says_so(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"there is no trace .*missing\.csv; check the path"):
        read_arrivals(tmp_path / "missing.csv")
    with pytest.raises(TraceError, match="cannot read the trace"):
        read_arrivals(tmp_path)
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(TraceError, match="cannot read the trace"):
        read_arrivals(tmp_path / "binary.csv")
    with pytest.raises(TraceError, match=r"cannot read the trace .*field larger"):
        read(tmp_path, GIVEN + "0,1,1," + "1" * 200_000 + "\n")


def test_a_compressed_trace_is_the_trace(tmp_path: Path) -> None:
    text = GIVEN + "".join(f"{i},{i / 7},{i + 1},3\n" for i in range(300))
    plain = read(tmp_path, text)
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(text.encode()))
    packed = read_arrivals(tmp_path / "t.csv.gz")
    assert packed.arrival_s.tolist() == plain.arrival_s.tolist() and packed.name == plain.name == "t"
    assert packed.prompt_tokens.tolist() == plain.prompt_tokens.tolist()


@pytest.mark.parametrize("break_it", [lambda raw: b"no gzip", lambda raw: raw[:40], lambda raw: raw[:20] + b"xxxx" + raw[24:]])
def test_a_compressed_trace_that_is_broken_says_so(tmp_path: Path, break_it: Callable[[bytes], bytes]) -> None:
    raw = gzip.compress((GIVEN + "0,1,1,1\n" * 50).encode())
    (tmp_path / "t.csv.gz").write_bytes(break_it(raw))
    with pytest.raises(TraceError, match=r"cannot read the trace .*t\.csv\.gz \("):
        read_arrivals(tmp_path / "t.csv.gz")


def test_a_trace_has_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("splitwatt_truth.trace_files.MAX_TRACE_ROWS", 2)
    assert len(read(tmp_path, GIVEN + "0,1,1,1\n1,2,1,1\n")) == 2
    with pytest.raises(
        TraceError, match="line 4: at most 2 requests can be read at once; take a part of the trace with --from and --to"
    ):
        read(tmp_path, GIVEN + "0,1,1,1\n1,2,1,1\n2,3,1,1\n")


@pytest.mark.parametrize(
    ("at_s", "prompt", "says"),
    [
        ([1.0, 0.5], [1, 1], "must not fall"),
        ([-1.0, 0.5], [1, 1], "0 or more"),
        ([0.0, math.nan], [1, 1], "finite"),
        ([0.0, math.inf], [1, 1], "finite"),
        ([0.0, 1.0], [1, 0], "prompt_tokens must be from 1"),
        ([0.0, 1.0], [1, MAX_TOKENS + 1], "prompt_tokens must be from 1"),
        ([0.0, 1.0], [1], r"prompt_tokens must be int64\[2\], not int64\[1\]"),
    ],
)
def test_columns_that_are_no_arrivals_are_refused(at_s: list[float], prompt: list[int], says: str) -> None:
    with pytest.raises(TraceError, match=says):
        columns(at_s, prompt)


def test_arrivals_cannot_be_written_to_and_leave_their_source_as_it_was() -> None:
    source = np.array([0.0, 1.0])
    arrivals = Arrivals(source, np.array([1, 2]), np.array([1, 2]), "x")
    with pytest.raises(ValueError, match="read-only"):
        arrivals.arrival_s[0] = 5.0
    source[1] = 2.0


gaps_s = st.lists(st.one_of(st.just(0.0), st.floats(1e-6, 1e4)), min_size=1, max_size=30).filter(any)


@given(gaps=gaps_s, first_s=st.floats(0, 1e3), requests_per_s=st.floats(1e-3, 1e5))
def test_scaling_keeps_order_sizes_and_relative_gaps(gaps: list[float], first_s: float, requests_per_s: float) -> None:
    source = columns(np.cumsum([first_s, *gaps]).tolist())
    got = scaled(source, requests_per_s)
    assert got.prompt_tokens.tolist() == source.prompt_tokens.tolist()
    assert got.output_tokens.tolist() == source.output_tokens.tolist()
    span, new_span = (a.arrival_s[-1] - a.arrival_s[0] for a in (source, got))
    # A gap is a difference of two sums: what it loses is measured by the later one.
    slack = 1e-14 * float(source.arrival_s[-1] / span)
    assert got.requests_per_s == pytest.approx(requests_per_s, rel=1e-9 + slack)
    assert np.diff(got.arrival_s) / new_span == pytest.approx(np.diff(source.arrival_s) / span, rel=1e-9, abs=slack)
    assert ((np.diff(got.arrival_s) == 0) == (np.diff(source.arrival_s) == 0)).all()


def test_all_at_once_has_no_rate() -> None:
    for source in (columns([]), columns([3.0]), columns([3.0, 3.0])):
        with pytest.raises(TraceError, match="two requests at different times"):
            scaled(source, 5)
        with pytest.raises(TraceError, match="two requests at different times"):
            with_rate_curve(source, RateCurve(), requests_per_s=5, seconds=5)


def test_a_flat_curve_goes_round_without_a_burst_at_the_seam() -> None:
    source = columns([10.0, 11.0, 14.0], [7, 8, 9])
    got = with_rate_curve(source, RateCurve(), requests_per_s=2, seconds=3.6)
    # Mean gap 2 s there, 0.5 s here: the gaps 1 s and 3 s become 0.25 s and 0.75 s, and a mean one leads each round on.
    assert got.arrival_s.tolist() == [0.5, 0.75, 1.5, 2.0, 2.25, 3.0, 3.5]
    assert got.prompt_tokens.tolist() == [7, 8, 9, 7, 8, 9, 7]


def test_a_day_curve_carries_the_rate_and_is_silent_where_it_is_zero() -> None:
    source = generated(requests_per_s=100, seconds=30, seed=4, cv=1.0)
    curve = RateCurve(((0.0, 0.0), (100.0, 2.0), (200.0, 2.0), (201.0, 0.0), (300.0, 0.0), (301.0, 1.0)))
    got = with_rate_curve(source, curve, requests_per_s=50, seconds=400)
    counts, _ = np.histogram(got.arrival_s, [0, 50, 100, 200, 201, 300, 400])
    assert counts == pytest.approx([1250, 3750, 10_000, 50, 0, 4975], rel=0.06, abs=15)
    assert counts[4] == 0 and len(with_rate_curve(source, RateCurve(((0.0, 0.0),)), requests_per_s=1, seconds=9)) == 0


points = st.lists(st.tuples(st.floats(0.01, 50), st.one_of(st.just(0.0), st.floats(0.01, 10))), min_size=1, max_size=6)


@given(points=points, first_s=st.sampled_from([0.0, 3.0]), requests_per_s=st.floats(0.1, 20))
def test_the_curve_of_an_array_is_the_curve_of_the_core(
    points: list[tuple[float, float]], first_s: float, requests_per_s: float
) -> None:
    times = np.cumsum([first_s, *(gap for gap, _ in points[1:])]).tolist()
    curve = RateCurve(tuple(zip(times, (m for _, m in points), strict=True)))
    source = columns([0.0, 1.0, 1.0, 4.0])
    got = with_rate_curve(source, curve, requests_per_s=requests_per_s, seconds=40)
    gaps = [1.0, 0.75, 0.0, 2.25]
    area = np.cumsum([gaps[i % 4] for i in range(len(got) + 1)]) / requests_per_s
    # Between the inverses a hair below and above: where the curve is 0, a hair of area is seconds of time.
    earliest, latest = ([curve.inverse(float(a) * hair) for a in area] for hair in (1 - 1e-9, 1 + 1e-9))
    assert (got.arrival_s >= np.array(earliest[:-1]) - 1e-6).all()
    assert (got.arrival_s <= np.array(latest[:-1]) + 1e-6).all()
    assert latest[-1] >= 40 - 1e-6


def test_times_do_not_fall_where_areas_differ_by_their_last_bits() -> None:
    curve = RateCurve(((41.423907680904854, 0.0), (91.6323810990736, 0.019009184828940318), (110.83659991352613, 1.5)))
    area = np.unique(curve.integral(91.6323810990736) * (1 + np.arange(-50, 50) * 1e-16))
    assert len(area) > 40 and (np.diff(resample._inverse_s(curve, area)) >= 0).all()


def test_a_request_that_is_due_where_the_curve_ends_does_not_wait_for_its_return() -> None:
    curve = RateCurve(((0.0, 2.0), (1.0, 0.0), (5.0, 0.0), (6.0, 2.0)))
    assert with_rate_curve(columns([0.0, 1.0]), curve, requests_per_s=1, seconds=9).arrival_s.tolist()[:2] == [1.0, 6.0]


ROWS = columns([float(i) for i in range(50)], [10 * i + 1 for i in range(50)], [10 * i + 2 for i in range(50)])
Draw = Callable[[float, float, int], Arrivals]
DRAWS: list[Draw] = [
    lambda rate, seconds, seed: poisson(ROWS, requests_per_s=rate, seconds=seconds, seed=seed),
    lambda rate, seconds, seed: poisson(ROWS, requests_per_s=rate, seconds=seconds, seed=seed, paired=False),
    lambda rate, seconds, seed: generated(requests_per_s=rate, seconds=seconds, seed=seed),
    lambda rate, seconds, seed: generated(requests_per_s=rate, seconds=seconds, seed=seed, cv=13.0),
]
every_draw = pytest.mark.parametrize("draw", DRAWS, ids=["paired", "unpaired", "generated", "bursty"])


@every_draw
def test_a_seed_decides_and_another_one_differs(draw: Draw) -> None:
    assert same(draw(20, 30, 1), draw(20, 30, 1))
    assert not same(draw(20, 30, 1), draw(20, 30, 2))


@every_draw
def test_a_longer_run_begins_with_the_shorter_one(draw: Draw) -> None:
    short, long = draw(20, 30, 1), draw(20, 90, 1)
    assert len(long) > len(short) > 0
    assert rows(long)[: len(short)] == rows(short) and long.arrival_s[len(short)] >= 30 > short.arrival_s[-1]


@every_draw
def test_drawing_in_several_goes_changes_nothing(draw: Draw, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = draw(20, 500, 1)
    monkeypatch.setattr(resample, "SPARE_DEVIATIONS", -7.0)
    assert same(draw(20, 500, 1), whole)


@every_draw
def test_another_rate_meets_the_same_requests_sooner(draw: Draw) -> None:
    slow, fast = draw(20, 30, 1), draw(40, 15, 1)
    n = min(len(slow), len(fast))
    assert fast.arrival_s[:n] == pytest.approx(slow.arrival_s[:n] / 2)
    assert (fast.prompt_tokens[:n] == slow.prompt_tokens[:n]).all()
    assert (fast.output_tokens[:n] == slow.output_tokens[:n]).all()


def _gap_cv(arrivals: Arrivals) -> float:
    gaps = np.diff(arrivals.arrival_s)
    return float(gaps.std() / gaps.mean())


def test_poisson_has_the_rate_and_exponential_gaps() -> None:
    got = poisson(ROWS, requests_per_s=70, seconds=600, seed=3)
    assert len(got) == pytest.approx(42_000, abs=4 * math.sqrt(42_000))
    assert _gap_cv(got) == pytest.approx(1.0, abs=0.02)
    assert np.mean(np.diff(got.arrival_s) > 1 / 70) == pytest.approx(math.exp(-1), abs=0.01)
    assert got.prompt_tokens.mean() == pytest.approx(ROWS.prompt_tokens.mean(), rel=0.02)
    assert set(got.prompt_tokens.tolist()) == set(ROWS.prompt_tokens.tolist())


def _correlation(arrivals: Arrivals) -> float:
    return float(np.corrcoef(arrivals.prompt_tokens, arrivals.output_tokens)[0, 1])


def test_joint_draws_keep_pairs_and_independent_ones_do_not() -> None:
    paired = poisson(ROWS, requests_per_s=50, seconds=400, seed=5)
    assert (paired.output_tokens == paired.prompt_tokens + 1).all()
    apart = poisson(ROWS, requests_per_s=50, seconds=400, seed=5, paired=False)
    assert abs(_correlation(apart)) < 0.03
    assert set(apart.output_tokens.tolist()) == set(ROWS.output_tokens.tolist())
    assert (apart.arrival_s == paired.arrival_s).all()


@pytest.mark.parametrize("cv", [0.3, 1.09, 3.0])
def test_generated_gaps_have_the_rate_and_the_spread(cv: float) -> None:
    got = generated(requests_per_s=100, seconds=600, seed=8, cv=cv)
    assert len(got) == pytest.approx(60_000, abs=4 * cv * math.sqrt(60_000))
    assert _gap_cv(got) == pytest.approx(cv, rel=0.05)


def test_generated_sizes_fit_the_conversation_trace() -> None:
    got = generated(requests_per_s=100, seconds=600, seed=8)
    for tokens, wanted in ((got.prompt_tokens, (1020, 2734, 4142)), (got.output_tokens, (129, 424, 601))):
        assert np.quantile(tokens, (0.5, 0.9, 0.99)) == pytest.approx(wanted, rel=0.05)
    assert abs(_correlation(got)) < 0.02


def test_the_sizes_of_an_array_are_the_sizes_of_the_core(monkeypatch: pytest.MonkeyPatch) -> None:
    def grid(_: int) -> list[object]:
        return [np.random.default_rng(0), Grid(), Grid()]

    class Grid:
        def random(self, n: int) -> NDArray[np.float64]:
            return np.linspace(0, 1, n)

    monkeypatch.setattr("splitwatt_sim.traces.resample._streams", grid)
    got = generated(requests_per_s=10, seconds=100, seed=0)
    levels = np.linspace(0, 1, len(got)).tolist()
    assert len(levels) > 500
    assert got.prompt_tokens.tolist() == [CONV_PROMPT_TOKENS.at(p) for p in levels]
    assert got.output_tokens.tolist() == [CONV_OUTPUT_TOKENS.at(p) for p in levels]


@pytest.mark.parametrize(
    ("act", "says"),
    [
        (lambda: DRAWS[0](0, 5, 1), "requests_per_s must be a number above 0, not 0"),
        (lambda: DRAWS[2](math.nan, 5, 1), "requests_per_s must be a number above 0"),
        (lambda: DRAWS[2](5, math.inf, 1), "seconds must be a number above 0, not inf"),
        (lambda: DRAWS[0](5, 5, -1), "a seed must be a whole number, 0 or more, not -1"),
        (lambda: DRAWS[2](1e6, 1e3, 1), f"at most {MAX_REQUESTS} requests, not 1000000000; lower its rate"),
        (lambda: generated(requests_per_s=1, seconds=1, seed=1, cv=0), "above 0 and at most 100, not 0"),
        (lambda: generated(requests_per_s=1, seconds=1, seed=1, cv=101), "above 0 and at most 100, not 101"),
        (lambda: poisson(columns([]), requests_per_s=1, seconds=1, seed=1), "c holds no request to draw from"),
        (lambda: scaled(ROWS, 0), "requests_per_s must be a number above 0"),
        (lambda: with_rate_curve(ROWS, RateCurve(), requests_per_s=0, seconds=1), "requests_per_s must be"),
        (lambda: with_rate_curve(ROWS, RateCurve(), requests_per_s=1, seconds=-1), "seconds must be"),
        (lambda: with_rate_curve(ROWS, RateCurve(), requests_per_s=1e6, seconds=1e3), "at most 20000000 requests"),
    ],
)  # fmt: skip
def test_what_cannot_be_drawn_is_refused(act: Callable[[], Arrivals], says: str) -> None:
    with pytest.raises(TraceError, match=says):
        act()


def test_a_run_may_see_no_request() -> None:
    assert [len(draw(1e-9, 1e-9, 1)) for draw in DRAWS[:3]] == [0, 0, 0]
    assert len(DRAWS[0](1e-200, 1e-200, 1)) == 0


def test_a_rate_file_is_a_curve(tmp_path: Path) -> None:
    path = tmp_path / "day.csv"
    path.write_text("\ufeffhour,multiplier,seconds\n0,0.5,0\n\n6,1.5,21600\n")
    assert read_rate_file(path) == RateCurve(((0.0, 0.5), (21_600.0, 1.5)))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", r"the first line must name seconds, multiplier \(it has: \)"),
        ("seconds,rate\n", r"the first line must name seconds, multiplier \(it has: seconds, rate\)"),
        ("seconds,multiplier\n", "holds no point"),
        ("seconds,multiplier\n0,1\n0,2\n", "line 3: seconds must rise from 0 or later, not 0"),
        ("seconds,multiplier\n-1,1\n", "line 2: seconds must rise from 0 or later, not -1"),
        ("seconds,multiplier\nnan,1\n", "line 2: seconds must rise"),
        ("seconds,multiplier\n0,1\n\n9,-2\n", "line 4: multiplier must be 0 or more, not -2"),
        ("seconds,multiplier\n0,nan\n", "line 2: multiplier must be 0 or more"),
        ("seconds,multiplier\n0,lots\n", 'line 2 must hold two numbers, not "0,lots"'),
        ("seconds,multiplier\n0\n", 'line 2 must hold two numbers, not "0"'),
        ("seconds,multiplier\n" + "".join(f"{i},1\n" for i in range(50_001)), "line 50002: .* at most 50000 points"),
    ],
)
def test_a_bad_rate_file_gets_one_sentence(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "day.csv"
    path.write_text(text)
    with pytest.raises(TraceError, match=says) as failure:
        read_rate_file(path)
    assert str(path) in str(failure.value) and "\n" not in str(failure.value)
    with pytest.raises(TraceError, match="there is no rate file"):
        read_rate_file(tmp_path / "none.csv")
