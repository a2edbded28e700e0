"""Observe shows its hand: caps and clock locks that the policy would grant, what of that is a cut, and whom admission would hold.

Nothing here is granted. What the policy said last stands in for the caps that it would have granted by then, so that its raises
come as they would in Strict, step by step. Postures worse than Normal are left out: a draw above the limit is what the missing
caps allow, and a brake against it would hide what the fleet would settle at. `WithinBudget` says that the draw is above.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from splitwatt_core.budget.facts import WouldCut
from splitwatt_core.budget.floor_room import FloorRoom
from splitwatt_core.budget.moment import Moment
from splitwatt_core.columns import TOLERANCE_W, BoolArray
from splitwatt_core.conditions import Condition, counted, some
from splitwatt_core.protocol.contract import Mode, Phase
from splitwatt_core.protocol.would import WouldBe

KIND: Final = "Observing"
ROLES: Final = (Phase.PREFILL, Phase.DECODE, Phase.UNASSIGNED)

GpuKey = tuple[str, str]
"""Node and UUID."""
Hand = Mapping[GpuKey, WouldBe]
"""What each GPU of observing trees would be granted."""


def observed(m: Moment) -> BoolArray:
    """GPUs of trees that only observe, and that a grant could reach, bool[N]."""
    names, roots, fleet = m.tree.order, m.tree.root, m.fleet
    observes = [roots[name] not in m.tree.fault and m.root(b).mode is Mode.OBSERVE for b, name in enumerate(names)]
    rows: BoolArray = np.array(observes, dtype=np.bool_)[fleet.gpus.leaf] & fleet.steerable & ~fleet.freed
    return rows


def as_if_granted(m: Moment, hand: Hand, rows: BoolArray) -> Moment:
    """The same moment, in which observed GPUs hold what they would have been granted last."""
    if not rows.any():
        return m
    fleet = m.fleet
    cap_w, granted_mhz = fleet.gpus.cap_w.copy(), fleet.clocks.granted_mhz.copy()
    for i in np.flatnonzero(rows).tolist():
        told = hand.get((fleet.owner[i].name, fleet.accounts[i].uuid))
        if told is not None:
            cap_w[i], granted_mhz[i] = told.cap_w, told.max_clock_mhz or 0
    gpus, clocks = replace(fleet.gpus, cap_w=cap_w), replace(fleet.clocks, granted_mhz=granted_mhz)
    return replace(m, fleet=replace(fleet, gpus=gpus, clocks=clocks))


def hand_of(m: Moment, cap_w: NDArray[np.int32], clock_mhz: NDArray[np.int32], rows: BoolArray) -> Hand:
    """What the policies decided, int32[N], as far as nobody acts on it."""
    found: dict[GpuKey, WouldBe] = {}
    for i in np.flatnonzero(rows).tolist():
        uuid = m.fleet.accounts[i].uuid
        found[(m.fleet.owner[i].name, uuid)] = WouldBe(uuid, int(cap_w[i]), int(clock_mhz[i]) or None)
    return found


def would_cut(m: Moment, hand: Hand, room: FloorRoom) -> dict[str, WouldCut]:
    """For every budget of an observing tree that is there."""
    rows = observed(m)
    fleet, names = m.fleet, m.tree.order
    watching = [name for b, name in enumerate(names) if m.root(b).mode is Mode.OBSERVE and m.tree.root[name] not in m.tree.fault]
    if not watching:
        return {}
    count = len(fleet.accounts)
    present_w, would_w = np.zeros(count), np.zeros(count)
    locked = np.zeros(count, dtype=np.bool_)
    role = np.zeros(count, dtype=np.int64)
    for i in np.flatnonzero(rows).tolist():
        account = fleet.accounts[i]
        told = hand.get((fleet.owner[i].name, account.uuid))
        present_w[i] = account.default_w if account.reported_w is None else account.reported_w
        would_w[i] = present_w[i] if told is None else told.cap_w
        locked[i] = told is not None and told.max_clock_mhz is not None
        role[i] = ROLES.index(fleet.wants[i].phase)
    cut_w = np.maximum(present_w - would_w, 0.0)
    short_w = np.maximum(np.minimum(present_w, fleet.gpus.natural_w) - would_w, 0.0) * rows
    gpus = [fleet.below(((role == r) & (cut_w > 0)).astype(np.float64)) for r in range(len(ROLES))]
    watts = [fleet.below(np.where(role == r, cut_w, 0.0)) for r in range(len(ROLES))]
    shorts, short_sum_w = fleet.below((short_w > 0).astype(np.float64)), fleet.below(short_w)
    locks = fleet.below(locked.astype(np.float64))
    found: dict[str, WouldCut] = {}
    for name in watching:
        b = m.tree.index[name]
        lacking_w = max(0.0, -room.left_w.get(name, 0.0))
        found[name] = WouldCut(
            total=int(fleet.gpu_count[b]),
            gpus={phase: int(gpus[r][b]) for r, phase in enumerate(ROLES)},
            cut_w={phase: float(watts[r][b]) for r, phase in enumerate(ROLES)},
            short_gpus=int(shorts[b]),
            short_w=float(short_sum_w[b]),
            locked=int(locks[b]),
            held=_held(m, b, room, lacking_w) if lacking_w > TOLERANCE_W else (),
            lacking_w=lacking_w if lacking_w > TOLERANCE_W else 0.0,
        )
    return found


def _held(m: Moment, b: int, room: FloorRoom, lacking_w: float) -> tuple[str, ...]:
    """Pods whose floors would have had to wait so that the others' fit: of the lowest rank first, then by name from the end."""
    fleet, name = m.fleet, m.tree.order[b]
    here = np.array([name in m.tree.chain(leaf) for leaf in m.tree.order], dtype=np.bool_)[fleet.gpus.leaf]
    pods: dict[tuple[int, str], float] = {}
    for i in np.flatnonzero(here).tolist():
        for pod in fleet.holders[i]:
            if pod is not None and pod.phase is not Phase.UNASSIGNED:
                floor = room.counted.get((pod.namespace, pod.name))
                frees_w = 0.0 if floor is None else float(fleet.gpus.loss_factor[i]) * floor.floor_w
                pods[(-pod.priority, f"{pod.namespace}/{pod.name}")] = frees_w
    chosen: list[str] = []
    for key in sorted(pods, reverse=True):
        if lacking_w <= TOLERANCE_W:
            break
        if pods[key] > 0:
            chosen.append(key[1])
            lacking_w -= pods[key]
    return tuple(chosen)


def observing(cut: WouldCut) -> Condition:
    """What Strict would do to this budget now."""
    gpus = sum(cut.gpus.values())
    parts: list[str] = []
    if gpus:
        roles = ", ".join(
            f"{cut.gpus[phase]} {_word(phase)} by {cut.cut_w[phase]:.0f} W" for phase in ROLES if cut.gpus.get(phase)
        )
        felt = (
            f"{counted(cut.short_gpus, 'GPU')} of them to below what the work there draws, by {cut.short_w:.0f} W"
            if cut.short_gpus
            else "none of them to below what the work there draws"
        )
        total_w = sum(cut.cut_w.values())
        parts.append(f"in Strict {gpus} of {counted(cut.total, 'GPU')} would be cut by {total_w:.0f} W in all ({roles}), {felt}")
    else:
        parts.append(f"in Strict none of {counted(cut.total, 'GPU')} would be cut")
    if cut.locked:
        parts.append(f"{counted(cut.locked, 'clock')} would be locked")
    if cut.lacking_w:
        held = f"; {counted(len(cut.held), 'pod')} would have been held at the power gate: {some(cut.held)}" if cut.held else ""
        parts.append(f"the floors of what runs lack {cut.lacking_w:.0f} W{held}")
    reason = "WouldHoldPods" if cut.held else "WouldCut" if gpus or cut.locked else "WouldCutNothing"
    return Condition(KIND, True, reason, "; ".join(parts))


def _word(phase: Phase) -> str:
    return "without a workload" if phase is Phase.UNASSIGNED else phase.value.lower()
