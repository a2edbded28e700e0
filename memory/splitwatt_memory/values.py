"""Element types of tensors: their bits, and how floats are turned into bf16, fp16 or fp32 before they are measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.generic]


class ValueTypeError(ValueError):
    """An element type that is not known, or not a float where one is needed; the message says which are."""


@dataclass(frozen=True, slots=True)
class ValueType:
    """`word`: NumPy's type of an element's bits. `exponent_bits`, `mantissa_bits`: 0 where it is no float."""

    name: str
    word: str
    exponent_bits: int = 0
    mantissa_bits: int = 0

    @property
    def size_bytes(self) -> int:
        return np.dtype(self.word).itemsize

    @property
    def is_float(self) -> bool:
        return self.exponent_bits > 0


_TYPES: Final = (
    ValueType("fp64", "<u8", 11, 52), ValueType("fp32", "<u4", 8, 23), ValueType("fp16", "<u2", 5, 10),
    ValueType("bf16", "<u2", 8, 7), ValueType("fp8_e4m3", "u1", 4, 3), ValueType("fp8_e5m2", "u1", 5, 2),
    ValueType("int64", "<u8"), ValueType("int32", "<u4"), ValueType("int16", "<u2"), ValueType("int8", "u1"),
)  # fmt: skip
TYPES: Final = {kind.name: kind for kind in _TYPES}
"""Signed or not, an integer is its bits."""
TARGETS: Final = ("bf16", "fp16", "fp32")
"""What floats may be turned into."""


def type_named(name: str) -> ValueType:
    """Raises ValueTypeError."""
    if name not in TYPES:
        raise ValueTypeError(f"the element type must be one of {', '.join(TYPES)}, not {name}")
    return TYPES[name]


def converted(raw: bytes, held: ValueType, wanted: ValueType) -> bytes:
    """The same values in another float type, rounded to the nearest and ties to even; too large ones become infinite.

    Raises ValueTypeError unless both are floats and `wanted` is one of `TARGETS`.
    """
    if wanted.name not in TARGETS or not held.is_float:
        raise ValueTypeError(f"floats become {', '.join(TARGETS)}; {held.name} cannot become {wanted.name}")
    if held == wanted:
        return raw
    with np.errstate(over="ignore"):
        values = _singles(np.frombuffer(raw, held.word), held)
        if wanted.name == "fp32":
            return values.astype("<f4").tobytes()
        if wanted.name == "fp16":
            return values.astype("<f2").tobytes()
        return _as_bf16(values.astype("<f4")).tobytes()


def _singles(bits: Array, held: ValueType) -> npt.NDArray[np.floating]:
    """Values in a type of NumPy's that holds each of them exactly."""
    match held.name:
        case "fp64":
            return bits.view("<f8")
        case "fp32":
            return bits.view("<f4")
        case "fp16":
            return bits.view("<f2").astype("<f4")
        case "bf16":
            return (bits.astype("<u4") << np.uint32(16)).view("<f4")
        case "fp8_e5m2":
            return (bits.astype("<u2") << np.uint16(8)).view("<f2").astype("<f4")
        case _:
            values: npt.NDArray[np.floating] = _E4M3[bits.view(np.uint8)]
            return values


def _as_bf16(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    bits = values.view("<u4")
    rounded = (bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))) >> np.uint32(16)
    # A NaN whose rounding carries would become infinite or zero.
    return np.where(np.isnan(values), bits >> np.uint32(16) | np.uint32(0x40), rounded).astype("<u2")


def _e4m3_values() -> npt.NDArray[np.float32]:
    """Of all 256 codes: bias 7, no infinities, NaN where all seven lower bits are set (OCP FP8, E4M3)."""
    code = np.arange(256)
    sign, exponent, mantissa = np.where(code >> 7, -1.0, 1.0), code >> 3 & 15, code & 7
    values = sign * np.where(exponent == 0, mantissa / 8 * 2.0**-6, (1 + mantissa / 8) * 2.0 ** (exponent - 7.0))
    values[(code & 127) == 127] = np.nan
    return values.astype(np.float32)


_E4M3: Final = _e4m3_values()
