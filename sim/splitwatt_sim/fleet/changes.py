"""Machines that fail and come back, and machines that change their role, while a run goes on.

Rules. A change comes after all else of its moment. What it sets free is placed anew then, in the order of arrival, by the
router that places arrivals. Where no open machine has the role, requests wait for the next change; those that nothing can
help any more are left unfinished when nothing else can happen.

- A machine that fails draws 0 W, and what it was doing is lost: the iteration under way, its prompt queue, its batch, the
  caches that wait for it or are on their way to it or from it. A prompt begins again from its first token. A sequence begins
  again with a prompt of all tokens there are, its own included; the tokens it still owes and the memory it needs in the end
  stay what they were, and its first token is the one that its user saw. A prompt queued elsewhere keeps its place and gets
  another decode machine: the decode machine with the least promised memory, else such a mixed one. If there is none when it
  ends, its cache is lost.
- A machine that changes its role takes nothing new, finishes what was placed at it, sends its last cache, and switches for
  the time that it was given, drawing what an idle one draws. Its kind stays: tables, cap, memory.
- A flip of a machine that is down is done when it is back; one that fails while it drains or switches is back in its new
  role. Of two flips before it is open the later role counts, of two failures the later return.

Protected: every token is counted once, by whoever made it first.
"""

from __future__ import annotations

import numpy as np

from splitwatt_sim.fleet.kernel import (
    CHANGES,
    begin_again,
    drained,
    least,
    next_guest_s,
    route,
    run_until,
    steps_s,
    steps_until,
)
from splitwatt_sim.fleet.state import (
    ARRIVED,
    DECODE,
    DECODING,
    DOWN,
    DRAINING,
    DRAINS,
    FAIL,
    FLIPPED,
    IDLE,
    MIXED,
    NOBODY,
    OLDEST,
    OPEN,
    PLAYED,
    PREFILLING,
    FleetArrays,
    draw,
    push,
    regroup,
)
from splitwatt_sim.jit import inlined, lean


def play_until(f: FleetArrays, until_s: float) -> int:
    """`run_until` with all changes on the way: COMPLETE or TOO_SMALL."""
    while (outcome := run_until(f, until_s)) == CHANGES:
        change(f)
    return outcome


@inlined
def _forget(f: FleetArrays, m: int, r: int, generated: int) -> None:
    """Take back what was promised to a request at its decode machine, and let it begin again."""
    f.promised[m] -= f.requests[r].prompt + f.requests[r].output
    f.pending[m] -= 1
    begin_again(f, r, generated)


@inlined
def _stop(f: FleetArrays, m: int, at_s: float) -> None:
    """Account for the iterations that are over; the one under way is lost, and was work."""
    span_s = at_s - f.machines[m].since_s
    if f.machines[m].doing == DECODING:
        k = steps_until(f, m, span_s)
        if k > 0 and steps_s(f, m, k) > span_s:
            k -= 1
        f.machines[m].iteration += k
        f.machines[m].busy_s += span_s
    elif f.machines[m].doing == PREFILLING:
        f.machines[m].busy_s -= f.next_s[m] - at_s
    draw(f, m, at_s, 0.0)
    r = f.machines[m].fresh
    while r != NOBODY:
        if f.requests[r].first_s > at_s:
            f.requests[r].first_s = np.nan
        r = f.requests[r].behind
    f.machines[m].fresh = NOBODY


@inlined
def _lose_own(f: FleetArrays, m: int) -> None:
    """Its batch, the caches that wait for it or come to it, and its prompt queue."""
    for i in range(f.machines[m].finishing):
        r = f.finish_item[m, i]
        _forget(f, m, r, int(f.requests[r].output - (f.finish_key[m, i] - f.machines[m].iteration)))
    for i in range(f.machines[m].coming):
        _forget(f, m, f.coming_item[m, i], 1)
    r = f.machines[m].head
    while r != NOBODY:
        behind, to = f.requests[r].behind, f.requests[r].decode_at
        if to == NOBODY:
            begin_again(f, r, 0)
        else:
            _forget(f, to, r, 0)
        r = behind


@inlined
def _lose_elsewhere(f: FleetArrays, m: int, other: int, at_s: float) -> None:
    """Caches that are on their way from it to another machine, and the places kept at it for prompts queued there."""
    count, kept = f.machines[other].coming, 0
    for i in range(count):
        ready_s, r = f.coming_s[other, i], f.coming_item[other, i]
        if ready_s > at_s and f.requests[r].prompt_at == m:
            _forget(f, other, r, 1)
        else:  # never behind what is still to be read
            push(f.coming_s[other], f.coming_item[other], kept, ready_s, r)
            kept += 1
    f.machines[other].coming = kept
    if kept < count and f.machines[other].doing == IDLE and f.machines[other].head == NOBODY:
        f.next_s[other] = next_guest_s(f, other)
    r = f.machines[other].head
    while r != NOBODY:
        if f.requests[r].decode_at == m:
            f.requests[r].decode_at = NOBODY
        r = f.requests[r].behind


@lean
def _fail(f: FleetArrays, m: int, at_s: float, back_s: float) -> None:
    if f.machines[m].state == DOWN:
        f.opens_s[m] = max(f.opens_s[m], back_s)
        return
    _stop(f, m, at_s)
    _lose_own(f, m)
    for other in range(len(f.machines)):
        if other != m:
            _lose_elsewhere(f, m, other, at_s)
    f.pending[m] = 0
    f.promised[m] = 0
    f.next_s[m] = np.inf
    f.machines[m].head = NOBODY
    f.machines[m].chunk = 0
    f.machines[m].batch = 0
    f.machines[m].context = 0
    f.machines[m].kv_used = 0
    f.machines[m].finishing = 0
    f.machines[m].coming = 0
    f.machines[m].link_free_s = 0.0
    f.machines[m].doing = IDLE
    if f.machines[m].state == DRAINING:
        f.counters[DRAINS] -= 1
    f.machines[m].state = DOWN
    f.opens_s[m] = back_s


@inlined
def _open(f: FleetArrays, m: int, at_s: float) -> None:
    """It is back, or has its new role."""
    if f.machines[m].to_role != NOBODY:
        f.machines[m].role = f.machines[m].to_role
        f.machines[m].to_role = NOBODY
        f.counters[FLIPPED] += 1
    if f.machines[m].state == DOWN:
        draw(f, m, at_s, f.idle_w[f.machines[m].kind])
    f.machines[m].state = OPEN
    f.opens_s[m] = np.inf


@lean
def _place(f: FleetArrays, at_s: float) -> None:
    """Place those who wait, and find decode machines for prompts that lost theirs."""
    while f.counters[OLDEST] < f.counters[ARRIVED] and not np.isnan(f.requests[f.counters[OLDEST]].done_s):
        f.counters[OLDEST] += 1
    for r in range(f.counters[OLDEST], f.counters[ARRIVED]):
        if not np.isnan(f.requests[r].done_s):
            continue
        if f.requests[r].prompt_at == NOBODY:
            route(f, r, at_s)
        elif f.requests[r].decode_at == NOBODY:
            to = least(f, DECODE, f.promised)
            if to == NOBODY:
                to = least(f, MIXED, f.promised)
            if to != NOBODY:
                f.requests[r].decode_at = to
                f.promised[to] += f.requests[r].prompt + f.requests[r].output
                f.pending[to] += 1


@lean
def change(f: FleetArrays) -> None:
    """Play the change that is due at `next_change_s`. Of one moment machines open first, then events as they were given."""
    at_s = f.next_change_s[0]
    m = 0
    for other in range(len(f.machines)):
        if f.opens_s[other] < f.opens_s[m]:
            m = other
    event = f.events[f.counters[PLAYED]]
    if f.opens_s[m] <= event.at_s:
        _open(f, m, at_s)
    else:
        f.counters[PLAYED] += 1
        m = event.machine
        if event.what == FAIL:
            _fail(f, m, at_s, event.back_s)
        else:
            f.machines[m].to_role = event.to_role
            f.machines[m].switch_s = event.switch_s
            if f.machines[m].state == OPEN:
                f.machines[m].state = DRAINING
                f.counters[DRAINS] += 1
    regroup(f.takes, f.span, f.machines)
    _place(f, at_s)
    f.next_change_s[0] = f.events[f.counters[PLAYED]].at_s
    for other in range(len(f.machines)):
        f.next_change_s[0] = min(f.next_change_s[0], f.opens_s[other])
    drained(f, at_s)
