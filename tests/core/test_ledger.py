"""What a GPU is charged: acknowledgements, silence, reboots, replaced and lost GPUs, restarts."""

from __future__ import annotations

from dataclasses import replace

import pytest
from splitwatt_core.protocol.contract import Health, Use, Workload
from splitwatt_core.protocol.ledger import MAX_OPEN_GRANTS, GpuAccount, OpenGrant
from splitwatt_core.protocol.node_account import AGENT_STATUS_SILENT_S, UNPROVEN_GRACE_S, NodeAccount
from support.ledgers import NOW_S, SETTLE_S, TERM, charge_w, line, node, reading, settled_w, version

# ------------------------------------------------------------------------------------------------------ acknowledgements


def test_before_any_acknowledgement_a_gpu_is_charged_its_default() -> None:
    assert charge_w(node(version(1, status=(reading(0, 300),)))) == 700
    assert charge_w(node(version(1, line(5, 300, 700), status=(reading(0, 300),)))) == 700


def test_an_acknowledged_grant_is_charged_at_its_cap_even_when_the_readback_is_lower() -> None:
    assert charge_w(node(version(1, line(5, 450), status=(reading(5, 250),)))) == 450


def test_a_readback_above_the_cap_counts() -> None:
    assert charge_w(node(version(1, line(5, 300), status=(reading(5, 520),)))) == 520


def test_an_unacknowledged_raise_is_charged_at_once() -> None:
    account = node(version(1, line(5, 300), status=(reading(5, 300),)))
    account.gpus["g0"].learn(line(6, 650))
    assert charge_w(account) == 650


def test_an_overwritten_raise_stays_charged_through_what_its_successor_carries() -> None:
    account = node(version(9, line(7, 300, 650), status=(reading(5, 300),)))
    assert charge_w(account) == 650
    account.observe(version(10, line(7, 300, 650), status=(reading(7, 300),)), NOW_S, term=TERM)
    assert settled_w(account) == 300


def test_a_charge_falls_a_settle_time_after_the_readback() -> None:
    account = node(version(1, line(5, 600), status=(reading(5, 600),)))
    account.observe(version(2, line(6, 300), status=(reading(6, 300),)), NOW_S + 1.0, term=TERM)
    assert charge_w(account, NOW_S + 1.0) == 600
    assert account.gpus["g0"].settles_at_s == NOW_S + 1.0 + SETTLE_S
    assert charge_w(account, NOW_S + 1.49) == 600
    assert charge_w(account, NOW_S + 1.51) == 300
    assert account.gpus["g0"].settles_at_s is None


def test_a_limit_that_cannot_be_read_keeps_what_was_last_read() -> None:
    account = node(version(1, line(5, 300), status=(reading(5, 420),)))
    lost = reading(5, None, health=Health.LOST)
    account.observe(version(2, line(5, 300), status=(lost,)), NOW_S, term=TERM)
    assert charge_w(account) == 420


def test_a_successor_that_never_read_a_lost_gpus_limit_charges_its_default() -> None:
    assert charge_w(node(version(1, line(5, 300), status=(reading(5, None, health=Health.LOST),)))) == 700


# ------------------------------------------------------------------------------------------- objects, boots and versions


def test_an_older_version_changes_nothing() -> None:
    account = node(version(5, line(5, 600), status=(reading(5, 600),)))
    assert not account.observe(version(4, line(4, 300), status=(reading(4, 300),)), NOW_S, term=TERM)
    assert not account.observe(version(5, line(5, 300), status=(reading(5, 300),)), NOW_S, term=TERM)
    assert charge_w(account) == 600


def test_a_status_about_another_object_may_raise_the_charge_but_not_lower_it() -> None:
    account = node(version(1, line(5, 600), status=(reading(5, 600),)))
    other = version(2, line(5, 600), status=(reading(5, 650, default_w=640),), observed_uid="u0")
    account.observe(other, NOW_S, term=TERM)
    assert charge_w(account) == 650
    lower = version(3, line(5, 600), status=(reading(5, 200, default_w=640),), observed_uid="u0")
    account.observe(lower, NOW_S, term=TERM)
    assert charge_w(account) == 650


def test_a_spec_written_for_another_object_allows_nothing() -> None:
    old = replace(version(1, line(9, 690)), uid="u2")
    account = NodeAccount("n1")
    account.observe(old, NOW_S, term=TERM)
    assert account.gpus == {} and not account.stamped


def test_a_new_boot_charges_the_default_until_a_grant_is_acknowledged_under_it() -> None:
    account = node(version(1, line(5, 300), status=(reading(5, 300),)))
    assert account.see_boot("boot-2")
    assert charge_w(account) == 700
    account.observe(version(2, line(5, 300), status=(reading(5, 300),), boot="boot-2"), NOW_S, term=TERM)
    assert settled_w(account) == 300
    assert not account.see_boot("boot-2")


def test_a_status_may_tell_of_the_new_boot_before_the_node_does() -> None:
    account = node(version(1, line(5, 300), status=(reading(5, 300),)))
    account.observe(version(2, line(5, 300), status=(reading(5, 300),), boot="boot-2"), NOW_S, term=TERM)
    assert charge_w(account) == 700
    account.see_boot("boot-2")
    assert settled_w(account) == 300


def test_another_term_on_a_stamped_object_charges_the_default_until_it_is_stamped_again() -> None:
    good = version(1, line(5, 300), status=(reading(5, 300),))
    account = node(good)
    assert account.stamped
    account.observe(replace(good, resource_version=2, spec=replace(good.spec, term=1)), NOW_S, term=TERM)  # type: ignore[type-var]
    assert not account.stamped
    assert charge_w(account) == 700
    account.observe(replace(good, resource_version=3), NOW_S, term=TERM)
    assert settled_w(account) == 300


def test_a_deleted_object_leaves_its_grants_charged_and_trusts_nobody() -> None:
    account = node(version(1, line(5, 690), line(5, 300, uuid="g1"), status=(reading(5, 690), reading(5, 300, "g1"))))
    assert not account.forget_object("another")
    assert account.forget_object("u1")
    assert (charge_w(account), charge_w(account, uuid="g1")) == (700, 700)
    assert not account.forget_object("u1")


def test_a_gone_word_without_uid_is_believed() -> None:
    assert node(version(1)).forget_object("")


# ----------------------------------------------------------------------------------------------- GPUs that come and go


TWO = (reading(5, 300), reading(5, 300, "g1"))
LINES = (line(5, 300), line(5, 300, uuid="g1"))


def test_an_empty_inventory_is_no_inventory() -> None:
    account = node(version(1, *LINES, status=TWO))
    account.observe(version(2, *LINES), NOW_S, term=TERM)
    assert (charge_w(account), charge_w(account, uuid="g1")) == (700, 700)


def test_a_gpu_that_leaves_the_inventory_of_a_running_machine_is_charged_its_default() -> None:
    account = node(version(1, *LINES, status=TWO))
    account.observe(version(2, *LINES, status=TWO[:1]), NOW_S, term=TERM)
    assert (charge_w(account), charge_w(account, uuid="g1")) == (300, 700)
    assert account.gpus["g1"].health is Health.LOST


def test_a_gpu_that_was_replaced_while_the_node_was_down_is_charged_nothing() -> None:
    account = node(version(1, *LINES, status=TWO))
    account.see_boot("boot-2")
    fresh = (reading(0, 700), reading(0, 700, "g2"))
    account.observe(version(2, *LINES, status=fresh, boot="boot-2"), NOW_S, term=TERM)
    assert sorted(account.gpus) == ["g0", "g2"]
    account.observe(version(3, *LINES, status=(reading(5, 300), fresh[1]), boot="boot-2"), NOW_S, term=TERM)
    assert sorted(account.gpus) == ["g0", "g2"], "a line that the old spec still has does not bring it back"


def test_a_gpu_that_was_put_back_counts_again() -> None:
    account = node(version(1, *LINES, status=TWO))
    account.see_boot("boot-2")
    account.observe(version(2, *LINES, status=TWO[:1], boot="boot-2"), NOW_S, term=TERM)
    assert "g1" not in account.gpus
    account.see_boot("boot-3")
    account.observe(version(3, *LINES, status=TWO, boot="boot-3"), NOW_S, term=TERM)
    assert charge_w(account, uuid="g1") >= 300


def test_a_successor_charges_a_line_whose_gpu_the_inventory_lacks_until_it_is_released_by_hand() -> None:
    account = node(version(1, line(5, 300), line(5, 300, 550, uuid="g1"), status=TWO[:1]))
    assert charge_w(account, uuid="g1") == 550
    account.forget_object("u1")
    account.observe(version(9, status=(reading(0, 300),), uid="u2"), NOW_S, term=TERM)
    assert sorted(account.gpus) == ["g0"]


# ------------------------------------------------------------------------------------------------------- proof of life


def silent(account: NodeAccount, for_s: float, *, lease: bool) -> NodeAccount:
    at_s = NOW_S
    while at_s < NOW_S + for_s:
        at_s += 5.0
        if lease:
            account.lease_s = at_s
        account.refresh(at_s, settle_s=SETTLE_S)
    return account


def test_a_silent_agent_keeps_its_charge_while_the_node_lease_proves_the_boot() -> None:
    account = silent(node(version(1, line(5, 300), status=(reading(5, 300),))), 600.0, lease=True)
    assert charge_w(account, NOW_S + 601.0) == 300
    assert not account.alive(NOW_S + 601.0)


def test_without_that_proof_it_is_charged_its_default_after_the_grace() -> None:
    account = node(version(1, line(5, 300), status=(reading(5, 300),)))
    silent(account, AGENT_STATUS_SILENT_S + UNPROVEN_GRACE_S - 10.0, lease=False)
    assert account.gpus["g0"].charge_w == 300
    silent(account, AGENT_STATUS_SILENT_S + UNPROVEN_GRACE_S + 10.0, lease=False)
    assert account.gpus["g0"].charge_w == 700


def test_life_that_returns_restores_trust() -> None:
    account = silent(node(version(1, line(5, 300), status=(reading(5, 300),))), 300.0, lease=False)
    assert account.gpus["g0"].charge_w == 700
    account.sample_s = NOW_S + 300.0
    assert charge_w(account, NOW_S + 301.0) == 700, "settling"
    account.sample_s = NOW_S + 302.0
    assert charge_w(account, NOW_S + 302.0) == 300


def test_a_heartbeat_from_the_future_proves_nothing_later() -> None:
    account = node(version(1, line(5, 300), status=(reading(5, 300),)))
    account.sample_s = account.lease_s = NOW_S + 86_400.0
    silent(account, 600.0, lease=False)
    assert account.gpus["g0"].charge_w == 700


def test_an_agents_sample_from_the_future_told_again_is_no_sign_of_life() -> None:
    """Some servers show the last sample of a dead agent for minutes."""
    account = node(version(1, line(5, 300), status=(reading(5, 300),)))
    for second in range(60):
        account.see_sample(250.0, NOW_S + 3600.0)
        charge_w(account, NOW_S + second)
    assert account.sample_stale(NOW_S + 59.0)
    account.see_sample(260.0, NOW_S + 3659.0)
    assert not account.sample_stale(NOW_S + 60.0) and account.sample_w == 260.0


def test_a_vanished_node_whose_agent_lives_is_still_trusted() -> None:
    account = node(version(1, line(5, 300), status=(reading(5, 300),)))
    account.present = False
    account.sample_s = NOW_S + 10.0
    assert charge_w(account) == 300


# ---------------------------------------------------------------------------------------------------- grants under way


def test_a_grant_that_waits_for_its_acknowledgement_is_timed_from_the_first_one() -> None:
    account = node(version(1, line(5, 300), status=(reading(5, 300),)))
    gpu = account.gpus["g0"]
    gpu.learn(line(6, 400))
    charge_w(account, NOW_S + 1.0)
    gpu.learn(line(7, 410))
    charge_w(account, NOW_S + 2.0)
    assert gpu.unacked_since_s == NOW_S + 1.0
    gpu.acknowledge(7)
    charge_w(account, NOW_S + 3.0)
    assert gpu.unacked_since_s is None


def test_learning_the_same_line_again_changes_nothing() -> None:
    gpu = GpuAccount("g0", 700, 200, 700)
    gpu.learn(line(5, 300))
    gpu.learn(line(5, 300))
    assert gpu.open == [OpenGrant(5, 300, 300)]
    assert gpu.latest_cap_w == 300


def test_an_older_line_is_counted_but_is_not_the_newest() -> None:
    gpu = GpuAccount("g0", 700, 200, 700)
    assert gpu.latest_cap_w is None
    gpu.learn(line(7, 300))
    gpu.learn(line(6, 650))
    assert gpu.latest_cap_w == 300
    assert gpu.bound_w(trusted=False) == 700


@pytest.mark.parametrize("acked", [0, 3, 40, 41, 90, 199, 200])
def test_folding_open_grants_never_lowers_the_bound(acked: int) -> None:
    folded = GpuAccount("g0", 100, 100, 700, reported_w=100)
    whole = GpuAccount("g0", 100, 100, 700, reported_w=100)
    for number in range(1, 201):
        grant = line(number, 100 + (number * 37) % 500)
        folded.learn(grant)
        whole.open.append(OpenGrant(number, grant.cap_w, grant.charge_w))
    assert len(folded.open) == MAX_OPEN_GRANTS
    for gpu in (folded, whole):
        gpu.acknowledge(acked)
    assert folded.bound_w(trusted=True) >= whole.bound_w(trusted=True)
    folded.acknowledge(200)
    assert folded.open == [OpenGrant(200, 100 + (200 * 37) % 500, 100 + (200 * 37) % 500)]


# ---------------------------------------------------------------------------------------------------------------- floors


def test_what_a_gpu_draws_above_its_cap_is_charged_until_it_is_forgotten() -> None:
    account = node(version(1, line(5, 200), status=(reading(5, 200, floor_w=206),)))
    assert settled_w(account) == 206
    account.observe(version(2, line(6, 300, 300), status=(reading(6, 300, floor_w=206),)), NOW_S + 21.0, term=TERM)
    assert charge_w(account, NOW_S + 30.0) == 300
    account.observe(version(3, line(7, 200, 300), status=(reading(7, 200),)), NOW_S + 31.0, term=TERM)
    assert charge_w(account, NOW_S + 31.1) == 300, "draw lags"
    assert charge_w(account, NOW_S + 33.0) == 200


def test_a_floor_that_no_gpu_can_have_is_cut_to_its_highest_cap() -> None:
    assert settled_w(node(version(1, line(5, 200), status=(reading(5, 200, floor_w=10**9),)))) == 700


# ---------------------------------------------------------------------------------------------------------- who uses it


def used(account: NodeAccount, number: int, use: Use, *owners: Workload) -> GpuAccount:
    """The account after the next status says so; the grant and its cap stay."""
    last = account.object
    assert last is not None and last.spec is not None
    held = reading(5, 450, use=use, workload=owners[0] if owners else None, workloads=owners if len(owners) > 1 else ())
    account.observe(version(number, *last.spec.gpus, status=(held,)), NOW_S + number, term=TERM)
    return account.gpus["g0"]


def test_a_use_begins_from_the_cap_of_that_moment() -> None:
    account = node(version(1, line(5, 450), status=(reading(5, 450),)))
    pod = Workload("ns", "a")
    gpu = used(account, 2, Use.BUSY, pod)
    assert (gpu.owners, gpu.found_w, gpu.found_granted, gpu.unowned_since_s) == ((pod,), 450, True, None)
    account.gpus["g0"].row = line(6, 300)
    gpu = used(account, 3, Use.BUSY)
    assert (gpu.owners, gpu.found_w, gpu.unowned_since_s) == ((), 300, NOW_S + 3)
    account.gpus["g0"].row = line(7, 250)
    assert (used(account, 4, Use.UNKNOWN).found_w, gpu.unowned_since_s) == (300, NOW_S + 3), "the same use, known worse"
    assert used(account, 5, Use.IDLE).unowned_since_s is None
    gpu = used(account, 6, Use.BUSY)
    assert (gpu.found_w, gpu.found_granted) == (250, True), "work on what was an idle GPU"
    both = used(account, 7, Use.BUSY, pod, Workload("ns", "b"))
    assert both.owners == (pod, Workload("ns", "b"))


def test_who_first_sees_a_gpu_knows_whether_its_cap_was_a_grant() -> None:
    """Nobody had granted anything: the cap is what somebody wants it to have. A successor finds a grant, at once or later."""
    read = reading(5, 450, use=Use.BUSY)
    assert not node(version(1, status=(read,))).gpus["g0"].found_granted
    assert node(version(1, line(5, 450), status=(read,))).gpus["g0"].found_granted
    account = node(version(1, line(5, 450)))
    account.observe(version(2, line(5, 450), status=(read,)), NOW_S, term=TERM)
    assert account.gpus["g0"].found_granted


# ------------------------------------------------------------------------------------------------- what cannot be true


def test_a_range_that_is_none_is_charged_in_full_and_named() -> None:
    for low_w, default_w, high_w in ((700, 700, 200), (800, 700, 700), (0, 700, 700), (200, 900, 700)):
        account = node(version(1, line(5, 200), status=(reading(5, 200, min_w=low_w, default_w=default_w, max_w=high_w),)))
        gpu = account.gpus["g0"]
        assert settled_w(account) == max(low_w, default_w, high_w) and gpu.health is Health.UNKNOWN
        assert f"reports {low_w} / {default_w} / {high_w} W" in gpu.oddity
    account.observe(version(2, line(5, 200), status=(reading(5, 200),)), NOW_S + 21.0, term=TERM)
    charge_w(account, NOW_S + 22.0)
    assert (account.gpus["g0"].oddity, charge_w(account, NOW_S + 23.0)) == ("", 200)


def test_a_gpu_listed_twice_is_charged_in_full_and_named() -> None:
    account = node(version(1, line(5, 200), status=(reading(5, 200), reading(5, 200), reading(5, 200))))
    assert (settled_w(account), account.gpus["g0"].oddity) == (700, "is listed 3 times by its agent")


def test_a_gpu_that_says_nothing_of_itself_counts_as_the_largest_of_its_neighbours() -> None:
    dumb = reading(0, None, "g1", min_w=0, max_w=0, default_w=0, health=Health.NOT_SUPPORTED)
    account = node(version(1, line(5, 200), status=(reading(5, 200), dumb)))
    assert (settled_w(account), charge_w(account, NOW_S + 30.0, "g1")) == (200, 700)


def test_an_excluded_node_is_charged_as_if_nothing_held() -> None:
    account = node(version(1, line(5, 200), status=(reading(5, 200),)))
    assert settled_w(account) == 200
    account.excluded = True
    assert charge_w(account, NOW_S + 30.0) == 700
