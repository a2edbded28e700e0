"""All engines of the lab on one agenda: a discrete-event simulation that is kept level with the clock.

Theory: `run_until(now)` performs every event that is due, in the order of its virtual time, each *at* that time. So
latencies are computed, never slept: a process that wakes up 300 ms late still books the right times; it only drives the
simulated GPUs' demand late. The clock belongs to the caller (any seconds that only rise).

Invariant: virtual time never goes back, and no event is performed before it is due.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterator
from typing import Final

from splitwatt_twin.arrivals import Arrival
from splitwatt_twin.cluster import Cluster, KvLink
from splitwatt_twin.engine import IDLE, DecodeEngine, PrefillEngine
from splitwatt_twin.mixed import MixedEngine
from splitwatt_twin.requests import ClusterKey, Request

MAX_EVENTS_PER_RUN: Final = 5_000
"""Events of one `run_until`, about 100 ms of work: a process that has fallen behind still answers others in between."""

Engine = PrefillEngine | DecodeEngine


def parts_of(engine: Engine | MixedEngine) -> tuple[Engine, ...]:
    """What stands on the agenda by itself."""
    return engine.parts if isinstance(engine, MixedEngine) else (engine,)


class EngineFleet:
    """`finished` is called with every request that is complete, `touched` with every engine whose work may have changed."""

    def __init__(self, *, now_s: float, finished: Callable[[Request], None], touched: Callable[[Engine], None]) -> None:
        self.now_s = now_s
        self.events = 0
        self.clusters: dict[ClusterKey, Cluster] = {}
        self._finished = finished
        self._touched = touched
        self._agenda: list[tuple[float, int, Engine | Request | _Stream]] = []
        self._order = 0
        self._owner: dict[Engine, Cluster] = {}
        self._streams: dict[ClusterKey, _Stream] = {}

    # -------------------------------------------------------------------------------------------------------- agenda

    def _at(self, at_s: float, what: Engine | Request | _Stream) -> None:
        self._order += 1
        heapq.heappush(self._agenda, (at_s, self._order, what))

    def _wake(self, engine: Engine) -> None:
        if engine.due_s != IDLE:
            self._at(engine.due_s, engine)
        self._touched(engine)

    @property
    def next_s(self) -> float:
        """When something may next be due; infinity when nothing is."""
        return self._agenda[0][0] if self._agenda else math.inf

    def run_until(self, now_s: float) -> bool:
        """Performs what is due. False when `MAX_EVENTS_PER_RUN` cut it short: call again."""
        for _ in range(MAX_EVENTS_PER_RUN):
            if not self._agenda or self._agenda[0][0] > now_s:
                self.now_s = max(self.now_s, now_s)
                return True
            at_s, _, what = heapq.heappop(self._agenda)
            if isinstance(what, PrefillEngine | DecodeEngine) and what.due_s != at_s:
                continue  # the engine's plan changed since; it is on the agenda again with the new time
            assert at_s >= self.now_s, "virtual time went back"
            self.now_s = at_s
            self.events += 1
            self._perform(what, at_s)
        return False

    def _perform(self, what: Engine | Request | _Stream, at_s: float) -> None:
        match what:
            case PrefillEngine():
                done = self._owner[what].prefilled(what, what.fire(), at_s)
                self._wake(what)
            case DecodeEngine():
                done = what.fire()
                self._owner[what].left(len(done))
                self._wake(what)
            case Request():
                self.clusters[what.cluster].delivered(what, at_s)
                return
            case _Stream():
                what.submit(at_s)
                self._plan(what)
                return
        for request in done:
            self._finished(request)

    # ---------------------------------------------------------------------------------------------------------- load

    def cluster(self, key: ClusterKey) -> Cluster:
        if key not in self.clusters:
            self.clusters[key] = Cluster(key, wake=self._wake, send=self._at)
        return self.clusters[key]

    def start_load(self, key: ClusterKey, arrivals: Iterator[Arrival], *, origin_s: float) -> None:
        """Arrivals count from `origin_s`. A running stream of the cluster ends."""
        self.stop_load(key)
        self._streams[key] = stream = _Stream(self.cluster(key), arrivals, origin_s=origin_s)
        self._plan(stream)

    def stop_load(self, key: ClusterKey) -> None:
        if (stream := self._streams.pop(key, None)) is not None:
            stream.stop()

    def loaded(self, key: ClusterKey) -> bool:
        return key in self._streams

    def _plan(self, stream: _Stream) -> None:
        if stream.next is not None:
            self._at(max(self.now_s, stream.origin_s + stream.next.at_s), stream)

    # ------------------------------------------------------------------------------------------------------ replicas

    def add(self, key: ClusterKey, engine: Engine | MixedEngine, *, link: KvLink) -> None:
        """A replica became ready. Call `run_until` with the present time before."""
        cluster = self.cluster(key)
        for part in parts_of(engine):
            self._owner[part] = cluster
        if isinstance(engine, MixedEngine):
            cluster.add_mixed(engine, self.now_s)
        elif isinstance(engine, PrefillEngine):
            cluster.add_prefill(engine, link, self.now_s)
        else:
            cluster.add_decode(engine, self.now_s)

    def remove(self, engine: Engine | MixedEngine) -> None:
        """A replica is gone or unfit. Call `run_until` with the present time before."""
        cluster, *_ = (self._owner.pop(part) for part in parts_of(engine))
        cluster.remove(engine.name, self.now_s)


class _Stream:
    """One cluster's arrivals. `next` is the one that is on the agenda."""

    def __init__(self, cluster: Cluster, arrivals: Iterator[Arrival], *, origin_s: float) -> None:
        self.origin_s = origin_s
        self.next = next(arrivals, None)
        self._cluster = cluster
        self._arrivals = arrivals
        self._stopped = False

    def stop(self) -> None:
        self._stopped = True
        self.next = None

    def submit(self, at_s: float) -> None:
        if self.next is None:
            return
        request = Request(
            cluster=self._cluster.key,
            arrived_s=at_s,
            prompt_tokens=self.next.prompt_tokens,
            output_tokens=self.next.output_tokens,
        )
        self.next = None if self._stopped else next(self._arrivals, None)
        self._cluster.submit(request, at_s)
