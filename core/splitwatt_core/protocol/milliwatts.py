"""From NVML's milliwatts to whole watts, which all else counts in. The border is the agent's half of the protocol.

Protected: what is rounded upwards (limits, draws, floors) never looks lower than it is.
"""

from __future__ import annotations

from typing import Final

MW_PER_W: Final = 1000


def watts_up(mw: int) -> int:
    """Whole watts, upwards."""
    return -(-mw // MW_PER_W)
