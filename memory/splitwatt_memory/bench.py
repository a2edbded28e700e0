"""`python -m splitwatt_memory.bench`: how many megabytes per second the sizers take, on one core of this machine.

Over processor time of this one process, so that other work on the machine counts less; best of a few runs.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

import numpy as np
from rich.console import Console
from rich.table import Table

from splitwatt_memory.codecs.bpc_sizes import Sizes, bpc_sizes
from splitwatt_memory.codecs.exponent import code_of, counted, exponent_sizes
from splitwatt_memory.codecs.zvc import zvc_sizes
from splitwatt_memory.entries import ENTRY_BYTES
from splitwatt_memory.values import TYPES, converted

ENTRIES: Final = 1 << 17
RUNS: Final = 5
AIM_MB_PER_S: Final = {"bpc": 60.0}


def megabytes_per_s() -> dict[str, float]:
    """Of each codec's sizer, on normally distributed bf16 values."""
    rng = np.random.default_rng(1)
    singles = rng.normal(0.0, 0.02, ENTRIES * ENTRY_BYTES // 2).astype("<f4").tobytes()
    kind = TYPES["bf16"]
    entries = np.frombuffer(converted(singles, TYPES["fp32"], kind), np.uint8).reshape(-1, ENTRY_BYTES)
    code = code_of(counted(entries, kind), kind)
    sizers: dict[str, Callable[[], Sizes]] = {
        "bpc": lambda: bpc_sizes(entries),
        "zvc": lambda: zvc_sizes(entries, kind.size_bytes),
        "exponent": lambda: exponent_sizes(entries, code),
    }
    return {name: entries.nbytes / min(_seconds(sizer) for _ in range(RUNS)) / 1e6 for name, sizer in sizers.items()}


def _seconds(sizer: Callable[[], Sizes]) -> float:
    before = time.process_time()
    sizer()
    return time.process_time() - before


def main() -> int:
    table = Table("codec", "MB/s on one core", "aim")
    for name, found in megabytes_per_s().items():
        table.add_row(name, f"{found:.0f}", f">= {AIM_MB_PER_S[name]:.0f}" if name in AIM_MB_PER_S else "")
    Console(highlight=False).print(table)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
