"""`Uniform`: every GPU the same cap, as high as the tree of budgets permits.

Max-min fair in watts: the lowest cap is as high as it can be, then the next lowest. Below one leaf all caps are equal,
clipped to each GPU's legal range; a tight rack does not drag other racks down. It knows no phases and no priorities: the
plain comparison that any better policy has to beat. Of the postures only Brake means something to it: minimum caps.
"""

from __future__ import annotations

import itertools

import numpy as np

from splitwatt_core.columns import Posture
from splitwatt_core.policies.reasons import reasons_by_kind
from splitwatt_core.policies.signature import Decision, PowerSnapshot, check_decision
from splitwatt_core.policies.waterfill import Filling
from splitwatt_core.trees import NO_BUDGET


class Uniform:
    """Policy; see signature.Policy. Pure: holds no state."""

    name = "Uniform"

    def decide(self, snapshot: PowerSnapshot, now_s: float) -> Decision:
        """Raises ValueError on an empty legal range of caps or an unsorted tree. `now_s` is not used."""
        filling = Filling(snapshot)
        units = filling.units
        posture, holder = filling.worst_posture()
        free = posture < Posture.BRAKE
        stopped_by = np.full(units.count, NO_BUDGET, dtype=np.int64)
        # Between two neighbouring bounds of any legal range the same GPUs rise, all by the same watts.
        moves = units.top_w > units.lo_w
        steps_w = np.unique(np.concatenate([units.lo_w[moves], units.top_w[moves]]))
        for low_w, high_w in itertools.pairwise(steps_w):
            members = np.flatnonzero(free & (units.lo_w <= low_w) & (units.top_w >= high_w))
            stop = filling.lift(members, np.full(len(members), high_w))
            news = stopped_by[members] == NO_BUDGET
            stopped_by[members[news]] = stop.budget[news]
        cap_w = filling.caps_w()
        names, short_w = snapshot.budgets.names, filling.short_w

        def text(unit: int) -> str:
            budget = int(stopped_by[unit])
            if not free[unit]:
                return f"brake in {names[int(holder[unit])]}: minimum cap"
            if budget == NO_BUDGET:
                return "maximum cap"
            if short_w[budget] > 0:
                return f"minimum cap; {names[budget]} misses {short_w[budget]:.0f} W even so"
            return f"an equal share of {names[budget]}"

        decision = Decision(
            cap_w=cap_w,
            max_clock_mhz=np.zeros(len(cap_w), dtype=np.int32),
            short_w=short_w,
            reasons=reasons_by_kind(snapshot, unit_of_gpu=units.of_gpu, cap_w=cap_w, text_of_unit=text),
        )
        check_decision(snapshot, decision)
        return decision
