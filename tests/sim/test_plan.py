"""The planner: what a search finds is what trying everything finds, and what it writes is what the API takes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from splitwatt_cli.main import main
from splitwatt_core.protocol.contract import Phase
from splitwatt_sim.fleet.run import FleetRun, run_fleet
from splitwatt_sim.latencies import Latencies
from splitwatt_sim.plan import report
from splitwatt_sim.plan.objects import PlanObjectsError, manifests
from splitwatt_sim.plan.options import GPUS_2026, MODEL_2026, LatencySlo, caps_of, market, option_for, profile_named
from splitwatt_sim.plan.search import (
    Found,
    Goal,
    Limits,
    Option,
    PlanDesign,
    charge_w,
    largest_rate,
    least_design,
    pareto,
    rates_down,
    robust_rate,
    splits,
)
from splitwatt_sim.servers.catalogue import Catalogue
from splitwatt_sim.servers.tables import TableError
from splitwatt_sim.traces.resample import generated
from support.some import some

SIZES = generated(requests_per_s=10.0, seconds=60.0, seed=3)
LONGEST = int(SIZES.prompt_tokens.max())
SLO = LatencySlo(1_500.0, 60.0)


def option(gpu: str = "H100", cap_w: int = 700) -> Option:
    return option_for(MODEL_2026, gpu, cap_w, longest_prompt=LONGEST)


KNOWN = {name: Catalogue().gpu(name) for name in GPUS_2026}
PREFILL, DECODE = option(), option(cap_w=380)
GOAL = Goal(SIZES, seconds=20.0, seed=1, step_rps=10.0, misses=SLO.checker(MODEL_2026))


def objects(design: PlanDesign) -> list[dict[str, Any]]:
    return manifests(design, name="chat", namespace="serving", model=MODEL_2026, slo=SLO, gpus=KNOWN)


def holding(designs: list[PlanDesign], *, up_to_rps: int) -> float:
    """The largest grid rate that some design holds with all below it, by trying everything."""
    best = 0.0
    for design in designs:
        rate = 0.0
        while rate < up_to_rps and GOAL.holds(design, rate + GOAL.step_rps):
            rate += GOAL.step_rps
        best = max(best, rate)
    return best


def test_a_server_is_charged_as_a_budget_charges_it() -> None:
    assert charge_w(cap_w=700, rest_w=2_800) == pytest.approx(1.04 * 8 * 700 + 2_800)
    design = PlanDesign(PREFILL, 3, DECODE, 2)
    assert design.charge_w == pytest.approx(3 * (1.04 * 5_600 + 2_800) + 2 * (1.04 * 8 * 380 + 2_800))


@pytest.mark.parametrize(
    ("limits", "room"),
    [
        (Limits(servers=7), 7),
        (Limits(charge_w=3 * PREFILL.charge_w), 3),
        (Limits(charge_w=3 * PREFILL.charge_w - 1), 2),
        (Limits(usd_per_hour=2 * 38.0), 2),
        (Limits(charge_w=9 * PREFILL.charge_w, servers=4), 4),
        (Limits(charge_w=1.0), 0),
    ],
)
def test_the_tightest_limit_says_how_many_servers_fit(limits: Limits, room: int) -> None:
    assert limits.room_for(PREFILL) == room


def test_what_is_spent_leaves_less_room() -> None:
    limits = Limits(charge_w=2 * PREFILL.charge_w + 3 * DECODE.charge_w)
    assert limits.room_for(DECODE, PlanDesign(PREFILL, 2, DECODE)) == 3


def test_splits_fill_the_limit_and_none_is_left_out() -> None:
    limits = Limits(charge_w=60_000.0)
    found = list(splits(PREFILL, DECODE, limits, SIZES))
    assert sorted(d.prefill_servers for d in found) == list(range(1, len(found) + 1))
    for design in some(found):
        assert design.charge_w <= 60_000.0 < design.charge_w + DECODE.charge_w


def test_the_largest_rate_is_that_of_trying_every_split() -> None:
    limits = Limits(charge_w=45_000.0)
    found = largest_rate(PREFILL, DECODE, limits, GOAL)
    assert found is not None
    assert found.rate_rps == holding(list(splits(PREFILL, DECODE, limits, SIZES)), up_to_rps=500)
    assert GOAL.holds(found.design, found.rate_rps) and found.design.charge_w <= 45_000.0
    assert not SLO.checker(MODEL_2026)(found.run, GOAL.arrivals(found.rate_rps))


def test_an_unsplit_fleet_fills_the_limit_too() -> None:
    found = largest_rate(PREFILL, None, Limits(servers=2), GOAL)
    assert found is not None and found.design == PlanDesign(PREFILL, 2)
    assert found.rate_rps == holding([PlanDesign(PREFILL, 2)], up_to_rps=500) > 0


def test_the_least_design_for_a_rate_is_that_of_trying_everything() -> None:
    found = least_design(PREFILL, DECODE, 60.0, Limits(servers=12), GOAL)
    everything = [
        PlanDesign(PREFILL, p, DECODE, d) for p in range(1, 10) for d in range(1, 7)
        if GOAL.holds(PlanDesign(PREFILL, p, DECODE, d), 60.0)
    ]  # fmt: skip
    assert found is not None
    assert found.design.charge_w == min(design.charge_w for design in everything)


def test_nothing_is_found_where_nothing_fits() -> None:
    assert largest_rate(PREFILL, DECODE, Limits(charge_w=100.0), GOAL) is None
    assert least_design(PREFILL, DECODE, 500.0, Limits(servers=3), GOAL) is None
    assert least_design(PREFILL, None, 500.0, Limits(servers=1), GOAL) is None


def test_a_margin_makes_every_slo_harder() -> None:
    loose, tight = LatencySlo(1_500.0, 60.0).checker(MODEL_2026), LatencySlo(1_500.0, 60.0, margin=0.5).checker(MODEL_2026)
    flat = np.full(10, 800.0)
    run = FleetRun(Latencies(flat, flat / 20, flat), 10, 1.0, {}, {}, np.zeros((0, 0)))
    assert loose(run, SIZES) == [] and tight(run, SIZES) == ["ttft_ms_p99", "tbt_ms_p99"]


FAKE = run_fleet(PlanDesign(PREFILL, 1).pools(), generated(requests_per_s=1.0, seconds=20.0, seed=1))


@given(st.lists(st.tuples(st.integers(1, 30), st.integers(1, 9)), min_size=1, max_size=20))
def test_the_front_is_what_nobody_beats_in_rate_and_charge(rows: list[tuple[int, int]]) -> None:
    found = [Found(PlanDesign(PREFILL, servers), float(rate), FAKE) for rate, servers in rows]
    front = pareto(found)

    def beaten(f: Found) -> bool:
        mine = (f.rate_rps, -f.design.charge_w)
        theirs = [(o.rate_rps, -o.design.charge_w) for o in found]
        return any(t != mine and t[0] >= mine[0] and t[1] >= mine[1] for t in theirs)

    assert {(f.rate_rps, f.design.charge_w) for f in front} == {(f.rate_rps, f.design.charge_w) for f in found if not beaten(f)}


def test_the_robust_rate_holds_on_every_list_and_the_next_step_does_not() -> None:
    design, seeds = PlanDesign(PREFILL, 2, DECODE, 2), (5, 6, 7)
    survived, rate = robust_rate(design, 200.0, GOAL, seeds=seeds)
    assert survived == 0 and 0 < rate < 200
    goals = [replace(GOAL, seed=seed) for seed in seeds]
    assert all(g.holds(design, rate) for g in goals) and not all(g.holds(design, rate + GOAL.step_rps) for g in goals)


@pytest.mark.parametrize(
    ("from_rps", "step_rps", "rates"),
    [
        (0.3, 0.1, [0.3, 0.2, 0.1]),
        (0.7, 0.1, [0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]),
        (15.0, 5.0, [15.0, 10.0, 5.0]),
        (12.0, 5.0, [12.0, 7.0, 2.0]),
        (2.0, 5.0, [2.0]),
        (0.0, 5.0, [0.0]),
    ],
)
def test_rates_go_down_in_whole_steps_and_none_is_beside_0(from_rps: float, step_rps: float, rates: list[float]) -> None:
    assert list(rates_down(from_rps, step_rps)) == pytest.approx(rates, abs=1e-12)


def test_a_list_without_a_request_holds_and_none_that_holds_leaves_0() -> None:
    fine = replace(GOAL, step_rps=0.1)
    assert not len(fine.arrivals(1e-4)) and fine.holds(PlanDesign(PREFILL, 1), 1e-4)
    never = replace(fine, misses=lambda run, arrivals: ["ttft_ms_p99"])
    assert robust_rate(PlanDesign(PREFILL, 1), 0.8, never, seeds=range(5, 9)) in [(0, 0.0), (0, 0.1)]


# ------------------------------------------------------------------------------------------------------------- options


@pytest.mark.parametrize("name", GPUS_2026.values())
@pytest.mark.parametrize("phase", [Phase.PREFILL, Phase.DECODE])
def test_no_cap_below_the_cliff_or_above_the_limit_is_tried(name: str, phase: Phase) -> None:
    profile = profile_named(name)
    row = profile.phase(phase)
    assert row is not None
    caps = caps_of(profile, phase)
    assert list(caps) == sorted(set(caps), reverse=True) and len(caps) > 1
    assert min(caps) >= max(row.cliff_w, profile.min_cap_w) and max(caps) <= profile.default_cap_w
    if phase is Phase.DECODE:
        assert max(caps) - row.natural_w < 5, "a cap above the natural draw buys nothing"


@pytest.mark.parametrize("phase", [Phase.PREFILL, Phase.DECODE])
def test_no_cap_is_tried_that_a_gpu_with_a_low_or_odd_limit_does_not_take(phase: Phase) -> None:
    odd = replace(profile_named("H100-SXM"), default_cap_w=397)
    assert max(caps_of(odd, phase)) <= 397


def test_the_market_pairs_every_prefill_with_every_decode_server_and_offers_unsplit_ones() -> None:
    shop = market(MODEL_2026, ["H100", "H200"], longest_prompt=LONGEST)
    pairs = shop.pairs()
    assert len(pairs) == len(shop.both) + len(shop.prefill) * len(shop.decode)
    assert {(p.gpu, d.gpu) for p, d in pairs if d} == {(a, b) for a in ("H100", "H200") for b in ("H100", "H200")}


@pytest.mark.parametrize(
    ("model", "gpu", "cap_w", "says"),
    [
        (MODEL_2026, "V100", None, "no table of meta-llama/Llama-3.1-70B-Instruct on V100; choose from A100, H100, H200, B200"),
        ("bloom-176b", "H200", None, "no table of bloom-176b on H200; choose from A100, H100"),
        (MODEL_2026, "H100", 150, "a cap of 150 W is outside 200 to 700 W"),
    ],
)
def test_what_no_table_knows_is_refused(model: str, gpu: str, cap_w: int | None, says: str) -> None:
    with pytest.raises(TableError, match=says):
        option_for(model, gpu, cap_w, longest_prompt=LONGEST)


# ------------------------------------------------------------------------------------------------------------- command


def test_the_command_plans_checks_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    limits = ["--watts", "45000", "--seconds", "20", "--step", "20", "--check", "2", "--jobs", "1"]
    assert main(["plan", *limits, "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "best: " in out and "on 2 lists the search did not see" in out
    figures = json.loads((tmp_path / "plan.json").read_text())
    assert figures["rate_requests_per_s"] > 0 and figures["charge_w"] <= 45_000
    assert figures["robust_rate_requests_per_s"] <= figures["rate_requests_per_s"]
    assert (tmp_path / "plan.png").read_bytes().startswith(b"\x89PNG")
    kinds = [obj["kind"] for obj in yaml.safe_load_all((tmp_path / "plan.yaml").read_text())]
    assert kinds[-2:] == ["PowerBudget", "InferenceCluster"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "say what may be spent (--watts, --power-of, --usd-per-hour or --servers) or what must be held (--rate)"),
        (["--watts", "9000", "--gpus", "H100,K80"], "no table of meta-llama/Llama-3.1-70B-Instruct on K80"),
        (["--watts", "9000", "--requests", "nowhere.csv"], "there is no trace nowhere.csv"),
        (["--watts", "9000", "--gpus", ","], "--gpus names no GPU; choose from A100, H100, H200, B200"),
        (["--watts", "9000", "--seconds", "5"], "lists of 5 s hide queues: give --seconds 20 or more"),
        (["--usd-per-hour", "100", "--gpus", "B200"], "no price is known of B200: add --price B200=USD, or leave it out"),
        (["--watts", "9000", "--step", "0.001"], "holds no request: give a larger --step, or more --seconds"),
        (["--rate", "0.001"], "a list of 120 s at 0.001 requests/s holds no request: give a larger --rate, or more --seconds"),
        (["--watts", "100MW"], "--watts 100000000 holds 17507 servers, and a plan at most 2000: give --servers or less --watts"),
        (["--power-of", "H100:2000"], "--power-of 17248000 holds 3019 servers"),
        (["--usd-per-hour", "100000"], "--usd-per-hour 100000 holds 2631 servers"),
        (["--servers", "2001"], "--servers is 2001, and a plan has at most 2000 servers"),
        (["--watts", "9000", "--model", "foo"], f"--model foo is not known; choose from {MODEL_2026}, bloom-176b, llama2-70b"),
        (["--watts", "9000", "--price", "T4=3"], "--price: there is no table of"),
        (["--watts", "9000", "--out", __file__], f"--out wants a folder, and {__file__} is a file: name another one"),
        (["--watts", "9000", "--out", f"{__file__}/x"], f"--out wants a folder, and {__file__} is a file"),
        (["--watts", "9000", "--shard", "0/2", "--shards-dir", __file__], "--shards-dir wants a folder, and "),
    ],
)
def test_bad_input_gets_a_sentence(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *arguments]) == 2
    assert says in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ["--watts", "3000"],
            "no server fits: the cheapest, H100 at 350 W, is charged 5712 W, and --watts is 3000: raise it to 5712 or more",
        ),
        (["--watts", "3000", "--servers", "2"], "is charged 5712 W, and --watts is 3000"),
        (["--power-of", "A100:1", "--gpus", "B200"], "and --power-of is 6128: raise it to"),
        (["--usd-per-hour", "20"], "costs 38 USD per hour, and --usd-per-hour is 20: raise it to 38 or more"),
        (["--watts", "45000", "--ttft-p99-ms", "5"], "one request alone has a TTFT P99 of "),
        (["--rate", "5", "--tbt-p99-ms", "2"], "one request alone has a TBT P99 of "),
        (["--watts", "6000", "--step", "500"], "1 x H100 at 350 W, unsplit, the most that --watts 6000 holds, misses TTFT P99: "),
        (["--servers", "3", "--rate", "900"], "ms at 900 requests/s: raise --servers or lower --rate"),
    ],
)
def test_an_impossible_plan_names_the_tightest_constraint(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["plan", *arguments, "--seconds", "20", "--jobs", "1", "--out", str(tmp_path)]) == 1
    assert says in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--name", "My_Plan"], "small letters, digits and dashes, as Kubernetes wants names, not 'My_Plan'"),
        (["--name", ""], "as Kubernetes wants names, not ''"),
        (["--ttft-p99-ms", "1e9"], "must lie from 1 to 600000 ms, not 1e9"),
        (["--price", "B200"], "write GPU=USD"),
        (["--check", "0"], "must be a whole number from 1, not 0"),
        (["--margin", "120"], "argument --margin: must lie from 0 to below 100 percent, not 120"),
        (["--profile", "none.yaml"], "argument --profile: cannot read the profile none.yaml"),
        (["--shard", "8/8"], "argument --shard: write I/N with I from 0 to N - 1"),
        (["--shard", "1/2", "--merge", "x"], "argument --merge: not allowed with argument --shard"),
        (["--image", ""], "must be an image as registry/name:tag, not ''"),
        (["--claim", "My_Claim"], "must be the name of a PersistentVolumeClaim, not 'My_Claim'"),
    ],
)
def test_a_wrong_option_is_refused_before_anything_runs(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["plan", "--watts", "9000", *arguments])
    assert says in " ".join(capsys.readouterr().err.split())


def test_one_slo_given_leaves_the_other_at_its_default(tmp_path: Path) -> None:
    limits = ["--watts", "45000", "--seconds", "20", "--step", "20", "--check", "1", "--jobs", "1", "--out", str(tmp_path)]
    plans = []
    for more in ([], ["--ttft-p99-ms", "2000"], ["--tbt-p99-ms", "100"]):
        assert main(["plan", *limits, *more]) == 0
        plans.append((tmp_path / "plan.json").read_text())
    assert plans[0] == plans[1] == plans[2]


def test_a_price_makes_money_a_limit(tmp_path: Path) -> None:
    spend = ["--usd-per-hour", "100", "--gpus", "H200", "--price", "H200=50", "--seconds", "20", "--step", "10", "--check", "1"]
    assert main(["plan", *spend, "--jobs", "1", "--out", str(tmp_path)]) == 0
    figures = json.loads((tmp_path / "plan.json").read_text())
    assert figures["prefill_servers"] + figures["decode_servers"] == 2


def test_objects_of_an_earlier_plan_do_not_stay(tmp_path: Path) -> None:
    (tmp_path / "plan.yaml").write_text("old", encoding="utf-8")
    one = ["--servers", "1", "--seconds", "20", "--step", "1", "--check", "1", "--jobs", "1", "--out", str(tmp_path)]
    assert main(["plan", *one]) == 0
    _, cluster = yaml.safe_load_all((tmp_path / "plan.yaml").read_text(encoding="utf-8"))
    assert cluster["spec"]["mixed"]["replicas"] == 1, "one server is unsplit"


def test_an_earlier_plan_that_stays_beside_no_answer_is_told_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["plan", "--watts", "3000", "--seconds", "20", "--jobs", "1", "--out", str(tmp_path)]
    assert main(line) == 1
    assert "earlier plan" not in capsys.readouterr().out
    (tmp_path / "plan.yaml").write_text("old", encoding="utf-8")
    assert main(line) == 1
    assert f"{tmp_path} still holds an earlier plan: plan.yaml" in " ".join(capsys.readouterr().out.split())
    assert (tmp_path / "plan.yaml").read_text() == "old"


def test_a_plan_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("plan.json", "plan.yaml"):
        (tmp_path / name).write_text("old", encoding="utf-8")

    def refuses(*given: object, **more: object) -> None:
        raise PlanObjectsError("the API does not take this plan")

    monkeypatch.setattr(report, "manifests", refuses)
    line = ["plan", "--watts", "45000", "--seconds", "20", "--step", "20", "--check", "1", "--jobs", "1", "--out", str(tmp_path)]
    assert main(line) == 2
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"plan.json": "old", "plan.yaml": "old"}
    monkeypatch.undo()
    assert main(line) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(report.FILES)
    assert "old" not in (tmp_path / "plan.json").read_text()


def test_no_pool_is_larger_than_an_inference_cluster_can_say() -> None:
    limits = Limits(servers=2_000)
    assert limits.room_for(PREFILL) == 1_000
    largest = PlanDesign(PREFILL, limits.room_for(PREFILL), DECODE)
    largest = replace(largest, decode_servers=limits.room_for(DECODE, largest))
    assert largest.servers == 2_000 and objects(largest)


def test_what_the_api_refuses_is_said_in_a_sentence() -> None:
    with pytest.raises(PlanObjectsError, match=r"the API does not take this plan: spec\.prefill\.replicas"):
        objects(PlanDesign(PREFILL, 50_000, DECODE, 2))


@settings(max_examples=5)
@given(seed=st.integers(0, 1_000))
def test_more_decode_servers_never_miss_what_fewer_held(seed: int) -> None:
    goal = replace(GOAL, seed=seed)
    held = [goal.holds(PlanDesign(PREFILL, 3, DECODE, d), 60.0) for d in range(1, 6)]
    assert held == sorted(held)
