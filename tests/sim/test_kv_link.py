"""A KV link of one's own, and TTFT as a user has it: what `simulate` judges and `plan` decides by."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from splitwatt_cli.main import main
from splitwatt_core.gpus.hardware import builtin
from splitwatt_sim.fleet.run import run_fleet
from splitwatt_sim.fleet.state import DECODE, MIXED, PREFILL, Failure, Pool
from splitwatt_sim.latencies import Latencies, judged_ttft_ms_p99
from splitwatt_sim.plan.arguments import said
from splitwatt_sim.plan.command_options import SearchOptions
from splitwatt_sim.plan.options import MODEL_2026, LatencySlo, server_kind
from splitwatt_sim.plan.resolve import search_of
from splitwatt_sim.plan.shards import fingerprint
from splitwatt_sim.plan.sweep import items
from splitwatt_sim.servers.catalogue import Catalogue
from splitwatt_sim.servers.kinds import Links, links_of
from support.fleet_scenes import ROUND, Row, arrivals

REQUESTS = "arrival_timestamp,prompt_size,token_size\n" + "".join(
    f"{0.4 * i:.2f},{200 + 37 * i % 1500},{8 + i % 90}\n" for i in range(60)
)


def felt_s(pools: list[Pool], rows: list[Row], *changes: Failure) -> list[float]:
    user_ms = run_fleet(pools, arrivals(rows), changes=changes).latencies.ttft_user_ms
    assert user_ms is not None
    return [float(x) for x in np.round(user_ms / 1e3 * 1024) / 1024]


def split(kind: Any = ROUND, decode: int = 1) -> list[Pool]:
    return [Pool(PREFILL, kind, 1), Pool(DECODE, kind, decode)]


def test_a_users_first_token_is_the_end_of_the_first_step_at_decode() -> None:
    slow = replace(ROUND, hand_off_s_per_token=1 / 1024)
    assert felt_s(split(slow), [(0.0, 512, 5)]) == [0.5 + 0.5 + 0.25]
    assert felt_s(split(slow), [(0.0, 512, 1)]) == [0.5], "no cache moves for a single token"
    assert felt_s([Pool(MIXED, slow, 1)], [(0.0, 512, 5)]) == [0.5], "one machine shows it when the prompt is read"


def test_who_comes_within_a_step_waits_for_its_end_and_takes_part_in_a_longer_one() -> None:
    # The second cache is there at 1.0625, in the step from 1.0 to 1.25; then two take 0.375.
    assert felt_s(split(), [(0.0, 512, 20), (1.0, 64, 4)]) == [0.75, 0.625]


def test_caches_wait_for_the_link_and_not_for_those_that_are_on_their_way() -> None:
    rows = [(0.0, 256, 1), (0.125, 512, 2), (0.125, 512, 2)]  # the first one keeps both waiting, whose prompts end at 1.25
    # Two steps of one sequence each; or, of two that come together, one step of both.
    assert felt_s(split(replace(ROUND, hand_off_fixed_s=0.5)), rows) == [0.25, 1.875, 2.375]
    assert felt_s(split(replace(ROUND, hand_off_latency_s=0.5)), rows) == [0.25, 2.0, 2.0]


@pytest.mark.parametrize(("fails_s", "shown_s"), [(0.625, None), (0.75, 0.75), (1.0, 0.75)])
def test_a_first_step_that_a_failure_ends_shows_nothing(fails_s: float, shown_s: float | None) -> None:
    got = felt_s(split(decode=2), [(0.0, 512, 9)], Failure(1, 0, fails_s))
    again_s = fails_s + 513 / 1024 + 0.25
    assert got == [again_s if shown_s is None else shown_s]


def test_a_given_link_moves_caches_whole_after_the_prefill() -> None:
    measured, tokens = builtin().hand_offs["H100"], 1000
    for links, whole_s in ((links_of(100.0, None), 1e-5), (links_of(None, 2000.0), 1 / measured.link_bytes_per_s * 1e6 + 2.0)):
        moved = links.hand_off(measured, bytes_per_token=1000)
        assert tokens * moved.s_per_token + moved.fixed_s + moved.latency_s == pytest.approx(whole_s)
        assert moved.overlap_from_tokens == float("inf")
    assert links_of(None, None) == Links(), "what is not given is as it was measured"
    kind = server_kind(MODEL_2026, "H100", 700, longest_prompt=100, catalogue=Catalogue(links=links_of(None, 2000.0)))
    assert kind.hand_off_latency_s == 2.0
    assert server_kind("bloom-176b", "H100", 700, longest_prompt=100, catalogue=Catalogue("bloom-176b", links=links_of(1.0, 5.0)))


def test_an_slo_is_held_against_what_users_have() -> None:
    late = Latencies(np.array([100.0]), np.array([10.0]), np.array([5000.0]), np.array([2100.0]))
    assert judged_ttft_ms_p99(late.percentiles()) == 2100.0
    assert judged_ttft_ms_p99(Latencies(late.ttft_ms, late.tbt_ms, late.e2e_ms).percentiles()) == 100.0


def simulated(tmp_path: Path, **more: Any) -> dict[str, float]:
    (tmp_path / "r.csv").write_text(REQUESTS)
    pools = [{"role": role, "gpu": "H100", "servers": 1} for role in ("Prefill", "Decode")]
    whole = {"requests": {"file": "r.csv"}, "pools": pools, "slo": {"ttftP99Milliseconds": 1500}, **more}
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(whole))
    assert main(["simulate", str(tmp_path / "s.yaml"), "--out", str(tmp_path)]) == 0
    figures: dict[str, float] = json.loads((tmp_path / "simulate.json").read_text())
    return figures


@pytest.mark.parametrize("slow", [{"latencyMilliseconds": 2000}, {"gigabytesPerSecond": 0.02}])
def test_a_link_of_two_seconds_misses_a_goal_of_one_and_a_half(
    slow: dict[str, float], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fine = simulated(tmp_path)
    assert fine["slos_missed"] == 0 and fine["ttft_ms_p99"] < fine["ttft_user_ms_p99"] < 300
    capsys.readouterr()
    missed = simulated(tmp_path, kvLink=slow)
    assert missed["ttft_user_ms_p99"] > 2000 and missed["slos_missed"] == 1
    assert "SLOs missed: ttft_ms_p99" in capsys.readouterr().out
    assert missed["ttft_ms_p99"] == fine["ttft_ms_p99"], "prompts are read as before"
    under_law = simulated(tmp_path, kvLink=slow, power={"budgets": [{"name": "row", "limitWatts": 60_000}]})
    assert under_law["ttft_user_ms_p99"] > 2000 and under_law["slos_missed"] == 1


def test_over_a_slow_link_no_split_is_a_plan() -> None:
    def holding(**link: float) -> dict[str, int]:
        """How many pairs of servers hold a goal of 1.5 s at some rate."""
        asked = SearchOptions(servers=3, ttft_p99_ms=1500.0, list_s=20.0, step_rps=20.0, **link)  # type: ignore[arg-type]
        found = [item.servers.decode is not None for item in items(search_of(asked)) if item.search() is not None]
        return {"split": sum(found), "unsplit": len(found) - sum(found)}

    measured = holding()
    assert min(measured.values()) > 0
    assert holding(kv_latency_ms=2000.0) == {"split": 0, "unsplit": measured["unsplit"]}
    assert holding(kv_gigabytes_per_s=50.0) == measured, "as fast as it was measured"


def test_a_plan_says_its_link_again_and_shards_of_another_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    asked = SearchOptions(servers=3, kv_gigabytes_per_s=12.5, kv_latency_ms=3.0)
    assert said(asked)[2:] == ["--kv-link-gbytes", "12.5", "--kv-link-latency-ms", "3"]
    mine, other = (fingerprint(search_of(options)) for options in (asked, replace(asked, kv_latency_ms=4.0)))
    assert mine.differs(other) == "--kv-link-latency-ms 4, not 3" and mine.short != other.short
    with pytest.raises(SystemExit):
        main(["plan", "--servers", "3", "--kv-link-latency-ms", "-1"])
    assert "must be a number from 0, not -1" in capsys.readouterr().err


def test_goals_of_a_plan_are_users_goals() -> None:
    kind = replace(ROUND, hand_off_latency_s=2.0)
    given = arrivals([(0.0, 512, 5)])
    run = run_fleet(split(kind), given)
    misses = LatencySlo(1500.0, None).checker(MODEL_2026)
    assert misses(run, given) == ["ttft_ms_p99"]
    assert misses(run_fleet(split(), given), given) == []
