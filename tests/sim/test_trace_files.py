"""Traces from the field: units that are told or asked for, parts of long files, rows that failed, what is not used and said."""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from splitwatt_cli.main import main
from splitwatt_sim.plan.command_options import SearchOptions
from splitwatt_sim.plan.resolve import search_of
from splitwatt_sim.plan.shards import fingerprint
from splitwatt_sim.traces.arrivals import Arrivals, read_arrivals
from splitwatt_sim.traces.resample import poisson, read_rate_file
from splitwatt_truth import trace_files
from splitwatt_truth.trace import TraceError
from splitwatt_truth.trace_files import WHOLE, TracePart, parse_trace, rows_of
from splitwatt_truth.trace_kinds import TraceUnit

AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
VIDUR = "arrived_at,num_prefill_tokens,num_decode_tokens\n"
POOLS = "slo: {tbtP99Milliseconds: 900}\npools: [{role: Mixed, gpu: H100, servers: 1}]\n"


def read(tmp_path: Path, text: str, part: TracePart = WHOLE, *, name: str = "t.jsonl") -> Arrivals:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return read_arrivals(path, part)


def objects(times: Sequence[float], **more: Any) -> str:
    return "".join(json.dumps({"timestamp": t, "input_length": 100, "output_length": 10, **more}) + "\n" for t in times)


def at_s(arrivals: Arrivals) -> list[float]:
    return [float(value) for value in arrivals.arrival_s]


def test_bailian_is_told_by_its_chats_and_counts_seconds(tmp_path: Path) -> None:
    for times in ([61.114, 61.5, 640.25], [61, 62, 640]):
        got = read(tmp_path, objects(times, chat_id=159, parent_chat_id=-1, type="text", turn=1, hash_ids=[1]))
        assert at_s(got) == pytest.approx([t - times[0] for t in times])
        assert any("taken as seconds: it has chat_id" in note for note in got.notes)


@given(st.floats(0.2, 90.0), st.integers(30, 60))
def test_times_with_fractions_at_a_rate_that_milliseconds_cannot_have_are_seconds(rate_per_s: float, n: int) -> None:
    lines = objects([(i + 0.123) / rate_per_s for i in range(n)]).splitlines()
    got = parse_trace(lines, name="t")
    assert got.unit is TraceUnit.SECONDS and "taken as seconds: they have fractions" in got.notes[0]


@given(st.floats(0.011, 90.0), st.integers(2, 60))
def test_whole_times_at_a_rate_that_a_trace_may_have_are_milliseconds(rate_per_s: float, n: int) -> None:
    got = parse_trace(objects([float(round(1000 * i / rate_per_s)) for i in range(n)]).splitlines(), name="t")
    assert got.unit is TraceUnit.MILLISECONDS and "taken as milliseconds: they are whole numbers" in got.notes[0]


@pytest.mark.parametrize("times", [[0, 1, 1, 2, 3, 3, 4], [0.5, 120.25, 579.75]])
def test_times_that_may_be_either_are_asked_for(tmp_path: Path, times: list[float]) -> None:
    text = objects(times)
    with pytest.raises(TraceError, match=r"may be seconds or milliseconds: .*say which: --trace-unit s or --trace-unit ms"):
        read(tmp_path, text)
    for unit in TraceUnit:
        got = read(tmp_path, text, TracePart(unit=unit))
        assert at_s(got) == pytest.approx([(t - times[0]) / unit.per_s for t in times])
        assert got.notes == (f"times are taken as {unit.name.lower()}, as was asked",)


def test_the_unit_may_be_said_of_every_kind_but_not_of_dates(tmp_path: Path) -> None:
    milliseconds = TracePart(unit=TraceUnit.MILLISECONDS)
    assert at_s(read(tmp_path, VIDUR + "500,1,1\n2500,1,1\n", milliseconds)) == [0.0, 2.0]
    with pytest.raises(TraceError, match="its times are dates, which have no unit to say: leave out --trace-unit"):
        read(tmp_path, AZURE + "2024-05-10 00:00:00,1,2\n", milliseconds)


def test_mooncakes_keys_may_be_columns_and_tell_their_unit_alike(tmp_path: Path) -> None:
    text = "chat_id,timestamp,input_length,output_length\n1,61.5,7,8\n2,63.5,7,8\n"
    assert at_s(read(tmp_path, text, name="t.csv")) == [0.0, 2.0]


def test_a_vidur_trace_is_read(tmp_path: Path) -> None:
    got = read(tmp_path, "num_decode_tokens,pd_ratio,arrived_at,num_prefill_tokens\n8,1.0,2.5,7\n3,1.0,4,9\n", name="t.csv")
    assert (at_s(got), got.prompt_tokens.tolist(), got.output_tokens.tolist()) == ([0.0, 1.5], [7, 9], [8, 3])
    with pytest.raises(TraceError, match="looks like a vidur trace but lacks the column arrived_at"):
        read(tmp_path, "num_prefill_tokens,num_decode_tokens,pd_ratio\n1,2,0.5\n", name="t.csv")


FORMATS = {
    "given": "arrival_timestamp,prompt_size,token_size\n{at},{prompt},{output}\n",
    "azure": AZURE + "{at},{prompt},{output}\n",
    "burst": "Timestamp,Model,Request tokens,Response tokens\n{at},m,{prompt},{output}\n",
    "vidur": VIDUR + "{at},{prompt},{output}\n",
    "moon": '{{"timestamp": {at}, "input_length": {prompt}, "output_length": {output}}}\n',
}


def written(form: str, rows: Sequence[tuple[float, Any, Any]]) -> str:
    head, _, row = FORMATS[form].removesuffix("\n").rpartition("\n")
    return "\n".join([*([head] if head else []), *(row.format(at=at, prompt=p, output=o) for at, p, o in rows), ""])


@pytest.mark.parametrize("form", FORMATS)
def test_failed_requests_are_left_out_and_counted_and_whole_floats_are_whole(tmp_path: Path, form: str) -> None:
    rows = [(0, "472.0", 18), (1000, 300, 0), (2000, 0, 0), (3000, 5, "0.0"), (4000, "4.1e2", "276.00")]
    got = read(tmp_path, written(form, rows))
    assert (got.prompt_tokens.tolist(), got.output_tokens.tolist(), got.left_out) == ([472, 410], [18, 276], 3)
    assert "rows left out, for their requests failed in the source (0 tokens): 3" in got.notes
    assert poisson(got, requests_per_s=5, seconds=9, seed=1).left_out == 3
    with pytest.raises(TraceError, match="for all of its 1 rows failed"):
        read(tmp_path, written(form, [(0, 7, 0)]))


@pytest.mark.parametrize("cell", ["472.5", "1e400", "-472.0", "", "x"])
@pytest.mark.parametrize("form", [form for form in FORMATS if form != "moon"])
def test_what_is_no_whole_number_is_refused_with_its_line(tmp_path: Path, form: str, cell: str) -> None:
    with pytest.raises(TraceError, match=r'line 3: .* must be a whole number from 1 .*not "'):
        read(tmp_path, written(form, [(0, 7, 8), (1, cell, 8)]))


def test_images_are_ignored_and_said_once_with_their_count(tmp_path: Path) -> None:
    table = "TIMESTAMP,NumImages,ContextTokens,GeneratedTokens\n0,0,5,5\n1,2,5,5\n2,1,5,5\n3,,5,5\n"
    said = "images are ignored, {} alone counts; requests with images: 2"
    assert read(tmp_path, table).notes == (said.format("ContextTokens"),)
    got = read(tmp_path, objects([0.5, 1.5], chat_id=1, type="image"))
    assert said.format("input_length") in got.notes


@pytest.mark.parametrize(
    "text",
    [
        objects([5]) + '{"session_id": "a", "delay": 500, "input_length": 1, "output_length": 2}\n',
        '{"session_id": "a", "messages": [], "output_length": 158, "delay": null}\n',
        "session_id,delay,input_length,output_length\na,500,1,2\n",
    ],
)
def test_turns_of_a_closed_loop_are_refused_as_such(tmp_path: Path, text: str) -> None:
    with pytest.raises(TraceError, match=r"is a turn of a closed loop \(delay, session_id\).*give every row the time"):
        read(tmp_path, text)


def test_turns_that_have_their_times_come_at_them_and_it_is_said(tmp_path: Path) -> None:
    got = read(tmp_path, objects([0, 4000], session_id="a", delay=500))
    assert at_s(got) == [0.0, 4.0] and any(
        "rows with a delay, as in a closed loop, come at their timestamp all the same: 2" in note for note in got.notes
    )


TALK = {"id": "a", "conversations": [{"from": "human", "value": "hello"}]}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (json.dumps([TALK]), "is one JSON list, as ShareGPT's conversations are: write one object a line"),
        (json.dumps([TALK], indent=2), "is one JSON list, as ShareGPT's"),
        ("\ufeff" + json.dumps([TALK]), "is one JSON list, as ShareGPT's"),
        (
            json.dumps(TALK) + "\n",
            r"line 1 holds the text of a conversation \(conversations\), as ShareGPT does: count its tokens",
        ),
    ],
)
def test_conversations_are_refused_as_what_they_are(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(TraceError, match=says) as failure:
        read(tmp_path, text)
    assert "\n" not in str(failure.value)


LONG = VIDUR + "".join(f"{100 + i},{i + 1},5\n" for i in range(100))


@given(begin=st.one_of(st.none(), st.integers(0, 98)), length=st.one_of(st.none(), st.integers(1, 120)))
def test_a_part_holds_what_came_in_it_and_begins_at_zero(begin: int | None, length: int | None) -> None:
    end = None if length is None else (begin or 0) + length
    part = TracePart(from_s=begin, to_s=end)
    got = parse_trace(LONG.splitlines(keepends=True), part, name="t")
    assert got.prompt_tokens.tolist() == list(range((begin or 0) + 1, min(100, 100 if end is None else end) + 1))
    assert got.zero == 100 + (begin or 0)
    assert bool(got.notes) != part.whole


def test_a_part_of_a_given_list_counts_from_its_own_beginning(tmp_path: Path) -> None:
    text = "arrival_timestamp,prompt_size,token_size\n3,1,1\n61.5,2,2\n70,3,3\n"
    assert at_s(read(tmp_path, text, TracePart(from_s=60, to_s=70))) == [1.5]
    assert at_s(read(tmp_path, text, TracePart(to_s=70))) == [3.0, 61.5]


def test_the_bound_counts_the_part_and_not_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace_files, "MAX_TRACE_ROWS", 10)
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(LONG.encode()))
    (tmp_path / "packed.csv").write_bytes(gzip.compress(LONG.encode()))
    for name in ("t.csv.gz", "packed.csv"):
        with pytest.raises(TraceError, match=r"line 12: at most 10 requests can be read at once; take a part .* --from and --to"):
            read_arrivals(tmp_path / name)
        assert read_arrivals(tmp_path / name, TracePart(from_s=50, to_s=60)).prompt_tokens.tolist() == [*range(51, 61)]


@pytest.mark.parametrize(
    ("part", "says"),
    [
        ({"from_s": 500.0}, r"holds no request from 500 s to the end: it has rows from 0 to 99 s; change --from or --to"),
        ({"from_s": 5.0, "to_s": 5.0}, "a part of a trace ends after it begins, not from 5 s to 5 s"),
        ({"to_s": 0.0}, "ends after it begins, not from 0 s to 0 s"),
        ({"from_s": -1.0}, "begins at 0 s or later, not at -1 s"),
    ],
)
def test_a_part_that_holds_nothing_is_refused(part: dict[str, float], says: str) -> None:
    with pytest.raises(TraceError, match=says):
        parse_trace(LONG.splitlines(keepends=True), TracePart(**part), name="t")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("TIMESTAMP,ContextTokens,GeneratedTokens,ContextTokens\n1,2,3,4\n", "t names the column ContextTokens twice"),
        (AZURE + "1,1000,50\n2,1,000,50\n", "t line 3 has 4 cells where the first line names 3 columns"),
        (AZURE + "1700000000500,100,50\n", 't line 2: "1700000000500" is no time in seconds, but one in milliseconds since 1970'),
        (AZURE + "1700000000500000,100,50\n", 't line 2: "1700000000500000" is no time .* in micro- or nanoseconds since 1970'),
        (AZURE + "2023-11-16 18:17:03,100,50\n0,100,50\n", 't line 3: "0" comes 54 years before the first row'),
        (AZURE + "5,100,50\n2023-11-16 18:17:03,100,50\n", 't line 3: "2023-11-16 18:17:03" comes 54 years after the first row'),
        ("arrival_timestamp,prompt_size,token_size\n1700000000,100,50\n", r"t line 2: .* 54 years after the run's beginning"),
    ],
)
def test_what_would_be_read_as_another_number_is_refused(text: str, says: str) -> None:
    with pytest.raises(TraceError, match=says):
        parse_trace(text.splitlines(keepends=True), name="t")


def test_empty_cells_at_the_end_of_a_row_and_milliseconds_that_were_said_are_taken() -> None:
    got = parse_trace((AZURE + "1700000000500,100,50,,\n").splitlines(), TracePart(unit=TraceUnit.MILLISECONDS), name="t")
    assert list(got.prompt_tokens) == [100] and got.unit is TraceUnit.MILLISECONDS


@pytest.mark.parametrize("per_s", [1e6, 1e9])
@pytest.mark.parametrize("since_s", [0.0, 1.7e9])
def test_micro_and_nanoseconds_are_not_taken_for_milliseconds(per_s: float, since_s: float) -> None:
    lines = objects([round((since_s + 0.4 * i) * per_s) for i in range(50)]).splitlines()
    with pytest.raises(TraceError, match="micro- or nanoseconds"):
        parse_trace(lines, name="t")


def test_a_trace_with_a_request_in_minutes_is_read_in_the_unit_that_is_said() -> None:
    lines = objects([120_000 * i for i in range(5)]).splitlines()
    with pytest.raises(TraceError, match=r"make 0.0083 requests/s so: .* --trace-unit ms"):
        parse_trace(lines, name="t")
    got = parse_trace(lines, TracePart(unit=TraceUnit.MILLISECONDS), name="t")
    assert [row.at_s for row in rows_of(got, name="t")] == [120.0 * i for i in range(5)]


def test_a_request_that_failed_may_have_no_time_of_the_trace() -> None:
    got = parse_trace([AZURE, "1700000000,100,50\n", "0,0,0\n", "1700000009,100,50\n"], name="t")
    assert (len(got.at), got.left_out, got.zero) == (2, 1, 1.7e9)


def test_a_part_of_a_file_that_runs_backwards_is_refused() -> None:
    """The first row, from which parts count, is its last in time."""
    lines = [AZURE, *(f"2023-11-16 18:17:{second:02d},100,50\n" for second in range(59, 0, -1))]
    assert len(parse_trace(lines, name="t").at) == 59
    for part in (TracePart(from_s=0.0), TracePart(to_s=10.0)):
        with pytest.raises(TraceError, match=r"t line 4 comes 2 s before the first row, .* sort the file by time"):
            parse_trace(lines, part, name="t")


def test_progress_is_told_in_bytes_of_the_file_also_of_a_packed_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace_files, "PROGRESS_LINES", 30)
    path = tmp_path / "t.csv.gz"
    path.write_bytes(gzip.compress(LONG.encode()))
    told: list[tuple[int, int]] = []
    read_arrivals(path, progress=lambda done, of: told.append((done, of)))
    assert len(told) == 4 and told == sorted(told) and told[-1][0] <= told[-1][1] == path.stat().st_size


def test_dates_without_an_offset_have_no_clock_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    try:
        got = read(tmp_path, AZURE + "2024-03-31 01:30:00,1,1\n2024-03-31 03:30:00,1,1\n")
    finally:
        monkeypatch.undo()
        time.tzset()
    assert at_s(got) == [0.0, 7200.0]


@pytest.mark.parametrize("minutes", [5, 1])
def test_a_week_of_rates_is_a_curve(tmp_path: Path, minutes: int) -> None:
    path = tmp_path / "week.csv"
    points = 7 * 24 * 60 // minutes + 1
    path.write_text("seconds,multiplier\n" + "".join(f"{60 * minutes * i},{1 + i % 2}\n" for i in range(points)))
    curve = read_rate_file(path)
    assert len(curve.points) == points and curve.integral(604_800) == pytest.approx(1.5 * 604_800)


def test_simulate_takes_a_part_and_says_what_it_took(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "t.jsonl").write_text(objects([0.25 * i for i in range(200)]) + objects([49.9]).replace(": 10}", ": 0}"))
    scenario = tmp_path / "s.yaml"
    scenario.write_text("requests: {file: t.jsonl, fromSeconds: 5}\n" + POOLS)
    assert main(["simulate", str(scenario), "--from", "10", "--out", str(tmp_path / "o")]) == 0
    said = capsys.readouterr().out
    assert "t.jsonl: times are taken as seconds: they have fractions" in said
    assert "took 160 requests from 10 s to the end; the trace has 201 rows from 0 to 50 s" in said
    assert "rows left out, for their requests failed in the source (0 tokens): 1" in said
    figures = json.loads((tmp_path / "o" / "simulate.json").read_text())
    assert (figures["requests"], figures["left_out_requests"]) == (160, 1)
    assert figures["requests_per_s"] == pytest.approx(4.0)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (["simulate", "s.yaml", "--from", "9"], "are of requests.file: name it, or leave them out"),
        (["simulate", "--design", "H100:2", "--to", "9"], "leave them out beside --design"),
        (["plan", "--rate", "5", "--to", "9"], "add --requests, or leave them out"),
    ],
)
def test_a_part_of_no_file_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("s.yaml").write_text(POOLS)
    assert main(line) == 2
    assert says in capsys.readouterr().err


def test_plan_reads_the_same_part(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text(LONG)
    whole, part = (
        search_of(SearchOptions(requests=path, rate_rps=5.0, from_s=begin, to_s=end)) for begin, end in ((None, None), (10, 20))
    )
    assert part.sizes.prompt_tokens.tolist() == [*range(11, 21)]
    assert fingerprint(whole).trace != fingerprint(part).trace
