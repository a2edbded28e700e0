"""What was heard and taken away again before the next look still counts, and what one way lost another one keeps (R31-R34)."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support.scenes import ready
from support.world import DEFAULT_W, ROOT, World


def told() -> World:
    """An operator has heard of everything, and not looked yet."""
    world = World(limit_w=2000)
    world.elect()
    return world


def test_a_leaf_that_goes_before_the_first_look_takes_no_node_with_it() -> None:
    world = told()
    world.lines["a"].exists = False
    world.tell_budgets()
    world.active.step()
    assert world.active.last.budgets[ROOT].charge_w >= 2 * DEFAULT_W


def test_a_parent_that_changes_before_the_first_look_lets_nothing_go() -> None:
    world = told()
    world.lines["a"].parent = None
    world.tell_budgets()
    world.active.step()
    assert world.active.last.budgets[ROOT].charge_w >= 2 * DEFAULT_W


def test_a_label_that_goes_before_the_first_look_takes_no_node_with_it() -> None:
    world = told()
    world.labels["a0"] = None
    world.tell_nodes()
    world.active.step()
    assert world.active.last.budgets[ROOT].charge_w >= 2 * DEFAULT_W


def test_an_object_that_goes_before_the_first_look_leaves_the_node_where_it_counted() -> None:
    world, *_ = ready(a=450, b=900)
    world.agents["a0"].crash()
    world.labels["a0"] = "b"
    successor = world.elect()
    world.store.delete("a0")
    successor.watch()
    successor.step()
    assert successor.last.budgets["a"].charge_w >= 450


def test_a_shared_budget_counts_a_node_at_the_most_that_any_leaf_of_it_declares() -> None:
    """A backup names another leaf than the one that the node counted in last, and no label says which is right."""
    world = World(limit_w=2000)
    world.lines["a"].overhead_percent = 20
    world.tell_budgets()
    operator = world.elect()
    operator.settle(6)
    world.labels["a0"] = None
    world.tell_nodes()
    operator.settle(2)
    old = world.store.objects["a0"]
    assert old.spec is not None
    world.store.delete("a0")
    world.store.create("a0", spec=replace(old.spec, budgets=("b", ROOT)), status=old.status)
    operator.watch()
    operator.step()
    charge_w = {name: operator.charge_w(name, f"{name}-g0") or 0 for name in ("a0", "b0")}
    assert operator.last.budgets[ROOT].charge_w >= 1.2 * charge_w["a0"] + charge_w["b0"] - 1e-6


def test_what_a_node_leaves_it_leaves_on_when_its_node_and_its_object_go_meanwhile() -> None:
    world, *_ = ready(a=450, b=900)
    world.agents["a0"].crash()
    world.move("a0", "b")
    world.tell_nodes()
    world.active.settle(4)
    spec = world.store.objects["a0"].spec
    assert spec is not None and spec.leaving == ("a",)
    world.nodes["a0"].present = False
    operator = world.elect()
    operator.step()
    world.store.delete("a0")
    operator.step()
    world.nodes["a0"].present = True
    world.tell_nodes()
    world.agents["a0"].start()
    operator.settle(12)
    assert operator.last.budgets["a"].charge_w == 0


@pytest.mark.parametrize("undone", [False, True])
def test_a_leaf_that_claims_a_node_and_loses_its_parent_takes_nothing_from_the_row(undone: bool) -> None:
    """Another leaf of the row selects the node (undone: and no more), and names no parent before any spec could follow."""
    world, operator, *_ = ready(a=450, b=900)
    world.lines["a"].rack, world.lines["b"].rack = "b", "a"
    world.tell_budgets()
    operator.step()
    while operator.sent:  # no write of these lands
        operator.time_out()
        operator.sent.pop(0)
    if undone:
        world.lines["a"].rack = world.lines["b"].rack = ""
    world.lines["a" if undone else "b"].parent = None
    world.tell_budgets()
    operator.settle(20)
    granted_w = sum(operator.charge_w(name, f"{name}-g0") or 0 for name in world.nodes)
    assert operator.last.budgets[ROOT].charge_w >= granted_w
