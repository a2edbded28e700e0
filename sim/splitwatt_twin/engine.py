"""Emulated engines: continuous batching as pure state machines over virtual time.

Theory (Splitwise, arXiv:2311.18677, section IV): a prefill machine takes prompts first-come into batches of at most
2048 tokens and produces each prompt's first token; a decode machine steps its whole running batch at once, lets new
sequences in between two steps, and takes as many as its KV cache holds. Times come from a `ReplicaSpeed`, that is from the
core's phase model under the GPUs' present caps and clocks; nothing here sleeps or reads a clock.

An engine tells when it next has something to say (`due_s`) and is then fired at exactly that virtual time, however late
the process is. Decode steps between which nobody joins or leaves are one *stretch* in closed form: step times grow
linearly with the context, so the end of step i is  start + i*first + slope*i*(i-1)/2.  A joining sequence cuts the
stretch at the next step boundary. Stretches are at most `COALESCE_S` long, which bounds how late a changed cap counts.

Invariants: tokens and requests are conserved (each request leaves exactly once, with exactly `output_tokens`, or is
handed back by `evict`); reserved KV never exceeds the capacity.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from dataclasses import dataclass
from typing import Final, Protocol

from splitwatt_twin.requests import Request
from splitwatt_twin.stats import EngineStats

PREFILL_BATCH_TOKENS: Final = 2048
"""Splitwise's bound on batched prompt tokens; a longer prompt runs alone."""
MAX_DECODE_BATCH: Final = 256
"""Sequences stepped together (vLLM's max_num_seqs)."""
COALESCE_S: Final = 0.05
"""Decode steps are taken together up to this long."""
IDLE: Final = math.inf


class ReplicaSpeed(Protocol):
    """How fast the replica's GPUs are right now. Seconds."""

    def prefill_s(self, tokens: int) -> float: ...

    def decode_s(self, batch: int, context_tokens: float) -> float:
        """One step of `batch` sequences with `context_tokens` of context each, on average."""
        ...


class PrefillEngine:
    """`due_s`: end of the running batch, infinity when idle. `pending_tokens`: prompt tokens queued or running."""

    def __init__(self, *, name: str, pace: ReplicaSpeed, stats: EngineStats) -> None:
        self.name = name
        self.stats = stats
        self.due_s = IDLE
        self.pending_tokens = 0
        self._pace = pace
        self._queue: deque[Request] = deque()
        self._batch: list[Request] = []
        self.batch_tokens = 0

    @property
    def running(self) -> int:
        return len(self._batch)

    @property
    def waiting(self) -> int:
        return len(self._queue)

    def submit(self, request: Request, now_s: float) -> None:
        request.prefill_pod = self.name
        self._queue.append(request)
        self.pending_tokens += request.context_tokens
        if self.due_s == IDLE:
            self._begin(now_s)

    def fire(self) -> list[Request]:
        """The batch ends at `due_s`: each of its requests has one more token. The next batch begins at once."""
        at_s, done = self.due_s, self._batch
        for request in done:
            self.stats.prompt_tokens += request.context_tokens
            self.pending_tokens -= request.context_tokens
            if request.first_token_s is None:
                self.stats.ttft.observe(at_s - request.arrived_s)
            request.token(at_s)
        self.stats.generation_tokens += len(done)
        self._batch = []
        self._begin(at_s)
        return done

    def _begin(self, now_s: float) -> None:
        self.batch_tokens = 0
        while self._queue:
            tokens = self._queue[0].context_tokens
            if self._batch and self.batch_tokens + tokens > PREFILL_BATCH_TOKENS:
                break
            self.batch_tokens += tokens
            self._batch.append(self._queue.popleft())
        self.due_s = now_s + self._pace.prefill_s(self.batch_tokens) if self._batch else IDLE

    def evict(self) -> list[Request]:
        """The replica is gone: hands back everything it held."""
        held = [*self._batch, *self._queue]
        self._batch, self.batch_tokens, self.pending_tokens, self.due_s = [], 0, 0, IDLE
        self._queue.clear()
        return held


@dataclass(slots=True)
class _Stretch:
    """Steps taken together. `end(i)` is when step i ends, i from 1."""

    start_s: float
    steps: int
    first_s: float
    slope_s: float

    def end(self, i: int) -> float:
        return self.start_s + i * self.first_s + self.slope_s * (i * (i - 1) / 2)

    def begun(self, now_s: float) -> int:
        """The step that runs at `now_s`: the smallest i with end(i) >= now_s."""
        i = 1
        while i < self.steps and self.end(i) < now_s:
            i += 1
        return i


class DecodeEngine:
    """`due_s`: end of the present stretch. `committed_tokens`: KV promised to running, waiting and coming requests."""

    def __init__(
        self, *, name: str, pace: ReplicaSpeed, kv_capacity_tokens: int, stats: EngineStats, beside_prefill: bool = False
    ) -> None:
        """`beside_prefill`: prompts may be read by the same replica, which has counted their first token then."""
        assert kv_capacity_tokens > 0
        self._beside_prefill = beside_prefill
        self.name = name
        self.stats = stats
        self.due_s = IDLE
        self.kv_capacity_tokens = kv_capacity_tokens
        self.committed_tokens = 0
        self._pace = pace
        self._waiting: deque[Request] = deque()
        self._running: list[tuple[int, int, Request]] = []  # heap: (step at which it ends, order of joining, request)
        self._joined = 0
        self._step = 0
        self._context_tokens = 0  # KV entries of the running batch after `_step`
        self._reserved_tokens = 0
        self._fresh: list[Request] = []  # joined at the start of this stretch: their first gap holds the hand-off
        self._stretch: _Stretch | None = None

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def kv_usage(self) -> float:
        """0..1, as vllm:kv_cache_usage_perc."""
        return self._context_tokens / self.kv_capacity_tokens

    def generated(self, request: Request) -> int:
        """Tokens the request has by the end of the last stretch, for whoever streams them."""
        return request.generated if request.last_step is None else request.output_tokens - (request.last_step - self._step)

    def commit(self, request: Request) -> None:
        """The router chose this replica: counts the request before its KV cache has arrived."""
        self.committed_tokens += request.kv_tokens

    def arrive(self, request: Request, now_s: float) -> None:
        """The KV cache of a committed request is here."""
        assert request.remaining > 0, "a finished request needs no decode"
        request.decode_pod = self.name
        self._waiting.append(request)
        if self._stretch is None:
            self._begin(now_s)
        elif self._fits(self._waiting[0]):
            self._stretch.steps = self._stretch.begun(now_s)
            self.due_s = self._stretch.end(self._stretch.steps)

    def _fits(self, request: Request) -> bool:
        return len(self._running) < MAX_DECODE_BATCH and self._reserved_tokens + request.kv_tokens <= self.kv_capacity_tokens

    def _begin(self, now_s: float) -> None:
        while self._waiting and self._fits(self._waiting[0]):
            request = self._waiting.popleft()
            self._reserved_tokens += request.kv_tokens
            self._context_tokens += request.context_tokens
            request.last_step = self._step + request.remaining
            heapq.heappush(self._running, (request.last_step, self._joined, request))
            self._joined += 1
            self._fresh.append(request)
        if not self._running:
            self._stretch, self.due_s = None, IDLE
            return
        batch = len(self._running)
        context = self._context_tokens / batch
        first_s = self._pace.decode_s(batch, context)
        steps = min(self._running[0][0] - self._step, max(1, int(COALESCE_S / first_s)))
        last_s = self._pace.decode_s(batch, context + steps - 1) if steps > 1 else first_s
        slope_s = (last_s - first_s) / (steps - 1) if steps > 1 else 0.0
        self._stretch = _Stretch(start_s=now_s, steps=steps, first_s=first_s, slope_s=slope_s)
        self.due_s = self._stretch.end(steps)

    def fire(self) -> list[Request]:
        """The stretch ends at `due_s`. Returns the requests that are complete; the next stretch begins at once."""
        assert self._stretch is not None
        at_s = self.due_s
        self._take(self._stretch.steps)
        done: list[Request] = []
        while self._running and self._running[0][0] == self._step:
            _, _, request = heapq.heappop(self._running)
            self._context_tokens -= request.kv_tokens
            self._reserved_tokens -= request.kv_tokens
            self.committed_tokens -= request.kv_tokens
            request.generated, request.last_step = request.output_tokens, None
            request.last_token_s = request.finished_s = at_s
            self.stats.e2e.observe(request.e2e_s)
            self.stats.successes += 1
            done.append(request)
        self._begin(at_s)
        return done

    def _take(self, steps: int) -> None:
        """Books `steps` whole steps of the present stretch."""
        stretch, batch = self._stretch, len(self._running)
        assert stretch is not None
        if steps == 0:
            return
        fresh = len(self._fresh)
        for request in self._fresh:
            waited_s = stretch.end(1) - request.last_token_s
            self.stats.tbt.observe(waited_s)
            if not self._beside_prefill or request.first_token_s is None:
                self.stats.ttft.observe(waited_s)
        self._fresh = []
        if batch > fresh:
            self.stats.tbt.observe(stretch.first_s, batch - fresh)
        for i in range(1, steps):
            self.stats.tbt.observe(stretch.first_s + stretch.slope_s * i, batch)
        self.stats.generation_tokens += batch * steps
        self._step += steps
        self._context_tokens += batch * steps

    def evict(self, now_s: float) -> list[Request]:
        """The replica is gone: hands back what it held, with the tokens of all steps that ended by `now_s`."""
        if self._stretch is not None:
            whole = self._stretch.begun(now_s)
            taken = whole if whole < self._stretch.steps and self._stretch.end(whole) <= now_s else whole - 1
            ended_s = self._stretch.end(taken)
            self._take(taken)
            for ends_at, _, request in self._running:
                request.generated, request.last_step = request.output_tokens - (ends_at - self._step), None
                if taken or request not in self._fresh:
                    request.last_token_s = max(request.last_token_s, ended_s)
        held = [request for _, _, request in sorted(self._running, key=lambda row: row[1])] + list(self._waiting)
        self._running, self._fresh, self._stretch, self.due_s = [], [], None, IDLE
        self._waiting.clear()
        self._context_tokens = self._reserved_tokens = 0
        for request in held:
            self.committed_tokens -= request.kv_tokens
        return held
