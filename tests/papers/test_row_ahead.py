"""`PhaseAware` on the row: its kernel against the core's own law, its ladder, its page."""

from __future__ import annotations

import math
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from splitwatt_core.policies.foresight import Outlook, look
from splitwatt_core.policies.polca_table import RowPriority, settings_for
from splitwatt_papers.pages import row as page
from splitwatt_papers.pages.markdown import filled
from splitwatt_papers.row import model
from splitwatt_papers.row.ladder import LadderSettings, clocks, columns, in_band, run_row_ahead, slowdowns
from splitwatt_papers.row.model import Row, impact, sample_requests
from splitwatt_papers.row.trace import STEP_S, RowTrace, make

SETTINGS = in_band()


@pytest.fixture(scope="module")
def trace() -> RowTrace:
    return make(7, days=2)


def test_at_every_load_above_idle_deeper_draws_no_more_and_below_it_nothing_is_run() -> None:
    row = Row(servers=52)
    table = columns(SETTINGS, row, settings_for(row.profile))
    idle = row.idle_power / row.gpu_share
    for load in np.linspace(idle, 1.0, 9):
        drawn = table.fixed + table.scaled * load * row.scale
        assert np.all(np.diff(drawn) <= 1e-12)
        assert table.braked[0] + table.braked[1] * load * row.scale <= drawn[0]
    below = table.fixed + table.scaled * 0.9 * idle * row.scale
    assert below[-1] > below[0], "or there would be nothing to refuse"
    steady = np.full(2000, 0.5)
    assert len(run_row_ahead(RowTrace(1, steady), SETTINGS, row).power) == 2000
    steady[700] = 0.9 * idle
    with pytest.raises(ValueError, match="its GPUs would draw less than idle"):
        run_row_ahead(RowTrace(1, steady), SETTINGS, row)


def plain_run(offered: np.ndarray, settings: LadderSettings, row: Row) -> tuple[list[float], list[int], int]:
    """The row under `look` and a brake, without a kernel: power, positions commanded, brakes."""
    table = columns(settings, row, settings_for(row.profile))
    telemetry, command, brake, stands = (int(d) for d in table.delays)
    outlook, called, since, brakes = Outlook(), False, -(10**9), 0
    power: list[float] = []
    positions: list[int] = []
    calls: list[bool] = []
    for k, load in enumerate(offered.tolist()):
        reading = power[k - telemetry] if k >= telemetry else math.nan
        if not called and reading > table.brake[0]:
            called, since, brakes = True, k, brakes + 1
        elif called and k - since >= stands and reading < table.brake[1]:
            called, since = False, k
        calls.append(called)
        if called:
            state = outlook.state.copy()
            state[4] = len(table.fixed) - 1
            outlook = replace(outlook, state=state)
        blind = called or k - since < brake + telemetry
        outlook = look(
            outlook,
            now_s=k * STEP_S,
            reading_w=math.nan if blind else reading,
            limit_w=1.0,
            fixed_w=table.fixed,
            scaled_w=table.scaled,
            settings=settings.law,
        )
        positions.append(outlook.position)
        at = positions[k - command] if k >= command else 0
        if k >= brake and calls[k - brake]:
            power.append(float(table.braked[0] + table.braked[1] * load))
        else:
            power.append(float(table.fixed[at] + table.scaled[at] * load))
    return power, positions, brakes


@pytest.mark.parametrize(("servers", "latency_s", "moves"), [(58, 2.0, 5), (62, 40.0, 1), (76, 2.0, 1)])
def test_the_kernel_does_what_the_cores_law_says(trace: RowTrace, servers: int, latency_s: float, moves: int) -> None:
    row, settings = Row(servers=servers), in_band(command_latency_s=latency_s)
    # The hours around the highest reading, from a start without any lock: locks move, and the brake falls too.
    middle = int(trace.utilisation.argmax())
    part = RowTrace(trace.seed, trace.utilisation[max(middle - 1500, 0) : middle + 4500])
    run = run_row_ahead(part, settings, row)
    power, positions, brakes = plain_run(part.utilisation * row.scale, settings, row)
    assert run.power.tolist() == power
    assert run.wanted.tolist() == positions
    assert run.brakes == brakes
    assert brakes > 0 and len(set(positions)) > moves


def test_the_ladder_goes_down_by_priority_and_saves_at_every_step() -> None:
    row = Row()
    pairs = np.where(clocks(SETTINGS, row) == 0, row.profile.max_clock_mhz, clocks(SETTINGS, row))
    assert pairs[0].tolist() == [1410, 1410]
    assert bool(np.all(np.diff(pairs, axis=0) <= 0))
    first_high = int(np.argmax(pairs[:, RowPriority.HIGH] < 1410))
    assert pairs[first_high - 1, RowPriority.LOW] == pairs[-1, RowPriority.LOW]
    table = columns(SETTINGS, row, settings_for(row.profile))
    for load in (0.5, 1.0, 1.5):
        assert bool(np.all(np.diff(table.fixed + table.scaled * load) < 0))
    slower = slowdowns(SETTINGS, row, RowPriority.LOW)
    assert slower.shape == (2, len(pairs) + 1)
    assert bool(np.all(slower[:, 0] == 1.0)) and bool(np.all(np.diff(slower, axis=1) >= 0))


def test_where_polca_brakes_it_does_not_and_both_priorities_keep_their_slos(trace: RowTrace) -> None:
    row = Row(servers=58)
    ours = run_row_ahead(trace, SETTINGS, row)
    polca = model.run_row(trace, settings_for(row.profile), row)
    assert ours.brakes == 0 and polca.brakes > 0
    felt = impact(sample_requests(trace, row, count=5000, seed=7), ours, {p: slowdowns(SETTINGS, row, p) for p in RowPriority})
    assert all(felt[p].meets(model.SLOS[p]) for p in RowPriority)
    assert felt[RowPriority.LOW].worse_p99 > 0.01


def test_no_lock_where_the_power_suffices(trace: RowTrace) -> None:
    run = run_row_ahead(trace, SETTINGS, Row(servers=40))
    learnt = 2 * SETTINGS.law.learnt_after
    assert not run.in_force[learnt:].any()
    assert np.array_equal(run.power[learnt:], trace.utilisation[learnt:])


@pytest.mark.parametrize("change", [{"low_floor": 0.0}, {"high_floor": 0.5}, {"steps": 0}, {"command_latency_s": -1.0}])
def test_ladders_without_sense_are_refused(change: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"floors|delays"):
        replace(SETTINGS, **change)  # type: ignore[arg-type]


@pytest.mark.parametrize(("low", "share"), [(0.25, 0.25), (0.50, 0.50), (0.75, 0.75)])
def test_mixes_have_the_low_share_they_say(low: float, share: float) -> None:
    assert Row(mix=page.mix_with(low)).class_share(RowPriority.LOW) == pytest.approx(share)


def test_the_largest_number_holds_and_one_more_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """On two days: enough to see that the search ends between what holds and what does not."""
    monkeypatch.setattr(page, "trace_of", lambda seed, bursts: make(seed, days=2, bursts=bursts))

    def few(seed: int, bursts: bool, mix: tuple[model.RequestClass, ...]) -> model.Requests:
        return sample_requests(make(seed, days=2, bursts=bursts), Row(mix=mix), count=500, seed=seed)

    monkeypatch.setattr(page, "requests_of", few)

    class Here(ProcessPoolExecutor):
        map = staticmethod(map)  # type: ignore[assignment]

    class Quiet:
        def add_task(self, *_: object, **__: object) -> int:
            return 0

        def advance(self, _: int) -> None: ...

    case = page.as_polca(page.cases()[0])
    bench = page.RowBench([7], Here(1))
    ends = page.largest(bench, [case], Quiet())  # type: ignore[arg-type]
    most = ends[case.key]
    assert page.FEWEST < most < page.MOST
    assert bench.holds(case, most) and not bench.holds(case, most + 1)
    assert "of 1" in page.why(bench, case, most)


def test_the_page_has_a_place_for_every_block_and_names_the_command() -> None:
    text = (Path(__file__).parents[2] / "docs/reproduce/row.md").read_text(encoding="utf-8")
    new = filled(text, dict.fromkeys(("run", "sweep", "cases"), "FIGURES"))
    assert f"Seeds {page.FIRST_SEED} to {page.FIRST_SEED + page.SEEDS - 1}, six weeks each" in text
    assert new.count("FIGURES") == 3 and "make reproduce-row" in text and "Simulated" in text
