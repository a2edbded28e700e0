"""A policy whose clock locks follow nothing but the time, so that lines change at every moment under the same grants."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from splitwatt_core.policies.phase_aware import PhaseAware
from splitwatt_core.policies.signature import Decision, PowerSnapshot

LOCKS_MHZ = (0, 800, 1400)
TURN_S = 1.0


class Clocked:
    """The caps of PhaseAware; of the locks each GPU's neighbour has another."""

    name = "Clocked"

    def decide(self, snapshot: PowerSnapshot, now_s: float) -> Decision:
        decision = PhaseAware().decide(snapshot, now_s)
        turn = (np.arange(len(decision.cap_w)) + int(now_s // TURN_S)) % len(LOCKS_MHZ)
        return replace(decision, max_clock_mhz=np.array(LOCKS_MHZ, dtype=np.int32)[turn])
