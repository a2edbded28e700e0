"""The fleet simulator's state: records of requests and machines, and the small heaps that order their events."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from splitwatt_sim.jit import inlined, lean

PREFILL: Final = 0
MIXED: Final = 1
DECODE: Final = 2
ROLES: Final = 3
"""In the order in which machines are brought up to a moment: sequences come from prompts."""

IDLE: Final = 0
PREFILLING: Final = 1
DECODING: Final = 2

NOBODY: Final = -1

OPEN: Final = 0
DRAINING: Final = 1
SWITCHING: Final = 2
DOWN: Final = 3
"""What a machine is to those who place requests; only open ones take new work."""

FAIL: Final = 0
FLIP: Final = 1

ARRIVED: Final = 0
DONE: Final = 1
OVERFLOWS: Final = 2
RESTARTED: Final = 3
FLIPPED: Final = 4
DRAINS: Final = 5
PLAYED: Final = 6
OLDEST: Final = 7
COUNTERS: Final = 8

MAX_BATCH_SEQUENCES: Final = 512
MAX_BATCH_TOKENS: Final = 2048

REQUEST: Final = np.dtype(
    [
        ("arrival_s", "f8"), ("prompt", "i4"), ("output", "i4"), ("prompt_end_s", "f8"), ("done_s", "f8"), ("left", "i4"),
        ("first_s", "f8"), ("prompt_at", "i4"), ("decode_at", "i4"), ("behind", "i4"),
    ]
)  # fmt: skip
"""prompt, output, left: tokens; left: of the prompt, not yet prefilled. prompt_at, decode_at: machines; a request that waits
to be placed has none, and one whose decode machine failed has no decode_at. behind: the next request in the same prompt
queue, or in the same machine's `fresh`; NOBODY at its end. first_s: when its user has a token: where another machine decodes,
the end of the first step there, which may still be to come."""

MACHINE: Final = np.dtype(
    [
        ("role", "i4"), ("kind", "i4"), ("doing", "i4"), ("plan", "i8"), ("since_s", "f8"), ("iteration", "i8"),
        ("batch", "i4"), ("context", "i8"), ("kv_used", "i8"),
        ("head", "i4"), ("tail", "i4"), ("chunk", "i4"), ("link_free_s", "f8"), ("draw_w", "f8"), ("drawn_since_s", "f8"),
        ("energy_j", "f8"), ("busy_s", "f8"), ("finishing", "i4"), ("coming", "i4"),
        ("fresh", "i4"), ("state", "i4"), ("first_role", "i4"), ("to_role", "i4"), ("switch_s", "f8"),
    ]
)  # fmt: skip
"""since_s, iteration, batch, context: start of the run of iterations under way, and what it began with; plan: its steps;
context: tokens of KV cache read per step. kv_used: tokens. head, tail: prompt queue. chunk: prompt tokens of the iteration
under way. draw_w since drawn_since_s; energy_j before. finishing, coming: sizes of heaps. fresh: the sequences
whose first iteration here is under way. first_role: what it began with;
to_role: what it changes to, NOBODY without a flip; switch_s: how long that takes once it is empty."""

EVENT: Final = np.dtype(
    [("at_s", "f8"), ("machine", "i4"), ("what", "i4"), ("to_role", "i4"), ("back_s", "f8"), ("switch_s", "f8")]
)
"""FAIL: it is back at back_s, inf: never. FLIP: to_role, and how long it takes."""


class FleetArrays(NamedTuple):
    """N requests in order of arrival, M machines, K kinds (a server under a cap).

    requests REQUEST[N], machines MACHINE[M] in the order of the roles they begin with. takes int64[M]: the role for which a
    machine takes new work, NOBODY while it takes none; span int64[ROLES, 3]: the number of the first that takes work for a
    role, the one after the last, equal where there is none, and how many do. events EVENT[E + 1] by time, the last one
    never; opens_s float64[M]: when a machine is open again, inf where nothing says so; next_change_s float64[1]: the
    earliest of events and opens_s. next_s float64[M]: nothing happens there before; pending int64[M]: prompt tokens queued
    and sequences; promised int64[M]: tokens of KV cache. finish_key int64[M, MAX_BATCH_SEQUENCES], finish_item int32: heaps
    of sequences by the iteration after which they are done. coming_s float64[M, C], coming_item int32: heaps of hand-offs
    by the time at which their cache is there. prefill_s, prefill_w float64[K, T] by prompt tokens of the iteration;
    decode_s, decode_w float64[K, MAX_BATCH_SEQUENCES + 1] by sequences; kv_s float64[K] seconds per step and token of
    context; idle_w float64[K]; kv_room int64[K] tokens. hand_off float64[K, 4]: seconds per token, fixed seconds, tokens
    from which the cache moves layer by layer behind the prefill, and the fixed part is all that is left, and seconds on the
    way, which keep no other cache waiting. power_w float64[M,
    S]: mean draw in each second; S may be 0. counters int64[COUNTERS]: ARRIVED, DONE, OVERFLOWS (of `coming`; above 0 the
    run is void), RESTARTED (sequences whose cache was lost), FLIPPED (roles changed), DRAINS (machines that drain now),
    PLAYED (events), OLDEST (no request before this one is still to be done).
    """

    requests: Any
    machines: Any
    takes: NDArray[np.int64]
    span: NDArray[np.int64]
    events: Any
    opens_s: NDArray[np.float64]
    next_change_s: NDArray[np.float64]
    next_s: NDArray[np.float64]
    pending: NDArray[np.int64]
    promised: NDArray[np.int64]
    finish_key: NDArray[np.int64]
    finish_item: NDArray[np.int32]
    coming_s: NDArray[np.float64]
    coming_item: NDArray[np.int32]
    prefill_s: NDArray[np.float64]
    prefill_w: NDArray[np.float64]
    decode_s: NDArray[np.float64]
    decode_w: NDArray[np.float64]
    kv_s: NDArray[np.float64]
    idle_w: NDArray[np.float64]
    kv_room: NDArray[np.int64]
    hand_off: NDArray[np.float64]
    power_w: NDArray[np.float64]
    counters: NDArray[np.int64]


@lean
def push(keys: Any, items: NDArray[np.int32], size: int, key: float, item: int) -> None:
    """Add to a binary heap of this size, the least key first; equal keys by item. The caller counts the size."""
    at = size
    while at > 0:
        up = (at - 1) // 2
        if keys[up] < key or (keys[up] == key and items[up] <= item):
            break
        keys[at], items[at] = keys[up], items[up]
        at = up
    keys[at], items[at] = key, item


@lean
def pop(keys: Any, items: NDArray[np.int32], size: int) -> int:
    """Take the least out of a heap of this size, which must be above 0, and return its item."""
    least = items[0]
    key, item = keys[size - 1], items[size - 1]
    at, last = 0, size - 1
    while True:
        down = 2 * at + 1
        if down >= last:
            break
        other = down + 1
        if other < last and (keys[other] < keys[down] or (keys[other] == keys[down] and items[other] < items[down])):
            down = other
        if key < keys[down] or (key == keys[down] and item <= items[down]):
            break
        keys[at], items[at] = keys[down], items[down]
        at = down
    keys[at], items[at] = key, item
    return int(least)


@inlined
def draw(f: FleetArrays, m: int, at_s: float, power_w: float) -> None:
    """From now on the machine draws this; account for what it drew before."""
    x = f.machines[m]
    f.machines[m].energy_j += x.draw_w * (at_s - x.drawn_since_s)
    if f.power_w.shape[1] > 0 and x.draw_w > 0.0:
        start_s = x.drawn_since_s
        while start_s < at_s:
            second = int(start_s)
            if second >= f.power_w.shape[1]:
                break
            end_s = min(at_s, second + 1.0)
            f.power_w[m, second] += x.draw_w * (end_s - start_s)
            start_s = end_s
    f.machines[m].draw_w = power_w
    f.machines[m].drawn_since_s = at_s


@inlined
def show_first(f: FleetArrays, m: int, ends_s: float) -> None:
    """The iteration that begins now gives those who just joined what their users see first. Who begins again at the same
    moment, because somebody joined, ends at another one."""
    r = f.machines[m].fresh
    while r != NOBODY:
        f.requests[r].first_s = ends_s
        r = f.requests[r].behind


@dataclass(frozen=True, slots=True)
class ServerKind:
    """A kind of server under a cap, as arrays: prefill_s, prefill_w float64[T] by prompt tokens of an iteration; decode_s,
    decode_w float64[MAX_BATCH_SEQUENCES + 1] by sequences; kv_s seconds per step and token of context; kv_room tokens.
    Watts are the whole server's. A hand-off takes hand_off_s_per_token and hand_off_fixed_s; from overlap_from_tokens on
    only the latter. On top of it a cache is hand_off_latency_s on the way, in which the link is free."""

    name: str
    prefill_s: NDArray[np.float64]
    prefill_w: NDArray[np.float64]
    decode_s: NDArray[np.float64]
    decode_w: NDArray[np.float64]
    kv_s: float
    idle_w: float
    kv_room: int
    hand_off_s_per_token: float
    hand_off_fixed_s: float
    overlap_from_tokens: float
    hand_off_latency_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Pool:
    """`servers` machines of one kind with one role (PREFILL, MIXED, DECODE)."""

    role: int
    kind: ServerKind
    servers: int


@dataclass(frozen=True, slots=True)
class Failure:
    """A machine fails and is back at `back_at_s`, inf: never. `pool`: which of the run's pools, `server`: which of its
    machines, both from 0."""

    pool: int
    server: int
    at_s: float
    back_at_s: float = math.inf


@dataclass(frozen=True, slots=True)
class Flip:
    """A machine begins to change its role; `switch_s` is how long it takes once it is empty. pool, server: as in Failure."""

    pool: int
    server: int
    at_s: float
    to_role: int
    switch_s: float


Change = Failure | Flip


def machine_numbers(pools: Sequence[Pool]) -> list[int]:
    """The number of each pool's first machine: machines count by the roles they begin with, then by pool."""
    numbers, number = [0] * len(pools), 0
    for at in sorted(range(len(pools)), key=lambda at: pools[at].role):
        numbers[at] = number
        number += pools[at].servers
    return numbers


def _events(pools: Sequence[Pool], changes: Sequence[Change]) -> Any:
    """EVENT[len(changes) + 1] by time; equal times as they were given."""
    first, rows = machine_numbers(pools), []
    for change in sorted(changes, key=lambda change: change.at_s):
        machine = first[change.pool] + change.server
        if isinstance(change, Failure):
            rows.append((change.at_s, machine, FAIL, NOBODY, change.back_at_s, 0.0))
        else:
            rows.append((change.at_s, machine, FLIP, change.to_role, 0.0, change.switch_s))
    rows.append((math.inf, NOBODY, FAIL, NOBODY, math.inf, 0.0))
    return np.array(rows, EVENT).view(np.recarray)


@lean
def regroup(takes: NDArray[np.int64], span: NDArray[np.int64], machines: Any) -> None:
    """Note which machines take new work, and between which numbers those of each role lie."""
    for role in range(ROLES):
        span[role, 0] = span[role, 1] = span[role, 2] = 0
    for m in range(len(machines)):
        takes[m] = NOBODY
        if machines[m].state == OPEN:
            role = machines[m].role
            takes[m] = role
            if span[role, 1] == 0:
                span[role, 0] = m
            span[role, 1] = m + 1
            span[role, 2] += 1


def new_fleet(
    pools: Sequence[Pool],
    *,
    arrival_s: NDArray[np.float64],
    prompt: NDArray[np.int64],
    output: NDArray[np.int64],
    seconds: int = 0,
    coming_capacity: int = 1_024,
    changes: Sequence[Change] = (),
) -> FleetArrays:
    """Idle machines and requests still to come. `seconds`: how long to record each machine's power, 0: not at all. All
    kinds must have tables of one length that covers the longest prompt. Raises ValueError."""
    events = _events(pools, changes)
    pools = sorted(pools, key=lambda pool: pool.role)
    roles = np.repeat([pool.role for pool in pools], [pool.servers for pool in pools])
    has = {role: bool(np.any(roles == role)) for role in range(ROLES)}
    if not has[MIXED] and not (has[PREFILL] and has[DECODE]):
        raise ValueError("a fleet needs prefill and decode machines, or mixed ones")
    kinds = [pool.kind for pool in pools]
    m, k = len(roles), len(kinds)
    requests = np.zeros(len(arrival_s), REQUEST).view(np.recarray)
    requests.arrival_s, requests.prompt, requests.output, requests.left = arrival_s, prompt, output, prompt
    requests.prompt_end_s = requests.first_s = requests.done_s = np.nan
    requests.behind = requests.prompt_at = requests.decode_at = NOBODY
    machines = np.zeros(m, MACHINE).view(np.recarray)
    machines.role = machines.first_role = roles
    machines.kind = np.repeat(np.arange(k), [pool.servers for pool in pools])
    machines.head = machines.tail = machines.fresh = machines.to_role = NOBODY
    idle_w = np.array([kind.idle_w for kind in kinds], np.float64)
    machines.draw_w = idle_w[machines.kind]
    takes, span = np.zeros(m, np.int64), np.zeros((ROLES, 3), np.int64)
    regroup(takes, span, machines)
    hand_off = [(x.hand_off_s_per_token, x.hand_off_fixed_s, x.overlap_from_tokens, x.hand_off_latency_s) for x in kinds]
    return FleetArrays(
        requests=requests,
        machines=machines,
        takes=takes,
        span=span,
        events=events,
        opens_s=np.full(m, np.inf),
        next_change_s=np.array([events.at_s[0]]),
        next_s=np.full(m, np.inf),
        pending=np.zeros(m, np.int64),
        promised=np.zeros(m, np.int64),
        finish_key=np.zeros((m, MAX_BATCH_SEQUENCES), np.int64),
        finish_item=np.zeros((m, MAX_BATCH_SEQUENCES), np.int32),
        coming_s=np.zeros((m, coming_capacity)),
        coming_item=np.zeros((m, coming_capacity), np.int32),
        prefill_s=np.array([kind.prefill_s for kind in kinds], np.float64),
        prefill_w=np.array([kind.prefill_w for kind in kinds], np.float64),
        decode_s=np.array([kind.decode_s for kind in kinds], np.float64),
        decode_w=np.array([kind.decode_w for kind in kinds], np.float64),
        kv_s=np.array([kind.kv_s for kind in kinds], np.float64),
        idle_w=idle_w,
        kv_room=np.array([kind.kv_room for kind in kinds], np.int64),
        hand_off=np.array(hand_off, np.float64),
        power_w=np.zeros((m, seconds)),
        counters=np.zeros(COUNTERS, np.int64),
    )
