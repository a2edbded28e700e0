"""Splitwise's four pairs at the power of 40 H100: every split along the power line, searched with decode timed right."""

from __future__ import annotations

from typing import Final

from splitwatt_sim.plan.options import Slo
from splitwatt_sim.plan.search import Found, Goal, Limits, Option, largest_rate
from splitwatt_sim.servers.designs import RATED_POWER_UNITS, SPLIT
from splitwatt_sim.servers.kinds import tables_kind
from splitwatt_sim.servers.tables import builtin
from splitwatt_sim.traces.arrivals import Arrivals

MODEL: Final = "bloom-176b"
POWER_UNITS: Final = 40 * RATED_POWER_UNITS["H100"]
CAP_W: Final = {"A100": 400, "H100": 700, "H100-capped": 350}
STEP_RPS: Final = 5.0
LIST_S: Final = 120.0
SEARCH_SEED: Final = 1
ORDER: Final = ("HHcap", "HH", "HA", "AA")


def goal_of(sizes: Arrivals, *, margin: float) -> Goal:
    """Splitwise's nine SLOs with this much to spare, on lists of two minutes."""
    return Goal(sizes, LIST_S, SEARCH_SEED, STEP_RPS, Slo(margin=margin).checker(MODEL))


def best_split(name: str, goal: Goal) -> Found:
    """The best split of one of `ORDER`, charged in Splitwise's power units."""
    longest = int(goal.sizes.prompt_tokens.max())

    def option(kind: str) -> Option:
        gpu = kind.removesuffix("-capped")
        table = tables_kind(builtin(), MODEL, gpu, cap_w=CAP_W[kind], longest_prompt=longest)
        return Option(gpu, CAP_W[kind], table, RATED_POWER_UNITS[kind])

    prefill, decode = SPLIT[name]
    found = largest_rate(option(prefill), option(decode), Limits(charge_w=POWER_UNITS), goal)
    assert found is not None, f"{name} holds no rate at this power"
    return found
