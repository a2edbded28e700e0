"""The plot of docs/reproduce/maxlps.md: GPUs by what is assumed of the rest, and P99 TTFT by GPUs."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from splitwatt_sim.plan.options import profile_named

from splitwatt_papers.oversubscribe.budget import PUBLISHED
from splitwatt_papers.oversubscribe.search import OURS, SPLIT_UNIFORM, UNSPLIT, WAYS, WORSE
from splitwatt_papers.oversubscribe.study import AIM_GPUS, GPU, StudyResults

LOOKS: Final = {OURS: ("#1f5fa8", "o"), SPLIT_UNIFORM: ("#2a8a2a", "s"), UNSPLIT: ("#c2410c", "^")}
TTFT_SHOWN: Final = 0.30
"""Beyond this share above the static fleet a curve leaves the picture."""


def plot(results: StudyResults, path: Path) -> None:
    figure = Figure(figsize=(12.5, 5.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    _by_rest(left, results)
    _by_count(right, results)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def _by_rest(axes: Axes, results: StudyResults) -> None:
    read_w = [r.rest_w for r in results.read]
    axes.axvspan(min(read_w), max(read_w), color="#eeeeee", label=f"read from the published {100 * PUBLISHED.share_used:.1f} %")
    axes.axvline(results.base.rest_w, color="#888888", lw=1, ls=":", label=f"base reading, {results.base.rest_w:g} W")
    for way in WAYS:
        cases = [c for c in results.rests if c.way == way and c.verdict is not None]
        color, marker = LOOKS[way]
        axes.plot([c.reading.rest_w for c in cases], [c.gpus for c in cases], color=color, marker=marker, label=way.name)
    rests = sorted({c.reading.rest_w: c.reading for c in results.rests}.items())
    least_w = profile_named(GPU).min_cap_w
    most = [reading.per_room(reading.most_servers(least_w)) for _, reading in rests]
    axes.plot([w for w, _ in rests], most, color="black", ls="--", lw=1, label=f"every GPU at {least_w} W, whatever users feel")
    _counts(axes, horizontal=True)
    axes.set(xlabel="rest of a GPU, W (assumed: no source says it)", ylabel="GPUs in 264.4 kW", ylim=(120, 330))
    title = "GPUs at P99 TTFT and TBT within +5 %, simulated\n(each against the static fleet of its own arrangement)"
    axes.set_title(title, fontsize=10)
    axes.legend(fontsize=8, loc="upper right")


def _by_count(axes: Axes, results: StudyResults) -> None:
    for way in WAYS:
        color, marker = LOOKS[way]
        points = [p for p in results.curve if p.way == way]
        shown = [p for p in points if p.ttft <= TTFT_SHOWN]
        axes.plot([p.gpus for p in shown], [100 * p.ttft for p in shown], color=color, marker=marker, label=way.name)
    axes.axhline(100 * WORSE, color="black", lw=0.8, ls="--", label=f"{100 * WORSE:+.0f} %")
    theirs = (PUBLISHED.gpus, 100 * PUBLISHED.ttft_p99_worse)
    axes.plot(*theirs, "*", ms=14, color="gold", mec="black")
    axes.annotate("DPS / MaxLPS, published\n(at a load of its own)", theirs, (10, -4), textcoords="offset points", fontsize=8)
    _counts(axes, horizontal=False)
    axes.set(xlabel="GPUs in 264.4 kW, load per GPU as before", ylabel="P99 TTFT above the static fleet's, %")
    axes.set_title(f"Base reading: a rest of {results.base.rest_w:g} W, lists of fixed lengths, simulated\n", fontsize=10)
    axes.legend(fontsize=8, loc="upper left")


def _counts(axes: Axes, *, horizontal: bool) -> None:
    """The static count, the published one, and the aim."""
    for gpus in (PUBLISHED.static_gpus, PUBLISHED.gpus, AIM_GPUS):
        (axes.axhline if horizontal else axes.axvline)(gpus, color="#bbbbbb", lw=0.8)
        if horizontal:
            axes.annotate(f"{gpus}", (1.005, gpus), xycoords=("axes fraction", "data"), fontsize=8, va="center")
        else:
            axes.annotate(f"{gpus}", (gpus, 1.005), xycoords=("data", "axes fraction"), fontsize=8, ha="center")
