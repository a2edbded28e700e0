"""What is to be said of single budgets, gathered in one pass over the fleet each: who is sick, late, gone, or claimed by nobody.

Everything is by budget. What a person must mend at a leaf is said at that leaf, and what its absence costs at all above it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from splitwatt_core.budget.claims import Placement, charged_w, managed
from splitwatt_core.budget.facts import Tombstone
from splitwatt_core.budget.moment import Moment
from splitwatt_core.budget.tree import BelowState
from splitwatt_core.columns import BoolArray
from splitwatt_core.conditions import MAX_NAMED, counted, some
from splitwatt_core.names import ANNOTATION_RELEASE
from splitwatt_core.policies.signature import Decision, Reason
from splitwatt_core.protocol.contract import Health
from splitwatt_core.trees import NO_BUDGET


@dataclass(slots=True)
class Charged:
    """Nodes and what they are charged, in watts at the meter."""

    nodes: list[str] = field(default_factory=list)
    charge_w: float = 0.0

    def add(self, p: Placement) -> None:
        self.nodes.append(p.node.name)
        self.charge_w += charged_w(p.rates, p.node)


class BudgetFindings:
    """By budget. sick, late, aside: GPUs whose caps are not enforced, that owe an acknowledgement, that nobody counts on; with
    those of all leaves below. mute: nodes below whose agents do not answer. clashes: nodes that several leaves select. gone:
    deleted budgets below. unclaimed, ghosts: nodes of a leaf that no leaf selects, or whose Node object is gone. beside: nodes
    that count in a budget off their way, and that nothing claims from it. bare: nodes below without an agent; agentless: those
    of them that should have one. below: what the status keeps of the budgets right below. reasons: the policies', by the leaf
    they speak of."""

    def __init__(self, m: Moment, *, aside: BoolArray, mute: BoolArray, held: Mapping[str, str]) -> None:
        self.tree, self.held = m.tree, held
        fleet = m.fleet
        self.sick = self._gpus(m, (i for i, account in enumerate(fleet.accounts) if account.health is not Health.OK))
        self.late = self._gpus(m, np.flatnonzero(fleet.late).tolist())
        self.aside = self._gpus(m, np.flatnonzero(aside).tolist())
        self.mute: dict[str, set[str]] = {}
        for i in np.flatnonzero(mute).tolist():
            for name in self.tree.chain(self.tree.order[fleet.gpus.leaf[i]]):
                self.mute.setdefault(name, set()).add(fleet.owner[i].name)
        self.clashes: dict[str, list[str]] = {}
        for node, leaves in sorted(m.conflicts.items()):
            for leaf in leaves:
                self.clashes.setdefault(leaf, []).append(f"{node} ({' and '.join(leaves)})")
        self.gone: dict[str, list[Tombstone]] = {}
        self.unclaimed: dict[str, Charged] = {}
        self.ghosts: dict[str, Charged] = {}
        self.beside: dict[str, Charged] = {}
        self.bare: dict[str, list[str]] = {}
        self.agentless: dict[str, list[str]] = {}
        self._nodes(m)
        self.below: dict[str, tuple[BelowState, ...]] = {}
        for b, above in enumerate(self.tree.forest.parent.tolist()):
            if above != NO_BUDGET:
                row = BelowState(self.tree.order[b], m.books[b].limit.spec_w, m.budgets[b].fixed_w)
                self.below[self.tree.order[above]] = (*self.below.get(self.tree.order[above], ()), row)

    def _gpus(self, m: Moment, rows: Iterable[int]) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for i in rows:
            account = m.fleet.accounts[i]
            sick = "" if account.health is Health.OK else f" {account.health.value}"
            for name in self.tree.chain(self.tree.order[m.fleet.gpus.leaf[i]]):
                found.setdefault(name, []).append(f"{m.fleet.owner[i].name}/{account.uuid}{sick}")
        return found

    def _nodes(self, m: Moment) -> None:
        by_leaf: dict[str, list[Placement]] = {}
        for p in m.placements:
            by_leaf.setdefault(p.leaves[0], []).append(p)
            if not p.node.present:
                self.ghosts.setdefault(p.leaves[0], Charged()).add(p)
            elif not p.claimed and p.leaves[0] not in self.tree.gone:
                self.unclaimed.setdefault(p.leaves[0], Charged()).add(p)
            for name in p.leaves[1:]:
                if name not in p.leaving:
                    self.beside.setdefault(name, Charged()).add(p)
        for leaf, placed in by_leaf.items():
            bare = [p for p in placed if p.node.present and not managed(p.node) and not p.node.reported]
            due = bare if len(bare) == len(placed) else [p for p in bare if p.allocatable_gpus]
            for name in self.tree.chain(leaf):
                self.bare.setdefault(name, []).extend(p.node.name for p in bare)
                self.agentless.setdefault(name, []).extend(p.node.name for p in due)
        for name in self.tree.order:
            if name in self.tree.gone:
                self._gone(m, name)

    def _gone(self, m: Moment, name: str) -> None:
        nodes = tuple(p.node.name for p in m.placements if any(name in self.tree.chain(leaf) for leaf in p.leaves))
        row = Tombstone(name, nodes, m.surveys[self.tree.index[name]].charged_w)
        for above in self.tree.chain(name)[1:]:
            self.gone.setdefault(above, []).append(row)

    def unclaimed_names(self, name: str) -> tuple[str, ...]:
        """Nodes of the leaf that no leaf claims, those whose Node is gone as well (R34), sorted."""
        found = (self.unclaimed.get(name), self.ghosts.get(name))
        return tuple(sorted(node for charged in found if charged is not None for node in charged.nodes))

    def reasons(self, decisions: Mapping[str, Decision]) -> dict[str, list[Reason]]:
        """The policies', by the leaf they speak of; they count leaves within the root's own tree."""
        found: dict[str, list[Reason]] = {}
        for root, decision in decisions.items():
            for reason in decision.reasons:
                found.setdefault(self.tree.order[self.tree.index[root] + reason.leaf], []).append(reason)
        return found

    # ------------------------------------------------------------------------------------------------------- sentences

    def gone_text(self, name: str) -> str:
        rows = self.gone[name]
        each = "; ".join(
            f"{row.name} is gone, and what it held is still charged {row.charge_w:.0f} W ({counted(len(row.nodes), 'node')}: "
            f"{some(row.nodes)})"
            for row in rows[:MAX_NAMED]
        )
        more = f"; and {len(rows) - MAX_NAMED} more" if len(rows) > MAX_NAMED else ""
        return (
            f"PowerBudget {each}{more}: apply it again, let another leaf select its nodes, or release each: "
            f"kubectl annotate np NODE {ANNOTATION_RELEASE}={rows[0].name}"
        )

    def unclaimed_text(self, name: str) -> str:
        found = self.unclaimed[name]
        return (
            f"{counted(len(found.nodes), 'node')} that no nodeSelector names any more still counted here with "
            f"{found.charge_w:.0f} W, nothing is raised there: {some(found.nodes)}; label them again, let another leaf select "
            f"them, or release each: kubectl annotate np NODE {ANNOTATION_RELEASE}={name}"
        )

    def beside_text(self, name: str) -> str:
        found = self.beside[name]
        counts = f"{counted(len(found.nodes), 'node')} still counted here with {found.charge_w:.0f} W, whose leaf "
        below = [child for child, up in self.tree.named.items() if up == name and child in self.tree.fault]
        if below and name in self.tree.leaves:
            return (
                f"{counts}stands below it: {some(found.nodes)}; remove spec.nodeSelector, for {some(below)} "
                f"{'names' if len(below) == 1 else 'name'} it as spec.parent"
            )
        return (
            f"{counts}names no way here any more: {some(found.nodes)}; put spec.parent of that leaf back, or let it name "
            "another, and see that its nodeSelector selects them"
        )

    def ghosts_text(self, name: str) -> str:
        found = self.ghosts[name]
        gone = f"{counted(len(found.nodes), 'node')} {'is' if len(found.nodes) == 1 else 'are'} gone"
        return (
            f"{gone} and still charged {found.charge_w:.0f} W: {some(found.nodes)}; when "
            f"nothing draws there any more: kubectl annotate np NODE {ANNOTATION_RELEASE}={name}"
        )

    def agentless_text(self, name: str, *, nodes: int) -> str:
        found = self.agentless[name]
        verb = "has" if len(found) == 1 else "have"
        return (
            f"{len(found)} of {counted(nodes, 'node')} {verb} no agent: {some(found)}: nothing caps their GPUs; look whether the "
            "agent's DaemonSet selects them and tolerates their taints, whether its pods are refused (kubectl describe daemonset "
            "splitwatt-agent: Pod Security, a quota for their priority class), and whether they start and find the driver"
        )
