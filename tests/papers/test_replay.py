"""`splitwatt papers simulate` from the command line to its figures, and from `splitwatt simulate`, where it was before."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from splitwatt_cli.main import main
from splitwatt_papers.reference.run import run_reference
from splitwatt_sim.servers.designs import parse_design
from splitwatt_sim.servers.tables import DecodeModel, builtin
from splitwatt_sim.traces.arrivals import read_arrivals
from splitwatt_sim.traces.resample import generated, poisson

REQUESTS = "arrival_timestamp,prompt_size,token_size\n" + "".join(
    f"{0.03 * i:.2f},{200 + 37 * i % 1500},{8 + i % 90}\n" for i in range(200)
)
LATENCIES = [f"{name}_ms_p{p}" for name in ("ttft", "tbt", "e2e") for p in (50, 90, 99)]


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "requests.csv"
    path.write_text(REQUESTS, encoding="utf-8")
    return path


def simulated(tmp_path: Path, *arguments: str) -> dict[str, float]:
    out = tmp_path / "new" / "figures.json"
    assert main(["papers", "simulate", *arguments, "--json", str(out)]) == 0
    figures = json.loads(out.read_text(encoding="utf-8"))
    assert all(isinstance(value, int | float) for value in figures.values()), "flat: name -> number"
    return dict(figures)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["papers", "simulate", *arguments]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1, "one sentence, no traceback"
    return said.strip()


def test_a_run_writes_its_figures_flat_and_they_are_the_models(tmp_path: Path, trace: Path) -> None:
    got = simulated(tmp_path, "--design", "HA:2/2", "--requests", str(trace), "--decode-model", "splitwise-2023")
    given = read_arrivals(trace)
    want = run_reference(
        parse_design("HA:2/2"),
        arrival_s=given.arrival_s,
        prompt=given.prompt_tokens,
        output=given.output_tokens,
        tables=builtin(),
        decode=DecodeModel.SPLITWISE_2023,
    ).percentiles()
    assert {name: got[name] for name in LATENCIES} == want
    assert (got["requests"], got["servers"], got["usd_per_hour"]) == (200, 4, 2 * 38.0 + 2 * 17.6)
    assert got["slos_missed"] == sum(
        got[f"{name}_p{p}_slowdown"] >= limit
        for name, limits in {"ttft": (2, 3, 6), "tbt": (1.25, 1.5, 5), "e2e": (1.25, 1.5, 5)}.items()
        for p, limit in zip((50, 90, 99), limits, strict=True)
    )


def test_decode_is_keyed_by_sequences_unless_asked_otherwise(tmp_path: Path, trace: Path) -> None:
    arguments = ("--design", "A100:1", "--requests", str(trace))
    default, batch = simulated(tmp_path, *arguments), simulated(tmp_path, *arguments, "--decode-model", "batch")
    slipped = simulated(tmp_path, *arguments, "--decode-model", "splitwise-2023")
    assert default == batch
    assert slipped["tbt_ms_p50"] < batch["tbt_ms_p50"]


def test_another_model_is_served_by_its_own_tables(tmp_path: Path, trace: Path) -> None:
    arguments = ("--design", "H100:2", "--requests", str(trace))
    bloom, llama = simulated(tmp_path, *arguments), simulated(tmp_path, *arguments, "--model", "llama2-70b")
    assert llama["ttft_ms_p50"] < bloom["ttft_ms_p50"]


def test_a_rate_draws_a_seeded_list_from_the_sizes_of_the_file(tmp_path: Path, trace: Path) -> None:
    arguments = ("--design", "H100:2", "--requests", str(trace), "--rate", "3", "--seconds", "40")
    got = simulated(tmp_path, *arguments, "--seed", "5")
    assert got["requests"] == len(poisson(read_arrivals(trace), requests_per_s=3.0, seconds=40.0, seed=5))
    assert got == simulated(tmp_path, *arguments, "--seed", "5")
    assert got != simulated(tmp_path, *arguments, "--seed", "6")


def test_without_a_file_requests_are_generated(tmp_path: Path) -> None:
    got = simulated(tmp_path, "--design", "H100:2", "--rate", "4", "--seconds", "30", "--seed", "2")
    assert got["requests"] == len(generated(requests_per_s=4.0, seconds=30.0, seed=2))


def test_the_table_names_design_and_phases_and_says_simulated(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["papers", "simulate", "--design", "H100:8", "--requests", str(trace)]) == 0
    said = capsys.readouterr().out
    for word in ("H100:8: 200 requests of requests (simulated)", "TTFT", "TBT", "E2E", "all nine SLOs hold"):
        assert word in said
    assert main(["papers", "simulate", "--design", "A100:1", "--requests", str(trace)]) == 0
    assert "SLOs missed: ttft_p50" in capsys.readouterr().out


def test_bad_input_ends_with_2_and_one_sentence(tmp_path: Path, trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = ("--design", "H100:2", "--requests", str(trace))
    missing = str(tmp_path / "none.csv")
    assert refused(capsys, "--design", "H100:2", "--requests", missing) == (
        f"splitwatt papers simulate: there is no trace {missing}; check the path"
    )
    assert "model gpt is not known; choose one of bloom-176b, llama2-70b" in refused(capsys, *good, "--model", "gpt")
    assert "lower --rate or --seconds" in refused(capsys, *good, "--rate", "1e6", "--seconds", "1e6")
    huge = tmp_path / "huge.csv"
    huge.write_text("arrival_timestamp,prompt_size,token_size\n0,300000,10\n", encoding="utf-8")
    assert "1 requests of 1 can never run on H100:2" in refused(capsys, "--design", "H100:2", "--requests", str(huge))
    folder = tmp_path / "folder"
    folder.mkdir()
    assert refused(capsys, *good, "--json", str(folder)).startswith("splitwatt papers simulate: ")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--design", "HH:40"), "HH takes two counts, prompt and token machines, as in HH:25/15"),
        (("--design", "H100:2", "--rate", "0"), "must be a number above 0, not 0"),
        (("--design", "H100:2", "--seconds", "soon"), "must be a number above 0, not soon"),
        (("--design", "H100:2", "--decode-model", "quick"), "quick is unknown; use batch or splitwise-2023"),
    ],
)
def test_a_wrong_command_line_ends_with_2_and_says_what_is_wrong(
    arguments: tuple[str, ...], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["papers", "simulate", *arguments])
    assert ended.value.code == 2
    assert sentence in capsys.readouterr().err


def test_names_in_brackets_are_printed_as_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "a["
    folder.mkdir()
    odd = folder / "b]$x_{$.csv"  # its path holds [/b], which would close a style
    odd.write_text(REQUESTS, encoding="utf-8")
    assert main(["papers", "simulate", "--design", "H100:8", "--requests", str(odd)]) == 0
    assert "requests of b]$x_{$ (simulated)" in capsys.readouterr().out
    assert f"there is no trace {folder / 'b]'}; check" in refused(capsys, "--design", "H100:2", "--requests", str(folder / "b]"))


@pytest.mark.parametrize(
    "options",
    [
        ("--decode-model", "splitwise-2023"),
        ("--rate", "3", "--seconds", "40", "--seed", "5", "--model", "llama2-70b"),
    ],
)
def test_where_it_was_before_it_still_is_to_the_byte_and_what_to_type_now_is_said(
    options: tuple[str, ...], tmp_path: Path, trace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["--design", "HA:2/2", "--requests", str(trace), *options]
    now, before = tmp_path / "now.json", tmp_path / "before.json"
    assert main(["papers", "simulate", *asked, "--json", str(now)]) == 0
    wanted = capsys.readouterr()
    assert main(["simulate", *asked, "--json", str(before)]) == 0
    got = capsys.readouterr()
    assert (got.out, before.read_bytes()) == (wanted.out, now.read_bytes())
    assert got.err.count("\n") == 1 and wanted.err == ""
    assert got.err.startswith(
        "splitwatt simulate --design still works, and is a command of its own now: splitwatt papers simulate "
    )
    typed = shlex.split(got.err.partition("now: splitwatt ")[2])
    assert main([*typed[:-1], f"--json={now}"]) == 0
    assert capsys.readouterr().out == wanted.out


def test_from_where_it_was_before_a_wrong_line_ends_as_here(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["simulate", "--design", "HH:40"])
    assert ended.value.code == 2 and "HH takes two counts" in capsys.readouterr().err
    assert main(["simulate", "--design", "H100:2", "--requests", "nowhere.csv"]) == 2
    assert "splitwatt papers simulate: there is no trace nowhere.csv; check the path" in capsys.readouterr().err
