"""The study behind docs/reproduce/maxlps.md: readings of the published room, the cases that are judged, and their variants.

Where a choice was open, the base case takes the one against us: the fullest load at which the published point can be met at
all, for a full fleet has least time to spare; and the largest rest that any load from `LIGHTEST` on leaves of the published
draw, for a large rest leaves least to caps. The two do not even belong to one load.

Protects: a case names all it assumes, and what is searched on some lists is judged on others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Final

from splitwatt_core.gpus.profiles import Profile
from splitwatt_core.protocol.contract import Phase
from splitwatt_sim.plan.options import profile_named
from splitwatt_sim.servers.kinds import GPUS

from splitwatt_papers.oversubscribe.budget import PUBLISHED, RoomReading
from splitwatt_papers.oversubscribe.fleets import FIXED, FleetBench, ServerFleet, fixed_sizes, mean_gpu_w, spread_sizes
from splitwatt_papers.oversubscribe.search import (
    FIRST_JUDGE_SEED,
    OURS,
    SEARCH_SEEDS,
    STEP_RPS,
    WAYS,
    Comparison,
    FleetVerdict,
    Static,
    Way,
    best_fleet,
    fleets_of,
    judge,
    largest,
    most_gpus,
    published_point,
    published_servers,
    static_fleet,
)

GPU: Final = "B200"
AIM_GPUS: Final = 215
AIM_SHARE: Final = 0.84
LIGHTEST: Final = 0.6
LOADS: Final = (LIGHTEST, 0.7, 0.8, 0.9)
"""Shares of the full load at which the rest is read, beside the base load."""
ROUND_W: Final = 10
RESTS_W: Final = (300, 400, 490, 600, 689, 849)
"""Beside the base rest. 849: a static GPU at its largest cap fills its share of the budget, without margin."""
OTHER_DECODE_W: Final = 688
"""Natural draw of decode in the other report (docs/facts.md, power by phase)."""
SPARE: Final = 0.15
"""The examples declare 2800 W for a server of which the simulated rack draws 2468 W at 575 W per GPU: 13 % more."""
CURVE_STEP: Final = 3
"""Servers between two points of the plot."""


@dataclass(frozen=True, slots=True)
class Case:
    """One question and its answer. `verdict` None: no count from the static one on holds."""

    name: str
    reading: RoomReading
    static: Static
    way: Way
    verdict: FleetVerdict | None

    @property
    def gpus(self) -> float:
        """For each published budget; 0 where nothing holds."""
        return self.reading.per_room(self.verdict.fleet.servers) if self.verdict else 0.0


@dataclass(frozen=True, slots=True)
class RestRead:
    """The rest that the published draw leaves at one load: mean watts of a GPU of the simulated fleet, and of its rest. ttft:
    P99 there against the simulated static fleet's, mean over the search's lists; published is `PUBLISHED.ttft_p99_worse`."""

    split: bool
    load: float
    gpu_w: float
    rest_w: float
    ttft: float


@dataclass(frozen=True, slots=True)
class Packed:
    """Uncapped fleets counted by the largest second seen on the search's lists; `peak` on lists that no search saw."""

    load: float
    gpus: float
    peak: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Point:
    """Of the plot: GPUs for each budget, and the mean change of P99 TTFT on the judging lists at the best split."""

    way: Way
    gpus: float
    ttft: float


@dataclass(frozen=True, slots=True)
class StudyResults:
    """`statics` by (name of the lists, split). `main`: both kinds of lists and static fleets, every way. `rests`: our way
    and the two others, each against the static fleet of its own arrangement. `even_rest_w`: the largest rest at which our way
    reaches `AIM_GPUS`."""

    seeds: tuple[int, ...]
    base: RoomReading
    read: tuple[RestRead, ...]
    benches: dict[str, FleetBench]
    statics: dict[tuple[str, bool], Static]
    main: tuple[Case, ...]
    rests: tuple[Case, ...]
    others: tuple[Case, ...]
    even_rest_w: int
    packed: tuple[Packed, ...]
    curve: tuple[Point, ...]

    @property
    def headline(self) -> Case:
        """Fixed lengths, split against split, base reading."""
        return self.main[0]


def at_load(static: Static, load: float) -> Static:
    """At this share of the full load, on the grid."""
    return static.at(round(load * static.full_rps / STEP_RPS) * STEP_RPS)


def read_rest(bench: FleetBench, static: Static, reading: RoomReading) -> RestRead | None:
    """None where the published point cannot be met at this load."""
    fleet = published_point(bench, reading, static)
    if fleet is None:
        return None
    rate_rps = static.rate_rps * (1 + PUBLISHED.tokens_gain)
    runs = bench.runs(fleet, rate_rps, SEARCH_SEEDS)
    gpu_w = mean_gpu_w(runs, published_servers(reading))
    before = bench.runs(static.fleet, static.rate_rps, SEARCH_SEEDS)
    ttft = fmean(Comparison.of(a, b).ttft for a, b in zip(runs, before, strict=True))
    return RestRead(static.fleet.split, static.load, gpu_w, PUBLISHED.rest_w(gpu_w), ttft)


def base_reading(read: Sequence[RestRead]) -> RoomReading:
    """The largest rest that was read, up to the next `ROUND_W`."""
    return RoomReading(math.ceil(max(r.rest_w for r in read) / ROUND_W) * ROUND_W)


def decode_at(profile: Profile, natural_w: int) -> Profile:
    """The GPU if it drew this while it decodes: all watts of that phase in proportion."""
    phases = []
    for row in profile.phases:
        if row.phase is Phase.DECODE:
            times = natural_w / row.natural_w
            points = tuple((round(cap_w * times), permille) for cap_w, permille in row.latency_points)
            row = replace(row, natural_w=natural_w, cliff_w=round(row.cliff_w * times), latency_points=points)  # noqa: PLW2901
        phases.append(row)
    return replace(profile, phases=tuple(phases))


def dearer_prefill(profile: Profile, times: int) -> Profile:
    """The GPU if a cap cost prefill so many times as much."""
    phases = []
    for row in profile.phases:
        if row.phase is Phase.PREFILL:
            points = tuple((cap_w, 1000 + times * (permille - 1000)) for cap_w, permille in row.latency_points)
            row = replace(row, latency_points=points)  # noqa: PLW2901
        phases.append(row)
    return replace(profile, phases=tuple(phases))


def case(name: str, bench: FleetBench, reading: RoomReading, static: Static, *, way: Way = OURS, seeds: Sequence[int]) -> Case:
    """Searched, then judged on `seeds`."""
    fleet = most_gpus(bench, reading, way, static)
    verdict = judge(bench, reading, fleet, static, seeds) if fleet else None
    return Case(name, reading, static, way, verdict)


def run_study(lists: int, tick: Callable[[str], None]) -> StudyResults:
    """Everything, judged on so many lists; `tick` hears what comes next."""
    seeds = tuple(range(FIRST_JUDGE_SEED, FIRST_JUDGE_SEED + lists))
    profile, two_rooms = profile_named(GPU), RoomReading(0.0)
    benches = {bench.sizes.name: bench for bench in (FleetBench(profile, fixed_sizes()), FleetBench(profile, spread_sizes()))}
    fixed = benches[FIXED]
    tick("the static fleets")
    statics = {
        (name, split): static_fleet(bench, two_rooms, split=split) for name, bench in benches.items() for split in (True, False)
    }
    ours, unsplit = statics[fixed.sizes.name, True], statics[fixed.sizes.name, False]
    loads = [static if load is None else at_load(static, load) for static in (ours, unsplit) for load in (*LOADS, None)]
    read = tuple(found for static in loads if (found := read_rest(fixed, static, two_rooms)) is not None)
    base = base_reading(read)
    tick("every way, against both static fleets")
    main = tuple(
        case(name, benches[name], base, static, way=way, seeds=seeds) for (name, _), static in statics.items() for way in WAYS
    )
    tick("other rests")
    rests = tuple(
        case(
            f"{rest_w:g} W",
            fixed,
            replace(base, rest_w=rest_w),
            ours if way.split else unsplit,
            way=way,
            seeds=seeds,
        )
        for rest_w in sorted({*RESTS_W, base.rest_w})
        for way in WAYS
    )
    tick("other assumptions")
    others = variants(fixed, base, ours, read, seeds)
    even_w = largest(lambda tens: _reaches_aim(fixed, RoomReading(10.0 * tens), ours), int(PUBLISHED.static_w) // 10) * 10
    packed = tuple(pack(fixed, base, static, seeds) for static in (ours, at_load(ours, LIGHTEST)))
    tick("the plot's points")
    curve = tuple(point for way in WAYS for point in points(fixed, base, way, ours if way.split else unsplit, seeds))
    return StudyResults(seeds, base, read, benches, statics, main, rests, others, even_w, packed, curve)


def _reaches_aim(bench: FleetBench, reading: RoomReading, static: Static) -> bool:
    servers = math.ceil(AIM_GPUS * reading.rooms / GPUS)
    return best_fleet(bench, reading, OURS, static, servers) is not None


def variants(
    bench: FleetBench, base: RoomReading, static: Static, read: Sequence[RestRead], seeds: Sequence[int]
) -> tuple[Case, ...]:
    """Our way against the split static fleet, one assumption changed at a time; the static fleet is searched anew where the
    change touches it."""
    own = min(r.rest_w for r in read if r.split)
    cases = [
        case(f"rest as read at the base load, {own:.0f} W", bench, replace(base, rest_w=own), static, seeds=seeds),
        *(
            case(f"{100 * load:.0f} % of the full load", bench, base, at_load(static, load), seeds=seeds)
            for load in (0.8, LIGHTEST)
        ),
        case(f"{100 * SPARE:.0f} % more rest declared than drawn", bench, replace(base, rest_spare=SPARE), static, seeds=seeds),
    ]
    for name, profile in (
        (f"decode draws {OTHER_DECODE_W} W", decode_at(bench.profile, OTHER_DECODE_W)),
        ("a cap costs prefill twice as much", dearer_prefill(bench.profile, 2)),
    ):
        other = FleetBench(profile, bench.sizes)
        cases.append(case(name, other, base, static_fleet(other, base, split=True), seeds=seeds))
    room = replace(base, rooms=1)
    return (*cases, case("one room, 17 servers before", bench, room, static_fleet(bench, room, split=True), seeds=seeds))


def pack(bench: FleetBench, reading: RoomReading, static: Static, seeds: Sequence[int]) -> Packed:
    """How many GPUs fit uncapped by the largest second seen, in the split of the static fleet: what a bet on the sum of draws
    would give, and what came of it."""

    def fleet(servers: int) -> ServerFleet:
        prefill = round(servers * static.fleet.prefill_servers / static.fleet.servers)
        return bench.uncapped(prefill, servers - prefill)

    def peaks(servers: int, of: Sequence[int]) -> tuple[float, ...]:
        runs = bench.runs(fleet(servers), static.rate_for(servers), of)
        return tuple(reading.share(f.peak_gpus_w, servers) for f in runs)

    more = largest(
        lambda more: max(peaks(static.fleet.servers + more, SEARCH_SEEDS)) <= 1.0,
        reading.most_servers(bench.profile.idle_w) - static.fleet.servers,
    )
    servers = static.fleet.servers + more
    return Packed(static.load, reading.per_room(servers), peaks(servers, seeds))


def points(bench: FleetBench, reading: RoomReading, way: Way, static: Static, seeds: Sequence[int]) -> list[Point]:
    """P99 TTFT by count, at the split with the least change of the worse P99 on the first of the search's lists."""
    found = []
    for servers in range(static.fleet.servers, reading.most_servers(bench.profile.min_cap_w) + 1, CURVE_STEP):
        tried = [
            (max(v.changes[0].ttft, v.changes[0].tbt), fleet)
            for fleet in fleets_of(bench, reading, way, servers)
            for v in [judge(bench, reading, fleet, static, SEARCH_SEEDS[:1])]
        ]
        if not tried:
            break
        verdict = judge(bench, reading, min(tried, key=lambda t: t[0])[1], static, seeds)
        found.append(Point(way, reading.per_room(servers), fmean(change.ttft for change in verdict.changes)))
    return found
