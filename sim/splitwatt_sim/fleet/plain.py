"""The fleet simulator's rules, written the naive way: the specification that the fast engine is measured against.

Theory. One queue of events, one event per iteration of a machine, and at its end one step per token; sums are made anew each
time they are asked for. No closed forms, no compiled code, no arrays.

- A prompt waits in its machine's queue. An iteration takes the prompts that are there when it begins: up to MAX_BATCH_TOKENS
  less the sequences that decode along. A prompt machine takes whole prompts, and the first of any length; a mixed machine
  cuts the prompt that does not fit. An iteration with prompts goes before one without.
- The end of its prompt is a request's first token. Further ones need its cache, over the link of its prompt machine, one
  cache after the other, where another machine decodes. Caches are let in at iteration boundaries in the order in which they
  came, those of one moment by number: nobody passes one that has no room. Room is kept for the whole of prompt and output
  from then to the last token.
- Every iteration gives each sequence of the batch one token. Where another machine than that of its prompt decodes, the end of
  its first iteration there shows its user the first token: what was read at prefill is not shown by itself. Of a request of one
  token, and where one machine does both, it is the end of its prompt.
- At one moment prompts end first, then caches come, then iterations of mixed and decode machines end, then requests arrive,
  then machines open that were down or switched, then others fail or begin to change their role, by the rules of `changes`.
  Who comes to a machine that has decoded for no time yet is let in still.

Protected: nothing is shared with fleet_kernel but the constants and the router's sentence, so that an error in one of them
is not an error in both.
"""

from __future__ import annotations

import math
from bisect import insort
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from heapq import heappop, heappush
from operator import attrgetter
from typing import Final

import numpy as np

from splitwatt_sim.fleet.kernel import LONG_QUEUE_TOKENS, MIXED_SLOWDOWN
from splitwatt_sim.fleet.run import ROLE_NAMES
from splitwatt_sim.fleet.state import (
    DECODE,
    MAX_BATCH_SEQUENCES,
    MAX_BATCH_TOKENS,
    MIXED,
    PREFILL,
    Change,
    Failure,
    Flip,
    Pool,
    ServerKind,
    machine_numbers,
)
from splitwatt_sim.latencies import Latencies
from splitwatt_sim.traces.arrivals import Arrivals

PROMPT_ENDS: Final = 0
CACHE_COMES: Final = 1
ITERATION_ENDS: Final = 2
ARRIVES: Final = 3
OPENS: Final = 4
CHANGES: Final = 5
"""Kinds of events, in their order within one moment."""


class MachineState(Enum):
    OPEN = "open"
    DRAINING = "draining"
    SWITCHING = "switching"
    DOWN = "down"


class Doing(Enum):
    NOTHING = "nothing"
    PROMPTS = "prompts"
    TOKENS = "tokens"


@dataclass(slots=True, eq=False)
class PlainRequest:
    """`travels`: its cache is on its way; `came_s`: when it came. `lives`: how often it began again; the coming of a cache
    that is lost is known by it."""

    number: int
    arrival_s: float
    prompt: int
    output: int
    to_prefill: int
    generated: int = 0
    prompt_end_s: float = math.nan
    first_s: float = math.nan
    done_s: float = math.nan
    prompt_at: Machine | None = None
    decode_at: Machine | None = None
    travels: bool = False
    came_s: float = math.nan
    lives: int = 0

    @property
    def tokens(self) -> int:
        return self.prompt + self.output


@dataclass(slots=True, eq=False)
class Machine:
    """`prompts`: the queue; `waiting`: caches that are here and not let in; `running`: the batch. `turn` counts iterations
    begun: the end of one that was given up is known by it."""

    number: int
    role: int
    kind: ServerKind
    prefill_s: list[float]
    decode_s: list[float]
    draw_w: float
    prompts: deque[PlainRequest] = field(default_factory=deque)
    waiting: list[PlainRequest] = field(default_factory=list)
    running: list[PlainRequest] = field(default_factory=list)
    doing: Doing = Doing.NOTHING
    chunk: int = 0
    began_s: float = 0.0
    turn: int = 0
    link_free_s: float = 0.0
    energy_j: float = 0.0
    drawn_until_s: float = 0.0
    pending: int = 0
    promised: int = 0
    state: MachineState = MachineState.OPEN
    to_role: int | None = None
    switch_s: float = 0.0
    opens_s: float = math.inf

    def draw(self, at_s: float, power_w: float) -> None:
        self.energy_j += self.draw_w * (at_s - self.drawn_until_s)
        self.drawn_until_s, self.draw_w = at_s, power_w

    def receive(self, request: PlainRequest, at_s: float) -> None:
        request.came_s = at_s
        insort(self.waiting, request, key=attrgetter("came_s", "number"))

    def lets_in(self, request: PlainRequest) -> bool:
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
    """As `FleetRun`."""

    latencies: Latencies
    energy_j: dict[str, float]
    ends_s: float
    unfinished: list[int]
    restarted: int
    flips: int


class Plain:
    """One run: the machines, the requests that have come, and the events to come."""

    def __init__(self, pools: Sequence[Pool]) -> None:
        self.machines: list[Machine] = []
        self.came: list[PlainRequest] = []
        self.drains: list[Machine] = []
        self.events: list[tuple[float, int, int, int, Machine | PlainRequest | Change]] = []
        self.done = self.restarted = self.flips = 0
        for pool in sorted(pools, key=lambda pool: pool.role):
            prefill_s, decode_s = pool.kind.prefill_s.tolist(), pool.kind.decode_s.tolist()
            for _ in range(pool.servers):
                number = len(self.machines)
                self.machines.append(Machine(number, pool.role, pool.kind, prefill_s, decode_s, pool.kind.idle_w))

    def run(self, requests: Sequence[PlainRequest], changes: Sequence[tuple[int, Change]]) -> None:
        """`changes`: with the number of the machine."""
        for request in requests:
            self._push(request.arrival_s, ARRIVES, request, 0)
        for order, (number, change) in enumerate(changes):
            heappush(self.events, (change.at_s, CHANGES, order, number, change))
        while self.events and self.done < len(requests):
            now_s, what, _, turn, who = heappop(self.events)
            if what == ARRIVES:
                assert isinstance(who, PlainRequest)
                self.came.append(who)
                self._place([who], now_s)
            elif isinstance(who, PlainRequest):
                if turn == who.lives:
                    assert who.decode_at is not None
                    who.travels = False
                    who.decode_at.receive(who, now_s)
                    self._wake(who.decode_at, now_s)
            elif isinstance(who, Machine):
                if what == OPENS and who.opens_s == now_s:
                    self._open(who, now_s)
                elif what != OPENS and turn == who.turn:
                    self._end_iteration(who, now_s)
            elif isinstance(who, Failure):
                self._fail(self.machines[turn], who.back_at_s, now_s)
            else:
                self._flip(self.machines[turn], who)
            self._switch_the_drained(now_s)

    def _flip(self, machine: Machine, flip: Flip) -> None:
        machine.to_role, machine.switch_s = flip.to_role, flip.switch_s
        if machine.state is MachineState.OPEN:
            machine.state = MachineState.DRAINING
            self.drains.append(machine)

    def _switch_the_drained(self, now_s: float) -> None:
        for machine in list(self.drains):
            if machine.pending == 0:
                machine.state = MachineState.SWITCHING
                self.drains.remove(machine)
                self._opens(machine, max(now_s, machine.link_free_s) + machine.switch_s)

    def _opens(self, machine: Machine, at_s: float) -> None:
        machine.opens_s = at_s
        if at_s < math.inf:
            self._push(at_s, OPENS, machine, 0)

    def _open(self, machine: Machine, now_s: float) -> None:
        if machine.to_role is not None:
            machine.role, machine.to_role = machine.to_role, None
            self.flips += 1
        if machine.state is MachineState.DOWN:
            machine.draw(now_s, machine.kind.idle_w)
        machine.state, machine.opens_s = MachineState.OPEN, math.inf
        self._place(self.came, now_s)

    def _fail(self, machine: Machine, back_s: float, now_s: float) -> None:
        if machine.state is MachineState.DOWN:
            self._opens(machine, max(machine.opens_s, back_s))
            return
        if machine.state is MachineState.DRAINING:
            self.drains.remove(machine)
        machine.draw(now_s, 0.0)
        machine.state, machine.doing, machine.chunk, machine.link_free_s = MachineState.DOWN, Doing.NOTHING, 0, 0.0
        machine.turn += 1
        for request in self.came:
            if not math.isnan(request.done_s):
                continue
            held = request in machine.running or request in machine.waiting
            if held or request in machine.prompts or (request.travels and machine in (request.prompt_at, request.decode_at)):
                self._begin_again(request)
            elif request.decode_at is machine:
                request.decode_at = None
        machine.prompts.clear()
        machine.waiting.clear()
        machine.running.clear()
        machine.pending = machine.promised = 0
        self._opens(machine, back_s)
        self._place(self.came, now_s)

    def _begin_again(self, request: PlainRequest) -> None:
        """It waits to be placed, and owes a prefill of all its tokens."""
        self.restarted += request.to_prefill == 0
        request.to_prefill = request.prompt + request.generated
        if request.decode_at is not None:
            request.decode_at.pending -= 1
            request.decode_at.promised -= request.tokens
        request.prompt_at = request.decode_at = None
        request.travels, request.lives = False, request.lives + 1

    def _push(self, at_s: float, what: int, who: Machine | PlainRequest, turn: int) -> None:
        heappush(self.events, (at_s, what, who.number, turn, who))

    def _wake(self, machine: Machine, now_s: float) -> None:
        if machine.doing == Doing.NOTHING or (machine.doing == Doing.TOKENS and machine.began_s == now_s):
            self._begin_iteration(machine, now_s)

    def _begin_iteration(self, machine: Machine, now_s: float) -> None:
        while machine.waiting and machine.lets_in(machine.waiting[0]):
            machine.running.append(machine.waiting.pop(0))
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
            if math.isnan(request.first_s):
                request.first_s = now_s
            if request.generated == request.output:
                self._done(machine, request, now_s)
        machine.running = [request for request in machine.running if math.isnan(request.done_s)]
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

    def _end_prompt(self, machine: Machine, request: PlainRequest, now_s: float) -> None:
        cached, request.generated = request.prompt + request.generated, request.generated + 1
        if math.isnan(request.prompt_end_s):
            request.prompt_end_s = now_s
        if math.isnan(request.first_s) and (request.generated == request.output or request.decode_at is machine):
            request.first_s = now_s
        if request.generated == request.output:
            self._done(request.decode_at, request, now_s)
        elif request.decode_at is None:
            self._begin_again(request)
        elif request.decode_at is machine:
            machine.receive(request, now_s)
        else:
            kind = machine.kind
            took_s = kind.hand_off_fixed_s
            if cached < kind.overlap_from_tokens:
                took_s += kind.hand_off_s_per_token * cached
            request.travels = True
            machine.link_free_s = max(machine.link_free_s, now_s) + took_s
            self._push(machine.link_free_s + kind.hand_off_latency_s, CACHE_COMES, request, request.lives)

    def _done(self, machine: Machine | None, request: PlainRequest, now_s: float) -> None:
        request.done_s = now_s
        self.done += 1
        if machine is not None:
            machine.pending -= 1
            machine.promised -= request.tokens

    def _place(self, requests: Sequence[PlainRequest], now_s: float) -> None:
        """Place those of them that are nowhere, and find decode machines for those that lost theirs; then machines look."""
        woken: list[Machine] = []
        for request in requests:
            if not math.isnan(request.done_s):
                continue
            if request.prompt_at is None:
                self._route(request)
                if request.prompt_at is not None:
                    woken.append(request.prompt_at)
            elif request.decode_at is None:
                decode = self._least(DECODE, "promised") or self._least(MIXED, "promised")
                if decode is not None:
                    self._promise(request, decode)
        for machine in woken:
            self._wake(machine, now_s)

    def _least(self, role: int, load: str) -> Machine | None:
        """The open machine of this role with the least of it, the first of equals."""
        takers = [machine for machine in self.machines if machine.role == role and machine.state is MachineState.OPEN]
        return min(takers, key=attrgetter(load), default=None)

    @staticmethod
    def _promise(request: PlainRequest, decode: Machine) -> None:
        request.decode_at = decode
        decode.promised += request.tokens
        decode.pending += 1

    def _route(self, request: PlainRequest) -> None:
        """Prompts to the shortest queue, sequences to the least promised memory, the first of equals. The mixed pool takes a
        request whose prompt queue would be long or whose decode machine is full, if its own queue is the shorter one; and
        every request where prompt or decode machines are missing."""
        mixed, prompt_at = self._least(MIXED, "pending"), self._least(PREFILL, "pending")
        decode_at = self._least(DECODE, "promised")
        if prompt_at is None or decode_at is None:
            prompt_at = decode_at = mixed
        elif mixed is not None:
            long = prompt_at.pending + request.to_prefill > LONG_QUEUE_TOKENS
            full = decode_at.promised + request.tokens > decode_at.kind.kv_room
            if (long or full) and mixed.pending < prompt_at.pending:
                prompt_at = decode_at = mixed
        if prompt_at is None or decode_at is None:
            return
        self._promise(request, decode_at)
        request.prompt_at = prompt_at
        prompt_at.pending += request.to_prefill
        prompt_at.prompts.append(request)


def run_plain(pools: Sequence[Pool], arrivals: Arrivals, *, changes: Sequence[Change] = ()) -> PlainRun:
    """Deterministic; takes about a hundred times as long as `run_fleet`, whose checks of the requests are not made here."""
    columns = (arrivals.arrival_s.tolist(), arrivals.prompt_tokens.tolist(), arrivals.output_tokens.tolist())
    requests = [PlainRequest(i, *row, row[1]) for i, row in enumerate(zip(*columns, strict=True))]
    plain, first = Plain(pools), machine_numbers(pools)
    roles = [machine.role for machine in plain.machines]
    plain.run(requests, [(first[change.pool] + change.server, change) for change in changes])
    done = [request for request in requests if not math.isnan(request.done_s)]
    ends_s = max(machine.drawn_until_s for machine in plain.machines)
    if len(done) < len(requests):
        ends_s = max(ends_s, requests[-1].arrival_s)
    energy_j: dict[str, float] = {}
    for machine, role in zip(plain.machines, roles, strict=True):
        machine.draw(ends_s, 0.0)
        energy_j[ROLE_NAMES[role]] = energy_j.get(ROLE_NAMES[role], 0.0) + machine.energy_j
    ttft_s = np.array([request.prompt_end_s - request.arrival_s for request in done])
    user_s = np.array([request.first_s - request.arrival_s for request in done])
    e2e_s = np.array([request.done_s - request.arrival_s for request in done])
    output = np.array([request.output for request in done])
    latencies = Latencies(ttft_s * 1e3, (e2e_s - ttft_s) / output * 1e3, e2e_s * 1e3, user_s * 1e3)
    unfinished = [request.number for request in requests if math.isnan(request.done_s)]
    return PlainRun(latencies, energy_j, ends_s, unfinished, plain.restarted, plain.flips)
