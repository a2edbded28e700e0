"""`PhaseAware`: weighted water-filling by priority and phase."""

from __future__ import annotations

from splitwatt_core.policy import Decision, PowerSnapshot


class PhaseAware:
    """Policy; see policy.Policy."""

    name = "PhaseAware"

    def __init__(self, *, raise_deadband_w: int = 4, headroom_percent: int = 5) -> None:
        raise NotImplementedError

    def decide(self, snapshot: PowerSnapshot, now_s: float) -> Decision:
        raise NotImplementedError
