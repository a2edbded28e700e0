"""The reference model: splitwise-sim's rules, replayed event by event, slips included.

Splitwise's tables (arXiv:2311.18677) come from the public simulator Mutinifni/splitwise-sim. This is an implementation of
its rules of our own, kept for comparison: given the same arrivals it gives the same times. What it leaves out is known
and stays out here: power plays no part, links have no contention, chunks and grouped-query attention do not exist.

At arrival the cluster's scheduler picks the machines of prompt and tokens together. Split designs: the prompt machine with
the fewest pending tokens unless its queue is long, the token machine with the least promised memory unless it would be
full; else the same in the mixed pool; else a machine of the other pool turns mixed. Unsplit designs: the machine with the
fewest pending tokens takes both. A machine does the rest by itself (`machine`).
"""

from __future__ import annotations

import heapq

import numpy as np
from splitwatt_sim.jit import jit

from splitwatt_papers.reference.machine import begin, bytes_of, disturb, enter, fits, is_prompt, leave, tokens_of
from splitwatt_papers.reference.state import (
    BATCH,
    DONE,
    MAX_PENDING_TOKENS,
    MIXED_POOL,
    POOL,
    PROMPT_POOL,
    RETRY_S,
    TOKEN_POOL,
    WAITING,
    State,
    append,
    remove,
)

HAND_OFF_ENDS = 0
HAND_OFF_RETRIES = 1

COMPLETE = 0
TOO_SMALL = 1
STUCK = 2


@jit
def _least(s: State, pool: int, by_memory: bool) -> int:
    """The machine of the pool with the least promised memory, or the fewest pending tokens; the first of equals, -1 in an
    empty pool."""
    best = -1
    for i in range(s.pool_sizes[pool]):
        m = s.pools[pool, i]
        if best < 0:
            best = m
        elif by_memory:
            if s.machines[m].promised < s.machines[best].promised:
                best = m
        elif s.machines[m].pending_tokens < s.machines[best].pending_tokens:
            best = m
    return best


@jit
def _turn_mixed(s: State, pool: int, m: int) -> None:
    remove(s.pools, s.pool_sizes, pool, m)
    append(s.pools, s.pool_sizes, MIXED_POOL, m)


@jit
def _place(s: State, r: int) -> None:
    """Choose both machines of a request and book it there."""
    prompt_bytes, token_bytes = bytes_of(s, 2 * r), bytes_of(s, 2 * r + 1)
    prompt_at = -1
    for pool in (PROMPT_POOL, MIXED_POOL):
        m = _least(s, pool, False)
        queued = m >= 0 and s.sizes[WAITING, m] > 0
        if m >= 0 and not (queued and s.machines[m].pending_tokens + s.requests[r].prompt > MAX_PENDING_TOKENS):
            prompt_at = m
            break
    token_at = -1
    for pool in (TOKEN_POOL, MIXED_POOL):
        m = _least(s, pool, True)
        if m >= 0 and s.machines[m].promised + prompt_bytes + token_bytes < s.memory_max:
            token_at = m
            break
    if prompt_at < 0:
        prompt_at = _least(s, TOKEN_POOL, False)
        if prompt_at >= 0:
            _turn_mixed(s, TOKEN_POOL, prompt_at)
    if token_at < 0:
        token_at = _least(s, PROMPT_POOL, True)
        if token_at >= 0:
            _turn_mixed(s, PROMPT_POOL, token_at)
    if prompt_at < 0 or token_at < 0:
        prompt_at = -1
        for pool in (PROMPT_POOL, MIXED_POOL, TOKEN_POOL):
            m = _least(s, pool, False)
            if m >= 0 and (prompt_at < 0 or s.machines[m].pending_tokens < s.machines[prompt_at].pending_tokens):
                prompt_at = m
        token_at = prompt_at
    s.requests[r].prompt_at, s.requests[r].token_at = prompt_at, token_at
    s.machines[prompt_at].promised += prompt_bytes
    s.machines[token_at].promised += token_bytes + (prompt_bytes if token_at != prompt_at else 0)
    s.machines[prompt_at].pending_tokens += s.requests[r].prompt
    s.machines[token_at].pending_tokens += 1


@jit
def _place_unsplit(s: State, r: int) -> None:
    m = _least(s, TOKEN_POOL, False)
    s.requests[r].prompt_at, s.requests[r].token_at = m, m
    s.machines[m].promised += bytes_of(s, 2 * r) + bytes_of(s, 2 * r + 1)
    s.machines[m].pending_tokens += s.requests[r].prompt + 1


@jit
def _release(s: State, m: int, r: int) -> None:
    s.machines[m].memory -= s.requests[r].held
    s.machines[m].promised -= s.requests[r].held


@jit
def _hand_off(s: State, r: int, now_s: float, flows: list[tuple[float, int, int]]) -> None:
    """Start moving a prompt's KV cache, or try again later while the receiver has no memory for it."""
    m = s.requests[r].token_at
    if s.machines[m].memory + s.requests[r].held > s.memory_max:
        heapq.heappush(flows, (now_s + RETRY_S, HAND_OFF_RETRIES, r))
        return
    s.machines[m].memory += s.requests[r].held
    took_s = s.kv_bytes_per_token * s.requests[r].prompt / s.link_bytes_per_s
    heapq.heappush(flows, (now_s + took_s, HAND_OFF_ENDS, r))


@jit
def _finish(s: State, m: int, now_s: float, flows: list[tuple[float, int, int]]) -> None:
    """The run of iterations is over: account for its tokens, let finished tasks go."""
    count = 0
    for i in range(s.sizes[BATCH, m]):
        task = s.queues[BATCH, m, i]
        s.tasks[task].generated += int(s.machines[m].steps)
        owed = 1 if is_prompt(task) else s.requests[task // 2].output - 1
        if s.tasks[task].generated >= owed:  # a sequence that owes nothing may have run along
            s.scratch[count] = task
            count += 1
    for i in range(count):
        task = s.scratch[i]
        r = task // 2
        leave(s, m, task)
        if is_prompt(task):
            s.machines[m].pending_tokens -= s.requests[r].prompt
            s.requests[r].prompt_end_s = now_s
            if s.requests[r].token_at != m:
                _hand_off(s, r, now_s, flows)
        else:
            s.machines[m].pending_tokens -= 1
            s.requests[r].done_s = now_s
            _release(s, m, r)


@jit
def _go_on(s: State, m: int, now_s: float, flows: list[tuple[float, int, int]]) -> None:
    """Begin the next run; at once the one after it, where sequences owe no token."""
    while begin(s, m, now_s):
        _finish(s, m, now_s, flows)


@jit
def _arrive(s: State, m: int, task: int, now_s: float, flows: list[tuple[float, int, int]]) -> None:
    enter(s, m, task)
    if s.sizes[BATCH, m] > 0:
        disturb(s, m, tokens_of(s, task), now_s, is_prompt(task))
    elif fits(s, m, task):
        _go_on(s, m, now_s, flows)


@jit
def _hand_off_ends(s: State, r: int, now_s: float, flows: list[tuple[float, int, int]]) -> None:
    """The cache has moved: its sequence arrives, and the sender, who has room again, looks at its queue."""
    m = s.requests[r].prompt_at
    _release(s, m, r)
    _arrive(s, s.requests[r].token_at, 2 * r + 1, now_s, flows)
    if s.sizes[WAITING, m] == 0:
        return
    if s.sizes[BATCH, m] > 0:
        disturb(s, m, 1, now_s, False)
    elif fits(s, m, s.queues[WAITING, m, 0]):
        _go_on(s, m, now_s, flows)


@jit
def replay(s: State, split: bool) -> int:
    """Run until every request is done. Fills `prompt_end_s` and `done_s`. TOO_SMALL: the queues' capacity did not do, start
    again with a larger one."""
    count, machines = len(s.requests), len(s.machines)
    capacity = s.queues.shape[2]
    flows = [(np.inf, 0, 0)]
    arrived = 0
    while True:
        at_s, m = np.inf, -1
        for k in range(machines):
            if s.machines[k].ends_s < at_s:
                at_s, m = s.machines[k].ends_s, k
        flow_s = flows[0][0]
        if arrived < count and s.requests[arrived].arrival_s <= at_s and s.requests[arrived].arrival_s <= flow_s:
            r, now_s = arrived, s.requests[arrived].arrival_s
            arrived += 1
            if split:
                _place(s, r)
            else:
                _place_unsplit(s, r)
            prompt_at, token_at = s.requests[r].prompt_at, s.requests[r].token_at
            if 2 * s.sizes[POOL, prompt_at] + 4 > capacity or 2 * s.sizes[POOL, token_at] + 4 > capacity:
                return TOO_SMALL
            _arrive(s, prompt_at, 2 * r, now_s, flows)
            if prompt_at == token_at:
                _arrive(s, token_at, 2 * r + 1, now_s, flows)
        elif flow_s < at_s:
            _, what, r = heapq.heappop(flows)
            if what == HAND_OFF_RETRIES:
                _hand_off(s, r, flow_s, flows)
                continue
            if 2 * s.sizes[POOL, s.requests[r].token_at] + 4 > capacity:
                return TOO_SMALL
            _hand_off_ends(s, r, flow_s, flows)
        elif m >= 0:
            _finish(s, m, at_s, flows)
            _go_on(s, m, at_s, flows)
        else:
            for task in range(2 * count):
                if s.tasks[task].status != DONE:
                    return STUCK
            return COMPLETE
