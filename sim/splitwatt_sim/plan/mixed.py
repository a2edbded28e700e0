"""Mixed servers beside two split pools: what Splitwise lets overflow into, looked for around the best split.

Servers are whole: the last one of a pool is often half empty, while the other pool is the one that misses the SLO. A server
that does both takes what either has no room for, by the router's rule (`fleet.kernel.route`): only while its own queue is
the shorter one.

Two questions, as in `search`. For the largest rate a few servers of either pool become mixed ones, which costs nothing: the
charge stays. For the least cost one server goes, and a few of the others become mixed.

Protected: a design with mixed servers is given only where it beats the best one without, on the list that was searched and
on lists that no search saw; never the same rate for the same charge, which is no reason to run three pools.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

from splitwatt_sim.plan.search import Goal, PlanDesign, climb, robust_rate

MAX_MOVED: Final = 4
"""Servers of one pool that become mixed. A fleet that wants more of them is better off unsplit, which is tried by itself."""
SAME: Final = 1e-9
LOOKED_AT: Final = 3
"""Splits, the best ones, around which mixed servers are tried."""


@dataclass(frozen=True, slots=True)
class Beside:
    """`rate_rps` holds on the list that was searched, `robust_rps` on all of those that were not, `survived` of which hold
    `rate_rps`."""

    design: PlanDesign
    rate_rps: float
    robust_rps: float
    survived: int


def moved(design: PlanDesign) -> Iterator[PlanDesign]:
    """This split with 1 to MAX_MOVED servers of either pool made mixed; one of each role stays. The charge stays too."""
    assert design.decode is not None and design.mixed is None
    for count in range(1, MAX_MOVED + 1):
        if design.prefill_servers > count:
            left = design.prefill_servers - count
            yield replace(design, prefill_servers=left, mixed=design.prefill, mixed_servers=count)
        if design.decode_servers > count:
            yield replace(design, decode_servers=design.decode_servers - count, mixed=design.decode, mixed_servers=count)


def cheaper(design: PlanDesign) -> Iterator[PlanDesign]:
    """This split with one server less, and some of the others mixed."""
    if design.prefill_servers > 1:
        yield from moved(replace(design, prefill_servers=design.prefill_servers - 1))
    if design.decode_servers > 1:
        yield from moved(replace(design, decode_servers=design.decode_servers - 1))


def more_rate(
    splits: Sequence[PlanDesign], goal: Goal, *, above_rps: float, robust_above_rps: float, seeds: Sequence[int]
) -> Beside | None:
    """The design with mixed servers that holds the largest rate, above `above_rps` on the list that was searched and above
    `robust_above_rps` on all unseen ones (`seeds`): what the best design without holds. None where there is none."""
    best_rps, best = above_rps, None
    for mixed in (mixed for split in splits for mixed in moved(split)):
        rate = climb(mixed, goal, best_rps)
        if rate > best_rps:
            best_rps, best = rate, mixed
    if best is None:
        return None
    survived, robust_rps = robust_rate(best, best_rps, goal, seeds=seeds)
    return Beside(best, best_rps, robust_rps, survived) if robust_rps > robust_above_rps else None


def less_cost(
    splits: Sequence[PlanDesign],
    goal: Goal,
    *,
    rate_rps: float,
    cost: Callable[[PlanDesign], float],
    below: float,
    survived: int,
    robust_rps: float,
    seeds: Sequence[int],
) -> Beside | None:
    """The design with mixed servers and the least cost below `below`, that of the best design without, which holds `rate_rps`
    on the list that was searched. None where there is none, and where the unseen lists bear it out less than that design:
    fewer of them hold that rate than `survived`, or none does, or all of them hold less than `robust_rps`.

    Only one is tried on the unseen lists. Trying the next one until some passes would be a search on them.
    """
    candidates = sorted((mixed for split in splits for mixed in cheaper(split)), key=cost)
    below *= 1 - SAME  # sums of equal prices in another order differ in their last bits
    mixed = next((mixed for mixed in candidates if cost(mixed) < below and goal.holds(mixed, rate_rps)), None)
    if mixed is None:
        return None
    held, robust = robust_rate(mixed, rate_rps, goal, seeds=seeds)
    return Beside(mixed, rate_rps, robust, held) if held >= max(survived, 1) and robust >= robust_rps else None
