"""`Uniform`: every GPU the same cap, as far as the budget tree permits."""

from __future__ import annotations

from splitwatt_core.policy import Decision, PowerSnapshot


class Uniform:
    """Policy; see policy.Policy."""

    name = "Uniform"

    def decide(self, snapshot: PowerSnapshot, now_s: float) -> Decision:
        raise NotImplementedError
