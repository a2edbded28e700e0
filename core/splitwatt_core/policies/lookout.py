"""Clock locks ahead of the meter: foresight's ladder over the GPUs below each root budget.

One ladder per ROOT, over the root's own meter and limit in force: what a rack or a row in between needs is left to its caps
and its posture. Position 0 locks nobody. Then, class by class of priority, the lowest first, all its prefill GPUs go from
the top clock down to the clock where their voltage stops falling, in STEPS_PER_CLASS steps: below it a slower clock saves
watts only in proportion to the work that it loses. Decode is bound by memory and would pay for watts that it hardly draws;
it is never locked, but in a brake, where everybody at work is locked at the clock that the minimum cap would give, because
a lock acts before a cap has noticed.

Model. All GPUs at work have one load x, so the root's meter shows

    rest + sum of loss * idle + x * sum of loss * (min(cap, idle + (natural - idle) * share(clock)) - idle)

with the rest as declared (and what a correction found), the caps granted last, and watts of clocks as in phase_model. What
the model cannot explain looks like load.

Caps are a bound themselves (I1). As long as the reading, with the locks in force thought away, is no more than all caps
allow and the rest declares, whatever comes cannot pass that sum, and no lock is called for. A lock therefore comes when the
meter shows, for longer than its noise lasts, watts that nobody declared; where the caps leave room below the limit, that is
before the limit is crossed and the posture has to climb.

Protected: no lock is loosened without a fresh reading, nor before the dwell is over. At a first decision, or when other
classes work, the ladder begins where the locks in force are; those that no position knows (of decode, or deeper than the
floor) stay for a whole dwell.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from splitwatt_core.columns import BoolArray, ClockColumns, FloatArray, IntArray, PhaseCode
from splitwatt_core.policies.clocks import Mhz, deeper, lock_at, looser, power_share, share_of_power
from splitwatt_core.policies.foresight import (
    AT_S,
    BEFORE,
    COUNT,
    NEEDED_S,
    POSITION,
    TOTAL,
    WEIGHT,
    ForesightSettings,
    Outlook,
    look,
)
from splitwatt_core.policies.signature import CORRECTION_WINDOW_S, PowerSnapshot
from splitwatt_core.trees import forest_of

STEPS_PER_CLASS: Final = 8
NOISE_RATIO: Final = 0.02
NOISE_S: Final = 1.0
"""A reading this much of the limit above what is allowed, or alone above it, is a meter's noise: a full fleet under caps reads
around its limit all day, and a lock for every stray reading costs prefill more than watts."""
MAX_DRAWN: Final = 64
"""Late decisions that a watch keeps; at one a second they are those of a correction's window."""
MAX_CLASSES: Final = 16
"""Classes of a ladder; all above are the last one's."""


@dataclass(frozen=True, slots=True)
class Watch:
    """What is remembered of one root. `classes`: the priorities whose prefill the ladder's positions lock, lowest first.
    `inherited_s`: since when readings have let locks in force that no position knows be calm, None where there are none.
    `allowed_w`, `allowed_s`: the most that caps and rest allowed lately, and when; a meter shows the draw of a while ago, so
    caps that just fell explain what it reads. `beyond_s`: since when it has read more than they explain, None: it does not.
    `calm_s`: since when it reads, locks and all, no more than they explain. `drawn`: of late decisions when they were, and
    fixed and scaled watts of the unlocked ladder then; the newest last."""

    classes: tuple[int, ...]
    outlook: Outlook
    inherited_s: float | None = None
    allowed_w: float = 0.0
    allowed_s: float = -math.inf
    beyond_s: float | None = None
    calm_s: float | None = None
    drawn: tuple[tuple[float, float, float], ...] = ()

    def allow(self, allowed_w: float, now_s: float) -> Watch:
        if allowed_w >= self.allowed_w or not 0.0 <= now_s - self.allowed_s <= CORRECTION_WINDOW_S:
            return replace(self, allowed_w=allowed_w, allowed_s=now_s)
        return self

    def draws(self, fixed_w: float, scaled_w: float, now_s: float) -> Watch:
        kept = [d for d in self.drawn if 0.0 <= now_s - d[0] <= CORRECTION_WINDOW_S]
        return replace(self, drawn=(*kept[1 - MAX_DRAWN :], (now_s, fixed_w, scaled_w)))

    def as_now(self, reading_w: float, taken_s: float) -> float:
        """The reading as it would be with the caps of now: a fleet that was cut since draws less for the same load, and its
        own cut must not be taken for a rise of it. How old a reading is nobody knows to the second, so of all that stood since
        `taken_s` the caps count that explain most."""
        first = max((i for i, d in enumerate(self.drawn) if d[0] <= taken_s + 1e-9), default=0)
        _, fixed_then_w, scaled_then_w = max(self.drawn[first:], key=lambda d: d[2])
        _, fixed_w, scaled_w = self.drawn[-1]
        if scaled_then_w <= 0.0:
            return reading_w
        return fixed_w + (reading_w - fixed_then_w) * scaled_w / scaled_then_w


def keep_watch(
    snapshot: PowerSnapshot,
    *,
    braked: BoolArray,
    watches: Mapping[str, Watch],
    settings: ForesightSettings,
    now_s: float,
) -> tuple[Mhz, dict[str, Watch]]:
    """The locks int32[N], and what to remember of each root, by its name. braked bool[N]: who is to brake.

    Without columns of clocks and meters nobody is locked.
    """
    clocks, meter = snapshot.clocks, snapshot.meter
    if clocks is None or meter is None:
        return np.zeros(len(snapshot.gpus.leaf), dtype=np.int32), dict(watches)
    root_of_gpu = forest_of(snapshot.budgets.parent).root_of[snapshot.gpus.leaf]
    locks: Mhz = clocks.granted_mhz.copy()
    kept: dict[str, Watch] = {}
    for root in np.flatnonzero(snapshot.budgets.parent < 0).tolist():
        name = snapshot.budgets.names[root]
        reading_w, limit_w = float(meter.measured_w[root]), float(meter.limit_w[root])
        ladder = _Ladder(snapshot, clocks, root_of_gpu == root, rest_w=_rest_w(snapshot, root))
        brakes = bool((braked & ladder.rows).any())
        if brakes:
            reading_w = math.nan  # it shows the brake and not the load
        watch = kept[name] = ladder.next(watches.get(name), now_s=now_s, reading_w=reading_w, limit_w=limit_w, settings=settings)
        wanted = ladder.locks(watch.outlook.position)
        if brakes:
            # No position of the ladder knows these: like others of that kind they are let go after a dwell.
            wanted = np.where(braked, deeper(wanted, ladder.brake_locks()), wanted)
        if watch.inherited_s is not None or math.isnan(reading_w):
            wanted = deeper(wanted, clocks.granted_mhz)
        locks[ladder.rows] = wanted[ladder.rows]
    return locks, kept


def _rest_w(snapshot: PowerSnapshot, root: int) -> float:
    """What is drawn below the root besides these GPUs. Where nobody says, all that is withheld from them counts as drawn."""
    assert snapshot.meter is not None
    if snapshot.meter.rest_w is not None:
        return float(snapshot.meter.rest_w[root])
    return max(float(snapshot.meter.limit_w[root] - snapshot.budgets.allowance_w[root]), 0.0)


class _Ladder:
    """One root's ladder at one moment. `rows` bool[N]: its GPUs whose clocks are known."""

    def __init__(self, snapshot: PowerSnapshot, clocks: ClockColumns, below: BoolArray, *, rest_w: float) -> None:
        gpus = snapshot.gpus
        self._clocks = clocks
        self.rows: BoolArray = below & (clocks.top_mhz > 0)
        self._works: BoolArray = below & (gpus.phase != PhaseCode.UNASSIGNED)
        self._loss = gpus.loss_factor
        self._span_w = np.maximum(gpus.natural_w - clocks.idle_w, 0.0)
        self._min_w = np.maximum(gpus.min_w - clocks.idle_w, 0.0)
        self._room_w = np.maximum(gpus.cap_w - clocks.idle_w, 0.0)
        prefill = self.rows & (gpus.phase == PhaseCode.PREFILL)
        classes = np.unique(gpus.priority[prefill])[:MAX_CLASSES]
        self.classes: tuple[int, ...] = tuple(classes.tolist())
        rank = np.minimum(np.searchsorted(classes, gpus.priority), len(classes) - 1)
        self._class: IntArray = np.where(prefill, rank, -1)
        self._size = 1 + STEPS_PER_CLASS * len(classes)
        self._fixed_w = rest_w + float((self._loss * clocks.idle_w)[below].sum())
        self._allowed_w = rest_w + float((self._loss * gpus.cap_w)[below].sum())

    def next(self, before: Watch | None, *, now_s: float, reading_w: float, limit_w: float, settings: ForesightSettings) -> Watch:
        """The watch after one reading, NaN where there is none."""
        if before is None or before.classes != self.classes:
            before = self._begin(before, now_s)
        before = before.allow(self._allowed_w, now_s)
        scaled_w = self._scaled_w()
        if scaled_w[-1] <= 0.0:
            return before  # nobody works: there is nothing to lock, and nothing to learn from
        before = before.draws(self._fixed_w, float(scaled_w[0]), now_s)
        shown = min(_shown(before.outlook, now_s - settings.effect_s), self._size - 1)
        unlocked_w = self._fixed_w + max(reading_w - self._fixed_w, 0.0) * float(scaled_w[0] / scaled_w[shown])
        explained_w = before.allowed_w + NOISE_RATIO * limit_w
        # A reading that caps explain as it stands, for a dwell, needs no locks thought away: they may have saved nothing.
        calm = reading_w <= explained_w
        calm_s = min(now_s if before.calm_s is None else before.calm_s, now_s) if calm else None
        beyond = unlocked_w > explained_w and (calm_s is None or now_s - calm_s < settings.dwell_s)
        beyond_s = before.beyond_s
        if not math.isnan(reading_w):
            beyond_s = min(now_s if beyond_s is None else beyond_s, now_s) if beyond else None
        bounded = self._allowed_w <= limit_w and (beyond_s is None or now_s - beyond_s < NOISE_S)
        outlook = look(
            before.outlook,
            now_s=now_s,
            reading_w=before.as_now(reading_w, now_s - settings.effect_s),
            limit_w=math.inf if bounded else limit_w,
            fixed_w=np.full(self._size, self._fixed_w),
            scaled_w=scaled_w,
            settings=settings,
        )
        inherited_s = before.inherited_s
        if inherited_s is None and self._unknown(before.outlook.position):
            inherited_s = now_s
        if inherited_s is not None:
            needed = outlook.position > 0 and outlook.state[NEEDED_S] == now_s
            inherited_s = now_s if needed or math.isnan(reading_w) else inherited_s
            inherited_s = None if now_s - inherited_s >= settings.dwell_s else inherited_s
        return replace(before, outlook=outlook, inherited_s=inherited_s, beyond_s=beyond_s, calm_s=calm_s)

    def _begin(self, before: Watch | None, now_s: float) -> Watch:
        """At the least position that is as deep as the locks in force, as far as the ladder goes. What was learned of spikes
        on another ladder holds on this one too."""
        granted, floor = self._clocks.granted_mhz, self.locks(self._size - 1)
        as_any = np.where(looser(floor, granted), floor, granted).astype(np.int32)
        on_it = self._class >= 0
        position = bisect_left(range(self._size - 1), True, key=lambda k: not bool(looser(self.locks(k), as_any)[on_it].any()))
        beyond = looser(self.locks(position), granted) & self.rows & self._works
        inherited_s = now_s if beyond.any() else None
        outlook = Outlook.at(position)
        if before is None:
            return Watch(self.classes, outlook, inherited_s)
        state, learned = outlook.state.copy(), [WEIGHT, TOTAL, COUNT]
        state[learned] = before.outlook.state[learned]
        outlook = replace(outlook, state=state, histogram=before.outlook.histogram)
        return replace(before, classes=self.classes, outlook=outlook, inherited_s=inherited_s)

    def _unknown(self, position: int) -> bool:
        """Whether somebody at work stands under a deeper lock than the last position, or the one before it, gave: a tree that
        joined, a GPU whose role changed, a rack whose meter was stale while the others' locks went."""
        known = self.locks(min(position + 1, self._size - 1))
        return bool((looser(known, self._clocks.granted_mhz) & self.rows & self._works).any())

    def locks(self, position: int) -> Mhz:
        """Of all classes at this position, int32[N]."""
        steps = np.clip(position - STEPS_PER_CLASS * self._class, 0, STEPS_PER_CLASS)
        return lock_at(self._clocks, np.where(self._class >= 0, self._share(steps / STEPS_PER_CLASS), 1.0))

    def brake_locks(self) -> Mhz:
        """Everybody at work at the clock that the minimum cap would give at full load, int32[N]."""
        share = share_of_power(self._clocks, self._min_w / np.maximum(self._span_w, 1.0))
        return lock_at(self._clocks, np.where(self._works, share, 1.0))

    def _share(self, depth: FloatArray | float) -> FloatArray:
        """The clock as a share of the top clock at this share of the way down to the floor, float64[N]."""
        lowest = np.divide(self._clocks.min_mhz, self._clocks.top_mhz, out=np.ones(len(self._class)), where=self.rows)
        return 1.0 - (1.0 - np.maximum(self._clocks.voltage_floor, lowest)) * depth

    def _scaled_w(self) -> FloatArray:
        """What of each position's watts grows with the load, at the meter, float64[K]."""
        steps = range(STEPS_PER_CLASS + 1)
        unlocked_w = self._loss * np.minimum(self._room_w, self._span_w)
        total_w = float(unlocked_w[self._works].sum())
        if not self.classes:
            return np.array([total_w])  # no prefill, no steps: of many small trees most are such
        on_it = np.flatnonzero(self._class >= 0)
        clocks, loss = _at(self._clocks, on_it), self._loss[on_it]
        room_w, span_w, of_gpu = self._room_w[on_it], self._span_w[on_it], self._class[on_it]
        floor = self._share(1.0)[on_it]
        draws_w = [
            np.bincount(
                of_gpu,
                weights=loss * np.minimum(room_w, span_w * power_share(clocks, 1.0 - (1.0 - floor) * k / STEPS_PER_CLASS)),
                minlength=len(self.classes),
            )
            for k in steps
        ]
        of_class = np.array(draws_w).T.tolist()
        scaled_w = [total_w]
        for drawn_w in of_class:
            scaled_w.extend(total_w - drawn_w[0] + drawn_w[k] for k in steps[1:])
            total_w += drawn_w[-1] - drawn_w[0]
        return np.array(scaled_w)


def _at(clocks: ClockColumns, rows: IntArray) -> ClockColumns:
    return replace(clocks, **{name: getattr(clocks, name)[rows] for name in clocks.__dataclass_fields__})


def _shown(outlook: Outlook, taken_s: float) -> int:
    """The position that was in force at `taken_s`, as `foresight.advance` reckons it."""
    at_s = outlook.ring[:, AT_S]
    earlier = at_s <= taken_s + 1e-9
    return int(outlook.ring[np.nanargmax(np.where(earlier, at_s, np.nan)), POSITION] if earlier.any() else outlook.state[BEFORE])
