"""The CustomResourceDefinition of NodePower, whose deletion takes every NodePower with it (docs/protocol.md, R33, R35).

A definition that is made anew has another uid. Whoever lived through the change still knows what was charged; whoever starts
after it finds neither NodePowers nor, of machines that left meanwhile, Nodes, and would believe that nothing draws. So each
root's status keeps the uid under which its nodes were last counted. Who starts under another raises nothing in that tree until
a person confirms that no node is missing; who lived through it notes the new one once every NodePower was seen under it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
        """By root, the uid that its status names."""
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
        if spec.confirmed_uid and spec.confirmed_uid == self.uid:
            self._noted[spec.name] = self.uid

    def proves_absence(self, node: str, read_uid: str) -> bool:
        """Whether a NodePower that fresh reads do not find is gone by itself, and not with its definition. `read_uid`: of the
        definition, read after it; "" where there is none, or it is being deleted (R33)."""
        return not self.uid or (read_uid != "" and read_uid == self.uid == self._seen_under.get(node, self.uid))

    def unconfirmed(self, root: str) -> str | None:
        """Why nothing may be raised in this tree, None when it may."""
        noted = self._noted.get(root, "")
        if not self.uid or noted in ("", self.uid) or noted == self._first:
            return None
        return (
            "the CustomResourceDefinition of NodePower was made anew and took all NodePowers with it: make sure that no machine "
            f"below this budget is missing, then kubectl annotate pb {root} --overwrite {ANNOTATION_NODES_CONFIRMED}={self.uid}"
        )

    def noted(
        self, reports: Mapping[str, BudgetReport], *, tree: Tree, placements: Sequence[Placement]
    ) -> Mapping[str, BudgetReport]:
        """The reports, those of roots with the uid for their status. A node below that went with its definition, or whose new
        NodePower does not name its budgets yet, keeps the former uid there: a successor would not find it. So does whoever
        knows of no definition."""
        unseen = {tree.root[p.leaves[0]] for p in placements if not self._stands(p)}
        for root in set(tree.root.values()) - unseen:
            if self.uid and self.unconfirmed(root) is None:
                self._noted[root] = self.uid
        roots = {name for name in reports if tree.root[name] == name}
        return {
            name: replace(row, contract_uid=self._noted.get(name, "")) if name in roots else row for name, row in reports.items()
        }

    def _stands(self, p: Placement) -> bool:
        """Whether a NodePower under the present definition says where the node counts."""
        seen = p.node.object
        here = self._seen_under.get(p.node.name) == self.uid
        return here and seen is not None and seen.spec is not None and set(p.names) <= set(seen.spec.budgets)

    def held(self, roots: Mapping[str, str]) -> dict[str, str]:
        """Roots in whose tree nothing may be raised, each with the reason. `roots`: by budget its root."""
        reasons = {root: self.unconfirmed(root) for root in set(roots.values())}
        return {root: reason for root, reason in reasons.items() if reason is not None}
