"""Leave out any one of R31 to R36, and a scene fails: as in test_rules_matter.py, for objects that vanish and agents that were
dead while grants changed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from splitwatt_core.budget import claims
from splitwatt_core.budget.contract_crd import ContractCrd
from splitwatt_core.budget.roster import Roster
from splitwatt_core.protocol.contract import Grant
from splitwatt_core.protocol.enforcer import Enforcer, ObjectVerdict
from splitwatt_core.protocol.record import Taken
from support import scenes_restarted, scenes_vanished
from support.left_out import Patch, check_rule_matters
from support.machines import Agent
from support.world import World


def r31_a_spec_names_the_leaf_alone(m: pytest.MonkeyPatch) -> None:
    real = Roster.placements

    def short(self: Roster, *args: Any, **options: Any) -> Any:
        placed, conflicts = real(self, *args, **options)
        return [replace(p, names=p.names[:1]) for p in placed], conflicts

    m.setattr(Roster, "placements", short)


def r32_a_missing_label_releases(m: pytest.MonkeyPatch) -> None:
    real = Roster._released

    def generous(self: Roster, account: Any, names: Any) -> frozenset[str]:
        return real(self, account, names) if self._selecting(account.name) else frozenset(names)

    m.setattr(Roster, "_released", generous)


def r32_a_missing_parent_releases(m: pytest.MonkeyPatch) -> None:
    m.setattr(claims, "claimed_away", lambda way, claim: way != claim)


def r32_two_ways_are_named_as_one(m: pytest.MonkeyPatch) -> None:
    m.setattr(claims, "joined", lambda found: tuple(dict.fromkeys(name for way in found for name in way)))


def r32_a_way_that_was_left_stays_left(m: pytest.MonkeyPatch) -> None:
    real = claims.begin_moves

    def stubborn(account: Any, moves: dict[str, int], unread: set[str], **options: Any) -> None:
        before = dict(moves)
        real(account, moves, unread, **options)
        moves.update(before)

    m.setattr(claims, "begin_moves", stubborn)


def r32_a_claim_needs_no_acknowledgement(m: pytest.MonkeyPatch) -> None:
    m.setattr(claims, "end_moves", lambda account, moves, unread, **options: moves.update(dict.fromkeys(moves, claims.DROPPED)))


def r32_a_claim_is_not_read_afresh(m: pytest.MonkeyPatch) -> None:
    m.setattr(World, "reads", lambda self, claim: True)


def r33_absence_is_proven_under_any_definition(m: pytest.MonkeyPatch) -> None:
    m.setattr(ContractCrd, "proves_absence", lambda self, node, read_uid: True)


def r34_what_counted_last_is_not_remembered(m: pytest.MonkeyPatch) -> None:
    real = Roster.placements

    def forgetful(self: Roster, *args: Any, **options: Any) -> Any:
        self._counted.clear()
        return real(self, *args, **options)

    m.setattr(Roster, "placements", forgetful)


def r35_who_starts_under_another_definition_raises(m: pytest.MonkeyPatch) -> None:
    m.setattr(ContractCrd, "unconfirmed", lambda self, root, below: None)


def r35_the_new_definition_is_noted_at_once(m: pytest.MonkeyPatch) -> None:
    real = ContractCrd.see

    def hasty(self: ContractCrd, uid: str) -> None:
        real(self, uid)
        self._seen_under = dict.fromkeys(self._seen_under, uid)

    m.setattr(ContractCrd, "see", hasty)


def r35_a_node_power_without_budgets_is_enough(m: pytest.MonkeyPatch) -> None:
    m.setattr(ContractCrd, "_stands", lambda self, p: self._seen_under.get(p.node.name) == self.uid)


def r35_nothing_is_noted_before_all_is_seen(m: pytest.MonkeyPatch) -> None:
    real = ContractCrd.noted

    def late(self: ContractCrd, reports: Any, *, tree: Any, placements: Any) -> Any:
        return real(self, reports, tree=tree, placements=placements) if all(map(self._stands, placements)) else reports

    m.setattr(ContractCrd, "noted", late)


def r35_the_first_way_alone_is_looked_at(m: pytest.MonkeyPatch) -> None:
    real = ContractCrd.noted

    def narrow(self: ContractCrd, reports: Any, *, tree: Any, placements: Any) -> Any:
        return real(self, reports, tree=tree, placements=[replace(p, leaves=p.leaves[:1]) for p in placements])

    m.setattr(ContractCrd, "noted", narrow)


def r35_roots_alone_note_it(m: pytest.MonkeyPatch) -> None:
    real = ContractCrd.noted

    def sparse(self: ContractCrd, reports: Any, *, tree: Any, placements: Any) -> Any:
        told = real(self, reports, tree=tree, placements=placements)
        return {name: row if tree.root[name] == name else replace(row, contract_uid="") for name, row in told.items()}

    m.setattr(ContractCrd, "noted", sparse)


def r35_a_word_is_lost_that_comes_before_the_definition(m: pytest.MonkeyPatch) -> None:
    real = ContractCrd.see_budget

    def deaf(self: ContractCrd, spec: Any) -> None:
        real(self, spec if spec.confirmed_uid == self.uid else replace(spec, confirmed_uid=""))

    m.setattr(ContractCrd, "see_budget", deaf)


def r34_who_is_leaving_is_not_looked_at(m: pytest.MonkeyPatch) -> None:
    real = Roster.remember

    def narrow(self: Roster, budgets: Any, tree: Any, names: Any = None) -> None:
        real(self, budgets, tree, self._heard.copy() if names is None else self._heard.intersection(names))

    m.setattr(Roster, "remember", narrow)


def what_no_leaf_claims_is_raised(m: pytest.MonkeyPatch) -> None:
    real = Roster.placements

    def bold(self: Roster, *args: Any, **options: Any) -> Any:
        placed, conflicts = real(self, *args, **options)
        return [replace(p, claimed=True) for p in placed], conflicts

    m.setattr(Roster, "placements", bold)


def r36_nothing_is_remembered(m: pytest.MonkeyPatch) -> None:
    m.setattr(Taken, "still_acked", lambda self, limit_mw: (0, 0))


def r36_the_caps_between_are_not_recorded(m: pytest.MonkeyPatch) -> None:
    real = Taken.followed_by

    def forgetful(self: Taken, line: Grant, *, uid: str) -> Taken:
        return replace(real(self, line, uid=uid), since_cap_w=self.since_cap_w)

    m.setattr(Taken, "followed_by", forgetful)


def r36_only_the_earlier_acknowledgement_is_looked_at(m: pytest.MonkeyPatch) -> None:
    m.setattr(Taken, "still_acked", lambda self, limit_mw: (self.acked_grant, self.since_cap_w))


def r36_the_uid_is_not_looked_at(m: pytest.MonkeyPatch) -> None:
    real = Enforcer.observe

    def trusting(self: Enforcer, seen: Any, *, consistent: bool) -> ObjectVerdict:
        for gpu in self._gpus.values():
            if seen is not None and gpu.former is not None:
                gpu.former = replace(gpu.former, uid=seen.uid)
        return real(self, seen, consistent=consistent)

    m.setattr(Enforcer, "observe", trusting)


def r36_the_record_needs_no_readback(m: pytest.MonkeyPatch) -> None:
    real = Enforcer._acknowledge

    def credulous(self: Enforcer, gpu: Any) -> None:
        former = gpu.former
        real(self, gpu)
        if former is not None and gpu.former is None:
            gpu.acked = former.grant

    m.setattr(Enforcer, "_acknowledge", credulous)


def r13_the_lock_ends_before_the_last_call_does(m: pytest.MonkeyPatch) -> None:
    real = Agent.start

    def eager(self: Agent) -> None:
        hung, self.hung = self.hung, []
        real(self)
        self.hung = hung

    m.setattr(Agent, "start", eager)


UNCOUNTED = "row: 900.0 W may be drawn there, 450.0 W are counted"
FORGOTTEN = "a0-g0: its status says that nothing is acknowledged any more"

CASES: list[tuple[Patch, Callable[[], None], str]] = [
    (r31_a_spec_names_the_leaf_alone, scenes_vanished.scene_45b_the_operator_starts_after_the_leaf_was_deleted, UNCOUNTED),
    (r32_a_missing_label_releases, scenes_vanished.scene_47_a_label_is_taken_away_and_the_next_grant_is_acknowledged, UNCOUNTED),
    (r32_a_missing_parent_releases, scenes_vanished.scene_48_a_leaf_loses_its_parent, UNCOUNTED),
    (
        r32_two_ways_are_named_as_one,
        scenes_vanished.scene_59_a_leaf_hangs_on_the_other_row_while_a_label_is_away,
        "row-2: 450.0 W are counted, and nothing claims a0 there",
    ),
    (
        r32_a_way_that_was_left_stays_left,
        scenes_vanished.scene_60_a_claim_is_undone_while_the_parent_is_left_out,
        UNCOUNTED,
    ),
    (
        r32_a_claim_needs_no_acknowledgement,
        scenes_vanished.scene_46_a_leaf_gets_another_parent_while_its_agent_is_away,
        UNCOUNTED,
    ),
    (
        r32_a_claim_is_not_read_afresh,
        scenes_vanished.scene_49_a_label_is_taken_away_unseen_and_the_leaf_gets_another_parent,
        UNCOUNTED,
    ),
    (
        r33_absence_is_proven_under_any_definition,
        scenes_vanished.scene_50_the_crd_is_made_anew_and_a_node_restarts,
        "may be drawn there",
    ),
    (
        r34_what_counted_last_is_not_remembered,
        scenes_vanished.scene_51_a_leaf_is_deleted_then_the_crd_is_made_anew_and_the_operator_restarts,
        "may be drawn there",
    ),
    (
        r34_who_is_leaving_is_not_looked_at,
        scenes_vanished.scene_65_a_leaf_comes_back_and_leaves_again_between_two_looks,
        "may be drawn there",
    ),
    (
        r35_who_starts_under_another_definition_raises,
        scenes_vanished.scene_52_the_same_with_no_operator_alive_meanwhile,
        "a and b draw (450, 700) W of 900 W",
    ),
    (
        r35_the_new_definition_is_noted_at_once,
        scenes_vanished.scene_53_the_new_crd_is_noted_before_the_node_powers_are_missed,
        "may be drawn there",
    ),
    (
        r35_a_node_power_without_budgets_is_enough,
        scenes_vanished.scene_51b_the_operator_restarts_before_the_new_node_powers_name_any_budget,
        "may be drawn there",
    ),
    (
        r35_nothing_is_noted_before_all_is_seen,
        scenes_vanished.scene_61_the_crd_is_made_anew_before_the_first_grants_are_acknowledged,
        "may be drawn there",
    ),
    (
        r35_the_first_way_alone_is_looked_at,
        scenes_vanished.scene_62_the_new_crd_is_noted_where_a_node_counts_by_memory_alone,
        "row: lifted from 901.0 W",
    ),
    (
        r35_roots_alone_note_it,
        scenes_vanished.scene_63_a_leaf_loses_its_parent_and_the_crd_with_no_operator_alive,
        "nobody has confirmed that it draws on no row",
    ),
    (
        r35_a_word_is_lost_that_comes_before_the_definition,
        scenes_vanished.scene_64_a_person_confirms_while_a_move_back_is_under_way,
        "all is back, and nothing moves",
    ),
    (
        what_no_leaf_claims_is_raised,
        scenes_vanished.scene_47_a_label_is_taken_away_and_the_next_grant_is_acknowledged,
        "a0: no leaf claims it, and its caps are raised",
    ),
    (r36_nothing_is_remembered, scenes_restarted.scene_54_a_lowering_grant_is_on_the_record_and_not_yet_set, FORGOTTEN),
    (
        r36_the_caps_between_are_not_recorded,
        scenes_restarted.scene_55_a_raise_was_applied_and_a_lower_grant_recorded,
        FORGOTTEN,
    ),
    (
        r36_only_the_earlier_acknowledgement_is_looked_at,
        scenes_restarted.scene_56_the_highest_grant_on_the_record_was_acknowledged,
        "the earlier acknowledgement is told where the later one is true",
    ),
    (
        r36_the_uid_is_not_looked_at,
        scenes_restarted.scene_57_the_record_speaks_of_another_object,
        "another object's grant is reported for this one",
    ),
    (
        r36_the_record_needs_no_readback,
        scenes_restarted.scene_57b_the_record_is_believed_only_with_a_readback,
        "acknowledged, and the limit reads 700 W",
    ),
    (
        r13_the_lock_ends_before_the_last_call_does,
        scenes_restarted.scene_58_a_call_of_the_former_life_completes_after_a_lower_one_was_acknowledged,
        "a0-g0: charged 300 W, true limit 600 W",
    ),
]


@pytest.mark.parametrize(("leave_out", "scene", "said"), CASES, ids=[patch.__name__ for patch, *_ in CASES])
def test_without_this_rule_a_scene_fails(
    leave_out: Patch, scene: Callable[[], None], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_rule_matters(leave_out, scene, said, monkeypatch)
