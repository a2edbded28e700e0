"""Which nodes are braked beside their grants (docs/protocol.md, R25-R30).

A budget whose posture is Brake grants minimum caps to all below it. Those grants go by the API server: a write, a watch, an
agent's turn. Where agents listen themselves the same word goes there too, at once: minimum caps, under the last number that was
given out. The grants of the same step have the next number, and lift it with the same watts. So a brake that is lost costs the
time it would have saved, and one that comes late finds that all has been said.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from splitwatt_core.budget.facts import NodeBrake
from splitwatt_core.budget.moment import Moment
from splitwatt_core.budget.transition import UNKNOWN_CAP
from splitwatt_core.columns import Posture
from splitwatt_core.protocol.brake import BrakeOrder, Depth


def brakes_of(m: Moment, caps: NDArray[np.int32], *, last_grant: int) -> tuple[NodeBrake, ...]:
    """One order a node, for its GPUs that are told to go down to their minimum by this very step. `caps` int32[N] in watts;
    `last_grant`: the last number given out to anybody, or (term, 0)."""
    fleet = m.fleet
    postures = np.array([int(book.posture) for book in m.books], dtype=np.int64)
    if not (postures >= Posture.BRAKE).any():
        return ()
    braked = m.tree.forest.max_down(postures)[fleet.gpus.leaf] >= Posture.BRAKE
    least_w = np.array([account.min_w for account in fleet.accounts], dtype=np.int32)
    above = (fleet.granted_w > caps) | (fleet.granted_w == UNKNOWN_CAP)
    rows: dict[str, set[str]] = {}
    for i in np.flatnonzero(braked & above & (caps > 0) & (caps <= least_w)).tolist():
        rows.setdefault(fleet.owner[i].name, set()).add(fleet.accounts[i].uuid)
    return tuple(NodeBrake(node, BrakeOrder(last_grant, Depth.MINIMUM, uuids=frozenset(uuids))) for node, uuids in rows.items())
