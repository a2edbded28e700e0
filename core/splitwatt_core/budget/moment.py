"""Everything that one step looks at, as one value: who stands where, what is charged and measured, and what is kept of it.

Built once a step, when all accounts and limits are brought up to date; whoever decides or reports takes it whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from splitwatt_core.budget.books import Book
from splitwatt_core.budget.claims import Placement
from splitwatt_core.budget.facts import PodFact
from splitwatt_core.budget.fleet import Fleet, build_fleet
from splitwatt_core.budget.survey import Survey, take_survey
from splitwatt_core.budget.tree import BudgetSpec, Tree
from splitwatt_core.budget.workloads import Workloads
from splitwatt_core.columns import BoolArray, FloatArray, IntArray
from splitwatt_core.gpus.profiles import Profile


@dataclass(frozen=True, slots=True)
class Moment:
    """`budgets`, `books` and `surveys` have one entry per budget, in the tree's order. `conflicts`: nodes that several leaves
    select, with those leaves. `unconfirmed`: roots whose nodes a person must confirm, with the sentence (R35)."""

    now_s: float
    budgets: tuple[BudgetSpec, ...]
    books: tuple[Book, ...]
    placements: Sequence[Placement]
    conflicts: Mapping[str, tuple[str, ...]]
    fleet: Fleet
    surveys: tuple[Survey, ...]
    unconfirmed: Mapping[str, str] = field(default_factory=dict)

    @property
    def tree(self) -> Tree:
        return self.fleet.tree

    def root(self, b: int) -> BudgetSpec:
        """The root budget of budget `b`."""
        return self.budgets[int(self.tree.forest.root_of[b])]

    def roots_of(self, rows: BoolArray) -> frozenset[str]:
        """The roots above these GPUs, `rows` bool[N]."""
        return frozenset(self.tree.order[b] for b in np.unique(self.tree.forest.root_of[self.fleet.gpus.leaf[rows]]))

    def aim_w(self) -> FloatArray:
        """What decisions aim at, float64[B]."""
        return np.array([book.limit.aim_w for book in self.books], dtype=np.float64)

    def awaited(self) -> IntArray:
        """How many nodes an autoscaler may still add to each leaf, int64[B]."""
        most = np.array([0 if spec.elastic is None else spec.elastic.max_nodes for spec in self.budgets], dtype=np.int64)
        awaited: IntArray = np.maximum(0, most - self.fleet.nodes)
        return awaited

    def awaited_w(self) -> FloatArray:
        """What nodes to come below each budget are charged until their agents speak, float64[B]."""
        node_w = np.array([spec.unmanaged_w_per_node for spec in self.budgets], dtype=np.float64)
        return self.tree.forest.sum_up(self.awaited() * node_w)

    def kept_w(self) -> FloatArray:
        """Of the watts of nodes to come as many as the floors of what runs leave free, float64[B]: nobody who is there is cut
        below its floor for one who is not. So a node that joins takes its place in the sum from what was kept for it."""
        awaited_w = self.awaited_w()
        if not awaited_w.any():
            return awaited_w
        floors_w = self.fleet.below(self.fleet.gpus.loss_factor * self.fleet.floor_w())
        spare_w = self.aim_w() - self._own_reserve_w() - self.beyond_w() - self.fleet.rest_w - floors_w
        return np.minimum(awaited_w, np.maximum(0.0, spare_w))

    def reserve_w(self) -> FloatArray:
        """Watts of each limit that are kept for what may come, surprises and nodes, float64[B]."""
        return self._own_reserve_w() + self.kept_w()

    def _own_reserve_w(self) -> FloatArray:
        return np.array([spec.reserve_w for spec in self.budgets], dtype=np.float64)

    def beyond_w(self) -> FloatArray:
        """What meters show beyond what is declared, float64[B]: the larger of the budget's own and the sum of its children's."""
        return self.tree.forest.own_or_children(np.array([book.correction.power_w for book in self.books], dtype=np.float64))

    def charged_w(self) -> FloatArray:
        """The sum of I1 below each budget, float64[B]."""
        return np.array([survey.charged_w for survey in self.surveys], dtype=np.float64)


def look(
    *,
    tree: Tree,
    budgets: Mapping[str, BudgetSpec],
    books: Mapping[str, Book],
    placements: Sequence[Placement],
    conflicts: Mapping[str, tuple[str, ...]],
    pods: Mapping[tuple[str, str], PodFact],
    profiles: Sequence[Profile],
    now_s: float,
    unconfirmed: Mapping[str, str],
    workloads: Workloads | None = None,
) -> Moment:
    """Lay out the fleet and survey it."""
    fleet = build_fleet(
        tree=tree, budgets=budgets, placements=placements, pods=pods, workloads=workloads, profiles=profiles, now_s=now_s
    )
    opened_s = {name: book.opened_s for name, book in books.items()}
    return Moment(
        now_s=now_s,
        budgets=tuple(budgets[name] for name in tree.order),
        books=tuple(books[name] for name in tree.order),
        placements=placements,
        conflicts=conflicts,
        fleet=fleet,
        surveys=take_survey(fleet, placements, budgets=budgets, opened_s=opened_s, now_s=now_s),
        unconfirmed=unconfirmed,
    )
