"""`Feasible=False` is said of what is declared, and of nothing that passes."""

from __future__ import annotations

import pytest
from splitwatt_core.budget.meters.posture import CORRECTION_HOLD_S
from splitwatt_core.budget.tree import BudgetSpec
from splitwatt_core.conditions import Condition
from support.keepers import condition
from support.scenes import ready, send_all
from support.world import MIN_W, ROOT, Operator, World


def play(world: World, operator: Operator, seconds: float) -> list[tuple[str, Condition]]:
    """Everything that was said of `Feasible` meanwhile."""
    said = []
    for _ in range(int(seconds / 0.5)):
        world.now_s += 0.5
        operator.settle(1)
        said += [(name, condition(operator, name, "Feasible")) for name in operator.last.budgets]
    return said


def test_what_a_meter_shows_beyond_the_declared_makes_no_limit_too_low() -> None:
    world, operator, *_ = ready(a=450, b=450)
    world.undeclared_w = 100
    play(world, operator, 10)
    world.set_limit(900, a=290, b=290)
    play(world, operator, 3)
    said = condition(operator, "a", "Feasible")
    shown_w = operator.keeper.books["a"].correction.power_w
    assert (said.status, said.reason) == (True, "UndeclaredInTheWay")
    assert f"meters show {shown_w:.0f} W more, which leaves them {MIN_W + shown_w - 290:.0f} W too few" in said.message
    assert operator.last.budgets["a"].short_w == 0.0
    world.set_limit(900, a=190, b=290)
    play(world, operator, 3)
    said = condition(operator, "a", "Feasible")
    assert (said.status, said.reason, operator.last.budgets["a"].short_w) == (False, "MinimumCapsAboveLimit", 10.0)


def test_a_label_that_was_wrong_for_a_while_leaves_no_false_word_behind() -> None:
    """The wire does not move with the label: meanwhile the meter shows a node that is not counted there."""
    world = World(nodes_per_rack=2, limit_w=2000)
    world.set_limit(2000, a=900, b=900)
    operator = world.elect()
    operator.settle(12)
    world.labels["a1"] = "b"
    world.tell_nodes()
    play(world, operator, 12)
    shown_w = operator.keeper.books["a"].correction.power_w
    assert shown_w > MIN_W
    world.labels["a1"] = "a"
    world.tell_nodes()
    play(world, operator, 4)
    world.set_limit(2000, a=2 * MIN_W + 40, b=900)
    said = play(world, operator, CORRECTION_HOLD_S / 5)
    assert all(found.status for _, found in said), [found.message for _, found in said if not found.status]
    assert operator.keeper.books["a"].correction.power_w == 0.0, "nor is it taken off for long"


def test_watts_that_were_declared_as_asked_for_are_not_taken_off_twice() -> None:
    world, operator, *_ = ready(a=450, b=450)
    world.undeclared_w = 100
    play(world, operator, 10)
    world.lines["a"].non_gpu_w = world.lines["b"].non_gpu_w = 100
    world.undeclared_w = 0  # the world's meters now show them as declared
    world.tell_budgets()
    play(world, operator, 8)
    assert operator.keeper.books["a"].correction.power_w == 0.0
    assert condition(operator, "a", "TelemetryFresh").reason == "Fresh"


@pytest.mark.parametrize("limit_w", [2 * MIN_W, 2 * MIN_W - 50])
def test_a_node_that_still_counts_where_it_leaves_does_so_at_its_lowest_cap(limit_w: int) -> None:
    world = World(nodes_per_rack=2, limit_w=3000)
    operator = world.elect()
    operator.settle(12)
    world.agents["a1"].crash()
    world.labels["a1"] = "b"
    world.tell_nodes()
    operator.settle(2)
    world.set_limit(3000, a=limit_w)
    for _ in range(8):
        world.now_s += 0.5
        operator.watch()
        operator.step()
        send_all(operator)
        world.agents["a0"].run()
    assert operator.last.budgets["a"].charge_w > limit_w + 200, "what it is charged is in the way"
    said = condition(operator, "a", "Feasible")
    assert said.status is (limit_w == 2 * MIN_W), said.message
    assert operator.last.budgets["a"].short_w == 2 * MIN_W - limit_w
    spec: BudgetSpec = operator.keeper.budgets["a"]
    assert condition(operator, ROOT, "Feasible").status and spec.limit_w == limit_w
