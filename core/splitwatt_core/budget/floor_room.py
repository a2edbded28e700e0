"""What power admission may still promise: watts left for floors below each budget, as the caps of one step count them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from splitwatt_core.budget.facts import CountedFloor
from splitwatt_core.budget.moment import Moment
from splitwatt_core.columns import FloatArray


@dataclass(frozen=True, slots=True)
class FloorRoom:
    """left_w: by budget the meter watts that could still be promised to floors below it: its allowance less the cliffs of all
    GPUs that run something and the minimum of those that do not. counted: by (namespace, pod) what that counts for it at the
    cliff; of the same step, so that admission neither drops a reservation too early nor counts it twice. awaited: by elastic
    leaf, the nodes that may still come, whose watts `left_w` leaves out, kept or not."""

    left_w: Mapping[str, float] = field(default_factory=dict)
    counted: Mapping[tuple[str, str], CountedFloor] = field(default_factory=dict)
    awaited: Mapping[str, int] = field(default_factory=dict)

    def without(self, budget: str) -> FloorRoom:
        return replace(self, left_w={name: watts for name, watts in self.left_w.items() if name != budget})


def floor_room(m: Moment, *, allowance_w: FloatArray) -> FloorRoom:
    """`allowance_w` float64[B]: meter watts that may be charged for GPUs below each budget."""
    fleet = m.fleet
    unkept_w = m.awaited_w() - m.kept_w()
    left_w = allowance_w - fleet.below(fleet.gpus.loss_factor * fleet.floor_w()) - unkept_w
    counted: dict[tuple[str, str], CountedFloor] = {}
    rows = zip(fleet.accounts, (fleet.steerable & ~fleet.late).tolist(), fleet.gpus.cliff_w.tolist(), strict=True)
    for account, counts, cliff_w in rows:
        for owner in account.owners if counts else ():
            key = (owner.namespace, owner.pod)
            gpus, floor_w = counted.get(key, (0, 0.0))
            counted[key] = CountedFloor(gpus + 1, floor_w + cliff_w)
    awaited = {name: count for name, count in zip(m.tree.order, m.awaited().tolist(), strict=True) if count}
    return FloorRoom(dict(zip(m.tree.order, left_w.tolist(), strict=True)), counted, awaited)
