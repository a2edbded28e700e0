"""Exponent coding: the exponents of an allocation's floats by one Huffman code, sign and mantissa as they are.

Trained weights and KV caches use few exponents (2.6 to 3.2 bits of the 8 of bf16), while their mantissas are noise: what
DFloat11 and ZipNN use, seen through Buddy's entries. The code is static, of one allocation, as Buddy's targets are. A size is the
payload alone: no entry says how long it is, for the count of its elements is known.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
import numpy.typing as npt

from splitwatt_memory.codecs.bits import BitReader, Bits, CodeError
from splitwatt_memory.codecs.bpc_sizes import Sizes
from splitwatt_memory.entries import ENTRY_BYTES
from splitwatt_memory.values import ValueType, ValueTypeError

NO_CODE: Final = 0xFFFF
"""Length of an exponent that the code does not have: an entry with one is stored as it is."""
BLOCK_ENTRIES: Final = 8192

Counts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class ExponentCode:
    """A canonical Huffman code. `lengths`: bits by exponent, `NO_CODE` where it never came."""

    kind: ValueType
    lengths: tuple[int, ...]

    @cached_property
    def words(self) -> dict[int, tuple[int, int]]:
        """Code and length by exponent."""
        found: dict[int, tuple[int, int]] = {}
        code = before = 0
        for length, exponent in sorted((n, e) for e, n in enumerate(self.lengths) if n != NO_CODE):
            code <<= length - before
            found[exponent] = code, length
            code, before = code + 1, length
        return found


def exponents(entries: npt.NDArray[np.uint8], kind: ValueType) -> npt.NDArray[np.generic]:
    """(n, elements of an entry). Raises ValueTypeError where elements are no floats."""
    if not kind.is_float:
        raise ValueTypeError(f"{kind.name} has no exponents to code")
    words = entries.view(kind.word)
    mask = words.dtype.type((1 << kind.exponent_bits) - 1)
    found: npt.NDArray[np.generic] = words >> words.dtype.type(kind.mantissa_bits) & mask
    return found


def counted(entries: npt.NDArray[np.uint8], kind: ValueType) -> Counts:
    """How often each exponent comes."""
    found = np.zeros(1 << kind.exponent_bits, np.int64)
    for start in range(0, len(entries), BLOCK_ENTRIES):
        block = exponents(entries[start : start + BLOCK_ENTRIES], kind)
        found += np.bincount(block.ravel().astype(np.intp), minlength=len(found))
    return found


def code_of(counts: Counts, kind: ValueType) -> ExponentCode:
    """Huffman's code of these counts, of unbounded length."""
    lengths = np.full(len(counts), NO_CODE, np.int64)
    there = np.flatnonzero(counts)
    lengths[there] = 0
    heap: list[tuple[int, int, tuple[int, ...]]] = [(int(counts[e]), int(e), (int(e),)) for e in there]
    heapq.heapify(heap)
    if len(heap) == 1:
        lengths[there] = 1
    while len(heap) > 1:
        (few, name, left), (more, _, right) = heapq.heappop(heap), heapq.heappop(heap)
        lengths[[*left, *right]] += 1
        heapq.heappush(heap, (few + more, name, left + right))
    return ExponentCode(kind, tuple(int(n) for n in lengths))


def encode(entry: bytes, code: ExponentCode) -> Bits | None:
    """None where an exponent has no code: the entry is stored as it is."""
    kind, words = code.kind, code.words
    bits = Bits()
    for start in range(0, ENTRY_BYTES, kind.size_bytes):
        value = int.from_bytes(entry[start : start + kind.size_bytes], "little")
        exponent = value >> kind.mantissa_bits & (1 << kind.exponent_bits) - 1
        if exponent not in words:
            return None
        bits.put(*words[exponent])
        bits.put(value >> kind.mantissa_bits + kind.exponent_bits, 1)
        bits.put(value, kind.mantissa_bits)
    return bits


def decode(bits: Bits, code: ExponentCode) -> bytes:
    """Raises CodeError on what `encode` never writes."""
    kind, by_word = code.kind, {word: exponent for exponent, word in code.words.items()}
    longest = max((length for _, length in by_word), default=0)
    reader, entry = BitReader(bits), b""
    for _ in range(ENTRY_BYTES // kind.size_bytes):
        found = length = 0
        while (found, length) not in by_word:
            if length == longest:
                raise CodeError(f"no exponent has the code {found:0{length}b}")
            found, length = found << 1 | reader.take(1), length + 1
        high = reader.take(1) << kind.exponent_bits | by_word[found, length]
        entry += (high << kind.mantissa_bits | reader.take(kind.mantissa_bits)).to_bytes(kind.size_bytes, "little")
    reader.end()
    return entry


def exponent_sizes(entries: npt.NDArray[np.uint8], code: ExponentCode) -> Sizes:
    """`entries`: (n, 128) bytes, contiguous. Bytes of each, 0 to 128; 0 is an entry of zeros, which the metadata alone says."""
    kind, lengths = code.kind, np.array(code.lengths, np.uint16)
    fixed_bits = ENTRY_BYTES // kind.size_bytes * (1 + kind.mantissa_bits)
    sizes = np.empty(len(entries), np.uint8)
    for start in range(0, len(entries), BLOCK_ENTRIES):
        block = entries[start : start + BLOCK_ENTRIES]
        bits = lengths[exponents(block, kind)].sum(axis=1, dtype=np.uint32) + np.uint32(fixed_bits)
        sizes[start : start + BLOCK_ENTRIES] = np.minimum((bits + 7) >> 3, ENTRY_BYTES)
        sizes[start : start + BLOCK_ENTRIES][~block.view("<u8").any(axis=1)] = 0
    return sizes
