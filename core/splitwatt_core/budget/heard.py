"""What the operator's shell tells a keeper: facts in, each safe to repeat, old versions ignored.

It keeps the whole picture of a term: the budgets that are there and those that are gone and still count, every node's account,
pods, meters, and the writes under way. It decides nothing; charges alone follow what is heard at once. Silence tells nothing:
a write whose outcome is unknown stays charged (R6), an absent object is charged until fresh reads prove it gone (R8).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from splitwatt_core.budget.books import Book
from splitwatt_core.budget.claims import Claim
from splitwatt_core.budget.contract_crd import ContractCrd
from splitwatt_core.budget.facts import (
    MeterFailure,
    MeterReading,
    NodeFact,
    Note,
    Outcome,
    PodFact,
    SpecWrite,
    Written,
)
from splitwatt_core.budget.floor_room import FloorRoom
from splitwatt_core.budget.meters import plausible
from splitwatt_core.budget.modes import deleted, mode_changed
from splitwatt_core.budget.roster import Roster
from splitwatt_core.budget.tombstones import Tombstones
from splitwatt_core.budget.tree import SETTLE_MS, BudgetSpec, Tree, build_tree
from splitwatt_core.budget.workloads import OwnerFact, Workloads
from splitwatt_core.gpus.profiles import Profile
from splitwatt_core.protocol.contract import NodePower
from splitwatt_core.protocol.node_account import NodeAccount


class Heard:
    """Not thread-safe; all times are seconds of one wall clock (Unix time)."""

    def __init__(self, *, term: int, profiles: Sequence[Profile], agent_silent_s: float, awaits_owners: bool) -> None:
        """As of `Keeper`."""
        self._term = term
        self._profiles = profiles
        self.budgets: dict[str, BudgetSpec] = {}
        self.books: dict[str, Book] = {}
        self._tombstones = Tombstones()
        self._contract = ContractCrd()
        self._tree: Tree | None = None
        self.roster = Roster(agent_silent_s=agent_silent_s)
        self._pods: dict[tuple[str, str], PodFact] = {}
        self._workloads = Workloads(awaits=awaits_owners)
        self._in_flight: dict[str, SpecWrite] = {}
        self._settle_s_by_leaves: dict[tuple[str, ...], float] = {}
        self._notes: list[Note] = []
        self._resign: str | None = None
        self._room = FloorRoom()

    # ---------------------------------------------------------------------------------------------------------- facts

    def on_budget(self, spec: BudgetSpec, now_s: float) -> None:
        book = self.books.get(spec.name)
        if book is None:
            book = self.books[spec.name] = Book.open(spec, now_s)
        self._contract.see_budget(spec)
        book.uid = spec.uid  # made anew it takes over where it stood: nothing jumps, nothing is adopted again
        self._notes.extend(book.see_limit(spec, now_s))
        before = self.budgets.get(spec.name)
        if before is not None and before.mode is not spec.mode and spec.parent is None:
            self._notes.append(mode_changed(spec, before.mode))
        moves = before is None or (before.parent, before.selector) != (spec.parent, spec.selector)
        if before is not None and moves:
            self.roster.remember(self.standing, self.tree)
        self.budgets[spec.name] = spec
        if moves:
            self._tombstones.revive(spec.name)
            self._replant()
        self._settle_s_by_leaves.clear()

    def on_budget_gone(self, name: str, now_s: float) -> None:
        """It stands on as a tombstone while a NodePower names it (R31); else its book is closed at the next step."""
        spec = self.budgets.get(name)
        if spec is not None:
            self.roster.remember(self.standing, self.tree)
            if (note := deleted(spec, self.roster.nodes.values())) is not None:
                self._notes.append(note)
            del self.budgets[name]
            self._tombstones.bury(spec)
            self._workloads.forget_root(name)
        self._room = self._room.without(name)
        self._replant()

    @property
    def standing(self) -> Mapping[str, BudgetSpec]:
        """All budgets that count: those that are there, and tombstones."""
        return {**self._tombstones.specs, **self.budgets} if self._tombstones.specs else self.budgets

    def _settle_tombstones(self, now_s: float) -> None:
        if self._tombstones.settle(self.budgets, self.roster.named(self.budgets)):
            self._replant()
        standing = self.standing
        for name in self.books.keys() - standing.keys():
            del self.books[name]
        for name in standing.keys() - self.books.keys():
            self.books[name] = Book.open(standing[name], now_s)

    def _replant(self) -> None:
        self._tree = None
        self._settle_s_by_leaves.clear()

    @property
    def tree(self) -> Tree:
        """Of the budgets that count now; grown when somebody looks, for budgets often come many at once."""
        if self._tree is None:
            self._tree = build_tree(self.standing, gone=self._tombstones.specs.keys())
        return self._tree

    def on_profiles(self, profiles: Sequence[Profile]) -> None:
        """The PowerProfiles in force, most specific first."""
        self._profiles = profiles

    def on_node(self, node: NodeFact, now_s: float) -> None:
        if self.roster.relabels(node):
            self.roster.remember(self.standing, self.tree, [node.name])
        if self.roster.see_node(node):
            self._notes.append(Note("Node", node.name, "NodeRebooted", "new boot: its GPUs count at their default limit"))
        self._refresh(self.roster.account(node.name), now_s)

    def on_node_gone(self, name: str, now_s: float) -> None:
        """The Node vanished; its charge stays with its NodePower, or until fresh reads find neither (R8)."""
        account = self.roster.see_node_gone(name, now_s)
        if account is not None:
            self._refresh(account, now_s)

    def on_node_lease(self, node: str, renewed_s: float) -> None:
        account = self.roster.nodes.get(node)
        if account is not None:
            account.lease_s = max(account.lease_s, renewed_s)

    def on_node_power(self, node_power: NodePower, now_s: float) -> None:
        self._contract.see_object(node_power.name)
        if self.roster.renames(node_power):
            self.roster.remember(self.standing, self.tree, [node_power.name])
        if self.roster.see_node_power(node_power, now_s, term=self._term):
            account = self.roster.account(node_power.name)
            if known := account.term_word.superseding(ours=self._term):
                self._resign = (
                    f"NodePower {node_power.name} knows term {known}, above ours ({self._term}): another operator took over, "
                    "or the API server's store was restored"
                )
            self._refresh(account, now_s)

    def on_node_power_gone(self, name: str, now_s: float, uid: str = "") -> None:
        """`uid` of the deleted object, where known: a late word of an earlier object is ignored."""
        self.roster.remember(self.standing, self.tree, [name])
        account = self.roster.nodes.get(name)
        if account is not None and account.forget_object(uid):
            self._refresh(account, now_s)

    def on_contract_crd(self, uid: str) -> None:
        """The uid of the CustomResourceDefinition of NodePower as it is served now; tell it before what is read under it."""
        self._contract.see(uid)

    def on_absence_verified(self, name: str, now_s: float, contract_uid: str = "") -> None:
        """Fresh, uncached reads found neither Node nor NodePower: only now is the node's charge zero (R8). `contract_uid`: of
        the definition of NodePower, read after them; "" where there is none or it is being deleted (R33)."""
        if self._contract.proves_absence(name, contract_uid):
            self.roster.forget(name)

    def on_claim_confirmed(self, claim: Claim) -> None:
        """Fresh, uncached reads found the Node with these labels, and all these budgets (R32)."""
        self.roster.confirm(claim)

    def on_pod(self, pod: PodFact) -> None:
        self._pods[(pod.namespace, pod.name)] = pod

    def on_pod_gone(self, namespace: str, name: str) -> None:
        self._pods.pop((namespace, name), None)

    def on_owner(self, owner: OwnerFact) -> None:
        """Labels of a pod that holds GPUs and is not ours, as they were read last."""
        self._workloads.see(owner)

    def on_owner_gone(self, namespace: str, name: str) -> None:
        """No NodePower names it any more."""
        self._workloads.gone((namespace, name))

    def on_meter(self, budget: str, reading: MeterReading | MeterFailure, now_s: float) -> None:
        book, spec = self.books.get(budget), self.budgets.get(budget)
        if book is not None and spec is not None:
            book.see_meter(spec, reading, now_s)

    def on_agent_power(self, node: str, power_w: float, sampled_s: float, *, gpus: int | None = None, own: bool = False) -> None:
        """Sum of the agent's own readings of a node, from Prometheus or (`own`) from itself: the fallback meter, and proof that
        the agent lives. `gpus`: of how many GPUs it is, None: of all."""
        account = self.roster.nodes.get(node)
        if account is None:
            return
        problem = plausible.agent_problem(node, power_w, most_w=account.most_w)
        if problem:
            account.sample_problem = problem
        else:
            account.see_sample(power_w, sampled_s, gpus=gpus, own=own)

    def on_agent_doubt(self, node: str, problem: str) -> None:
        """What Prometheus has of a node's agent cannot be used, and `problem` says why: no sample (I5). While the agent speaks
        for itself nobody asks."""
        account = self.roster.nodes.get(node)
        if account is not None and not account.sample_own:
            account.sample_problem = problem

    def on_outcome(self, write: SpecWrite, outcome: Outcome, now_s: float) -> None:
        """Charged since `step`; only an acknowledgement retires it, whatever the outcome (R6)."""
        if self._in_flight.get(write.name) is write:
            del self._in_flight[write.name]
        if isinstance(outcome, Written):
            self.on_node_power(outcome.node_power, now_s)

    def on_created(self, name: str, node_power: NodePower | None, now_s: float) -> None:
        """A NodePower of `Plan.create` was created, or (None) could not be."""
        self.roster.created(name)
        if node_power is not None:
            self.on_node_power(node_power, now_s)

    # -------------------------------------------------------------------------------------------------------- charges

    def _settle_s(self, account: NodeAccount) -> float:
        """The longest of all budgets that count the node: its watts are not free before every one of them says so."""
        spec = account.object.spec if account.object is not None else None
        names = spec.budgets if spec is not None else ()
        if names not in self._settle_s_by_leaves:
            standing = self.standing
            counting = {up for name in names if name in self.tree.index for up in self.tree.chain(name)}
            self._settle_s_by_leaves[names] = max(
                (standing[name].settle_ms / 1000.0 for name in counting), default=SETTLE_MS / 1000.0
            )
        return self._settle_s_by_leaves[names]

    def _refresh(self, account: NodeAccount, now_s: float) -> None:
        account.refresh(now_s, settle_s=self._settle_s(account))
