"""Tensors of a GGUF file, versions 2 and 3 (format: ggml-org/ggml docs/gguf.md): metadata is passed over, blocks are bytes.

The layout is read here and not by the package `gguf`: that one maps the file and makes an array of every token of a vocabulary.
"""

from __future__ import annotations

import math
import struct
from functools import partial
from pathlib import Path
from typing import BinaryIO, Final

from splitwatt_memory.files.tensor import Tensor, TensorFileError, opened
from splitwatt_memory.values import TYPES

MAGIC: Final = b"GGUF"
VERSIONS: Final = (2, 3)
DEFAULT_ALIGNMENT: Final = 32
MAX_NAME_BYTES: Final = 65_535
MAX_TENSORS: Final = 1_000_000
MAX_DIMENSIONS: Final = 4
STRING, ARRAY, UINT32 = 8, 9, 4
SCALARS: Final = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes by type of a metadata value."""
PLAIN: Final = {0: "fp32", 1: "fp16", 24: "int8", 25: "int16", 26: "int32", 27: "int64", 28: "fp64", 30: "bf16"}
BLOCKS: Final = {
    2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22), 7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 9: ("Q8_1", 32, 36),
    10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110), 12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210),
    15: ("Q8_K", 256, 292), 20: ("IQ4_NL", 32, 18), 23: ("IQ4_XS", 256, 136), 39: ("MXFP4", 32, 17),
}  # fmt: skip
"""Name, elements and bytes of a block, by type of a tensor (ggml.h, ggml-common.h)."""


def tensors_of(path: Path) -> list[Tensor]:
    """In the order of the file. Raises TensorFileError, OSError."""
    with path.open("rb") as file:
        try:
            return _Walk(file, path).tensors()
        except (struct.error, UnicodeDecodeError, OverflowError) as error:
            raise TensorFileError(f"{path}: the GGUF header is cut off or damaged: {error}") from error


def strings_of(path: Path, key: str) -> list[str]:
    """A list of texts in the metadata, such as a vocabulary. Raises TensorFileError where there is none of that name, OSError."""
    with path.open("rb") as file:
        try:
            return _Walk(file, path).strings(key)
        except (struct.error, UnicodeDecodeError, OverflowError) as error:
            raise TensorFileError(f"{path}: the GGUF header is cut off or damaged: {error}") from error


class _Walk:
    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file, self._path, self._size = file, path, path.stat().st_size

    def _counts(self) -> tuple[int, int]:
        """How many tensors there are, and how many pairs of metadata before them."""
        if self._file.read(4) != MAGIC:
            raise TensorFileError(f"{self._path}: no GGUF file, for it does not begin with {MAGIC.decode()}")
        version = self._number("I")
        if version not in VERSIONS:
            raise TensorFileError(f"{self._path}: GGUF version {version} is not read; known are 2 and 3, little-endian")
        count, pairs = self._number("Q"), self._number("Q")
        if count > MAX_TENSORS:
            raise TensorFileError(f"{self._path}: {count} tensors are more than {MAX_TENSORS}: the header is damaged")
        return count, pairs

    def strings(self, wanted: str) -> list[str]:
        _, pairs = self._counts()
        for _ in range(pairs):
            key, kind = self._text(), self._number("I")
            if key == wanted and kind == ARRAY and self._number("I") == STRING:
                return [self._text() for _ in range(self._number("Q"))]
            if key == wanted:
                break
            self._pass(kind)
        raise TensorFileError(f"{self._path}: there is no list of texts named {wanted} in its metadata")

    def tensors(self) -> list[Tensor]:
        count, pairs = self._counts()
        alignment = DEFAULT_ALIGNMENT
        for _ in range(pairs):
            key, kind = self._text(), self._number("I")
            if key == "general.alignment" and kind == UINT32:
                alignment = self._number("I") or DEFAULT_ALIGNMENT
            else:
                self._pass(kind)
        rows = [self._row() for _ in range(count)]
        base = -(-self._file.tell() // alignment) * alignment
        return [self._tensor(*row, base) for row in sorted(rows, key=lambda row: row[3])]

    def _number(self, form: str) -> int:
        value: int = struct.unpack(f"<{form}", self._file.read(struct.calcsize(f"<{form}")))[0]
        return value

    def _text(self) -> str:
        length = self._number("Q")
        if length > MAX_NAME_BYTES:
            raise TensorFileError(f"{self._path}: a name of {length} bytes: the header is damaged")
        return self._file.read(length).decode()

    def _skip(self, count: int) -> None:
        if self._file.tell() + count > self._size:
            raise TensorFileError(f"{self._path}: the GGUF header is cut off or damaged")
        self._file.seek(count, 1)

    def _pass(self, kind: int) -> None:
        """Over one value of metadata."""
        if kind in SCALARS:
            self._skip(SCALARS[kind])
        elif kind == STRING:
            self._skip(self._number("Q"))
        elif kind == ARRAY:
            of, count = self._number("I"), self._number("Q")
            if of in SCALARS:
                self._skip(SCALARS[of] * count)
            else:
                # Each turn reads, and ends where the file does.
                for _ in range(count):
                    self._pass(of)
        else:
            raise TensorFileError(f"{self._path}: metadata of the unknown type {kind}")

    def _row(self) -> tuple[str, int, int, int]:
        """Name, elements, type, offset."""
        name, dimensions = self._text(), self._number("I")
        if dimensions > MAX_DIMENSIONS:
            raise TensorFileError(f"{self._path}: tensor {name} has {dimensions} dimensions: the header is damaged")
        elements = math.prod(self._number("Q") for _ in range(dimensions))
        return name, elements, self._number("I"), self._number("Q")

    def _tensor(self, name: str, elements: int, of: int, offset: int, base: int) -> Tensor:
        if of in PLAIN:
            kind = TYPES[PLAIN[of]]
            held, size = kind.name, elements * kind.size_bytes
        elif of in BLOCKS:
            kind = None
            held, per_block, block_bytes = BLOCKS[of]
            size = -(-elements // per_block) * block_bytes
        else:
            raise TensorFileError(f"{self._path}: tensor {name} has the unknown type {of}")
        if base + offset + size > self._size:
            raise TensorFileError(f"{self._path}: tensor {name} lies outside the file of {self._size} bytes: is it cut off?")
        return Tensor(self._path, name, held, kind, size, partial(opened, self._path), base + offset)
