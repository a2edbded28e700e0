"""The picture of a profile: entries by compressed size under each codec, and what each codec's targets come to."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from splitwatt_memory.profile import CODECS, MemoryProfile
from splitwatt_memory.targets import CLASSES

SIZE_INCHES: Final = (11.0, 4.8)
COLOURS: Final = ("#0072b2", "#d55e00", "#009e73")
"""Told apart by the colour-blind too (Okabe and Ito)."""
FORMS: Final = (".png", ".svg")


def draw(profile: MemoryProfile, path: Path, *, title: str) -> None:
    """Writes a PNG or an SVG, by the end of the name. Raises OSError."""
    with plt.rc_context({"font.size": 11, "svg.hashsalt": "splitwatt"}):
        figure, (left, right) = plt.subplots(1, 2, figsize=SIZE_INCHES, width_ratios=(3, 1), layout="constrained")
        figure.suptitle(title, fontweight="bold")
        width = 0.8 / len(CODECS)
        for number, (codec, colour) in enumerate(zip(CODECS, COLOURS, strict=True)):
            hist, summary = profile.histogram(codec), profile.summary(codec)
            shares = [100 * count / max(1, hist.entries) for count in hist.by_class()]
            left.bar([at + (number - 1) * width for at in range(len(CLASSES))], shares, width, color=colour, label=codec)
            bar = right.bar([codec], [summary.target_ratio], color=colour)
            right.bar_label(bar, [f"{summary.target_ratio:.2f}x\n{summary.overflow_fraction:.2%}\noverflow"], fontsize=9)
        left.set_xticks(range(len(CLASSES)), [f"<= {size}" if size else "0" for size in CLASSES])
        left.set_xlabel("bytes of an entry of 128, compressed")
        left.set_ylabel("entries, %")
        left.legend()
        right.axhline(1.0, color="black", linewidth=0.8)
        right.set_ylabel("target ratio")
        right.margins(y=0.25)
        figure.savefig(path, dpi=120, metadata={"Date": None} if path.suffix == ".svg" else None)
        plt.close(figure)
