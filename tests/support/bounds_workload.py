"""Every compiled loop of the simulators, with arrays as short as they may be; prints what came out of it, and one line for
each probe that read beyond an array's end. Run as a process: how kernels are compiled is settled when numba is imported."""

from __future__ import annotations

import hashlib
import sys
from typing import Any

import numpy as np
from splitwatt_core.policies.polca_table import RowPriority, comparison, settings_for
from splitwatt_papers.reference.run import run_reference
from splitwatt_papers.row.ladder import in_band, run_row_ahead
from splitwatt_papers.row.ladder import slowdowns as ladder_slowdowns
from splitwatt_papers.row.model import Row, impact, run_row, sample_requests, slowdowns
from splitwatt_papers.row.trace import make
from splitwatt_sim.fleet.run import FleetRun, run_fleet
from splitwatt_sim.fleet.state import (
    DECODE,
    MAX_BATCH_SEQUENCES,
    MAX_BATCH_TOKENS,
    MIXED,
    PREFILL,
    Failure,
    Flip,
    Kind,
    Pool,
)
from splitwatt_sim.jit import inlined, jit, lean
from splitwatt_sim.servers.designs import parse_design
from splitwatt_sim.servers.tables import builtin
from splitwatt_sim.traces.arrivals import Arrivals
from splitwatt_sim.traces.resample import generated

RECORDS = np.zeros(4, [("x", "f8")]).view(np.recarray)


@jit
def peek(array: Any, i: int) -> float:
    return float(array[i])


@lean
def peek_lean(array: Any, i: int) -> float:
    return float(array[i])


@inlined
def _inner(records: Any, i: int) -> float:
    return float(records[i].x)


@lean
def peek_record(records: Any, i: int) -> float:
    return _inner(records, i)


@lean
def poke_row(array: Any, i: int, j: int) -> None:
    array[i][j] = 1.0


def probe() -> None:
    """A read or write one beyond the end, in every way in which kernels are compiled."""
    four = np.zeros(4)
    for name, peep in (
        ("jit", lambda: peek(four, 4)),
        ("lean", lambda: peek_lean(four, 4)),
        ("record", lambda: peek_record(RECORDS, 4)),
        ("row", lambda: poke_row(np.zeros((2, 2)), 1, 2)),
    ):
        try:
            peep()
        except IndexError:
            sys.stdout.write(f"{name} is checked\n")


def shortest_kind(arrivals: Arrivals, *, kv_room: int) -> Kind:
    """Tables that end where the engine's own check lets them end."""
    longest = int((arrivals.prompt_tokens + arrivals.output_tokens).max()) - 1
    tokens = np.arange(longest + MAX_BATCH_TOKENS + MAX_BATCH_SEQUENCES + 1, dtype=np.float64)
    sequences = np.arange(MAX_BATCH_SEQUENCES + 1, dtype=np.float64)
    return Kind(
        name="shortest", prefill_s=0.002 + tokens * 2e-5, prefill_w=500.0 + tokens * 0.1,
        decode_s=0.02 + sequences * 1e-4, decode_w=400.0 + sequences, kv_s=1e-9, idle_w=100.0, kv_room=kv_room,
        hand_off_s_per_token=1e-6, hand_off_fixed_s=0.005, overlap_from_tokens=512.0,
    )  # fmt: skip


def fleets() -> list[FleetRun]:
    many = generated(requests_per_s=120.0, seconds=20.0, seed=3)
    full = Arrivals(np.zeros(1_500), np.full(1_500, 3), np.full(1_500, 200), "a full batch and more who wait")
    runs = []
    for arrivals, room in ((many, 60_000), (full, 10**6)):
        kind = shortest_kind(arrivals, kv_room=room)
        for counts in ((2, 0, 2), (2, 1, 2), (0, 3, 0)):
            pools = [Pool(role, kind, n) for role, n in zip((PREFILL, MIXED, DECODE), counts, strict=True) if n]
            last = len(pools) - 1
            changes: list[Failure | Flip] = [
                Failure(0, 0, 3.0, 7.0), Failure(last, 1, 5.0, 6.0), Failure(last, 0, 5.0, 5.5), Flip(0, 1, 8.0, DECODE, 0.5),
                Flip(0, 1, 12.0, PREFILL, 0.0), Failure(last, pools[last].servers - 1, 14.0),
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
        out.update(run.latencies.e2e_ms.tobytes() + run.power_w.tobytes())
        out.update(repr((run.energy_j, run.restarted, run.flips, run.unfinished.tolist())).encode())
    arrivals = generated(requests_per_s=14.0, seconds=12.0, seed=3)
    for design in ("A100:5", "HA:2/3"):
        got = run_reference(
            parse_design(design), arrival_s=arrivals.arrival_s, prompt=arrivals.prompt_tokens,
            output=arrivals.output_tokens, tables=builtin(),
        )  # fmt: skip
        out.update(got.e2e_ms.tobytes())
    row, trace = Row(servers=56), make(11, days=1)
    requests = sample_requests(trace, row, count=500, seed=11)
    for settings in comparison(settings_for(row.profile)):
        levels = run_row(trace, settings, row)
        felt = impact(requests, levels, {p: slowdowns(settings, row, p) for p in RowPriority})
        out.update(levels.power.tobytes() + repr(felt).encode())
    for servers in (56, 80):  # with far too many the brake falls too
        ladder, many = in_band(), Row(servers=servers)
        positions = run_row_ahead(trace, ladder, many)
        felt = impact(requests, positions, {p: ladder_slowdowns(ladder, many, p) for p in RowPriority})
        out.update(positions.power.tobytes() + repr((positions.brakes, felt)).encode())
    return out.hexdigest()


if __name__ == "__main__":
    probe()
    sys.stdout.write(digest() + "\n")
