"""Another kind for one machine while it runs: its cap or clock changed, and with it how fast it is and what it draws.

Theory. The share of the iteration under way that is left stays the same, and takes the new kind's time:

    ends = now + (ended - now) * new time / old time,

for a prefill iteration and for one decode step alike; what it draws from now on is the new kind's. So work is neither lost
nor done twice, and no draw outlives the cap that allowed it. Called between two calls of `run_until`, which has counted
all whole steps before, so that at most one step is under way.

Protected: energy stays the integral of the draw, exactly; an iteration counts once; nothing ends in the past.
"""

from __future__ import annotations

from splitwatt_sim.fleet.kernel import MIXED_SLOWDOWN
from splitwatt_sim.fleet.state import DECODING, NOBODY, PREFILLING, FleetArrays


def retable(f: FleetArrays, m: int, kind: int, at_s: float) -> None:
    """Machine `m` is of kind `kind` (a row of the tables) from `at_s` on, the moment that `run_until` has just reached."""
    machines = f.machines
    assert machines.drawn_since_s[m] == at_s, "a machine changes its kind in the moment that the run has reached"
    old = int(machines.kind[m])
    if machines.doing[m] == PREFILLING:
        ends_s = at_s + (f.next_s[m] - at_s) * _prefill_s(f, m, kind) / _prefill_s(f, m, old)
        machines.busy_s[m] += ends_s - f.next_s[m]  # it was counted when the iteration began
        f.next_s[m] = ends_s
        machines.draw_w[m] = f.prefill_w[kind, machines.chunk[m]]
    elif machines.doing[m] == DECODING:
        assert machines.plan[m] == 1, "steps that are over were counted"
        done = (at_s - machines.since_s[m]) / _step_s(f, m, old)
        # As if the step had been of the new kind from its beginning: whoever asks how many steps are over is told none.
        since_s = at_s - done * _step_s(f, m, kind)
        machines.busy_s[m] += since_s - machines.since_s[m]
        machines.since_s[m] = since_s
        f.next_s[m] = max(since_s + _step_s(f, m, kind), at_s)
        machines.draw_w[m] = f.decode_w[kind, machines.batch[m]]
    elif machines.draw_w[m] > 0.0:  # who draws nothing is switched off
        machines.draw_w[m] = f.idle_w[kind]
    machines.kind[m] = kind
    r = int(machines.fresh[m])
    while r != NOBODY:
        if f.requests.first_s[r] > at_s:
            f.requests.first_s[r] = f.next_s[m]
        r = int(f.requests.behind[r])


def _step_s(f: FleetArrays, m: int, kind: int) -> float:
    return float(f.decode_s[kind, f.machines.batch[m]] + f.kv_s[kind] * f.machines.context[m])


def _prefill_s(f: FleetArrays, m: int, kind: int) -> float:
    """Of the whole iteration, as the kernel counts it when one begins."""
    chunk, batch = f.machines.chunk[m], f.machines.batch[m]
    if batch == 0:
        return float(f.prefill_s[kind, chunk])
    return float(MIXED_SLOWDOWN * f.prefill_s[kind, chunk + batch] + f.kv_s[kind] * f.machines.context[m])
