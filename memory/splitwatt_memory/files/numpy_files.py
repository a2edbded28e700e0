"""Arrays of .npy and .npz files (NumPy's own format), and raw arrays without any header.

NumPy has no bf16: what ml_dtypes writes as two bytes of no type (V2) is taken for bf16, and `held` names what unsigned integers
stand for where that is something else.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import BinaryIO, Final, cast

import numpy as np
from numpy.lib import format as npy

from splitwatt_memory.files.tensor import Tensor, TensorFileError, opened
from splitwatt_memory.values import TYPES, ValueType

FLOATS: Final = {8: "fp64", 4: "fp32", 2: "fp16"}
INTEGERS: Final = {8: "int64", 4: "int32", 2: "int16", 1: "int8"}


def raw_tensors_of(path: Path, held: ValueType | None) -> list[Tensor]:
    """One tensor: the whole file. Raises TensorFileError, OSError."""
    if held is None:
        raise TensorFileError(f"{path}: a raw array does not say what it holds: give --dtype, one of {', '.join(TYPES)}")
    size = path.stat().st_size
    if size % held.size_bytes:
        raise TensorFileError(f"{path}: {size} bytes are no whole number of {held.name}")
    return [Tensor(path, path.stem, held.name, held, size, partial(opened, path))]


def npy_tensors_of(path: Path, held: ValueType | None) -> list[Tensor]:
    """Raises TensorFileError, OSError."""
    with path.open("rb") as file:
        dtype, count = _header(file, path, path.stem)
        start = file.tell()
    kind = _kind(dtype, held, path, path.stem)
    if start + count * kind.size_bytes > path.stat().st_size:
        raise TensorFileError(f"{path}: the array needs {count * kind.size_bytes} bytes, and the file has fewer: is it cut off?")
    return [Tensor(path, path.stem, kind.name, kind, count * kind.size_bytes, partial(opened, path), start)]


def npz_tensors_of(path: Path, held: ValueType | None) -> list[Tensor]:
    """One for each array in the archive. Raises TensorFileError, OSError."""
    try:
        with zipfile.ZipFile(path) as archive:
            found = []
            for member in archive.namelist():
                if not member.endswith(".npy"):
                    continue
                name = member.removesuffix(".npy")
                with archive.open(member) as file:
                    dtype, count = _header(cast(BinaryIO, file), path, name)
                    start = file.tell()
                kind = _kind(dtype, held, path, name)
                of_member = partial(_member, path, member)
                found.append(Tensor(path, name, kind.name, kind, count * kind.size_bytes, of_member, start))
            return found
    except zipfile.BadZipFile as error:
        raise TensorFileError(f"{path}: no archive of NumPy arrays: {error}") from error


@contextmanager
def _member(path: Path, member: str) -> Iterator[BinaryIO]:
    try:
        with zipfile.ZipFile(path) as archive, archive.open(member) as file:
            yield cast(BinaryIO, file)
    except zipfile.BadZipFile as error:
        raise TensorFileError(f"{path}: array {member} is damaged: {error}") from error


def _header(file: BinaryIO, path: Path, name: str) -> tuple[np.dtype[np.generic], int]:
    """Type and count of elements; the file stands at the first of them."""
    try:
        version = npy.read_magic(file)
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, _, dtype = read(file)
    except ValueError as error:
        raise TensorFileError(f"{path}: {name} is no NumPy array: {error}") from error
    return dtype, math.prod(shape)


def _kind(dtype: np.dtype[np.generic], held: ValueType | None, path: Path, name: str) -> ValueType:
    if held is not None and dtype.kind in "uV" and held.size_bytes == dtype.itemsize:
        return held
    if dtype.kind == "f" and dtype.itemsize in FLOATS:
        found = FLOATS[dtype.itemsize]
    elif dtype.kind in "iub" and dtype.itemsize in INTEGERS:
        found = INTEGERS[dtype.itemsize]
    elif dtype == np.dtype("V2"):
        found = "bf16"
    else:
        raise TensorFileError(f"{path}: array {name} has the type {dtype}, and only floats and integers are measured")
    if dtype.byteorder == ">" or (dtype.byteorder == "=" and not np.little_endian):
        raise TensorFileError(f"{path}: array {name} is big-endian: write it with {dtype.newbyteorder('<')}")
    return TYPES[found]
