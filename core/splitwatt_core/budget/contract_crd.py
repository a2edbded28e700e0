"""The CustomResourceDefinition of NodePower, whose deletion takes every NodePower with it (docs/protocol.md, R33, R35).

A definition that is made anew has another uid. Whoever lived through the change still knows what was charged; whoever starts
after it finds neither NodePowers nor, of machines that left meanwhile, Nodes, and would believe that nothing draws. So the
status of every budget keeps the uid under which its nodes were last counted. Who starts under another raises nothing in a tree
that has such a budget until a person confirms, at its root, that no node is missing; who lived through it notes the new one
once every NodePower was seen under it. Each budget keeps its own, for it may hang elsewhere by then, or nowhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from splitwatt_core.budget.claims import Placement
from splitwatt_core.budget.facts import BudgetReport
from splitwatt_core.budget.tree import BudgetSpec, Tree
from splitwatt_core.names import ANNOTATION_NODES_CONFIRMED


class ContractCrd:
    """`uid` of the definition that is served now; "" while nobody told, and then nothing is judged by it."""

    def __init__(self) -> None:
        self.uid = ""
        self._first = ""
        self._noted: dict[str, str] = {}
        """By budget, the uid that its status names."""
        self._confirmed: dict[str, str] = {}
        """By budget, the uid that a person's word names."""
        self._seen_under: dict[str, str] = {}
        """By node, the uid under which its NodePower was last seen."""

    def see(self, uid: str) -> None:
        self.uid = uid
        self._first = self._first or uid

    def see_object(self, node: str) -> None:
        self._seen_under[node] = self.uid

    def see_budget(self, spec: BudgetSpec) -> None:
        """What a predecessor noted, when the budget is first seen; a person's word whenever it comes."""
        self._noted.setdefault(spec.name, spec.contract_uid)
        if spec.confirmed_uid:
            self._confirmed[spec.name] = spec.confirmed_uid

    def proves_absence(self, node: str, read_uid: str) -> bool:
        """Whether a NodePower that fresh reads do not find is gone by itself, and not with its definition. `read_uid`: of the
        definition, read after it; "" where there is none, or it is being deleted (R33)."""
        return not self.uid or (read_uid != "" and read_uid == self.uid == self._seen_under.get(node, self.uid))

    def unconfirmed(self, root: str, below: Iterable[str]) -> str | None:
        """Why nothing may be raised in this tree, None when it may. `below`: the budgets in it."""
        known = {"", self.uid, self._first}
        if not self.uid or self._confirmed.get(root) == self.uid or all(self._noted.get(name, "") in known for name in below):
            return None
        return (
            "the CustomResourceDefinition of NodePower was made anew and took all NodePowers with it: make sure that no machine "
            f"below this budget is missing, then kubectl annotate pb {root} --overwrite {ANNOTATION_NODES_CONFIRMED}={self.uid}"
        )

    def noted(
        self, reports: Mapping[str, BudgetReport], *, tree: Tree, placements: Sequence[Placement]
    ) -> Mapping[str, BudgetReport]:
        """The reports, with the uid for their status. Where a node counts that went with its definition, or whose new NodePower
        does not name its budgets yet, the former uid stays: a successor would not find the node. So does whoever knows of no
        definition. What has noted none yet notes at once the one under which this operator began."""
        missed = {up for p in placements if not self._stands(p) for leaf in p.leaves for up in tree.chain(leaf)}
        held = self.held(tree.root)
        for name, root in tree.root.items():
            if root not in held:
                seen = self.uid if name not in missed else ""
                self._noted[name] = seen or self._noted.get(name, "") or self._first
        return {name: replace(row, contract_uid=self._noted.get(name, "")) for name, row in reports.items()}

    def _stands(self, p: Placement) -> bool:
        """Whether a NodePower under the present definition says where the node counts."""
        seen = p.node.object
        here = self._seen_under.get(p.node.name) == self.uid
        return here and seen is not None and seen.spec is not None and set(p.names) <= set(seen.spec.budgets)

    def held(self, roots: Mapping[str, str]) -> dict[str, str]:
        """Roots in whose tree nothing may be raised, each with the reason. `roots`: by budget its root."""
        trees: dict[str, list[str]] = {}
        for name, root in roots.items():
            trees.setdefault(root, []).append(name)
        reasons = {root: self.unconfirmed(root, below) for root, below in trees.items()}
        return {root: reason for root, reason in reasons.items() if reason is not None}
