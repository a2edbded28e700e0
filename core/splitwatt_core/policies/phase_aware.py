"""`PhaseAware`: weighted water-filling by priority and phase; the order in which watts are handed out.

    1  floors       every class from its minimum cap to its cliff, higher priorities first, both phases of one together
    2  natural draw per priority, higher first: prefill from cliff to natural draw, then decode
    3  held caps    GPUs without a workload up to the cap they have (`unassignedGpus: Hold` only)
    4  margin       everybody who works, up to natural draw plus a small margin

Read backwards it is the order of giving: idle GPUs and caps above the natural draw, which cost nothing; then decode of the
lowest priority, which hardly notices down to its cliff; then its prefill; then the next priority. Below its cliff a phase
collapses, so nobody goes there before everybody stands at the cliff, and then the lowest priority goes first, decode and
prefill alike. Within a class everybody has come the same share of the way from floor to natural draw, so GPU models mix.

Postures sharpen the order below the budget that has them (and a deeper one includes the shallower):
Trim: no margin, no held caps, and decode of every class but the highest at its cliff. Shed: every class but the highest
at its cliff, and decode of the highest too. Brake: minimum caps. "Highest" is the highest priority at work below the
budget that has the posture. A posture of Adopting is treated as Normal: what may be granted meanwhile is the keeper's law.

The margin above natural draw keeps a surprise small: a GPU that suddenly runs something hungrier is held near what was
planned.

Caps are the provable bound. Ahead of them, with `ForesightSettings`, clocks are locked when a root's meter is about to show
more than its limit: the lowest priority's prefill first, decode only in a brake (lookout).

Those are targets. With a `Pace` caps come up to them step by step, each unit at its own moment; down they go at once. At a
first decision nothing rises before its moment comes: a new start of the operator is no reason for a whole fleet to rise.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from splitwatt_core.columns import BoolArray, FloatArray, IntArray, PhaseCode, Posture
from splitwatt_core.gpus.phase_model import UNLOCKED_MHZ
from splitwatt_core.policies.clocks import Mhz
from splitwatt_core.policies.foresight import ForesightSettings
from splitwatt_core.policies.lookout import Watch, keep_watch
from splitwatt_core.policies.pacing import Pace, paced
from splitwatt_core.policies.reasons import reasons_by_kind
from splitwatt_core.policies.signature import Decision, PowerSnapshot, Unassigned, check_decision
from splitwatt_core.policies.waterfill import Filling, Stop
from splitwatt_core.trees import NO_BUDGET

_FLOOR, _NATURAL, _HELD, _MARGIN, _REACHED = range(5)


@dataclass(frozen=True, slots=True)
class Remembered:
    """Between two decisions about one tree. `decided_s`: when the last one was. `watches`: by the names of roots."""

    decided_s: float
    watches: tuple[tuple[str, Watch], ...] = ()


class PhaseAware:
    """Policy; see signature.Policy. Pure: holds its settings and no state."""

    name = "PhaseAware"

    def __init__(
        self,
        *,
        raise_deadband_w: int = 4,
        margin_percent: int = 5,
        pace: Pace | None = None,
        foresight: ForesightSettings | None = None,
    ) -> None:
        """`raise_deadband_w`: raises of units that stand between two stages wait until they are this large (fewer writes;
        0: none wait). `margin_percent`: caps rise at most this far above natural draw (0: not at all). `pace` None: they
        rise to their targets at once. `foresight` None: no clock is locked."""
        if raise_deadband_w < 0 or margin_percent < 0:
            raise ValueError("raise_deadband_w and margin_percent must be 0 or more")
        self._raise_deadband_w = raise_deadband_w
        self._margin_percent = margin_percent
        self._pace = pace
        self._foresight = foresight

    def decide(self, snapshot: PowerSnapshot, now_s: float) -> Decision:
        """Raises ValueError on an empty legal range of caps or an unsorted tree."""
        filling = Filling(snapshot)
        stages = _Stages(snapshot, filling, margin_percent=self._margin_percent)
        stages.run()
        before = snapshot.memory if isinstance(snapshot.memory, Remembered) else Remembered(decided_s=now_s)
        target_w = filling.caps_w(self._raise_deadband_w)
        cap_w = self._paced(snapshot, filling, target_w, last_s=before.decided_s, now_s=now_s)
        watches = dict(before.watches)
        locks: Mhz = np.zeros(len(cap_w), dtype=np.int32)
        if self._foresight is not None:
            locks, watches = keep_watch(
                snapshot,
                braked=stages.braked[filling.units.of_gpu],
                watches=watches,
                settings=self._foresight,
                now_s=now_s,
            )
        decision = Decision(
            cap_w=cap_w,
            max_clock_mhz=locks,
            short_w=filling.short_w,
            reasons=reasons_by_kind(
                snapshot,
                unit_of_gpu=filling.units.of_gpu,
                cap_w=cap_w,
                text_of_unit=stages.text,
                marks=(("rising", cap_w < target_w), ("clock locked", locks != UNLOCKED_MHZ)),
            ),
            memory=Remembered(decided_s=now_s, watches=tuple(watches.items())),
        )
        check_decision(snapshot, decision)
        return decision

    def _paced(
        self, snapshot: PowerSnapshot, filling: Filling, target_w: NDArray[np.int32], *, last_s: float, now_s: float
    ) -> NDArray[np.int32]:
        if self._pace is None:
            return target_w
        units = filling.units
        # All columns are those of units, so that a group, which has one target, also has one cap on the way to it.
        slot = np.ones(units.count)
        np.minimum.at(slot, units.of_gpu, 0.0 if snapshot.slot is None else snapshot.slot)
        return paced(
            self._pace,
            cap_w=target_w,
            granted_w=units.held_w[units.of_gpu],
            cliff_w=units.cliff_w[units.of_gpu],
            min_w=units.lo_w[units.of_gpu],
            slot=slot[units.of_gpu],
            last_s=last_s,
            now_s=now_s,
        )


class _Stages:
    """The order of the module's docstring, run once over one filling, and what stopped each unit."""

    def __init__(self, snapshot: PowerSnapshot, filling: Filling, *, margin_percent: int) -> None:
        units = filling.units
        self._snapshot, self._filling = snapshot, filling
        self._posture, self._holder = filling.worst_posture()
        self._works: BoolArray = units.phase != PhaseCode.UNASSIGNED
        self._decodes: BoolArray = units.phase == PhaseCode.DECODE
        self.braked: BoolArray = self._posture >= Posture.BRAKE
        trimmed, shed = self._below_highest(Posture.TRIM), self._below_highest(Posture.SHED)
        to_cliff = shed | (trimmed & self._decodes) | (self._decodes & (self._posture >= Posture.SHED))
        self._ceiling_w: FloatArray = np.where(to_cliff, units.cliff_w, units.natural_w)
        margin_w = np.floor(units.natural_w * margin_percent / 100)
        self._with_margin_w: FloatArray = np.minimum(units.natural_w + margin_w, units.top_w)
        self._stage = np.full(units.count, _REACHED, dtype=np.int64)
        self._fraction = np.ones(units.count)
        self._budget = np.full(units.count, NO_BUDGET, dtype=np.int64)

    def _below_highest(self, posture: Posture) -> BoolArray:
        """Whether a unit ranks below the highest class at work below some budget above it that has this posture or a worse."""
        filling, budgets = self._filling, self._snapshot.budgets
        units, forest = filling.units, filling.forest
        lowest = int(np.iinfo(np.int16).min) - 1
        gpus = self._snapshot.gpus
        own = np.full(forest.size, lowest, dtype=np.int64)
        at_work = gpus.phase != PhaseCode.UNASSIGNED
        np.maximum.at(own, gpus.leaf[at_work], gpus.priority[at_work].astype(np.int64))
        highest = np.where(budgets.posture >= posture, forest.max_up(own), lowest)
        return units.priority < filling.most_of_leaves(forest.max_down(highest))

    def run(self) -> None:
        units = self._filling.units
        free = ~self.braked
        calm = self._posture < Posture.TRIM
        classes = [
            (np.flatnonzero(at & ~self._decodes), np.flatnonzero(at & self._decodes))
            for priority in np.unique(units.priority[self._works])[::-1]
            for at in [free & self._works & (units.priority == priority)]
        ]
        for prefill, decode in classes:
            self._lift(_FLOOR, np.concatenate([prefill, decode]), units.cliff_w)
        for prefill, decode in classes:
            self._lift(_NATURAL, prefill, self._ceiling_w)
            self._lift(_NATURAL, decode, self._ceiling_w)
        if self._snapshot.unassigned is Unassigned.HOLD:
            held_w = np.clip(units.held_w, units.lo_w, units.top_w)
            self._lift(_HELD, np.flatnonzero(~self._works & calm), held_w)
        self._lift(_MARGIN, np.flatnonzero(self._works & calm), self._with_margin_w)

    def _lift(self, stage: int, members: IntArray, target_w: FloatArray) -> None:
        if len(members) == 0:
            return
        stop: Stop = self._filling.lift(members, target_w[members])
        news = (stop.fraction < 1.0) & (self._stage[members] == _REACHED)
        self._stage[members[news]] = stage
        self._fraction[members[news]] = stop.fraction[news]
        self._budget[members[news]] = stop.budget[news]

    def text(self, unit: int) -> str:
        names, short_w = self._snapshot.budgets.names, self._filling.short_w
        posture = Posture(int(self._posture[unit]))
        if posture is Posture.BRAKE:
            return f"brake in {names[int(self._holder[unit])]}: minimum cap"
        stage, share, budget = int(self._stage[unit]), float(self._fraction[unit]), int(self._budget[unit])
        if stage == _FLOOR and short_w[budget] > 0:
            return f"minimum cap; {names[budget]} misses {short_w[budget]:.0f} W even so"
        if stage == _FLOOR:
            return f"below its cliff, {share:.0%} of the way up from minimum: the cliffs do not all fit in {names[budget]}"
        if stage == _NATURAL:
            return f"gives to {names[budget]}: {share:.0%} of the way from cliff to natural draw"
        if not self._works[unit]:
            return f"gives its held cap to {names[budget]}" if stage == _HELD else self._idle_text()
        if self._ceiling_w[unit] < self._filling.units.natural_w[unit]:
            return f"at its cliff: posture {posture.name.capitalize()} in {names[int(self._holder[unit])]}"
        if stage == _MARGIN or posture >= Posture.TRIM:
            return "natural draw"
        return "natural draw and margin"

    def _idle_text(self) -> str:
        hold = self._snapshot.unassigned is Unassigned.HOLD
        return "no workload: holds its cap" if hold else "no workload: minimum cap"
