"""Bit strings for the scalar codecs, first bit first."""

from __future__ import annotations

from dataclasses import dataclass


class CodeError(ValueError):
    """A bit string that no encoder of ours writes."""


@dataclass(slots=True)
class Bits:
    """`length` bits; the first one is the highest of `value`."""

    value: int = 0
    length: int = 0

    def put(self, value: int, length: int) -> None:
        """The lowest `length` bits of `value`."""
        self.value = self.value << length | value & (1 << length) - 1
        self.length += length

    @property
    def size_bytes(self) -> int:
        return -(-self.length // 8)


class BitReader:
    """Takes bits from the front. Raises CodeError where none are left."""

    def __init__(self, bits: Bits) -> None:
        self._bits, self._at = bits, 0

    def take(self, length: int) -> int:
        self._at += length
        rest = self._bits.length - self._at
        if rest < 0:
            raise CodeError(f"the code ends after {self._bits.length} bits, and {self._at} were wanted")
        return self._bits.value >> rest & (1 << length) - 1

    def end(self) -> None:
        """Raises CodeError where bits are left."""
        if self._at != self._bits.length:
            raise CodeError(f"{self._bits.length - self._at} bits are left behind the last value")
