"""The power section of a scenario: what the file says is what runs, and a wrong one is answered with one sentence."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from matplotlib import pyplot as plt
from splitwatt_cli.main import main
from splitwatt_core.protocol.contract import Mode
from splitwatt_sim.fleet.state import DECODE, MIXED, PREFILL
from splitwatt_sim.power.run import PowerLoop
from splitwatt_sim.power.setup import LimitChange, PowerSetup
from splitwatt_sim.simulate.parts import ScenarioError
from splitwatt_sim.simulate.scenario import power_of, read_scenario

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "simulate" / "power.yaml"
PAGE = EXAMPLE.parents[2] / "docs" / "planning.md"
PREFILL_POOL = {"role": "Prefill", "gpu": "H100", "servers": 3, "priority": "Low"}
DECODE_POOL = {"role": "Decode", "gpu": "H200", "servers": 2, "capWatts": 400}
GOOD: dict[str, Any] = {
    "requests": {"rate": 5, "seconds": 12, "seed": 4},
    "pools": [DECODE_POOL, PREFILL_POOL],
    "slo": {"ttftP99Milliseconds": 2000},
    "power": {"budgets": [{"name": "row", "limitWatts": 36000}]},
}
FLOOR_W = 5 * (1.04 * 8 * 200 + 2800)


def written(folder: Path, *, power: dict[str, Any] | None = None, **changes: Any) -> Path:
    path = folder / "s.yaml"
    raw = {**GOOD, **changes}
    raw["power"] = {**GOOD["power"], **(power or {})}
    path.write_text(yaml.safe_dump(raw), encoding="utf-8")
    return path


def setup(folder: Path, *, power: dict[str, Any] | None = None, **changes: Any) -> PowerSetup:
    return power_of(read_scenario(written(folder, power=power, **changes)))


def test_one_budget_has_all_pools_and_defaults_fill_the_rest(tmp_path: Path) -> None:
    got = setup(tmp_path)
    (budget,) = got.budgets
    assert (budget.limit_w, budget.mode, budget.policy) == (36000, Mode.STRICT, "PhaseAware")
    assert (budget.non_gpu_w_per_node, budget.overhead_percent, budget.fixed_w, budget.reserve_w) == (2800, 4, 0, 0)
    assert [server.role for server in got.servers] == [PREFILL] * 3 + [DECODE] * 2, "in the order of the machines"
    assert {(s.gpu, s.priority, s.ceiling_w, s.leaf) for s in got.servers} == {
        ("H100", 0, None, "row"),
        ("H200", 100, 400, "row"),
    }
    assert (got.meter.delay_s, got.meter.noise_percent, got.meter.outages, got.meter.seed) == (2.0, 1.0, (), 4)
    assert (got.latency_s, got.breaker_k_s, got.changes) == (0.3, 214.0, ())


def test_every_field_arrives(tmp_path: Path) -> None:
    power = {
        "policy": "Uniform",
        "mode": "Observe",
        "budgets": [
            {"name": "site", "limitWatts": 50000, "reserveWatts": 500},
            {"name": "hall", "parent": "site", "limitWatts": 45000, "fixedWatts": 70},
            {"name": "a", "parent": "hall", "limitWatts": 30000, "pools": ["prefill"], "nonGpuWattsPerNode": 2500},
            {"name": "b", "parent": "hall", "limitWatts": 30000, "pools": ["decode"], "overheadPercent": 7},
        ],
        "meter": {"delaySeconds": 1, "noisePercent": 0, "outages": [[3, 5]]},
        "actuator": {"latencySeconds": 1.5},
        "breaker": {"kSeconds": 50},
        "events": [{"atSeconds": 4, "budget": "hall", "limitWatts": 40000}],
    }
    got = setup(tmp_path, power=power)
    site, hall, a, b = got.budgets
    assert (site.reserve_w, hall.fixed_w, hall.parent, a.parent) == (500, 70, "site", "hall")
    assert (a.non_gpu_w_per_node, a.overhead_percent, b.non_gpu_w_per_node, b.overhead_percent) == (2500, 4, 2800, 7)
    assert site.selector is None and hall.selector is None and a.selector is not None
    assert {budget.mode for budget in got.budgets} == {Mode.OBSERVE}
    assert Counter((s.leaf, s.role) for s in got.servers) == {("a", PREFILL): 3, ("b", DECODE): 2}
    assert (got.meter.delay_s, got.meter.noise_percent, got.meter.outages) == (1.0, 0.0, ((3.0, 5.0),))
    assert (got.latency_s, got.breaker_k_s, got.changes) == (1.5, 50.0, (LimitChange(4.0, "hall", 40000),))


def test_budgets_that_name_one_pool_share_its_servers(tmp_path: Path) -> None:
    budgets = [
        {"name": "a", "limitWatts": 30000, "pools": ["both"]},
        {"name": "b", "limitWatts": 30000, "pools": ["both"]},
    ]
    pools = [{"role": "Mixed", "gpu": "H100", "servers": 5, "name": "both"}]
    got = setup(tmp_path, power={"budgets": budgets}, pools=pools)
    assert [(s.name, s.leaf, s.role) for s in got.servers] == [(f"both-{i}", "ab"[i % 2], MIXED) for i in range(5)]


def row(**changes: Any) -> dict[str, Any]:
    return {"name": "row", "limitWatts": 50000, **changes}


def leaf(name: str = "a", **changes: Any) -> dict[str, Any]:
    return {"name": name, "parent": "row", "limitWatts": 50000, "pools": ["prefill", "decode"], **changes}


@pytest.mark.parametrize(
    ("power", "says"),
    [
        ({"budgets": []}, "power.budgets: Tuple should have at least 1 item"),
        ({"budgets": [row(limitWatts="much")]}, "power.budgets.0.limitWatts: Input should be a valid integer"),
        ({"budgets": [row(name="Row A")]}, "power.budgets.0.name: String should match pattern"),
        ({"budgets": [row(watts=3)]}, "power.budgets.0.watts: there is no such key; keys are name, limitWatts, parent, pools"),
        ({"mode": "Oversubscribed"}, "power.mode: Input should be 'Observe' or 'Strict'"),
        ({"policy": "Fair"}, "power.policy: Fair is unknown; use one of PhaseAware"),
        ({"meter": {"delaySeconds": 5}}, "power.meter.delaySeconds: Input should be less than or equal to 4"),
        ({"meter": {"outages": [20, 10]}}, "power.meter.outages.0: write outages as a list of [from, to], both in seconds"),
        ({"meter": {"outages": [[20]]}}, "write outages as a list of [from, to]"),
        ({"meter": {"outages": [[-1, 5]]}}, "power.meter.outages.0.0: Input should be greater than or equal to 0"),
        ({"meter": {"outages": [[9, 9]]}}, "power.meter.outages: [9, 9] must end after it begins"),
        ({"actuator": {"latencySeconds": -1}}, "power.actuator.latencySeconds: Input should be greater than or equal to 0"),
        ({"breaker": {"kSeconds": 0}}, "power.breaker.kSeconds: Input should be greater than 0"),
        ({"budgets": [row(), leaf(), leaf()]}, "power.budgets: two are called a; give each a name of its own"),
        (
            {"budgets": [row(), leaf(parent="hall")]},
            "power.budgets: the parent of a, hall, does not exist; add it or name another",
        ),
        (
            {"budgets": [row(pools=["decode"]), leaf()]},
            "power.budgets: row has budgets below it, so it must not name pools; move them to one of these",
        ),
        (
            {"budgets": [row(), leaf(), leaf("b", pools=[])]},
            "power.budgets: b has neither pools nor budgets below it; name its pools",
        ),
        (
            {"budgets": [row(), leaf(pools=["prefil"])]},
            "power.budgets: a names the pool prefil, which does not exist; name some of decode, prefill",
        ),
        (
            {"budgets": [row(parent="x"), {"name": "x", "parent": "row", "limitWatts": 9}, leaf(parent="x")]},
            "power.budgets: the parents of row lead back to it; remove one of them",
        ),
        (
            {"budgets": [row(), leaf(pools=["decode"])]},
            "power.budgets: no budget has the pool prefill; name it in the pools of one",
        ),
        (
            {"budgets": [row(), *(leaf(name) for name in "abc")]},
            "power.budgets: 3 budgets share the 2 servers of pool decode; name it in fewer of them",
        ),
        (
            {"budgets": [row(limitWatts=int(FLOOR_W) - 1)]},
            f"row has {int(FLOOR_W) - 1} W, but its servers need {FLOOR_W:.0f} W at their lowest caps, reserve included; "
            "raise limitWatts or take servers out",
        ),
        ({"budgets": [row(limitWatts=int(FLOOR_W) + 10, reserveWatts=11)]}, "at their lowest caps, reserve included"),
        (
            {"events": [{"atSeconds": 1, "budget": "rwo", "limitWatts": 9}]},
            "power.events: there is no budget rwo; name one of row",
        ),
        ({"events": [{"atSeconds": 1, "budget": "row", "limitWatts": 0}]}, "power.events.0.limitWatts: Input should be greater"),
    ],
)
def test_a_wrong_power_section_is_answered_with_what_to_change(tmp_path: Path, power: dict[str, Any], says: str) -> None:
    with pytest.raises(ScenarioError) as refused:
        setup(tmp_path, power=power)
    assert says in str(refused.value)


def test_pools_of_one_name_are_told_apart(tmp_path: Path) -> None:
    pools = [PREFILL_POOL, PREFILL_POOL, DECODE_POOL]
    with pytest.raises(ScenarioError, match=r"^pools: two are called prefill; give each a name of its own$"):
        setup(tmp_path, pools=pools)
    assert len(setup(tmp_path, pools=[PREFILL_POOL, {**PREFILL_POOL, "name": "other"}, DECODE_POOL],
                     power={"budgets": [row(limitWatts=90000)]}).servers) == 8  # fmt: skip


def run(tmp_path: Path, path: Path) -> dict[str, float]:
    assert main(["simulate", str(path), "--out", str(tmp_path)]) == 0
    figures = json.loads((tmp_path / "simulate.json").read_text(encoding="utf-8"))
    assert all(isinstance(value, int | float) for value in figures.values()), "flat: name -> number"
    return dict(figures)


def test_the_command_shows_budgets_and_writes_figures_series_and_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    power = {"events": [{"atSeconds": 4, "budget": "row", "limitWatts": 30000}]}
    figures = run(tmp_path, written(tmp_path, power=power))
    said = capsys.readouterr().out
    for words in ("TTFT", "PhaseAware, Strict (simulated)", "0/0/0", "row: limit lowered from 36000 W to 30000 W"):
        assert words in said
    assert figures["row_least_limit_w"] == 30000 and figures["row_peak_w"] <= figures["row_charge_peak_w"] <= 36000
    counts = ("power", "caps", "charge")
    assert [figures[f"row_{count}_above_limit_s"] for count in counts] == [0, 0, 0]
    with (tmp_path / "power.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == figures["simulated_s"]
    assert [float(line["row_limit_w"]) for line in rows[3:11]] == [36000] * 6 + [30000] * 2
    assert float(rows[11]["prefill_cap_w"]) < float(rows[3]["prefill_cap_w"])
    mean_w = sum(float(line["row_power_w"]) for line in rows) / len(rows)
    assert figures["row_mean_w"] == pytest.approx(mean_w, rel=1e-4)
    assert (tmp_path / "simulate.png").read_bytes().startswith(b"\x89PNG")


def test_observing_grants_nothing_and_shows_what_would_be_above(tmp_path: Path) -> None:
    power = {"mode": "Observe", "budgets": [{"name": "row", "limitWatts": 30000}]}
    figures = run(tmp_path, written(tmp_path, power=power))
    assert (figures["prefill_cap_least_w"], figures["decode_cap_least_w"]) == (700, 700)
    assert figures["row_caps_above_limit_s"] == figures["row_charge_above_limit_s"] == figures["simulated_s"]


def test_uniform_gives_all_the_same_and_a_ceiling_holds(tmp_path: Path) -> None:
    figures = run(tmp_path, written(tmp_path, power={"policy": "Uniform", "budgets": [{"name": "row", "limitWatts": 34000}]}))
    assert figures["decode_cap_mean_w"] == 400
    assert 400 < figures["prefill_cap_mean_w"] < 700


def test_an_event_after_the_last_request_is_refused_by_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path, power={"events": [{"atSeconds": 400, "budget": "row", "limitWatts": 30000}]})
    assert main(["simulate", str(path), "--out", str(tmp_path)]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "power.events: 400 s is after the last request at" in said and "raise requests.seconds" in said


def test_a_ceiling_outside_the_range_of_its_gpu_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path, pools=[PREFILL_POOL, {**DECODE_POOL, "capWatts": 20}])
    assert main(["simulate", str(path)]) == 2
    assert "a cap of 20 W is outside 200 to 700 W, the range of H200-SXM" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("policy", "mode", "called"),
    [
        ("PhaseAware", "Observe", "none (`Observe`)"),
        ("Uniform", "Strict", "`Uniform`, `Strict`"),
        ("Polca", "Strict", "`Polca`, `Strict`"),
        ("PhaseAware", "Strict", "`PhaseAware`, `Strict`"),
    ],
)
def test_the_example_keeps_its_limits_and_its_slos_and_its_figures_are_those_of_the_page(
    tmp_path: Path, policy: str, mode: str, called: str
) -> None:
    raw = yaml.safe_load(EXAMPLE.read_text(encoding="utf-8"))
    raw["power"] |= {"policy": policy, "mode": mode}
    path = tmp_path / "power.yaml"
    path.write_text(yaml.safe_dump(raw), encoding="utf-8")
    figures = run(tmp_path, path)
    assert figures["slos_missed"] == 0
    if mode == "Strict":
        for budget in ("row", "rack-a", "rack-b"):
            for count in ("power", "caps", "charge"):
                assert figures[f"{budget}_{count}_above_limit_s"] == 0
    rows = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith(f"| {called} |")]
    (told,) = rows
    theta, pessimistic = (figures[f"row_breaker_{name}"] for name in ("theta", "pessimistic_theta"))
    ms = (figures["ttft_ms_p50"], figures["ttft_ms_p99"])
    cells = [
        called,
        ", ".join(str(figures[f"row_{count}_above_limit_s"]) for count in ("power", "caps", "charge")),
        f"{theta:.2f}, trips ({pessimistic:.2f})" if pessimistic >= 1 else f"{theta:.2g}, {pessimistic:.2g}",
        ", ".join(f"{figures[f'row_{name}_w'] / 1e3:.1f}" for name in ("mean", "peak")),
        ", ".join(f"{value:.0f}" for value in ms),
        f"{figures['tbt_ms_p99']:.1f}",
        f"{figures['joules_per_token']:.2f}",
    ]
    assert told == f"| {' | '.join(cells)} |"
    if (policy, mode) == ("PhaseAware", "Strict"):
        assert figures["prefill_cap_least_w"] == 395
        with (tmp_path / "power.csv").open(encoding="utf-8") as file:
            caps = [(float(row["prefill_cap_w"]), float(row["decode_cap_w"])) for row in csv.DictReader(file)]
        assert {caps[0], caps[150], caps[219], caps[229], caps[231], caps[-1]} == {(636, 350), (395, 350)}


def test_the_picture_names_every_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr(plt, "close", drawn.append)
    run(tmp_path, written(tmp_path))
    (figure,) = drawn
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert sorted(names) == ["charge of the ledger", "limit in force", "sum of caps", "true power at the meter"]
    budget, *_, breakers = figure.axes
    assert budget.get_legend() is None, "it would cover the lines"
    assert breakers.get_ylabel() == "heat of the breaker"
    assert "trips" in [text.get_text() for text in breakers.get_legend().get_texts()]
    caps = next(line for line in budget.lines if line.get_label() == "sum of caps")
    charge = next(line for line in budget.lines if line.get_label() == "charge of the ledger")
    assert caps.get_linewidth() > 2 * charge.get_linewidth() and budget.lines.index(caps) < budget.lines.index(charge)


def test_a_run_that_memory_cannot_hold_is_refused_before_it_begins(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PowerLoop, "__init__", lambda *_, **__: pytest.fail("something was built"))
    pools = [{"role": "Mixed", "gpu": "H100", "servers": 2000}]
    power = {"budgets": [row(limitWatts=40_000_000)]}
    path = written(tmp_path, requests={"rate": 0.01, "seconds": 1e6}, pools=pools, power=power)
    assert main(["simulate", str(path), "--out", str(tmp_path)]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "s of 2000 servers are more than the 20000000 server seconds" in said
    assert "lower requests.seconds or servers" in said
