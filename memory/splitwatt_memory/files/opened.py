"""Which reader takes a file: by the end of its name, and a raw array where no reader does."""

from __future__ import annotations

from pathlib import Path

from splitwatt_memory.files import gguf, safetensors
from splitwatt_memory.files.numpy_files import npy_tensors_of, npz_tensors_of, raw_tensors_of
from splitwatt_memory.files.tensor import Tensor, TensorFileError
from splitwatt_memory.values import ValueType


def tensors_in(path: Path, held: ValueType | None = None) -> list[Tensor]:
    """Those that hold something. `held`: the element type of raw arrays, and of what NumPy has no name for. Raises
    TensorFileError where the file cannot be read or has none."""
    try:
        if not path.is_file():
            raise TensorFileError(f"{path}: there is no such file")
        match path.suffix.lower():
            case ".safetensors":
                found = safetensors.tensors_of(path)
            case ".gguf":
                found = gguf.tensors_of(path)
            case ".npz":
                found = npz_tensors_of(path, held)
            case ".npy":
                found = npy_tensors_of(path, held)
            case _:
                found = raw_tensors_of(path, held)
    except OSError as error:
        raise TensorFileError(f"{path}: {error.strerror or error}") from error
    there = [tensor for tensor in found if tensor.size_bytes]
    if not there:
        raise TensorFileError(f"{path}: there is no tensor in it that holds anything")
    return there
