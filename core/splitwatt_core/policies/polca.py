"""`Polca` with the signature of all policies: Uniform's caps for the bound, POLCA's table for the clocks.

POLCA caps no watts: its row is held by clock locks alone, and by the breaker. A budget of ours is held by caps, so those of
`Uniform`, which knows as little of phases and priorities, stand below the locks. The locks follow `polca_table.step`, one machine
per tree of budgets, from what the ROOT's meter reads over the root's limit in force:

    LOW     every GPU at work whose priority is below the highest at work in its tree
    HIGH    every GPU at work that has the highest
    brake   every GPU, at work or not

The paper's clocks are translated to each GPU's own range by their share of the top clock (`polca_table.translate_mhz`). A GPU of
which no clock is known is left as it is.

Protected: no lock is loosened without a fresh reading. At a first decision, after a new start of the operator or under
another policy before, the machine begins at the mildest level that locks whoever at work is locked, as deep as they are or
as deep as any level short of the brake locks them; what is deeper stays until the machine, by its own thresholds, comes to
a milder level. It begins with the brake only where every GPU at work already stands at the brake's clock: to brake a fleet
because an operator started would be an outage of our own making.

A comparison policy, never the default: see polca_table.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from splitwatt_core.columns import BoolArray, ClockColumns, PhaseCode
from splitwatt_core.gpus.phase_model import UNLOCKED_MHZ
from splitwatt_core.policies.clocks import Mhz, deeper, looser
from splitwatt_core.policies.polca_table import Level, PolcaSettings, PolcaState, RowPriority, step, translate_mhz
from splitwatt_core.policies.signature import Decision, PowerSnapshot
from splitwatt_core.policies.uniform import Uniform
from splitwatt_core.trees import forest_of


@dataclass(frozen=True, slots=True)
class TreeMachine:
    """One tree's. `inherits`: locks in force that are deeper than the level's own stay for now."""

    state: PolcaState
    inherits: bool = False


@dataclass(frozen=True, slots=True)
class PolcaMemory:
    """The machines, by the names of their roots."""

    machines: tuple[tuple[str, TreeMachine], ...]


class Polca:
    """Policy; see signature.Policy. Pure: holds its settings and no state."""

    name = "Polca"

    def __init__(self, settings: PolcaSettings | None = None) -> None:
        """`settings`: clocks are the paper's, before translation; delays are those of its out-of-band commands."""
        self._settings = PolcaSettings() if settings is None else settings
        self._caps = Uniform()

    def decide(self, snapshot: PowerSnapshot, now_s: float) -> Decision:
        """Raises ValueError on an empty legal range of caps or an unsorted tree. Without columns of clocks nothing is
        locked, and nothing is known of what is."""
        decision = self._caps.decide(snapshot, now_s)
        if snapshot.clocks is None:
            return decision
        names, root_of_budget = snapshot.budgets.names, forest_of(snapshot.budgets.parent).root_of
        root_of_gpu = root_of_budget[snapshot.gpus.leaf]
        locks = snapshot.clocks.granted_mhz.copy()
        known = dict(snapshot.memory.machines) if isinstance(snapshot.memory, PolcaMemory) else {}
        machines: list[tuple[str, TreeMachine]] = []
        for root in np.flatnonzero(snapshot.budgets.parent < 0).tolist():
            name = names[root]
            tree = _Tree(snapshot, snapshot.clocks, root_of_gpu == root, self._settings)
            before = known.get(name) or tree.begin(now_s)
            utilisation = _utilisation(snapshot, root)
            state, _ = step(before.state, utilisation, now_s, self._settings)
            machine = TreeMachine(state, inherits=before.inherits and state.level >= before.state.level)
            machines.append((name, machine))
            tree.lock(locks, state.level, held=machine.inherits or utilisation is None)
        said = {name: _TEXT[machine.state.level] for name, machine in machines}
        reasons = tuple(
            replace(reason, text=f"{reason.text}; {said[names[int(root_of_budget[reason.leaf])]]}") for reason in decision.reasons
        )
        return replace(decision, max_clock_mhz=locks, reasons=reasons, memory=PolcaMemory(tuple(machines)))


_TEXT: Final = {
    Level.FREE: "clocks free",
    Level.LOW_T1: "low priority locked at T1",
    Level.LOW_T2: "low priority locked at T2",
    Level.ALL_T2: "both priorities locked at T2",
    Level.BRAKE: "power brake",
}


def _utilisation(snapshot: PowerSnapshot, root: int) -> float | None:
    """The root's power as a share of its limit, None without a fresh reading."""
    if snapshot.meter is None:
        return None
    measured_w, limit_w = float(snapshot.meter.measured_w[root]), float(snapshot.meter.limit_w[root])
    return measured_w / limit_w if np.isfinite(measured_w) and measured_w >= 0 and limit_w > 0 else None


class _Tree:
    """What the levels of the table mean for the GPUs below one root, `rows` bool[N]."""

    def __init__(self, snapshot: PowerSnapshot, clocks: ClockColumns, rows: BoolArray, settings: PolcaSettings) -> None:
        self._settings, self._clocks = settings, clocks
        self._rows: BoolArray = rows & (clocks.top_mhz > 0)
        priority = snapshot.gpus.priority.astype(np.int64)
        works: BoolArray = rows & (snapshot.gpus.phase != PhaseCode.UNASSIGNED)
        highest = int(priority[works].max(initial=np.iinfo(np.int16).min))
        self._works: BoolArray = self._rows & works
        self._low: BoolArray = self._works & (priority < highest)
        self._high: BoolArray = self._works & (priority == highest)

    def begin(self, now_s: float) -> TreeMachine:
        """See the module's docstring. Its waits begin now: since when the locks are in force nobody knows."""
        if self._works.any() and not self._any_looser(self._clocks.granted_mhz, self._locks(Level.BRAKE)):
            return TreeMachine(PolcaState(Level.BRAKE, now_s), inherits=True)
        levels = sorted(self._settings.table.levels - {Level.BRAKE})
        hardest = self._locks(levels[-1])
        as_any = np.where(looser(hardest, self._clocks.granted_mhz), hardest, self._clocks.granted_mhz).astype(np.int32)
        level = next(level for level in levels if not self._any_looser(self._locks(level), as_any))
        if level is Level.FREE:
            return TreeMachine(PolcaState())
        return TreeMachine(PolcaState(level, now_s), inherits=True)

    def _any_looser(self, one_mhz: Mhz, than_mhz: Mhz) -> bool:
        return bool(looser(one_mhz, than_mhz)[self._works].any())

    def lock(self, locks: Mhz, level: Level, *, held: bool) -> None:
        """Write this tree's locks; `held`: none looser than what is in force."""
        wanted = self._locks(level)
        locks[self._rows] = (deeper(wanted, self._clocks.granted_mhz) if held else wanted)[self._rows]

    def _locks(self, level: Level) -> Mhz:
        if level is Level.BRAKE:
            return np.where(self._rows, self._translated(self._settings.brake_mhz), UNLOCKED_MHZ).astype(np.int32)
        low = self._translated(self._settings.standing_mhz(level, RowPriority.LOW))
        high = self._translated(self._settings.standing_mhz(level, RowPriority.HIGH))
        return np.select([self._low, self._high], [low, high], UNLOCKED_MHZ).astype(np.int32)

    def _translated(self, paper_mhz: int) -> Mhz:
        found = np.full(len(self._rows), UNLOCKED_MHZ, dtype=np.int32)
        if paper_mhz == UNLOCKED_MHZ:
            return found
        for top in np.unique(self._clocks.top_mhz[self._rows]).tolist():
            for low in np.unique(self._clocks.min_mhz[self._rows & (self._clocks.top_mhz == top)]).tolist():
                same = self._rows & (self._clocks.top_mhz == top) & (self._clocks.min_mhz == low)
                found[same] = translate_mhz(paper_mhz, top_clock_mhz=int(top), min_clock_mhz=int(low))
        return found
