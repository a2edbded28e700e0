"""The page's picture: target ratios of each program beside the paper's means, and speed by the link beside figure 12."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from splitwatt_memory.reproduce.study import FIG12, FIG12_WITHIN, Studied, fig12

SIZE_INCHES: Final = (12.0, 5.0)
BPC, ZVC, PAPER = "#0072b2", "#d55e00", "#555555"
"""Told apart by the colour-blind too (Okabe and Ito)."""


def draw(bpc: Mapping[str, Studied], zvc: Mapping[str, Studied], paper: Mapping[str, float], path: Path) -> None:
    """`paper`: lines across the left half, by what they are. Raises OSError."""
    with plt.rc_context({"font.size": 11}):
        figure, (left, right) = plt.subplots(1, 2, figsize=SIZE_INCHES, width_ratios=(3, 2), layout="constrained")
        for shift, (label, found, colour) in zip((-0.2, 0.2), (("BPC", bpc, BPC), ("zero-value coding", zvc, ZVC)), strict=True):
            places = [at + shift for at in range(len(found))]
            bars = left.bar(places, [each.final.target_ratio for each in found.values()], 0.4, color=colour, label=label)
            left.bar_label(bars, fmt="%.2f", fontsize=9)
        for style, (label, ratio) in zip(("--", ":"), paper.items(), strict=True):
            left.axhline(ratio, color=PAPER, linestyle=style, label=label)
        left.set_xticks(range(len(bpc)), [name.replace(", ", ",\n").replace(" ", "\n", 1) for name in bpc], fontsize=9)
        left.set_ylabel("target ratio, 16x for zeros included")
        left.set_ylim(0, 5.4)
        left.legend(ncols=2, loc="upper center", fontsize=10)
        links = range(40, 211)
        right.plot(links, [fig12(link) for link in links], color=BPC, label="the rule")
        right.errorbar(
            list(FIG12), list(FIG12.values()), [FIG12_WITHIN * each for each in FIG12.values()],
            fmt="o", color=PAPER, capsize=4, label=f"figure 12, deep learning, ±{FIG12_WITHIN:.0%}",
        )  # fmt: skip
        right.set_xlabel("link, GB/s")
        right.set_ylabel("speed beside a GPU with memory enough")
        right.set_ylim(0.5, 1.2)
        right.legend(loc="lower right")
        figure.savefig(path, dpi=110)
        plt.close(figure)
