"""Mixed servers beside two split pools: which designs are tried, and that none is given that the unseen lists do not bear out."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from splitwatt_cli.main import main
from splitwatt_sim.fleet.run import run_fleet
from splitwatt_sim.fleet.state import DECODE, MIXED, PREFILL
from splitwatt_sim.plan import command
from splitwatt_sim.plan import mixed as mixed_module
from splitwatt_sim.plan.mixed import MAX_MOVED, Beside, cheaper, less_cost, more_rate, moved
from splitwatt_sim.plan.options import MODEL_2026, LatencySlo, option_for
from splitwatt_sim.plan.search import Goal, Limits, Option, PlanDesign, largest_rate, least_design, robust_rate
from splitwatt_sim.traces.resample import generated

SIZES = generated(requests_per_s=10.0, seconds=600.0, seed=1)
LONGEST = int(SIZES.prompt_tokens.max())
SLO = LatencySlo(2_000.0, 100.0, 0.03)
GOAL = Goal(SIZES, seconds=60.0, seed=1, step_rps=1.0, misses=SLO.checker(MODEL_2026))
SEEDS = range(2, 5)


def option(cap_w: int) -> Option:
    return option_for(MODEL_2026, "H100", cap_w, longest_prompt=LONGEST)


FAST, LEAN = option(560), option(380)
SPLIT = PlanDesign(FAST, 5, LEAN, 2)


def counts(design: PlanDesign) -> tuple[int, int, int]:
    return design.prefill_servers, design.mixed_servers, design.decode_servers


def test_servers_of_either_pool_become_mixed_at_the_same_charge_and_one_of_each_role_stays() -> None:
    designs = list(moved(SPLIT))
    assert sorted(map(counts, designs)) == [(1, 4, 2), (2, 3, 2), (3, 2, 2), (4, 1, 2), (5, 1, 1)]
    for design in designs:
        assert design.charge_w == pytest.approx(SPLIT.charge_w) and design.servers == SPLIT.servers
        assert design.mixed == (FAST if design.decode_servers == 2 else LEAN), "a server keeps its cap"
    assert len(list(moved(PlanDesign(FAST, 50, LEAN, 50)))) == 2 * MAX_MOVED
    assert not list(moved(PlanDesign(FAST, 1, LEAN, 1)))


def test_a_cheaper_design_has_one_server_less() -> None:
    designs = list(cheaper(SPLIT))
    assert {counts(design) for design in designs} == {
        (1, 3, 2), (2, 2, 2), (3, 1, 2), (4, 1, 1), (3, 2, 1), (2, 3, 1), (1, 4, 1)
    }  # fmt: skip
    assert all(design.servers == SPLIT.servers - 1 and design.charge_w < SPLIT.charge_w for design in designs)


def test_a_design_with_three_pools_is_charged_priced_named_and_run_as_such() -> None:
    design = replace(SPLIT, prefill_servers=4, mixed=FAST, mixed_servers=1)
    assert [(pool.role, pool.servers) for pool in design.pools()] == [(PREFILL, 4), (DECODE, 2), (MIXED, 1)]
    assert design.charge_w == pytest.approx(5 * FAST.charge_w + 2 * LEAN.charge_w)
    assert design.usd_per_hour == pytest.approx(7 * FAST.usd_per_hour)
    assert str(design) == "4 x H100 at 560 W prefill, 2 x H100 at 380 W decode, 1 x H100 at 560 W mixed"
    assert Limits(servers=8).room_for(FAST, design) == 1
    assert set(run_fleet(design.pools(), GOAL.arrivals(20.0)).energy_j) == {"prefill", "mixed", "decode"}


def test_more_rate_is_what_trying_everything_finds_and_holds_on_unseen_lists() -> None:
    found = largest_rate(FAST, LEAN, Limits(charge_w=45_000.0), GOAL)
    assert found is not None
    _, robust_rps = robust_rate(found.design, found.rate_rps, GOAL, seeds=SEEDS)
    beside = more_rate([found.design], GOAL, above_rps=found.rate_rps, robust_above_rps=robust_rps, seeds=SEEDS)
    assert beside is not None, "one prefill server more or less is a large step here, and a mixed one is half of it"
    assert GOAL.holds(beside.design, beside.rate_rps)
    assert not any(GOAL.holds(design, beside.rate_rps + GOAL.step_rps) for design in moved(found.design))
    assert (beside.survived, beside.robust_rps) == robust_rate(beside.design, beside.rate_rps, GOAL, seeds=SEEDS)
    assert beside.robust_rps > robust_rps
    # What the unseen lists do not bear out is not given, and neither is what the search has held without.
    assert more_rate([found.design], GOAL, above_rps=found.rate_rps, robust_above_rps=beside.robust_rps, seeds=SEEDS) is None
    assert more_rate([found.design], GOAL, above_rps=beside.rate_rps, robust_above_rps=0.0, seeds=SEEDS) is None


def least(rate_rps: float) -> PlanDesign:
    found = least_design(FAST, LEAN, rate_rps, Limits(servers=12), GOAL)
    assert found is not None
    return found.design


def less(
    design: PlanDesign, rate_rps: float, *, below_w: float, survived: int, robust_rps: float = 0.0, seeds: Sequence[int] = SEEDS
) -> Beside | None:
    return less_cost(
        [design], GOAL, rate_rps=rate_rps, cost=Limits().cost, below=below_w, survived=survived, robust_rps=robust_rps,
        seeds=seeds,
    )  # fmt: skip


def test_less_cost_is_the_least_that_holds_the_rate_with_a_server_less() -> None:
    design = least(80.0)
    beside = less(design, 80.0, below_w=design.charge_w, survived=3, robust_rps=80.0)
    assert beside is not None and beside.survived == 3, "a second decode server was half empty"
    every = [mixed.charge_w for mixed in cheaper(design) if GOAL.holds(mixed, 80.0)]
    assert beside.design.charge_w == min(every) < design.charge_w
    assert less(design, 80.0, below_w=beside.design.charge_w, survived=0) is None
    assert less(design, 80.0, below_w=design.charge_w, survived=0, robust_rps=81.0) is None, "all lists must hold as much"


def test_a_cheaper_design_that_holds_on_fewer_unseen_lists_is_not_given() -> None:
    design = least(94.0)
    survived, _ = robust_rate(design, 94.0, GOAL, seeds=SEEDS)
    lucky = less(design, 94.0, below_w=design.charge_w, survived=1)
    assert lucky is not None and lucky.survived < survived
    assert less(design, 94.0, below_w=design.charge_w, survived=survived) is None


def test_only_one_design_is_tried_on_the_unseen_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[PlanDesign] = []

    def none_holds(design: PlanDesign, rate_rps: float, goal: Goal, *, seeds: Sequence[int]) -> tuple[int, float]:
        tried.append(design)
        return 0, 0.0

    monkeypatch.setattr(mixed_module, "robust_rate", none_holds)
    design = least(82.0)
    found = less_cost(
        [design, design], GOAL, rate_rps=82.0, cost=Limits().cost, below=design.charge_w, survived=0, robust_rps=0.0, seeds=SEEDS
    )
    assert found is None, "no unseen list held it, and the second split has a design that would be next"
    assert len(tried) == 1


def test_where_money_alone_is_limited_the_least_design_is_the_least_price() -> None:
    cheap_watts = replace(LEAN, usd_per_hour=90.0)
    money, watts = Limits(usd_per_hour=1_000.0), Limits(charge_w=90_000.0, usd_per_hour=1_000.0)
    assert money.by_price and not watts.by_price and not Limits(servers=3).by_price
    designs = [
        PlanDesign(FAST, p, cheap_watts, d) for p in range(1, 9) for d in range(1, 9)
        if GOAL.holds(PlanDesign(FAST, p, cheap_watts, d), 60.0)
    ]  # fmt: skip
    for limits in (money, watts):
        found = least_design(FAST, cheap_watts, 60.0, limits, GOAL)
        assert found is not None
        assert limits.cost(found.design) == min(map(limits.cost, designs))


def planned(folder: Path, *limits: str) -> dict[str, float]:
    common = ["--seconds", "60", "--check", "3", "--jobs", "1", "--out", str(folder)]
    assert main(["plan", *limits, *common]) == 0
    figures = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
    assert isinstance(figures, dict) and all(isinstance(value, int | float) for value in figures.values())
    return figures


def test_the_command_tells_of_mixed_servers_and_writes_what_can_be_applied(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[list[PlanDesign]] = []

    def one(splits: list[PlanDesign], goal: Goal, *, above_rps: float, robust_above_rps: float, seeds: range) -> Beside:
        looked.append(splits)
        assert 0 < robust_above_rps <= above_rps and list(seeds) == [2, 3, 4]
        return Beside(next(moved(splits[0])), above_rps + 5, robust_above_rps + 5, 2)

    monkeypatch.setattr(command, "more_rate", one)
    figures = planned(tmp_path, "--watts", "45000")
    said = " ".join(capsys.readouterr().out.split())
    mixed = next(moved(looked[0][0]))
    assert 1 <= len(looked[0]) <= 3 and all(split.decode is not None for split in looked[0])
    assert f"with mixed servers: {mixed}: {figures['rate_requests_per_s'] + 5:g} requests/s on" in said
    assert "to which vllm-router cannot send: with --router own it holds them" in said
    assert figures["mixed_servers"] == 1 and figures["with_mixed_prefill_servers"] == mixed.prefill_servers
    assert figures["with_mixed_robust_rate_requests_per_s"] == figures["robust_rate_requests_per_s"] + 5
    cluster = list(yaml.safe_load_all((tmp_path / "plan.yaml").read_text(encoding="utf-8")))[-1]
    assert set(cluster["spec"]) >= {"prefill", "decode"} and "mixed" not in cluster["spec"]
    assert cluster["spec"]["prefill"]["replicas"] == looked[0][0].prefill_servers

    planned(tmp_path, "--watts", "45000", "--router", "own")
    said = " ".join(capsys.readouterr().out.split())
    assert "plan.yaml holds the mixed servers: bring a router that sends to all three pools" in said
    text = (tmp_path / "plan.yaml").read_text(encoding="utf-8")
    assert text.startswith(f"# {mixed}\n# planned for {figures['robust_rate_requests_per_s'] + 5:g} requests/s")
    assert "# Three pools: bring a router that sends to all three pools" in text
    spec = list(yaml.safe_load_all(text))[-1]["spec"]
    assert spec["router"] == {"type": "None"} and spec["mixed"]["replicas"] == mixed.mixed_servers == 1
    assert (spec["prefill"]["replicas"], spec["decode"]["replicas"]) == (mixed.prefill_servers, mixed.decode_servers)


@pytest.mark.parametrize("limits", [(), ("--usd-per-hour", "400"), ("--usd-per-hour", "400", "--watts", "90000")])
def test_a_plan_for_a_rate_asks_for_less_of_what_was_limited_and_says_nothing_where_there_is_none(
    limits: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[float] = []

    def none(
        splits: list[PlanDesign],
        goal: Goal,
        *,
        rate_rps: float,
        cost: Callable[[PlanDesign], float],
        below: float,
        survived: int,
        robust_rps: float,
        seeds: range,
    ) -> None:
        asked.extend([rate_rps, below, survived, robust_rps, cost(PlanDesign(FAST, 1))])

    monkeypatch.setattr(command, "less_cost", none)
    figures = planned(tmp_path, "--rate", "40", *limits)
    servers = figures["prefill_servers"] + figures["decode_servers"]
    below, one = (servers * 38.0, 38.0) if len(limits) == 2 else (figures["charge_w"], FAST.charge_w)
    assert asked == [40.0, below, figures["lists_survived"], figures["robust_rate_requests_per_s"], one]
    assert figures["mixed_servers"] == 0 and not any(name.startswith("with_mixed") for name in figures)
    assert "mixed" not in capsys.readouterr().out
