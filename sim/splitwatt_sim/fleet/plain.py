"""The fleet simulator's rules, written the naive way: the specification that the fast engine is measured against.

Theory. One queue of events, one event per iteration of a machine, and at its end one step per token; sums are made anew each
time they are asked for. No closed forms, no compiled code, no arrays.

- A prompt waits in its machine's queue. An iteration takes the prompts that are there when it begins: up to MAX_BATCH_TOKENS
  less the sequences that decode along. A prompt machine takes whole prompts, and the first of any length; a mixed machine
  cuts the prompt that does not fit. An iteration with prompts goes before one without.
- The end of its prompt is a request's first token. Further ones need its cache, over the link of its prompt machine, one
  cache after the other, where another machine decodes. Caches are let in at iteration boundaries in the order in which they
  came: nobody passes one that has no room. Room is kept for the whole of prompt and output from then to the last token.
- Every iteration gives each sequence of the batch one token.
- At one moment prompts end first, then caches come, then iterations of mixed and decode machines end, then requests arrive.
  Who comes to a machine that has decoded for no time yet is let in still.

Protected: nothing is shared with fleet_kernel but the constants and the router's sentence, so that an error in one of them
is not an error in both.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from heapq import heappop, heappush
from typing import Final

import numpy as np

from splitwatt_sim.fleet.kernel import LONG_QUEUE_TOKENS, MIXED_SLOWDOWN
from splitwatt_sim.fleet.run import ROLE_NAMES
from splitwatt_sim.fleet.state import DECODE, MAX_BATCH_SEQUENCES, MAX_BATCH_TOKENS, MIXED, PREFILL, Kind, Pool
from splitwatt_sim.latencies import Latencies
from splitwatt_sim.traces.arrivals import Arrivals

PROMPT_ENDS: Final = 0
CACHE_COMES: Final = 1
ITERATION_ENDS: Final = 2
ARRIVES: Final = 3
"""Kinds of events, in their order within one moment."""


class Doing(Enum):
    NOTHING = "nothing"
    PROMPTS = "prompts"
    TOKENS = "tokens"


@dataclass(slots=True, eq=False)
class Request:
    number: int
    arrival_s: float
    prompt: int
    output: int
    to_prefill: int
    generated: int = 0
    prompt_end_s: float = 0.0
    done_s: float = 0.0
    decode_at: Machine | None = None

    @property
    def tokens(self) -> int:
        return self.prompt + self.output


@dataclass(slots=True, eq=False)
class Machine:
    """`prompts`: the queue; `waiting`: caches that are here and not let in; `running`: the batch. `turn` counts iterations
    begun: the end of one that was given up is known by it."""

    number: int
    role: int
    kind: Kind
    prefill_s: list[float]
    decode_s: list[float]
    draw_w: float
    prompts: deque[Request] = field(default_factory=deque)
    waiting: deque[Request] = field(default_factory=deque)
    running: list[Request] = field(default_factory=list)
    doing: Doing = Doing.NOTHING
    chunk: int = 0
    began_s: float = 0.0
    turn: int = 0
    link_free_s: float = 0.0
    energy_j: float = 0.0
    drawn_until_s: float = 0.0
    pending: int = 0
    promised: int = 0

    def draw(self, at_s: float, power_w: float) -> None:
        self.energy_j += self.draw_w * (at_s - self.drawn_until_s)
        self.drawn_until_s, self.draw_w = at_s, power_w

    def lets_in(self, request: Request) -> bool:
        """Whether batch and memory have room; an empty machine always has."""
        used = sum(other.tokens for other in self.running)
        fits = used + request.tokens <= self.kind.kv_room and len(self.running) < MAX_BATCH_SEQUENCES
        return fits or not self.running

    def next_chunk(self) -> int:
        """Prompt tokens of an iteration that begins now."""
        room = MAX_BATCH_TOKENS - len(self.running)
        if self.role == MIXED:
            return min(room, sum(request.to_prefill for request in self.prompts))
        chunk = 0
        for request in self.prompts:
            if chunk and chunk + request.to_prefill > room:
                break
            chunk += request.to_prefill
        return chunk


@dataclass(frozen=True, slots=True)
class PlainRun:
    """As `FleetRun`: `energy_j` by role, whole servers from 0 to `ends_s`, the last token."""

    latencies: Latencies
    energy_j: dict[str, float]
    ends_s: float


class Plain:
    """One run: the machines, and the events to come."""

    def __init__(self, pools: Sequence[Pool]) -> None:
        self.machines: list[Machine] = []
        self.events: list[tuple[float, int, int, int, Machine | Request]] = []
        for pool in sorted(pools, key=lambda pool: pool.role):
            prefill_s, decode_s = pool.kind.prefill_s.tolist(), pool.kind.decode_s.tolist()
            for _ in range(pool.servers):
                number = len(self.machines)
                self.machines.append(Machine(number, pool.role, pool.kind, prefill_s, decode_s, pool.kind.idle_w))

    def run(self, requests: Sequence[Request]) -> None:
        for request in requests:
            self._push(request.arrival_s, ARRIVES, request, 0)
        while self.events:
            now_s, what, _, turn, who = heappop(self.events)
            if isinstance(who, Machine):
                if turn == who.turn:
                    self._end_iteration(who, now_s)
            elif what == CACHE_COMES:
                assert who.decode_at is not None
                who.decode_at.waiting.append(who)
                self._wake(who.decode_at, now_s)
            else:
                self._wake(self._route(who), now_s)

    def _push(self, at_s: float, what: int, who: Machine | Request, turn: int) -> None:
        heappush(self.events, (at_s, what, who.number, turn, who))

    def _wake(self, machine: Machine, now_s: float) -> None:
        if machine.doing == Doing.NOTHING or (machine.doing == Doing.TOKENS and machine.began_s == now_s):
            self._begin_iteration(machine, now_s)

    def _begin_iteration(self, machine: Machine, now_s: float) -> None:
        while machine.waiting and machine.lets_in(machine.waiting[0]):
            machine.running.append(machine.waiting.popleft())
        batch, kind = len(machine.running), machine.kind
        context_s = kind.kv_s * sum(request.prompt + request.generated for request in machine.running)
        machine.chunk, machine.began_s, machine.turn = machine.next_chunk(), now_s, machine.turn + 1
        if machine.chunk:
            machine.doing, power_w = Doing.PROMPTS, float(kind.prefill_w[machine.chunk])
            took_s = machine.prefill_s[machine.chunk + batch]
            if batch:
                took_s = MIXED_SLOWDOWN * took_s + context_s
        elif batch:
            machine.doing, power_w = Doing.TOKENS, float(kind.decode_w[batch])
            took_s = machine.decode_s[batch] + context_s
        else:
            machine.doing = Doing.NOTHING
            machine.draw(now_s, kind.idle_w)
            return
        machine.draw(now_s, power_w)
        self._push(now_s + took_s, PROMPT_ENDS if machine.role == PREFILL else ITERATION_ENDS, machine, machine.turn)

    def _end_iteration(self, machine: Machine, now_s: float) -> None:
        for request in machine.running:
            request.generated += 1
            if request.generated == request.output:
                self._done(machine, request, now_s)
        machine.running = [request for request in machine.running if request.generated < request.output]
        machine.pending -= machine.chunk
        while machine.chunk:
            request = machine.prompts[0]
            took = min(machine.chunk, request.to_prefill)
            machine.chunk -= took
            request.to_prefill -= took
            if not request.to_prefill:
                machine.prompts.popleft()
                self._end_prompt(machine, request, now_s)
        self._begin_iteration(machine, now_s)

    def _end_prompt(self, machine: Machine, request: Request, now_s: float) -> None:
        request.prompt_end_s, request.generated = now_s, 1
        assert request.decode_at is not None
        if request.output == 1:
            self._done(request.decode_at, request, now_s)
        elif request.decode_at is machine:
            machine.waiting.append(request)
        else:
            kind = machine.kind
            took_s = kind.hand_off_fixed_s
            if request.prompt < kind.overlap_from_tokens:
                took_s += kind.hand_off_s_per_token * request.prompt
            machine.link_free_s = max(machine.link_free_s, now_s) + took_s
            self._push(machine.link_free_s, CACHE_COMES, request, 0)

    @staticmethod
    def _done(machine: Machine, request: Request, now_s: float) -> None:
        request.done_s = now_s
        machine.pending -= 1
        machine.promised -= request.tokens

    def _route(self, request: Request) -> Machine:
        """Prompts to the shortest queue, sequences to the least promised memory, the first of equals. The mixed pool takes a
        request whose prompt queue would be long or whose decode machine is full, if its own queue is the shorter one; and
        every request where prompt or decode machines are missing."""
        by_role = {role: [machine for machine in self.machines if machine.role == role] for role in ROLE_NAMES}
        mixed = min(by_role[MIXED], key=lambda machine: machine.pending, default=None)
        prompt_at = min(by_role[PREFILL], key=lambda machine: machine.pending, default=None)
        decode_at = min(by_role[DECODE], key=lambda machine: machine.promised, default=None)
        if prompt_at is None or decode_at is None:
            prompt_at = decode_at = mixed
        elif mixed is not None:
            long = prompt_at.pending + request.prompt > LONG_QUEUE_TOKENS
            full = decode_at.promised + request.tokens > decode_at.kind.kv_room
            if (long or full) and mixed.pending < prompt_at.pending:
                prompt_at = decode_at = mixed
        assert prompt_at is not None and decode_at is not None
        request.decode_at = decode_at
        decode_at.promised += request.tokens
        decode_at.pending += 1
        prompt_at.pending += request.prompt
        prompt_at.prompts.append(request)
        return prompt_at


def run_plain(pools: Sequence[Pool], arrivals: Arrivals) -> PlainRun:
    """Deterministic; takes about a hundred times as long as `run_fleet`, whose checks of the requests are not made here."""
    columns = (arrivals.arrival_s.tolist(), arrivals.prompt_tokens.tolist(), arrivals.output_tokens.tolist())
    requests = [Request(i, *row, row[1]) for i, row in enumerate(zip(*columns, strict=True))]
    plain = Plain(pools)
    plain.run(requests)
    ends_s = max(request.done_s for request in requests)
    energy_j: dict[str, float] = {}
    for machine in plain.machines:
        machine.draw(ends_s, 0.0)
        name = ROLE_NAMES[machine.role]
        energy_j[name] = energy_j.get(name, 0.0) + machine.energy_j
    ttft_s = np.array([request.prompt_end_s - request.arrival_s for request in requests])
    e2e_s = np.array([request.done_s - request.arrival_s for request in requests])
    latencies = Latencies(ttft_s * 1e3, (e2e_s - ttft_s) / arrivals.output_tokens * 1e3, e2e_s * 1e3)
    return PlainRun(latencies, energy_j, ends_s)
