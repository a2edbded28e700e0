"""Leave out any one rule of the protocol, and a scene fails: the scenes are proof, not decoration.

Each case breaks the core's real code in one place (the rule left out) and plays the scene that the rule is there for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from splitwatt_core.budget import raises, transition, writer
from splitwatt_core.budget.facts import Unknown
from splitwatt_core.budget.keeper import Keeper
from splitwatt_core.budget.roster import Roster
from splitwatt_core.budget.tree import LimitState
from splitwatt_core.protocol import node_account
from splitwatt_core.protocol.contract import NO_GRANT
from splitwatt_core.protocol.enforcer import Enforcer, ObjectVerdict
from splitwatt_core.protocol.ledger import GpuAccount
from splitwatt_core.protocol.node_account import NodeAccount
from splitwatt_core.protocol.record import Record
from support import power_scenes, scenes
from support.left_out import Patch, check_rule_matters
from support.world import ApiStore, World


def r1_writes_carry_no_version(m: pytest.MonkeyPatch) -> None:
    real = ApiStore.write_spec

    def blind(self: ApiStore, write: Any) -> Any:
        obj = self.objects.get(write.name)
        return real(self, replace(write, resource_version=obj.resource_version) if obj is not None else write)

    m.setattr(ApiStore, "write_spec", blind)


def r2_a_restart_keeps_its_term(m: pytest.MonkeyPatch) -> None:
    real = World.elect

    def same(self: World, **options: Any) -> Any:
        self.term_step = 0 if self.operators else 1
        operator = real(self, **options)
        operator.keeper._round = 1000 * len(self.operators)  # it even remembers which numbers it used
        return operator

    m.setattr(World, "elect", same)


def r3_raises_do_not_wait_for_stamps(m: pytest.MonkeyPatch) -> None:
    m.setattr(raises, "held", lambda *_, **__: {})


def r3_another_term_is_trusted(m: pytest.MonkeyPatch) -> None:
    real = NodeAccount.observe

    def credulous(self: NodeAccount, *args: Any, **options: Any) -> bool:
        taken = real(self, *args, **options)
        self.foreign = False
        return taken

    m.setattr(NodeAccount, "observe", credulous)


def r4_the_carry_is_forgotten(m: pytest.MonkeyPatch) -> None:
    real = GpuAccount.learn
    m.setattr(GpuAccount, "learn", lambda self, grant: real(self, replace(grant, charge_w=grant.cap_w)))


def r5_an_acknowledgement_retires_its_own_grant(m: pytest.MonkeyPatch) -> None:
    real = GpuAccount.bound_w

    def hasty(self: GpuAccount, *, trusted: bool) -> int:
        kept, self.open = self.open, [g for g in self.open if g.grant > self.acked]
        bound_w = real(self, trusted=trusted)
        self.open = kept
        return bound_w

    m.setattr(GpuAccount, "bound_w", hasty)


def r5_acknowledged_before_applied(m: pytest.MonkeyPatch) -> None:
    real = Enforcer._acknowledge

    def eager(self: Enforcer, gpu: Any) -> None:
        if gpu.target is not None:
            gpu.set_ok = gpu.target.grant
        self._dirty = False
        real(self, gpu)
        self._dirty = True

    m.setattr(Enforcer, "_acknowledge", eager)


def r6_an_unknown_outcome_is_a_failure(m: pytest.MonkeyPatch) -> None:
    real = Keeper.on_outcome

    def forgetful(self: Keeper, write: Any, outcome: Any, now_s: float) -> None:
        real(self, write, outcome, now_s)
        if not isinstance(outcome, Unknown):
            return
        node = self.roster.nodes[write.name]
        assert node.object is not None and node.object.spec is not None
        for grant in write.spec.gpus:
            account = node.gpus[grant.uuid]
            account.open = [g for g in account.open if g.grant != grant.grant]
            account.row = next(row for row in node.object.spec.gpus if row.uuid == grant.uuid)
            account.settling.clear()

    m.setattr(Keeper, "on_outcome", forgetful)


def r6_older_versions_count(m: pytest.MonkeyPatch) -> None:
    real = NodeAccount.observe

    def regress(self: NodeAccount, seen: Any, now_s: float, *, term: int) -> bool:
        self.highest_version = 0
        for gpu in self.gpus.values():
            gpu.open = []
        return real(self, seen, now_s, term=term)

    m.setattr(NodeAccount, "observe", regress)


def r7_an_unknown_cap_is_lowered_like_a_known_one(m: pytest.MonkeyPatch) -> None:
    real = transition.next_caps

    def naive(t: Any) -> Any:
        caps = real(t)
        blind = ~t.trusted | (t.granted_w == transition.UNKNOWN_CAP)
        return np.where(blind & (t.target_w <= t.charge_w), t.target_w, caps).astype(np.int32)

    m.setattr("splitwatt_core.budget.keeper.next_caps", naive)


def r7_a_status_of_another_object_is_trusted(m: pytest.MonkeyPatch) -> None:
    m.setattr(GpuAccount, "bound_w", _bound_without_default)


def _bound_without_default(self: GpuAccount, *, trusted: bool) -> int:
    del trusted
    caps = [g.cap_w for g in self.open if g.grant >= self.acked]
    return max([self.reported_w or 0, *caps])


def r8_a_deleted_object_is_charged_nothing(m: pytest.MonkeyPatch) -> None:
    real = Keeper.on_node_power_gone

    def trusting(self: Keeper, name: str, now_s: float, uid: str = "") -> None:
        real(self, name, now_s, uid)
        self.roster.nodes[name].gpus.clear()

    m.setattr(Keeper, "on_node_power_gone", trusting)


def r8_absence_needs_no_fresh_read(m: pytest.MonkeyPatch) -> None:
    real = Keeper.on_node_power_gone

    def trusting(self: Keeper, name: str, now_s: float, uid: str = "") -> None:
        real(self, name, now_s, uid)
        self.roster.forget(name)

    m.setattr(Keeper, "on_node_power_gone", trusting)


def r9_the_grace_starts_with_anybody(m: pytest.MonkeyPatch) -> None:
    real = LimitState.observe
    m.setattr(LimitState, "observe", lambda self, spec_w, now_s, grace_s: real(self, spec_w, now_s, -1.0).at(now_s))


def r9_former_budgets_are_not_persisted(m: pytest.MonkeyPatch) -> None:
    real = Roster.placements

    def shortsighted(self: Roster, budgets: Any, **options: Any) -> Any:
        self.moves = {name: {} for name in self.nodes}
        placed, conflicts = real(self, budgets, **options)
        return [replace(p, leaves=p.leaves[:1]) for p in placed], conflicts

    m.setattr(Roster, "placements", shortsighted)


def r10_the_uid_is_not_looked_at(m: pytest.MonkeyPatch) -> None:
    real = Enforcer.observe

    def trusting(self: Enforcer, seen: Any, *, consistent: bool) -> ObjectVerdict:
        if seen is not None and seen.spec is not None:
            seen = replace(seen, spec=replace(seen.spec, for_uid=seen.uid))
        return real(self, seen, consistent=consistent)

    m.setattr(Enforcer, "observe", trusting)


def r11_the_first_read_may_be_a_cache(m: pytest.MonkeyPatch) -> None:
    real = Enforcer.observe
    m.setattr(Enforcer, "observe", lambda self, seen, *, consistent: real(self, seen, consistent=True))


def r12_grants_are_not_persisted(m: pytest.MonkeyPatch) -> None:
    real = Enforcer.__init__
    m.setattr(Enforcer, "__init__", lambda self, *, gpus, record: real(self, gpus=gpus, record=Record()))


def r12_a_lower_term_is_obeyed(m: pytest.MonkeyPatch) -> None:
    real = Enforcer.observe

    def obedient(self: Enforcer, seen: Any, *, consistent: bool) -> ObjectVerdict:
        self._term = 0
        self._high = {}
        return real(self, seen, consistent=consistent)

    m.setattr(Enforcer, "observe", obedient)


def r13_acknowledged_while_a_setter_hangs(m: pytest.MonkeyPatch) -> None:
    real = Enforcer._acknowledge

    def impatient(self: Enforcer, gpu: Any) -> None:
        starts, gpu.starts = gpu.starts, []
        real(self, gpu)
        gpu.starts = starts

    m.setattr(Enforcer, "_acknowledge", impatient)


def r14_a_status_carries_no_version(m: pytest.MonkeyPatch) -> None:
    real = ApiStore.write_status

    def blind(self: ApiStore, name: str, uid: str, version: int, status: Any) -> Any:
        obj = self.objects.get(name)
        return real(self, name, uid, version if obj is None else obj.resource_version, status)

    m.setattr(ApiStore, "write_status", blind)


def r15_an_absent_object_means_default(m: pytest.MonkeyPatch) -> None:
    real = Enforcer._wanted_mw

    def resetting(self: Enforcer, uuid: str, gpu: Any, guard_w: int | None) -> int | None:
        return gpu.identity.default_mw if self._held else real(self, uuid, gpu, guard_w)

    m.setattr(Enforcer, "_wanted_mw", resetting)


def raises_do_not_wait_for_lowers(m: pytest.MonkeyPatch) -> None:
    m.setattr(transition, "_affordable", lambda t, above, extra_w: above)
    m.setattr(transition, "check_sums", lambda t, caps: None)


def charges_do_not_settle(m: pytest.MonkeyPatch) -> None:
    real = GpuAccount.refresh
    m.setattr(
        GpuAccount,
        "refresh",
        lambda self, now_s, *, trusted, settle_s: real(self, now_s, trusted=trusted, settle_s=0.0),
    )


def silence_is_trusted_for_ever(m: pytest.MonkeyPatch) -> None:
    m.setattr(node_account, "UNPROVEN_GRACE_S", 1e9)


def the_management_limit_is_not_read(m: pytest.MonkeyPatch) -> None:
    real = Enforcer.tick

    def half(self: Enforcer, now_s: float, readbacks: Any, **options: Any) -> Any:
        seen = {u: replace(r, management_mw=r.enforced_mw) for u, r in readbacks.items()}
        return real(self, now_s, seen, **options)

    m.setattr(Enforcer, "tick", half)


def moved_nodes_need_no_new_grant(m: pytest.MonkeyPatch) -> None:
    m.setattr(writer, "NO_GRANT", -2)
    m.setattr("splitwatt_core.budget.claims.NO_GRANT", NO_GRANT)


CASES: list[tuple[Patch, Callable[[], None], str]] = [
    (
        r1_writes_carry_no_version,
        scenes.scene_03_a_timed_out_write_lands_after_a_lower_one_was_acknowledged,
        "a late write replaced what was decided after it",
    ),
    (
        r2_a_restart_keeps_its_term,
        scenes.scene_05_a_restart_takes_a_new_term,
        "both leaders' raises are in force: 1200 W of 900 W",
    ),
    (
        r3_raises_do_not_wait_for_stamps,
        scenes.scene_04_old_and_new_leader_raise_different_nodes,
        "both leaders' raises are in force: 1200 W of 900 W",
    ),
    (
        r3_another_term_is_trusted,
        scenes.scene_14b_an_object_that_shows_another_term_is_charged_its_default,
        "what others wrote proves no lower limit",
    ),
    (
        r4_the_carry_is_forgotten,
        scenes.scene_02_an_overwritten_raise_is_applied_late_after_a_restart,
        "a0-g0: charged 300 W, true limit 600 W",
    ),
    (
        r5_an_acknowledgement_retires_its_own_grant,
        scenes.scene_01b_an_acknowledged_cap_stays_charged_while_the_readback_is_lower,
        "a0-g0: charged 250 W, true limit 450 W",
    ),
    (r5_acknowledged_before_applied, scenes.scene_01_acknowledged_before_the_raise_is_applied, "nothing was set yet"),
    (
        r6_an_unknown_outcome_is_a_failure,
        scenes.scene_06_a_timeout_and_a_stale_cache_give_nothing_twice,
        "a0-g0: charged 300 W, true limit 600 W",
    ),
    (r6_older_versions_count, scenes.scene_06b_an_older_version_is_ignored, "a0-g0: charged 300 W, true limit 600 W"),
    (r7_an_unknown_cap_is_lowered_like_a_known_one, scenes.scene_12_a_lowering_of_an_unknown_cap_raises_it, "450 W + 600 W"),
    (
        r7_a_status_of_another_object_is_trusted,
        scenes.scene_14b_an_object_that_shows_another_term_is_charged_its_default,
        "what others wrote proves no lower limit",
    ),
    (
        r8_a_deleted_object_is_charged_nothing,
        scenes.scene_10_a_node_power_is_deleted_while_its_node_is_there,
        "a deleted object is charged its default",
    ),
    (
        r8_absence_needs_no_fresh_read,
        scenes.scene_11_a_node_that_seemed_gone_is_back_and_its_node_power_is_deleted,
        "row: 900.0 W may be drawn there, 450.0 W are counted",
    ),
    (
        r9_the_grace_starts_with_anybody,
        scenes.scene_15_a_lowered_limit_waits_for_a_fenced_operator,
        "the grace starts when a fenced operator has seen it",
    ),
    (
        r9_former_budgets_are_not_persisted,
        scenes.scene_16_a_node_moves_and_the_operator_restarts,
        "a: 450.0 W may be drawn there, 0.0 W are counted",
    ),
    (moved_nodes_need_no_new_grant, scenes.scene_16_a_node_moves_and_the_operator_restarts, "it has left its former budget"),
    (
        r10_the_uid_is_not_looked_at,
        scenes.scene_13_a_node_power_restored_from_a_backup,
        "a restored copy names another object's uid and is ignored",
    ),
    (r11_the_first_read_may_be_a_cache, scenes.scene_07_a_restarted_agent_reads_an_old_version, "a cache is no first read"),
    (
        r12_grants_are_not_persisted,
        scenes.scene_07b_a_lower_grant_than_the_persisted_one_is_refused,
        "a grant below the persisted one is refused",
    ),
    (
        r12_a_lower_term_is_obeyed,
        scenes.scene_14_a_restored_node_power_escapes_the_newer_terms_fence,
        "a term below one already obeyed is refused",
    ),
    (
        r13_acknowledged_while_a_setter_hangs,
        scenes.scene_09_a_hung_setter_completes_after_a_lower_one,
        "a0-g0: charged 300 W, true limit 600 W",
    ),
    (
        r14_a_status_carries_no_version,
        scenes.scene_08_a_delayed_status_lands_after_a_reset_was_reported,
        "a0-g0: charged 300 W, true limit 700 W",
    ),
    (
        r15_an_absent_object_means_default,
        scenes.scene_10_a_node_power_is_deleted_while_its_node_is_there,
        "an absent object holds the caps",
    ),
    (raises_do_not_wait_for_lowers, power_scenes.lower_first, "row: lifted from 900.0 W to 1200.0 W of 900 W"),
    (charges_do_not_settle, power_scenes.settle_time, "draw may lag the cap still"),
    (
        silence_is_trusted_for_ever,
        power_scenes.a_dead_agent_is_charged_its_default_once_its_boot_is_unproven,
        "nothing proves the boot any more",
    ),
    (
        the_management_limit_is_not_read,
        power_scenes.a_lying_setter_is_never_acknowledged,
        "acknowledged by the enforced limit alone",
    ),
]


@pytest.mark.parametrize(("leave_out", "scene", "said"), CASES, ids=[patch.__name__ for patch, *_ in CASES])
def test_without_this_rule_a_scene_fails(
    leave_out: Patch, scene: Callable[[], None], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_rule_matters(leave_out, scene, said, monkeypatch)
