"""The demo's judge convicts a broken operator, on real parts. That it acquits a sound one is shown by tests/demo, alone."""

from __future__ import annotations

import argparse
import io
import json
import sys
from pathlib import Path

import pytest
from rich.console import Console
from splitwatt_lab.demo import FAILED, VIOLATED, DemoCommand, run_demo, verdict
from splitwatt_lab.judge import Count
from splitwatt_lab.run import PassResult

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


def test_a_trace_without_its_columns_is_told_before_anything_starts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text("when,tokens\n1,2\n")
    code = DemoCommand().run(arguments("--out", str(tmp_path / "out"), "--trace", str(trace)))
    assert code == FAILED
    assert "trace.csv is no trace of a known kind: its first line must name" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()
