"""Which target ratio each allocation gets: Buddy Compression's selection, the same for every codec (ISCA'20, section 3.4).

For an allocation the largest ratio of 4, 2, 1.33 and 1 is taken at which no more than a share of its entries, the Buddy
Threshold, overflows into buddy memory; 16 where it is mostly zero in every snapshot. Then the overall ratio is brought below
4. Two things the paper leaves open are our choice: over snapshots the largest overflow counts, and "mostly zero" allows 1 %.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import Final

import numpy as np
import numpy.typing as npt

from splitwatt_memory.entries import (
    DEVICE_BYTES,
    ENTRY_BYTES,
    MAX_OVERALL_RATIO,
    METADATA_BITS,
    MOSTLY_ZERO_BYTES,
    SECTOR_BYTES,
    buddy_sectors,
    stored_bytes,
    target_ratio,
)

THRESHOLD: Final = 0.3
"""Buddy Threshold of the paper's evaluation."""
MOSTLY_ZERO_SHARE: Final = 0.01
CLASSES: Final = (0, 8, 16, 32, 64, 80, 96, 128)
"""Sizes of the paper's optimistic study (fig. 3 and 5b): as if packing cost nothing."""


@dataclass(frozen=True, slots=True)
class SizeHistogram:
    """Entries of an allocation by compressed size: `counts[s]` have s bytes, 0 to 128."""

    counts: tuple[int, ...] = (0,) * (ENTRY_BYTES + 1)

    @classmethod
    def of(cls, sizes: npt.NDArray[np.uint8]) -> SizeHistogram:
        return cls(tuple(int(n) for n in np.bincount(sizes, minlength=ENTRY_BYTES + 1)))

    def __add__(self, other: SizeHistogram) -> SizeHistogram:
        return SizeHistogram(tuple(a + b for a, b in zip(self.counts, other.counts, strict=True)))

    @property
    def entries(self) -> int:
        return sum(self.counts)

    def scaled_to(self, entries: int) -> SizeHistogram:
        """The same shape with so many entries: what a sample says of the whole."""
        if entries == self.entries or not self.entries:
            return self
        edges = [round(upto * entries / self.entries) for upto in accumulate(self.counts)]
        return SizeHistogram(tuple(after - before for before, after in pairwise((0, *edges))))

    def overflow_fraction(self, device_bytes: int) -> float:
        """Share of entries that need more than they have on the device; 0 of none."""
        return sum(self.counts[device_bytes + 1 :]) / self.entries if self.entries else 0.0

    def overflow_share(self, device_bytes: int) -> float:
        """Bytes that come from buddy memory of an entry that overflows, as a share of the entry; 0 where none does."""
        over = sum(self.counts[device_bytes + 1 :])
        return self.link_bytes(device_bytes) / over / ENTRY_BYTES if over else 0.0

    def link_bytes(self, device_bytes: int) -> int:
        """Bytes over the link when every entry is read once."""
        return SECTOR_BYTES * sum(n * buddy_sectors(size, device_bytes) for size, n in enumerate(self.counts) if n)

    @property
    def raw_ratio(self) -> float:
        """Bytes over coded bytes, without sectors; of zeros the metadata is left, so that it is 256 at most."""
        coded = sum(size * n for size, n in enumerate(self.counts))
        return self.entries * ENTRY_BYTES / max(coded, self.entries * METADATA_BITS / 8) if self.entries else 1.0

    def by_class(self, classes: Sequence[int] = CLASSES) -> tuple[int, ...]:
        """Entries whose size fits each class and none below it."""
        edges = (-1, *classes)
        return tuple(sum(self.counts[low + 1 : high + 1]) for low, high in pairwise(edges))

    def class_ratio(self, classes: Sequence[int] = CLASSES) -> float:
        """The optimistic study's ratio: sizes rounded up to classes, and nothing lost in packing. 256 at most, as above."""
        kept = sum(size * n for size, n in zip(classes, self.by_class(classes), strict=True))
        return self.entries * ENTRY_BYTES / max(kept, self.entries * METADATA_BITS / 8) if self.entries else 1.0

    @property
    def sector_ratio(self) -> float:
        """With sizes of whole sectors."""
        return self.class_ratio(sorted({stored_bytes(size) for size in range(ENTRY_BYTES + 1)}))


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """`overflow_fraction`: the largest of the snapshots, at this target."""

    entries: int
    device_bytes: int
    overflow_fraction: float

    @property
    def ratio(self) -> float:
        return target_ratio(self.device_bytes)

    @property
    def total_device_bytes(self) -> int:
        return self.entries * self.device_bytes


def at(snapshots: Sequence[SizeHistogram], device_bytes: int) -> Target:
    """The target as given. Raises ValueError without snapshots."""
    if not snapshots:
        raise ValueError("a target is chosen from one snapshot at least")
    return Target(
        entries=max(one.entries for one in snapshots),
        device_bytes=device_bytes,
        overflow_fraction=max(one.overflow_fraction(device_bytes) for one in snapshots),
    )


def chosen(snapshots: Sequence[SizeHistogram], threshold: float = THRESHOLD, mostly_zero: float = MOSTLY_ZERO_SHARE) -> Target:
    """Of one allocation. Raises ValueError without snapshots, or where a share lies outside 0..1."""
    if not (0 <= threshold <= 1 and 0 <= mostly_zero <= 1):
        raise ValueError(f"shares of entries lie from 0 to 1, not {threshold} and {mostly_zero}")
    for device_bytes in sorted(DEVICE_BYTES):
        target = at(snapshots, device_bytes)
        allowed = mostly_zero if device_bytes == MOSTLY_ZERO_BYTES else threshold
        if target.entries and target.overflow_fraction <= allowed:
            return target
    return at(snapshots, ENTRY_BYTES)


def overall_ratio(targets: Sequence[Target]) -> float:
    """All bytes over those on the device; 1 of nothing."""
    device = sum(target.total_device_bytes for target in targets)
    return sum(target.entries for target in targets) * ENTRY_BYTES / device if device else 1.0


def selected(
    allocations: Mapping[str, Sequence[SizeHistogram]],
    threshold: float = THRESHOLD,
    mostly_zero: float = MOSTLY_ZERO_SHARE,
    below: float = MAX_OVERALL_RATIO,
) -> dict[str, Target]:
    """A target for each allocation, the overall ratio below `below`: while it is not, the one whose next lower target takes the
    fewest bytes of device memory gets it. Errors as of `chosen`; ValueError where `below` is not above 1."""
    if below <= 1:
        raise ValueError(f"the overall ratio cannot be kept below {below}: it is 1 where nothing is compressed")
    found = {name: chosen(snapshots, threshold, mostly_zero) for name, snapshots in allocations.items()}
    raw = sum(target.entries for target in found.values()) * ENTRY_BYTES
    device = sum(target.total_device_bytes for target in found.values())
    heap = [_step(name, target) for name, target in found.items() if _lower(target) is not None and target.entries]
    heapq.heapify(heap)
    while heap and raw >= below * device:
        more, name, device_bytes = heapq.heappop(heap)
        device += more
        found[name] = at(allocations[name], device_bytes)
        if _lower(found[name]) is not None:
            heapq.heappush(heap, _step(name, found[name]))
    return found


def naive(allocations: Mapping[str, Sequence[SizeHistogram]], threshold: float = THRESHOLD) -> dict[str, Target]:
    """One target for the whole program, as the paper's first design: 16x is not among them."""
    rows = list(allocations.values())
    together = [sum(moment, SizeHistogram()) for moment in zip(*rows, strict=True)]
    one = chosen(together, threshold, 0.0)
    size = max(one.device_bytes, SECTOR_BYTES)
    return {name: at(snapshots, size) for name, snapshots in allocations.items()}


def without_zero_target(targets: Mapping[str, Target], allocations: Mapping[str, Sequence[SizeHistogram]]) -> dict[str, Target]:
    """The same with 4x in place of 16x."""
    return {
        name: at(allocations[name], SECTOR_BYTES) if target.device_bytes == MOSTLY_ZERO_BYTES else replace(target)
        for name, target in targets.items()
    }


def _lower(target: Target) -> int | None:
    return min((size for size in DEVICE_BYTES if size > target.device_bytes), default=None)


def _step(name: str, target: Target) -> tuple[int, str, int]:
    """Device bytes that the next lower target takes more, and which one it is."""
    lower = _lower(target)
    assert lower is not None, f"{name} is at 1x already"
    return target.entries * (lower - target.device_bytes), name, lower
