"""What is made of a profile: verdicts in words, a table, and the figures as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from rich.table import Table

from splitwatt_memory.entries import metadata_bytes
from splitwatt_memory.links import LinkSpeed, speed
from splitwatt_memory.profile import CODECS, MemoryProfile, Summary, TensorMeasured, summary_of
from splitwatt_memory.targets import CLASSES

SHOWN: Final = 24
"""Rows of the table; the figures have all."""
WORTH: Final = 1.01
"""A target ratio from which on a codec buys memory."""
NO_ENGINE: Final = "no GPU or engine does this today"


def table(profile: MemoryProfile) -> Table:
    """The largest tensors, and all together: target ratio and overflow under each codec, the ratio without sectors behind it."""
    shown = sorted(profile.tensors, key=lambda one: -one.raw_bytes)[:SHOWN]
    whole = len(profile.tensors)
    caption = None if whole <= SHOWN else f"the {SHOWN} largest of {whole} tensors; --json has all"
    found = Table("tensor", "type", "MB", *CODECS, title="target ratio, entries that overflow (raw ratio)", caption=caption)
    for one in shown:
        cells = [_cell(_summary(one, codec)) for codec in CODECS]
        found.add_row(one.name, _types(one), f"{one.raw_bytes / 1e6:.2f}", *cells)
    total = sum(one.raw_bytes for one in profile.allocations)
    found.add_section()
    found.add_row(
        f"all, {len(profile.allocations)} allocations", "", f"{total / 1e6:.2f}",
        *(_cell(profile.summary(codec)) for codec in CODECS),
    )  # fmt: skip
    return found


def _cell(summary: Summary) -> str:
    return f"{summary.target_ratio:.2f}x {summary.overflow_fraction:.2%} ({summary.raw_ratio:.2f})"


def _types(one: TensorMeasured) -> str:
    return one.held if one.held == one.measured_as else f"{one.held} as {one.measured_as}"


def verdicts(profile: MemoryProfile, links: Sequence[LinkSpeed], memory_bytes_per_s: float) -> list[str]:
    """A sentence for each codec, with its numbers; the best one last."""
    found = {codec: profile.summary(codec) for codec in CODECS}
    lines = [
        verdict(codec, summary, profile.histogram(codec).overflow_fraction(96), links, memory_bytes_per_s)
        for codec, summary in found.items()
    ]
    best = max(found, key=lambda codec: (found[codec].target_ratio, -found[codec].overflow_fraction))
    if found[best].target_ratio < WORTH:
        lines.append("No codec gives these tensors a target above 1x: plan with other means (KV dtype, host memory).")
    else:
        lines.append(f"Most is won by {best}, {found[best].target_ratio:.2f}x; {NO_ENGINE}.")
    return lines


def verdict(codec: str, summary: Summary, too_large: float, links: Sequence[LinkSpeed], memory_bytes_per_s: float) -> str:
    """`too_large`: share of entries that do not fit 96 bytes, the largest target."""
    if summary.target_ratio < WORTH:
        return (
            f"{codec}: no. {summary.target_ratio:.2f}x: {too_large:.1%} of the entries do not fit 96 of 128 bytes, though the "
            f"codes alone would give {summary.raw_ratio:.2f}x."
        )
    costs = ", ".join(f"{link.name} {slowdown(summary, link, memory_bytes_per_s):.2f}x" for link in links)
    return (
        f"{codec}: yes. {summary.target_ratio:.2f}x; {summary.overflow_fraction:.2%} of the entries overflow, "
        f"{summary.link_bytes / 1e6:.3f} MB over the link when all are read once; step time beside enough memory: {costs}."
    )


def slowdown(summary: Summary, link: LinkSpeed, memory_bytes_per_s: float) -> float:
    """Time over the time with enough memory, 1 or more."""
    return 1 / speed(
        summary.overflow_fraction, min(summary.overflow_share, 1.0),
        memory_bytes_per_s=memory_bytes_per_s, link_bytes_per_s=link.bytes_per_s,
    )  # fmt: skip


def figures(
    profile: MemoryProfile, links: Sequence[LinkSpeed], memory_bytes_per_s: float, given: Mapping[str, Any]
) -> dict[str, Any]:
    """All of it. `given`: what was asked for, put beside it."""

    def of(summary: Summary, classes: Sequence[int]) -> dict[str, Any]:
        return {
            "target_ratio": round(summary.target_ratio, 4),
            "overflow_fraction": round(summary.overflow_fraction, 6),
            "raw_ratio": round(summary.raw_ratio, 4),
            "sector_ratio": round(summary.sector_ratio, 4),
            "link_bytes": summary.link_bytes,
            "entries_by_size": dict(zip(map(str, CLASSES), classes, strict=True)),
            "slowdown": {link.name: round(slowdown(summary, link, memory_bytes_per_s), 4) for link in links},
        }

    def one(measured: TensorMeasured) -> dict[str, Any]:
        return {
            "held": measured.held,
            "measured_as": measured.measured_as,
            "raw_bytes": measured.raw_bytes,
            "metadata_bytes": metadata_bytes(measured.raw_bytes),
            **({"allocation": measured.allocation} if measured.allocation else {"snapshots": len(measured.moments["bpc"])}),
            "codecs": {c: of(_summary(measured, c), measured.histogram(c).by_class()) for c in CODECS},
        }

    return {
        **given,
        "memory_bytes_per_s": memory_bytes_per_s,
        "link_bytes_per_s": {link.name: link.bytes_per_s for link in links},
        "sampled": profile.sampled,
        "codecs": {c: of(profile.summary(c), profile.histogram(c).by_class()) for c in CODECS},
        "tensors": {measured.name: one(measured) for measured in profile.tensors},
        "allocations": {measured.name: one(measured) for measured in profile.allocations},
    }


def _summary(one: TensorMeasured, codec: str) -> Summary:
    return summary_of([(one.targets[codec], one.histogram(codec))])


def write(values: Mapping[str, Any], path: Path) -> None:
    """Raises OSError."""
    path.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
