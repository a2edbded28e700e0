"""Phase -> power demand and latency under a cap and a clock: scalars only, called once per engine iteration."""

from __future__ import annotations

from splitwatt_core.contract import Phase
from splitwatt_core.profiles import PhaseProfile, Profile

UNLOCKED_MHZ = 0
"""A clock of 0 means: no lock."""


def latency_factor(phase: PhaseProfile, cap_w: float) -> float:
    """Step time under a power cap over step time uncapped, >= 1; 1 at and above the natural draw."""
    raise NotImplementedError


def prefill_ms(profile: Profile, tokens: int, cap_w: float, clock_mhz: float = UNLOCKED_MHZ) -> float:
    """Time of one prefill batch of `tokens` prompt tokens. `clock_mhz`: the SM clock (locked or present), 0 = unlimited."""
    raise NotImplementedError


def decode_ms(
    profile: Profile, batch: int, context_tokens: int, cap_w: float, clock_mhz: float = UNLOCKED_MHZ
) -> float:
    """Time of one decode step of `batch` sequences with `context_tokens` tokens of context each (their mean)."""
    raise NotImplementedError


def prefill_load(profile: Profile, tokens: int) -> float:
    """0..1: how far a prefill batch of `tokens` pushes the draw from idle to natural."""
    raise NotImplementedError


def decode_load(profile: Profile, batch: int) -> float:
    """0..1: how far a decode batch pushes the draw from idle to natural."""
    raise NotImplementedError


def demand_w(profile: Profile, phase: Phase, load: float) -> float:
    """Watts one GPU wants uncapped, at `load` 0..1 (0, or no phase: idle)."""
    raise NotImplementedError


def clock_under_power_mhz(profile: Profile, phase: Phase, load: float, cap_w: float) -> float:
    """SM clock that a GPU at this demand reaches under a cap, within the clock range."""
    raise NotImplementedError


def power_at_clock_w(profile: Profile, phase: Phase, load: float, clock_mhz: float) -> float:
    """Watts one GPU wants while its SM clock is locked to at most `clock_mhz` (0 = unlocked)."""
    raise NotImplementedError
