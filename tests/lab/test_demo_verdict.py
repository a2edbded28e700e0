"""The demo's judge convicts a broken operator, on real parts. That it acquits a sound one is shown by tests/demo, alone."""

from __future__ import annotations

import argparse
import io
import json
import sys
from pathlib import Path

import pytest
from rich.console import Console
from splitwatt_lab.demo import FAILED, VIOLATED, DemoCommand, check_trace, run_demo, verdict
from splitwatt_lab.judge import Count
from splitwatt_lab.run import PassResult
from splitwatt_truth.trace import TraceError
from splitwatt_truth.trace_kinds import TraceUnit
from splitwatt_twin.arrivals import read_trace

BROKEN = Path(__file__).resolve().parents[1] / "support" / "broken_operator.py"


def arguments(*given: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    DemoCommand().add_arguments(parser)
    return parser.parse_args(["--headless", "--minutes", "0.5", "--racks", "1", *given])


def passed(out: Path) -> dict[str, object]:
    """What the report says of the first pass."""
    found: dict[str, object] = json.loads((out / "report.json").read_text())["passes"][0]
    return found


def test_a_broken_allocator_is_convicted(tmp_path: Path) -> None:
    said = io.StringIO()
    code = run_demo(
        arguments("--out", str(tmp_path)), Console(file=said, width=200), operator_command=[sys.executable, str(BROKEN)]
    )
    report = passed(tmp_path)
    assert code == VIOLATED
    assert "budget violations: 0.0 s" not in said.getvalue()
    assert isinstance(report["budget_violations_s"], float) and report["budget_violations_s"] > 5.0


@pytest.mark.parametrize(
    ("violations_s", "problems", "code"),
    [(0.0, [], 0), (0.2, [], VIOLATED), (0.0, ["row-a: the judge saw 22 s of 60 s"], FAILED), (0.2, ["row-a: blind"], VIOLATED)],
)
def test_a_pass_that_proves_nothing_fails_and_says_why(
    tmp_path: Path, violations_s: float, problems: list[str], code: int
) -> None:
    said = io.StringIO()
    result = PassResult(
        policy="PhaseAware", started_s=0.0, ended_s=60.0, counts={"row-a": Count()}, samples=[], decisions=[], requests=[],
        caps_by_role={}, happenings=[], events=[], adoption_s={}, patch_to_enforced_s=None, energy_j=0.0, gpus=8,
        violations_s=violations_s, problems=problems,
    )  # fmt: skip
    assert verdict([result], tmp_path / "report.html", Console(file=said, width=200)) == code
    assert all(problem in said.getvalue() for problem in problems)


def test_the_unit_of_a_trace_is_taken_where_the_file_does_not_tell_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = tmp_path / "trace.jsonl"
    rows: list[dict[str, object]] = [
        {"timestamp": k, "input_length": 9, "output_length": 9, "hash_ids": []} for k in (0, 1, 1, 2, 3, 3, 4)
    ]
    trace.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    console = Console(width=300)
    with pytest.raises(TraceError, match=r"may be seconds or milliseconds: .*--trace-unit s or --trace-unit ms"):
        check_trace(trace, console)
    check_trace(trace, console, unit=TraceUnit(arguments("--trace-unit", "s").trace_unit))
    assert "times are taken as seconds, as was asked" in capsys.readouterr().out
    assert len(read_trace(trace, unit=TraceUnit.SECONDS)) == len(rows)
    assert DemoCommand().run(arguments("--out", str(tmp_path / "out"), "--trace-unit", "ms")) == FAILED
    assert "--trace-unit is of --trace FILE" in " ".join(capsys.readouterr().err.split())


def test_a_trace_without_its_columns_is_told_before_anything_starts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text("when,tokens\n1,2\n")
    code = DemoCommand().run(arguments("--out", str(tmp_path / "out"), "--trace", str(trace)))
    assert code == FAILED
    assert "trace.csv is no trace of a known kind: its first line must name" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()
