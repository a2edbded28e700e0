"""The fleet engine's compiled loops, with arrays as short as they may be; prints what came out of them. Run as a process."""

from __future__ import annotations

import hashlib

import numpy as np
from splitwatt_sim.fleet.run import FleetRun, run_fleet
from splitwatt_sim.fleet.state import (
    DECODE,
    MAX_BATCH_SEQUENCES,
    MAX_BATCH_TOKENS,
    MIXED,
    PREFILL,
    Change,
    Failure,
    Flip,
    Pool,
    ServerKind,
)
from splitwatt_sim.traces.arrivals import Arrivals
from splitwatt_sim.traces.resample import generated
from support.bounds import report


def shortest_kind(arrivals: Arrivals, *, kv_room: int) -> ServerKind:
    """Tables that end where the engine's own check lets them end."""
    longest = int((arrivals.prompt_tokens + arrivals.output_tokens).max()) - 1
    tokens = np.arange(longest + MAX_BATCH_TOKENS + MAX_BATCH_SEQUENCES + 1, dtype=np.float64)
    sequences = np.arange(MAX_BATCH_SEQUENCES + 1, dtype=np.float64)
    return ServerKind(
        name="shortest", prefill_s=0.002 + tokens * 2e-5, prefill_w=500.0 + tokens * 0.1,
        decode_s=0.02 + sequences * 1e-4, decode_w=400.0 + sequences, kv_s=1e-9, idle_w=100.0, kv_room=kv_room,
        hand_off_s_per_token=1e-6, hand_off_fixed_s=0.005, overlap_from_tokens=512.0,
    )  # fmt: skip


def fleets() -> list[FleetRun]:
    many = generated(requests_per_s=120.0, seconds=12.0, seed=3)
    full = Arrivals(np.zeros(1_100), np.full(1_100, 3), np.full(1_100, 200), "a full batch and more who wait")
    runs = []
    for arrivals, room in ((many, 60_000), (full, 10**6)):
        kind = shortest_kind(arrivals, kv_room=room)
        for counts in ((2, 0, 2), (2, 1, 2), (0, 3, 0)):
            pools = [Pool(role, kind, n) for role, n in zip((PREFILL, MIXED, DECODE), counts, strict=True) if n]
            last = len(pools) - 1
            changes: list[Change] = [
                Failure(0, 0, 3.0, 7.0), Failure(last, 1, 5.0, 6.0), Failure(last, 0, 5.0, 5.5), Flip(0, 1, 8.0, DECODE, 0.5),
                Flip(0, 1, 12.0, PREFILL, 0.0), Flip(last, 0, 12.5, MIXED, 0.1),
                Failure(last, pools[last].servers - 1, 14.0),
            ]  # fmt: skip
            runs.append(run_fleet(pools, arrivals, seconds=9, changes=changes))
            runs.append(run_fleet(pools, arrivals))
        lost = Failure(1, 0, 2.0)
        runs.append(run_fleet([Pool(PREFILL, kind, 1), Pool(DECODE, kind, 1)], arrivals, changes=[lost]))
    return runs


def digest() -> str:
    """Everything that came out, to the last bit."""
    out = hashlib.sha256()
    for run in fleets():
        out.update(run.latencies.ttft_ms.tobytes() + run.latencies.e2e_ms.tobytes() + run.power_w.tobytes())
        out.update(repr((run.energy_j, run.busy, run.restarted, run.flips, run.unfinished.tolist())).encode())
    return out.hexdigest()


if __name__ == "__main__":
    report(digest)
