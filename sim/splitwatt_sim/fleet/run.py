"""One run of the fleet simulator: pools of servers, a list of arrivals, what users felt and what it drew."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from splitwatt_sim.fleet.changes import play_until
from splitwatt_sim.fleet.kernel import COMPLETE, TOO_SMALL
from splitwatt_sim.fleet.state import (
    DECODE,
    DONE,
    FLIPPED,
    MAX_BATCH_SEQUENCES,
    MAX_BATCH_TOKENS,
    MIXED,
    PREFILL,
    RESTARTED,
    Change,
    Failure,
    FleetArrays,
    Pool,
    ServerKind,
    new_fleet,
)
from splitwatt_sim.latencies import Latencies
from splitwatt_sim.traces.arrivals import Arrivals

COMING: Final = 1_024
MAX_COMING: Final = 4_194_304
"""Hand-offs that may wait for one machine, to begin with and at most."""
LEAST_S: Final = 1e-9
"""Length of a run in which all machines fail before they do anything."""
MAX_CHANGES: Final = 1_000
"""Failures and flips of one run."""
ROLE_NAMES: Final = {PREFILL: "prefill", MIXED: "mixed", DECODE: "decode"}


class FleetError(ValueError):
    """A fleet that cannot serve its list; the message is one sentence that says what to change."""


@dataclass(frozen=True, slots=True)
class FleetRun:
    """`busy` and `energy_j` by the role that machines begin with; `power_w` float64[M, seconds], empty unless it was asked
    for. `ends_s`: the last token, or when nothing could happen any more. Energy counts whole servers, idle ones too, from 0
    to `ends_s`. `latencies` and `output_tokens` are of the requests that were finished, in order; `unfinished` int64[U]: the
    numbers of the others, which found no machine. `restarted`: sequences that lost their cache and began again, each time;
    `flips`: roles changed."""

    latencies: Latencies
    output_tokens: int
    ends_s: float
    energy_j: dict[str, float]
    busy: dict[str, float]
    power_w: NDArray[np.float64]
    unfinished: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    restarted: int = 0
    flips: int = 0

    @property
    def joules_per_token(self) -> float:
        return sum(self.energy_j.values()) / self.output_tokens

    def finished(self, arrivals: Arrivals) -> Arrivals:
        """The requests that `latencies` are of, out of the run's own list."""
        if not len(self.unfinished):
            return arrivals
        kept = np.delete(np.arange(len(arrivals)), self.unfinished)
        return Arrivals(arrivals.arrival_s[kept], arrivals.prompt_tokens[kept], arrivals.output_tokens[kept], arrivals.name)


def run_fleet(pools: Sequence[Pool], arrivals: Arrivals, *, seconds: int = 0, changes: Sequence[Change] = ()) -> FleetRun:
    """Deterministic. `seconds`: for how long each machine's mean draw per second is recorded. `changes`: machines that fail
    or change their role, in any order. Raises FleetError."""
    check_fleet(pools, arrivals)
    check_changes(pools, arrivals, changes)
    coming = COMING
    while True:
        fleet = new_fleet(
            pools,
            arrival_s=arrivals.arrival_s,
            prompt=arrivals.prompt_tokens,
            output=arrivals.output_tokens,
            seconds=seconds,
            coming_capacity=coming,
            changes=changes,
        )
        outcome = play_until(fleet, np.inf)
        if outcome != TOO_SMALL:
            break
        coming *= 4
        if coming > MAX_COMING:
            raise FleetError(f"over {MAX_COMING} sequences wait for one decode machine: lower the rate or add machines")
    assert outcome == COMPLETE and (changes or int(fleet.counters[DONE]) == len(arrivals)), "every request ends"
    return result_of(fleet, arrivals)


def check_fleet(pools: Sequence[Pool], arrivals: Arrivals) -> None:
    """Raises FleetError where the list cannot be served."""
    if len(arrivals) == 0:
        raise FleetError("the list holds no request; give one, or a higher rate")
    for pool in pools:
        _check_tables(pool.kind, int(arrivals.prompt_tokens.max()))
        if pool.role != PREFILL:
            _check_memory(pool.kind, arrivals)


def _check_tables(kind: ServerKind, longest_prompt: int) -> None:
    if len(kind.prefill_s) < longest_prompt + MAX_BATCH_TOKENS + MAX_BATCH_SEQUENCES + 1:  # a kernel would read past its end
        raise FleetError(f"the tables of {kind.name} end before the longest prompt; build them for this list")


def _check_memory(kind: ServerKind, arrivals: Arrivals) -> None:
    longest = int((arrivals.prompt_tokens + arrivals.output_tokens).max())
    if longest > kind.kv_room:
        raise FleetError(
            f"a request of {longest} tokens does not fit the {kind.kv_room} tokens of KV cache of {kind.name}: "
            "leave it out, or use servers with more memory"
        )


def check_changes(pools: Sequence[Pool], arrivals: Arrivals, changes: Sequence[Change]) -> None:
    """Raises FleetError where they cannot be played."""
    if len(changes) > MAX_CHANGES:
        raise FleetError(f"{len(changes)} failures and flips are more than the {MAX_CHANGES} of one run; leave some out")
    for change in changes:
        what = "failure" if isinstance(change, Failure) else "flip"
        if not 0 <= change.pool < len(pools):
            raise FleetError(f"a {what} names pool {change.pool}, and pools count from 0 to {len(pools) - 1}")
        pool = pools[change.pool]
        if not 0 <= change.server < pool.servers:
            raise FleetError(
                f"a {what} names server {change.server} of pool {change.pool}, whose servers count from 0 to {pool.servers - 1}"
            )
        if not 0 <= change.at_s < math.inf:
            raise FleetError(f"a {what} must come at a time from 0 s, not at {change.at_s:g} s")
        if isinstance(change, Failure):
            if not change.back_at_s > change.at_s:
                raise FleetError(f"a machine that fails at {change.at_s:g} s must be back later, not at {change.back_at_s:g} s")
            for kind in (pool.kind for pool in pools):  # what begins again has its own tokens in its prompt
                _check_tables(kind, int((arrivals.prompt_tokens + arrivals.output_tokens).max()) - 1)
        else:
            if change.to_role not in ROLE_NAMES or not 0 <= change.switch_s < math.inf:
                raise FleetError(f"a flip needs a role and a time to switch from 0 s, not {change.switch_s:g} s")
            if change.to_role != PREFILL:
                _check_memory(pool.kind, arrivals)


def result_of(fleet: FleetArrays, arrivals: Arrivals) -> FleetRun:
    """What a fleet whose run is over felt and drew."""
    requests, machines = fleet.requests, fleet.machines
    began = machines.first_role
    done = ~np.isnan(requests.done_s)
    output = arrivals.output_tokens[done]
    read = (requests.prompt_end_s, requests.done_s, requests.first_s)
    ttft_s, e2e_s, user_s = ((x - arrivals.arrival_s)[done] for x in read)
    ends_s = float(requests.done_s.max() if done.all() else machines.drawn_since_s.max())
    roles = [role for role in ROLE_NAMES if bool(np.any(began == role))]
    return FleetRun(
        latencies=Latencies(ttft_s * 1e3, (e2e_s - ttft_s) / output * 1e3, e2e_s * 1e3, user_s * 1e3),
        output_tokens=int(output.sum()),
        ends_s=ends_s,
        energy_j={ROLE_NAMES[role]: float(machines.energy_j[began == role].sum()) for role in roles},
        busy={ROLE_NAMES[role]: float(machines.busy_s[began == role].mean() / max(ends_s, LEAST_S)) for role in roles},
        power_w=fleet.power_w,
        unfinished=np.flatnonzero(~done),
        restarted=int(fleet.counters[RESTARTED]),
        flips=int(fleet.counters[FLIPPED]),
    )
