"""What a request would feel with a whole server to itself: the base of Splitwise's slowdowns."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from splitwatt_sim.latencies import Latencies
from splitwatt_sim.servers.tables import ServerTable, lookup_s


def unloaded(table: ServerTable, *, prompt: NDArray[np.int64], output: NDArray[np.int64]) -> Latencies:
    """Each request alone on this server, as Splitwise's evaluation counts it: the time per token is read at the prompt's
    length, from the table that the reference asks (by tokens)."""
    size = int(prompt.max()) + 1
    ttft = lookup_s(table.prefill_s, size)[prompt] * 1e3
    tbt = lookup_s(table.slipped_s or table.decode_s, size)[prompt] * 1e3
    return Latencies(ttft, tbt, ttft + tbt * (output - 1))
