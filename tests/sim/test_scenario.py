"""Scenarios: what the file says is what runs, and a wrong one is answered with one sentence."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from matplotlib import pyplot as plt
from matplotlib.colors import to_rgba
from rich.console import Console
from splitwatt_cli.main import main
from splitwatt_core.gpus.profiles import builtin
from splitwatt_sim.fleet.run import FleetRun
from splitwatt_sim.fleet.state import DECODE, Failure, Flip
from splitwatt_sim.latencies import Latencies
from splitwatt_sim.plan.options import LatencySlo
from splitwatt_sim.servers.profile_files import profile_object
from splitwatt_sim.servers.tables import GIB
from splitwatt_sim.simulate import fleet_run
from splitwatt_sim.simulate.fleet_run import recorded
from splitwatt_sim.simulate.parts import ScenarioError
from splitwatt_sim.simulate.scenario import arrivals_of, catalogue_of, changes_of, pools_of, read_scenario
from splitwatt_sim.simulate.show import MISSED, slo_bars
from splitwatt_sim.traces.told import lines_on

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
    said: list[str] = []
    arrivals = arrivals_of(read_scenario(written(tmp_path, requests=requests)), beside=tmp_path, tell=said.append)
    assert said == []
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
        (
            {"pool": []},
            "pool: there is no such key; keys are model, requests, pools, slo, profiles, kvLink, fitErrorPercent, failures, "
            "flips, power",
        ),
        ({"slo": {"ttft": 3}}, "slo.ttft: there is no such key; keys are ttftP99Milliseconds, tbtP99Milliseconds"),
        (
            {"failures": [{"pool": 0, "server": 0, "atSeconds": 1, "back": 2}]},
            "failures.0.back: there is no such key; keys are pool, server, atSeconds, backAtSeconds",
        ),
        ({"slo": 7}, "slo: Input should be a mapping of keys to values"),
        ({"power": [1]}, "power: Input should be a mapping of keys to values"),
        ({"requests": {"rate": -1}}, "requests.rate: Input should be greater than 0"),
        ({"failures": [{"pool": 0, "server": 0}]}, "failures.0.atSeconds: Field required"),
        ({"failures": [{"pool": 0, "server": 0, "atSeconds": -1}]}, "failures.0.atSeconds: Input should be greater than"),
        (
            {"flips": [{"pool": 0, "server": 0, "atSeconds": 1, "toRole": "Prefil", "switchSeconds": 5}]},
            "flips.0.toRole: Input should be 'Prefill', 'Decode' or 'Mixed'",
        ),
        ({"flips": [{"pool": 0, "server": 0, "atSeconds": 1, "toRole": "Mixed"}]}, "flips.0.switchSeconds: Field required"),
    ],
)
def test_a_wrong_scenario_names_the_field(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ScenarioError) as refused:
        read_scenario(written(tmp_path, **changes))
    assert says in str(refused.value)


FAILURE = {"pool": 1, "server": 0, "atSeconds": 5, "backAtSeconds": 9}
FLIP = {"pool": 0, "server": 1, "toRole": "Decode", "atSeconds": 10, "switchSeconds": 2}


def test_failures_and_flips_are_played_and_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path, failures=[FAILURE], flips=[FLIP])
    assert changes_of(read_scenario(path)) == [Failure(1, 0, 5.0, 9.0), Flip(0, 1, 10.0, DECODE, 2.0)]
    assert main(["simulate", str(path), "--out", str(tmp_path)]) == 0
    told = " ".join(capsys.readouterr().out.split())
    figures = json.loads((tmp_path / "simulate.json").read_text())
    assert figures["restarted_sequences"] > 0 and figures["role_flips"] == 1 and figures["unfinished_requests"] == 0
    assert f"failures: 1, sequences that began again: {figures['restarted_sequences']}, requests that found no" in told
    assert "not in the table: 0; role flips done: 1 of 1" in told
    calm = tmp_path / "calm"
    calm.mkdir()
    assert main(["simulate", str(written(calm)), "--out", str(calm)]) == 0
    assert "began again" not in capsys.readouterr().out
    without = json.loads((calm / "simulate.json").read_text())
    assert without["restarted_sequences"] == without["role_flips"] == 0
    assert figures["e2e_ms_p99"] > without["e2e_ms_p99"] + 4_000, "for four seconds nobody decoded"


def test_the_example_with_a_failure_and_a_flip_runs(tmp_path: Path) -> None:
    assert main(["simulate", str(EXAMPLE.with_name("failures.yaml")), "--out", str(tmp_path)]) == 0
    figures = json.loads((tmp_path / "simulate.json").read_text())
    assert figures["restarted_sequences"] > 0 and figures["role_flips"] == 1
    assert figures["unfinished_requests"] == figures["slos_missed"] == 0


def test_unfinished_requests_are_a_missed_slo_and_no_part_of_the_percentiles(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    forever = {**FAILURE, "atSeconds": 15}
    del forever["backAtSeconds"]
    assert main(["simulate", str(written(tmp_path, failures=[forever])), "--out", str(tmp_path)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    figures = json.loads((tmp_path / "simulate.json").read_text())
    finished = figures["requests"] - figures["unfinished_requests"]
    assert "SLOs missed: unfinished" in said and said.startswith(f"{finished} of {figures['requests']} requests of generated")
    assert 0 < figures["unfinished_requests"] < figures["requests"] and figures["slos_missed"] >= 1
    assert figures["e2e_ms_p99"] < 20_000


def test_the_picture_shows_what_was_not_finished_in_red() -> None:
    latencies = Latencies(np.array([10.0]), np.array([5.0]), np.array([50.0]))
    run = FleetRun(latencies, 9, 4.0, {"mixed": 8.0}, {"mixed": 0.5}, np.ones((1, 4)), unfinished=np.arange(3))
    for slo, bars in ((LatencySlo(2000, 100), 2), (LatencySlo(None, None), 0)):
        figure, axes = plt.subplots()
        slo_bars(axes, run, slo)
        texts = [axes.get_title(), *(text.get_text() for text in axes.texts)]
        assert any("3 requests unfinished" in text or "3 unfinished" in text for text in texts)
        assert [bar.get_facecolor() for bar in axes.patches] == [to_rgba(MISSED)] * bars
        plt.close(figure)


def test_power_is_recorded_to_the_last_whole_second_of_the_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    scenario = read_scenario(written(tmp_path))
    arrivals = arrivals_of(scenario, beside=tmp_path)
    pools = [pool for pool, _ in pools_of(scenario, longest_prompt=20_000)]
    run = recorded(pools, arrivals, [], most_s=1000)
    seconds = run.power_w.shape[1]
    assert seconds == int(run.ends_s) > arrivals.arrival_s[-1] + 1
    idle_w = np.array([pool.kind.idle_w for pool in pools for _ in range(pool.servers)])
    assert np.all(run.power_w >= idle_w[:, None] - 1e-6), "no second looks emptier than an idle fleet"
    monkeypatch.setattr(fleet_run, "DRAIN_S", 0)  # so the first guess is too short
    assert np.array_equal(recorded(pools, arrivals, [], most_s=1000).power_w, run.power_w)
    assert np.array_equal(recorded(pools, arrivals, [], most_s=7).power_w, run.power_w[:, :7])
    # With the only decode server gone the run ends with the last arrival, in the middle of a second.
    stopped = recorded(pools, arrivals, [Failure(1, 0, 6.5, math.inf)], most_s=1000)
    assert len(stopped.unfinished) and stopped.ends_s <= arrivals.arrival_s[-1] + 1
    assert np.all(stopped.power_w[:2] >= idle_w[:2, None] - 1e-6)


def test_a_record_that_is_cut_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    titles: list[str] = []
    monkeypatch.setattr(fleet_run, "draw", lambda *_, title, **__: titles.append(title))
    for most, cut in ((3 * 9, " of the first 9 s"), (3 * 900, "")):
        monkeypatch.setattr(fleet_run, "MAX_RECORDED", most)
        assert main(["simulate", str(written(tmp_path)), "--out", str(tmp_path)]) == 0
        said = " ".join(capsys.readouterr().out.split())
        assert f"kW in a second{cut}, " in said and "drawn, before conversion losses, at most" in said
        assert titles[-1].endswith(f"requests (simulated){cut}")


def test_pools_of_one_role_have_colours_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr(plt, "close", drawn.append)
    pools = [*GOOD["pools"], {"role": "Prefill", "gpu": "H100", "servers": 1, "capWatts": 500}]
    path = written(tmp_path, pools=pools, failures=[FAILURE, {**FAILURE, "atSeconds": 12, "backAtSeconds": 13}], flips=[FLIP])
    assert main(["simulate", str(path), "--out", str(tmp_path)]) == 0
    (figure,) = drawn
    stacks = figure.axes[0].collections
    assert len({tuple(stack.get_facecolor()[0]) for stack in stacks}) == len(stacks) == 3
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels.count("a server is down") == labels.count("a server flips its role") == 1


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"failures": [{**FAILURE, "pool": 2}]}, "a failure names pool 2, and pools count from 0 to 1"),
        (
            {"failures": [{**FAILURE, "atSeconds": 30, "backAtSeconds": 40}]},
            "failures: 30 s is after the last request at 20 s; move it, or raise requests.seconds",
        ),
        ({"flips": [FLIP, {**FLIP, "atSeconds": 30}]}, "flips: 30 s is after the last request at 20 s; move it"),
        ({"flips": [{**FLIP, "server": 2}]}, "a flip names server 2 of pool 0, whose servers count from 0 to 1"),
        ({"failures": [{**FAILURE, "backAtSeconds": 5}]}, "a machine that fails at 5 s must be back later, not at 5 s"),
        (
            {"failures": [{"pool": 1, "server": 0, "atSeconds": 0}]},
            "no request was finished: let a machine of each role come back, or have one more",
        ),
    ],
)
def test_a_change_that_cannot_be_played_is_answered_with_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], says: str
) -> None:
    assert main(["simulate", str(written(tmp_path, **changes)), "--out", str(tmp_path)]) == 2
    assert f"splitwatt simulate: {says}" in " ".join(capsys.readouterr().err.split())


def test_a_rate_file_alone_keeps_the_mean_rate_of_the_list(tmp_path: Path) -> None:
    rows = "\n".join(f"{i},{i * 0.05},100,5" for i in range(400))
    (tmp_path / "list.csv").write_text(f"request_id,arrival_timestamp,prompt_size,token_size\n{rows}\n", encoding="utf-8")
    (tmp_path / "day.csv").write_text("seconds,multiplier\n0,1\n100,1\n", encoding="utf-8")
    requests = {"file": "list.csv", "rateFile": "day.csv", "seconds": 50}
    arrivals = arrivals_of(read_scenario(written(tmp_path, requests=requests)), beside=tmp_path)
    assert arrivals.requests_per_s == pytest.approx(20, rel=0.05)


def test_a_curve_that_goes_on_after_the_run_is_cut_and_that_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "day.csv").write_text("seconds,multiplier\n0,1\n86400,1\n", encoding="utf-8")
    scenario = read_scenario(written(tmp_path, requests={"rate": 1, "rateFile": "day.csv", "seconds": 50}))
    arrivals_of(scenario, beside=tmp_path, tell=lines_on(Console()))
    said = "day.csv: the first 50 s of 86400 s are played: raise requests.seconds to play all of the curve"
    assert said in " ".join(capsys.readouterr().out.split())


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
        ("pools: " + "[" * 2000 + "]" * 2000, "is not YAML"),
        ("seconds: 2026-13-45", "is not YAML"),
        ("- 1", "must hold a mapping; its keys are model, requests, pools, slo, profiles, kvLink, fitErrorPercent, failures"),
        ("", "must hold a mapping; its keys are model"),
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


def test_a_scenario_runs_on_ones_own_servers_beside_it(tmp_path: Path) -> None:
    h100 = next(profile for profile in builtin() if profile.name == "H100-SXM")
    mine = replace(h100, name="mine", product_names=("My GPU",), idle_w=h100.idle_w + 10)
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(profile_object(mine, memory_bytes=100 * GIB)), encoding="utf-8")
    pools = [{"role": "Mixed", "gpu": gpu, "servers": 1} for gpu in ("My GPU", "H100")]
    scenario = read_scenario(written(tmp_path, pools=pools, profiles=["own.yaml"]))
    catalogue = catalogue_of(scenario, beside=tmp_path)
    (_, own), (_, known) = pools_of(scenario, longest_prompt=100, catalogue=catalogue)
    assert catalogue.said_of({"mine", "H100"}) == [f"mine: watts {tmp_path / 'own.yaml'} (mine), times {tmp_path / 'own.yaml'}"]
    assert own.gpu == "mine" and own.kind.idle_w == known.kind.idle_w + 80 and own.kind.kv_room > known.kind.kv_room


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"profiles": ["none.yaml"]}, "cannot read the profile"),
        ({"profiles": "own.yaml"}, "profiles: Input should be a valid tuple"),
        ({"fitErrorPercent": 100}, "fitErrorPercent: Input should be less than 100"),
    ],
)
def test_wrong_profiles_of_a_scenario_are_answered_with_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], says: str
) -> None:
    assert main(["simulate", str(written(tmp_path, **changes)), "--out", str(tmp_path)]) == 2
    assert says in " ".join(capsys.readouterr().err.split())
