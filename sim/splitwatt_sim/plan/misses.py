"""Why nothing was found: the tightest constraint, in one sentence with its numbers. Runs only where no design was found.

Three reasons, the plainest first: no server fits the limits; a request alone, with a whole server to itself, misses an SLO on
every pair of servers; and else the design that comes nearest with all that the limits allow.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Final

import numpy as np

from splitwatt_sim.fleet.run import FleetError, FleetRun, run_fleet
from splitwatt_sim.plan.options import SloFigure
from splitwatt_sim.plan.search import Goal, Limits, PlanDesign, splits
from splitwatt_sim.servers.designs import MAX_SERVERS
from splitwatt_sim.traces.arrivals import Arrivals

Measure = Callable[[FleetRun, Arrivals], list[SloFigure]]

APART_S: Final = 3_600.0
"""Between requests that must not meet: longer than any of them takes."""
ALONE: Final = 1_000
"""Requests tried alone, of the list's first."""
LIKELY: Final = 3
"""Splits of a pair that are tried for the nearest miss: beside the balance of work each further one is further off."""


@dataclass(frozen=True, slots=True)
class Limit:
    """One limit as it was given. `takes`: words for how much of it a design takes; both in the words' unit."""

    option: str
    most: float
    of: Callable[[PlanDesign], float]
    takes: Callable[[float], str]

    def full(self, design: PlanDesign) -> bool:
        """Whether not even the smallest server of the design fits beside it."""
        return self.most - self.of(design) < min(self.of(PlanDesign(option, 1)) for _, option, _ in design.parts)


def limits_given(limits: Limits, *, charge_option: str, power_units: bool = False) -> list[Limit]:
    """Those that were given. `charge_option`: the option that limits the charge."""
    unit = "power units" if power_units else "W"
    every = [
        Limit("--servers", limits.servers, lambda d: d.servers, lambda n: f"takes {n:.0f}"),
        Limit("--usd-per-hour", limits.usd_per_hour, lambda d: d.usd_per_hour, lambda n: f"costs {_up(n)} USD per hour"),
        Limit(charge_option, limits.charge_w, lambda d: d.charge_w, lambda n: f"is charged {_up(n)} {unit}"),
    ]
    # The most that a plan may have is no limit to be raised.
    return [limit for limit in every if limit.most < (MAX_SERVERS if limit.option == "--servers" else math.inf)]


def why(
    pairs: Sequence[PlanDesign], limits: Limits, goal: Goal, *, rate_rps: float, lower: str, measure: Measure, given: list[Limit]
) -> str:
    """One sentence. `pairs`: servers without counts; `lower`: the option that says `rate_rps`."""
    least = [replace(pair, prefill_servers=1, decode_servers=1 if pair.decode else 0) for pair in pairs]
    return (
        no_room(least, given)
        or alone_too_slow(least, goal.arrivals(rate_rps), measure)
        or nearest_miss(pairs, limits, goal, rate_rps=rate_rps, lower=lower, measure=measure, given=given)
    )


def no_room(least: Sequence[PlanDesign], given: Sequence[Limit]) -> str | None:
    """The limit that not even the cheapest design fits; None where one does. `least`: designs of one server of each role."""
    left, within = list(least), ""
    for limit in given:
        fitting = [design for design in left if limit.of(design) <= limit.most * (1 + 1e-9)]
        if not fitting:
            cheapest = min(left, key=limit.of)
            needs = limit.of(cheapest)
            return (
                f"no server fits: the cheapest{within}, {_servers(cheapest)}, {limit.takes(needs)}, and {limit.option} is "
                f"{limit.most:g}: raise it to {_up(needs)} or more"
            )
        if len(fitting) < len(left):
            within += f"{' and' if within else ' within'} {limit.option} {limit.most:g}"
        left = fitting
    return None


def alone_too_slow(least: Sequence[PlanDesign], arrivals: Arrivals, measure: Measure) -> str | None:
    """The SLO that requests miss on every one of these designs though none waits for another; None where one design holds."""
    n = min(len(arrivals), ALONE)
    apart_s = np.arange(n, dtype=np.float64) * np.float64(APART_S)
    apart = Arrivals(apart_s, arrivals.prompt_tokens[:n], arrivals.output_tokens[:n], f"{arrivals.name}, one at a time")
    ran = [(design, figures) for design in least if (figures := _figures(design, apart, measure)) is not None]
    nearest = _nearest(ran)
    if nearest is None:
        return None
    design, worst = nearest
    if not worst.missed:
        return None
    return (
        f"one request alone has a {worst.title} of {_values(worst)[0]} {worst.unit} on the fastest server, {_servers(design)}, "
        f"and the SLO less its margin is {_values(worst)[1]}: loosen it"
    )


def nearest_miss(
    pairs: Sequence[PlanDesign], limits: Limits, goal: Goal, *, rate_rps: float, lower: str, measure: Measure, given: list[Limit]
) -> str:
    """The design within the limits that comes nearest to holding this rate, and by which SLO it misses."""
    arrivals = goal.arrivals(rate_rps)
    designs = (design for pair in pairs for design in _largest(pair, limits, goal))
    ran = [(design, figures) for design in designs if (figures := _figures(design, arrivals, measure)) is not None]
    nearest = _nearest(ran)
    if nearest is None:
        return f"no design within these limits can be run at {rate_rps:g} requests/s: raise a limit, or lower {lower}"
    design, worst = nearest
    value, limit = _values(worst)
    binding = [one for one in given if one.full(design)]
    most = " and ".join(f"{one.option} {one.most:g}" for one in binding)
    holds = f"the most that {most} {'hold' if len(binding) > 1 else 'holds'}" if binding else "as large as a plan may be"
    more = " or ".join(f"raise {one.option}" for one in binding[:1])
    remedy = f"{more} or lower {lower}" if more else f"loosen the SLO or lower {lower}"
    return f"{design}, {holds}, misses {worst.title}: {value} of {limit} {worst.unit} at {rate_rps:g} requests/s: {remedy}"


def _largest(pair: PlanDesign, limits: Limits, goal: Goal) -> Iterator[PlanDesign]:
    if pair.decode is not None:
        yield from islice(splits(pair.prefill, pair.decode, limits, goal.sizes), LIKELY)
    elif servers := limits.room_for(pair.prefill):
        yield replace(pair, prefill_servers=servers)


def _figures(design: PlanDesign, arrivals: Arrivals, measure: Measure) -> list[SloFigure] | None:
    """None where the list cannot be run on this design."""
    try:
        return measure(run_fleet(design.pools(), arrivals), arrivals)
    except FleetError:
        return None


def _nearest(ran: Sequence[tuple[PlanDesign, list[SloFigure]]]) -> tuple[PlanDesign, SloFigure] | None:
    """The design whose worst SLO is the least over its limit, and that SLO."""
    worst = [(design, max(figures, key=lambda f: f.value / f.limit)) for design, figures in ran]
    return min(worst, key=lambda pair: pair[1].value / pair[1].limit, default=None)


def _values(figure: SloFigure) -> tuple[str, str]:
    """Value and limit in as many digits as it takes to see which is the larger one."""
    for digits in (0, 1, 2, 3):
        value, limit = f"{figure.value:.{digits}f}", f"{figure.limit:.{digits}f}"
        if value != limit and figure.limit * 10**digits >= 90:
            break
    return value, limit


def _servers(design: PlanDesign) -> str:
    if design.decode is None:
        return str(design.prefill)
    return f"{design.prefill} and {design.decode} to decode"


def _up(value: float) -> str:
    """Rounded up, so that what is named as enough is enough."""
    whole = math.ceil(value - 1e-6)
    return f"{whole}"
