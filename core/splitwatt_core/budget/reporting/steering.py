"""What is not steered below a budget, and why, said on it and on every budget above: GPUs that nobody is known to use and that
are not idle, nodes and budgets that a person keeps out, and GPUs of which something is told that cannot be true.

`OwnersKnown` says whose GPUs they are, `Steered` whether the policy may move their caps. Strangers, and pods of which labels and
rules say different things, are named by the first: that nobody classed a pod is no fault, but a person should hear it.
"""

from __future__ import annotations

from typing import Final

from splitwatt_core.budget.facts import PodFact
from splitwatt_core.budget.moment import Moment
from splitwatt_core.conditions import Condition, counted, some
from splitwatt_core.names import LABEL_EXCLUDED, LABEL_MODE
from splitwatt_core.protocol.contract import Phase, Use, Workload
from splitwatt_core.protocol.ledger import GpuAccount
from splitwatt_core.protocol.node_account import NodeAccount

UNOWNED_GRACE_S: Final = 15.0
"""A GPU between two pods, or one whose agent has just started, has no owner and no proof for some seconds."""


class Steering:
    """Sentences by budget, gathered in one pass over the fleet."""

    def __init__(self, m: Moment) -> None:
        self._unowned: dict[str, list[str]] = {}
        self._odd: dict[str, list[str]] = {}
        self._odd_terms: dict[str, list[str]] = {}
        self._limited: dict[str, list[str]] = {}
        self._excluded: dict[str, list[str]] = {}
        self._strangers: dict[str, dict[str, None]] = {}
        self._conflicts: dict[str, dict[str, None]] = {}
        budgets = {spec.name: spec for spec in m.budgets}
        self._frozen = {name: m.tree.frozen_by(name, budgets) for name in m.tree.order}
        for i, (account, node) in enumerate(zip(m.fleet.accounts, m.fleet.owner, strict=True)):
            for owner, pod in zip(account.owners, m.fleet.holders[i], strict=True):
                if pod is None or pod.phase is Phase.UNASSIGNED or pod.conflict:
                    self._hold(m.tree.chain(m.tree.order[int(m.fleet.gpus.leaf[i])]), owner, pod)
            since_s = account.unowned_since_s
            unowned = since_s is not None and m.now_s - since_s >= UNOWNED_GRACE_S and bool(m.fleet.steerable[i])
            outside_w = account.outside_w if account.outside_holds else None
            if not (unowned or account.oddity or outside_w is not None):
                continue
            for name in m.tree.chain(m.tree.order[int(m.fleet.gpus.leaf[i])]):
                if unowned:
                    self._unowned.setdefault(name, []).append(_unowned(account, node))
                if outside_w is not None:
                    self._limited.setdefault(name, []).append(f"{node.name}/{account.uuid} at {outside_w} W")
                if account.oddity:
                    self._odd.setdefault(name, []).append(f"{node.name}/{account.uuid} {account.oddity}")
        for p in m.placements:
            if p.node.term_oddity:
                for name in m.tree.chain(p.leaves[0]):
                    self._odd_terms.setdefault(name, []).append(f"NodePower {p.node.name} {p.node.term_oddity}")
            if p.node.excluded:
                for name in m.tree.chain(p.leaves[0]):
                    self._excluded.setdefault(name, []).append(f"{p.node.name} ({p.node.gpus_charge_w} W)")

    def _hold(self, names: tuple[str, ...], owner: Workload, pod: PodFact | None) -> None:
        """Of a GPU below these budgets: an owner whose phase nobody says, or of whom something was said that does not count."""
        for name in names:
            if pod is None or pod.phase is Phase.UNASSIGNED:
                self._strangers.setdefault(name, {})[f"{owner.namespace}/{owner.pod}"] = None
            if pod is not None and pod.conflict:
                self._conflicts.setdefault(name, {})[f"{owner.namespace}/{owner.pod}: {pod.conflict}"] = None

    def conditions(self, name: str) -> tuple[Condition, Condition]:
        return self._owners_known(name), self._steered(name)

    def _owners_known(self, name: str) -> Condition:
        unowned = self._unowned.get(name)
        if not unowned:
            said = ["every GPU has a known owner or is proven idle", *self._classed(name)]
            return Condition("OwnersKnown", True, "AllKnown", "; ".join(said))
        text = (
            f"caps are held of {counted(len(unowned), 'GPU')} without a known owner and not proven idle: {some(unowned)}; "
            "see the NodePower, and give pods their GPUs by a device plugin or a claim"
        )
        return Condition("OwnersKnown", False, "UnknownOwner", "; ".join([text, *self._classed(name)]))

    def _classed(self, name: str) -> list[str]:
        said = []
        if strangers := list(self._strangers.get(name, ())):
            verb, them = ("is", "it") if len(strangers) == 1 else ("are", "them")
            said.append(
                f"{counted(len(strangers), 'pod')} of which no known label and no rule says a phase {verb} given no less than "
                f"prefill: {some(strangers)}; class {them} by spec.workloads of the root budget"
            )
        if conflicts := list(self._conflicts.get(name, ())):
            said.append(f"{counted(len(conflicts), 'pod')} to look at: {some(conflicts, between='; ')}")
        return said

    def _steered(self, name: str) -> Condition:
        if self._frozen[name]:
            text = f"caps stay as they are, and no limit is kept by them: set spec.frozen of {some(self._frozen[name])} to false"
            return Condition("Steered", False, "Frozen", text)
        if contradictory := self._contradictory(name):
            return Condition("Steered", False, "ContradictoryStatus", "; ".join(contradictory))
        if name in self._limited:
            limited = self._limited[name]
            text = (
                f"somebody else's limit holds {counted(len(limited), 'GPU')} far below the cap, and no more is granted there: "
                f"{some(limited)}; take that limit off, and caps rise again"
            )
            return Condition("Steered", False, "LimitedFromOutside", text)
        if name in self._excluded:
            nodes = self._excluded[name]
            text = (
                f"{counted(len(nodes), 'node')} excluded by label, charged in full and granted nothing: {some(nodes)}; "
                f"their caps stay as they are; take the label {LABEL_EXCLUDED} off to have its GPUs steered, or put "
                f"{LABEL_MODE}=Release in its place to give them their default limits back"
            )
            return Condition("Steered", False, "NodesExcluded", text)
        return Condition("Steered", True, "All", "no GPU is kept out")

    def _contradictory(self, name: str) -> list[str]:
        said = []
        if gpus := self._odd.get(name):
            said.append(
                f"{counted(len(gpus), 'GPU')} charged and not steered: {some(gpus)}; compare with nvidia-smi -L "
                "on those nodes, and restart an agent that tells something else, or exclude its node"
            )
        if nodes := self._odd_terms.get(name):
            said.append(f"{counted(len(nodes), 'node')} of a term that is not ours: {some(nodes, between='; ')}")
        return said


def _unowned(account: GpuAccount, node: NodeAccount) -> str:
    seen = "draws power or computes" if account.use is Use.BUSY else "its use is not told"
    unresolved = node.object.status.unresolved if node.object is not None else ()
    named = f"; kubelet names {some(unresolved)}" if unresolved else ""
    return f"{node.name}/{account.uuid} at {account.present_cap_w} W ({seen}{named})"
