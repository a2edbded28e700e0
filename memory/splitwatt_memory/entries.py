"""Where a memory entry lies: sectors, target ratios, addresses, carve-out and metadata (Buddy Compression, ISCA'20).

Each entry of 128 bytes is compressed alone and striped over sectors of 32 bytes. With target ratio r the first 128/r bytes have
room in device memory; what is left has a fixed slot in buddy memory, so that a change of compressibility never moves a page.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

ENTRY_BYTES: Final = 128
"""One cache line of a GPU: the unit that is compressed."""
SECTOR_BYTES: Final = 32
"""What DRAM hands out at once."""
DEVICE_BYTES: Final = (128, 96, 64, 32, 8)
"""Of each entry on the device, by target: 1x, 1.33x, 2x, 4x, and 16x for what is mostly zero."""
MOSTLY_ZERO_BYTES: Final = 8
MAX_OVERALL_RATIO: Final = 4.0
"""What the carve-out is made for; all allocations together stay below it."""
METADATA_BITS: Final = 4


class EntryError(ValueError):
    """A place or a size that no entry has; the message says which are legal."""


def target_ratio(device_bytes: int) -> float:
    """1, 1.333, 2, 4 or 16. Raises EntryError on another count of bytes."""
    if device_bytes not in DEVICE_BYTES:
        raise EntryError(f"an entry has {', '.join(map(str, DEVICE_BYTES))} bytes on the device, not {device_bytes}")
    return ENTRY_BYTES / device_bytes


def stored_bytes(size_bytes: int) -> int:
    """A compressed size, rounded up to whole sectors: 0, 32, 64, 96 or 128. Raises EntryError outside 0..128."""
    if not 0 <= size_bytes <= ENTRY_BYTES:
        raise EntryError(f"a compressed entry has 0 to {ENTRY_BYTES} bytes, not {size_bytes}")
    return -(-size_bytes // SECTOR_BYTES) * SECTOR_BYTES


def buddy_sectors(size_bytes: int, device_bytes: int) -> int:
    """Sectors of an entry that come from buddy memory; 0 where its target holds it."""
    target_ratio(device_bytes)
    return max(0, -(-(min(size_bytes, ENTRY_BYTES) - device_bytes) // SECTOR_BYTES))


def device_bytes_read(size_bytes: int, device_bytes: int) -> int:
    """Bytes of an entry that come from device memory."""
    target_ratio(device_bytes)
    return min(stored_bytes(size_bytes), device_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class BuddyPlacement:
    """One allocation. `base`: device address of its first entry. `buddy_base`: the global base of buddy memory (the paper's
    GBBR). `buddy_offset`: of this allocation behind it. All in bytes."""

    base: int
    buddy_base: int
    buddy_offset: int
    device_bytes: int

    def device_address(self, entry: int) -> int:
        return self.base + _index(entry) * self.device_bytes

    def buddy_address(self, entry: int) -> int:
        """Of the slot for what the device has no room for. Raises EntryError at target 1x, which has no slots."""
        if self.device_bytes == ENTRY_BYTES:
            raise EntryError("an allocation at target 1x has nothing in buddy memory")
        return self.buddy_base + self.buddy_offset + _index(entry) * (ENTRY_BYTES - self.device_bytes)


def _index(entry: int) -> int:
    if entry < 0:
        raise EntryError(f"entries are counted from 0, not {entry}")
    return entry


def entries_of(raw_bytes: int) -> int:
    """Entries of an allocation; the last one is filled up."""
    return -(-raw_bytes // ENTRY_BYTES)


def carve_out_bytes(device_memory_bytes: int, max_ratio: float = MAX_OVERALL_RATIO) -> int:
    """Buddy memory that is pinned at boot, (r - 1) times the device's memory: then no allocation can find it full."""
    return int((max_ratio - 1) * device_memory_bytes)


def metadata_bytes(raw_bytes: int) -> int:
    """On the device, four bits for each entry: 0.4 % of what is compressed."""
    return -(-entries_of(raw_bytes) * METADATA_BITS // 8)
