"""A tensor in a file: what it holds, and a way to read it in blocks. No reader holds a whole file, nor a whole tensor."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from splitwatt_memory.values import ValueType

BLOCK_ELEMENTS: Final = 1 << 20
"""Elements of a block: whole entries of 128 bytes, whatever type they are turned into."""


class TensorFileError(ValueError):
    """A file that cannot be read; the message is one sentence with its path that says what is wrong."""


def opened(path: Path) -> BinaryIO:
    return path.open("rb")


@dataclass(frozen=True, slots=True)
class Tensor:
    """`kind`: None for blocks of quantised values, which are measured as bytes; `held` says what they are. `opened`: a file that
    stands at the tensor's first byte, and can be sought in from there as from its own beginning."""

    path: Path
    name: str
    held: str
    kind: ValueType | None
    size_bytes: int
    opened: Callable[[], AbstractContextManager[BinaryIO]]
    starts_at: int = 0

    @property
    def element_bytes(self) -> int:
        return 1 if self.kind is None else self.kind.size_bytes

    def blocks(self, every: int = 1) -> Iterator[bytes]:
        """Its bytes in blocks of `BLOCK_ELEMENTS` elements; with `every` above 1 only each so many'th block, from the first on.
        Raises TensorFileError where the file ends too early."""
        step = BLOCK_ELEMENTS * self.element_bytes
        with self.opened() as file:
            for start in range(0, self.size_bytes, step * every):
                wanted = min(step, self.size_bytes - start)
                file.seek(self.starts_at + start)
                raw = file.read(wanted)
                if len(raw) != wanted:
                    raise TensorFileError(f"{self.path}: ends within tensor {self.name}: {wanted - len(raw)} bytes are missing")
                yield raw
