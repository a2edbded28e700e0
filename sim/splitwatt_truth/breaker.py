"""A breaker's thermal memory under a load that changes: how far an overload has brought it to its trip.

Theory. With x = current / rated current (at one voltage: power / rated power), a thermal trip heats and cools as

    theta' = (x^2 - 1) / k   while x > 1,        theta' = -theta / tau,  tau = k / 2   while x <= 1,

and trips at theta = 1. For a load that is constant between two samples both have a closed form, so nothing depends on how
often anyone looks. The law and its constants are a model (U): with k = 214 s it trips within UL 489's bounds (135 %: one
hour, 200 %: two minutes) and carries 10 % for 17 minutes, as Meta reports of a rack; k = 20 s stands for a UPS (125 % for
36 s, 150 % for 16 s).

Protected: theta is never below 0, never falls under an overload, and never rises without one.
"""

from __future__ import annotations

import math
from typing import Final

NOMINAL_K_S: Final = 214.0
PESSIMISTIC_K_S: Final = 20.0
TRIP_THETA: Final = 1.0
COOLING_SHARE: Final = 0.5
"""tau / k."""


def _check(load_ratio: float, k_s: float) -> None:
    if not (load_ratio >= 0.0 and 0.0 < k_s < math.inf):
        raise ValueError(f"a breaker's load must be 0 or more and its k above 0 s, not {load_ratio} and {k_s} s")


def step_breaker(theta: float, *, load_ratio: float, elapsed_s: float, k_s: float = NOMINAL_K_S) -> float:
    """theta after `elapsed_s` seconds at `load_ratio` (power / rated power). Not clipped at the trip: a value above
    TRIP_THETA says by how much it was passed. Raises ValueError on a negative load, time or theta, or k of 0."""
    _check(load_ratio, k_s)
    if theta < 0.0 or elapsed_s < 0.0:
        raise ValueError(f"theta and elapsed time must be 0 or more, not {theta} and {elapsed_s} s")
    if load_ratio > 1.0:
        return theta + elapsed_s * (load_ratio * load_ratio - 1.0) / k_s
    return theta * math.exp(-elapsed_s / (COOLING_SHARE * k_s))


def trips_in_s(theta: float, *, load_ratio: float, k_s: float = NOMINAL_K_S) -> float:
    """Seconds until theta reaches TRIP_THETA at this constant load: 0 where it has, inf where it never does. Raises
    ValueError as `step_breaker` does."""
    _check(load_ratio, k_s)
    if theta >= TRIP_THETA:
        return 0.0
    if load_ratio <= 1.0:
        return math.inf
    return (TRIP_THETA - theta) * k_s / (load_ratio * load_ratio - 1.0)
