"""`splitwatt simulate`: a scenario alone is its own; one of Splitwise's designs is the papers' and found by name."""

from __future__ import annotations

from importlib.metadata import EntryPoints
from pathlib import Path

import pytest
from splitwatt_cli.main import main
from splitwatt_sim import forward

REQUESTS = "arrival_timestamp,prompt_size,token_size\n" + "".join(
    f"{0.03 * i:.2f},{200 + 37 * i % 1500},{8 + i % 90}\n" for i in range(200)
)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main([*arguments]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1, "one sentence, no traceback"
    return said.strip()


def test_a_scenario_or_a_design_and_not_both(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ((), ("fleet.yaml", "--design", "H100:2")):
        assert refused(capsys, "simulate", *arguments) == "splitwatt simulate: give a scenario file, or --design; one of them"


def test_names_in_brackets_are_printed_as_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "a["
    folder.mkdir()
    odd = folder / "b]$x_{$.csv"  # its path holds [/b], which would close a style, and a broken formula
    odd.write_text(REQUESTS, encoding="utf-8")
    pools = "slo: {tbtP99Milliseconds: 900}\npools: [{role: Mixed, gpu: H100, servers: 1}]"
    budget = "power: {budgets: [{name: row, limitWatts: 12000}]}"
    for number, text in enumerate((pools, f"{pools}\n{budget}")):
        scenario = folder / f"b]$x_{{${number}.yaml"
        scenario.write_text(f'requests: {{file: "b]$x_{{$.csv"}}\n{text}\n', encoding="utf-8")
        assert main(["simulate", str(scenario), "--out", str(folder / "b]")]) == 0
        said = capsys.readouterr().out
        assert "of b]$x_{$ (simulated)" in said.replace("\n", " ")
        assert f"written: {folder / 'b]' / 'simulate.json'}" in said


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("--rate", "5", "write requests.rate in it"),
        ("--seconds", "20", "write requests.seconds in it"),
        ("--seed", "0", "write requests.seed in it"),
        ("--requests", "x.csv", "write requests.file in it"),
        ("--model", "bloom-176b", "write model in it"),
        ("--decode-model", "batch", "it goes with --design; leave it out"),
    ],
)
def test_options_of_a_design_are_refused_beside_a_scenario(
    option: str, value: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert refused(capsys, "simulate", "fleet.yaml", option, value) == (
        f"splitwatt simulate: {option} says nothing beside a scenario: {says}"
    )


ASKED = {
    "splitwatt simulate --design": ("simulate", "--design", "H100:2"),
    "splitwatt plan --power-units splitwise": ("plan", "--power-units", "splitwise", "--power-of", "H100:4"),
}


@pytest.mark.parametrize("asked", ASKED)
def test_without_the_papers_it_says_what_to_install(
    asked: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(forward, "entry_points", lambda **_: EntryPoints())
    said = refused(capsys, *ASKED[asked])
    assert said == (
        f"splitwatt {ASKED[asked][0]}: {asked} only reproduces published results, which is not part of splitwatt: "
        "pip install 'splitwatt[papers]'"
    )
