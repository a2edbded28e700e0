"""`splitwatt simulate` with a power law: run it, print what users felt and what each budget saw, write figures and series."""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from splitwatt_truth.breaker import PESSIMISTIC_K_S, TRIP_THETA

from splitwatt_sim.power.judge import FloatArray
from splitwatt_sim.power.run import PowerRun, run_power
from splitwatt_sim.power.setup import PowerSetup
from splitwatt_sim.servers.catalogue import Catalogue
from splitwatt_sim.simulate.parts import ScenarioError
from splitwatt_sim.simulate.power_plot import draw_power
from splitwatt_sim.simulate.scenario import Scenario, arrivals_of, power_of
from splitwatt_sim.simulate.show import latency_table
from splitwatt_sim.traces.arrivals import Arrivals
from splitwatt_sim.traces.told import lines_on, read_told

SHOWN_NOTES: Final = 12


def simulate_power(
    scenario: Scenario, path: Path, catalogue: Catalogue, console: Console, *, out: Path, figures_to: Path | None
) -> None:
    """Writes `simulate.json`, `simulate.png` and `power.csv`. Raises ScenarioError, TraceError, TableError, FleetError."""
    assert scenario.power is not None
    setup = power_of(scenario, catalogue)
    missed_of = scenario.slos().checker(scenario.model)
    arrivals = arrivals_of(scenario, beside=path.parent, read=read_told(console), tell=lines_on(console))
    last_s = float(arrivals.arrival_s[-1])
    late = [change for change in setup.changes if change.at_s > last_s]
    if late:
        raise ScenarioError(
            f"power.events: {late[0].at_s:g} s is after the last request at {last_s:.0f} s; move it, or raise requests.seconds"
        )
    began_s = time.monotonic()
    run = _with_progress(setup, arrivals, console)
    took_s = time.monotonic() - began_s
    missed = missed_of(run.fleet, arrivals)
    names = [pool.called for pool in scenario.pools]
    caps_w = pool_caps_w(setup, run, len(names))
    for line in catalogue.said_of({part.gpu for part in scenario.pools}):
        console.print(line, soft_wrap=True, markup=False)
    console.print(latency_table(run.fleet, arrivals))
    console.print("all SLOs hold" if not missed else f"SLOs missed: {', '.join(missed)}", soft_wrap=True)
    console.print(_budget_table(setup, run, f"{scenario.power.policy}, {scenario.power.mode}"))
    for name, cap_w in zip(names, caps_w, strict=True):
        console.print(f"  caps of {name}: {cap_w.mean():.0f} W on average, from {cap_w.min():.0f} to {cap_w.max():.0f} W")
    for told in run.told[:SHOWN_NOTES]:
        console.print(f"  {told.at_s:7.1f} s  {told.note.name}: {told.note.message}", soft_wrap=True, markup=False)
    if len(run.told) > SHOWN_NOTES:
        console.print(f"  and {len(run.told) - SHOWN_NOTES} more")
    values = power_figures(run, arrivals, names, caps_w, missed)
    seconds = run.series.power_w.shape[1]
    console.print(f"{seconds} s of {len(setup.servers)} servers in {took_s:.1f} s, {run.steps} steps of the keeper")
    out.mkdir(parents=True, exist_ok=True)
    target = figures_to or out / "simulate.json"
    target.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    write_series(run, names, caps_w, out / "power.csv")
    title = f"{path.stem}: {len(arrivals)} requests, {scenario.power.policy}, {scenario.power.mode} (simulated)"
    draw_power(run, names, caps_w, scenario.slos(), out / "simulate.png", title=title, k_s=setup.breaker_k_s)
    console.print(f"written: {target}, {out / 'simulate.png'}, {out / 'power.csv'}", soft_wrap=True, markup=False)


def _with_progress(setup: PowerSetup, arrivals: Arrivals, console: Console) -> PowerRun:
    """A bar that vanishes when it is full; on a console that is no terminal none."""
    columns = (TextColumn("simulating"), BarColumn(), TextColumn("{task.completed:.0f} s"), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=float(arrivals.arrival_s[-1]))
        return run_power(setup, arrivals, progress=lambda second: progress.update(task, completed=second))


def pool_caps_w(setup: PowerSetup, run: PowerRun, pools: int) -> list[FloatArray]:
    """float64[S] per pool: mean cap of its GPUs at the end of each second."""
    of_server = np.array([server.pool for server in setup.servers])
    return [np.asarray(run.series.cap_w[of_server == pool].mean(axis=0)) for pool in range(pools)]


def power_figures(
    run: PowerRun, arrivals: Arrivals, pools: Sequence[str], caps_w: Sequence[FloatArray], missed: Sequence[str]
) -> dict[str, float]:
    """Flat: name -> number, the unit in the name; of budgets and pools with their name before it."""
    fleet, series = run.fleet, run.series
    seconds = series.power_w.shape[1]
    values: dict[str, float] = {
        "requests": len(arrivals),
        "left_out_requests": arrivals.left_out,
        "requests_per_s": arrivals.requests_per_s,
        "servers": len(series.cap_w),
        "simulated_s": seconds,
        "keeper_steps": run.steps,
        "mean_w": sum(fleet.energy_j.values()) / seconds,
        "energy_kj": sum(fleet.energy_j.values()) / 1e3,
        "joules_per_token": fleet.joules_per_token,
        "output_tokens_per_s": fleet.output_tokens / fleet.ends_s,
        **{f"{role}_busy_ratio": busy for role, busy in fleet.busy.items()},
        **fleet.latencies.percentiles(),
        "slos_missed": len(missed),
    }
    for b, name in enumerate(series.names):
        values |= {
            f"{name}_mean_w": float(series.power_w[b].mean()),
            f"{name}_peak_w": float(series.power_w[b].max()),
            f"{name}_charge_peak_w": float(series.charge_w[b].max()),
            f"{name}_least_limit_w": float(series.limit_w[b].min()),
            f"{name}_power_above_limit_s": int(series.power_over[b].sum()),
            f"{name}_caps_above_limit_s": int(series.caps_over[b].sum()),
            f"{name}_charge_above_limit_s": int(series.charge_over[b].sum()),
            f"{name}_breaker_theta": float(series.theta[b].max()),
            f"{name}_breaker_pessimistic_theta": float(series.pessimistic_theta[b].max()),
        }
    for pool, cap_w in zip(pools, caps_w, strict=True):
        values |= {f"{pool}_cap_mean_w": float(cap_w.mean()), f"{pool}_cap_least_w": float(cap_w.min())}
    return values


def write_series(run: PowerRun, pools: Sequence[str], caps_w: Sequence[FloatArray], path: Path) -> None:
    """One line a second: of each budget what was drawn, allowed, charged and capped, and the breaker; of each pool its cap."""
    series = run.series
    columns: dict[str, FloatArray] = {}
    for b, name in enumerate(series.names):
        columns |= {
            f"{name}_power_w": series.power_w[b],
            f"{name}_limit_w": series.limit_w[b],
            f"{name}_charge_w": series.charge_w[b],
            f"{name}_caps_w": series.caps_w[b],
            f"{name}_breaker_theta": series.theta[b],
        }
    columns |= {f"{pool}_cap_w": cap_w for pool, cap_w in zip(pools, caps_w, strict=True)}
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("second", *columns))
        for second, row in enumerate(np.column_stack(list(columns.values())).tolist()):
            writer.writerow((second, *(f"{value:.6g}" for value in row)))


def _budget_table(setup: PowerSetup, run: PowerRun, law: str) -> Table:
    series = run.series
    table = Table(title=f"kW at the meters, {law} (simulated)", title_justify="left")
    table.add_column("budget", overflow="fold")
    breakers = f"breaker\nk {setup.breaker_k_s:g}/{PESSIMISTIC_K_S:g} s"
    for column in ("limit", "mean", "peak", "charge", "s above limit\ndraw/caps/charge", breakers):
        table.add_column(column, justify="right", no_wrap=True)
    for b, name in enumerate(series.names):
        least_w, most_w = series.limit_w[b].min(), series.limit_w[b].max()
        watts = (series.power_w[b].mean(), series.power_w[b].max(), series.charge_w[b].max())
        counts = [int(over[b].sum()) for over in (series.power_over, series.caps_over, series.charge_over)]
        table.add_row(
            name,
            f"{most_w / 1e3:.1f}" if least_w == most_w else f"{least_w / 1e3:.1f}-{most_w / 1e3:.1f}",
            *(f"{w / 1e3:.1f}" for w in watts),
            "/".join(f"[{'red' if count else 'green'}]{count}[/]" for count in counts),
            f"{_theta(series.theta[b])}/{_theta(series.pessimistic_theta[b])}",
        )
    return table


def _theta(theta: FloatArray) -> str:
    """The largest, red where it trips."""
    largest = float(theta.max())
    return f"[red]{largest:.2f}[/]" if largest >= TRIP_THETA else f"{largest:.2f}"
