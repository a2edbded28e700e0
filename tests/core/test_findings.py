"""What budgets say of what is not as it should be: gone, claimed by nobody, without an agent, late, in the way."""

from __future__ import annotations

from dataclasses import replace

import pytest
from splitwatt_core.budget.facts import NodeFact, Note
from splitwatt_core.budget.keeper import Keeper
from splitwatt_core.budget.raises import MAX_UNCLAIMED
from splitwatt_core.budget.survey import UNMANAGED_AFTER_S
from splitwatt_core.budget.tree import BudgetSpec, Selector
from splitwatt_core.policies.shipped import POLICIES
from splitwatt_core.protocol.contract import NodePower, Spec
from support.keepers import condition, settled
from support.scenes import ready
from support.world import ROOT, Operator, World


def said(operator: Operator, budget: str, kind: str) -> tuple[bool | None, str]:
    found = condition(operator, budget, kind)
    return found.status, found.reason


def test_a_budget_above_names_what_is_gone_its_nodes_watts_and_the_ways_out() -> None:
    world, operator, *_ = ready(a=450, b=450)
    world.lines["a"].exists = False
    world.tell_budgets()
    operator.settle(2)
    assert said(operator, ROOT, "Ready") == (False, "LeafGone")
    text = condition(operator, ROOT, "Ready").message
    for word in ("PowerBudget a is gone", "450 W", "1 node: a0", "apply it again", "another leaf", "splitwatt.io/release=a"):
        assert word in text
    report = operator.last.budgets[ROOT]
    assert [(row.name, row.nodes, row.charge_w) for row in report.gone] == [("a", ("a0",), 450.0)]
    world.set_limit(700)
    operator.step()
    assert said(operator, ROOT, "WithinBudget") == (True, "Within"), "the grace"
    world.lines["a"].exists = True
    world.tell_budgets()
    operator.settle(12)
    assert said(operator, ROOT, "Ready") == (True, "Holding")


def test_within_budget_is_false_above_a_tombstone_that_draws_too_much() -> None:
    world, operator, agent, *_ = ready(a=600, b=300)
    agent.alive = False
    world.lines["a"].exists = False
    world.set_limit(700, a=600, b=300)
    for _ in range(12):
        world.now_s += 0.6
        operator.step()
        while operator.sent:
            operator.arrive()
        world.agents["b0"].run()
        operator.watch()
    assert said(operator, ROOT, "WithinBudget") == (False, "ChargedAboveLimit")


def test_a_budget_names_the_nodes_that_it_counts_off_their_way_and_what_would_end_it() -> None:
    world, operator, *_ = ready(a=450, b=450)
    world.lines["a"].parent = None
    world.tell_budgets()
    operator.settle(4)
    assert said(operator, ROOT, "Ready") == (True, "NodesBeside")
    text = condition(operator, ROOT, "Ready").message
    for word in ("1 node still counted here with 450 W", "a0", "put spec.parent of that leaf back", "name another"):
        assert word in text
    assert said(operator, "a", "Ready") == (True, "Holding")
    world.lines["a"].parent = ROOT
    world.tell_budgets()
    operator.settle(4)
    assert said(operator, ROOT, "Ready") == (True, "Holding")


def test_a_leaf_names_a_node_whose_label_was_taken_away_once_as_an_event() -> None:
    world, operator, *_ = ready(a=450, b=450)
    world.labels["a0"] = None
    world.tell_nodes()
    notes = operator.step().notes
    assert said(operator, "a", "Ready") == (False, "NodesUnclaimed")
    text = condition(operator, "a", "Ready").message
    assert "a0" in text and "450 W" in text and "label them again" in text and "splitwatt.io/release=a" in text
    assert [(n.kind, n.name, n.warning) for n in notes if n.reason == "NodesUnclaimed"] == [("PowerBudget", "a", True)]
    assert not [n for n in operator.step().notes if n.reason == "NodesUnclaimed"]
    assert operator.last.budgets["a"].unclaimed == ("a0",)


def ghost(world: World, operator: Operator, name: str) -> None:
    world.agents[name].crash()
    world.nodes[name].present = world.nodes[name].powered = False
    world.tell_nodes()
    operator.settle(2)


def test_nodes_that_are_gone_are_named_with_their_watts_and_the_way_out() -> None:
    for restart in (False, True):
        world = World(nodes_per_rack=2, limit_w=2000)
        operator = settled(world)
        ghost(world, operator, "a1")
        operator = settled(world) if restart else operator
        (status, reason), text = said(operator, "a", "Ready"), condition(operator, "a", "Ready").message
        assert status and (reason == "NodesGone" or restart)
        assert "1 node is gone and still charged" in text and "a1" in text and "splitwatt.io/release=a" in text
        assert "gone" not in condition(operator, "b", "Ready").message
        assert operator.last.budgets["a"].unclaimed == ("a1",)


def test_a_released_node_power_is_deleted_only_when_its_node_is_gone() -> None:
    world, operator, *_ = ready(a=450, b=450)
    world.reads_late = True
    world.store.annotate("a0", release=frozenset({"a"}))
    operator.watch()
    assert operator.step().release == (), "the node is there"
    world.store.annotate("a0", release=frozenset({"b"}))
    ghost(world, operator, "a0")
    world.now_s += 5.0
    assert operator.step().release == (), "by name"
    world.store.annotate("a0", release=frozenset({"a"}))
    operator.watch()
    world.now_s += 5.0
    assert [seen.name for seen in operator.step().release] == ["a0"]
    assert operator.step().release == (), "at a measured pace"
    assert operator.last.budgets["a"].charge_w >= 450, "until fresh reads find neither Node nor NodePower"
    world.reads_late = False
    operator.settle(12)
    assert operator.last.budgets["a"].charge_w == 0


def test_a_ghost_at_its_default_does_not_hold_raises_back_where_there_is_no_meter() -> None:
    world = World(nodes_per_rack=2, limit_w=4000)
    for line in world.lines.values():
        line.metered = False
    world.set_limit(1400, a=1400, b=1400)
    operator = settled(world)
    ghost(world, operator, "a1")
    world.set_limit(4000)
    for _ in range(40):
        world.now_s += 4.0
        operator.settle(1)
    assert operator.charge_w("a1", "a1-g0") == 700
    assert world.nodes["a0"].gpus["a0-g0"].true_w == 700, condition(operator, "a", "Ready").message


def fleet_without_agents(gpus: int) -> Keeper:
    keeper = Keeper(term=1, policies=POLICIES)
    keeper.on_budget(BudgetSpec("row", "u", 1, 50_000), 0.0)
    rack = BudgetSpec("rack", "u", 1, 26_000, parent="row", selector=Selector({"rack": "a"}), unmanaged_w_per_node=0)
    keeper.on_budget(rack, 0.0)
    for k in range(4):
        keeper.on_node(NodeFact(f"n{k}", {"rack": "a"}, "boot", gpus=gpus), 0.0)
        keeper.on_node_power(NodePower(f"n{k}", f"u{k}", k + 1, Spec(1, f"u{k}", budgets=("rack", "row"))), 0.0)
    return keeper


@pytest.mark.parametrize("gpus", [0, 8])
def test_a_rack_whose_nodes_never_got_an_agent_does_not_say_that_it_holds(gpus: int) -> None:
    keeper = fleet_without_agents(gpus)
    notes: list[Note] = []
    for second in range(int(UNMANAGED_AFTER_S) + 5):
        plan = keeper.step(float(second))
        notes.extend(plan.notes)
    for name in ("rack", "row"):
        found = {c.type: c for c in plan.budgets[name].conditions}
        assert (found["CapsEnforced"].status, found["CapsEnforced"].reason) == (False, "NoAgent")
        assert found["CapsEnforced"].message.startswith("4 of 4 nodes have no agent: n0, n1, n2 and 1 more: ")
        assert all(cause in found["CapsEnforced"].message for cause in ("selects", "taints", "quota", "Pod Security", "driver"))
        assert (found["Ready"].status, found["Ready"].reason) == (False, "NoAgent")
    assert next(n.reason for n in notes if n.name == "rack") == "Adopted"
    assert not [n for n in notes if "acknowledged" in n.message]


def test_one_node_that_offers_gpus_without_an_agent_is_named_and_one_without_gpus_is_counted() -> None:
    for gpus, enforced in ((8, (False, "NoAgent")), (0, (True, "ReadBack"))):
        world, operator, *_ = ready()
        operator.keeper.on_node(NodeFact("other", {"rack": "a"}, "boot", gpus=gpus), world.now_s)
        operator.settle(1)
        assert said(operator, "a", "CapsEnforced") == enforced == said(operator, ROOT, "CapsEnforced")
        assert "other" in condition(operator, "a", "CapsEnforced").message
        assert condition(operator, "a", "Ready").reason != "NoAgent"


def test_late_acknowledgements_are_told_and_their_charges_are_not_taken_for_minimum_caps() -> None:
    world, operator, agent, *_ = ready(a=600, b=300)
    world.set_limit(500)
    for _ in range(20):
        world.now_s += 0.5
        operator.watch()
        operator.step()
        while operator.sent:
            operator.arrive()
        world.agents["b0"].run()
    assert said(operator, ROOT, "WithinBudget") == (False, "ChargedAboveLimit")
    feasible = condition(operator, ROOT, "Feasible")
    assert (feasible.status, feasible.reason) == (True, "ChargesInTheWay"), "two minimum caps need 400 W of 500 W"
    assert "charges of 1 GPU" in feasible.message and "a0/a0-g0" in feasible.message
    assert operator.last.budgets[ROOT].short_w == 0.0
    assert said(operator, "a", "CapsEnforced") == (False, "AcknowledgementsLate")
    assert "a0/a0-g0" in condition(operator, "a", "CapsEnforced").message
    for budget in (ROOT, "a"):
        assert "is kept" not in condition(operator, budget, "Ready").message, budget
    assert not agent.hung


def test_ready_does_not_say_that_a_limit_is_kept_that_is_not() -> None:
    world, operator, *_ = ready(a=450, b=450)
    world.undeclared_w = 300
    operator.settle(2)
    assert condition(operator, ROOT, "WithinBudget").status is False
    assert "kept" not in condition(operator, ROOT, "Ready").message


def test_more_nodes_than_a_status_can_name_hold_raises_back() -> None:
    world, operator, *_ = ready(a=450, b=450)
    spec = world.store.objects["a0"].spec
    assert spec is not None
    for k in range(MAX_UNCLAIMED + 1):
        seen = NodePower(f"lost{k}", f"l{k}", k + 1, replace(spec, for_uid=f"l{k}", gpus=()))
        operator.keeper.on_node_power(seen, world.now_s)
    operator.step()
    assert f"{MAX_UNCLAIMED + 1} nodes count here" in condition(operator, "a", "Ready").message
    assert len(operator.last.budgets["a"].unclaimed) > MAX_UNCLAIMED
