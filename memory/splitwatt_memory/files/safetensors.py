"""Tensors of a safetensors file, from its header of JSON alone (format: huggingface/safetensors)."""

from __future__ import annotations

import json
import math
import struct
from functools import partial
from pathlib import Path
from typing import Any, Final

from splitwatt_memory.files.tensor import Tensor, TensorFileError, opened
from splitwatt_memory.values import TYPES

MAX_HEADER_BYTES: Final = 100_000_000
"""The format's own bound."""
DTYPES: Final = {
    "F64": "fp64", "F32": "fp32", "F16": "fp16", "BF16": "bf16", "F8_E4M3": "fp8_e4m3", "F8_E5M2": "fp8_e5m2", "I64": "int64",
    "U64": "int64", "I32": "int32", "U32": "int32", "I16": "int16", "U16": "int16", "I8": "int8", "U8": "int8", "BOOL": "int8",
}  # fmt: skip


def tensors_of(path: Path) -> list[Tensor]:
    """In the order of the file. Raises TensorFileError, OSError."""
    size = path.stat().st_size
    with path.open("rb") as file:
        begin = file.read(8)
        length = struct.unpack("<Q", begin)[0] if len(begin) == 8 else 0
        if not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
            raise TensorFileError(f"{path}: no safetensors file, for its first 8 bytes do not give the length of a header")
        raw = file.read(length)
    try:
        header = json.loads(raw)
        rows = [(name, row) for name, row in header.items() if name != "__metadata__"]
        return sorted((_tensor(path, name, row, 8 + length, size) for name, row in rows), key=lambda t: t.starts_at)
    except TensorFileError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise TensorFileError(f"{path}: the header is not that of a safetensors file: {error}") from error


def _tensor(path: Path, name: str, row: dict[str, Any], base: int, file_bytes: int) -> Tensor:
    dtype, (start, end) = row["dtype"], row["data_offsets"]
    if dtype not in DTYPES:
        raise TensorFileError(f"{path}: tensor {name} has the type {dtype}; known are {', '.join(DTYPES)}")
    kind = TYPES[DTYPES[dtype]]
    if not 0 <= start <= end <= file_bytes - base:
        raise TensorFileError(f"{path}: tensor {name} lies outside the file, which has {file_bytes} bytes: is it cut off?")
    if math.prod(row["shape"]) * kind.size_bytes != end - start:
        raise TensorFileError(f"{path}: tensor {name} has {end - start} bytes, which its shape and type do not give")
    return Tensor(path, name, kind.name, kind, end - start, partial(opened, path), base + start)
