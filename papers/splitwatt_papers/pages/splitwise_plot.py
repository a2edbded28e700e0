"""The plot of docs/reproduce/splitwise.md: published figures against ours, and the largest rates."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from splitwatt_sim.latencies import PERCENTILES

from splitwatt_papers.pages.splitwise_runs import (
    CELLS,
    DESIGNS,
    METRICS,
    PUBLISHED_MS,
    REFERENCE_RPS,
    SECONDS,
    SplitwiseResults,
)
from splitwatt_papers.reference.run import LABELS


def plot(results: SplitwiseResults, path: Path) -> None:
    """Left, each published figure against our lists; right, largest rates with their range over seeds."""
    figure = Figure(figsize=(12.5, 5.4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    colors = dict(zip(METRICS, ("#1f5fa8", "#2a8a2a", "#c2410c"), strict=True))
    for i, ((_, cell), c) in enumerate(results.cells.items()):
        color = colors[cell.partition("_")[0]]
        for half, alpha in ((100 * c.one_list / c.mean, 0.2), (100 * c.half / c.mean, 0.5)):
            left.bar(i, 2 * half, 0.8, -half, color=color, alpha=alpha)
        name = LABELS[cell.partition("_")[0]] if i < len(CELLS) and cell.endswith("p50") else None
        left.plot(i, 100 * (c.published / c.mean - 1), "o", ms=5, color=color, mec="black", mew=0.5, label=name)
    left.axhline(0, color="black", lw=0.8)
    for k, design in enumerate(PUBLISHED_MS):
        left.axvline(k * len(CELLS) - 0.5, color="#999999", lw=0.6)
        left.annotate(design, ((k + 0.1) * len(CELLS), 1.01), xycoords=("data", "axes fraction"), fontsize=9)
    left.set_xticks(range(len(results.cells)), [str(p) for p in PERCENTILES] * (len(results.cells) // 3), fontsize=6)
    left.set(xlim=(-0.5, len(results.cells) - 0.5), ylabel="published against our mean, %")
    left.set_xlabel("percentile (dark: 95 % interval of our mean; pale: 95 % of single lists)")
    left.set_title(f"One published list, {results.effort.lists} simulated lists\n", fontsize=10)
    left.set_ylim(1.2 * left.get_ylim()[0], None)
    left.legend(fontsize=8, loc="lower left", ncols=3)
    for at, (decode, color) in enumerate(zip(SECONDS, ("#7b3fa0", "#1f8f8f"), strict=True)):
        x = np.arange(len(DESIGNS)) + 0.4 * (at - 0.5)
        rates = np.array([results.rates[decode, design] for design in DESIGNS])
        median = np.median(rates, axis=1)
        right.bar(x, median, 0.36, color=color, alpha=0.6, label=decode.value)
        span = [median - rates.min(axis=1), rates.max(axis=1) - median]
        right.errorbar(x, median, yerr=span, fmt="none", color="black", lw=1, capsize=4)
        reference = [REFERENCE_RPS[decode, design] for design in DESIGNS]
        right.plot(x, reference, "D", ms=5, color="white", mec="black", label=None if at else "reference")
    right.set_xticks(range(len(DESIGNS)), [design.replace(":", "\n") for design in DESIGNS], fontsize=9)
    right.set_title(f"Largest rate with all SLOs, simulated\n(median and range of {results.effort.seeds})", fontsize=10)
    right.legend(fontsize=8, loc="upper left")
    right.set(ylabel="requests/s", ylim=(0, 1.2 * max(max(rates) for rates in results.rates.values())))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
