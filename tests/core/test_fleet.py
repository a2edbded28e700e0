"""The fleet as columns, its survey and what holds raises back: every watt once in every budget that must count it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from splitwatt_core.budget import raises
from splitwatt_core.budget.books import Book
from splitwatt_core.budget.claims import Placement, Rates
from splitwatt_core.budget.facts import PodFact
from splitwatt_core.budget.fleet import LATE_ACK_S, Fleet, build_fleet, late, steerable
from splitwatt_core.budget.meters.posture import Correction
from splitwatt_core.budget.moment import Moment, look
from splitwatt_core.budget.survey import UNMANAGED_AFTER_S, Survey, take_survey
from splitwatt_core.budget.tree import BudgetSpec, Selector, Tree, build_tree
from splitwatt_core.columns import PhaseCode
from splitwatt_core.gpus.profiles import Profile
from splitwatt_core.protocol.contract import Grant, Health, Mode, NodePower, Phase, Spec, Use, Workload
from splitwatt_core.protocol.ledger import GpuAccount
from splitwatt_core.protocol.node_account import AGENT_STATUS_SILENT_S, NodeAccount
from support.machines import PROFILE

NOW_S = 1000.0


def leaf(name: str, parent: str | None = "row", **more: int) -> BudgetSpec:
    return BudgetSpec(name, name, 1, 5000, parent=parent, selector=Selector({"rack": name}), **more)  # type: ignore[arg-type]


BUDGETS = {
    "row": BudgetSpec("row", "row", 1, 9000, fixed_w=100, reserve_w=70),
    "a": leaf("a", non_gpu_w_per_node=50, unmanaged_w_per_node=3000, fixed_w=10, overhead_percent=10),
    "b": leaf("b", non_gpu_w_per_node=60, unmanaged_w_per_node=2000, reserve_w=30),
}
TREE = build_tree(BUDGETS)


def gpu(uuid: str, charge_w: int = 300, **more: object) -> GpuAccount:
    row = Grant(uuid, 5, cap_w=charge_w, safe_cap_w=charge_w, charge_w=charge_w)
    facts: dict[str, object] = {"acked": 5, "health": Health.OK, "row": row, "model": "X", "use": Use.IDLE, **more}
    return GpuAccount(uuid, 700, 200, 700, charge_w=charge_w, **facts)  # type: ignore[arg-type]


def node(name: str, *gpus: GpuAccount, sample_w: float = 0.0) -> NodeAccount:
    account = NodeAccount(name, present=True, boot_id="boot", stamped=True, sample_s=NOW_S, sample_w=sample_w)
    account.object = NodePower(name, "u", 1, Spec(1, "u"))
    account.object = replace(account.object, status=replace(account.object.status, observed_uid="u", boot_id="boot"))
    account.gpus = {g.uuid: g for g in gpus}
    return account


def fleet(
    *placements: Placement,
    pods: dict[tuple[str, str], PodFact] | None = None,
    profiles: tuple[Profile, ...] = (PROFILE,),
    tree: Tree = TREE,
    budgets: dict[str, BudgetSpec] | None = None,
) -> Fleet:
    return build_fleet(
        tree=tree, budgets=budgets or BUDGETS, placements=placements, pods=pods or {}, profiles=profiles, now_s=NOW_S
    )


def survey(*placements: Placement, budgets: dict[str, BudgetSpec] | None = None, open_for_s: float = 0.0) -> dict[str, Survey]:
    kept = budgets or BUDGETS
    laid = fleet(*placements, budgets=kept)
    opened = dict.fromkeys(kept, NOW_S - open_for_s)
    found = take_survey(laid, placements, budgets=kept, opened_s=opened, now_s=NOW_S)
    return dict(zip(laid.tree.order, found, strict=True))


def moment(*placements: Placement, budgets: dict[str, BudgetSpec] | None = None) -> Moment:
    kept = budgets or BUDGETS
    return look(
        tree=build_tree(kept),
        budgets=kept,
        books={name: Book.open(spec, NOW_S) for name, spec in kept.items()},
        placements=placements,
        conflicts={},
        pods={},
        profiles=(PROFILE,),
        now_s=NOW_S,
        unconfirmed={},
    )


def charged(laid: Fleet) -> dict[str, float]:
    return dict(zip(laid.tree.order, laid.charged_w().tolist(), strict=True))


# -------------------------------------------------------------------------------------------------------------- charges


def test_an_empty_fleet_draws_its_fixed_watts() -> None:
    assert charged(fleet()) == {"row": 110.0, "a": 10.0, "b": 0.0}


def test_charges_add_up_with_losses_non_gpu_and_fixed_watts() -> None:
    laid = fleet(Placement(node("n1", gpu("g0"), gpu("g1", 400)), ("a",)), Placement(node("n2", gpu("g2")), ("b",)))
    assert charged(laid) == pytest.approx({"row": 100 + 10 + 770 + 50 + 300 + 60, "a": 10 + 770 + 50, "b": 360})
    assert (laid.nodes.tolist(), laid.gpu_count.tolist()) == ([2, 1, 1], [3, 2, 1])


def test_a_node_without_known_gpus_is_charged_the_leafs_flat_rate() -> None:
    assert charged(fleet(Placement(node("n1"), ("b",)))) == {"row": 2110.0, "a": 10.0, "b": 2000.0}


def test_a_node_in_two_leaves_is_charged_in_each_by_its_own_losses_and_once_above_at_the_most() -> None:
    laid = fleet(Placement(node("n1", gpu("g0")), ("b", "a")))
    assert charged(laid) == pytest.approx({"row": 110 + 380, "a": 10 + 330 + 50, "b": 360})
    assert laid.nodes.tolist() == [1, 0, 1]


def test_leaves_of_two_trees_are_charged_up_to_both_roots() -> None:
    budgets = {**BUDGETS, "c": leaf("c", parent="hall"), "hall": BudgetSpec("hall", "hall", 1, 5000)}
    laid = fleet(Placement(node("n1", gpu("g0")), ("b", "c")), tree=build_tree(budgets), budgets=budgets)
    assert charged(laid) == pytest.approx({"hall": 300, "c": 300, "row": 110 + 360, "a": 10, "b": 360})


# ------------------------------------------------------------------------------------------------------------- steering


def test_only_what_can_answer_soon_is_steered() -> None:
    healthy = node("n1", gpu("g0"))
    account = healthy.gpus["g0"]
    assert steerable(account, healthy, NOW_S)
    assert not steerable(replace(account, health=Health.HUNG), healthy, NOW_S)
    assert not steerable(replace(account, min_w=0), healthy, NOW_S)
    assert not steerable(account, healthy, NOW_S + AGENT_STATUS_SILENT_S)
    healthy.present = False
    assert not steerable(account, healthy, NOW_S)


def test_what_cannot_be_steered_stands_at_its_charge_in_a_group_of_its_own() -> None:
    work = Workload("ns", "pod")
    sick = gpu("g1", 450, health=Health.LOST, owners=(work,))
    pods = {("ns", "pod"): PodFact("ns", "pod", Phase.DECODE, 5)}
    laid = fleet(Placement(node("n1", gpu("g0", owners=(work,)), sick, gpu("g2", owners=(work,))), ("a",)), pods=pods)
    g = laid.gpus
    assert laid.steerable.tolist() == [True, False, True]
    assert g.group[0] == g.group[2] != g.group[1]
    assert g.priority.tolist() == [5, 5, 5]
    for column in (g.min_w, g.max_w, g.natural_w, g.cliff_w, g.cap_w):
        assert column[1] == 450.0
    assert (g.min_w[0], g.cliff_w[0], g.natural_w[0], g.max_w[0]) == (200.0, 250.0, 450.0, 700.0)


def test_late_is_who_owes_an_acknowledgement_for_too_long() -> None:
    assert not late(gpu("g0"), NOW_S)
    assert not late(gpu("g0", unacked_since_s=NOW_S - LATE_ACK_S), NOW_S)
    assert late(gpu("g0", unacked_since_s=NOW_S - LATE_ACK_S - 0.1), NOW_S)


def test_late_gpus_stand_at_their_charge_below_a_sum_that_is_too_high_alone() -> None:
    work, owing = Workload("ns", "pod"), {"unacked_since_s": NOW_S - LATE_ACK_S - 1.0}
    pods = {("ns", "pod"): PodFact("ns", "pod", Phase.DECODE, 5)}
    placements = (
        Placement(node("n1", gpu("g0", owners=(work,)), gpu("g1", 450, owners=(work,), **owing)), ("a",)),
        Placement(node("n2", gpu("g2", 450, **owing)), ("b",)),
    )
    laid = fleet(*placements, pods=pods)
    assert laid.late.tolist() == [False, True, True] and laid.steerable.all()
    charged_w = laid.charged_w() - laid.rest_w
    assert laid.with_late_aside(charged_w) is laid, "every sum just holds"
    below_a = laid.with_late_aside(charged_w - np.array([0.0, 1.0, 0.0]))
    assert below_a.steerable.tolist() == [True, False, True]
    assert len({int(below_a.gpus.group[0]), int(below_a.gpus.group[1]), int(below_a.gpus.group[2])}) == 3
    for column in (below_a.gpus.min_w, below_a.gpus.max_w, below_a.gpus.natural_w, below_a.gpus.cliff_w, below_a.gpus.cap_w):
        assert column[1] == 450.0
    assert (below_a.gpus.min_w[0], below_a.gpus.max_w[0]) == (laid.gpus.min_w[0], laid.gpus.max_w[0])
    below_row = laid.with_late_aside(charged_w - np.array([1.0, 0.0, 0.0]))
    assert below_row.steerable.tolist() == [True, False, False], "the row's sum counts for both racks"


def test_what_a_gpu_wants_follows_its_pod() -> None:
    pods = {
        ("ns", "prefill"): PodFact("ns", "prefill", Phase.PREFILL, 1, power_ceiling_w=500),
        ("ns", "low"): PodFact("ns", "low", Phase.PREFILL, 0, power_ceiling_w=100),
    }
    laid = fleet(
        Placement(
            node(
                "n1",
                gpu("idle"),
                gpu("prefill", owners=(Workload("ns", "prefill"),)),
                gpu("low", owners=(Workload("ns", "low"),)),
                gpu("stranger", owners=(Workload("their", "job"),)),
                gpu("new", model="Y", owners=(Workload("ns", "prefill"),)),
            ),
            ("a",),
        ),
        pods=pods,
    )
    g = laid.gpus
    assert g.phase.tolist() == [PhaseCode.UNASSIGNED] + [PhaseCode.PREFILL] * 4
    assert g.natural_w.tolist() == [200.0, 500.0, 200.0, 700.0, 500.0]
    assert g.max_w.tolist() == [700.0, 500.0, 200.0, 700.0, 500.0], "a ceiling below the minimum is the minimum"
    assert g.cliff_w.tolist() == [200.0, 400.0, 200.0, 350.0, 350.0], "of an unknown model, and of a stranger, half its range"


def test_no_cap_is_thought_of_below_what_a_gpu_draws_whatever_its_cap() -> None:
    """The sum of minimum caps must be the one that would be drawn: else a limit looks feasible that is not."""
    low = PodFact("ns", "low", Phase.DECODE, 0, power_ceiling_w=210)
    gpus = (gpu("idle", floor_w=230), gpu("low", floor_w=230, owners=(Workload("ns", "low"),)), gpu("absurd", floor_w=9000))
    laid = fleet(Placement(node("n1", *gpus), ("a",)), pods={("ns", "low"): low})
    assert laid.gpus.min_w.tolist() == [230.0, 230.0, 700.0]
    assert laid.gpus.max_w.tolist() == [700.0, 230.0, 700.0]
    assert laid.gpus.cliff_w.tolist() == laid.gpus.natural_w.tolist() == [230.0, 230.0, 700.0]


def test_a_gpu_that_pods_share_stands_in_a_group_of_its_own() -> None:
    work, other = Workload("ns", "p"), Workload("ns", "q")
    shared = gpu("g1", owners=(work, other))
    laid = fleet(Placement(node("n1", gpu("g0", owners=(work,)), shared, gpu("g2", owners=(work,))), ("a",)))
    assert laid.gpus.group.tolist() == [0, 1, 0]


def test_a_gpu_without_a_grant_stands_at_its_default() -> None:
    laid = fleet(Placement(node("n1", gpu("g0", 700, row=None, acked=0)), ("a",)))
    assert (laid.gpus.cap_w[0], laid.granted_w[0], bool(laid.trusted[0])) == (700.0, 0, False)


# --------------------------------------------------------------------------------------------------------------- clocks


def test_clocks_come_from_the_profile_and_the_newest_grant() -> None:
    locked = Grant("g1", 5, cap_w=300, safe_cap_w=300, charge_w=300, max_clock_mhz=1200)
    laid = fleet(
        Placement(
            node("n1", gpu("g0", model=PROFILE.name), gpu("g1", model=PROFILE.name, row=locked), gpu("new", model="Y")),
            ("a",),
        )
    )
    clocks = laid.clocks
    assert clocks.granted_mhz.tolist() == [0, 1200, 0]
    assert clocks.top_mhz.tolist() == [2000.0, 2000.0, 0.0] and clocks.min_mhz.tolist()[:2] == [200.0, 200.0]
    assert (clocks.idle_w[0], clocks.exponent[0], clocks.voltage_floor[0]) == (80.0, 3.0, 0.769)


def test_what_cannot_be_steered_cannot_be_locked() -> None:
    owing: dict[str, Any] = {"unacked_since_s": NOW_S - LATE_ACK_S - 1.0}
    rows = (gpu("g0", model=PROFILE.name, health=Health.LOST), gpu("g1", model=PROFILE.name, **owing))
    laid = fleet(Placement(node("n1", *rows), ("a",)))
    assert laid.clocks.top_mhz.tolist() == [0.0, 2000.0]
    left = laid.with_late_aside(laid.charged_w() - laid.rest_w - 1.0)
    assert left.clocks.top_mhz.tolist() == [0.0, 0.0] and left.clocks.granted_mhz.tolist() == [0, 0]


def test_a_slot_is_a_gpus_own_and_one_for_all_of_a_pod() -> None:
    work = Workload("ns", "pod")
    pods = {("ns", "pod"): PodFact("ns", "pod", Phase.DECODE, 5)}
    gpus = [gpu("g0", owners=(work,)), gpu("g1", owners=(work,)), *(gpu(f"idle{i}") for i in range(200))]
    laid = fleet(Placement(node("n1", *gpus), ("a",)), pods=pods)
    again = fleet(Placement(node("n1", *reversed(gpus)), ("b",)), pods=pods)
    assert laid.slot[0] == laid.slot[1]
    assert laid.slot.tolist() == again.slot.tolist()[::-1]
    assert 0.0 <= laid.slot.min() < 0.05 and 0.95 < laid.slot.max() < 1.0
    assert 0.4 < laid.slot.mean() < 0.6, "spread over the whole period"


# --------------------------------------------------------------------------------------------------------------- survey


def test_a_survey_counts_who_is_stale_unmeasured_and_unadopted() -> None:
    stale = node("n1", gpu("g0"))
    stale.sample_s = NOW_S - 60.0
    bare = node("n2")
    bare.sample_s = float("-inf")
    found = survey(Placement(stale, ("a",)), Placement(bare, ("a",)), Placement(node("n3", gpu("g2"), sample_w=120.0), ("b",)))
    assert (found["a"].stale_agents, found["a"].unmeasured, found["a"].unadopted, found["a"].nodes) == (1, 2, 1, 2)
    assert (found["row"].stale_agents, found["row"].unmeasured, found["row"].unadopted, found["row"].nodes) == (1, 2, 1, 3)
    assert (found["a"].silent, found["b"].silent) == (("n1",), ()), "named where they stand"
    assert found["b"].modelled_w == 120.0 + 60.0
    assert found["a"].modelled_w == pytest.approx(1.1 * 300.0 + 50.0 + 3000.0 + 10.0), "of who is stale, the charge"


def test_a_gpu_whose_draw_cannot_be_read_does_not_draw_nothing() -> None:
    """Its neighbours' sum is fresh: of it, as of a stale agent, the charge counts."""
    placed = node("n1", gpu("g0", 500), gpu("g1"), sample_w=120.0)
    placed.see_sample(120.0, NOW_S, gpus=1)
    found = survey(Placement(placed, ("b",)))["b"]
    assert found.modelled_w == 120.0 + 500.0 + 60.0
    assert found.drawn_w == 120.0, "what surely flows through a meter is what was read"
    placed.see_sample(120.0, NOW_S, gpus=2)
    assert survey(Placement(placed, ("b",)))["b"].modelled_w == 120.0 + 60.0


def adopted(account: NodeAccount, *, open_for_s: float = 0.0, mode: Mode = Mode.STRICT) -> bool:
    budgets = {**BUDGETS, "row": replace(BUDGETS["row"], mode=mode)}
    return survey(Placement(account, ("a",)), budgets=budgets, open_for_s=open_for_s)["a"].unadopted == 0


def test_charge_and_model_count_a_node_by_the_same_losses() -> None:
    """A leaf that lost its selector counts its nodes by what their specs kept, in both sums: a gap would be taken for watts
    that nobody declared."""
    no_leaf = {**BUDGETS, "a": replace(BUDGETS["a"], selector=None, overhead_percent=0)}
    at_its_cap = Placement(node("n1", gpu("g0", 300), sample_w=300.0), ("a",), rates=Rates(overhead_percent=10, non_gpu_w=50))
    seen = survey(at_its_cap, budgets=no_leaf)["a"]
    assert seen.modelled_w == pytest.approx(seen.charged_w) == pytest.approx(10 + 330 + 50)


def test_a_node_is_adopted_once_every_gpu_acknowledged_its_newest_grant_and_settled() -> None:
    assert adopted(node("n1", gpu("g0"), gpu("g1")))
    assert not adopted(node("n1", gpu("g0"), gpu("g1", acked=4)))
    assert not adopted(node("n1", gpu("g0"), gpu("g1", row=None)))
    assert not adopted(node("n1", gpu("g0", settling=[(NOW_S + 1.0, 600)])))
    unstamped = node("n1", gpu("g0"))
    unstamped.stamped = False
    assert not adopted(unstamped)


def test_or_found_incapable_and_charged_its_default() -> None:
    assert adopted(node("n1", gpu("g0", 700, acked=0, health=Health.NOT_SUPPORTED)))
    assert not adopted(node("n1", gpu("g0", 600, acked=0, health=Health.NOT_SUPPORTED)))
    assert adopted(node("n1", gpu("g0", 600, health=Health.LOST))), "what it acknowledged still holds"
    dead = node("n1", gpu("g0", 700, acked=0))
    assert not adopted(dead)
    dead.sample_s = NOW_S - 1000.0
    assert adopted(dead)


def test_a_bare_node_keeps_a_new_budget_waiting_for_a_while_only() -> None:
    assert not adopted(node("n1"), open_for_s=UNMANAGED_AFTER_S)
    assert adopted(node("n1"), open_for_s=UNMANAGED_AFTER_S + 0.1)


def test_who_only_observes_adopts_whoever_is_stamped() -> None:
    assert adopted(node("n1", gpu("g0", 700, row=None, acked=0)), mode=Mode.OBSERVE)
    gone = node("n1", gpu("g0", 700, row=None, acked=0))
    gone.stamped = gone.present = False
    assert adopted(gone, mode=Mode.OBSERVE)


# --------------------------------------------------------------------------------------------------------------- raises


def test_reserve_and_undeclared_watts_are_withheld_once() -> None:
    seen = moment()
    row, a, b = seen.books
    assert raises.withheld_w(seen).tolist() == [70.0, 0.0, 30.0]
    a.correction, b.correction = Correction(power_w=40.0), Correction(power_w=25.0)
    assert raises.withheld_w(seen).tolist() == [70.0 + 65.0, 40.0, 30.0 + 25.0]
    row.correction = Correction(power_w=90.0)
    assert raises.withheld_w(seen).tolist() == [70.0 + 90.0, 40.0, 30.0 + 25.0]


def test_safe_caps_are_summed_with_all_else_that_is_charged() -> None:
    placed = Placement(node("n1", gpu("g0"), gpu("g1")), ("a",))
    aim_w = np.full(3, 900.0)
    assert raises.safe_sums_over(moment(placed), aim_w) == {}
    budgets = {**BUDGETS, "row": replace(BUDGETS["row"], safe_cap_w=400)}
    over = raises.safe_sums_over(moment(placed, budgets=budgets), aim_w)
    assert over == pytest.approx({"row": 880.0 + 160.0 - 900.0, "a": 880.0 + 60.0 - 900.0})


def test_a_tree_without_safe_caps_is_held_to_none_beside_one_that_has_them() -> None:
    budgets = {
        "a": replace(BUDGETS["a"], parent=None, safe_cap_w=400),
        "b": replace(BUDGETS["b"], parent=None),
    }
    placed = (Placement(node("n1", gpu("g0")), ("a",)), Placement(node("n2", gpu("g1")), ("b",)))
    over = raises.safe_sums_over(moment(*placed, budgets=budgets), np.zeros(2))
    assert over == pytest.approx({"a": 1.1 * 400.0 + 50.0 + 10.0})


def test_a_moving_node_is_watched_for_the_budgets_it_leaves() -> None:
    seen = moment(Placement(node("n1", gpu("g0")), ("b", "a")), Placement(node("n2", gpu("g1")), ("b",)))
    for over, names in (("a", {"n1"}), ("b", set()), ("row", {"n1"})):
        left_w = np.array([-1.0 if name == over else 100.0 for name in TREE.order])
        assert raises.over_elsewhere(seen, left_w) == names
