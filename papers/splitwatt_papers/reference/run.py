"""One run of the reference model: a design, a list of arrivals, the tables to ask."""

from __future__ import annotations

from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray
from splitwatt_sim.latencies import Latencies
from splitwatt_sim.servers.designs import Design
from splitwatt_sim.servers.tables import GIB, DecodeModel, ServerTable, Tables, lookup_s

from splitwatt_papers.reference.model import COMPLETE, TOO_SMALL, replay
from splitwatt_papers.reference.state import MAX_BATCH_TASKS, MAX_BATCH_TOKENS, PROMPT_POOL, TOKEN_POOL, new_state

LABELS: Final = {"ttft": "TTFT", "tbt": "TBT", "e2e": "E2E"}
"""What the reference model tells apart: its TTFT ends with the prompt, for it knows no way of a KV cache."""
MEMORY_BYTES: Final = 8 * 80 * GIB
LINK_BYTES_PER_S: Final = 200.0 * GIB
CAPACITY: Final = 2_048
MAX_CAPACITY: Final = 4_194_304
"""Queue entries per machine to begin with, and at most: over two million requests waiting for one machine."""


class StuckError(RuntimeError):
    """Requests that can never run: they need more memory than a server has."""


@lru_cache(maxsize=64)
def _iteration_s(table: ServerTable, decode: DecodeModel, size: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return lookup_s(table.prefill_s, size), lookup_s(table.decode_points(decode), MAX_BATCH_TASKS + 1)


def run_reference(
    design: Design,
    *,
    arrival_s: NDArray[np.float64],
    prompt: NDArray[np.int64],
    output: NDArray[np.int64],
    tables: Tables,
    model: str = "bloom-176b",
    decode: DecodeModel = DecodeModel.SPLITWISE_2023,
) -> Latencies:
    """Deterministic. Columns of N requests, arrival_s rising, prompt and output tokens at least 1.

    Raises TableError for an unknown model or server, StuckError for requests that fit no server.
    """
    shape = tables.shape(model)
    size = 1 << int(prompt.max() + MAX_BATCH_TOKENS + MAX_BATCH_TASKS).bit_length()
    kinds = (design.prompt_kind, design.token_kind)
    columns = [_iteration_s(tables.server(model, kind), decode, size) for kind in kinds]
    kind = np.repeat(np.arange(2, dtype=np.int32), (design.prompt_machines, design.token_machines))
    home = np.where(kind == 0, PROMPT_POOL if design.split else TOKEN_POOL, TOKEN_POOL).astype(np.int32)
    capacity = CAPACITY
    while capacity <= MAX_CAPACITY:
        state = new_state(
            arrival_s=arrival_s,
            prompt=prompt,
            output=output,
            kind=kind,
            home=home,
            prompt_s=np.array([prompt_s for prompt_s, _ in columns]),
            token_s=np.array([token_s for _, token_s in columns]),
            weights_bytes=shape.weights_bytes,
            memory_max=MEMORY_BYTES,
            kv_bytes_per_token=shape.kv_bytes_per_token(grouped=False),
            link_bytes_per_s=LINK_BYTES_PER_S,
            capacity=capacity,
        )
        outcome = replay(state, design.split)
        if outcome != TOO_SMALL:
            break
        capacity *= 4
    if outcome != COMPLETE:
        undone = int(np.isnan(state.requests.done_s).sum())
        raise StuckError(f"{undone} requests of {len(prompt)} can never run on {design}: shorten them or add machines")
    ttft_s, e2e_s = state.requests.prompt_end_s - arrival_s, state.requests.done_s - arrival_s
    return Latencies(ttft_s * 1e3, (e2e_s - ttft_s) / output * 1e3, e2e_s * 1e3)
