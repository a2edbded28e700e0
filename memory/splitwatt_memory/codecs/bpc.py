"""Bit-Plane Compression of one entry (Kim et al., ISCA'16), the codec under Buddy Compression: scalar, to be read and held to.

An entry is 32 little-endian words of 32 bits. Its first word is the base; the 31 differences of neighbours, of 33 bits in two's
complement, are turned into 33 bit planes of 31 bits (DBP), and each plane but the highest is XORed with the one above it
(DBX). Base and planes 32 to 0 are then coded. Planes, the first case that fits:

    2 to 33 planes with DBX = 0     01 + 5 bits (count - 2)         7 bits
    one plane with DBX = 0          001                             3
    DBP = 0                         00001                           5
    DBX all ones                    00000                           5
    DBX has two ones, adjacent      00010 + 5 bits (the lower)     10
    DBX has a single one            00011 + 5 bits (its index)     10
    anything else                   1 + 31 bits                    32

Base: 000 for zero; 001, 010, 011 with 4, 8, 16 bits that sign-extend to it; else 1 with 32 bits. So 10 to 1089 bits. Public
implementations permute the tags of the four cases of five bits, and some try ones before DBP = 0, which costs more; sizes of
this table are the smallest of them. An entry that does not get smaller is stored as it is.
"""

from __future__ import annotations

import struct
from itertools import pairwise
from typing import Final

from splitwatt_memory.codecs.bits import BitReader, Bits, CodeError
from splitwatt_memory.entries import ENTRY_BYTES

WORDS: Final = 32
DELTAS: Final = WORDS - 1
PLANES: Final = 33
ALL_ONES: Final = (1 << DELTAS) - 1
MAX_BITS: Final = 33 + PLANES * 32
SHORT_BASES: Final = ((1, 4), (2, 8), (3, 16))
"""Tag and bits of a base that sign-extends from so many."""
_WORDS: Final = struct.Struct(f"<{WORDS}I")


def encode(entry: bytes) -> Bits:
    """The code of 128 bytes; raises ValueError on another count."""
    if len(entry) != ENTRY_BYTES:
        raise ValueError(f"an entry has {ENTRY_BYTES} bytes, not {len(entry)}")
    words = _WORDS.unpack(entry)
    planes = _planes([after - before for before, after in pairwise(words)])
    bits = Bits()
    _put_base(bits, words[0])
    above, run = 0, 0
    for plane in planes:
        changed, above = plane ^ above, plane
        if changed == 0:
            run += 1
            continue
        _put_run(bits, run)
        run = 0
        _put_plane(bits, plane, changed)
    _put_run(bits, run)
    return bits


def decode(bits: Bits) -> bytes:
    """The entry of a code. Raises CodeError on what `encode` never writes."""
    reader = BitReader(bits)
    base = _take_base(reader)
    planes: list[int] = []
    while len(planes) < PLANES:
        _take_planes(reader, planes)
    if len(planes) > PLANES:
        raise CodeError(f"a run of zeros goes beyond the last of {PLANES} planes")
    reader.end()
    words = [base]
    for at in range(DELTAS):
        # Planes stand from 32 to 0; of a difference modulo 2^32 the highest bit, the borrow, says nothing new.
        delta = sum((plane >> at & 1) << (PLANES - 1 - row) for row, plane in enumerate(planes) if row)
        words.append(words[-1] + delta & 0xFFFFFFFF)
    return _WORDS.pack(*words)


def size_bytes(bits: Bits) -> int:
    """What an entry takes: its code, or the entry as it is."""
    return min(bits.size_bytes, ENTRY_BYTES)


def _planes(deltas: list[int]) -> list[int]:
    """From plane 32 down to 0; bit j of a plane belongs to difference j."""
    return [sum((delta >> plane & 1) << at for at, delta in enumerate(deltas)) for plane in reversed(range(PLANES))]


def _put_base(bits: Bits, base: int) -> None:
    signed = base - (1 << 32) if base >> 31 else base
    if base == 0:
        bits.put(0, 3)
        return
    for tag, length in SHORT_BASES:
        if -(1 << length - 1) <= signed < 1 << length - 1:
            bits.put(tag, 3)
            bits.put(base, length)
            return
    bits.put(1, 1)
    bits.put(base, 32)


def _take_base(reader: BitReader) -> int:
    if reader.take(1):
        return reader.take(32)
    tag = reader.take(2)
    if tag == 0:
        return 0
    length = dict(SHORT_BASES)[tag]
    value = reader.take(length)
    return (value - (1 << length) if value >> length - 1 else value) & 0xFFFFFFFF


def _put_run(bits: Bits, count: int) -> None:
    if count == 1:
        bits.put(0b001, 3)
    elif count > 1:
        bits.put(0b01, 2)
        bits.put(count - 2, 5)


def _put_plane(bits: Bits, plane: int, changed: int) -> None:
    """One plane with DBX != 0."""
    lower = changed & -changed
    if plane == 0:
        bits.put(0b00001, 5)
    elif changed == ALL_ONES:
        bits.put(0b00000, 5)
    elif changed == lower | lower << 1:
        bits.put(0b00010, 5)
        bits.put(lower.bit_length() - 1, 5)
    elif changed == lower:
        bits.put(0b00011, 5)
        bits.put(lower.bit_length() - 1, 5)
    else:
        bits.put(1, 1)
        bits.put(changed, DELTAS)


def _take_planes(reader: BitReader, planes: list[int]) -> None:
    above = planes[-1] if planes else 0
    if reader.take(1):
        planes.append(above ^ reader.take(DELTAS))
    elif reader.take(1):
        planes.extend([above] * (reader.take(5) + 2))
    elif reader.take(1):
        planes.append(above)
    else:
        tag = reader.take(2)
        if tag == 0b01:
            planes.append(0)
        elif tag == 0b00:
            planes.append(above ^ ALL_ONES)
        else:
            index, ones = reader.take(5), 0b11 if tag == 0b10 else 0b1
            planes.append(above ^ ones << index)
            if planes[-1] > ALL_ONES:
                raise CodeError(f"a plane has {DELTAS} bits, and no bit {index}")
