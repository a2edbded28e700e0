"""Splitwise's designs at equal provisioned power in the paper's units: the best split of each, and what becomes of it.

Searched on the fleet engine with decode timed right, every split along the power line. Judged as the published splits were: by
the reference model, without a margin, on the same list and on lists that no search saw.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from splitwatt_sim.latencies import missed_slos, slowdowns
from splitwatt_sim.plan.options import LatencySlo
from splitwatt_sim.plan.search import Found, Goal, Limits, Option, PlanDesign, largest_rate, rates_down
from splitwatt_sim.servers.alone import unloaded
from splitwatt_sim.servers.designs import RATED_POWER_UNITS, SPLIT, UNSPLIT, USD_PER_HOUR, Design
from splitwatt_sim.servers.kinds import tables_kind
from splitwatt_sim.servers.tables import DecodeModel, builtin
from splitwatt_sim.traces.arrivals import Arrivals

from splitwatt_papers.reference.run import run_reference

MODEL: Final = "bloom-176b"
POWER_UNITS: Final = 40 * RATED_POWER_UNITS["H100"]
CAP_W: Final = {"A100": 400, "H100": 700, "H100-capped": 350}
STEP_RPS: Final = 5.0
LIST_S: Final = 120.0
SEARCH_SEED: Final = 1
ORDER: Final = ("HHcap", "HH", "HA", "AA")
ALL: Final = (*ORDER, *reversed(UNSPLIT))
"""The pairs, and what is not split."""


def goal_of(
    sizes: Arrivals,
    *,
    margin: float,
    seconds: float = LIST_S,
    seed: int = SEARCH_SEED,
    step_rps: float = STEP_RPS,
    model: str = MODEL,
) -> Goal:
    """Splitwise's nine SLOs with this much to spare, on lists of two minutes."""
    return Goal(sizes, seconds, seed, step_rps, LatencySlo(margin=margin).checker(model))


def best_split(name: str, goal: Goal, *, power_units: float = POWER_UNITS, model: str = MODEL) -> Found:
    """The best split of one of `ORDER`, charged in Splitwise's power units. It holds some rate at the power of 40 H100."""
    found = best_design(name, goal, power_units=power_units, model=model)
    assert found is not None, f"{name} holds no rate at this power"
    return found


def best_design(name: str, goal: Goal, *, power_units: float, model: str = MODEL) -> Found | None:
    """The best of one of `ALL`, None where not even one step of the rate holds."""
    servers = servers_of(name, goal, model=model)
    return largest_rate(servers.prefill, servers.decode, Limits(charge_w=power_units), goal)


def servers_of(name: str, goal: Goal, *, model: str = MODEL) -> PlanDesign:
    """The servers of one of `ALL`, without counts, charged in power units."""
    longest = int(goal.sizes.prompt_tokens.max())

    def option(kind: str) -> Option:
        gpu = kind.removesuffix("-capped")
        table = tables_kind(builtin(), model, gpu, cap_w=CAP_W[kind], longest_prompt=longest)
        return Option(gpu, CAP_W[kind], table, RATED_POWER_UNITS[kind], USD_PER_HOUR[kind])

    if name in UNSPLIT:
        return PlanDesign(option(UNSPLIT[name]), 0)
    prefill, decode = SPLIT[name]
    return PlanDesign(option(prefill), 0, option(decode))


@dataclass(frozen=True, slots=True)
class Judged:
    """One plan at equal power. `held`: how many unseen lists hold the searched rate, by the reference model; `all_rps`: the
    largest grid rate that all of them hold; `first_rps`: what the list that was searched on holds by that model."""

    name: str
    found: Found
    search_s: float
    first_rps: float
    held: int
    all_rps: float


def judged(name: str, goal: Goal, *, power_units: float, seeds: Sequence[int], model: str = MODEL) -> Judged | None:
    """Search one of `ALL`, and judge it on the lists of these seeds. None where nothing holds."""
    begun_s = time.perf_counter()
    found = best_design(name, goal, power_units=power_units, model=model)
    search_s = time.perf_counter() - begun_s
    if found is None:
        return None
    design, lists = named(name, found.design), [replace(goal, seed=seed) for seed in seeds]
    return Judged(
        name=name,
        found=found,
        search_s=search_s,
        first_rps=_largest(design, [goal], found.rate_rps, model),
        held=sum(_reference_holds(design, g.arrivals(found.rate_rps), model) for g in lists),
        all_rps=_largest(design, lists, found.rate_rps, model),
    )


def named(name: str, design: PlanDesign) -> Design:
    """As Splitwise names it."""
    if name in UNSPLIT:
        return Design(name, UNSPLIT[name], design.prefill_servers, UNSPLIT[name])
    prefill, decode = SPLIT[name]
    return Design(name, prefill, design.prefill_servers, decode, design.decode_servers)


def _reference_holds(design: Design, arrivals: Arrivals, model: str) -> bool:
    if not len(arrivals):
        return True
    measured = run_reference(
        design,
        arrival_s=arrivals.arrival_s,
        prompt=arrivals.prompt_tokens,
        output=arrivals.output_tokens,
        tables=builtin(),
        model=model,
        decode=DecodeModel.BATCH,
    )
    alone = unloaded(builtin().server(model, "A100"), prompt=arrivals.prompt_tokens, output=arrivals.output_tokens)
    return not missed_slos(slowdowns(measured, alone))


def _largest(design: Design, lists: Sequence[Goal], from_rps: float, model: str) -> float:
    """The largest grid rate near `from_rps` that holds on all these lists: upwards while it does, else downwards."""
    step_rps = lists[0].step_rps

    def holds(rate_rps: float) -> bool:
        return all(_reference_holds(design, goal.arrivals(rate_rps), model) for goal in lists)

    if not holds(from_rps):
        return next((rate for rate in rates_down(from_rps, step_rps) if holds(rate)), 0.0)
    above = 0
    while holds(from_rps + (above + 1) * step_rps):
        above += 1
    return from_rps + above * step_rps
