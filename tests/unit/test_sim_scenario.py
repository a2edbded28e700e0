"""Scenarios: what the file says is what runs, and a wrong one is answered with one sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from splitwatt_cli.main import main
from splitwatt_sim.simulate.parts import ScenarioError
from splitwatt_sim.simulate.scenario import arrivals_of, pools_of, read_scenario

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "simulate" / "scenario.yaml"
GOOD: dict[str, Any] = {
    "requests": {"rate": 10, "seconds": 20, "seed": 2},
    "pools": [
        {"role": "Prefill", "gpu": "H100", "servers": 2, "capWatts": 600},
        {"role": "Decode", "gpu": "H200", "servers": 1},
    ],
    "slo": {"ttftP99Milliseconds": 2000, "tbtP99Milliseconds": 100},
}


def written(folder: Path, **changes: Any) -> Path:
    path = folder / "s.yaml"
    path.write_text(yaml.safe_dump({**GOOD, **changes}), encoding="utf-8")
    return path


def test_a_scenario_says_pools_caps_and_requests(tmp_path: Path) -> None:
    scenario = read_scenario(written(tmp_path))
    arrivals = arrivals_of(scenario, beside=tmp_path)
    bought = pools_of(scenario, longest_prompt=int(arrivals.prompt_tokens.max()))
    assert [(pool.servers, option.gpu, option.cap_w) for pool, option in bought] == [(2, "H100", 600), (1, "H200", 700)]
    assert arrivals.requests_per_s == pytest.approx(10, rel=0.3)


def test_sizes_come_from_a_file_beside_the_scenario_and_the_rate_from_it_or_from_the_scenario(tmp_path: Path) -> None:
    rows = "\n".join(f"{i},{i * 0.5},{100 + i},{5 + i}" for i in range(40))
    (tmp_path / "list.csv").write_text(f"request_id,arrival_timestamp,prompt_size,token_size\n{rows}\n", encoding="utf-8")
    own = arrivals_of(read_scenario(written(tmp_path, requests={"file": "list.csv"})), beside=tmp_path)
    assert own.arrival_s.tolist() == [i * 0.5 for i in range(40)]
    drawn = arrivals_of(read_scenario(written(tmp_path, requests={"file": "list.csv", "rate": 9})), beside=tmp_path)
    assert len(drawn) > 500 and set(drawn.prompt_tokens.tolist()) <= set(range(100, 140))


def test_a_rate_file_shapes_the_day(tmp_path: Path) -> None:
    (tmp_path / "day.csv").write_text("seconds,multiplier\n0,0.2\n100,0.2\n101,3\n200,3\n", encoding="utf-8")
    requests = {"rate": 10, "seconds": 200, "rateFile": "day.csv"}
    arrivals = arrivals_of(read_scenario(written(tmp_path, requests=requests)), beside=tmp_path)
    early = int((arrivals.arrival_s < 100).sum())
    assert early * 8 < len(arrivals) - early


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"pools": []}, "pools: Tuple should have at least 1 item"),
        ({"pools": [{"role": "Prefill", "gpu": "H100", "servers": 2}]}, "a fleet needs Prefill and Decode pools, or a Mixed one"),
        (
            {"pools": [{"role": "Both", "gpu": "H100", "servers": 2}]},
            "pools.0.role: Input should be 'Prefill', 'Decode' or 'Mixed'",
        ),
        ({"pool": []}, "pool: Extra inputs are not permitted"),
        ({"slo": 7}, "slo: Input should be a mapping of keys to values"),
        ({"power": [1]}, "power: Input should be a mapping of keys to values"),
        ({"requests": {"rate": -1}}, "requests.rate: Input should be greater than 0"),
    ],
)
def test_a_wrong_scenario_names_the_field(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ScenarioError) as refused:
        read_scenario(written(tmp_path, **changes))
    assert says in str(refused.value)


def test_a_rate_file_alone_keeps_the_mean_rate_of_the_list(tmp_path: Path) -> None:
    rows = "\n".join(f"{i},{i * 0.05},100,5" for i in range(400))
    (tmp_path / "list.csv").write_text(f"request_id,arrival_timestamp,prompt_size,token_size\n{rows}\n", encoding="utf-8")
    (tmp_path / "day.csv").write_text("seconds,multiplier\n0,1\n100,1\n", encoding="utf-8")
    requests = {"file": "list.csv", "rateFile": "day.csv", "seconds": 50}
    arrivals = arrivals_of(read_scenario(written(tmp_path, requests=requests)), beside=tmp_path)
    assert arrivals.requests_per_s == pytest.approx(20, rel=0.05)


def test_an_empty_list_is_refused(tmp_path: Path) -> None:
    scenario = read_scenario(written(tmp_path, requests={"rate": 0.001, "seconds": 1, "seed": 1}))
    with pytest.raises(ScenarioError, match=r"the list holds no request: raise requests\.rate or requests\.seconds"):
        arrivals_of(scenario, beside=tmp_path)


def test_too_many_requests_are_refused_before_they_are_made(tmp_path: Path) -> None:
    scenario = read_scenario(written(tmp_path, requests={"rate": 1e6, "seconds": 1e6}))
    with pytest.raises(ScenarioError, match="are more than the 5000000 of one run: lower rate or seconds"):
        arrivals_of(scenario, beside=tmp_path)


def test_the_command_runs_the_example(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", str(EXAMPLE), "--out", str(tmp_path)]) == 0
    assert "all SLOs hold" in capsys.readouterr().out
    figures = json.loads((tmp_path / "simulate.json").read_text())
    assert figures["mean_w"] < figures["peak_w"] <= figures["charge_w"]
    assert figures["slos_missed"] == 0 and figures["servers"] == 5
    assert (tmp_path / "simulate.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("pools: [", "is not YAML"),
        ("- 1", "must hold a mapping"),
        ("pools: [{role: Mixed, gpu: H100, servers: 1}]", "give an SLO for TTFT or TBT in milliseconds"),
        ("pools: [{role: Mixed, gpu: K80, servers: 1}]", "there is no table of meta-llama/Llama-3.1-70B-Instruct on K80"),
        ("pools: [{role: Mixed, gpu: H100, servers: 1, capWatts: 10}]", "a cap of 10 W is outside 200 to 700 W"),
    ],
)
def test_the_command_answers_a_wrong_file_with_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, says: str
) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(text, encoding="utf-8")
    assert main(["simulate", str(path)]) == 2
    assert says in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("arguments", [[], [str(EXAMPLE), "--design", "HH:1/1"]])
def test_it_wants_a_scenario_or_a_design(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", *arguments]) == 2
    assert "give a scenario file, or --design; one of them" in " ".join(capsys.readouterr().err.split())
