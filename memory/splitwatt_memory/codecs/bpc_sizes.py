"""Bit-Plane Compression's sizes of many entries at once: no code is written, for a target ratio needs sizes alone.

Rows are words, then planes, and columns are entries, so that every step runs along memory. A block of `BLOCK_ENTRIES` stays in
the cache. The 32 x 32 bits of each entry are transposed in five steps that swap halves, quarters, and so on.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from splitwatt_memory.codecs.bpc import ALL_ONES, DELTAS, PLANES, WORDS
from splitwatt_memory.entries import ENTRY_BYTES

BLOCK_ENTRIES: Final = 2048
SWAPS: Final = ((16, 0x0000FFFF), (8, 0x00FF00FF), (4, 0x0F0F0F0F), (2, 0x33333333), (1, 0x55555555))

Sizes = npt.NDArray[np.uint8]


def bpc_sizes(entries: npt.NDArray[np.uint8]) -> Sizes:
    """`entries`: (n, 128) bytes, contiguous. Bytes of each, 0 to 128; 0 is an entry of zeros, which the metadata alone says."""
    words = entries.view("<u4")
    sizes = np.empty(len(words), np.uint8)
    for start in range(0, len(words), BLOCK_ENTRIES):
        sizes[start : start + BLOCK_ENTRIES] = _block(words[start : start + BLOCK_ENTRIES])
    return sizes


def bpc_bits(entries: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint16]:
    """Bits of each code, 10 to 1089, as the scalar encoder writes it."""
    return _bits(np.ascontiguousarray(entries.view("<u4").T))


def _block(words: npt.NDArray[np.uint32]) -> Sizes:
    rows = np.ascontiguousarray(words.T)
    sizes: Sizes = np.minimum((_bits(rows) + 7) >> 3, ENTRY_BYTES).astype(np.uint8)
    sizes[~rows.any(axis=0)] = 0
    return sizes


def _bits(rows: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint16]:
    """`rows`: (32, n) words."""
    columns = rows.shape[1]
    planes = np.zeros((PLANES + 1, columns), np.uint32)
    """Row 0: above the highest plane, 0. Then planes 32 to 0."""
    low = np.zeros((WORDS, columns), np.uint32)
    np.subtract(rows[1:], rows[:-1], out=low[:DELTAS])
    borrow = rows[1:] < rows[:-1]
    planes[1] = (borrow.astype(np.uint32) << np.arange(DELTAS, dtype=np.uint32)[:, None]).sum(axis=0, dtype=np.uint32)
    _transpose(low)
    planes[2:] = low[::-1]
    changed = planes[1:] ^ planes[:-1]
    bits: npt.NDArray[np.uint16] = _plane_costs(planes[1:], changed).sum(axis=0, dtype=np.uint16) + _base_costs(rows[0])
    return bits


def _transpose(rows: npt.NDArray[np.uint32]) -> None:
    """In place: bit b of row a becomes bit a of row b."""
    for step, mask in SWAPS:
        halves = rows.reshape(WORDS // (2 * step), 2, step, -1)
        upper, lower = halves[:, 0], halves[:, 1]
        moved = upper >> np.uint32(step)
        moved ^= lower
        moved &= np.uint32(mask)
        lower ^= moved
        moved <<= np.uint32(step)
        upper ^= moved


def _plane_costs(planes: npt.NDArray[np.uint32], changed: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint8]:
    """Bits of each plane; a run of zeros is paid by its first."""
    rest = changed & (changed - np.uint32(1))
    """Without the lowest one."""
    single = rest == 0
    pair = (rest & (rest - np.uint32(1))) == 0
    pair &= changed == (rest | rest >> np.uint32(1))
    costs = np.full(changed.shape, 32, np.uint8)
    costs[single | pair] = 10
    costs[changed == ALL_ONES] = 5
    costs[planes == 0] = 5
    zero = changed == 0
    first, goes_on = zero.copy(), np.zeros_like(zero)
    first[1:] &= ~zero[:-1]
    goes_on[:-1] = zero[1:]
    return np.where(zero, np.where(goes_on, np.uint8(7), np.uint8(3)) * first, costs)


def _base_costs(base: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint16]:
    signed = base.view(np.int32)
    costs = np.full(base.shape, 33, np.uint16)
    for length in (16, 8, 4):
        costs[(signed >= -(1 << length - 1)) & (signed < 1 << length - 1)] = 3 + length
    costs[base == 0] = 3
    return costs
