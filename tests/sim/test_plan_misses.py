"""Why nothing was found: which constraint is named, and that what is named as enough is enough."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from splitwatt_sim.plan.misses import alone_too_slow, limits_given, nearest_miss, no_room
from splitwatt_sim.plan.options import MODEL_2026, LatencySlo, option_for
from splitwatt_sim.plan.search import Goal, Limits, Option, PlanDesign
from splitwatt_sim.traces.resample import generated

SIZES = generated(requests_per_s=10.0, seconds=60.0, seed=3)
LONGEST = int(SIZES.prompt_tokens.max())
SLO = LatencySlo(2_000.0, 100.0, 0.03)
GOAL = Goal(SIZES, seconds=20.0, seed=1, step_rps=5.0, misses=SLO.checker(MODEL_2026))


def option(cap_w: int, usd: float = 38.0) -> Option:
    return replace(option_for(MODEL_2026, "H100", cap_w, longest_prompt=LONGEST), usd_per_hour=usd)


FAST, LEAN = option(700), option(350)
PAIRS = [PlanDesign(FAST, 0), PlanDesign(FAST, 0, LEAN)]
LEAST = [PlanDesign(FAST, 1), PlanDesign(FAST, 1, LEAN, 1)]


def room(least: list[PlanDesign], limits: Limits) -> str | None:
    return no_room(least, limits_given(limits, charge_option="--watts"))


def test_the_cheapest_server_says_how_much_is_enough() -> None:
    assert room(LEAST, Limits(charge_w=3_000.0)) == (
        "no server fits: the cheapest, H100 at 700 W, is charged 8624 W, and --watts is 3000: raise it to 8624 or more"
    )
    assert room(LEAST, Limits(charge_w=8_624.0)) is None
    assert room(LEAST, Limits(charge_w=FAST.charge_w)) is None


def test_a_pair_that_is_only_split_needs_both_servers() -> None:
    said = room(LEAST[1:], Limits(charge_w=9_000.0))
    assert said is not None
    assert "the cheapest, H100 at 700 W and H100 at 350 W to decode, is charged 14336 W" in said
    assert room(LEAST[1:], Limits(servers=1)) == (
        "no server fits: the cheapest, H100 at 700 W and H100 at 350 W to decode, takes 2, and --servers is 1: "
        "raise it to 2 or more"
    )


def test_where_two_limits_exclude_each_other_both_are_named() -> None:
    dear = PlanDesign(option(350, usd=90.0), 1)
    said = room([dear, LEAST[0]], Limits(charge_w=6_000.0, usd_per_hour=50.0))
    assert said is not None
    assert "the cheapest within --usd-per-hour 50, H100 at 700 W, is charged 8624 W, and --watts is 6000" in said


def test_a_request_alone_that_misses_an_slo_is_told_with_its_time() -> None:
    arrivals = GOAL.arrivals(5.0)
    said = alone_too_slow(LEAST, arrivals, LatencySlo(5.0, 100.0, 0.03).measure(MODEL_2026))
    assert said is not None
    form = re.fullmatch(
        r"one request alone has a TTFT P99 of ([\d.]+) ms on the fastest server, (.+), and the SLO less its margin is "
        r"([\d.]+): loosen it", said,
    )  # fmt: skip
    assert form is not None and float(form[1]) > float(form[3]) == pytest.approx(4.85)
    # What is told is what it takes: a little looser, and one request alone holds.
    enough_ms = float(form[1]) * 1.01 / 0.97 + 1
    assert alone_too_slow(LEAST, arrivals, LatencySlo(enough_ms, 100.0, 0.03).measure(MODEL_2026)) is None


def test_the_nearest_miss_is_the_nearest_of_the_largest_designs() -> None:
    limits = Limits(charge_w=20_000.0)
    given = limits_given(limits, charge_option="--watts")
    said = nearest_miss(PAIRS, limits, GOAL, rate_rps=400.0, lower="--rate", measure=SLO.measure(MODEL_2026), given=given)
    form = re.fullmatch(
        r"(.+), the most that --watts 20000 holds, misses (TTFT|TBT) P99: (\d+) of (\d+) ms at 400 requests/s: "
        r"raise --watts or lower --rate", said,
    )  # fmt: skip
    assert form is not None and int(form[3]) > int(form[4])
    assert form[1] in ("2 x H100 at 700 W, unsplit", "1 x H100 at 700 W prefill, 2 x H100 at 350 W decode")


def test_the_most_that_a_plan_may_have_is_no_limit_to_be_raised() -> None:
    assert [limit.option for limit in limits_given(Limits(servers=1_999, charge_w=1e4), charge_option="--watts")] == [
        "--servers", "--watts"
    ]  # fmt: skip
    assert limits_given(Limits(), charge_option="--watts") == []
    said = nearest_miss(
        PAIRS[:1], Limits(), replace(GOAL, step_rps=1.0), rate_rps=5.0, lower="--rate",
        measure=LatencySlo(1.0, 1.0).measure(MODEL_2026), given=[],
    )  # fmt: skip
    assert said.startswith("1000 x H100 at 700 W, unsplit, as large as a plan may be, misses ")
    assert said.endswith("ms at 5 requests/s: loosen the SLO or lower --rate")


def test_slowdowns_are_told_as_such() -> None:
    goal = replace(GOAL, sizes=generated(requests_per_s=10.0, seconds=60.0, seed=3))
    server = option_for("bloom-176b", "A100", 400, longest_prompt=LONGEST)
    said = alone_too_slow([PlanDesign(server, 1)], goal.arrivals(5.0), LatencySlo(margin=0.6).measure("bloom-176b"))
    assert said is not None and "times an unloaded server of 8 A100" in said
