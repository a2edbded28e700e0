"""Kinds of servers with numbers that can be followed by hand, and random fleets of them.

The round tables: a prompt of n tokens takes n/1024 s and draws 1000 W, a step of b sequences takes (b + 1)/8 s and draws
500 W, an idle server draws 100 W. All sums of such times are exact, so ties are ties, and results are compared to the bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray
from splitwatt_sim.fleet.state import (
    DECODE,
    MAX_BATCH_SEQUENCES,
    MIXED,
    PREFILL,
    Change,
    Failure,
    FleetArrays,
    Flip,
    Pool,
    ServerKind,
    new_fleet,
)
from splitwatt_sim.latencies import Latencies
from splitwatt_sim.traces.arrivals import Arrivals

Row = tuple[float, int, int]  # arrival in seconds, prompt tokens, output tokens

SIZE = 12_000
TOKENS = np.arange(SIZE, dtype=np.float64)
SEQUENCES = np.arange(MAX_BATCH_SEQUENCES + 1, dtype=np.float64)
MANY = 2**20

ROUND = ServerKind(
    name="round",
    prefill_s=TOKENS / 1024,
    prefill_w=np.full(SIZE, 1000.0),
    decode_s=(SEQUENCES + 1) / 8,
    decode_w=np.full(MAX_BATCH_SEQUENCES + 1, 500.0),
    kv_s=0.0,
    idle_w=100.0,
    kv_room=MANY,
    hand_off_s_per_token=0.0,
    hand_off_fixed_s=0.0,
    overlap_from_tokens=float("inf"),
)
EXACT = replace(ROUND, prefill_s=10 * 2.0 ** np.ceil(np.log2(TOKENS + 1)) / 2**14, prefill_w=256.0 + TOKENS)
"""Ten times a power of two, so that a tenth more is exact too, and mixed iterations end in ties like all others."""
UNEVEN = replace(
    ROUND,
    prefill_s=0.0131 + TOKENS * 0.000377,
    prefill_w=311.0 + TOKENS * 0.117,
    decode_s=0.0307 + SEQUENCES * 0.00133,
    decode_w=213.0 + SEQUENCES * 1.19,
    idle_w=83.7,
)


def felt(latencies: Latencies) -> dict[str, NDArray[np.float64]]:
    """What was felt, in every way that it is counted."""
    assert latencies.ttft_user_ms is not None
    return {**latencies.columns(), "ttft_user": latencies.ttft_user_ms}


def arrivals(rows: list[Row]) -> Arrivals:
    arrival_s, prompt, output = zip(*rows, strict=True)
    return Arrivals(np.array(arrival_s, np.float64), np.array(prompt), np.array(output), "scene")


def started(pools: list[Pool], rows: list[Row], *, seconds: int = 0, changes: Sequence[Change] = ()) -> FleetArrays:
    """Idle machines, and these rows to come."""
    given = arrivals(rows)
    return new_fleet(
        pools, arrival_s=given.arrival_s, prompt=given.prompt_tokens, output=given.output_tokens, seconds=seconds,
        changes=changes,
    )  # fmt: skip


SEED_ROWS: list[Row] = [(0.0, 4096, 2), (0.0, 5000, 9), (0.5, 1, 1), (0.5, 9000, 30), (1.25, 255, 30)]
ROWS = st.lists(
    st.tuples(
        st.integers(0, 64).map(lambda n: n / 8),
        st.one_of(st.integers(1, 600), st.sampled_from([1, 255, 1023, 1024, 2047, 2048, 2049, 4095, 9000])),
        st.integers(1, 60),
    ),
    min_size=1,
    max_size=30,
).map(sorted)
SHAPES = st.sampled_from([(0, 1, 0), (0, 3, 0), (1, 0, 1), (3, 0, 1), (1, 0, 3), (2, 0, 2), (1, 1, 1), (2, 1, 2)])
"""Prompt, mixed and decode machines."""
HAND_OFFS = st.sampled_from([
    (0.0, 0.0, 0.0, 0.0), (0.0, 1 / 64, 0.0, 0.0), (1 / 1024, 0.0, np.inf, 0.0), (1 / 256, 1 / 64, 512.0, 0.0),
    (1 / 1024, 0.0, np.inf, 1.5), (0.0, 0.0, np.inf, 0.125),
])  # fmt: skip
SPARE = st.sampled_from([0, 1, 300, MANY])
"""Tokens of KV cache beyond the longest request."""


def pools_of(shape: tuple[int, int, int], kind: ServerKind) -> list[Pool]:
    return [Pool(role, kind, servers) for role, servers in zip((PREFILL, MIXED, DECODE), shape, strict=True) if servers]


def fitted(
    kind: ServerKind, rows: list[Row], *, spare: int, kv_s: float, hand_off: tuple[float, float, float, float]
) -> ServerKind:
    room = max(prompt + output for _, prompt, output in rows) + spare
    per_token_s, fixed_s, overlap_from, latency_s = hand_off
    return replace(
        kind, kv_room=room, kv_s=kv_s, hand_off_s_per_token=per_token_s, hand_off_fixed_s=fixed_s,
        overlap_from_tokens=overlap_from, hand_off_latency_s=latency_s,
    )  # fmt: skip


@st.composite
def changes_of(draw: st.DrawFn, pools: list[Pool], *, most: int = 6) -> list[Change]:
    """Failures and flips of any of these machines, at eighths of a second: often in one moment, often one upon another."""
    eighths = st.integers(0, 96).map(lambda n: n / 8)
    changes: list[Change] = []
    for _ in range(draw(st.integers(1, most))):
        pool = draw(st.integers(0, len(pools) - 1))
        server, at_s = draw(st.integers(0, pools[pool].servers - 1)), draw(eighths)
        if draw(st.booleans()):
            back_s = draw(st.one_of(st.just(np.inf), st.integers(1, 64).map(lambda n: n / 8)))
            changes.append(Failure(pool, server, at_s, at_s + back_s))
        else:
            role, switch_s = draw(st.sampled_from([PREFILL, MIXED, DECODE])), draw(st.sampled_from([0.0, 0.125, 2.0]))
            changes.append(Flip(pool, server, at_s, role, switch_s))
    return changes
