"""Which pools, of which servers, at which caps: the search behind `splitwatt plan`.

A design is charged what its caps allow, as a PowerBudget charges it: (1 + losses) * GPUs * cap + the rest of the server. So
a lower cap buys servers, and the split of servers and the split of watts are one question. Two questions can be asked:

    the largest rate that fits limits   every split along the limit, for every pair of server options
    the least design for a rate         for every number of prefill servers the fewest decode servers

Both lean on monotonicity in one direction only: more decode servers never miss an SLO that fewer met, a rate that fails is
not tried by a design that the best so far has already passed. What is found is always measured, never extrapolated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final, Protocol, TypeVar

from splitwatt_core.clusters import MAX_REPLICAS

from splitwatt_sim.fleet.run import FleetRun, run_fleet
from splitwatt_sim.fleet.state import DECODE, MIXED, PREFILL, Pool, ServerKind
from splitwatt_sim.servers.designs import MAX_SERVERS
from splitwatt_sim.servers.kinds import GPUS, LOSSES
from splitwatt_sim.traces.arrivals import Arrivals
from splitwatt_sim.traces.resample import poisson

MAX_POOL: Final = MAX_REPLICAS
"""Servers of one pool: as many replicas as an InferenceCluster can say, or a plan could not be applied."""
OFF_GRID: Final = 1e-6
"""Of a step: nearer to the grid than this is on it."""
TYPICAL_BATCH: Final = 32
FEW_SERVERS: Final = 128
PLENTY: Final = 8
"""Decode servers per prefill server that no sane split exceeds when there is room for any number."""


@dataclass(frozen=True, slots=True)
class Option:
    """A server that can be bought, under a cap per GPU. charge_w: what a budget counts for it. usd_per_hour nan: unknown."""

    gpu: str
    cap_w: int
    kind: ServerKind
    charge_w: float
    usd_per_hour: float = math.nan

    def __str__(self) -> str:
        return f"{self.gpu} at {self.cap_w} W"


ROLE_OF_PART: Final = {"prefill": PREFILL, "decode": DECODE, "mixed": MIXED, "unsplit": MIXED}


@dataclass(frozen=True, slots=True)
class PlanDesign:
    """`decode` None: unsplit, every server does both. `mixed`: servers that do both beside the two pools, for what these
    have no room for."""

    prefill: Option
    prefill_servers: int
    decode: Option | None = None
    decode_servers: int = 0
    mixed: Option | None = None
    mixed_servers: int = 0

    @property
    def parts(self) -> list[tuple[str, Option, int]]:
        """What is bought: role, option, servers."""
        if self.decode is None:
            return [("unsplit", self.prefill, self.prefill_servers)]
        parts = [("prefill", self.prefill, self.prefill_servers), ("decode", self.decode, self.decode_servers)]
        return parts if self.mixed is None else [*parts, ("mixed", self.mixed, self.mixed_servers)]

    @property
    def servers(self) -> int:
        return sum(servers for _, _, servers in self.parts)

    @property
    def charge_w(self) -> float:
        return sum(option.charge_w * servers for _, option, servers in self.parts)

    @property
    def usd_per_hour(self) -> float:
        return sum(option.usd_per_hour * servers for _, option, servers in self.parts)

    def pools(self) -> list[Pool]:
        return [Pool(ROLE_OF_PART[part], option.kind, servers) for part, option, servers in self.parts]

    def __str__(self) -> str:
        if self.decode is None:
            return f"{self.prefill_servers} x {self.prefill}, unsplit"
        return ", ".join(f"{servers} x {option} {part}" for part, option, servers in self.parts)


@dataclass(frozen=True, slots=True)
class Limits:
    """What may be spent; infinite where nothing was said. Watts at the meter as a budget charges them."""

    charge_w: float = math.inf
    usd_per_hour: float = math.inf
    servers: int = MAX_SERVERS

    def room_for(self, option: Option, spent: PlanDesign | None = None) -> int:
        """How many servers of this option fit beside what is spent."""
        charge_w, usd, servers = (spent.charge_w, spent.usd_per_hour, spent.servers) if spent else (0.0, 0.0, 0)
        counts = [float(self.servers - servers), float(MAX_POOL)]
        if math.isfinite(self.charge_w):
            counts.append((self.charge_w - charge_w) / option.charge_w)
        if math.isfinite(self.usd_per_hour):
            assert not math.isnan(option.usd_per_hour), f"{option} has no price, and money is limited"
            counts.append((self.usd_per_hour - usd) / option.usd_per_hour)
        return max(0, math.floor(min(counts) + 1e-9))

    @property
    def by_price(self) -> bool:
        """Whether the least design is the one with the least price: where money alone is limited."""
        return math.isfinite(self.usd_per_hour) and math.isinf(self.charge_w)

    def cost(self, design: PlanDesign) -> float:
        """What the least design has least of: dollars per hour, or watts."""
        return design.usd_per_hour if self.by_price else design.charge_w


@dataclass(frozen=True, slots=True)
class Goal:
    """What a design must do. `misses` names the SLOs that a run on a list misses. Rates are multiples of `step_rps`."""

    sizes: Arrivals
    seconds: float
    seed: int
    step_rps: float
    misses: Callable[[FleetRun, Arrivals], list[str]]

    def arrivals(self, rate_rps: float) -> Arrivals:
        """The list for a rate: the same for every design."""
        return poisson(self.sizes, requests_per_s=rate_rps, seconds=self.seconds, seed=self.seed)

    def holds(self, design: PlanDesign, rate_rps: float) -> bool:
        """A list without a request has nobody to keep waiting: it holds."""
        arrivals = self.arrivals(rate_rps)
        return not len(arrivals) or not self.misses(run_fleet(design.pools(), arrivals), arrivals)


@dataclass(frozen=True, slots=True)
class Found:
    """A design and the rate at which it was measured to hold."""

    design: PlanDesign
    rate_rps: float
    run: FleetRun


class Rated(Protocol):
    """What a design was measured to hold, however it was kept."""

    @property
    def design(self) -> PlanDesign: ...
    @property
    def rate_rps(self) -> float: ...


R = TypeVar("R", bound=Rated)


def climb(design: PlanDesign, goal: Goal, above_rps: float) -> float:
    """The largest grid rate above `above_rps` that holds, `above_rps` when none does: in doubling strides while it holds,
    then by bisection. Leans on rates that fail not holding again further up."""
    if not goal.holds(design, above_rps + goal.step_rps):
        return above_rps
    low, stride = 1, 1  # in steps above `above_rps`
    while goal.holds(design, above_rps + (low + stride) * goal.step_rps):
        low, stride = low + stride, 2 * stride
    high = low + stride
    while high - low > 1:
        middle = (low + high) // 2
        if goal.holds(design, above_rps + middle * goal.step_rps):
            low = middle
        else:
            high = middle
    return above_rps + low * goal.step_rps


def prefill_share(prefill: Option, decode: Option, sizes: Arrivals) -> float:
    """A guess at the share of servers that should prefill: work of a request in either phase, decode in typical batches."""
    prefill_s = float(prefill.kind.prefill_s[sizes.prompt_tokens].mean())
    decode_s = float(sizes.output_tokens.mean()) * float(decode.kind.decode_s[TYPICAL_BATCH]) / TYPICAL_BATCH
    return prefill_s / (prefill_s + decode_s)


def splits(prefill: Option, decode: Option, limits: Limits, sizes: Arrivals) -> Iterator[PlanDesign]:
    """Every split that fills the limits, the likeliest first."""
    most = limits.room_for(prefill)
    designs = [PlanDesign(prefill, p, decode) for p in range(1, most + 1)]
    filled = [replace(d, decode_servers=limits.room_for(decode, d)) for d in designs]
    share = prefill_share(prefill, decode, sizes)
    usable = [d for d in filled if d.decode_servers > 0]
    return iter(sorted(usable, key=lambda d: abs(d.prefill_servers / d.servers - share)))


def largest_rate(prefill: Option, decode: Option | None, limits: Limits, goal: Goal) -> Found | None:
    """The design of these options with the largest rate within the limits, None when none holds one step."""
    best_rps, best = 0.0, None
    unsplit = PlanDesign(prefill, limits.room_for(prefill))
    designs = splits(prefill, decode, limits, goal.sizes) if decode else iter([unsplit] if unsplit.servers else [])
    for design in designs:
        rate_rps = climb(design, goal, best_rps)
        if rate_rps > best_rps:
            best_rps, best = rate_rps, design
    return None if best is None else measured(best, best_rps, goal)


def measured(design: PlanDesign, rate_rps: float, goal: Goal) -> Found:
    return Found(design, rate_rps, run_fleet(design.pools(), goal.arrivals(rate_rps)))


def least_design(prefill: Option, decode: Option | None, rate_rps: float, limits: Limits, goal: Goal) -> Found | None:
    """The design of these options with the least cost (`Limits.cost`) that holds this rate within the limits, None when none
    does."""
    if decode is None:
        servers = _fewest(lambda n: PlanDesign(prefill, n), limits.room_for(prefill), rate_rps, goal)
        return None if servers is None else measured(PlanDesign(prefill, servers), rate_rps, goal)
    best: PlanDesign | None = None
    cost, one_more = limits.cost, limits.cost(PlanDesign(decode, 1))
    for p in range(_first_prefill(prefill, decode, rate_rps, limits, goal), limits.room_for(prefill) + 1):
        alone = PlanDesign(prefill, p, decode)
        if best is not None and cost(alone) + one_more >= cost(best):
            break
        most = limits.room_for(decode, alone)
        if math.isinf(limits.charge_w) and math.isinf(limits.usd_per_hour):
            most = min(most, PLENTY * max(p, FEW_SERVERS // 8))
        if best is not None:
            most = min(most, math.ceil((cost(best) - cost(alone)) / one_more) - 1)
        count = _fewest(partial(_with_decode, alone), most, rate_rps, goal)
        if count is not None:
            best = replace(alone, decode_servers=count)
    return None if best is None else measured(best, rate_rps, goal)


def _first_prefill(prefill: Option, decode: Option, rate_rps: float, limits: Limits, goal: Goal) -> int:
    """Where to begin looking. In little room every count is looked at; in much of it fewer prefill servers than the first
    doubling that holds, with all the room left to decode, are not worth a look below its half."""
    room = limits.room_for(prefill)
    if room <= FEW_SERVERS:
        return 1
    p = 1
    while p < room:
        alone = PlanDesign(prefill, p, decode)
        most = min(limits.room_for(decode, alone), PLENTY * p)
        if most > 0 and goal.holds(_with_decode(alone, most), rate_rps):
            return max(1, p // 2)
        p *= 2
    return room + 1


def _with_decode(design: PlanDesign, servers: int) -> PlanDesign:
    return replace(design, decode_servers=servers)


def _fewest(design: Callable[[int], PlanDesign], most: int, rate_rps: float, goal: Goal) -> int | None:
    """The least count from 1 to `most` that holds, by bisection; None when `most` does not."""
    if most < 1 or not goal.holds(design(most), rate_rps):
        return None
    low, high = 0, most
    while high - low > 1:
        middle = (low + high) // 2
        if goal.holds(design(middle), rate_rps):
            high = middle
        else:
            low = middle
    return high


def pareto(found: Sequence[R]) -> list[R]:
    """Those that no other beats in rate and charge together, by rising charge."""
    kept: list[R] = []
    for f in sorted(found, key=lambda f: (f.design.charge_w, -f.rate_rps)):
        if not kept or f.rate_rps > kept[-1].rate_rps:
            kept.append(f)
    return kept


def robust_rate(design: PlanDesign, rate_rps: float, goal: Goal, *, seeds: Sequence[int]) -> tuple[int, float]:
    """On lists that the search never saw: how many hold this rate, and the largest grid rate up to it that all hold."""
    goals = [replace(goal, seed=seed) for seed in seeds]
    survived = sum(g.holds(design, rate_rps) for g in goals)
    below = rates_down(rate_rps, goal.step_rps)
    return survived, next((rate for rate in below if all(g.holds(design, rate) for g in goals)), 0.0)


def rates_down(from_rps: float, step_rps: float) -> Iterator[float]:
    """This rate, and each that is whole steps below it and above 0. Steps are counted: a difference of floats taken again and
    again ends beside 0, at a rate of 1e-17 that asks for no request."""
    steps = from_rps / step_rps
    whole = round(steps)
    if abs(steps - whole) > OFF_GRID:  # a given rate need not lie on the grid
        yield from (from_rps - below * step_rps for below in range(math.ceil(steps)))
        return
    yield from_rps
    yield from (left * step_rps for left in range(whole - 1, 0, -1))


def charge_w(*, cap_w: float, rest_w: float, gpus: int = GPUS) -> float:
    """What a budget counts for a server at the meter (invariant I1): GPU caps with losses, and the rest."""
    return float((1 + LOSSES) * gpus * cap_w + rest_w)
