"""The operator's whole power law in one place: facts in, one plan per step out.

A `Keeper` is one operator start (one term). The shell feeds it everything that watches, reads, queries and write results
say, calls `step` about once a second (and at once after a budget changed), performs the plan, and reports each write's
outcome. The keeper never trusts silence: a write whose outcome is unknown stays charged (R6), an absent object is charged
until fresh reads prove it gone (R8), stale telemetry stops raises (I5).

    facts --> ledger: who may draw what --> policy: who should draw what --> transition: lower, read back, raise --> writes
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from splitwatt_core.budget import plausible, raises, realms
from splitwatt_core.budget.books import Book, judge_all
from splitwatt_core.budget.claims import Claim, Placement
from splitwatt_core.budget.contract_crd import ContractCrd
from splitwatt_core.budget.facts import (
    BudgetReport,
    CountedFloor,
    MeterFailure,
    MeterReading,
    NodeFact,
    Note,
    Outcome,
    Plan,
    PodFact,
    Rejected,
    SpecWrite,
    Unknown,
    Written,
)
from splitwatt_core.budget.fleet import Fleet
from splitwatt_core.budget.floor_room import FloorRoom, floor_room
from splitwatt_core.budget.moment import Moment, look
from splitwatt_core.budget.raises import RaiseHolds
from splitwatt_core.budget.realms import Decided
from splitwatt_core.budget.reports import Judgement, minimum_short_w, report
from splitwatt_core.budget.roster import Roster, machine_renamed, void_release
from splitwatt_core.budget.tombstones import Tombstones
from splitwatt_core.budget.transition import UNKNOWN_CAP, TransitionInput, next_caps
from splitwatt_core.budget.tree import SETTLE_MS, BudgetSpec, Tree, build_tree
from splitwatt_core.budget.writer import Wish, compose, stamp
from splitwatt_core.columns import BoolArray, FloatArray
from splitwatt_core.gpus import profiles as profile_law
from splitwatt_core.gpus.profiles import Profile
from splitwatt_core.policies.clocks import next_clocks
from splitwatt_core.policies.signature import Policy
from splitwatt_core.protocol.contract import GRANTS_PER_TERM, MAX_TERM, Mode, NodePower
from splitwatt_core.protocol.ledger import AGENT_METRICS_SILENT_S, NodeAccount

__all__ = [
    "BudgetReport",
    "Keeper",
    "MeterFailure",
    "MeterReading",
    "NodeFact",
    "Note",
    "Outcome",
    "Plan",
    "PodFact",
    "Rejected",
    "SpecWrite",
    "Unknown",
    "Written",
]

STEP_S: Final = 1.0
"""A step is due this long after the last one even where nothing happened."""
MIN_GAP_S: Final = 0.05
"""Two steps are at least this far apart, so that a storm of acknowledgements becomes one decision."""
MIN_WAKE_S: Final = 0.02


class Keeper:
    """See the module's docstring. Not thread-safe; all times are seconds of one wall clock (Unix time)."""

    def __init__(
        self,
        *,
        term: int,
        policies: Mapping[str, Policy],
        profiles: Sequence[Profile] | None = None,
        agent_silent_s: float = AGENT_METRICS_SILENT_S,
    ) -> None:
        """`term` comes from the Lease (R2). `policies` by the name used in PowerBudget.spec.policy.type. `agent_silent_s`: an
        agent's sample in Prometheus that is older shows no life."""
        if not 0 < term <= MAX_TERM:
            raise ValueError(f"term must be between 1 and {MAX_TERM}, not {term}")
        self._term = term
        self._round = 0
        self._policies = policies
        self._profiles: Sequence[Profile] = profile_law.builtin() if profiles is None else profiles
        self.budgets: dict[str, BudgetSpec] = {}
        self.books: dict[str, Book] = {}
        self._tombstones = Tombstones()
        self._contract = ContractCrd()
        self._tree: Tree | None = None
        self.roster = Roster(agent_silent_s=agent_silent_s)
        self._pods: dict[tuple[str, str], PodFact] = {}
        self._in_flight: dict[str, SpecWrite] = {}
        self._settle_s_by_leaves: dict[tuple[str, ...], float] = {}
        self._notes: list[Note] = []
        self._resign: str | None = None
        self._room = FloorRoom()
        self._memories: realms.Memories = {}

    # ------------------------------------------------------------- facts; each is safe to repeat, old versions are ignored

    def on_budget(self, spec: BudgetSpec, now_s: float) -> None:
        book = self.books.get(spec.name)
        if book is None:
            book = self.books[spec.name] = Book.open(spec, now_s)
        self._contract.see_budget(spec)
        book.uid = spec.uid  # made anew it takes over where it stood: nothing jumps, nothing is adopted again
        self._notes.extend(book.see_limit(spec, now_s))
        self.budgets[spec.name] = spec
        self._tombstones.revive(spec.name)
        self._replant()

    def on_budget_gone(self, name: str, now_s: float) -> None:
        """It stands on as a tombstone while a NodePower names it (R31); else its book is closed at the next step."""
        spec = self.budgets.pop(name, None)
        if spec is not None:
            self._tombstones.bury(spec)
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
        known = max(node_power.spec.term if node_power.spec is not None else 0, node_power.status.observed_term)
        if known > self._term:
            self._resign = (
                f"NodePower {node_power.name} knows term {known}, above ours ({self._term}): another operator took over, "
                "or the API server's store was restored"
            )
        self._contract.see_object(node_power.name)
        if self.roster.see_node_power(node_power, now_s, term=self._term):
            self._refresh(self.roster.account(node_power.name), now_s)

    def on_node_power_gone(self, name: str, now_s: float, uid: str = "") -> None:
        """`uid` of the deleted object, where known: a late word of an earlier object is ignored."""
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

    def on_meter(self, budget: str, reading: MeterReading | MeterFailure, now_s: float) -> None:
        book, spec = self.books.get(budget), self.budgets.get(budget)
        if book is not None and spec is not None:
            book.see_meter(spec, reading, now_s)

    def on_agent_power(self, node: str, power_w: float, sampled_s: float, *, gpus: int | None = None) -> None:
        """Sum of the agent's own readings of a node, from Prometheus: the fallback meter, and proof that the agent lives.
        `gpus`: of how many GPUs it is, None: of all."""
        account = self.roster.nodes.get(node)
        if account is None:
            return
        problem = plausible.agent_problem(node, power_w, most_w=account.most_w)
        if problem:
            account.sample_problem = problem
        else:
            account.see_sample(power_w, sampled_s, gpus=gpus)

    def on_agent_doubt(self, node: str, problem: str) -> None:
        """What Prometheus has of a node's agent cannot be used, and `problem` says why: no sample (I5)."""
        account = self.roster.nodes.get(node)
        if account is not None:
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

    # -------------------------------------------------------------------------------------------------------- the step

    def step(self, now_s: float) -> Plan:
        """Decide. Grants in the returned writes are already charged."""
        notes, self._notes = self._notes, []
        seen = self._look(now_s)
        notes.extend(judge_all(seen.budgets, seen.books, seen.surveys, tree=seen.tree, now_s=now_s))
        withheld_w = raises.withheld_w(seen)
        allowance_w = seen.aim_w() - withheld_w - seen.fleet.rest_w
        # From here on nobody counts on GPUs that stand aside.
        moment = replace(seen, fleet=seen.fleet.with_late_aside(allowance_w))
        aside = seen.fleet.steerable & ~moment.fleet.steerable
        decided = self._ask(moment, allowance_w)
        cap_w = self._owed(seen, aside, allowance_w, decided.cap_w)
        self._memories = decided.memories
        holds = raises.holds_of(moment, withheld_w)
        may_raise = raises.may_raise(moment, holds)
        caps = self._next_caps(moment.fleet, cap_w, aside, holds, may_raise)
        clocks = next_clocks(
            target_mhz=decided.clock_mhz,
            granted_mhz=moment.fleet.clocks.granted_mhz,
            steerable=moment.fleet.steerable,
            may_raise=may_raise,
        )
        writes = self._writes(moment, caps, clocks)
        self._room = floor_room(moment, allowance_w=allowance_w, pods=self._pods)
        reports, fresh_notes = report(
            Judgement(
                moment,
                holds,
                decided.by_root,
                short_w=minimum_short_w(moment, allowance_w),
                in_the_way_w=decided.short_w,
                aside=~moment.fleet.steerable,
                mute=moment.fleet.mute & aside,
            )
        )
        void, replaced = self.roster.to_take_back(now_s), self.roster.to_replace(now_s)
        return Plan(
            create=self.roster.to_create(moment.placements),
            writes=writes,
            verify=self.roster.to_verify(now_s),
            release=self.roster.to_release(now_s),
            take_back=void,
            replaced=replaced,
            confirm=self.roster.to_confirm(now_s),
            budgets=self._contract.noted(reports, tree=moment.tree, placements=moment.placements),
            notes=(*notes, *self._drain_notes(), *fresh_notes, *map(void_release, void), *map(machine_renamed, replaced)),
            resign=self._resign,
            wake_s=self._wake(now_s),
        )

    def _drain_notes(self) -> list[Note]:
        notes, self._notes = self._notes, []
        return notes

    # ------------------------------------------------------------------------------------------------- where nodes stand

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

    def _look(self, now_s: float) -> Moment:
        """Bring every account and limit up to date, and see who stands where."""
        self._settle_tombstones(now_s)
        for account in self.roster.nodes.values():
            self._refresh(account, now_s)
        for book in self.books.values():
            book.advance(now_s)
        tree, standing = self.tree, self.standing
        placements, conflicts = self.roster.placements(standing, tree=tree, observing=tree.observing(standing))
        return look(
            tree=tree,
            budgets=standing,
            books=self.books,
            placements=placements,
            conflicts=conflicts,
            pods=self._pods,
            profiles=self._profiles,
            now_s=now_s,
            unconfirmed=self._contract.held(tree.root),
        )

    def _root(self, p: Placement) -> BudgetSpec:
        """The root that rules the node. Below a budget whose place in its tree is wrong the tree's mode is unknown: what was
        begun there goes on, and nothing new begins."""
        root = self.standing[self.tree.root[p.leaves[0]]]
        if root.name not in self.tree.fault:
            return root
        written = p.node.object.spec if p.node.object is not None else None
        return replace(root, mode=Mode.OBSERVE if written is None else written.mode)

    # --------------------------------------------------------------------------------------------- what may be given out

    def _ask(self, moment: Moment, allowance_w: FloatArray, *, among: Set[str] | None = None) -> Decided:
        return realms.decide(moment, policies=self._policies, memories=self._memories, allowance_w=allowance_w, among=among)

    def _owed(self, seen: Moment, aside: BoolArray, allowance_w: FloatArray, decided_w: NDArray[np.int32]) -> NDArray[np.int32]:
        """Caps to aim at. Whoever stands aside is not counted on, but told to go down all the same, as if it were: a raise
        that it owes may be too much now."""
        if not aside.any():
            return decided_w
        granted_w = seen.fleet.granted_w
        assert not (aside & (granted_w == UNKNOWN_CAP)).any(), "who was granted nothing owes no acknowledgement"
        wanted_w = self._ask(seen, allowance_w, among=seen.roots_of(aside)).cap_w
        return np.where(aside, np.minimum(granted_w, wanted_w), decided_w).astype(np.int32)

    def _next_caps(
        self, fleet: Fleet, cap_w: NDArray[np.int32], aside: BoolArray, holds: RaiseHolds, may_raise: BoolArray
    ) -> NDArray[np.int32]:
        # What cannot be steered keeps what it was granted; its charge already stands in everybody's sums.
        reached = fleet.steerable | aside | (fleet.granted_w == UNKNOWN_CAP)
        target_w = np.where(reached, cap_w, fleet.granted_w)
        caps = next_caps(
            TransitionInput(
                leaf=fleet.gpus.leaf,
                group=fleet.gpus.group,
                priority=fleet.gpus.priority,
                target_w=target_w.astype(np.int32),
                granted_w=fleet.granted_w,
                min_w=np.array([a.min_w for a in fleet.accounts], dtype=np.int32),
                charge_w=fleet.charge_w,
                trusted=fleet.trusted,
                may_raise=may_raise,
                over_elsewhere=np.array([node.name in holds.over_elsewhere for node in fleet.owner], dtype=np.bool_),
                loss_factor=fleet.gpus.loss_factor,
                parent=fleet.forest.parent,
                headroom_w=holds.headroom_w,
                withheld_w=holds.withheld_w,
            )
        )
        return np.where(fleet.still, fleet.granted_w, caps)

    def floor_room_w(self, budget: str) -> float:
        """`FloorRoom.left_w` of the last step; zero for an unknown budget."""
        return self._room.left_w.get(budget, 0.0)

    def floors_counted(self) -> Mapping[tuple[str, str], CountedFloor]:
        """`FloorRoom.counted` of the last step."""
        return self._room.counted

    # --------------------------------------------------------------------------------------------------------- writes

    def _writes(self, moment: Moment, caps: NDArray[np.int32], clocks: NDArray[np.int32]) -> tuple[SpecWrite, ...]:
        fleet = moment.fleet
        rows: dict[str, list[int]] = {}
        for i, node in enumerate(fleet.owner):
            rows.setdefault(node.name, []).append(i)
        number = self._term * GRANTS_PER_TERM + self._round + 1
        writes: list[SpecWrite] = []
        for p in moment.placements:
            node, root = p.node, self._root(p)
            if node.object is None or node.name in self._in_flight or (node.stamped and not node.present):
                continue
            if node.stamped:
                mine = () if node.excluded else rows.get(node.name, ())
                wishes = [Wish(fleet.accounts[i], int(caps[i]), int(clocks[i]), fleet.phases[i]) for i in mine]
                moves = self.roster.moves[node.name]
                spec = compose(p, wishes, term=self._term, number=number, root=root, moves=moves)
            else:
                spec = stamp(p, term=self._term, root=root)
            if spec == node.object.spec:
                continue
            for grant in spec.gpus:
                if grant.uuid in node.gpus:
                    node.gpus[grant.uuid].learn(grant)
            self._refresh(node, moment.now_s)
            write = SpecWrite(node.name, node.object.uid, node.object.resource_version, spec)
            self._in_flight[node.name] = write
            writes.append(write)
        if writes:
            self._round += 1
            if self._round + 1 >= GRANTS_PER_TERM:
                self._resign = "this term's grant numbers are used up: restart for a new term"
        return tuple(writes)

    def _wake(self, now_s: float) -> float:
        """When the next thing falls due: a charge that settles, a limit that comes into force, the next second."""
        due = [now_s + STEP_S]
        for account in self.roster.nodes.values():
            due.extend(at for gpu in account.gpus.values() if (at := gpu.settles_at_s) is not None)
        for book in self.books.values():
            due.extend(at for _, at in book.limit.pending)
        return max(now_s + MIN_WAKE_S, min(due))
