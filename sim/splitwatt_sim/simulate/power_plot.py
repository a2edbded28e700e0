"""The picture of a run under the power law: budgets over time, caps of pools, SLOs and breakers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.artist import Artist
from splitwatt_truth.breaker import PESSIMISTIC_K_S, TRIP_THETA

from splitwatt_sim.plan.options import LatencySlo
from splitwatt_sim.power.judge import FloatArray
from splitwatt_sim.power.run import PowerRun
from splitwatt_sim.simulate.show import plain, slo_bars

MAX_PANELS: Final = 4
"""Budgets that are drawn, the uppermost first; all are in the table and the series."""


def draw_power(
    run: PowerRun, pools: Sequence[str], caps_w: Sequence[FloatArray], slo: LatencySlo, path: Path, *, title: str, k_s: float
) -> None:
    """Writes a PNG. `k_s`: of the breakers' thermal model."""
    series = run.series
    panels = min(len(series.names), MAX_PANELS)
    at_s = np.arange(series.power_w.shape[1])
    figure = plt.figure(figsize=(12, 2.6 * (panels + 1) + 0.6), layout="constrained")
    grid = figure.add_gridspec(panels + 1, 2, width_ratios=(3, 1))
    title = plain(title)
    figure.suptitle(title if panels == len(series.names) else f"{title}; first {panels} of {len(series.names)} budgets")
    first = None
    lines: dict[str, Artist] = {}
    for b in range(panels):
        axes = figure.add_subplot(grid[b, 0], sharex=first)
        first = first or axes
        # Mostly the caps' sum is the charge: as a wide pale line it shows beneath.
        axes.step(at_s, series.caps_w[b] / 1e3, where="post", color="#ff7f0e", lw=4, alpha=0.4, label="sum of caps")
        axes.step(at_s, series.limit_w[b] / 1e3, where="post", color="black", lw=1.5, label="limit in force")
        axes.step(at_s, series.charge_w[b] / 1e3, where="post", color="#d62728", lw=1, ls="--", label="charge of the ledger")
        axes.step(at_s, series.power_w[b] / 1e3, where="post", color="#1f77b4", lw=1, label="true power at the meter")
        over = series.power_over[b]
        if over.any():
            axes.plot(at_s[over] + 0.5, series.power_w[b][over] / 1e3, "x", color="#d62728", ms=4, label="above the limit")
        axes.set(ylabel=f"{series.names[b]}, kW", ylim=(0, None))
        axes.tick_params(labelbottom=False)
        lines |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    figure.legend(list(lines.values()), list(lines), loc="outside lower left", fontsize=8, ncols=len(lines))
    below = figure.add_subplot(grid[panels, 0], sharex=first)
    for name, cap_w in zip(pools, caps_w, strict=True):
        below.step(at_s, cap_w, where="post", lw=1.2, label=f"caps of {name}")
    below.set(xlabel="s", ylabel="mean cap of a GPU, W", ylim=(0, None), xlim=(0, max(1, len(at_s) - 1)))
    below.legend(loc="lower left", fontsize=8, ncols=2)
    beside = grid[:, 1].subgridspec(2, 1)
    slo_bars(figure.add_subplot(beside[0]), run.fleet, slo)
    breakers = figure.add_subplot(beside[1])
    for b in range(panels):
        line = breakers.plot(at_s, series.theta[b], lw=1, label=series.names[b])[0]
        breakers.plot(at_s, series.pessimistic_theta[b], lw=1, ls=":", color=line.get_color())
    top = max(float(series.pessimistic_theta.max(initial=0.0)), 1.0)
    breakers.axhline(TRIP_THETA, color="black", ls="--", lw=1, label="trips")
    # Room below 0, or a breaker that stays cold lies on the edge unseen, and above 1 for the names.
    top = min(top, 3.0)
    breakers.set(xlabel="s", ylabel="heat of the breaker", ylim=(-0.03 * top, 1.5 * top), xlim=(0, max(1, len(at_s) - 1)))
    breakers.set_title(f"breaker: k {k_s:g} s; dotted: {PESSIMISTIC_K_S:g} s", fontsize=10)
    breakers.legend(loc="upper left", fontsize=7, ncols=2)
    figure.savefig(path, dpi=120)
    plt.close(figure)
