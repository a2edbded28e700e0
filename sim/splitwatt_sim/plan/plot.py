"""The picture of a plan: every pair's best design by what it is charged and what it does for it, and the plan among them.

Where the largest rate was asked for, height is the rate, and a line joins those that no other beats. Where a rate was given all
designs hold the same one, and height is the energy of a token.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from splitwatt_sim.plan.search import pareto
from splitwatt_sim.plan.sweep import Result, Search

SIZE_INCHES: Final = (13.3, 7.0)
COLOURS: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""By the GPU that prefills; told apart by the colour-blind too (Okabe and Ito)."""
CHARGED_COLOUR: Final = "#d9e2ec"
DRAWN_COLOUR: Final = "#486581"
FONT_POINTS: Final = 12
HEADROOM: Final = 1.35
"""Above the highest point there is room for what is written about the plan."""


def draw(best: Sequence[Result], search: Search, path: Path, *, robust_rps: float, checked: int) -> None:
    """Two panels: rate over charge, and the winner's servers and watts. `best`: ranked, at least one. `robust_rps`: what all of
    `checked` unseen lists hold, and therefore the headline. Writes a PNG."""
    winner = best[0]
    with plt.rc_context({"font.size": FONT_POINTS}):
        figure, (left, right) = plt.subplots(1, 2, figsize=SIZE_INCHES, width_ratios=(5, 3), layout="constrained")
        figure.suptitle(
            f"{robust_rps:g} requests/s within the SLOs on {winner.design.charge_w / 1e3:.1f} kW, on each of {checked} unseen "
            "lists (simulated)",
            fontsize=FONT_POINTS + 4, fontweight="bold",
        )  # fmt: skip
        _designs(left, best, search)
        _bars(right, winner)
        # Below the panels: inside, it would cover the designs that hold little.
        figure.legend(*left.get_legend_handles_labels(), loc="outside lower left", fontsize=FONT_POINTS - 2, ncols=6)
        figure.savefig(path, dpi=120)
        plt.close(figure)


def _designs(axes: plt.Axes, best: Sequence[Result], search: Search) -> None:
    winner, fixed = best[0], search.rate_rps is not None

    def height(found: Result) -> float:
        return found.joules_per_token if fixed else found.rate_rps

    # Ties lie upon each other: hollow unsplit squares are drawn last, and both stay to be seen.
    for split, marker, word in ((True, "o", "split, prefill on"), (False, "s", "unsplit on")):
        for gpu, colour in zip(search.gpus, _colours(len(search.gpus)), strict=True):
            points = [f for f in best if (f.design.decode is not None) is split and f.design.prefill.gpu == gpu]
            if points:
                axes.scatter(
                    [f.design.charge_w / 1e3 for f in points], [height(f) for f in points], s=60, marker=marker,
                    facecolors=colour if split else "none", edgecolors=colour, linewidths=1.5, alpha=0.75 if split else 1,
                    label=f"{word} {gpu}",
                )  # fmt: skip
    if not fixed:
        front = pareto(best)
        axes.step(
            [f.design.charge_w / 1e3 for f in front], [height(f) for f in front], where="post", c="grey", lw=1.2, zorder=0,
            label="no other has more for less",
        )  # fmt: skip
    limit_kw = search.limits.charge_w / 1e3
    if math.isfinite(limit_kw):
        axes.axvline(limit_kw, c="black", ls="--", lw=1.2, label=f"budget, {limit_kw:g} kW")
    axes.set_ylim(0, HEADROOM * max(map(height, best)))
    at = (winner.design.charge_w / 1e3, height(winner))
    axes.scatter([at[0]], [at[1]], marker="*", s=420, c="gold", ec="black", zorder=3, label="the plan")
    axes.annotate(
        "\n".join(_said(best)), at, xytext=(0.03, 0.965), textcoords="axes fraction", va="top", fontsize=FONT_POINTS - 1,
        bbox={"boxstyle": "round,pad=0.4", "fc": "white", "ec": "grey"}, arrowprops={"arrowstyle": "->", "color": "grey"},
    )  # fmt: skip
    axes.set_xlabel("charged at the meter: what the caps allow, kW")
    per_token = f"energy at {winner.rate_rps:g} requests/s, J per output token"
    axes.set_ylabel(per_token if fixed else "requests per second within the SLOs")
    axes.set_title(f"{search.model}\n{_slos(search)}; best design of each pair of servers", fontsize=FONT_POINTS)
    axes.grid(alpha=0.3)


def _colours(count: int) -> list[str]:
    return [COLOURS[number % len(COLOURS)] for number in range(count)]


def _said(best: Sequence[Result]) -> list[str]:
    """The plan in words, and what the other way of serving would do."""
    winner = best[0]
    lines = [f"{servers} x {option}, {role}" for role, option, servers, _ in winner.pools()]
    lines.append(f"on the list that was searched: {winner.rate_rps:g} requests/s, {winner.design.charge_w / 1e3:.1f} kW")
    split = winner.design.decode is not None
    other = next((f for f in best if (f.design.decode is not None) is not split), None)
    if other is not None:
        word = "unsplit" if split else "split"
        lines.append(f"the best {word}: {other.rate_rps:g} requests/s, {other.design.charge_w / 1e3:.1f} kW")
    return lines


def _slos(search: Search) -> str:
    limits = (("TTFT", search.slo.ttft_p99_ms), ("TBT", search.slo.tbt_p99_ms))
    known = [f"{name} P99 below {limit:g} ms" for name, limit in limits if limit is not None]
    return ", ".join(known) or "Splitwise's nine SLOs"


def _bars(axes: plt.Axes, winner: Result) -> None:
    rows = winner.pools()
    for at, (_, option, servers, drawn_w) in enumerate(rows):
        charge_kw = option.charge_w * servers / 1e3
        axes.barh(at, charge_kw, color=CHARGED_COLOUR, ec="black", label="charged" if at == 0 else None)
        axes.barh(at, drawn_w / 1e3, color=DRAWN_COLOUR, height=0.4, label="drawn, mean" if at == 0 else None)
        axes.text(
            0, at + 0.43, f"{servers} x {option}: {charge_kw:.1f} kW charged, {drawn_w / 1e3:.1f} drawn",
            va="bottom", fontsize=FONT_POINTS - 1,
        )  # fmt: skip
    axes.set_yticks(range(len(rows)), [role for role, *_ in rows])
    axes.set_ylim(-1.1, len(rows) - 0.2)
    axes.set_xlabel("kW, all servers of the role")
    axes.set_title("the plan's watts", fontsize=FONT_POINTS)
    axes.legend(loc="lower right", ncols=2, fontsize=FONT_POINTS - 2)
