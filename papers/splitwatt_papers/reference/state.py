"""Columns and queues of the reference model (`reference`): everything that changes while it runs, in arrays."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from splitwatt_sim.jit import jit

ABSENT: Final = 0
QUEUED: Final = 1
RUNNING: Final = 2
BLOCKED: Final = 3
DONE: Final = 4

BATCH: Final = 0
WAITING: Final = 1
PROMPTS: Final = 2
BLOCKED_QUEUE: Final = 3
POOL: Final = 4
QUEUES: Final = 5

PROMPT_POOL: Final = 0
TOKEN_POOL: Final = 1
MIXED_POOL: Final = 2
POOLS: Final = 3

STAMP: Final = 0

MAX_BATCH_TASKS: Final = 512
MAX_BATCH_TOKENS: Final = 2048
MAX_PASSED_OVER: Final = 4
MAX_PENDING_TOKENS: Final = 8192
RETRY_S: Final = 1.0

REQUEST: Final = np.dtype(
    [
        ("arrival_s", "f8"), ("prompt", "i8"), ("output", "i8"), ("prompt_end_s", "f8"), ("done_s", "f8"), ("held", "i8"),
        ("prompt_at", "i4"), ("token_at", "i4"),
    ]
)  # fmt: skip
"""prompt, output: tokens. held: bytes of KV cache. prompt_at, token_at: machines, -1 before arrival."""

TASK: Final = np.dtype([("status", "i1"), ("in_batch", "?"), ("passed_over", "i4"), ("generated", "i8"), ("stamp", "i8")])
"""passed_over: iterations that began without it. stamp: the last batch its request was chosen for (prompt tasks only)."""

MACHINE: Final = np.dtype(
    [
        ("kind", "i4"), ("home", "i4"), ("memory", "i8"), ("promised", "i8"), ("pending_tokens", "i8"), ("step_s", "f8"),
        ("steps", "f8"), ("ends_s", "f8"), ("cut", "?"), ("batch_tokens", "i8"), ("batch_prompts", "i8"),
    ]
)  # fmt: skip
"""memory: bytes in use; promised: booked by the cluster's scheduler. step_s, steps, ends_s: the run of iterations under way,
ends_s inf when idle; cut: it was shortened already."""


class State(NamedTuple):
    """N requests in order of arrival, M machines, K kinds of machine. Task 2r is request r's prompt, 2r+1 its tokens.

    requests REQUEST[N], tasks TASK[2N], machines MACHINE[M]. queues int32[QUEUES, M, capacity] with sizes
    int64[QUEUES, M]: BATCH; WAITING, by a sorted insert; PROMPTS, by arrival at the machine; BLOCKED_QUEUE, by preemption;
    POOL (of requests), by arrival. pools int32[POOLS, M] with pool_sizes int64[POOLS]: machines in the scheduler's order.
    prompt_s, token_s float64[K, .]: time of one iteration by tokens, by sequences. counters int64[1]. scratch
    int32[MAX_BATCH_TASKS + 1]: the tasks that a step chose.
    """

    requests: Any
    tasks: Any
    machines: Any
    queues: NDArray[np.int32]
    sizes: NDArray[np.int64]
    pools: NDArray[np.int32]
    pool_sizes: NDArray[np.int64]
    prompt_s: NDArray[np.float64]
    token_s: NDArray[np.float64]
    counters: NDArray[np.int64]
    scratch: NDArray[np.int32]
    memory_max: int
    kv_bytes_per_token: int
    link_bytes_per_s: float


@jit
def append(queue: NDArray[np.int32], size: NDArray[np.int64], row: int, item: int) -> None:
    queue[row, size[row]] = item
    size[row] += 1


@jit
def insert(queue: NDArray[np.int32], size: NDArray[np.int64], row: int, at: int, item: int) -> None:
    for i in range(size[row], at, -1):
        queue[row, i] = queue[row, i - 1]
    queue[row, at] = item
    size[row] += 1


@jit
def remove(queue: NDArray[np.int32], size: NDArray[np.int64], row: int, item: int) -> bool:
    """Take the item out, keeping the order; False when it is not there."""
    for i in range(size[row]):
        if queue[row, i] == item:
            for k in range(i, size[row] - 1):
                queue[row, k] = queue[row, k + 1]
            size[row] -= 1
            return True
    return False


def new_state(
    *,
    arrival_s: NDArray[np.float64],
    prompt: NDArray[np.int64],
    output: NDArray[np.int64],
    kind: NDArray[np.int32],
    home: NDArray[np.int32],
    prompt_s: NDArray[np.float64],
    token_s: NDArray[np.float64],
    weights_bytes: int,
    memory_max: int,
    kv_bytes_per_token: int,
    link_bytes_per_s: float,
    capacity: int,
) -> State:
    """An idle cluster and requests still to come. `kind`, `home` int32[M]: rows of the tables, and the pool each machine
    belongs to. `capacity`: entries per queue and machine, above MAX_BATCH_TASKS."""
    n, m = len(arrival_s), len(kind)
    requests = np.zeros(n, REQUEST).view(np.recarray)
    requests.arrival_s, requests.prompt, requests.output = arrival_s, prompt, output
    requests.prompt_end_s = requests.done_s = np.nan
    requests.prompt_at = requests.token_at = -1
    machines = np.zeros(m, MACHINE).view(np.recarray)
    machines.kind, machines.home = kind, home
    machines.memory = machines.promised = weights_bytes
    machines.ends_s = np.inf
    pools, pool_sizes = np.zeros((POOLS, m), np.int32), np.zeros(POOLS, np.int64)
    for at in range(m):
        append(pools, pool_sizes, int(home[at]), at)
    return State(
        requests=requests,
        tasks=np.zeros(2 * n, TASK).view(np.recarray),
        machines=machines,
        queues=np.zeros((QUEUES, m, capacity), np.int32),
        sizes=np.zeros((QUEUES, m), np.int64),
        pools=pools,
        pool_sizes=pool_sizes,
        prompt_s=prompt_s,
        token_s=token_s,
        counters=np.zeros(1, np.int64),
        scratch=np.zeros(MAX_BATCH_TASKS + 1, np.int32),
        memory_max=memory_max,
        kv_bytes_per_token=kv_bytes_per_token,
        link_bytes_per_s=link_bytes_per_s,
    )
