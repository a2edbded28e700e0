"""Every tree of the fleet as its policy sees it, and what the policies say of it, put together again in the fleet's order.

Protected: a policy sees its own tree and nothing else; what it remembers comes back to it alone, and not to another policy
that takes its place, nor when it goes on from words to deeds; a meter that does not speak is no reading, whoever else could
be asked (I5). A tree of which its policy would be shown the same as a moment ago (`KEPT_S`) keeps its decision, for many steps
are made for one tree among hundreds. Of a tree without GPUs there is nothing to decide: nobody is asked, and nothing is
remembered; when GPUs come its policy begins with them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, replace
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from splitwatt_core.budget.books import FIRST_JUDGEMENT_S
from splitwatt_core.budget.moment import Moment
from splitwatt_core.budget.tree import BudgetSpec
from splitwatt_core.columns import BudgetColumns, ClockColumns, GpuColumns, MeterColumns, Posture
from splitwatt_core.policies.signature import Decision, Policy, PowerSnapshot, check_decision, shortfall_w
from splitwatt_core.protocol.contract import Mode
from splitwatt_core.trees import NO_BUDGET

Columns = TypeVar("Columns", GpuColumns, ClockColumns, MeterColumns)
Asked = tuple[str, Mode]
"""Policy and mode of a root's spec. What Observe decides is never in force, so it is no memory of what Strict did."""
KEPT_S: Final = 0.5
"""No decision is kept for longer. Two steps that nothing calls for are further apart: time alone moves a tree on as well."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Of one tree: who was asked when, what of it was shown, and what came of it."""

    asked: Asked
    asked_s: float
    shown: PowerSnapshot
    decision: Decision

    def holds(self, asked: Asked, shown: PowerSnapshot, now_s: float) -> bool:
        """Whether the decision can be kept."""
        return self.asked == asked and 0.0 <= now_s - self.asked_s < KEPT_S and same(self.shown, shown)


Memories = Mapping[str, Memory]
"""By root."""


@dataclass(frozen=True, slots=True)
class Decided:
    """All roots' decisions in the fleet's order: cap_w, clock_mhz int32[N], short_w float64[B]."""

    cap_w: NDArray[np.int32]
    clock_mhz: NDArray[np.int32]
    short_w: NDArray[np.float64]
    by_root: Mapping[str, Decision]
    memories: Memories


@dataclass(frozen=True, slots=True)
class Realm:
    """One root's share of the fleet, as positions in its columns: members (budgets, which stand together), rows int64 (GPUs).
    `spec` is the root's."""

    spec: BudgetSpec
    members: slice
    rows: NDArray[np.int64]
    snapshot: PowerSnapshot


def decide(
    m: Moment,
    *,
    policies: Mapping[str, Policy],
    memories: Memories,
    allowance_w: NDArray[np.float64],
    among: Set[str] | None = None,
) -> Decided:
    """Ask each root's policy about its own tree. `allowance_w` float64[B]: meter watts left for GPUs below each budget.
    `among`: the roots to ask about, None for all; all others stay as they are."""
    fleet = m.fleet
    caps, clocks = fleet.granted_w.copy(), fleet.clocks.granted_mhz.copy()
    short_w = shortfall_w(np.zeros(len(allowance_w)), allowance_w)
    decisions: dict[str, Decision] = {}
    kept: dict[str, Memory] = {}
    for realm in realms(m, meter=meters(m, allowance_w), allowance_w=allowance_w, among=among):
        asked = (realm.spec.policy, realm.spec.mode)
        known = memories.get(realm.spec.name)
        if known is None or not known.holds(asked, realm.snapshot, m.now_s):
            memory = known.decision.memory if known is not None and known.asked == asked else None
            snapshot = replace(realm.snapshot, memory=memory)
            decision = policies[realm.spec.policy].decide(snapshot, m.now_s)
            check_decision(snapshot, decision)
            known = Memory(asked, m.now_s, realm.snapshot, decision)
        decision = known.decision
        caps[realm.rows], clocks[realm.rows] = decision.cap_w, decision.max_clock_mhz
        short_w[realm.members] = decision.short_w
        decisions[realm.spec.name], kept[realm.spec.name] = decision, known
    return Decided(caps, clocks, short_w, decisions, kept)


def realms(m: Moment, *, meter: MeterColumns, allowance_w: NDArray[np.float64], among: Set[str] | None = None) -> Iterator[Realm]:
    """The fleet cut along its roots, in their order; roots without GPUs are left out."""
    fleet, forest = m.fleet, m.tree.forest
    root_of_gpu = forest.root_of[fleet.gpus.leaf]
    rows = np.argsort(root_of_gpu, kind="stable")
    gpus, clocks, slot = _at(fleet.gpus, rows), _at(fleet.clocks, rows), fleet.slot[rows]
    # What Observe would grant is what the fleet would settle at, and its draw is not held by caps (`observing`).
    worst = [Posture.NORMAL if m.root(b).mode is Mode.OBSERVE else Posture.BRAKE for b in range(len(m.budgets))]
    posture = np.array([min(book.posture, most) for book, most in zip(m.books, worst, strict=True)], dtype=np.int8)
    roots, firsts = np.unique(root_of_gpu[rows], return_index=True)
    ends = np.searchsorted(forest.root_of, roots, side="right")
    lasts = [*firsts.tolist(), len(rows)][1:]
    for root, end, first, last in zip(roots.tolist(), ends.tolist(), firsts.tolist(), lasts, strict=True):
        spec = m.budgets[root]
        if among is not None and spec.name not in among:
            continue
        members, mine = slice(root, end), slice(first, last)
        parent, of_realm = forest.parent[members], _at(gpus, mine)
        snapshot = PowerSnapshot(
            budgets=BudgetColumns(
                names=m.tree.order[members],
                parent=np.where(parent >= 0, parent - root, NO_BUDGET).astype(np.int32),
                allowance_w=allowance_w[members],
                posture=posture[members],
            ),
            gpus=replace(of_realm, leaf=(of_realm.leaf - root).astype(np.int32)),
            unassigned=spec.unassigned,
            meter=_at(meter, members),
            clocks=_at(clocks, mine),
            slot=slot[mine],
        )
        yield Realm(spec, members, rows[mine], snapshot)


def same(one: PowerSnapshot, other: PowerSnapshot) -> bool:
    """Whether two snapshots, memories aside, show the same."""
    if one.unassigned is not other.unassigned or one.budgets.names != other.budgets.names:
        return False
    pairs: list[tuple[NDArray[np.generic] | None, NDArray[np.generic] | None]] = []
    for table in ("meter", "budgets", "clocks", "gpus"):  # what moves most comes first
        a, b = getattr(one, table), getattr(other, table)
        if a is None or b is None:
            if a is not b:
                return False
            continue
        pairs += [(getattr(a, name), getattr(b, name)) for name in a.__dataclass_fields__ if name != "names"]
    return all(_equal(a, b) for a, b in (*pairs, (one.slot, other.slot)))


def _equal(a: NDArray[np.generic] | None, b: NDArray[np.generic] | None) -> bool:
    """To the bit, so that no reading (NaN) is the same as no reading."""
    if a is None or b is None:
        return a is b
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def _at(columns: Columns, which: NDArray[np.int64] | slice) -> Columns:
    return type(columns)(*(getattr(columns, name)[which] for name in columns.__dataclass_fields__))


def meters(m: Moment, allowance_w: NDArray[np.float64]) -> MeterColumns:
    """The limits in force, and of each budget what its meter reads, or where it has none what stands in for it.

    What stands in for a meter that is there and stale is no reading here, in the budget itself and in all above that add it
    up: agents tell of what is declared, so it would look like watts that nobody draws any more. Nor is anything read before
    a budget's first caps can show (`FIRST_JUDGEMENT_S`).
    """
    budgets, books, now_s = m.budgets, m.books, m.now_s
    metered = np.array([spec.meter is not None for spec in budgets], dtype=np.bool_)
    fresh = [book.fresh_reading(spec, now_s) is not None for spec, book in zip(budgets, books, strict=True)]
    speaks = m.tree.forest.all_up(np.array(fresh, dtype=np.bool_) | ~metered, decides=metered)
    judged = [book.adopted and now_s - book.adopted_s >= FIRST_JUDGEMENT_S for book in books]
    shown_w = [np.nan if book.measured_w is None else book.measured_w for book in books]
    # The allowance is what decisions aim at, less the reserve, the correction and the rest; nobody draws the reserve.
    return MeterColumns(
        limit_w=np.array([book.limit.in_force_w for book in books], dtype=np.float64),
        measured_w=np.where(speaks & np.array(judged, dtype=np.bool_), np.array(shown_w, dtype=np.float64), np.nan),
        rest_w=m.aim_w() - m.reserve_w() - allowance_w,
    )
