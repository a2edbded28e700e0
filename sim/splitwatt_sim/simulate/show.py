"""What every simulated run shows alike: latencies as a table, figures of what was served, P99s beside their SLOs."""

from __future__ import annotations

from typing import Final

import matplotlib
from rich.markup import escape
from rich.table import Table

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from splitwatt_sim.fleet.run import FleetRun
from splitwatt_sim.latencies import PERCENTILES, SLOWDOWN_SLOS, judged_ttft_ms_p99
from splitwatt_sim.plan.options import LatencySlo
from splitwatt_sim.traces.arrivals import Arrivals

LABELS: Final = {"ttft_user": "TTFT", "ttft": "prompt read", "tbt": "TBT", "e2e": "E2E"}
COLOURS: Final = {"prefill": "#1f77b4", "mixed": "#9467bd", "decode": "#2ca02c"}
"""By role."""
HOLDS: Final = "#2ca02c"
MISSED: Final = "#d62728"


def plain(text: str) -> str:
    """For a picture: between two dollar signs matplotlib would read a formula."""
    return text.replace("$", r"\$")


def counted(run: FleetRun, arrivals: Arrivals) -> str:
    """How many requests the latencies are of; where some were not finished, of how many."""
    all_requests, left = len(arrivals), len(run.unfinished)
    return f"{all_requests - left} of {all_requests} requests" if left else f"{all_requests} requests"


def latency_table(run: FleetRun, arrivals: Arrivals) -> Table:
    table = Table(title=f"{counted(run, arrivals)} of {escape(arrivals.name)} (simulated)", title_justify="left")
    table.add_column("ms")
    values = run.latencies.percentiles()
    for p in PERCENTILES:
        table.add_column(f"P{p}", justify="right")
    for name, label in LABELS.items():
        table.add_row(label, *(f"{values[f'{name}_ms_p{p}']:.1f}" for p in PERCENTILES))
    return table


def slo_bars(axes: plt.Axes, run: FleetRun, slo: LatencySlo) -> None:
    values, left = run.latencies.percentiles(), len(run.unfinished)
    rows = [("TTFT", judged_ttft_ms_p99(values), slo.ttft_p99_ms), ("TBT", values["tbt_ms_p99"], slo.tbt_p99_ms)]
    known = [(label, value / limit) for label, value, limit in rows if limit is not None]
    if not known:
        axes.set_axis_off()
        axes.text(0.5, 0.5, f"{len(SLOWDOWN_SLOS) * 3} slowdown SLOs", ha="center")
        if left:
            axes.text(0.5, 0.4, f"{left} unfinished", ha="center", color=MISSED)
        return
    # Percentiles are of finished requests: they hold nothing where others were not.
    colours = [HOLDS if ratio < 1 and not left else MISSED for _, ratio in known]
    axes.bar([label for label, _ in known], [ratio for _, ratio in known], color=colours)
    axes.axhline(1.0, color="black", ls="--", lw=1)
    axes.set_title("P99 as a share of its SLO" + (f"\n{left} requests unfinished" if left else ""), fontsize=10)
    if left:
        axes.title.set_color(MISSED)
