"""What was heard and taken away again before the next look still counts, and what one way lost another one keeps (R31-R34)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from splitwatt_core.budget import heard
from splitwatt_core.budget.claims import joined, split_ways
from splitwatt_core.budget.tree import Tree, build_tree
from support.scenes import ready
from support.world import DEFAULT_W, OTHER_ROOT, ROOT, World


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


def turned(*, label: str | None, parent: str | None) -> Callable[[World], None]:
    """What a person changes: the label of a0, the parent of its leaf."""

    def turn(world: World) -> None:
        world.labels = {} if label else {"a0": None}
        line = world.lines["a"]
        line.parent, line.left_out = parent, None if parent else ROOT
        world.tell_budgets()
        world.tell_nodes()

    return turn


def two_rows() -> World:
    world = World(limit_w=900, two_rows=True)
    world.elect().settle(8)
    return world


AWAY = turned(label=None, parent=ROOT)
AWAY_ON_THE_OTHER_ROW = turned(label=None, parent=OTHER_ROOT)
BACK_ON_THE_OTHER_ROW = turned(label="a", parent=OTHER_ROOT)
BACK = turned(label="a", parent=ROOT)


@pytest.mark.parametrize("restarts", [False, True])
@pytest.mark.parametrize("last", [BACK, BACK_ON_THE_OTHER_ROW], ids=["back", "on the other row"])
@pytest.mark.parametrize("returned", [True, False], ids=["parent first", "label first"])
def test_a_parent_that_changes_while_a_label_is_away_counts_no_node_for_ever(
    restarts: bool, last: Callable[[World], None], returned: bool
) -> None:
    """Where its leaf stood meanwhile, and where it stood before, the node counts until a claim for the one is acknowledged."""
    world = two_rows()
    for turn in (AWAY, AWAY_ON_THE_OTHER_ROW, *([AWAY] if returned else []), last):
        turn(world)
        if restarts:
            world.elect()
        world.active.settle(12)
        world.check()
    here, there = (ROOT, OTHER_ROOT) if last is BACK else (OTHER_ROOT, ROOT)
    report = world.active.last.budgets
    charge_w = {name: world.active.charge_w(name, f"{name}-g0") or 0 for name in ("a0", "b0")}
    beside_w = charge_w["b0"] if there == ROOT else 0
    assert report[there].charge_w == beside_w, "nothing of a0 is counted any more where nothing claims it"
    assert report[here].charge_w == charge_w["a0"] + charge_w["b0"] - beside_w
    spec = world.store.objects["a0"].spec
    assert spec is not None and (spec.budgets, spec.leaving) == (("a", here), ())


@pytest.mark.parametrize("restarts", [False, True])
@pytest.mark.parametrize("racks", [("a", "b"), ("b", "a")], ids="->".join)
def test_a_swap_of_selectors_undone_while_a_parent_is_left_out_takes_nothing_from_the_row(
    restarts: bool, racks: tuple[str, str]
) -> None:
    """A spec named the swap; what the first leaf stood below, the node stands below again when that claims it back."""
    first, other = racks
    world = World(limit_w=900, two_rows=True)
    operator = world.elect()
    operator.settle(8)
    world.agents[f"{first}0"].crash()  # so that the swap is written, and not acknowledged
    world.lines["a"].rack, world.lines["b"].rack = "b", "a"
    world.tell_budgets()
    operator.settle(4)
    spec = world.store.objects[f"{first}0"].spec
    assert spec is not None and spec.budgets[0] == other and spec.leaving == (first,)
    world.lines["a"].rack = world.lines["b"].rack = ""
    world.lines[first].parent, world.lines[first].left_out = None, ROOT
    world.tell_budgets()
    world.agents[f"{first}0"].start()
    for _ in range(3):
        if restarts:
            world.elect()
        world.active.settle(12)
        world.check()
    granted_w = sum(world.active.charge_w(name, f"{name}-g0") or 0 for name in world.nodes)
    assert world.active.last.budgets[ROOT].charge_w == granted_w
    spec = world.store.objects[f"{first}0"].spec
    assert spec is not None and spec.budgets == (first, ROOT) and spec.leaving == ()


def test_limits_that_change_grow_no_new_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    world, *_ = ready(a=450, b=900)
    grown: list[Tree] = []

    def grow(*budgets: Any, **options: Any) -> Tree:
        grown.append(build_tree(*budgets, **options))
        return grown[-1]

    monkeypatch.setattr(heard, "build_tree", grow)
    world.set_limit(1000, a=500, b=500)
    world.active.step()
    assert not grown
    world.lines["a"].parent = None
    world.tell_budgets()
    world.active.step()
    assert grown


LEAVES = ("a", "b")
WAYS = st.lists(
    st.tuples(st.sampled_from(LEAVES), st.lists(st.sampled_from(("x", "y", "z")), unique=True, max_size=3)), max_size=4
)


@given(WAYS)
def test_a_spec_tells_which_ways_it_names(drawn: list[tuple[str, list[str]]]) -> None:
    ways = [(leaf, *above) for leaf, above in drawn]
    told = split_ways(joined(ways), LEAVES, {})
    assert set(told) <= set(ways) and told[:1] == tuple(way for way in told if ways and way[: len(ways[0])] == ways[0])[:1]
    assert all(any(other[: len(way)] == way for other in told) for way in ways), "each, or one that goes on from there"
    assert not any(way != other and other[: len(way)] == way for way in told for other in told)


def test_of_more_ways_than_a_spec_can_name_every_budget_stands_once() -> None:
    ways = [(f"leaf-{k}", "row", "hall") for k in range(30)]
    assert joined(ways) == ("leaf-0", "row", "hall", *(f"leaf-{k}" for k in range(1, 30)))
