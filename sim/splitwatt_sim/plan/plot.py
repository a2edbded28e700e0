"""The picture of a plan: every pair's best design by charge and rate, the line that no other beats, and the winner."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from splitwatt_sim.plan.sweep import Result

SPLIT_COLOUR: Final = "#1f77b4"
UNSPLIT_COLOUR: Final = "#d62728"


def draw(found: Sequence[Result], best: Sequence[Result], winner: Result, path: Path, *, title: str) -> None:
    """Two panels: rate over charge, and the winner's split of servers and watts. Writes a PNG."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 5), width_ratios=(3, 2), layout="constrained")
    for split, colour, marker, label in (
        (True, SPLIT_COLOUR, "o", "split"), (False, UNSPLIT_COLOUR, "s", "unsplit"),
    ):  # fmt: skip
        points = [f for f in found if (f.design.decode is not None) is split]
        left.scatter(
            [f.design.charge_w / 1e3 for f in points], [f.rate_rps for f in points],
            c=colour, marker=marker, alpha=0.6, label=label,
        )  # fmt: skip
    left.step(
        [f.design.charge_w / 1e3 for f in best], [f.rate_rps for f in best], where="post", c="grey", lw=1, label="not beaten"
    )
    left.scatter([winner.design.charge_w / 1e3], [winner.rate_rps], marker="*", s=220, c="gold", ec="black", label="best")
    left.set_xlabel("charge at the meter, kW")
    left.set_ylabel("requests per second within the SLOs")
    left.set_title(title)
    left.legend()
    left.grid(alpha=0.3)
    _bars(right, winner)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _bars(axes: plt.Axes, winner: Result) -> None:
    d = winner.design
    rows = [("prefill" if d.decode else "unsplit", d.prefill, d.prefill_servers, winner.energy_j)]
    if d.decode is not None:
        rows.append(("decode", d.decode, d.decode_servers, winner.energy_j))
    for at, (role, option, servers, energy_j) in enumerate(rows):
        charge_kw = option.charge_w * servers / 1e3
        drawn_kw = energy_j["mixed" if role == "unsplit" else role] / winner.ends_s / 1e3
        axes.barh(at, charge_kw, color="#c6dbef", ec="black", label="charged" if at == 0 else None)
        axes.barh(at, drawn_kw, color=SPLIT_COLOUR, height=0.4, label="drawn, mean" if at == 0 else None)
        axes.text(0, at + 0.43, f"{servers} x {option}", va="bottom", fontsize=9)
    axes.set_yticks(range(len(rows)), [role for role, *_ in rows])
    axes.set_ylim(-0.6, len(rows) - 0.2)
    axes.set_xlabel("kW")
    axes.set_title("the best design")
    axes.legend(loc="lower right")
