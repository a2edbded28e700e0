"""What overflow costs on a link to buddy memory: a rule of one line, fitted to the Buddy paper's fig. 12.

    speed = gain / (1 + f * o * memory bandwidth / link bandwidth)

f is the share of accesses that overflow, o what comes over the link of such an entry (0 to 1). `gain` is what the paper's
hardware wins by moving fewer bytes from its memory, 5.5 %; without such hardware it is 1. The rule assumes that entries are read
equally often. It meets fig. 12's mean of deep learning within 12 % from 50 to 200 GB/s; perfect overlap is too kind.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from splitwatt_core.memory.ranks import C2C, NVLINK2, PCIE5, SPEEDS

PAPER_GAIN: Final = 1.055
PAPER_MEMORY_BYTES_PER_S: Final = 900e9
"""HBM2 of the paper's simulated GPU."""


class LinkError(ValueError):
    """A link that cannot be; the message says what to change."""


@dataclass(frozen=True, slots=True)
class LinkSpeed:
    """`bytes_per_s`: of reads, towards the GPU. `source`: where the number comes from."""

    name: str
    bytes_per_s: float
    source: str

    def __post_init__(self) -> None:
        if not 0 < self.bytes_per_s < float("inf"):
            raise LinkError(f"link {self.name}: bytes per second must be above 0, not {self.bytes_per_s}")


LINKS: Final = {one.name: LinkSpeed(one.name, one.bytes_per_s, one.source) for one in (PCIE5, NVLINK2, C2C)}
MEMORIES: Final = {name.split("-")[0]: speeds.memory_bytes_per_s for name, speeds in SPEEDS.items()}
"""Bytes per second of a GPU's memory."""


def speed(
    overflow_fraction: float,
    overflow_share: float,
    *,
    memory_bytes_per_s: float,
    link_bytes_per_s: float,
    gain: float = 1.0,
) -> float:
    """Speed beside a GPU whose memory is large enough; 1 is as fast. Raises LinkError on shares outside 0..1 or a bandwidth that
    is not above 0."""
    if not (0 <= overflow_fraction <= 1 and 0 <= overflow_share <= 1):
        raise LinkError(f"shares lie from 0 to 1, not {overflow_fraction} and {overflow_share}")
    if not (memory_bytes_per_s > 0 and link_bytes_per_s > 0):
        raise LinkError("bandwidths must be above 0")
    return gain / (1 + overflow_fraction * overflow_share * memory_bytes_per_s / link_bytes_per_s)
