"""Every tree of the fleet as its policy sees it, and what the policies say of it, put together again in the fleet's order.

Protected: a policy sees its own tree and nothing else; what it remembers comes back to it alone, and not to another policy
that takes its place, nor when it goes on from words to deeds; a meter that does not speak is no reading, whoever else could
be asked (I5).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from splitwatt_core.budget.books import FIRST_JUDGEMENT_S, Book
from splitwatt_core.budget.fleet import Fleet
from splitwatt_core.budget.tree import BudgetSpec, Tree
from splitwatt_core.columns import BudgetColumns, ClockColumns, GpuColumns, MeterColumns
from splitwatt_core.policies.signature import Decision, Policy, PowerSnapshot, check_decision
from splitwatt_core.protocol.contract import Mode

Columns = TypeVar("Columns", GpuColumns, ClockColumns, MeterColumns)
Asked = tuple[str, Mode]
"""Policy and mode of a root's spec. What Observe decides is never in force, so it is no memory of what Strict did."""
Memories = Mapping[str, tuple[Asked, object]]
"""By root: who was asked, and what it remembers of the tree."""


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
    """One root's share of the fleet: members int64 (budgets), rows int64 (GPUs), as positions in the fleet's columns."""

    root: str
    members: NDArray[np.int64]
    rows: NDArray[np.int64]
    snapshot: PowerSnapshot


def decide(
    fleet: Fleet,
    *,
    tree: Tree,
    budgets: Mapping[str, BudgetSpec],
    books: Mapping[str, Book],
    policies: Mapping[str, Policy],
    memories: Memories,
    allowance_w: NDArray[np.float64],
    now_s: float,
) -> Decided:
    """Ask each root's policy about its own tree. `allowance_w` float64[B]: meter watts left for GPUs below each budget."""
    caps, clocks = fleet.granted_w.copy(), fleet.clocks.granted_mhz.copy()
    short_w = np.zeros(len(fleet.names))
    decisions: dict[str, Decision] = {}
    kept: dict[str, tuple[Asked, object]] = {}
    meter = meters(fleet, budgets=budgets, books=books, allowance_w=allowance_w, now_s=now_s)
    for realm in realms(fleet, tree=tree, budgets=budgets, books=books, meter=meter, allowance_w=allowance_w):
        spec = budgets[realm.root]
        asked = (spec.policy, spec.mode)
        before, memory = memories.get(realm.root, (asked, None))
        snapshot = replace(realm.snapshot, memory=memory if before == asked else None)
        decision = policies[spec.policy].decide(snapshot, now_s)
        check_decision(snapshot, decision)
        caps[realm.rows], clocks[realm.rows] = decision.cap_w, decision.max_clock_mhz
        short_w[realm.members] = decision.short_w
        decisions[realm.root], kept[realm.root] = decision, (asked, decision.memory)
    return Decided(caps, clocks, short_w, decisions, kept)


def realms(
    fleet: Fleet,
    *,
    tree: Tree,
    budgets: Mapping[str, BudgetSpec],
    books: Mapping[str, Book],
    meter: MeterColumns,
    allowance_w: NDArray[np.float64],
) -> Iterator[Realm]:
    """The fleet cut along its roots, in their order."""
    roots = [name for b, name in enumerate(fleet.names) if fleet.parent[b] < 0]
    for root in roots:
        members = np.array([b for b, name in enumerate(fleet.names) if tree.root[name] == root], dtype=np.int64)
        rows = np.flatnonzero(np.isin(fleet.gpus.leaf, members))
        renumber = np.full(len(fleet.names), -1, dtype=np.int32)
        renumber[members] = np.arange(len(members), dtype=np.int32)
        gpus = _rows(fleet.gpus, rows)
        parent = fleet.parent[members]
        snapshot = PowerSnapshot(
            budgets=BudgetColumns(
                names=tuple(fleet.names[b] for b in members),
                parent=np.where(parent >= 0, renumber[parent], -1).astype(np.int32),
                allowance_w=allowance_w[members],
                posture=np.array([int(books[fleet.names[b]].posture) for b in members], dtype=np.int8),
            ),
            gpus=replace(gpus, leaf=renumber[gpus.leaf]),
            unassigned=budgets[root].unassigned,
            meter=_rows(meter, members),
            clocks=_rows(fleet.clocks, rows),
            slot=fleet.slot[rows],
        )
        yield Realm(root, members, rows, snapshot)


def _rows(columns: Columns, rows: NDArray[np.int64]) -> Columns:
    return replace(columns, **{name: getattr(columns, name)[rows] for name in columns.__dataclass_fields__})


def meters(
    fleet: Fleet,
    *,
    budgets: Mapping[str, BudgetSpec],
    books: Mapping[str, Book],
    allowance_w: NDArray[np.float64],
    now_s: float,
) -> MeterColumns:
    """The limits in force, and of each budget what its meter reads, or where it has none what stands in for it.

    What stands in for a meter that is there and silent is no reading here, in the budget itself and in all above that add it
    up: agents tell of what is declared, so it would look like watts that nobody draws any more. Nor is anything read before
    a budget's first caps can show (`FIRST_JUDGEMENT_S`).
    """
    size = len(fleet.names)
    limit_w = np.array([books[name].limit.in_force_w for name in fleet.names], dtype=np.float64)
    measured_w = np.full(size, np.nan)
    children_speak = np.ones(size, dtype=np.bool_)
    for b in range(size - 1, -1, -1):
        spec, book = budgets[fleet.names[b]], books[fleet.names[b]]
        speaks = bool(children_speak[b]) if spec.meter is None else book.fresh_reading(spec, now_s) is not None
        if fleet.parent[b] >= 0:
            children_speak[fleet.parent[b]] &= speaks
        if speaks and book.measured_w is not None and book.adopted and now_s - book.adopted_s >= FIRST_JUDGEMENT_S:
            measured_w[b] = book.measured_w
    # The allowance is what decisions aim at, less the reserve, the correction and the rest; nobody draws the reserve.
    target_w = np.array([books[name].limit.target_w for name in fleet.names], dtype=np.float64)
    reserve_w = np.array([budgets[name].reserve_w for name in fleet.names], dtype=np.float64)
    return MeterColumns(limit_w=limit_w, measured_w=measured_w, rest_w=target_w - reserve_w - allowance_w)
