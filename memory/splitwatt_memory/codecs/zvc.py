"""Zero-value coding of one entry: a bit for each element that says whether it is not zero, and those that are not.

Good for what ReLU left, and for nothing else. Called zero encoding in the comparison of the Buddy paper (fig. 5a).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from splitwatt_memory.codecs.bits import BitReader, Bits
from splitwatt_memory.codecs.bpc_sizes import Sizes
from splitwatt_memory.entries import ENTRY_BYTES


def encode(entry: bytes, element_bytes: int) -> Bits:
    """`element_bytes` 1, 2, 4 or 8. Raises ValueError unless the entry has 128 bytes."""
    if len(entry) != ENTRY_BYTES:
        raise ValueError(f"an entry has {ENTRY_BYTES} bytes, not {len(entry)}")
    elements = [entry[at : at + element_bytes] for at in range(0, ENTRY_BYTES, element_bytes)]
    bits = Bits()
    for element in elements:
        bits.put(any(element), 1)
    for element in elements:
        if any(element):
            bits.put(int.from_bytes(element, "little"), 8 * element_bytes)
    return bits


def decode(bits: Bits, element_bytes: int) -> bytes:
    """Raises CodeError on what `encode` never writes."""
    reader = BitReader(bits)
    there = [reader.take(1) for _ in range(ENTRY_BYTES // element_bytes)]
    entry = b"".join((reader.take(8 * element_bytes) if one else 0).to_bytes(element_bytes, "little") for one in there)
    reader.end()
    return entry


def zvc_sizes(entries: npt.NDArray[np.uint8], element_bytes: int) -> Sizes:
    """`entries`: (n, 128) bytes, contiguous. Bytes of each, 0 to 128."""
    elements = entries.view(f"u{element_bytes}")
    there = np.count_nonzero(elements, axis=1)
    sizes = np.minimum(-(-elements.shape[1] // 8) + element_bytes * there, ENTRY_BYTES)
    return np.where(there == 0, 0, sizes).astype(np.uint8)
