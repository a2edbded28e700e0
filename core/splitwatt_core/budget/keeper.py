"""The operator's whole power law in one place: facts in, one plan per step out.

A `Keeper` is one operator start (one term). The shell feeds it everything that watches, reads, queries and write results
say, calls `step` about once a second (and at once after a budget changed), performs the plan, and reports each write's
outcome. What it is told, and what that is worth, stands in `heard`; what follows from it, here.

    facts --> ledger: who may draw what --> policy: who should draw what --> transition: lower, read back, raise --> writes
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from splitwatt_core.budget import observing, raises, realms, releasing
from splitwatt_core.budget.books import judge_all
from splitwatt_core.budget.braking import brakes_of
from splitwatt_core.budget.claims import Placement
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
from splitwatt_core.budget.floor_room import floor_room
from splitwatt_core.budget.heard import Heard
from splitwatt_core.budget.modes import mode_on
from splitwatt_core.budget.moment import Moment, look
from splitwatt_core.budget.raises import RaiseHolds
from splitwatt_core.budget.realms import Decided
from splitwatt_core.budget.reporting.reports import Judgement, report
from splitwatt_core.budget.roster import machine_renamed, void_release
from splitwatt_core.budget.transition import UNKNOWN_CAP, TransitionInput, next_caps
from splitwatt_core.budget.tree import BudgetSpec
from splitwatt_core.budget.writer import Wish, compose, lowers, stamp
from splitwatt_core.columns import BoolArray, FloatArray
from splitwatt_core.gpus import profiles as profile_law
from splitwatt_core.gpus.profiles import Profile
from splitwatt_core.policies.clocks import next_clocks
from splitwatt_core.policies.signature import Policy
from splitwatt_core.protocol.contract import GRANTS_PER_TERM, MAX_TERM, Mode
from splitwatt_core.protocol.node_account import AGENT_METRICS_SILENT_S

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


class Keeper(Heard):
    """See the module's docstring. Not thread-safe; all times are seconds of one wall clock (Unix time)."""

    def __init__(
        self,
        *,
        term: int,
        policies: Mapping[str, Policy],
        profiles: Sequence[Profile] | None = None,
        agent_silent_s: float = AGENT_METRICS_SILENT_S,
        awaits_owners: bool = False,
    ) -> None:
        """`term` comes from the Lease (R2). `policies` by the name used in PowerBudget.spec.policy.type. `agent_silent_s`: an
        agent's sample in Prometheus that is older shows no life. `awaits_owners`: every pod that holds GPUs is told of, by
        `on_pod` or `on_owner`; until then its GPUs keep their caps."""
        if not 0 < term <= MAX_TERM:
            raise ValueError(f"term must be between 1 and {MAX_TERM}, not {term}")
        super().__init__(
            term=term,
            profiles=profile_law.builtin() if profiles is None else profiles,
            agent_silent_s=agent_silent_s,
            awaits_owners=awaits_owners,
        )
        self._round = 0
        self._policies = policies
        self._memories: realms.Memories = {}
        self._hand: observing.Hand = {}
        self._stepped_s = float("-inf")

    # -------------------------------------------------------------------------------------------------------- the step

    def step(self, now_s: float) -> Plan:
        """Decide. Grants in the returned writes are already charged."""
        notes, self._notes = self._notes, []
        last_s = self._stepped_s
        if now_s < self._stepped_s:
            self._memories = {}  # of a clock that was set back: who remembers nothing waits for no moment that is past
        self._stepped_s = now_s
        seen = self._look(now_s)
        notes.extend(judge_all(seen.budgets, seen.books, seen.surveys, tree=seen.tree, now_s=now_s))
        withheld_w = raises.withheld_w(seen)
        allowance_w = seen.aim_w() - withheld_w - seen.fleet.rest_w
        # From here on nobody counts on GPUs that stand aside.
        moment = replace(seen, fleet=seen.fleet.with_late_aside(allowance_w))
        aside = seen.fleet.steerable & ~moment.fleet.steerable
        told = observing.observed(moment)
        decided = self._ask(observing.as_if_granted(moment, self._hand, told), allowance_w)
        self._hand = observing.hand_of(moment, decided.cap_w, decided.clock_mhz, told)
        cap_w = self._owed(seen, aside, allowance_w, decided.cap_w)
        self._memories = decided.memories
        holds = raises.holds_of(moment, withheld_w)
        may_raise = raises.may_raise(moment, holds)
        cap_w = np.where(told, moment.fleet.granted_w, cap_w).astype(np.int32)  # told, and no claim on anybody's watts
        cap_w = releasing.caps_of(moment, cap_w, may_raise, last_s=last_s)
        caps = self._next_caps(moment.fleet, cap_w, aside, holds, may_raise)
        clocks = next_clocks(
            target_mhz=releasing.clocks_of(moment, decided.clock_mhz, may_raise),
            granted_mhz=moment.fleet.clocks.granted_mhz,
            steerable=moment.fleet.steerable,
            may_raise=may_raise,
        )
        brakes = brakes_of(moment, caps, last_grant=self._term * GRANTS_PER_TERM + self._round)
        writes = self._writes(moment, caps, clocks)
        self._room = floor_room(moment, allowance_w=allowance_w)
        reports, fresh_notes = report(
            Judgement(
                moment,
                holds,
                decided.by_root,
                in_the_way_w=decided.short_w,
                aside=~moment.fleet.steerable,
                mute=moment.fleet.mute & aside,
                would=observing.would_cut(moment, self._hand, self._room),
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
            brakes=brakes,
            budgets=self._contract.noted(reports, tree=moment.tree, placements=moment.placements),
            notes=(*notes, *self._drain_notes(), *fresh_notes, *map(void_release, void), *map(machine_renamed, replaced)),
            resign=self._resign,
            wake_s=self._wake(now_s),
        )

    def _drain_notes(self) -> list[Note]:
        notes, self._notes = self._notes, []
        return notes

    # ------------------------------------------------------------------------------------------------- where nodes stand

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
            workloads=self._workloads,
            profiles=self._profiles,
            now_s=now_s,
            unconfirmed=self._contract.held(tree.root),
        )

    def _root(self, p: Placement) -> BudgetSpec:
        """The root that rules the node. Below a budget whose place in its tree is wrong the tree's mode is unknown: what was
        begun there goes on, and nothing new begins."""
        root = self.standing[self.tree.root[p.leaves[0]]]
        mode = mode_on(p.node, root, self.tree)
        if mode is not None:
            return replace(root, mode=Mode.STRICT if mode is Mode.RELEASE else mode)
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

    def hand(self) -> observing.Hand:
        """What the last step would have granted in trees that only observe."""
        return self._hand

    def floor_room_w(self, budget: str) -> float:
        """`FloorRoom.left_w` of the last step; zero for an unknown budget."""
        return self._room.left_w.get(budget, 0.0)

    def nodes_awaited(self) -> Mapping[str, int]:
        """By elastic leaf, how many nodes the last step kept watts for that are not there yet."""
        return self._room.awaited

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
                wishes = [self._wish(fleet, i, cap_w=int(caps[i]), clock_mhz=int(clocks[i])) for i in mine]
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
            write = SpecWrite(node.name, node.object.uid, node.object.resource_version, spec, over=node.object.spec)
            self._in_flight[node.name] = write
            writes.append(write)
        if writes:
            self._round += 1
            if self._round + 1 >= GRANTS_PER_TERM:
                self._resign = "this term's grant numbers are used up: restart for a new term"
        return tuple(sorted(writes, key=lambda write: not lowers(write)))

    def _wish(self, fleet: Fleet, i: int, *, cap_w: int, clock_mhz: int) -> Wish:
        account, wants = fleet.accounts[i], fleet.wants[i]
        would = self._hand.get((fleet.owner[i].name, account.uuid))
        return Wish(account, cap_w, clock_mhz, wants.phase, wants.power_class, would)

    def _wake(self, now_s: float) -> float:
        """When the next thing falls due: a charge that settles, a limit that comes into force, the next second."""
        due = [now_s + STEP_S]
        for account in self.roster.nodes.values():
            due.extend(at for gpu in account.gpus.values() if (at := gpu.settles_at_s) is not None)
        for book in self.books.values():
            due.extend(at for _, at in book.limit.pending)
        return max(now_s + MIN_WAKE_S, min(due))
