"""One InferenceCluster's replicas and its router: join the shortest queue, hand the KV cache over, lose nothing.

Theory (Splitwise, arXiv:2311.18677): a request joins the prefill replica with the fewest pending prompt tokens; the
decode replica is the one with the smallest promised share of its KV cache. It is picked when the first token is there,
not at arrival, so a replica that died meanwhile is never picked. KV hand-off: layers are sent while later ones are
still computed, so above `OVERLAP_TOKENS` only a constant remainder is seen; shorter prompts are sent afterwards. A mixed
replica takes a request where there is no pair of the two, or where the best prompt queue is long or no decode replica has room,
and then only if its own queue is the shorter one: the planner's rule (`splitwatt_sim.fleet.kernel.route`).

Invariant: a request that was taken in is in exactly one place: the waiting room, one prefill or mixed replica, the waiting
room for decode, one hand-off, one decode replica; it leaves as finished or as dropped with a reason, and both are counted.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from splitwatt_twin.engine import DecodeEngine, PrefillEngine
from splitwatt_twin.mixed import MixedEngine
from splitwatt_twin.requests import ClusterKey, Request

MAX_IN_SYSTEM: Final = 5_000
"""Requests of one cluster that wait or run; more are dropped and counted."""
LONG_QUEUE_TOKENS: Final = 8192
"""Of prompts before one prefill replica, beyond which a mixed one may be the better place."""
OVERLAP_TOKENS: Final = 512
"""Splitwise sends the KV cache per layer above this many prompt tokens."""


class Drop(StrEnum):
    QUEUE_FULL = "queue_full"
    TOO_LONG = "too_long"
    CLUSTER_GONE = "cluster_gone"


@dataclass(frozen=True, slots=True)
class KvLink:
    """The way of a KV cache between two replicas. Splitwise: remainder 8 ms at 200 Gb/s, 5 ms at 400 Gb/s."""

    bytes_per_token: int
    gbit_per_s: float
    remainder_s: float

    def handoff_s(self, tokens: int) -> float:
        """Time between the end of the prefill and the moment the sequence may join a decode batch."""
        if tokens > OVERLAP_TOKENS:
            return self.remainder_s
        return tokens * self.bytes_per_token * 8 / (self.gbit_per_s * 1e9)


@dataclass(slots=True)
class PrefillReplica:
    engine: PrefillEngine
    link: KvLink


@dataclass(slots=True)
class ClusterCounts:
    arrived: int = 0
    finished: int = 0
    requeued: int = 0
    dropped: dict[Drop, int] = field(default_factory=lambda: dict.fromkeys(Drop, 0))


class Cluster:
    """`wake(engine)` is called whenever an engine's `due_s` changed; `send(at_s, request)` schedules a hand-off's end,
    upon which the owner calls `delivered`. Replicas come and go by pod name; only ready ones are in here."""

    def __init__(
        self,
        key: ClusterKey,
        *,
        wake: Callable[[PrefillEngine | DecodeEngine], None],
        send: Callable[[float, Request], None],
    ) -> None:
        self.key = key
        self.counts = ClusterCounts()
        self.in_system = 0
        self.prefills: dict[str, PrefillReplica] = {}
        self.decodes: dict[str, DecodeEngine] = {}
        self.mixed: dict[str, MixedEngine] = {}
        self.waiting: deque[Request] = deque()
        self.waiting_decode: deque[tuple[Request, KvLink]] = deque()
        self._in_flight: dict[Request, DecodeEngine] = {}
        self._links: dict[Request, KvLink] = {}
        self._wake = wake
        self._send = send

    @property
    def serving(self) -> bool:
        return self._paired or bool(self.mixed)

    @property
    def _paired(self) -> bool:
        return bool(self.prefills) and bool(self.decodes)

    # ------------------------------------------------------------------------------------------------------ requests

    def submit(self, request: Request, now_s: float) -> None:
        if self._take_in():
            self._route(request, now_s)

    def take_over(self, request: Request, link: KvLink, now_s: float) -> None:
        """A request whose prompt was computed elsewhere: its KV cache comes over `link`, and decode begins."""
        request.last_token_s = request.arrived_s
        if self._take_in():
            self._hand_over(request, link, now_s)

    def _take_in(self) -> bool:
        self.counts.arrived += 1
        if self.in_system >= MAX_IN_SYSTEM:
            self.counts.dropped[Drop.QUEUE_FULL] += 1
            return False
        self.in_system += 1
        return True

    def _route(self, request: Request, now_s: float) -> None:
        if not self.serving:
            self.waiting.append(request)
            return
        decodes = [d for d in self.decodes.values() if request.kv_tokens <= d.kv_capacity_tokens]
        engine = self._place(request, decodes)
        if engine is None:
            if decodes:
                self.waiting.append(request)  # no prefill replica is there, and no mixed one is large enough
            else:
                self._drop(request, Drop.TOO_LONG)
            return
        engine.submit(request, now_s)
        self._wake(engine)

    def _place(self, request: Request, decodes: list[DecodeEngine]) -> PrefillEngine | None:
        """Who reads the prompt; of a mixed replica its prefill half. `decodes`: those that could ever hold it."""
        large = [m for m in self.mixed.values() if request.kv_tokens <= m.decode.kv_capacity_tokens]
        mixed = min(large, key=lambda m: (m.pending, m.name), default=None)
        prefills = (r.engine for r in self.prefills.values())
        prefill = min(prefills, key=lambda e: (e.pending_tokens, e.name), default=None)
        if prefill is None or not decodes:
            return None if mixed is None else mixed.prefill
        if mixed is not None and mixed.pending < prefill.pending_tokens:
            long = prefill.pending_tokens + request.context_tokens > LONG_QUEUE_TOKENS
            if long or all(d.committed_tokens + request.kv_tokens > d.kv_capacity_tokens for d in decodes):
                return mixed.prefill
        return prefill

    def prefilled(self, engine: PrefillEngine, done: list[Request], now_s: float) -> list[Request]:
        """A prefill batch ended. Returns the requests that were complete with one token."""
        complete: list[Request] = []
        own = self.mixed.get(engine.name)
        for request in done:
            if request.remaining == 0:
                request.finished_s = now_s
                engine.stats.successes += 1
                complete.append(request)
            elif own is not None:
                own.decode.commit(request)
                own.decode.arrive(request, now_s)
                self._wake(own.decode)
            else:
                self._hand_over(request, self.prefills[engine.name].link, now_s)
        self.left(len(complete))
        return complete

    def _hand_over(self, request: Request, link: KvLink, now_s: float) -> None:
        able = [d for d in self.decodes.values() if request.kv_tokens <= d.kv_capacity_tokens]
        if not able:
            self.waiting_decode.append((request, link))
            return
        decode = min(able, key=lambda d: (d.committed_tokens / d.kv_capacity_tokens, d.running, d.name))
        decode.commit(request)
        self._in_flight[request] = decode
        self._links[request] = link
        self._send(now_s + link.handoff_s(request.context_tokens), request)

    def delivered(self, request: Request, now_s: float) -> None:
        """The hand-off's time is over. A replica that died meanwhile is replaced: the cache is still with the prefill."""
        decode = self._in_flight.pop(request)
        link = self._links.pop(request)
        if self.decodes.get(decode.name) is not decode:
            self._hand_over(request, link, now_s)
            return
        decode.stats.received(request.context_tokens, bytes_per_token=link.bytes_per_token)
        decode.arrive(request, now_s)
        self._wake(decode)

    def coming(self, decode: DecodeEngine) -> int:
        """KV caches that are on their way to it."""
        return sum(engine is decode for engine in self._in_flight.values())

    def left(self, finished: int) -> None:
        self.counts.finished += finished
        self.in_system -= finished

    def _drop(self, request: Request, why: Drop) -> None:
        assert request.finished_s is None
        self.counts.dropped[why] += 1
        self.in_system -= 1

    # ------------------------------------------------------------------------------------------------------ replicas

    def add_prefill(self, engine: PrefillEngine, link: KvLink, now_s: float) -> None:
        self.prefills[engine.name] = PrefillReplica(engine, link)
        self._drain(now_s)

    def add_decode(self, engine: DecodeEngine, now_s: float) -> None:
        self.decodes[engine.name] = engine
        stranded, self.waiting_decode = self.waiting_decode, deque()
        for request, link in stranded:
            self._hand_over(request, link, now_s)
        self._drain(now_s)

    def add_mixed(self, engine: MixedEngine, now_s: float) -> None:
        self.mixed[engine.name] = engine
        self._drain(now_s)

    def _drain(self, now_s: float) -> None:
        if not self.serving:
            return
        queued, self.waiting = self.waiting, deque()
        for request in queued:
            self._route(request, now_s)

    def remove(self, name: str, now_s: float) -> None:
        """A replica is gone or unfit; everything it held is prefilled again elsewhere, oldest request first."""
        if (prefill := self.prefills.pop(name, None)) is not None:
            held = prefill.engine.evict()
            self._wake(prefill.engine)
        elif (decode := self.decodes.pop(name, None)) is not None:
            held = decode.evict(now_s)
            self._wake(decode)
        elif (mixed := self.mixed.pop(name, None)) is not None:
            held = [*mixed.prefill.evict(), *mixed.decode.evict(now_s)]
            for part in mixed.parts:
                self._wake(part)
        else:
            return
        self.counts.requeued += len(held)
        for request in held:
            request.requeues += 1
        if not self.serving:
            self.waiting = deque(sorted([*held, *self.waiting], key=lambda r: r.arrived_s))
            return
        for request in sorted(held, key=lambda r: r.arrived_s):
            self._route(request, now_s)

    def abandon(self) -> None:
        """The cluster was deleted: its waiting requests are dropped. Its replicas must be gone before."""
        assert not self.prefills and not self.decodes and not self.mixed
        for request in [*self.waiting, *(request for request, _ in self.waiting_decode)]:
            self._drop(request, Drop.CLUSTER_GONE)
        self.waiting.clear()
        self.waiting_decode.clear()
