"""One run of the fleet simulator: pools of servers, a list of arrivals, what users felt and what it drew."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from splitwatt_sim.fleet.kernel import COMPLETE, TOO_SMALL, run_until
from splitwatt_sim.fleet.state import (
    DECODE,
    MAX_BATCH_SEQUENCES,
    MAX_BATCH_TOKENS,
    MIXED,
    PREFILL,
    Fleet,
    Pool,
    new_fleet,
)
from splitwatt_sim.latencies import Latencies
from splitwatt_sim.traces.arrivals import Arrivals

COMING: Final = 1_024
MAX_COMING: Final = 4_194_304
"""Hand-offs that may wait for one machine, to begin with and at most."""
ROLE_NAMES: Final = {PREFILL: "prefill", MIXED: "mixed", DECODE: "decode"}


class FleetError(ValueError):
    """A fleet that cannot serve its list; the message is one sentence that says what to change."""


@dataclass(frozen=True, slots=True)
class FleetRun:
    """`busy` and `energy_j` by role; `power_w` float64[M, seconds], empty unless it was asked for. `ends_s`: the last token.
    Energy counts whole servers, idle ones too, from 0 to `ends_s`."""

    latencies: Latencies
    output_tokens: int
    ends_s: float
    energy_j: dict[str, float]
    busy: dict[str, float]
    power_w: NDArray[np.float64]

    @property
    def joules_per_token(self) -> float:
        return sum(self.energy_j.values()) / self.output_tokens


def run_fleet(pools: Sequence[Pool], arrivals: Arrivals, *, seconds: int = 0) -> FleetRun:
    """Deterministic. `seconds`: for how long each machine's mean draw per second is recorded. Raises FleetError."""
    check_fleet(pools, arrivals)
    coming = COMING
    while True:
        fleet = new_fleet(
            pools,
            arrival_s=arrivals.arrival_s,
            prompt=arrivals.prompt_tokens,
            output=arrivals.output_tokens,
            seconds=seconds,
            coming_capacity=coming,
        )
        outcome = run_until(fleet, np.inf)
        if outcome != TOO_SMALL:
            break
        coming *= 4
        if coming > MAX_COMING:
            raise FleetError(f"over {MAX_COMING} sequences wait for one decode machine: lower the rate or add machines")
    assert outcome == COMPLETE and int(fleet.counters[1]) == len(arrivals), "every request ends"
    return result_of(fleet, arrivals)


def check_fleet(pools: Sequence[Pool], arrivals: Arrivals) -> None:
    """Raises FleetError where the list cannot be served."""
    if len(arrivals) == 0:
        raise FleetError("the list holds no request; give one, or a higher rate")
    longest = int((arrivals.prompt_tokens + arrivals.output_tokens).max())
    rows = int(arrivals.prompt_tokens.max()) + MAX_BATCH_TOKENS + MAX_BATCH_SEQUENCES + 1
    for pool in pools:
        if len(pool.kind.prefill_s) < rows:  # a compiled kernel would read past its end
            raise FleetError(f"the tables of {pool.kind.name} end before the longest prompt; build them for this list")
        if pool.role != PREFILL and longest > pool.kind.kv_room:
            raise FleetError(
                f"a request of {longest} tokens does not fit the {pool.kind.kv_room} tokens of KV cache of {pool.kind.name}: "
                "leave it out, or use servers with more memory"
            )


def result_of(fleet: Fleet, arrivals: Arrivals) -> FleetRun:
    """What a fleet that has served its whole list felt and drew."""
    requests, machines = fleet.requests, fleet.machines
    ttft_s, e2e_s = requests.prompt_end_s - arrivals.arrival_s, requests.done_s - arrivals.arrival_s
    ends_s = float(requests.done_s.max())
    roles = [role for role in ROLE_NAMES if bool(np.any(machines.role == role))]
    return FleetRun(
        latencies=Latencies(ttft_s * 1e3, (e2e_s - ttft_s) / arrivals.output_tokens * 1e3, e2e_s * 1e3),
        output_tokens=int(arrivals.output_tokens.sum()),
        ends_s=ends_s,
        energy_j={ROLE_NAMES[role]: float(machines.energy_j[machines.role == role].sum()) for role in roles},
        busy={ROLE_NAMES[role]: float(machines.busy_s[machines.role == role].mean() / ends_s) for role in roles},
        power_w=fleet.power_w,
    )
