"""Which nodes there are and which budgets count them (docs/protocol.md, R8, R9, R31-R33).

A node counts in the leaf that its labels name and in all budgets above, in every budget that its NodePower's spec still
names, and in every one that it was claimed away from until all its GPUs acknowledged a grant issued *after* the claim. A node
without a NodePower gets one; a node that seems gone is charged until fresh reads find neither Node nor NodePower.

Protected: no charge disappears because something is missing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Final, TypeVar

from splitwatt_core.budget import claims
from splitwatt_core.budget.claims import DROPPED, Claim, Placement, Rates, Way
from splitwatt_core.budget.doubles import Doubles
from splitwatt_core.budget.facts import NodeFact, Note, Replaced
from splitwatt_core.budget.leaves import Leaves
from splitwatt_core.budget.renamed import Renamed
from splitwatt_core.budget.tree import BudgetSpec, Selector, Tree, build_tree
from splitwatt_core.names import ANNOTATION_RELEASE
from splitwatt_core.protocol.contract import MAX_BUDGETS_PER_NODE, NodePower
from splitwatt_core.protocol.node_account import AGENT_METRICS_SILENT_S, NodeAccount

Row = TypeVar("Row")

VERIFY_EVERY_S: Final = 2.0


def void_release(seen: NodePower) -> Note:
    """A person released what a leaf selects."""
    text = (
        f"{ANNOTATION_RELEASE}={','.join(sorted(seen.release))} is void and taken away again: a leaf selects this node; delete "
        "the Node, or take its label away, before you release it"
    )
    return Note("Node", seen.name, "ReleaseVoid", text, warning=True)


def machine_renamed(row: Replaced) -> Note:
    text = (
        f"its machine, providerID {row.heir.provider_id}, runs as Node {row.heir.name} under another boot: what was charged for "
        f"{row.node_power.name} is released"
    )
    return Note("Node", row.node_power.name, "MachineRenamed", text)


class Roster:
    """All nodes ever seen and not proven gone. `moves[node][former budget]` is the number of the first grant issued after
    the claim (NO_GRANT: none yet)."""

    def __init__(self, *, agent_silent_s: float = AGENT_METRICS_SILENT_S) -> None:
        self._agent_silent_s = agent_silent_s
        self.nodes: dict[str, NodeAccount] = {}
        self._doubles = Doubles()
        self._renamed = Renamed()
        self.moves: dict[str, dict[str, int]] = {}
        self._labels: dict[str, Mapping[str, str]] = {}
        self._gpus: dict[str, int] = {}
        self._selectors: Mapping[str, Selector | None] = {}
        self._leaves = Leaves(())
        self._selected: dict[str, tuple[str, ...]] = {}
        """By node, of the labels and selectors that are known now."""
        self._counted: dict[str, tuple[str, ...]] = {}
        """By node, the budgets that counted it last."""
        self._unread: dict[str, set[str]] = {}
        """By node, the budgets in its moves whose claim no fresh read has confirmed."""
        self._claims: dict[str, Claim] = {}
        """By node, the claim to be read."""
        self._void: dict[str, frozenset[str]] = {}
        """By node, the release that a person said of it before a leaf selected it, or while one did."""
        self._heard: set[str] = set()
        """Nodes of which something was heard since the last look."""
        self._creating: set[str] = set()
        self._verified_s: dict[str, float] = {}

    def account(self, name: str) -> NodeAccount:
        """The node's account, opened on first sight."""
        if name not in self.nodes:
            self.nodes[name] = NodeAccount(name, agent_silent_s=self._agent_silent_s)
            self._heard.add(name)
        return self.nodes[name]

    def see_node(self, node: NodeFact) -> bool:
        """Take in a present Node; True when it came up with a new boot."""
        if self._labels.get(node.name) != node.labels:
            self._selected.pop(node.name, None)
            self._heard.add(node.name)
        self._labels[node.name], self._gpus[node.name] = node.labels, node.gpus
        self._renamed.see(node)
        account = self.account(node.name)
        account.excluded, account.released = node.excluded, node.released
        rebooted = account.see_boot(node.boot_id)
        self._doubles.see(account, self.nodes)
        return rebooted

    def see_node_gone(self, name: str, now_s: float) -> NodeAccount | None:
        """The Node is not there any more; its account, if it has one, stays."""
        account = self.nodes.get(name)
        if account is not None:
            account.present = False
            self._renamed.gone(name, now_s)
        return account

    def see_node_power(self, seen: NodePower, now_s: float, *, term: int) -> bool:
        """Take in one version of a NodePower; False when it is not newer than one already seen (R6)."""
        account = self.account(seen.name)
        newer = account.observe(seen, now_s, term=term)
        if newer:
            self._heard.add(seen.name)
            self._doubles.see(account, self.nodes)
        return newer

    def forget(self, name: str) -> None:
        """Fresh reads found neither Node nor NodePower: unless either was seen again since, the charge is zero."""
        account = self.nodes.get(name)
        if account is None or account.present or account.object is not None:
            return
        del self.nodes[name]
        self._heard.discard(name)
        self._doubles.forget(name, self.nodes)
        self._renamed.forget(name)
        self._labels.pop(name, None)
        self._gpus.pop(name, None)
        self._selected.pop(name, None)
        self.moves.pop(name, None)
        self._counted.pop(name, None)
        self._unread.pop(name, None)
        self._claims.pop(name, None)
        self._void.pop(name, None)
        self._verified_s.pop(name, None)

    def created(self, name: str) -> None:
        self._creating.discard(name)

    def named(self, living: Mapping[str, BudgetSpec]) -> dict[str, NodeAccount]:
        """Every budget that counts a node because its NodePower names it, or counted it last where it names none, with the
        first such node. `living`: the budgets that there are."""
        self._see_selectors(living.values())
        found: dict[str, NodeAccount] = {}
        for name, account in self.nodes.items():
            names = (*self._written(account, claimed=False), *self._counted.get(name, ()), *self.moves.get(name, ()))
            free = self._released(account, names)
            for budget in names:
                if budget not in free:
                    found.setdefault(budget, account)
        return found

    def remember(self, budgets: Mapping[str, BudgetSpec], tree: Tree, names: Iterable[str] | None = None) -> None:
        """Before something is taken away: where nodes count by what was heard since the last look. Else what was heard in full,
        and lost before the next look, would count nowhere; and a node that came back to a way while it was still leaving it, and
        left again, would be rid of it by a grant made before that. `budgets`: with the tombstones of `tree`. `names`: None, all
        nodes."""
        leaving = {name for name, moves in self.moves.items() if moves}
        due = self._heard | leaving if names is None else (self._heard | leaving).intersection(names)
        self._heard -= due
        self._see_selectors(spec for spec in budgets.values() if spec.name not in tree.gone)
        for name in due:
            account, selected = self.nodes[name], self._selecting(name)
            written, counted = self._written(account, claimed=bool(selected)), self._counted.get(name, ())
            moves, unread = self.moves.setdefault(name, {}), self._unread.setdefault(name, set())
            claims.begin_moves(account, moves, unread, selected=selected, known=(written, counted), tree=tree)
            free = self._released(account, written)
            kept = {n for n in (*claims.ways(selected, tree), *written, *counted) if n not in free}
            if heard := self._ways(name, [tree.chain(leaf) for leaf in selected], (written, counted), kept=kept, tree=tree):
                self._counted[name] = heard

    def relabels(self, node: NodeFact) -> bool:
        """Whether its labels were others before."""
        return self._labels.get(node.name, node.labels) != node.labels

    def renames(self, seen: NodePower) -> bool:
        """Whether its NodePower named other budgets before."""
        account = self.nodes.get(seen.name)
        before = account.object.spec if account is not None and account.object is not None else None
        return before is not None and before.budgets != (seen.spec.budgets if seen.spec is not None else ())

    def _see_selectors(self, living: Iterable[BudgetSpec]) -> None:
        selectors = {spec.name: spec for spec in living if spec.selector is not None}
        known = {name: spec.selector for name, spec in selectors.items()}
        if known != self._selectors:
            self._selectors, self._leaves, self._selected = known, Leaves(selectors.values()), {}

    def _released(self, account: NodeAccount, names: Sequence[str]) -> frozenset[str]:
        """What a person lets go of. Of a Node that is gone nothing is let go before fresh reads prove it."""
        said = account.object.release if account.object is not None else frozenset()
        if self._void.get(account.name, said) != said or not said:
            self._void.pop(account.name, None)
        if said and account.present and self._selecting(account.name):
            self._void[account.name] = said  # a claim takes the word back
        return claims.releases(said, names) if account.present and account.name not in self._void else frozenset()

    def _written(self, account: NodeAccount, *, claimed: bool) -> tuple[str, ...]:
        """The budgets that the node's spec names; where it names none yet, and no leaf claims it, those that counted it last."""
        seen = account.object
        if seen is not None and seen.spec is not None and seen.spec.budgets:
            return seen.spec.budgets
        return () if claimed else self._counted.get(account.name, ())

    def placements(
        self, budgets: Mapping[str, BudgetSpec], *, tree: Tree | None = None, observing: Set[str] = frozenset()
    ) -> tuple[list[Placement], dict[str, tuple[str, ...]]]:
        """All nodes that some budget must count, and the nodes that several leaves select by label. `budgets` include the
        tombstones of `tree`, which select nothing. `observing`: budgets that grant nothing, so that a move in or out of them
        has no grant to wait for."""
        tree = build_tree(budgets) if tree is None else tree
        self._see_selectors(spec for spec in budgets.values() if spec.name not in tree.gone)
        self._heard.clear()
        placed: list[Placement] = []
        conflicts: dict[str, tuple[str, ...]] = {}
        rates: dict[str, Rates] = {}
        for name in sorted(self.nodes):
            account = self.nodes[name]
            selected = self._selecting(name)
            if len(selected) > 1:
                conflicts[name] = selected
            written, counted = self._written(account, claimed=bool(selected)), self._counted.get(name, ())
            moves = self.moves.setdefault(name, {})
            at_rest = not moves and name not in self._claims and (not counted or counted == written)
            if at_rest and len(selected) == 1 and written == tree.ways[selected[0]] and not claims.told_leaving(account):
                placed.append(self._settled(account, selected[0], written, budgets, known=rates))
                self._counted[name] = written
                continue
            unread = self._unread.setdefault(name, set())
            own = claims.ways(selected, tree)
            claims.begin_moves(account, moves, unread, selected=selected, known=(written, counted), tree=tree)
            if selected and account.present:
                claims.end_moves(account, moves, unread, selected=selected, written=written, tree=tree, observing=observing)
            if unread and selected:
                named = tuple((n, budgets[n].uid, budgets[n].generation) for n in own)
                self._claims[name] = Claim(name, self._labels[name], named)
            else:
                self._claims.pop(name, None)
            others = [n for n in dict.fromkeys((*written, *counted, *moves)) if n not in own]
            free = self._released(account, others)
            counting = (*own, *(n for n in others if n in budgets and n not in free))
            if counting:
                names = (written, counted)
                found = self._placement(account, selected, counting, names=names, budgets=budgets, tree=tree, known=rates)
                placed.append(found)
            elif free.issuperset(others):
                self._counted.pop(name, None)
        return placed, conflicts

    def _settled(
        self,
        account: NodeAccount,
        leaf: str,
        way: tuple[str, ...],
        budgets: Mapping[str, BudgetSpec],
        *,
        known: dict[str, Rates],
    ) -> Placement:
        """Of nearly every node: it stands where its label and its spec say."""
        if leaf not in known:
            known[leaf] = claims.rates_of((leaf,), budgets, account.object)
        return Placement(account, (leaf,), names=way, rates=known[leaf], allocatable_gpus=self._gpus.get(account.name, 0))

    def _placement(
        self,
        account: NodeAccount,
        selected: Sequence[str],
        counting: Sequence[str],
        *,
        names: Sequence[Sequence[str]],
        budgets: Mapping[str, BudgetSpec],
        tree: Tree,
        known: dict[str, Rates],
    ) -> Placement:
        """`names`: what is known to count the node, as specs name it. `known`: rates of nodes in one leaf alone, by leaf."""
        leaf, moves = counting[0], self.moves[account.name]
        way = tree.chain(leaf)
        leaves = tuple(dict.fromkeys((leaf, *selected[1:], *(n for n in counting if n not in way))))
        rates = known.get(leaf) if len(leaves) == 1 else None
        if rates is None:
            rates = claims.rates_of(leaves, budgets, account.object)
            if len(leaves) == 1:
                known[leaf] = rates
        present = [way, *(tree.chain(other) for other in selected[1:])]
        every = self._counted[account.name] = self._ways(account.name, present, names, kept={*way, *counting}, tree=tree)
        named = claims.fitting(every, way=way, gone=tree.gone)
        left = {*moves, *claims.ways(selected[1:], tree)}.difference(way if selected else ())
        return Placement(
            node=account,
            leaves=leaves,
            names=named,
            leaving=tuple(n for n in dict.fromkeys(named) if n in left),
            claimed=bool(selected),
            unread=frozenset(self._unread[account.name]),
            rates=rates,
            allocatable_gpus=self._gpus.get(account.name, 0),
        )

    def _ways(
        self, node: str, present: Iterable[Way], known: Sequence[Sequence[str]], *, kept: Set[str], tree: Tree
    ) -> tuple[str, ...]:
        """The ways that a spec is to name: the present ones, and of the `known` what is `kept` and not left for good."""
        gone = {name for name, since in self.moves[node].items() if since == DROPPED}
        former = (way for names in known for way in claims.split_ways(names, tree.leaves, tree.named) if gone.isdisjoint(way))
        named = claims.joined(tuple(n for n in way if n in kept) for way in (*present, *former))
        found = (*named, *sorted(kept - gone.union(named)))
        return found if len(found) <= MAX_BUDGETS_PER_NODE else tuple(dict.fromkeys(found))

    def _selecting(self, name: str) -> tuple[str, ...]:
        """The leaves that the node's labels name."""
        if name not in self._selected:
            labels = self._labels.get(name)
            self._selected[name] = () if labels is None else self._leaves.selecting(labels)
        return self._selected[name]

    def to_create(self, placements: Sequence[Placement]) -> tuple[str, ...]:
        """Present nodes without a NodePower, each asked for once until `created`."""
        names = [
            p.node.name for p in placements if p.node.present and p.node.object is None and p.node.name not in self._creating
        ]
        self._creating.update(names)
        return tuple(names)

    def to_release(self, now_s: float) -> tuple[NodePower, ...]:
        """NodePowers that a person releases and whose Node seems gone: to be deleted once fresh reads find none (R33)."""
        rows = {
            name: account.object
            for name, account in self.nodes.items()
            if account.object is not None
            and account.object.release
            and not account.present
            and (names := self._written(account, claimed=False))
            and claims.releases(account.object.release, names) == set(names)
        }
        return self._to_read(rows, now_s)

    def to_take_back(self, now_s: float) -> tuple[NodePower, ...]:
        """NodePowers with a release that is void, for their Node is there and a leaf selects it: it must not wait there for the
        day that the label is lost."""
        rows = {
            name: account.object
            for name in self._void
            if (account := self.nodes[name]).object is not None
            and account.present
            and self._selecting(name)
            and name not in self._claims
        }
        return self._to_read(rows, now_s)

    def to_replace(self, now_s: float) -> tuple[Replaced, ...]:
        """NodePowers of machines that run another boot under another name, to be deleted once fresh reads find the same."""
        return self._to_read({row.node_power.name: row for row in self._renamed.proven(self.nodes)}, now_s)

    def to_confirm(self, now_s: float) -> tuple[Claim, ...]:
        """Claims of present Nodes that are to be read afresh (R32)."""
        return self._to_read({name: claim for name, claim in self._claims.items() if self.nodes[name].present}, now_s)

    def confirm(self, claim: Claim) -> None:
        """Fresh reads found it so; unless something of it changed since, it counts from now on."""
        if self._claims.get(claim.node) == claim and self._labels.get(claim.node) == claim.labels:
            self._unread[claim.node].clear()

    def to_verify(self, now_s: float) -> tuple[str, ...]:
        """Nodes that seem gone with their NodePower, to be read afresh (R8)."""
        gone = (name for name, account in self.nodes.items() if not account.present and account.object is None)
        return self._to_read({name: name for name in gone}, now_s)

    def _to_read(self, rows: Mapping[str, Row], now_s: float) -> tuple[Row, ...]:
        """Of what fresh reads are to judge, by node, that of nodes which nobody was asked to read for `VERIFY_EVERY_S`."""
        due = {name: row for name, row in rows.items() if abs(now_s - self._verified_s.get(name, -math.inf)) >= VERIFY_EVERY_S}
        self._verified_s.update(dict.fromkeys(due, now_s))
        return tuple(due.values())
