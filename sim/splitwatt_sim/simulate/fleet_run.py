"""`splitwatt simulate SCENARIO`: pools under caps in virtual time; table, figures, and a picture of power and SLOs."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.colors import to_rgb
from numpy.typing import NDArray
from rich.console import Console
from splitwatt_truth.trace_files import WHOLE, TracePart

from splitwatt_sim.fleet.run import ROLE_NAMES, FleetError, FleetRun, run_fleet
from splitwatt_sim.fleet.state import Change, Pool
from splitwatt_sim.plan.search import Option
from splitwatt_sim.simulate.parts import ScenarioError
from splitwatt_sim.simulate.power_run import simulate_power
from splitwatt_sim.simulate.scenario import (
    FailurePart,
    FlipPart,
    Scenario,
    arrivals_of,
    catalogue_of,
    changes_of,
    pools_of,
    read_scenario,
    with_part,
)
from splitwatt_sim.simulate.show import COLOURS, counted, latency_table, plain, slo_bars
from splitwatt_sim.traces.arrivals import Arrivals
from splitwatt_sim.traces.told import lines_on, read_told

MAX_RECORDED: Final = 20_000_000
"""Seconds times servers of power that are kept; a longer run is recorded from its beginning."""
DRAIN_S: Final = 64
"""What the last requests mostly take at the most."""


def simulate_scenario(path: Path, console: Console, *, out: Path, figures_to: Path | None, part: TracePart = WHOLE) -> None:
    """Run, print, and write `simulate.json` and `simulate.png`; under a power law `power.csv` too. `part`: of the file of
    requests, before what the scenario says. Raises ScenarioError, TraceError, TableError, FleetError."""
    scenario = with_part(read_scenario(path), part)
    catalogue = catalogue_of(scenario, beside=path.parent)
    if scenario.power is not None:
        simulate_power(scenario, path, catalogue, console, out=out, figures_to=figures_to)
        return
    arrivals = arrivals_of(scenario, beside=path.parent, read=read_told(console), tell=lines_on(console))
    changes = changes_of(scenario)
    # What begins again after a failure has its own tokens in its prompt.
    prompts = arrivals.prompt_tokens + (arrivals.output_tokens if scenario.failures else 0)
    bought = pools_of(scenario, longest_prompt=int(prompts.max()), catalogue=catalogue)
    missed_of = scenario.slos().checker(scenario.model)
    servers = sum(pool.servers for pool, _ in bought)
    _check_in_time(scenario, arrivals)
    run = recorded([pool for pool, _ in bought], arrivals, changes, most_s=max(1, MAX_RECORDED // servers))
    if len(run.unfinished) == len(arrivals):
        raise FleetError("no request was finished: let a machine of each role come back, or have one more")
    missed = missed_of(run, run.finished(arrivals))
    if len(run.unfinished):
        missed = ["unfinished", *missed]
    for line in catalogue.said_of({option.gpu for _, option in bought}):
        console.print(line, soft_wrap=True, markup=False)
    console.print(latency_table(run, arrivals))
    for pool, option in bought:
        role = ROLE_NAMES[pool.role]
        console.print(f"  {pool.servers} x {option}, {role}: busy {run.busy[role]:.0%}", soft_wrap=True, markup=False)
    console.print("all SLOs hold" if not missed else f"SLOs missed: {', '.join(missed)}", soft_wrap=True)
    if changes:
        console.print(
            f"failures: {len(scenario.failures)}, sequences that began again: {run.restarted}, requests that found no machine "
            f"and are not in the table: {len(run.unfinished)}; role flips done: {run.flips} of {len(scenario.flips)}",
            soft_wrap=True,
        )
    values = figures(run, arrivals, bought, missed)
    cut = _cut(run)
    console.print(
        f"charged {values['charge_w'] / 1e3:.1f} kW; drawn, before conversion losses, at most "
        f"{values['peak_w'] / 1e3:.1f} kW in a second{cut}, {values['mean_w'] / 1e3:.1f} kW on average; "
        f"{run.joules_per_token:.2f} J per output token",
        soft_wrap=True,
    )
    out.mkdir(parents=True, exist_ok=True)
    target = figures_to or out / "simulate.json"
    target.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    draw(run, scenario, bought, out / "simulate.png", title=f"{path.stem}: {counted(run, arrivals)} (simulated){cut}")
    console.print(f"written: {target}, {out / 'simulate.png'}", soft_wrap=True, markup=False)


def _check_in_time(scenario: Scenario, arrivals: Arrivals) -> None:
    """What would come after the last request might never be played. Raises ScenarioError."""
    last_s = float(arrivals.arrival_s[-1])
    parts: dict[str, Sequence[FailurePart | FlipPart]] = {"failures": scenario.failures, "flips": scenario.flips}
    for name, changes in parts.items():
        for change in changes:
            if change.at_seconds > last_s:
                raise ScenarioError(
                    f"{name}: {change.at_seconds:g} s is after the last request at {last_s:.0f} s; move it, or raise "
                    "requests.seconds"
                )


def recorded(pools: Sequence[Pool], arrivals: Arrivals, changes: Sequence[Change], *, most_s: int) -> FleetRun:
    """A run with the power of its whole seconds, from the first to its end or to `most_s`."""
    last_s = float(arrivals.arrival_s[-1])
    run = run_fleet(pools, arrivals, seconds=min(most_s, math.ceil(last_s) + DRAIN_S), changes=changes)
    # The last second would look like a fall in power where it is not whole.
    seconds = min(most_s, max(1, int(run.ends_s)))
    if seconds > run.power_w.shape[1]:  # it took longer than was thought: the same run again, with room
        run = run_fleet(pools, arrivals, seconds=seconds, changes=changes)
    return replace(run, power_w=run.power_w[:, :seconds].copy())


def _cut(run: FleetRun) -> str:
    """Said where the record ends before the run."""
    seconds = run.power_w.shape[1]
    return f" of the first {seconds} s" if seconds < int(run.ends_s) else ""


def server_watts(run: FleetRun) -> NDArray[np.float64]:
    """float64[seconds]: mean draw of all servers in each second, before conversion losses."""
    return np.asarray(run.power_w.sum(axis=0))


def figures(run: FleetRun, arrivals: Arrivals, bought: Sequence[tuple[Pool, Option]], missed: Sequence[str]) -> dict[str, float]:
    """Flat: name -> number, the unit in the name."""
    drawn_w = server_watts(run)
    return {
        "requests": len(arrivals),
        "left_out_requests": arrivals.left_out,
        "requests_per_s": arrivals.requests_per_s,
        "servers": sum(pool.servers for pool, _ in bought),
        "charge_w": sum(pool.servers * option.charge_w for pool, option in bought),
        "peak_w": float(drawn_w.max(initial=0.0)),
        "mean_w": sum(run.energy_j.values()) / run.ends_s,
        "energy_kj": sum(run.energy_j.values()) / 1e3,
        "joules_per_token": run.joules_per_token,
        "output_tokens_per_s": run.output_tokens / run.ends_s,
        **{f"{role}_busy_ratio": busy for role, busy in run.busy.items()},
        **run.latencies.percentiles(),
        "slos_missed": len(missed),
        "unfinished_requests": len(run.unfinished),
        "restarted_sequences": run.restarted,
        "role_flips": run.flips,
    }


def draw(run: FleetRun, scenario: Scenario, bought: Sequence[tuple[Pool, Option]], path: Path, *, title: str) -> None:
    """Power over time, by the role that servers begin with, under what is charged; failures as red bands, flips as dotted
    lines; and P99s beside their SLOs. Writes a PNG."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 5), width_ratios=(3, 1), layout="constrained")
    order = sorted(bought, key=lambda pair: pair[0].role)
    # The last second is drawn to its end.
    at_s, first = np.arange(run.power_w.shape[1] + 1), 0
    stacked, labels, colours = [], [], []
    shades = Counter[int]()
    for pool, option in order:
        colours.append(_shade(COLOURS[ROLE_NAMES[pool.role]], shades[pool.role]))
        shades[pool.role] += 1
        drawn_kw = run.power_w[first : first + pool.servers].sum(axis=0) / 1e3
        stacked.append(np.append(drawn_kw, drawn_kw[-1:]))
        labels.append(f"{ROLE_NAMES[pool.role]}: {pool.servers} x {option}")
        first += pool.servers
    left.stackplot(at_s, stacked, labels=labels, colors=colours, alpha=0.7, step="post")
    charge_kw = sum(pool.servers * option.charge_w for pool, option in bought) / 1e3
    left.axhline(charge_kw, color="black", ls="--", lw=1, label="charged: what the caps allow, losses included")
    for n, failure in enumerate(scenario.failures):
        back_s = len(at_s) - 1 if failure.back_at_seconds is None else failure.back_at_seconds
        left.axvspan(failure.at_seconds, back_s, color="#d62728", alpha=0.12, lw=0, label="" if n else "a server is down")
    for n, flip in enumerate(scenario.flips):
        left.axvline(flip.at_seconds, color="#9467bd", ls=":", lw=1, label="" if n else "a server flips its role")
    left.set(xlabel="s", ylabel="kW drawn, before losses", title=plain(title), xlim=(0, len(at_s) - 1), ylim=(0, None))
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower left", fontsize=8, ncols=3)
    slo_bars(right, run, scenario.slos())
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _shade(colour: str, number: int) -> tuple[float, float, float]:
    """The colour of a role's first pool; lighter for each further one, so that two are told apart."""
    light = 1 - 0.6**number
    red, green, blue = (channel + (1 - channel) * light for channel in to_rgb(colour))
    return red, green, blue
