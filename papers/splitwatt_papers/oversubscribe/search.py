"""How many GPUs a budget serves as well as the static fleet: the static fleet's load, the largest count, the verdict.

The load is per GPU: N GPUs carry N / (static count) times the static fleet's rate. Two rules set it.

    full    the largest rate at which the best split of the static fleet keeps its own SLO, P99 TTFT within `ALONE_TIMES` its
            value alone and P99 TBT within `TBT_MS`
    load    of it, the largest rate at which the published point can be met at all: the published count, uncapped, carries
            the published gain in tokens with P99 TTFT at most the published share above the static fleet's

A count *holds* when, of all splits near the static one, some split has P99 TTFT and P99 TBT at most `WORSE` above the static
fleet's on the same list. The published claim is about TTFT alone; ours binds both.

Protects: what is searched with a margin on lists `SEARCH_SEEDS` is judged without it on lists that no search saw.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from splitwatt_core.policies.phase_aware import PhaseAware
from splitwatt_core.policies.signature import Policy
from splitwatt_core.policies.uniform import Uniform
from splitwatt_sim.servers.kinds import GPUS

from splitwatt_papers.oversubscribe.budget import PUBLISHED, RoomReading, caps_for
from splitwatt_papers.oversubscribe.fleets import Figures, FleetBench, ServerFleet

SEARCH_SEEDS: Final = (1, 2, 3)
FIRST_JUDGE_SEED: Final = 101
STEP_RPS: Final = 0.5
MOST_STEPS: Final = 1_024
ALONE_TIMES: Final = 2.0
TBT_MS: Final = 50.0
WORSE: Final = 0.05
MARGIN: Final = 0.01
"""Of `WORSE`, kept free while searching."""
PREFILL_SHARES: Final = (0.64, 0.80)
"""Of the servers: splits tried. Outside one of the two pools is idle at this workload."""


@dataclass(frozen=True, slots=True)
class Way:
    """One way to fill the room."""

    name: str
    split: bool
    policy: Policy


OURS: Final = Way("split, PhaseAware", True, PhaseAware())
SPLIT_UNIFORM: Final = Way("split, Uniform", True, Uniform())
UNSPLIT: Final = Way("unsplit, Uniform", False, Uniform())
WAYS: Final = (OURS, SPLIT_UNIFORM, UNSPLIT)


@dataclass(frozen=True, slots=True)
class Static:
    """The fleet to compare with, uncapped: at `rate_rps` it is compared, at `full_rps` its own SLO ends."""

    fleet: ServerFleet
    rate_rps: float
    full_rps: float

    @property
    def load(self) -> float:
        """Share of the full load."""
        return self.rate_rps / self.full_rps

    def rate_for(self, servers: int) -> float:
        return self.rate_rps * servers / self.fleet.servers

    def at(self, rate_rps: float) -> Static:
        return Static(self.fleet, rate_rps, self.full_rps)


@dataclass(frozen=True, slots=True)
class Comparison:
    """Against the static fleet on the same list: P99s and tokens/s, as shares (0.05: 5 % more)."""

    ttft: float
    tbt: float
    e2e: float
    tokens: float

    @classmethod
    def of(cls, ours: Figures, static: Figures) -> Comparison:
        return cls(
            ours.ttft_ms / static.ttft_ms - 1,
            ours.tbt_ms / static.tbt_ms - 1,
            ours.e2e_ms / static.e2e_ms - 1,
            ours.tokens_per_s / static.tokens_per_s - 1,
        )

    def within(self, worse: float) -> bool:
        return max(self.ttft, self.tbt) <= worse


@dataclass(frozen=True, slots=True)
class FleetVerdict:
    """Of one fleet on lists that no search saw, one entry per list. share, peak: of the budget, mean and largest second."""

    fleet: ServerFleet
    changes: tuple[Comparison, ...]
    figures: tuple[Figures, ...]
    share: tuple[float, ...]
    peak: tuple[float, ...]

    @property
    def held(self) -> int:
        """Lists on which nothing promised is worse than `WORSE`."""
        return sum(change.within(WORSE) for change in self.changes)


def split_counts(servers: int, *, split: bool) -> list[tuple[int, int]]:
    """(prefill, decode) servers to try, from the middle of `PREFILL_SHARES` outwards."""
    if not split:
        return [(servers, 0)]
    low, high = (round(servers * share) for share in PREFILL_SHARES)
    prefill = range(max(1, low), min(high, servers - 1) + 1)
    return [(p, servers - p) for p in sorted(prefill, key=lambda p: abs(p - (low + high) / 2))]


def largest(holds: Callable[[int], bool], most: int) -> int:
    """The largest n from 0 to `most` that holds, by bisection: for what never holds again once it does not, as a rate or a
    rest. `holds(0)` is taken for granted."""
    low, high = 0, most + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def static_fleet(bench: FleetBench, reading: RoomReading, *, split: bool) -> Static:
    """The best static fleet, at the load of the module's docstring. Raises ValueError where none keeps its SLO."""
    best, full = 0, None
    for prefill, decode in split_counts(reading.static_servers, split=split):
        fleet = bench.uncapped(prefill, decode)
        limit_ms = ALONE_TIMES * bench.alone(fleet).ttft_ms

        def keeps(steps: int, fleet: ServerFleet = fleet, limit_ms: float = limit_ms) -> bool:
            return _all(bench, fleet, steps * STEP_RPS, lambda f: f.ttft_ms <= limit_ms and f.tbt_ms <= TBT_MS)

        if full is None or keeps(best + 1):
            # Keeping is not quite monotone in the rate, so a bisection can end below the rate that it began above.
            found = largest(keeps, MOST_STEPS)
            if found > best:
                best, full = found, fleet
    if full is None or best == 0:
        raise ValueError("the static fleet keeps its SLO at no rate; look at the timing of this GPU")
    static = Static(full, best * STEP_RPS, best * STEP_RPS)
    load = largest(lambda steps: published_point(bench, reading, static.at(steps * STEP_RPS)) is not None, best)
    if load == 0:
        raise ValueError("the published point is met at no rate of the static fleet")
    return static.at(load * STEP_RPS)


def published_point(bench: FleetBench, reading: RoomReading, static: Static) -> ServerFleet | None:
    """The published count of GPUs, uncapped, in a split that carries the published gain as well as published; else None."""
    rate_rps = static.rate_rps * (1 + PUBLISHED.tokens_gain)
    before = [bench.run(static.fleet, static.rate_rps, seed).ttft_ms for seed in SEARCH_SEEDS]
    for prefill, decode in split_counts(published_servers(reading), split=static.fleet.split):
        fleet = bench.uncapped(prefill, decode)
        # Seed by seed: most splits fail on the first list.
        if all(
            (after := bench.run(fleet, rate_rps, seed)).tbt_ms <= TBT_MS
            and after.ttft_ms <= (1 + PUBLISHED.ttft_p99_worse) * ttft_ms
            for seed, ttft_ms in zip(SEARCH_SEEDS, before, strict=True)
        ):
            return fleet
    return None


def published_servers(reading: RoomReading) -> int:
    return reading.rooms * PUBLISHED.gpus // GPUS


def _all(bench: FleetBench, fleet: ServerFleet, rate_rps: float, good: Callable[[Figures], bool]) -> bool:
    return all(good(bench.run(fleet, rate_rps, seed)) for seed in SEARCH_SEEDS)


def fleets_of(bench: FleetBench, reading: RoomReading, way: Way, servers: int) -> Iterator[ServerFleet]:
    """Every split of so many servers under the caps that the way's policy gives it; none where the budget has no room."""
    for prefill, decode in split_counts(servers, split=way.split):
        caps = caps_for(way.policy, reading, bench.profile, prefill_servers=prefill, decode_servers=decode)
        if caps is not None:
            yield ServerFleet(prefill, decode, caps)


def worst(bench: FleetBench, fleet: ServerFleet, static: Static, worse: float) -> float | None:
    """The largest of both P99s' changes over the search's lists; None as soon as one is above `worse`, and without a run where
    prefill alone asks for more time than there is: a queue that grows all along the list."""
    if bench.prefill_load(fleet, static.rate_for(fleet.servers)) >= 1.0:
        return None
    found = -math.inf
    for seed in SEARCH_SEEDS:
        ours = bench.run(fleet, static.rate_for(fleet.servers), seed)
        change = Comparison.of(ours, bench.run(static.fleet, static.rate_rps, seed))
        if not change.within(worse):
            return None
        found = max(found, change.ttft, change.tbt)
    return found


def best_fleet(bench: FleetBench, reading: RoomReading, way: Way, static: Static, servers: int) -> ServerFleet | None:
    """The split of so many servers that holds with the most to spare; None where none holds."""
    room = [
        (change, fleet)
        for fleet in fleets_of(bench, reading, way, servers)
        if (change := worst(bench, fleet, static, WORSE - MARGIN)) is not None
    ]
    return min(room, key=lambda pair: pair[0])[1] if room else None


def most_gpus(bench: FleetBench, reading: RoomReading, way: Way, static: Static) -> ServerFleet | None:
    """The largest fleet that holds; None where none from the static fleet's count on does. Every count is tried, from the top:
    a larger fleet pools better and splits finer, so it may hold where a smaller one does not."""
    for servers in range(reading.most_servers(bench.profile.min_cap_w), static.fleet.servers - 1, -1):
        fleet = best_fleet(bench, reading, way, static, servers)
        if fleet is not None:
            return fleet
    return None


def judge(bench: FleetBench, reading: RoomReading, fleet: ServerFleet, static: Static, seeds: Sequence[int]) -> FleetVerdict:
    """One run a list, against the static fleet on the same list."""
    ours = bench.runs(fleet, static.rate_for(fleet.servers), seeds)
    before = bench.runs(static.fleet, static.rate_rps, seeds)
    return FleetVerdict(
        fleet,
        tuple(Comparison.of(a, b) for a, b in zip(ours, before, strict=True)),
        tuple(ours),
        tuple(reading.share(f.gpus_w, fleet.servers) for f in ours),
        tuple(reading.share(f.peak_gpus_w, fleet.servers) for f in ours),
    )
