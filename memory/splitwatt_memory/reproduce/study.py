"""The paper's study of target ratios on given programs: one target for all, one for each allocation, and 16x for zeros."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from splitwatt_memory.codecs.bpc_sizes import bpc_sizes
from splitwatt_memory.codecs.zvc import zvc_sizes
from splitwatt_memory.entries import ENTRY_BYTES
from splitwatt_memory.links import PAPER_GAIN, PAPER_MEMORY_BYTES_PER_S, speed
from splitwatt_memory.profile import Summary, summary_of
from splitwatt_memory.targets import SizeHistogram, Target, naive, selected, without_zero_target

Moments = Mapping[str, Sequence[SizeHistogram]]
FIG12: Final = {200: 1.02, 150: 0.978, 100: 0.91, 50: 0.74}
"""Mean speed of deep learning by the link's GB/s, read off the chart; 0.978 stands in the text."""
FIG12_OVERFLOW: Final = (0.04, 0.4)
"""Share of accesses that overflow (the paper's 4 %), and of such an entry what comes over the link (fitted)."""
FIG12_WITHIN: Final = 0.12


@dataclass(frozen=True, slots=True)
class Studied:
    """One program. Ratios of the codec's sizes in eight classes, and of the three designs with their overflow."""

    optimistic: float
    naive: Summary
    each: Summary
    final: Summary


def moments_of(snapshots: Iterable[Mapping[str, npt.NDArray[Any]]], codec: str) -> Moments:
    """Sizes of each allocation in each snapshot; `codec` is bpc or zvc."""
    found: dict[str, list[SizeHistogram]] = {}
    for snapshot in snapshots:
        for name, values in snapshot.items():
            found.setdefault(name, []).append(sized(values, codec))
    return found


def sized(values: npt.NDArray[Any], codec: str) -> SizeHistogram:
    raw = np.ascontiguousarray(values).tobytes()
    entries = np.frombuffer(raw + bytes(-len(raw) % ENTRY_BYTES), np.uint8).reshape(-1, ENTRY_BYTES)
    return SizeHistogram.of(bpc_sizes(entries) if codec == "bpc" else zvc_sizes(entries, values.dtype.itemsize))


def studied(moments: Moments) -> Studied:
    """The optimistic ratio is the mean over the snapshots, as in the paper's figure 3."""
    final = selected(moments)
    whole = [sum(row, SizeHistogram()) for row in zip(*moments.values(), strict=True)]

    def of(targets: Mapping[str, Target]) -> Summary:
        return summary_of([(target, sum(moments[name], SizeHistogram())) for name, target in targets.items()])

    return Studied(
        optimistic=statistics.fmean(each.class_ratio() for each in whole),
        naive=of(naive(moments)),
        each=of(without_zero_target(final, moments)),
        final=of(final),
    )


def gmean(found: Sequence[Studied], of: Callable[[Studied], float]) -> float:
    return statistics.geometric_mean([of(each) for each in found])


def fig12(link_gb_per_s: float) -> float:
    """Speed on the paper's GPU, its mean of deep learning."""
    overflow, share = FIG12_OVERFLOW
    return paper_speed(overflow, share, link_gb_per_s)


def paper_speed(overflow: float, share: float, link_gb_per_s: float) -> float:
    return speed(
        overflow, share,
        memory_bytes_per_s=PAPER_MEMORY_BYTES_PER_S, link_bytes_per_s=1e9 * link_gb_per_s, gain=PAPER_GAIN,
    )  # fmt: skip
