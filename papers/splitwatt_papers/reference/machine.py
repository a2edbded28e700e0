"""One machine of the reference model: which tasks its next iteration runs, and how long that takes.

Iterations are simulated in runs: a batch of sequences goes on until the first of them finishes, unless a task arrives;
then the run is cut at the next boundary. The order of every queue is part of the law: which task starts when several
could is what the percentiles hang on.
"""

from __future__ import annotations

import numpy as np
from splitwatt_sim.jit import inlined, jit

from splitwatt_papers.reference.state import (
    BATCH,
    BLOCKED,
    BLOCKED_QUEUE,
    DONE,
    MAX_BATCH_TASKS,
    MAX_BATCH_TOKENS,
    MAX_PASSED_OVER,
    MIXED_POOL,
    POOL,
    PROMPTS,
    QUEUED,
    RUNNING,
    STAMP,
    WAITING,
    State,
    append,
    insert,
    remove,
)


@inlined
def is_prompt(task: int) -> bool:
    return task % 2 == 0


@inlined
def tokens_of(s: State, task: int) -> int:
    """Tokens the task adds to one iteration."""
    return int(s.requests[task // 2].prompt) if is_prompt(task) else 1


@inlined
def bytes_of(s: State, task: int) -> int:
    """KV cache the task takes when it first runs: the prompt and its first token, or the tokens after that."""
    r = task // 2
    return int(s.kv_bytes_per_token * (s.requests[r].prompt + 1 if is_prompt(task) else s.requests[r].output - 1))


@inlined
def first_task(s: State, m: int, r: int) -> int:
    """What a request in the machine's pool waits for or runs there: its prompt while that is here, else its tokens."""
    return 2 * r if s.requests[r].prompt_at == m and s.tasks[2 * r].status != DONE else 2 * r + 1


@jit
def _enqueue(s: State, m: int, task: int) -> None:
    """Sorted insert by (times passed over, arrival). The keys of those who wait change meanwhile, so the queue is not
    always sorted; where a binary search then lands is part of the reference."""
    r = task // 2
    low, high = 0, s.sizes[WAITING, m]
    while low < high:
        middle = (low + high) // 2
        other = s.queues[WAITING, m, middle]
        before = s.tasks[task].passed_over < s.tasks[other].passed_over or (
            s.tasks[task].passed_over == s.tasks[other].passed_over and s.requests[r].arrival_s < s.requests[other // 2].arrival_s
        )
        if before:
            high = middle
        else:
            low = middle + 1
    insert(s.queues[WAITING], s.sizes[WAITING], m, low, task)
    if is_prompt(task):
        append(s.queues[PROMPTS], s.sizes[PROMPTS], m, task)


@jit
def _join_pool(s: State, m: int, r: int) -> None:
    at = s.sizes[POOL, m]
    while at > 0 and s.requests[s.queues[POOL, m, at - 1]].arrival_s > s.requests[r].arrival_s:
        at -= 1
    insert(s.queues[POOL], s.sizes[POOL], m, at, r)


@jit
def _select(s: State, m: int) -> int:
    """Fill `scratch` with the next batch and return its size: tasks passed over often, prompts, preempted sequences, running
    ones, new ones. Marks every chosen task and request with a new stamp. The first task of a batch may exceed the tokens."""
    s.counters[STAMP] += 1
    stamp = s.counters[STAMP]
    count, tokens, memory = 0, 0, s.machines[m].memory
    for group in range(5):
        if group == 0:
            length = s.sizes[WAITING, m]
        elif group == 1:
            length = s.sizes[PROMPTS, m]
        elif group == 2:
            length = s.sizes[BLOCKED_QUEUE, m]
        elif group == 3:
            length = s.sizes[BATCH, m]
        else:
            length = s.sizes[POOL, m]
        for i in range(length):
            if group == 0:
                task = s.queues[WAITING, m, i]
                if s.tasks[task].passed_over < MAX_PASSED_OVER:
                    break
            elif group == 1:
                task = s.queues[PROMPTS, m, i]
            elif group == 2:
                task = s.queues[BLOCKED_QUEUE, m, i]
            elif group == 3:
                task = s.queues[BATCH, m, i]
            else:
                task = first_task(s, m, s.queues[POOL, m, i])
            if count == MAX_BATCH_TASKS:
                break
            taken = s.tasks[task - task % 2].stamp == stamp
            if group == 4 and taken:
                continue
            if count > 0 and tokens + tokens_of(s, task) > MAX_BATCH_TOKENS:
                break
            if taken:
                continue
            if s.tasks[task].status == QUEUED:
                if memory + bytes_of(s, task) > s.memory_max:
                    if group == 0:
                        continue
                    break
                memory += bytes_of(s, task)
            s.tasks[task - task % 2].stamp = stamp  # one task of a request at a time
            s.scratch[count] = task
            count += 1
            tokens += tokens_of(s, task)
    s.machines[m].batch_tokens = tokens
    return count


@jit
def _form_batch(s: State, m: int) -> None:
    """Preempt who is not chosen, take in who is, and count everybody who is passed over."""
    count = _select(s, m)
    stamp = s.counters[STAMP]
    kept = 0
    for i in range(s.sizes[BATCH, m]):
        task = s.queues[BATCH, m, i]
        if s.tasks[task - task % 2].stamp == stamp:
            s.queues[BATCH, m, kept] = task
            kept += 1
        else:
            s.tasks[task].status = BLOCKED
            s.tasks[task].in_batch = False
            _enqueue(s, m, task)
            append(s.queues[BLOCKED_QUEUE], s.sizes[BLOCKED_QUEUE], m, task)
    s.sizes[BATCH, m] = kept
    for i in range(count):
        task = s.scratch[i]
        if s.tasks[task].in_batch:
            continue
        remove(s.queues[WAITING], s.sizes[WAITING], m, task)
        remove(s.queues[BLOCKED_QUEUE], s.sizes[BLOCKED_QUEUE], m, task)
        if is_prompt(task):
            remove(s.queues[PROMPTS], s.sizes[PROMPTS], m, task)
            s.machines[m].batch_prompts += 1
        append(s.queues[BATCH], s.sizes[BATCH], m, task)
        s.tasks[task].in_batch = True
    for i in range(s.sizes[POOL, m]):
        task = first_task(s, m, s.queues[POOL, m, i])
        if not s.tasks[task].in_batch:
            s.tasks[task].passed_over += 1


@jit
def _run_length(s: State, m: int) -> float:
    """Iterations until the batch changes by itself."""
    if s.machines[m].batch_prompts > 0:
        return 1.0
    least = np.inf
    for i in range(s.sizes[BATCH, m]):
        task = s.queues[BATCH, m, i]
        least = min(least, float(s.requests[task // 2].output - 1 - s.tasks[task].generated))
    return least


@jit
def _iteration_s(s: State, m: int) -> float:
    kind, size = s.machines[m].kind, s.sizes[BATCH, m]
    if s.machines[m].batch_prompts == 0:
        return float(s.token_s[kind, size])
    tokens = 0
    for i in range(size):
        tokens += tokens_of(s, s.queues[BATCH, m, i])
    if s.machines[m].batch_prompts == size:
        return float(s.prompt_s[kind, tokens])
    return float(s.prompt_s[kind, tokens]) * 1.1


@jit
def _go_home(s: State, m: int) -> None:
    """A mixed machine that ran empty returns to the end of its own pool's list."""
    if remove(s.pools, s.pool_sizes, MIXED_POOL, m):
        append(s.pools, s.pool_sizes, s.machines[m].home, m)


@jit
def begin(s: State, m: int, now_s: float) -> bool:
    """Start the next run of iterations. True when it ends at once (sequences that owe no token): finish it now."""
    s.machines[m].cut = False
    s.machines[m].ends_s = np.inf
    _form_batch(s, m)
    if s.sizes[BATCH, m] == 0:
        if s.sizes[POOL, m] == 0:
            _go_home(s, m)
        return False
    s.machines[m].step_s = _iteration_s(s, m)
    s.machines[m].steps = _run_length(s, m)
    for i in range(s.sizes[BATCH, m]):
        task = s.queues[BATCH, m, i]
        if s.tasks[task].status == QUEUED:
            s.machines[m].memory += bytes_of(s, task)
            s.requests[task // 2].held += bytes_of(s, task)
        s.tasks[task].status = RUNNING
    s.machines[m].ends_s = now_s + s.machines[m].step_s * s.machines[m].steps
    return bool(s.machines[m].steps == 0.0)


@jit
def cut_short(s: State, m: int, now_s: float) -> None:
    """End the run of sequences at the next iteration boundary; once, and never while prompts are in the batch."""
    if s.machines[m].cut or s.machines[m].batch_prompts > 0:
        return
    s.machines[m].cut = True
    elapsed_s = now_s - (s.machines[m].ends_s - s.machines[m].step_s * s.machines[m].steps)
    s.machines[m].steps = min(s.machines[m].steps, elapsed_s // s.machines[m].step_s + 1)
    s.machines[m].ends_s = now_s + (s.machines[m].step_s * s.machines[m].steps - elapsed_s)


@jit
def fits(s: State, m: int, task: int) -> bool:
    return bool(s.machines[m].memory + bytes_of(s, task) <= s.memory_max)


@jit
def enter(s: State, m: int, task: int) -> None:
    """A task reaches its machine and waits there."""
    r = task // 2
    s.tasks[task].status = QUEUED
    if is_prompt(task) or s.requests[r].prompt_at != m:
        _join_pool(s, m, r)
    _enqueue(s, m, task)


@jit
def leave(s: State, m: int, task: int) -> None:
    """A finished task leaves batch and pool."""
    r = task // 2
    s.tasks[task].status = DONE
    s.tasks[task].in_batch = False
    remove(s.queues[BATCH], s.sizes[BATCH], m, task)
    if is_prompt(task):
        s.machines[m].batch_prompts -= 1
    if not is_prompt(task) or s.requests[r].token_at != m:
        remove(s.queues[POOL], s.sizes[POOL], m, r)


@jit
def disturb(s: State, m: int, tokens: int, now_s: float, prompt: bool) -> None:
    """A task arrived at a busy machine: cut its run if the batch has room, or, for a prompt, by preempting sequences."""
    if s.sizes[BATCH, m] < MAX_BATCH_TASKS and s.machines[m].batch_tokens + tokens <= MAX_BATCH_TOKENS:
        cut_short(s, m, now_s)
    elif prompt:
        prompt_tokens = s.machines[m].batch_tokens - (s.sizes[BATCH, m] - s.machines[m].batch_prompts)
        if s.machines[m].batch_prompts < s.sizes[BATCH, m] and prompt_tokens + tokens <= MAX_BATCH_TOKENS:
            cut_short(s, m, now_s)
