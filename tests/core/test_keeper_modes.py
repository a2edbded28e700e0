"""Modes of a tree, budgets that come and go, and how a budget adopts its nodes."""

from __future__ import annotations

from splitwatt_core.columns import Posture
from splitwatt_core.protocol.contract import Health, Mode
from support.keepers import condition, settled
from support.scenes import ready
from support.some import some
from support.world import DEFAULT_W, ROOT, Line, World

# --------------------------------------------------------------------------------------------------------------- modes


def test_observe_decides_and_reports_but_grants_nothing() -> None:
    world = World(limit_w=900)
    world.lines[ROOT].mode = Mode.OBSERVE
    world.tell_budgets()
    operator = settled(world)
    assert world.true_sum_w() == 2 * DEFAULT_W
    specs = some(obj.spec for obj in world.store.objects.values() if obj.spec)
    assert all(not spec.gpus and spec.mode is Mode.OBSERVE for spec in specs)
    report = operator.last.budgets[ROOT]
    assert report.charge_w == 2 * DEFAULT_W
    assert all(operator.last.budgets[rack].reasons for rack in ("a", "b"))
    assert condition(operator, ROOT, "WithinBudget").reason == "ChargedAboveLimit"


def test_observe_takes_back_nothing_that_strict_granted() -> None:
    world, operator, *_, a, b = ready(a=450, b=450)
    world.lines[ROOT].mode = Mode.OBSERVE
    world.set_limit(900, a=300, b=300)
    operator.settle(6)
    assert (a.true_w, b.true_w) == (450, 450)
    world.lines[ROOT].mode = Mode.STRICT
    world.tell_budgets()
    operator.settle(6)
    assert (a.true_w, b.true_w) == (300, 300)


def test_a_leaf_that_is_applied_before_its_observing_root_caps_nobody() -> None:
    world = World(limit_w=900)
    world.lines[ROOT].exists, world.lines[ROOT].mode = False, Mode.OBSERVE
    world.set_limit(900, a=400, b=400)
    operator = settled(world, 4)
    assert condition(operator, "a", "Ready").reason == "InvalidTree"
    world.lines[ROOT].exists = True
    world.tell_budgets()
    operator.settle(4)
    assert world.true_sum_w() == 2 * DEFAULT_W


def test_a_leaf_whose_root_is_deleted_keeps_its_own_limit() -> None:
    world, operator, *_, a, b = ready(a=450, b=450)
    world.lines[ROOT].exists = False
    world.set_limit(900, a=300, b=700)
    operator.settle(6)
    assert (a.true_w, b.true_w) == (300, 450), "lowered, and nothing is raised below a budget whose place is wrong"
    assert "which does not exist" in condition(operator, "b", "Ready").message


def test_a_deleted_and_recreated_budget_takes_over_where_it_stood() -> None:
    world, operator, *_ = ready()
    line = world.lines["a"]
    line.exists = False
    world.tell_budgets()
    operator.settle(2)
    assert "a" not in operator.last.budgets
    line.exists, line.birth = True, 2
    world.set_limit(900, a=300)
    operator.step()
    report = operator.last.budgets["a"]
    assert (report.posture, report.limit.in_force_w) == (Posture.NORMAL, 900), "lower than before: with a grace, as any limit"
    operator.settle(12)
    report = operator.last.budgets["a"]
    assert (report.posture, report.limit.in_force_w) == (Posture.NORMAL, 300) and report.charge_w <= 300


def test_a_parent_without_nodes_waits_for_some() -> None:
    world, operator, *_ = ready()
    world.lines["hall"] = Line(None, 5000)
    world.tell_budgets()
    operator.settle(3)
    report = operator.last.budgets["hall"]
    assert (report.posture, report.nodes, report.gpus, report.charge_w) == (Posture.ADOPTING, 0, 0, 0.0)
    assert report.measured_w is not None, "its meter is believed all the same"


# ------------------------------------------------------------------------------------------------------------ adoption


def test_a_lost_gpu_under_an_acknowledged_cap_does_not_keep_a_budget_in_adoption() -> None:
    world, operator, agent, *_ = ready(a=450, b=450)
    account = operator.keeper.roster.nodes["a0"].gpus["a0-g0"]
    account.health = Health.LOST
    agent.crash()
    world.lines["a"].exists = False
    world.tell_budgets()
    world.lines["a"].exists, world.lines["a"].birth = True, 2
    world.tell_budgets()
    operator.settle(2)
    assert operator.last.budgets["a"].posture is Posture.NORMAL


def test_a_node_with_a_dead_agent_is_adopted_at_its_default() -> None:
    world = World(limit_w=1500)
    operator = settled(world, 3)
    world.agents["a0"].crash()
    world.store.delete("a0")
    operator.settle(2)
    for name in ("a", ROOT):
        world.lines[name].exists = False
    world.tell_budgets()
    for name in ("a", ROOT):
        world.lines[name].exists, world.lines[name].birth = True, 2
    world.tell_budgets()
    operator.settle(3)
    assert operator.last.budgets[ROOT].posture is Posture.ADOPTING, "it may still answer"
    for _ in range(100):
        world.now_s += 2.0
        operator.settle(1)
    assert operator.charge_w("a0", "a0-g0") == DEFAULT_W
    assert operator.last.budgets[ROOT].posture is Posture.NORMAL
    assert operator.last.budgets[ROOT].adoption_s is not None


def test_a_node_without_an_agent_is_adopted_at_its_flat_rate_after_a_while() -> None:
    world = World(limit_w=2000)
    world.add_node("bare", "b", managed=False)
    operator = settled(world, 10)
    assert operator.last.budgets["b"].posture is Posture.ADOPTING
    assert operator.last.budgets["a"].posture is Posture.NORMAL
    operator.settle(60)
    assert operator.last.budgets["b"].posture is Posture.NORMAL
    assert operator.last.budgets["b"].charge_w >= world.flat_w(world.lines["b"])
    assert world.nodes["a0"].true_w + world.nodes["b0"].true_w <= 2000 - world.flat_w(world.lines["b"])
