"""POLCA's row in virtual time: its trace, its kernel against the core's own law, its latencies, its page."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.progress import Progress
from splitwatt_core.policies.polca_table import (
    ClockCommand,
    Level,
    PolcaSettings,
    PolcaState,
    RowPriority,
    comparison,
    settings_for,
    step,
)
from splitwatt_core.policies.polca_table import Path as CommandPath
from splitwatt_papers.pages import polca as reproduce_polca
from splitwatt_papers.pages.markdown import filled, interval
from splitwatt_papers.pages.polca import JUDGED, variants, weak_locks
from splitwatt_papers.row import trace as row_trace
from splitwatt_papers.row.kernel import correlated, served_ms
from splitwatt_papers.row.model import SLOS, FloatArray, Row, clocks, columns, impact, run_row, sample_requests, slowdowns
from splitwatt_papers.row.trace import STEP_S, RowTrace, Targets, largest_rise, make
from support.some import some

ROW = Row()
SETTINGS = settings_for(ROW.profile)
FOUR = comparison(SETTINGS)


def felt(settings: PolcaSettings) -> dict[RowPriority, FloatArray]:
    return {priority: slowdowns(settings, ROW, priority) for priority in RowPriority}


@pytest.fixture(scope="module")
def trace() -> RowTrace:
    return make(7, days=2)


# --------------------------------------------------------------------------------------------------------------- trace


@pytest.mark.parametrize("bursts", [False, True])
@pytest.mark.parametrize("seed", [3, 4])
def test_a_trace_meets_the_published_figures_within_three_percent(seed: int, bursts: bool) -> None:
    got, wanted = make(seed, days=3, bursts=bursts).measured(), Targets()
    for name in ("peak", "rise_2_s", "rise_40_s"):
        assert getattr(got, name) == pytest.approx(getattr(wanted, name), rel=0.03), name
    assert (wanted.peak, wanted.rise_2_s, wanted.rise_40_s) == (0.79, 0.09, 0.118)


def test_six_weeks_are_the_default_and_days_are_day_and_night() -> None:
    u = make(3).utilisation
    assert len(u) * STEP_S == 42 * 86_400
    hours = u.reshape(42, 24, -1).mean(axis=(0, 2))
    assert 2 <= hours.argmin() <= 5 and 13 <= hours.argmax() <= 18
    days = u.reshape(42, -1).mean(axis=1).reshape(6, 7)
    assert bool(np.all(days[:, 5:].mean(axis=1) < days[:, :5].mean(axis=1)))


def test_a_seed_is_a_trace(trace: RowTrace) -> None:
    assert np.array_equal(make(7, days=2).utilisation, trace.utilisation)
    assert not np.array_equal(make(8, days=2).utilisation, trace.utilisation)


def test_bursts_are_rare_and_the_rest_is_calm(trace: RowTrace) -> None:
    calm = np.percentile(np.abs(np.diff(make(8, days=2, bursts=True).utilisation)), 99)
    assert calm < 0.6 * np.percentile(np.abs(np.diff(trace.utilisation)), 99)


def test_the_largest_rise_looks_at_every_pair_within_the_time() -> None:
    series = np.random.default_rng(1).random(200)
    for steps in (1, 3, 20):
        brute = max(series[j] - series[i] for i in range(200) for j in range(i + 1, min(i + steps, 199) + 1))
        assert largest_rise(series, steps * STEP_S) == brute
    assert largest_rise(np.array([3.0, 2.0, 1.0]), 2.0) == -1.0


def test_targets_that_no_shape_meets_are_refused() -> None:
    with pytest.raises(RuntimeError, match="rises not met"):
        make(1, days=1, targets=Targets(rise_2_s=0.0901, rise_40_s=0.0902))
    with pytest.raises(ValueError, match="rise in 2 s"):
        Targets(rise_2_s=0.2)
    with pytest.raises(ValueError, match="days"):
        make(1, days=0)


def test_correlated_noise_keeps_its_variance() -> None:
    noise = correlated(np.random.default_rng(2).standard_normal(200_000), 0.9)
    assert float(noise.std()) == pytest.approx(1.0, rel=0.05)
    assert float(np.corrcoef(noise[1:], noise[:-1])[0, 1]) == pytest.approx(0.9, abs=0.01)


# ----------------------------------------------------------------------------------------------------------------- row


def by_commands(offered: np.ndarray, settings: PolcaSettings, row: Row) -> tuple[list[float], list[Level], list[tuple[int, ...]]]:
    """The row again, slowly: the core's `step` and a list of commands on their way, no shared code with the kernel."""
    state, levels, in_force = PolcaState(), [], []
    power: list[float] = []
    on_their_way: list[ClockCommand] = []
    lock = dict.fromkeys(RowPriority, 0)
    brake = dict.fromkeys(RowPriority, 0)
    for k, u in enumerate(offered):
        now_s = k * STEP_S
        state, commands = step(state, power[-1] if power else None, now_s, settings)
        on_their_way += commands
        for command in [c for c in on_their_way if c.effective_s <= now_s]:
            (lock if command.path is CommandPath.LOCK else brake)[command.priority] = command.clock_mhz
            on_their_way.remove(command)
        base = u / row.scale
        gpu = row.gpu_share * base
        drawn = (1 - row.gpu_share) * base
        for p in RowPriority:
            above = row.above_idle(p, brake[p] or lock[p])
            drawn += row.class_share(p) * (row.idle_power + (gpu - row.idle_power) * above)
        power.append(row.scale * drawn)
        levels.append(state.level)
        in_force.append(tuple(brake[p] or lock[p] for p in RowPriority))
    return power, levels, in_force


@pytest.mark.parametrize("settings", FOUR, ids=lambda s: s.table.name)
def test_the_kernel_does_what_the_core_commands(settings: PolcaSettings) -> None:
    """Slow waves with noise through all thresholds and one leap, so that every level is seen."""
    rng = np.random.default_rng(5)
    k = np.arange(3000)
    u = 0.66 + 0.10 * np.sin(k / 150) + 0.05 * np.sin(k / 31) + 0.01 * rng.standard_normal(len(k))
    u[1000:1010] += 0.25  # faster than any lock
    run = run_row(RowTrace(0, u), settings, ROW)
    power, levels, in_force = by_commands(u * ROW.scale, settings, ROW)
    assert run.wanted.tolist() == levels
    assert run.brakes == sum(a is not Level.BRAKE and b is Level.BRAKE for a, b in itertools.pairwise(levels)) > 0
    mhz = np.stack([clocks(settings, p)[run.in_force] for p in RowPriority], axis=1)
    assert list(map(tuple, mhz.tolist())) == in_force
    np.testing.assert_allclose(run.power, power, rtol=1e-12)
    assert set(levels) == settings.table.levels


def test_without_locks_the_row_draws_its_trace_scaled(trace: RowTrace) -> None:
    run = run_row(trace, FOUR[0], Row(servers=48))
    np.testing.assert_allclose(run.power, trace.utilisation * 1.2, rtol=1e-12)
    assert run.brakes == 0 and run.locked_share == 0.0 and run.over_s == run.longest_over_s == 0.0


def test_polca_brakes_less_than_no_cap_on_an_overloaded_row(trace: RowTrace) -> None:
    row = Row(servers=54)
    no_cap, polca = (run_row(trace, s, row) for s in (FOUR[0], FOUR[3]))
    assert polca.brakes < no_cap.brakes
    assert polca.power.max() < no_cap.power.max()
    assert no_cap.over_s > 0 and STEP_S <= no_cap.longest_over_s <= 10.0
    assert polca.changes_per_day > 0


def test_lower_clocks_leave_fewer_watts_and_the_brake_the_fewest() -> None:
    for priority in RowPriority:
        left = [ROW.above_idle(priority, mhz) for mhz in (0, 1410, 1305, 1275, 1110, 288)]
        assert left[0] == left[1] == 1.0
        assert left[1:] == sorted(left[1:], reverse=True) and left[-1] > 0


def test_a_prefill_heavy_class_is_slowed_more_and_so_saves_less() -> None:
    assert ROW.above_idle(RowPriority.LOW, 1110) > ROW.above_idle(RowPriority.HIGH, 1110)


def test_half_of_the_servers_are_low_priority() -> None:
    assert ROW.class_share(RowPriority.LOW) == ROW.class_share(RowPriority.HIGH) == 0.5


def test_weak_locks_save_a_fifth_of_a_saturated_gpu() -> None:
    gpu = weak_locks(ROW, SETTINGS).profile
    share = (SETTINGS.low_t2_mhz / gpu.max_clock_mhz) ** (gpu.clock_exponent_permille / 1000)
    assert gpu.idle_w + (gpu.default_cap_w - gpu.idle_w) * share == pytest.approx(0.8 * gpu.default_cap_w, rel=1e-3)


def test_a_row_that_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="servers"):
        Row(servers=0)
    with pytest.raises(ValueError, match="sum to 1"):
        Row(mix=Row().mix[:2])
    with pytest.raises(ValueError, match="less than idle"):
        run_row(RowTrace(0, np.full(10, 0.1)), SETTINGS, ROW)


def test_every_delay_takes_whole_steps_and_is_never_too_short() -> None:
    assert columns(SETTINGS, ROW).delays.tolist() == [1, 20, 3]
    assert columns(replace(SETTINGS, telemetry_s=0.0, command_latency_s=0.5), ROW).delays.tolist() == [1, 1, 3]


# ------------------------------------------------------------------------------------------------------------- latency


def test_a_request_is_slowed_by_the_clock_in_force_while_it_runs() -> None:
    clock_at = np.array([0, 1, 1, 0, 0], dtype=np.int8)
    factors = np.array([[1.0, 2.0], [1.0, 1.25]])
    # Prefill: 2000 ms in step 0, 1000 ms of work in step 1 at half speed. Decode: 1600 ms in step 2, the rest unlocked.
    took = served_ms(np.array([0]), np.array([[3000.0, 2000.0]]), clock_at, factors, 2000.0)
    assert took.tolist() == [6400.0]
    assert served_ms(np.array([4]), np.array([[9000.0, 0.0]]), clock_at, factors, 2000.0).tolist() == [9000.0]


def test_unlocked_requests_lose_nothing_and_locked_ones_something(trace: RowTrace) -> None:
    requests = sample_requests(trace, ROW, count=5000, seed=1)
    free = impact(requests, run_row(trace, FOUR[0], Row(servers=40)), felt(FOUR[0]))
    assert all(abs(i.worse_p99) < 1e-9 for i in some(free.values()))
    polca = impact(requests, run_row(trace, SETTINGS, ROW), felt(SETTINGS))
    assert polca[RowPriority.LOW].worse_p99 > 0.01
    assert polca[RowPriority.LOW].worse_p99 > polca[RowPriority.HIGH].worse_p99


def test_requests_come_in_the_papers_mix_and_with_the_load(trace: RowTrace) -> None:
    requests = sample_requests(trace, ROW, count=20_000, seed=1)
    assert float((requests.priority == RowPriority.LOW).mean()) == pytest.approx(0.5, abs=0.02)
    hour = (requests.start * STEP_S % 86_400 / 3600).astype(int)
    counts = np.bincount(hour, minlength=24)
    assert counts[15] > 1.3 * counts[4]
    with pytest.raises(ValueError, match="count"):
        sample_requests(trace, ROW, count=0, seed=1)


def test_slos_are_strict() -> None:
    slo = SLOS[RowPriority.HIGH]
    felt = reproduce_polca.Impact(p50=0.0, p99=slo.p99, own_p50=0.0, own_p99=0.0)
    assert not felt.meets(slo) and replace(felt, p99=0.0499).meets(slo)
    assert not replace(felt, p99=0.0, own_p50=slo.p50).meets(slo)


# --------------------------------------------------------------------------------------------------------- the page


def test_the_interval_is_students() -> None:
    mean, half = interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert mean == 3.0
    assert half == pytest.approx(2.776 * (2.5 / 5) ** 0.5, rel=0.01)
    assert interval(list(range(10)))[1] == pytest.approx(2.262 * float(np.std(range(10), ddof=1)) / 10**0.5, rel=0.005)
    with pytest.raises(ValueError, match="5 or more"):
        interval([1.0, 2.0])


def test_the_judged_row_is_the_papers() -> None:
    first, *rest = variants()
    assert first.name == JUDGED and first.row == ROW and first.settings == SETTINGS
    assert first.policies == FOUR and not first.bursts
    assert len({v.name for v in rest}) == len(rest)
    assert all((v.row, v.policies, v.bursts) != (ROW, FOUR, False) for v in some(rest))


def test_waits_are_moved_without_touching_the_brake() -> None:
    hasty, patient = variants()[-2:]
    for variant, released_late in ((hasty, False), (patient, True)):
        rules = variant.policies[-1].table.rules
        assert [r.waits for r in rules if r.at is Level.BRAKE] == [True]
        assert all(r.waits == released_late for r in rules if not r.above and r.at is not Level.BRAKE)
    assert not any(r.waits for r in hasty.policies[-1].table.rules if r.above)


def test_figures_are_written_into_their_blocks_alone() -> None:
    text = "a\n<!-- figures: x -->\nold\n<!-- end -->\nb\n<!-- figures: y -->\n<!-- end -->\n"
    once = filled(text, {"x": "new"})
    assert once == "a\n<!-- figures: x -->\n\nnew\n\n<!-- end -->\nb\n<!-- figures: y -->\n<!-- end -->\n"
    assert filled(once, {"x": "new"}) == once
    with pytest.raises(ValueError, match="'z' once, not 0"):
        filled(text, {"z": ""})
    with pytest.raises(ValueError, match="no end"):
        filled("<!-- figures: x -->", {"x": ""})


def test_one_command_writes_page_plot_and_flat_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Path(__file__).parents[2] / "docs" / "reproduce" / "polca.md"
    folder = tmp_path / "docs" / "reproduce"
    folder.mkdir(parents=True)
    (folder / "polca.md").write_text(source.read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.setattr(reproduce_polca, "make", lambda seed, **more: row_trace.make(seed, days=1, **more))
    monkeypatch.setattr(reproduce_polca, "REQUESTS", 500)
    monkeypatch.setattr(reproduce_polca, "FIRST_SEED", 3)
    flat = tmp_path / "out" / "polca.csv"
    assert reproduce_polca.main(["--seeds", "5", "--out", str(folder), "--flat", str(flat)]) == 0
    page = (folder / "polca.md").read_text(encoding="utf-8")
    assert "Seeds 3 to 7" in page and "| Polca |" in page and "US 2025/0377708 A1" in page
    assert (tmp_path / "docs" / "img" / "polca-row-day.png").stat().st_size > 10_000
    assert len(flat.read_text(encoding="utf-8").splitlines()) == 1 + 5 * 4 * len(variants())


def test_a_verdict_says_no_when_a_line_does_not_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reproduce_polca, "make", lambda seed, **more: row_trace.make(seed, days=1, **more))
    monkeypatch.setattr(reproduce_polca, "REQUESTS", 500)
    monkeypatch.setattr(reproduce_polca, "variants", lambda: (replace(variants()[0], row=Row(servers=62)),))
    with Progress(disable=True) as progress:
        results = reproduce_polca.run_all(range(3, 8), progress)
    held = {wanted: ok for wanted, ok, _ in reproduce_polca.verdicts(results)}
    assert held["`Polca` never brakes"] is False
    assert held["No-cap brakes"] is True
