"""A way out: default limits and clocks back, for a tree or a node, under the same law that holds caps.

A policy deals no watts to a GPU that is to be freed: it shows it at the cap it has (`modes.as_it_is`). What the limit then leaves
free, less reserve and whatever else raises leave alone, is offered here: the target is the default limit, and `transition`
grants of it what fits, whole replicas by rank, step by step as all raises. Nothing is taken from others for it. Where a sum is
too high the policy lowers such a GPU like any other.

Protected: nothing here lifts a sum above a limit, and nothing rises because something is missing: it takes a mode or a label that
somebody wrote, and everything that a raise takes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from splitwatt_core.budget.modes import default_w, left_low
from splitwatt_core.budget.moment import Moment
from splitwatt_core.budget.raises import RaiseHolds
from splitwatt_core.columns import TOLERANCE_W, BoolArray
from splitwatt_core.conditions import Condition, counted, some
from splitwatt_core.names import LABEL_MODE
from splitwatt_core.policies.clocks import Mhz
from splitwatt_core.policies.pacing import Pace, paced
from splitwatt_core.protocol.contract import Mode
from splitwatt_core.protocol.ledger import GpuAccount

KIND: Final = "CapsReleased"
PACE: Final = Pace()
"""As fast as caps rise in Strict."""


def caps_of(m: Moment, decided_w: NDArray[np.int32], may_raise: BoolArray, *, last_s: float) -> NDArray[np.int32]:
    """The caps to aim at, int32[N]: of freed GPUs that nothing lowers the default limit, as fast as caps may rise. `last_s`: when
    this was asked before."""
    fleet = m.fleet
    rows = np.flatnonzero(fleet.freed & may_raise)
    if not rows.size:
        return decided_w
    full_w = np.array([default_w(fleet.accounts[i]) for i in rows.tolist()], dtype=np.int32)
    held_w, no_cliff_w = fleet.gpus.cap_w[rows], np.zeros(len(rows))
    step_w = paced(
        PACE,
        cap_w=full_w,
        granted_w=held_w,
        cliff_w=no_cliff_w,
        min_w=no_cliff_w,
        slot=fleet.slot[rows],
        last_s=m.now_s if math.isinf(last_s) else last_s,
        now_s=m.now_s,
    )
    found = decided_w.copy()
    lowered = decided_w[rows] < np.floor(np.minimum(held_w, full_w))
    found[rows] = np.where(lowered, decided_w[rows], np.maximum(step_w, decided_w[rows]))
    return found


def clocks_of(m: Moment, decided_mhz: Mhz, may_raise: BoolArray) -> Mhz:
    """Locks are taken off where a cap might rise; where none might, what was decided stands, which may lock deeper."""
    return np.where(m.fleet.freed & may_raise, 0, decided_mhz).astype(np.int32)


# ------------------------------------------------------------------------------------------------------------ what is told


class Releasing:
    """By budget, in one pass over the fleet: which GPUs are to be freed and how far that is; and, where nothing is granted, which
    were left at a low cap."""

    def __init__(self, m: Moment, holds: RaiseHolds) -> None:
        self._m, self._holds = m, holds
        self._all: dict[str, int] = {}
        self._done: dict[str, int] = {}
        self._waits: dict[str, list[int]] = {}
        self._away: dict[str, list[str]] = {}
        self._left: dict[str, list[str]] = {}
        self._left_pods: dict[str, list[str]] = {}
        fleet, tree = m.fleet, m.tree
        lack_w = np.zeros(len(tree.order))
        modes = [None if tree.root[name] in tree.fault else m.root(b).mode for b, name in enumerate(tree.order)]
        for i in _told_of(m, modes).tolist():
            account, node, b = fleet.accounts[i], fleet.owner[i], int(fleet.gpus.leaf[i])
            asked = modes[b] is Mode.RELEASE or (node.released and modes[b] is not None)
            left = modes[b] is Mode.OBSERVE and not asked and left_low(account)
            if not (asked or left):
                continue
            leaf = tree.order[b]
            for name in tree.chain(leaf):
                if left:
                    self._leave(name, i)
                    continue
                self._all[name] = self._all.get(name, 0) + 1
                if _is_free(account):
                    self._done[name] = self._done.get(name, 0) + 1
                elif not fleet.freed[i]:
                    self._away.setdefault(name, []).append(f"{node.name}/{account.uuid}")
                else:
                    self._waits.setdefault(name, []).append(i)
                    missing_w = max(0.0, default_w(account) - account.charge_w) * float(fleet.gpus.loss_factor[i])
                    lack_w[tree.index[name]] += missing_w
        self._lack_w = lack_w - np.maximum(holds.headroom_w - holds.withheld_w, 0.0)

    def _leave(self, name: str, i: int) -> None:
        account, node = self._m.fleet.accounts[i], self._m.fleet.owner[i]
        at = f"{node.name}/{account.uuid} at {account.present_cap_w} W"
        self._left.setdefault(name, []).append(at)
        if account.owners:
            pod = account.owners[0]
            self._left_pods.setdefault(name, []).append(f"{pod.namespace}/{pod.pod} on {at}")

    def conditions(self, name: str) -> tuple[Condition, ...]:
        """None where nothing is released and nothing was left."""
        root = self._m.root(self._m.tree.index[name])
        if name in self._all or (root.mode is Mode.RELEASE and root.name not in self._m.tree.fault):
            return (self._released(name),)
        return (self._caps_left(name),) if name in self._left else ()

    def _caps_left(self, name: str) -> Condition:
        left, pods = self._left[name], self._left_pods.get(name, [])
        first = f"{counted(len(left), 'GPU')} left below the default limit by an earlier mode"
        what = f"{first}, {counted(len(pods), 'pod')} on them: {some(pods)}" if pods else f"{first}: {some(left)}"
        text = f"{what}; Observe takes nothing back: set mode: Release, or label their nodes {LABEL_MODE}={Mode.RELEASE.value}"
        return Condition(KIND, False, "PodsOnCapsLeft" if pods else "CapsLeft", text)

    def _released(self, name: str) -> Condition:
        total, done = self._all.get(name, 0), self._done.get(name, 0)
        told = f"{done} of {counted(total, 'GPU')} {'has' if done == 1 else 'have'} default limit and clocks"
        if waits := self._waits.get(name):
            return self._waiting(waits, told)
        if away := self._away.get(name):
            text = (
                f"{told}; {counted(len(away), 'GPU')} cannot be reached and keep what they have: {some(away)}; look at their "
                "agents, and at labels and budgets that exclude or freeze them"
            )
            return Condition(KIND, False, "NotReached", text)
        return Condition(KIND, True, "Released", f"{told}; nothing is held down any more")

    def _waiting(self, rows: list[int], told: str) -> Condition:
        tree, fleet = self._m.tree, self._m.fleet
        ways = {up for i in rows for up in tree.chain(tree.order[int(fleet.gpus.leaf[i])])}
        held = next((f"{up}: {self._holds.held[up]}" for up in sorted(ways) if up in self._holds.held), None)
        if held is not None:
            return Condition(KIND, False, "RaisesHeld", f"{told}; the others wait, for nothing is raised in {held}")
        tightest = max(sorted(ways), key=lambda up: self._lack_w[tree.index[up]])
        lack_w = float(self._lack_w[tree.index[tightest]])
        if lack_w > TOLERANCE_W:
            text = (
                f"{told}; the others keep their caps, for PowerBudget {tightest} lacks {lack_w:.0f} W: raise its "
                "limitWatts, lower its reserveWatts, or release fewer nodes"
            )
            return Condition(KIND, False, "LimitInTheWay", text)
        return Condition(KIND, False, "Releasing", f"{told}; the others follow")


def _told_of(m: Moment, modes: Sequence[Mode | None]) -> NDArray[np.intp]:
    """GPUs of which there may be something to say: few, in a fleet that Strict rules."""
    of_tree = np.array([mode in (Mode.OBSERVE, Mode.RELEASE) for mode in modes], dtype=np.bool_)[m.fleet.gpus.leaf]
    if any(p.node.released for p in m.placements):
        of_tree |= np.array([node.released for node in m.fleet.owner], dtype=np.bool_)
    return np.flatnonzero(of_tree)


def _is_free(account: GpuAccount) -> bool:
    """Its agent read the default limit back, and no lock is granted."""
    row = account.row
    if row is None or account.reported_w is None:
        return False
    told = account.acked == row.grant and row.cap_w >= default_w(account) and row.max_clock_mhz is None
    return told and account.reported_w >= default_w(account)
