"""GPUs in one budget: the arithmetic of the room by hand, caps that fit it, and what the search calls the largest count."""

from __future__ import annotations

import csv
from dataclasses import astuple, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from splitwatt_core.policies.phase_aware import PhaseAware
from splitwatt_core.policies.uniform import Uniform
from splitwatt_core.protocol.contract import Phase
from splitwatt_papers.oversubscribe import search, study
from splitwatt_papers.oversubscribe.budget import PUBLISHED, Caps, RoomReading, caps_for, static_margin_w
from splitwatt_papers.oversubscribe.fleets import Figures, FleetBench, ServerFleet, fixed_sizes, mean_gpu_w, spread_sizes
from splitwatt_papers.oversubscribe.search import (
    MARGIN,
    OURS,
    SEARCH_SEEDS,
    UNSPLIT,
    WORSE,
    Comparison,
    FleetVerdict,
    Static,
    Way,
    fleets_of,
    judge,
    largest,
    most_gpus,
    split_counts,
    worst,
)
from splitwatt_papers.oversubscribe.study import RestRead, base_reading, dearer_prefill, decode_at
from splitwatt_papers.pages import maxlps
from splitwatt_papers.pages.markdown import WIDTH, wrapped
from splitwatt_papers.pages.maxlps_text import aims
from splitwatt_sim.plan.options import profile_named
from support.some import some

B200 = profile_named("B200")
ROOM = RoomReading(550.0)
SHORT = partial(FleetBench, seconds=50.0, warm_s=20.0)

# ------------------------------------------------------------------------------------------------------------- watts


def test_what_is_published_for_each_gpu() -> None:
    assert PUBLISHED.static_w == pytest.approx(264_400 / 140) == pytest.approx(1_888.57, abs=0.01)
    assert PUBLISHED.drawn_w == pytest.approx(0.752 * 264_400 / 192) == pytest.approx(1_035.57, abs=0.01)
    assert PUBLISHED.rest_w(500.0) == pytest.approx(1_035.57 - 520.0, abs=0.01)


def test_a_room_is_charged_its_rest_and_its_caps_with_losses() -> None:
    assert RoomReading(500.0).charge_w([(10, 600.0)]) == pytest.approx(80 * (500 + 1.04 * 600))
    assert RoomReading(500.0).charge_w([(3, 700.0), (2, 400.0)]) == pytest.approx(24 * 1_228 + 16 * 916)
    assert RoomReading(500.0).share(40_000.0, 10) == pytest.approx((80 * 500 + 1.04 * 40_000) / 528_800)


def test_two_rooms_hold_the_static_count_in_whole_servers_and_one_does_not() -> None:
    two, one = RoomReading(500.0), RoomReading(500.0, rooms=1)
    assert (two.static_servers, two.per_room(35)) == (35, 140.0)
    assert (one.static_servers, one.per_room(17)) == (17, 136.0)


def test_more_rest_declared_is_charged_and_not_drawn() -> None:
    plain, careful = RoomReading(500.0), RoomReading(500.0, rest_spare=0.2)
    assert careful.charge_w([(1, 0.0)]) - plain.charge_w([(1, 0.0)]) == pytest.approx(8 * 100)
    assert careful.share(1_000.0, 1) == plain.share(1_000.0, 1)


def test_849_watts_of_rest_leave_no_margin() -> None:
    assert static_margin_w(848.57, 1_000.0) == pytest.approx(0.0, abs=0.01)
    tight = RoomReading(849.0)
    assert tight.most_servers(B200.min_cap_w) == 528_800 // (8 * (849 + 208)) == 62
    assert tight.per_room(62) == 248.0


@pytest.mark.parametrize(("servers", "fits"), [(62, True), (63, False)])
def test_no_caps_are_given_where_minimum_caps_do_not_fit(servers: int, fits: bool) -> None:
    caps = caps_for(PhaseAware(), RoomReading(849.0), B200, prefill_servers=servers - 12, decode_servers=12)
    assert (caps is not None) is fits


def test_decode_stands_at_its_cliff_and_prefill_takes_the_rest() -> None:
    gpus_w = (528_800 - 456 * 550) / 1.04
    prefill_w = int((gpus_w - 152 * 430) / 304)
    assert caps_for(PhaseAware(), ROOM, B200, prefill_servers=38, decode_servers=19) == Caps(prefill_w, 430) == Caps(664, 430)
    assert caps_for(Uniform(), ROOM, B200, prefill_servers=38, decode_servers=19) == Caps(int(gpus_w / 456), int(gpus_w / 456))


def test_an_unsplit_fleet_has_one_cap() -> None:
    caps = caps_for(Uniform(), ROOM, B200, prefill_servers=52, decode_servers=0)
    assert caps == Caps(693, 693) and int((528_800 / 416 - 550) / 1.04) == 693


@given(
    rest_w=st.floats(100.0, 900.0), spare=st.floats(0.0, 0.5), prefill=st.integers(1, 60), decode=st.integers(0, 30),
    policy=st.sampled_from([PhaseAware(), Uniform()]),
)  # fmt: skip
def test_caps_always_fit_and_nothing_stays_that_a_watt_for_all_could_use(
    rest_w: float, spare: float, prefill: int, decode: int, policy: PhaseAware | Uniform
) -> None:
    reading = RoomReading(rest_w, spare)
    caps = caps_for(policy, reading, B200, prefill_servers=prefill, decode_servers=decode)
    prefill_w, decode_w = (B200.min_cap_w, B200.min_cap_w) if caps is None else (caps.prefill_w, caps.decode_w)
    charge_w = reading.charge_w([(prefill, prefill_w), (decode, decode_w)])
    if caps is None:
        assert charge_w > reading.budget_w
        return
    assert charge_w <= reading.budget_w + 1e-6
    one_more_w = 1.04 * 8 * (prefill + decode)
    topped = caps.prefill_w >= (1_000 if isinstance(policy, Uniform) else 745)
    assert topped or charge_w + one_more_w > reading.budget_w


def test_the_base_rest_is_the_largest_that_was_read_rounded_up() -> None:
    read = [RestRead(True, 0.6, 469.0, 541.2, 0.0), RestRead(False, 0.9, 660.0, 349.0, 0.0)]
    assert base_reading(read) == RoomReading(550.0)
    assert base_reading([replace(read[0], rest_w=540.0)]) == RoomReading(540.0)


# --------------------------------------------------------------------------------------------------------- variants


def test_another_draw_of_decode_keeps_its_curve_in_proportion() -> None:
    row, other = B200.phase(Phase.DECODE), decode_at(B200, 870).phase(Phase.DECODE)
    assert row is not None and other is not None
    assert (other.natural_w, other.cliff_w) == (870, 860)
    assert other.latency_points == tuple((2 * cap_w, permille) for cap_w, permille in row.latency_points)
    assert decode_at(B200, 870).phase(Phase.PREFILL) == B200.phase(Phase.PREFILL)


def test_dearer_caps_cost_prefill_twice_the_time_they_cost() -> None:
    row = dearer_prefill(B200, 2).phase(Phase.PREFILL)
    assert row is not None
    assert dict(row.latency_points)[603] == 1_106 and dict(row.latency_points)[710] == 1_000
    assert dearer_prefill(B200, 2).phase(Phase.DECODE) == B200.phase(Phase.DECODE)


# ----------------------------------------------------------------------------------------------------------- search


@given(st.integers(0, 60), st.integers(0, 60))
def test_bisection_finds_what_trying_everything_finds(threshold: int, most: int) -> None:
    assert largest(lambda n: n <= threshold, most) == min(threshold, most)


@pytest.mark.parametrize("servers", [2, 17, 35, 57, 92])
def test_splits_are_whole_and_lie_around_the_static_one(servers: int) -> None:
    splits = split_counts(servers, split=True)
    assert splits and len(set(splits)) == len(splits)
    for prefill, decode in splits:
        assert prefill >= 1 and decode >= 1 and prefill + decode == servers
    if servers > 10:
        assert {round(0.64 * servers), round(25 / 35 * servers), round(0.8 * servers)} <= {p for p, _ in splits}
    assert split_counts(servers, split=False) == [(servers, 0)]


def test_both_p99s_bind_and_tokens_do_not() -> None:
    fine = Comparison(ttft=0.05, tbt=-0.2, e2e=0.3, tokens=-0.9)
    assert fine.within(0.05) and not replace(fine, ttft=0.051).within(0.05) and not replace(fine, tbt=0.06).within(0.05)
    before = Figures(200.0, 20.0, 20_000.0, 1_000.0, 1.0, 1.0)
    after = Figures(210.0, 19.0, 21_000.0, 1_500.0, 1.0, 1.0)
    assert astuple(Comparison.of(after, before)) == pytest.approx((0.05, -0.05, 0.05, 0.5))
    verdict = FleetVerdict(ServerFleet(1, 1, Caps(700, 430)), (fine, replace(fine, ttft=0.06), fine), (), (), ())
    assert verdict.held == 2


def small_static(bench: FleetBench, *, split: bool) -> Static:
    return Static(bench.uncapped(12, 5) if split else bench.uncapped(17, 0), 50.0, 60.0)


@pytest.mark.parametrize("way", [OURS, UNSPLIT])
def test_the_largest_count_holds_and_no_larger_one_does(way: Way) -> None:
    bench, reading = SHORT(B200, fixed_sizes()), RoomReading(550.0, rooms=1)
    static = small_static(bench, split=way.split)
    fleet = most_gpus(bench, reading, way, static)
    assert fleet is not None and fleet.servers > 17
    assert worst(bench, fleet, static, WORSE - MARGIN) is not None
    for servers in some(range(fleet.servers + 1, reading.most_servers(400.0) + 1)):
        for other in some(fleets_of(bench, reading, way, servers)):
            changes = [
                Comparison.of(bench.run(other, static.rate_for(servers), s), bench.run(static.fleet, static.rate_rps, s))
                for s in SEARCH_SEEDS
            ]
            assert not all(change.within(WORSE - MARGIN) for change in changes), str(other)


def test_the_static_fleet_judged_against_itself_has_changed_nothing() -> None:
    bench, reading = SHORT(B200, spread_sizes()), RoomReading(550.0, rooms=1)
    static = small_static(bench, split=True)
    verdict = judge(bench, reading, static.fleet, static, (7, 8))
    assert verdict.changes == (Comparison(0.0, 0.0, 0.0, 0.0),) * 2 and verdict.held == 2
    for share, peak, figures in zip(verdict.share, verdict.peak, verdict.figures, strict=True):
        assert share == reading.share(figures.gpus_w, 17) and share < peak < 1.0


def test_gpus_draw_between_idle_and_what_their_caps_allow() -> None:
    bench = SHORT(B200, fixed_sizes())
    fleet = ServerFleet(12, 5, Caps(600, 430))
    figures = bench.run(fleet, 50.0, 1)
    assert 140 < mean_gpu_w([figures], 17) < figures.peak_gpus_w / 136
    assert figures.peak_gpus_w <= 96 * 600 + 40 * 430 + 1e-6


def test_a_fleet_asked_for_more_than_it_can_do_is_not_run() -> None:
    bench = SHORT(B200, fixed_sizes())
    static = small_static(bench, split=True)
    full = Static(static.fleet, 12 / 0.1915, 12 / 0.1915)
    assert bench.prefill_load(static.fleet, full.rate_rps) == pytest.approx(1.0)
    assert worst(bench, bench.uncapped(11, 6), full, WORSE) is None


def test_a_warm_up_as_long_as_the_list_is_refused() -> None:
    with pytest.raises(ValueError, match="a warm-up of 50 s leaves nothing of 50 s"):
        FleetBench(B200, fixed_sizes(), seconds=50.0, warm_s=50.0)


# ------------------------------------------------------------------------------------------------------------- page


def test_an_aim_is_passed_only_above_it() -> None:
    assert aims(216, 0.9) == ("more than the aim of 215", "more than the aim of 84 %")
    assert all(text.startswith("**not") for text in aims(215, 0.84))


def test_prose_is_wrapped_and_tables_are_not() -> None:
    row, code = "| " + "x" * 200 + " |", "    " + "y" * 150
    long = "word " * 60
    text = f"# {'t' * 130}\n\n{long}\n\n- {long}\n  {long}\n- b\n\n{row}\n\n{code}\n"
    lines = wrapped(text).splitlines()
    assert row in lines and code in lines and lines[0] == "# " + "t" * 130
    prose = [line for line in lines if "word" in line]
    assert all(len(line) <= WIDTH for line in prose) and sum(line.count("word") for line in prose) == 180
    item = [line for line in prose if line.startswith(("- ", "  "))]
    assert item[0].startswith("- ") and all(line.startswith("  word") for line in some(item[1:])) and "- b" in lines
    assert wrapped(wrapped(text)) == wrapped(text)


def test_the_page_its_plot_and_its_figures_are_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(study, "FleetBench", SHORT)
    monkeypatch.setattr(study, "LOADS", (study.LIGHTEST,))
    monkeypatch.setattr(search, "PREFILL_SHARES", (0.68, 0.72))  # a small study: few splits, one list to search on
    for module in (search, study):
        monkeypatch.setattr(module, "SEARCH_SEEDS", (1,))
    monkeypatch.setattr(study, "RESTS_W", (849,))
    monkeypatch.setattr(study, "CURVE_STEP", 20)
    out, flat = tmp_path / "docs" / "reproduce", tmp_path / "flat.csv"
    assert maxlps.main(["--seeds", "5", "--out", str(out), "--flat", str(flat)]) == 0
    text = (out / "maxlps.md").read_text(encoding="utf-8")
    with flat.open(encoding="utf-8") as file:
        figures = {row["name"]: float(row["value"]) for row in csv.DictReader(file)}
    gpus = figures["main/8192 in, 1024 out/split/split, PhaseAware/gpus"]
    assert f"**{gpus:g} GPUs** serve in" in text and gpus % 4 == 0
    assert f"up to a rest of **{figures['largest_rest_that_reaches_the_aim_w']:g} W**" in text
    assert max(value for name, value in figures.items() if name.endswith("/budget_share_peak")) <= 1.0
    assert figures["rest/849 W/split/split, PhaseAware/gpus"] < 208 and "a rest of 849 W (" in text
    assert (tmp_path / "docs" / "img" / "reproduce_maxlps.png").read_bytes().startswith(b"\x89PNG")


def test_few_seeds_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        maxlps.main(["--seeds", "4"])
    assert "--seeds must lie in 5..100" in capsys.readouterr().err


def test_a_fleet_that_keeps_its_slo_by_chance_at_one_rate_does_not_lower_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keeping is not monotone: 6 + 4 servers keep up to 40 steps, and again at 101 alone, where the best so far ended."""

    def run(fleet: SimpleNamespace, rate_rps: float, seed: int) -> SimpleNamespace:
        steps = round(rate_rps / search.STEP_RPS)
        keeps = steps <= 100 if fleet.prefill == 7 else steps <= 40 or steps == 101
        return SimpleNamespace(ttft_ms=1.0 if keeps else 9.0, tbt_ms=1.0)

    bench = SimpleNamespace(
        uncapped=lambda prefill, decode: SimpleNamespace(prefill=prefill),
        alone=lambda fleet: SimpleNamespace(ttft_ms=1.0),
        run=run,
    )
    monkeypatch.setattr(search, "published_point", lambda bench, reading, static: static.fleet)
    reading = SimpleNamespace(static_servers=10)
    found = search.static_fleet(cast(Any, bench), cast(Any, reading), split=True)
    assert (cast(Any, found.fleet).prefill, found.full_rps) == (7, 100 * search.STEP_RPS)
