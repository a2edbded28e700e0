"""Budgets that are gone while nodes still count there (docs/protocol.md, R31).

A budget that somebody deleted, renamed or pruned takes nothing with it: what its NodePowers name stands on as a tombstone in
the tree that it had, counted in every budget above. Nothing is raised below it; what a sum asks for is lowered. It goes when no
NodePower names it any more: the nodes were claimed by another leaf, or a person released them. Applied again, it takes over
where it stood.

Whoever starts later rebuilds it from what is kept: the way up and the node's rates in the NodePowers, its limit and fixed watts
in the status of a budget above it. What nobody kept does not count against its own limit: nothing is raised there anyway.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Final

from splitwatt_core.budget.claims import Way, split_ways
from splitwatt_core.budget.tree import MAX_LIMIT_W, BelowState, BudgetSpec, Requirement, Selector
from splitwatt_core.protocol.contract import Mode, Spec
from splitwatt_core.protocol.node_account import NodeAccount

NOTHING: Final = Selector(
    match_expressions=(Requirement("splitwatt.io/gone", "Exists"), Requirement("splitwatt.io/gone", "DoesNotExist"))
)
"""Selects no node: says only that the budget was a leaf."""


class Tombstones:
    """`specs`: the tombstones that stand now, by name."""

    def __init__(self) -> None:
        self.specs: Mapping[str, BudgetSpec] = {}

    def bury(self, spec: BudgetSpec) -> None:
        """A budget was deleted: it stands on, until `settle` sees that no node counts there."""
        self.specs = {**self.specs, spec.name: spec}

    def revive(self, name: str) -> None:
        """A budget of this name is there again."""
        self.specs = {other: spec for other, spec in self.specs.items() if other != name}

    def settle(self, live: Mapping[str, BudgetSpec], named: Mapping[str, NodeAccount]) -> bool:
        """Let those stand that a NodePower names; True when they are others than before. `named`: every budget that a node
        counts in, with such a node."""
        gone = {name: account for name, account in named.items() if name not in live}
        if gone.keys() == self.specs.keys():
            return False
        self.specs = {name: self.specs.get(name) or _restored(name, account, live) for name, account in gone.items()}
        return True


def _ways(spec: Spec, live: Mapping[str, BudgetSpec]) -> tuple[Way, ...]:
    """The ways that a spec names, where some of its leaves are not known any more: what the node leaves begins with one, and so
    does what begins as the present way does."""
    leaves = {name for name in spec.budgets if name in live and live[name].selector is not None} | {*spec.budgets[:1]}
    leaves.update(
        name
        for before, name in pairwise(spec.budgets)
        if name in spec.leaving and before not in spec.leaving and spec.budgets.index(before) > 0
    )
    return split_ways(spec.budgets, leaves, {name: live[name].parent for name in spec.budgets if name in live})


def _restored(name: str, account: NodeAccount, live: Mapping[str, BudgetSpec]) -> BudgetSpec:
    """A tombstone from what is kept of it."""
    spec = account.object.spec if account.object is not None else None
    spec = Spec(term=0, for_uid="") if spec is None else spec
    way = next((way for way in _ways(spec, live) if name in way), (name,))
    place = way.index(name)
    above = way[place + 1 :]
    kept = next((row for up in above if up in live for row in live[up].below if row.name == name), None)
    kept = BelowState(name, MAX_LIMIT_W, 0) if kept is None else kept  # the highest: it binds nothing
    leaf = place == 0
    return BudgetSpec(
        name=name,
        uid="",
        generation=0,
        limit_w=kept.limit_w,
        parent=above[0] if above else None,
        mode=Mode.STRICT if above else spec.mode,
        selector=NOTHING if leaf else None,
        non_gpu_w_per_node=spec.non_gpu_w or 0 if leaf else 0,
        unmanaged_w_per_node=spec.unmanaged_w or 0 if leaf else 0,
        fixed_w=kept.fixed_w,
        overhead_percent=spec.overhead_percent or 0 if leaf else 0,
        adopted=True,
    )
