"""Phase -> power demand and step time under a cap and a clock: scalars only, for one call per engine iteration.

Theory. A GPU in a phase wants idle + load * (natural - idle) watts. A cap below that slows its clock until it fits, and
the clock slows the step: prefill is bound by compute and follows it, decode is bound by memory and hardly notices down to
its cliff. What a cap costs is read from the profile's latency points; what a clock lock costs is

    1 + sensitivity * (top clock / clock - 1),

and of two brakes the stronger one counts, never both: a cap acts *through* the clock. Power and clock are tied by
watts above idle ~ clock^k near the top and ~ clock below the voltage floor.

All functions are monotone: more cap or clock never slows, more tokens, sequences or context never speed up. Every time is
finite at every legal cap. Beyond the tables, the last segment goes on (prefill above 8192 tokens: a lower bound, attention
grows faster).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from operator import itemgetter
from typing import Final

from splitwatt_core.gpus.profiles import PhaseProfile, Profile, ProfileError, Timing
from splitwatt_core.protocol.contract import Phase

UNLOCKED_MHZ: Final = 0
"""A clock of 0 means: no lock."""

_x = itemgetter(0)


def _interpolate(points: Sequence[tuple[int, float]], x: float, *, extend: bool) -> float:
    """Piecewise linear; constant below the first point; above the last one constant, or along the last segment."""
    at = bisect_right(points, x, key=_x)
    if at == 0:
        return points[0][1]
    if at == len(points):
        if not extend or at == 1:
            return points[-1][1]
        at -= 1
    (x0, y0), (x1, y1) = points[at - 1], points[at]
    return y0 + (y1 - y0) * (x - x0) / (x1 - x0)


def _require(profile: Profile, phase: Phase) -> PhaseProfile:
    row = profile.phase(phase)
    if row is None:
        raise ProfileError(f"profile {profile.name} does not describe phase {phase.value}; add it")
    return row


def _timing(profile: Profile) -> Timing:
    if profile.timing is None:
        raise ProfileError(f"profile {profile.name} has no timing; give prefill and decode points")
    return profile.timing


def latency_factor(phase: PhaseProfile, cap_w: float) -> float:
    """Step time under a power cap over step time uncapped, >= 1; 1 at and above the natural draw, and below the lowest
    point as at that point: no legal cap lies there."""
    if cap_w >= phase.natural_w:
        return 1.0
    return _interpolate(phase.latency_points, cap_w, extend=False) / 1000


def clock_factor(profile: Profile, phase: PhaseProfile, clock_mhz: float) -> float:
    """Step time with SM clocks of at most `clock_mhz` over step time uncapped, >= 1. 0: unlocked."""
    if clock_mhz <= UNLOCKED_MHZ or clock_mhz >= profile.max_clock_mhz:
        return 1.0
    slower = profile.max_clock_mhz / max(clock_mhz, profile.min_clock_mhz) - 1
    return 1 + phase.clock_sensitivity_permille / 1000 * slower


def _brake(profile: Profile, phase: PhaseProfile, cap_w: float, clock_mhz: float) -> float:
    return max(latency_factor(phase, cap_w), clock_factor(profile, phase, clock_mhz))


def prefill_ms(profile: Profile, tokens: int, cap_w: float, clock_mhz: float = UNLOCKED_MHZ) -> float:
    """Time of one prefill batch of `tokens` prompt tokens; 0 tokens take none.

    `cap_w`: the enforced power limit of the slowest GPU of the group. `clock_mhz`: its SM clock, locked or present, 0 =
    unlimited. Raises ValueError on negative tokens and ProfileError (a ValueError) where the profile has no timing.
    """
    if tokens <= 0:
        if tokens < 0:
            raise ValueError(f"tokens must be 0 or more, not {tokens}")
        return 0.0
    base_ms = _interpolate(_timing(profile).prefill_points, tokens, extend=True)
    return base_ms * _brake(profile, _require(profile, Phase.PREFILL), cap_w, clock_mhz)


def decode_ms(profile: Profile, batch: int, context_tokens: float, cap_w: float, clock_mhz: float = UNLOCKED_MHZ) -> float:
    """Time of one decode step of `batch` sequences with `context_tokens` tokens of context each (their mean); an empty
    batch takes none. Cap, clock and errors as in `prefill_ms`."""
    if batch <= 0 or context_tokens < 0:
        if batch < 0 or context_tokens < 0:
            raise ValueError(f"batch and context_tokens must be 0 or more, not {batch} and {context_tokens}")
        return 0.0
    timing = _timing(profile)
    base_ms = _interpolate(timing.decode_points, batch, extend=True)
    base_ms += timing.kv_ms_per_mtoken * batch * context_tokens / 1e6
    return base_ms * _brake(profile, _require(profile, Phase.DECODE), cap_w, clock_mhz)


def prefill_load(profile: Profile, tokens: int) -> float:
    """0..1: how far a prefill batch of `tokens` pushes the draw from idle to natural. 0 tokens: 0."""
    return _load(profile, Phase.PREFILL, tokens)


def decode_load(profile: Profile, batch: int) -> float:
    """0..1: how far a decode batch pushes the draw from idle to natural. An empty batch: 0."""
    return _load(profile, Phase.DECODE, batch)


def _load(profile: Profile, phase: Phase, amount: int) -> float:
    if amount <= 0:
        return 0.0
    return _interpolate(_require(profile, phase).load_points, amount, extend=False) / 1000


def demand_w(profile: Profile, phase: Phase, load: float) -> float:
    """Watts one GPU wants uncapped, at `load` 0..1 (0, or no phase: idle). Raises ValueError on another load."""
    if not 0 <= load <= 1:
        raise ValueError(f"load must lie in 0..1, not {load}")
    if phase is Phase.UNASSIGNED or load == 0:
        return float(profile.idle_w)
    return profile.idle_w + load * (_require(profile, phase).natural_w - profile.idle_w)


def power_at_clock_w(profile: Profile, phase: Phase, load: float, clock_mhz: float) -> float:
    """Watts one GPU wants while its SM clock is locked to at most `clock_mhz` (0 = unlocked). Errors as in `demand_w`."""
    wanted_w = demand_w(profile, phase, load) - profile.idle_w
    if clock_mhz <= UNLOCKED_MHZ or clock_mhz >= profile.max_clock_mhz:
        return profile.idle_w + wanted_w
    exponent, floor = profile.clock_exponent, profile.voltage_floor
    share = max(clock_mhz, profile.min_clock_mhz) / profile.max_clock_mhz
    above_idle: float = share**exponent if share >= floor else floor**exponent * share / floor
    return profile.idle_w + wanted_w * above_idle
