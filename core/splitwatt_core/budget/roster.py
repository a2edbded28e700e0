"""Which nodes there are and which budgets count them (docs/protocol.md, R8, R9).

A node counts in the leaf that its labels name, in every leaf its NodePower's spec still names, and in every leaf it was
moved out of until all its GPUs acknowledged a grant issued *after* the move. A node without a NodePower gets one; a node
that seems gone is charged until fresh reads find neither Node nor NodePower.

Protected: no charge disappears because something is missing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Final

from splitwatt_core.budget.facts import NodeFact
from splitwatt_core.budget.leaves import Leaves
from splitwatt_core.budget.tree import BudgetSpec, Selector
from splitwatt_core.protocol.contract import NO_GRANT
from splitwatt_core.protocol.ledger import AGENT_METRICS_SILENT_S, NodeAccount

VERIFY_EVERY_S: Final = 2.0
DROPPED: Final = -1
"""In `Roster.moves`: the move out of this leaf is acknowledged; the next write drops it, and only then it stops counting."""


@dataclass(frozen=True, slots=True)
class Placement:
    """One node's leaves: the one its labels name first, then those that still count it. Names of budgets."""

    node: NodeAccount
    leaves: tuple[str, ...]


def managed(node: NodeAccount) -> bool:
    """Whether the node's GPUs are known, so that they are charged one by one instead of at the leaf's flat rate (R8)."""
    return any(gpu.default_w > 0 for gpu in node.gpus.values())


class Roster:
    """All nodes ever seen and not proven gone. `moves[node][former leaf]` is the number of the first grant issued after
    the move (NO_GRANT: none yet)."""

    def __init__(self, *, agent_silent_s: float = AGENT_METRICS_SILENT_S) -> None:
        self._agent_silent_s = agent_silent_s
        self.nodes: dict[str, NodeAccount] = {}
        self.moves: dict[str, dict[str, int]] = {}
        self._labels: dict[str, Mapping[str, str]] = {}
        self._selectors: Mapping[str, Selector] = {}
        self._leaves = Leaves(())
        self._selected: dict[str, tuple[str, ...]] = {}
        """By node, of the labels and selectors that are known now."""
        self._creating: set[str] = set()
        self._verified_s: dict[str, float] = {}

    def account(self, name: str) -> NodeAccount:
        """The node's account, opened on first sight."""
        if name not in self.nodes:
            self.nodes[name] = NodeAccount(name, agent_silent_s=self._agent_silent_s)
        return self.nodes[name]

    def see_node(self, node: NodeFact) -> bool:
        """Take in a present Node; True when it came up with a new boot."""
        if self._labels.get(node.name) != node.labels:
            self._selected.pop(node.name, None)
        self._labels[node.name] = node.labels
        return self.account(node.name).see_boot(node.boot_id)

    def forget(self, name: str) -> None:
        """Fresh reads found neither Node nor NodePower: unless either was seen again since, the charge is zero."""
        account = self.nodes.get(name)
        if account is None or account.present or account.object is not None:
            return
        del self.nodes[name]
        self._labels.pop(name, None)
        self._selected.pop(name, None)
        self.moves.pop(name, None)
        self._verified_s.pop(name, None)

    def created(self, name: str) -> None:
        self._creating.discard(name)

    def placements(
        self, budgets: Mapping[str, BudgetSpec], *, observing: Set[str] = frozenset()
    ) -> tuple[list[Placement], dict[str, tuple[str, ...]]]:
        """All nodes that some leaf must count, and the nodes that several leaves select by label. `observing`: budgets that
        grant nothing, so that a move in or out of them has no grant to wait for."""
        selectors = {spec.name: spec.selector for spec in budgets.values() if spec.selector is not None}
        if selectors != self._selectors:
            self._selectors, self._leaves, self._selected = selectors, Leaves(budgets.values()), {}
        placed: list[Placement] = []
        conflicts: dict[str, tuple[str, ...]] = {}
        for name in sorted(self.nodes):
            account = self.nodes[name]
            selected = self._selecting(name)
            if len(selected) > 1:
                conflicts[name] = selected
            spec = account.object.spec if account.object is not None else None
            written = spec.budgets if spec is not None else ()
            moves = self.moves.setdefault(name, {})
            if account.present:
                self._follow(account, moves, selected, written, observing)
            standing = [b for b in dict.fromkeys((*selected, *written, *moves)) if b in budgets]
            if standing:
                placed.append(Placement(account, tuple(standing)))
        return placed, conflicts

    def _selecting(self, name: str) -> tuple[str, ...]:
        """The leaves that the node's labels name."""
        if name not in self._selected:
            labels = self._labels.get(name)
            self._selected[name] = () if labels is None else self._leaves.selecting(labels)
        return self._selected[name]

    @staticmethod
    def _follow(
        account: NodeAccount,
        moves: dict[str, int],
        selected: Sequence[str],
        written: Sequence[str],
        observing: Set[str],
    ) -> None:
        """Begin a move when the labels left a leaf that the spec names, end it when it was acknowledged (R9)."""
        for former in written:
            if former not in selected:
                moves.setdefault(former, NO_GRANT)
        for former, since in list(moves.items()):
            if former in selected or (since == DROPPED and former not in written):
                del moves[former]
            elif account.stamped and (former in observing or not observing.isdisjoint(selected)):
                moves[former] = DROPPED
            elif account.gpus:
                if since > NO_GRANT and all(gpu.acked >= since for gpu in account.gpus.values()):
                    moves[former] = DROPPED
            elif account.stamped:
                moves[former] = DROPPED  # it has no GPU whose cap could be in doubt

    def to_create(self, placements: Sequence[Placement]) -> tuple[str, ...]:
        """Present nodes without a NodePower, each asked for once until `created`."""
        names = [
            p.node.name for p in placements if p.node.present and p.node.object is None and p.node.name not in self._creating
        ]
        self._creating.update(names)
        return tuple(names)

    def to_verify(self, now_s: float) -> tuple[str, ...]:
        """Nodes that seem gone with their NodePower, to be read afresh (R8)."""
        due = [
            name
            for name, account in self.nodes.items()
            if not account.present
            and account.object is None
            and now_s - self._verified_s.get(name, float("-inf")) >= VERIFY_EVERY_S
        ]
        self._verified_s.update(dict.fromkeys(due, now_s))
        return tuple(due)
