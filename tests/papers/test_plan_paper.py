"""`splitwatt papers plan`: Splitwise's designs at equal power, in its own units."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from splitwatt_api.inference_cluster import InferenceCluster
from splitwatt_api.power_budget import PowerBudget
from splitwatt_cli.main import main
from splitwatt_papers.equal_power.command import ranked
from splitwatt_papers.equal_power.search import Judged, goal_of, judged, named, servers_of
from splitwatt_sim.fleet.run import FleetRun
from splitwatt_sim.latencies import Latencies
from splitwatt_sim.plan.search import Found
from splitwatt_sim.servers.designs import parse_design
from splitwatt_sim.traces.resample import generated

FAKE = FleetRun(Latencies(np.ones(1), np.ones(1), np.ones(1)), 1, 1.0, {}, {}, np.zeros((0, 0)))


def test_the_unseen_lists_do_not_rank() -> None:
    def plan(name: str, first: float, all_lists: float, found: float = 10.0) -> Judged:
        goal = goal_of(generated(requests_per_s=10.0, seconds=20.0, seed=3), margin=0.03)
        servers = servers_of(name, goal)
        design = replace(servers, prefill_servers=2, decode_servers=2 if servers.decode else 0)
        return Judged(name, Found(design, found, FAKE), 0.0, first, 0, all_lists)

    lucky, plain = plan("HH", 20.0, 20.0, found=10.0), plan("HHcap", 20.0, 5.0, found=15.0)
    assert [p.name for p in ranked([lucky, plain])] == ["HHcap", "HH"], "by what the search found, not by luck afterwards"
    cheap = plan("AA", 20.0, 5.0)
    assert [p.name for p in ranked([lucky, cheap])] == ["AA", "HH"], "then by price"


def test_where_nothing_holds_the_limit_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--power-of", "H100:1", "--step", "50", "--seconds", "20", "--check", "1", "--out", str(tmp_path)]
    assert main(["papers", "plan", *asked]) == 1
    out = capsys.readouterr().out
    said = " ".join(out.split())
    assert "the most that the power of --power-of 44 holds, misses " in said
    assert "times an unloaded server of 8 A100 at 50 requests/s: raise the power of --power-of or lower --step" in said
    # And from where it was before, with the options that say nothing new there.
    assert main(["plan", "--power-units", "splitwise", "--slo", "splitwise", *asked]) == 1
    before = capsys.readouterr()
    assert before.out == out
    assert "a command of its own now: splitwatt papers plan --power-of H100:1 " in before.err


def test_a_pair_is_searched_at_equal_power_and_judged_by_the_reference_model() -> None:
    sizes = generated(requests_per_s=10.0, seconds=120.0, seed=3)
    goal = goal_of(sizes, margin=0.03, seconds=30.0, step_rps=5.0)
    units = parse_design("H100:8").power_units
    plan = judged("HHcap", goal, power_units=units, seeds=range(2, 4))
    assert plan is not None
    design = named("HHcap", plan.found.design)
    assert design.split and units - 44.0 < design.power_units <= units
    assert plan.found.rate_rps > 0 and plan.found.rate_rps % 5 == 0
    assert 0 <= plan.held <= 2 and plan.all_rps <= plan.first_rps + 3 * 5
    # The rate that all lists hold is held by the two of them, and one step more is not.
    assert (plan.held == 2) == (plan.all_rps >= plan.found.rate_rps)
    assert judged("A100", goal, power_units=1.0, seeds=range(2, 3)) is None


def test_the_command_prints_the_designs_and_writes_what_can_be_applied(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["papers", "plan", "--power-of", "H100:6", "--seconds", "20", "--check", "1"]
    assert main([*line, "--out", str(tmp_path)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "264 power units, those of H100:6" in said and "(simulated)" in said and "by the reference model" in said
    values = json.loads((tmp_path / "plan.json").read_text())
    assert values["H100_prefill_servers"] == 6 and values["H100_decode_servers"] == 0
    assert 44 * values["HH_prefill_servers"] + 44 * values["HH_decode_servers"] == 264
    budget, cluster = yaml.safe_load_all((tmp_path / "plan.yaml").read_text())
    pools = [cluster["spec"].get(role, {"replicas": 0})["replicas"] for role in ("mixed", "prefill", "decode")]
    servers = pools[0] or pools[1], pools[2]
    InferenceCluster.from_wire(cluster)
    PowerBudget.from_wire(budget)
    assert servers in {
        (values[f"{name}_prefill_servers"], values[f"{name}_decode_servers"])
        for name in (("H100", "A100") if pools[0] else ("HHcap", "HH", "HA", "AA"))
        if f"{name}_prefill_servers" in values
    }
    assert (tmp_path / "plan.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--power-units", "splitwise"], "needs --power-of"),
        (["--power-units", "splitwise", "--power-of", "H100:4", "--gpus", "H100"], "--gpus says nothing"),
        (["--power-units", "splitwise", "--power-of", "H100:4", "--on-kubernetes"], "--on-kubernetes says nothing"),
        (["--power-units", "splitwise", "--power-of", "H100:4", "--merge", "shards"], "--merge says nothing"),
        (["--power-units", "splitwise", "--power-of", "H100:4", "--servers-per-rack", "2"], "--servers-per-rack says nothing"),
        (["--power-units", "splitwise", "--power-of", "H100:4", "--router", "own"], "--router says nothing"),
        (["--power-units", "splitwise", "--power-of", "H100:4", "--seconds", "19"], "lists of 19 s hide queues"),
        (["--power-units", "splitwise", "--power-of", "H100:4", "--step", "0.001"], "give a larger --step"),
        (["--power-units", "splitwise", "--power-of", "H100:4", "--model", "foo"], "--model foo is not known; choose from"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    options: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", *options]) == 2
    assert sentence in " ".join(capsys.readouterr().err.split())
