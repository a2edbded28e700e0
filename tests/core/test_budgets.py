"""Selectors, the budget tree and its faults, and limits that change."""

from __future__ import annotations

import pytest
from splitwatt_core.budget.tree import (
    MAX_DEPTH,
    MAX_PENDING_LIMITS,
    BudgetSpec,
    LimitState,
    Requirement,
    Selector,
    build_tree,
    new_limit,
)

GRACE_S = 5.0


def budget(name: str, parent: str | None = None, *, leaf: bool = False) -> BudgetSpec:
    return BudgetSpec(name, name, 1, 1000, parent=parent, selector=Selector({"rack": name}) if leaf else None)


def tree(*budgets: BudgetSpec):
    return build_tree({b.name: b for b in budgets})


# ----------------------------------------------------------------------------------------------------------- selectors


@pytest.mark.parametrize(
    ("requirement", "labels", "matches"),
    [
        (Requirement("rack", "In", ("a", "b")), {"rack": "b"}, True),
        (Requirement("rack", "In", ("a", "b")), {"rack": "c"}, False),
        (Requirement("rack", "In", ("a",)), {}, False),
        (Requirement("rack", "NotIn", ("a",)), {"rack": "b"}, True),
        (Requirement("rack", "NotIn", ("a",)), {}, True),
        (Requirement("rack", "NotIn", ("a",)), {"rack": "a"}, False),
        (Requirement("gpu", "Exists"), {"gpu": ""}, True),
        (Requirement("gpu", "Exists"), {}, False),
        (Requirement("gpu", "DoesNotExist"), {}, True),
        (Requirement("gpu", "DoesNotExist"), {"gpu": "x"}, False),
    ],
)
def test_requirements_match_as_in_kubernetes(requirement: Requirement, labels: dict[str, str], matches: bool) -> None:
    assert Selector({}, (requirement,)).matches(labels) is matches


def test_an_unknown_operator_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="must be In, NotIn, Exists or DoesNotExist, not 'Near'"):
        Requirement("rack", "Near").matches({})


def test_the_empty_selector_takes_every_node_and_all_parts_must_hold() -> None:
    assert Selector().matches({"any": "thing"})
    both = Selector({"pool": "x"}, (Requirement("rack", "Exists"),))
    assert both.matches({"pool": "x", "rack": "a"})
    assert not both.matches({"pool": "x"}) and not both.matches({"rack": "a"})


# ------------------------------------------------------------------------------------------------------------ the tree


def test_parents_stand_before_their_children_and_chains_go_up() -> None:
    t = tree(budget("a", "row", leaf=True), budget("b", "row", leaf=True), budget("row", "site"), budget("site"))
    assert t.order == ("site", "row", "a", "b")
    assert t.chain("a") == ("a", "row", "site")
    assert dict(t.root) == dict.fromkeys(t.order, "site")
    assert t.fault == {}


def test_a_missing_parent_is_named_and_its_child_stands_alone() -> None:
    t = tree(budget("a", "rwo", leaf=True))
    assert t.fault == {"a": "spec.parent names PowerBudget 'rwo', which does not exist: create it or name another"}
    assert t.root["a"] == "a"


def test_a_parent_that_selects_nodes_is_refused_as_a_parent() -> None:
    t = tree(budget("a", "b", leaf=True), budget("b", leaf=True))
    assert t.fault == {"a": "spec.parent names 'b', which selects nodes itself: remove spec.nodeSelector from it or name another"}


def test_a_cycle_is_spelled_out_to_each_of_its_members_and_to_nobody_else() -> None:
    t = tree(budget("x", "y"), budget("y", "z"), budget("z", "x"), budget("leaf", "x", leaf=True))
    assert sorted(t.fault) == ["x", "y", "z"]
    assert t.fault["x"] == "spec.parent closes a cycle (x -> y -> z -> x): remove spec.parent from one of them"
    assert t.root["leaf"] == "x"
    assert sorted(t.order) == ["leaf", "x", "y", "z"]


def test_a_budget_above_itself_is_a_cycle() -> None:
    assert "(x -> x)" in tree(budget("x", "x")).fault["x"]


@pytest.mark.parametrize("length", [MAX_DEPTH, MAX_DEPTH + 1, 3 * MAX_DEPTH])
def test_a_cycle_of_any_length_leaves_every_budget_a_place(length: int) -> None:
    ring = [budget(f"b{i}", f"b{(i + 1) % length}") for i in range(length)]
    t = tree(*ring)
    assert sorted(t.order) == sorted(b.name for b in ring)
    assert all(t.root[name] in t.order for name in t.order)
    assert sorted(t.fault) == sorted(t.order)


def test_a_tree_may_be_as_deep_as_said_and_no_deeper() -> None:
    chain = [budget("b0"), *(budget(f"b{i}", f"b{i - 1}") for i in range(1, MAX_DEPTH + 1))]
    t = tree(*chain)
    assert t.fault == {
        f"b{MAX_DEPTH}": f"spec.parent puts it more than {MAX_DEPTH} levels deep: name a budget higher up, or remove it"
    }
    assert len(t.chain(f"b{MAX_DEPTH - 1}")) == MAX_DEPTH


# ---------------------------------------------------------------------------------------------------------- the limit


def test_a_raised_limit_is_in_force_at_once() -> None:
    state = new_limit(1000, 0.0).observe(1500, 10.0, GRACE_S)
    assert (state.in_force_w, state.aim_w, state.since_s, state.pending) == (1500, 1500, 10.0, ())


def test_a_lowered_limit_is_aimed_at_at_once_and_judged_after_its_grace() -> None:
    state = new_limit(1000, 0.0).observe(600, 10.0, GRACE_S)
    assert (state.in_force_w, state.aim_w) == (1000, 600)
    assert state.at(14.9).in_force_w == 1000
    assert (state.at(15.0).in_force_w, state.at(15.0).since_s) == (600, 15.0)


def test_seeing_the_same_limit_again_does_not_begin_the_grace_anew() -> None:
    state = new_limit(1000, 0.0).observe(600, 10.0, GRACE_S)
    assert state.observe(600, 13.0, GRACE_S) == state
    assert state.observe(600, 15.0, GRACE_S).in_force_w == 600


def test_a_limit_lowered_step_by_step_comes_into_force_step_by_step() -> None:
    state = new_limit(1000, 0.0).observe(800, 10.0, GRACE_S).observe(600, 12.0, GRACE_S)
    assert [state.at(t).in_force_w for t in (14.0, 15.0, 16.9, 17.0)] == [1000, 800, 800, 600]


def test_a_limit_raised_part_of_the_way_keeps_the_earlier_date() -> None:
    state = new_limit(1000, 0.0).observe(600, 10.0, GRACE_S).observe(800, 13.0, GRACE_S)
    assert [state.at(t).in_force_w for t in (14.9, 15.0, 99.0)] == [1000, 800, 800]


def test_a_limit_raised_above_what_is_in_force_forgets_what_was_pending() -> None:
    state = new_limit(1000, 0.0).observe(600, 10.0, GRACE_S).observe(1000, 12.0, GRACE_S)
    assert state.at(99.0).in_force_w == 1000 and state.pending == ()


def test_pending_limits_have_a_bound() -> None:
    state = new_limit(1000, 0.0)
    for step in range(3 * MAX_PENDING_LIMITS):
        state = state.observe(900 - step, step * 0.1, 60.0)
    assert len(state.pending) == MAX_PENDING_LIMITS
    assert state.at(200.0).in_force_w == 900 - 3 * MAX_PENDING_LIMITS + 1


def test_a_limit_kept_by_a_predecessor_goes_on() -> None:
    kept = LimitState(spec_w=600, in_force_w=1000, since_s=0.0, pending=((600, 15.0),))
    assert kept.observe(600, 12.0, GRACE_S).pending == ((600, 15.0),)
    assert kept.observe(600, 20.0, GRACE_S).in_force_w == 600


def test_losses_are_watts_at_the_meter_per_gpu_watt() -> None:
    assert BudgetSpec("a", "a", 1, 1000, overhead_percent=4).loss_factor == pytest.approx(1.04)
