"""The fleet simulator's event loop.

Theory. Arrivals are the only events that touch more than one machine, so no queue of all events is kept: at each arrival
every machine whose `next_s` has come is brought up to that moment, prompts first, for they are what sequences come from.
Between two changes of its batch a machine runs equal iterations but for the context that grows by one token per sequence
and step, so the time of k steps has a closed form,

    T(k) = k * (decode_s[B] + kv_s * C) + kv_s * B * k * (k - 1) / 2,

and a sequence of n tokens is done n iterations after it joined, whatever these cost: a heap by iteration, O(log B) a change
and nothing per token. Prefill takes an iteration of its own, with chunks up to MAX_BATCH_TOKENS less the sequences that
decode along. Who arrives waits for the next iteration boundary.

Protected: time never runs backwards on a machine; every token is counted once; energy is the integral of the draw, exactly.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from splitwatt_sim.fleet.state import (
    ARRIVED,
    DECODE,
    DECODING,
    DONE,
    DRAINING,
    DRAINS,
    FLIPPED,
    IDLE,
    MAX_BATCH_SEQUENCES,
    MAX_BATCH_TOKENS,
    MIXED,
    NOBODY,
    OVERFLOWS,
    PREFILL,
    PREFILLING,
    RESTARTED,
    ROLES,
    SWITCHING,
    FleetArrays,
    draw,
    pop,
    push,
    show_first,
)
from splitwatt_sim.jit import inlined, lean

MIXED_SLOWDOWN = 1.1
"""An iteration with prompts and sequences takes this times a prefill of as many tokens (splitwise-sim's measured rule)."""
LONG_QUEUE_TOKENS = 8192

COMPLETE = 0
TOO_SMALL = 1
CHANGES = 2


@inlined
def steps_s(f: FleetArrays, m: int, k: int) -> float:
    """Time of the first k steps of the run under way."""
    x = f.machines[m]
    first_s = f.decode_s[x.kind, x.batch] + f.kv_s[x.kind] * x.context
    return float(k * first_s + f.kv_s[x.kind] * x.batch * (k * (k - 1.0)) / 2.0)


@inlined
def steps_until(f: FleetArrays, m: int, span_s: float) -> int:
    """The least k with T(k) >= span_s: the boundary at which somebody who comes then is let in."""
    x = f.machines[m]
    if span_s <= 0.0:
        return 0
    first_s = f.decode_s[x.kind, x.batch] + f.kv_s[x.kind] * x.context
    growth_s = f.kv_s[x.kind] * x.batch
    if growth_s > 0.0:
        half = first_s - growth_s / 2.0
        k = int((math.sqrt(half * half + 2.0 * growth_s * span_s) - half) / growth_s)
    else:
        k = int(span_s / first_s)
    k = max(k - 1, 0)
    while steps_s(f, m, k) < span_s:
        k += 1
    return k


@inlined
def _admit(f: FleetArrays, m: int, at_s: float) -> None:
    """Let sequences in whose cache is there, in that order, while batch and memory have room for the first of them."""
    while f.machines[m].coming > 0 and f.coming_s[m, 0] <= at_s:
        r = f.coming_item[m, 0]
        need = f.requests[r].prompt + f.requests[r].output
        full = f.machines[m].kv_used + need > f.kv_room[f.machines[m].kind]
        if f.machines[m].batch > 0 and (full or f.machines[m].batch == MAX_BATCH_SEQUENCES):
            return
        pop(f.coming_s[m], f.coming_item[m], f.machines[m].coming)
        f.machines[m].coming -= 1
        _join(f, m, r, at_s)


@inlined
def _join(f: FleetArrays, m: int, r: int, at_s: float) -> None:
    """A sequence joins the batch, for every token but the first."""
    key = f.machines[m].iteration + f.requests[r].output - 1
    push(f.finish_key[m], f.finish_item[m], f.machines[m].finishing, key, r)
    f.machines[m].finishing += 1
    f.machines[m].batch += 1
    f.machines[m].context += f.requests[r].prompt + 1
    f.machines[m].kv_used += f.requests[r].prompt + f.requests[r].output
    if np.isnan(f.requests[r].first_s):
        f.requests[r].behind = f.machines[m].fresh
        f.machines[m].fresh = r


@inlined
def _done(f: FleetArrays, m: int, r: int, at_s: float) -> None:
    """`m`: the machine that its sequence was placed at, NOBODY where that one failed before."""
    f.requests[r].done_s = at_s
    if m != NOBODY:
        f.promised[m] -= f.requests[r].prompt + f.requests[r].output
        f.pending[m] -= 1
    f.counters[DONE] += 1


@inlined
def _finish_until(f: FleetArrays, m: int, at_s: float) -> None:
    """Let those go whose last iteration is over."""
    while f.machines[m].finishing > 0 and f.finish_key[m, 0] <= f.machines[m].iteration:
        r = pop(f.finish_key[m], f.finish_item[m], f.machines[m].finishing)
        f.machines[m].finishing -= 1
        f.machines[m].batch -= 1
        tokens = f.requests[r].prompt + f.requests[r].output
        f.machines[m].context -= tokens
        f.machines[m].kv_used -= tokens
        _done(f, m, r, at_s)


@inlined
def begin_again(f: FleetArrays, r: int, generated: int) -> None:
    """The cache of a request is lost, after so many tokens since it last began: it waits to be placed, with a prompt of all
    tokens that are there by now. What it takes of memory in the end stays the same."""
    f.requests[r].prompt += generated
    f.requests[r].output -= generated
    f.requests[r].left = f.requests[r].prompt
    f.requests[r].prompt_at = NOBODY
    f.requests[r].decode_at = NOBODY
    f.requests[r].behind = NOBODY
    if generated > 0:
        f.counters[RESTARTED] += 1


@inlined
def _hand_off(f: FleetArrays, m: int, r: int, at_s: float) -> None:
    """A prompt is prefilled, and its next token is there. If it owes more, its sequence joins here, or its cache sets out
    over this machine's link."""
    if np.isnan(f.requests[r].prompt_end_s):  # of one that begins again the first token is what its user saw first
        f.requests[r].prompt_end_s = at_s
    to = f.requests[r].decode_at
    if (f.requests[r].output == 1 or to == m) and np.isnan(f.requests[r].first_s):
        f.requests[r].first_s = at_s
    if f.requests[r].output == 1:
        _done(f, to, r, at_s)
        return
    if to == NOBODY:
        begin_again(f, r, 1)
        return
    ready_s = at_s
    if to != m:
        kind = f.machines[m].kind
        took_s = f.hand_off[kind, 1]
        if f.requests[r].prompt < f.hand_off[kind, 2]:
            took_s += f.hand_off[kind, 0] * f.requests[r].prompt
        ready_s = max(at_s, f.machines[m].link_free_s) + took_s
        f.machines[m].link_free_s = ready_s
        ready_s += f.hand_off[kind, 3]
    if f.machines[to].coming == f.coming_s.shape[1]:
        f.counters[OVERFLOWS] += 1
        return
    push(f.coming_s[to], f.coming_item[to], f.machines[to].coming, ready_s, r)
    f.machines[to].coming += 1
    if to != m and f.coming_item[to, 0] == r:  # who is not the first waits for those before, not for a boundary
        _expect(f, to, ready_s)


@inlined
def _end_prefill(f: FleetArrays, m: int, at_s: float) -> None:
    """The iteration with prompts is over: every sequence has one token more, the chunk's tokens are prefilled."""
    f.machines[m].fresh = NOBODY
    if f.machines[m].batch > 0:
        f.machines[m].context += f.machines[m].batch
        _finish_until(f, m, at_s)
    chunk = f.machines[m].chunk
    f.pending[m] -= chunk
    while chunk > 0:
        r = f.machines[m].head
        took = min(chunk, f.requests[r].left)
        chunk -= took
        f.requests[r].left -= took
        if f.requests[r].left == 0:
            f.machines[m].head = f.requests[r].behind
            _hand_off(f, m, r, at_s)
    f.machines[m].chunk = 0


@inlined
def _chunk(f: FleetArrays, m: int, at_s: float) -> int:
    """Prompt tokens of the next iteration. Prompt machines take whole prompts, the first of any length; mixed ones cut."""
    room = MAX_BATCH_TOKENS - f.machines[m].batch
    chunk, r = 0, f.machines[m].head
    while r != NOBODY and f.requests[r].arrival_s <= at_s:
        left = f.requests[r].left
        if chunk + left > room:
            if f.machines[m].role == MIXED:
                return int(room)
            return int(left) if chunk == 0 else chunk
        chunk += int(left)
        r = f.requests[r].behind
    return chunk


@inlined
def _boundary(f: FleetArrays, m: int, at_s: float) -> None:
    """An iteration ended, or somebody came to an idle machine: decide what runs next."""
    if f.machines[m].coming > 0:
        _admit(f, m, at_s)
    x = f.machines[m]
    f.machines[m].since_s = at_s
    chunk = _chunk(f, m, at_s)
    if chunk > 0:
        if x.batch == 0:
            took_s = f.prefill_s[x.kind, chunk]
        else:
            took_s = MIXED_SLOWDOWN * f.prefill_s[x.kind, chunk + x.batch] + f.kv_s[x.kind] * x.context
        f.machines[m].chunk = chunk
        f.machines[m].doing = PREFILLING
        f.next_s[m] = at_s + took_s
        show_first(f, m, f.next_s[m])
        f.machines[m].busy_s += took_s
        draw(f, m, at_s, f.prefill_w[x.kind, chunk])
        return
    if x.batch > 0:
        f.machines[m].doing = DECODING
        draw(f, m, at_s, f.decode_w[x.kind, x.batch])
        show_first(f, m, at_s + steps_s(f, m, 1))
        _plan(f, m)
        return
    f.machines[m].doing = IDLE
    draw(f, m, at_s, f.idle_w[x.kind])
    f.next_s[m] = next_guest_s(f, m)


@inlined
def next_guest_s(f: FleetArrays, m: int) -> float:
    """When the next prompt or sequence is there; those that memory keeps out are waited for by nobody."""
    at_s = np.inf
    if f.machines[m].coming > 0:
        full = f.machines[m].batch > 0 and f.coming_s[m, 0] <= f.machines[m].since_s
        if not full:
            at_s = f.coming_s[m, 0]
    if f.machines[m].head != NOBODY:
        at_s = min(at_s, f.requests[f.machines[m].head].arrival_s)
    return at_s


@inlined
def _plan(f: FleetArrays, m: int) -> None:
    """Where the run of steps that begins now will end: with its first sequence, or for the next guest."""
    k = int(f.finish_key[m, 0] - f.machines[m].iteration)
    ends_s = f.machines[m].since_s + steps_s(f, m, k)
    f.machines[m].plan, f.next_s[m] = k, ends_s
    guest_s = next_guest_s(f, m)
    if guest_s < ends_s:
        _expect(f, m, guest_s)


@inlined
def _expect(f: FleetArrays, m: int, guest_s: float) -> None:
    """Somebody comes at `guest_s`: an idle machine wakes then, a run of steps ends at the boundary that follows."""
    if guest_s >= f.next_s[m] or f.machines[m].doing == PREFILLING:
        return
    if f.machines[m].doing == IDLE:
        f.next_s[m] = guest_s
        return
    k = steps_until(f, m, guest_s - f.machines[m].since_s)
    if k < f.machines[m].plan:
        f.machines[m].plan = k
        f.next_s[m] = f.machines[m].since_s + steps_s(f, m, k)


@inlined
def _end_run(f: FleetArrays, m: int, at_s: float) -> None:
    """The planned steps are over: count them, and let those go who are done."""
    k = f.machines[m].plan
    if k > 0:
        f.machines[m].fresh = NOBODY
    f.machines[m].iteration += k
    f.machines[m].context += k * f.machines[m].batch
    f.machines[m].busy_s += at_s - f.machines[m].since_s
    _finish_until(f, m, at_s)


@inlined
def _advance(f: FleetArrays, m: int, until_s: float) -> None:
    """Bring one machine up to a moment."""
    while f.next_s[m] <= until_s and f.next_s[m] < np.inf:
        at_s = f.next_s[m]
        if f.machines[m].doing == PREFILLING:
            f.machines[m].iteration += 1
            _end_prefill(f, m, at_s)
        elif f.machines[m].doing == DECODING:
            _end_run(f, m, at_s)
        _boundary(f, m, at_s)


@inlined
def least(f: FleetArrays, role: int, load: NDArray[np.int64]) -> int:
    """The open machine of this role with the least load int64[M]; the first of equals, or NOBODY."""
    best, ends = f.span[role, 0], f.span[role, 1]
    if best == ends:
        return NOBODY
    lowest = load[best]
    if f.span[role, 2] == ends - best:  # nobody else between, so the loop needs no branch: it is the hottest one
        for m in range(best + 1, ends):
            if load[m] < lowest:
                best, lowest = m, load[m]
    else:
        for m in range(best + 1, ends):
            if load[m] < lowest and f.takes[m] == role:
                best, lowest = m, load[m]
    return int(best)


@inlined
def route(f: FleetArrays, r: int, now_s: float) -> None:
    """Join the shortest queue. A mixed machine takes a request where there is no split pool, or where the best prompt
    machine's queue is long or no decode machine has room, and then only if its own queue is the shorter one: nobody waits
    longer than without the mixed pool. Where no machine is open for it, a request waits for the next change."""
    prompt_at, mixed_at = least(f, PREFILL, f.pending), least(f, MIXED, f.pending)
    decode_at = least(f, DECODE, f.promised)
    prompt, need = f.requests[r].prompt, f.requests[r].prompt + f.requests[r].output
    if min(prompt_at, decode_at) == NOBODY:
        prompt_at = decode_at = mixed_at
        if mixed_at == NOBODY:
            return
    elif mixed_at != NOBODY:
        long = f.pending[prompt_at] + prompt > LONG_QUEUE_TOKENS
        full = f.promised[decode_at] + need > f.kv_room[f.machines[decode_at].kind]
        if (long or full) and f.pending[mixed_at] < f.pending[prompt_at]:
            prompt_at = decode_at = mixed_at
    f.requests[r].prompt_at = prompt_at
    f.requests[r].decode_at = decode_at
    f.promised[decode_at] += need
    f.pending[decode_at] += 1
    f.pending[prompt_at] += prompt
    if f.machines[prompt_at].head == NOBODY:
        f.machines[prompt_at].head = r
    else:
        f.requests[f.machines[prompt_at].tail].behind = r
    f.machines[prompt_at].tail = r
    _expect(f, prompt_at, now_s)


@inlined
def _settle(f: FleetArrays, m: int, at_s: float) -> None:
    """Account for what was drawn and for the steps that were done by now. The step under way keeps its time; those after it
    ask the tables again, which may be others by then."""
    draw(f, m, at_s, f.machines[m].draw_w)
    if f.machines[m].doing != DECODING:
        return
    k = max(steps_until(f, m, at_s - f.machines[m].since_s) - 1, 0)
    took_s = steps_s(f, m, k)
    f.machines[m].busy_s += took_s
    f.machines[m].since_s += took_s
    f.machines[m].iteration += k
    f.machines[m].context += k * f.machines[m].batch
    f.machines[m].plan = 1
    f.next_s[m] = f.machines[m].since_s + steps_s(f, m, 1)


@lean
def drained(f: FleetArrays, at_s: float) -> None:
    """Machines that drain and have nothing left begin to switch now, or when their last cache has left."""
    for m in range(len(f.machines)):
        if f.machines[m].state == DRAINING and f.pending[m] == 0:
            f.machines[m].state = SWITCHING
            f.counters[DRAINS] -= 1
            f.opens_s[m] = max(at_s, f.machines[m].link_free_s) + f.machines[m].switch_s
            f.next_change_s[0] = min(f.next_change_s[0], f.opens_s[m])


@lean
def run_until(f: FleetArrays, until_s: float) -> int:
    """Take in every request that arrives by then, and bring every machine up to that moment; `until_s` inf: until all is
    done, or nothing can happen any more. May be called again with a later time, and after tables were changed between two
    calls: these count from each machine's next iteration on. CHANGES: it stopped at `next_change_s`, after all else of that
    moment; `changes.change` must be called before it is called again."""
    count = len(f.requests)
    while True:
        r = f.counters[ARRIVED]
        arrives = r < count and f.requests[r].arrival_s <= until_s
        now_s = f.requests[r].arrival_s if arrives else until_s
        changes = steps = False
        if f.next_change_s[0] <= now_s and f.next_change_s[0] < np.inf and not (arrives and f.next_change_s[0] == now_s):
            now_s, arrives, changes = f.next_change_s[0], False, True
        if f.counters[DRAINS] > 0:  # the moment of its last token matters to others, so nobody goes beyond it
            soonest_s = np.inf
            for m in range(len(f.machines)):
                soonest_s = min(soonest_s, f.next_s[m])
            if soonest_s < now_s:
                now_s, arrives, changes, steps = soonest_s, False, False, True
        passes = 1 if f.counters[FLIPPED] == 0 else ROLES
        for role in range(passes):  # by role: sequences come from prompts; machines are numbered so until roles change
            for m in range(len(f.machines)):
                if f.next_s[m] <= now_s and (passes == 1 or f.machines[m].role == role):
                    _advance(f, m, now_s)
        if f.counters[OVERFLOWS] > 0:
            return TOO_SMALL
        if f.counters[DRAINS] > 0:
            drained(f, now_s)
        if arrives:
            route(f, r, now_s)
            f.counters[ARRIVED] += 1
        elif changes and not (until_s == np.inf and f.counters[DONE] == count):
            return CHANGES
        elif not steps:
            break
    if until_s == np.inf:  # the last token is the last change of any machine's draw
        until_s = 0.0
        for m in range(len(f.machines)):
            until_s = max(until_s, f.machines[m].drawn_since_s)
        if f.counters[DONE] < count:
            until_s = max(until_s, f.requests[count - 1].arrival_s)
    for m in range(len(f.machines)):
        _settle(f, m, until_s)
    return COMPLETE
