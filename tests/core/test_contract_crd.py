"""The NodePower definition is deleted and made again: what went with it is not proven gone (R33, R35)."""

from __future__ import annotations

from dataclasses import replace

from support.keepers import condition
from support.scenes import ready
from support.world import ROOT, Operator, World


def elected() -> tuple[World, Operator]:
    world, *_ = ready(a=450, b=450)
    world.contract_uid = "crd-1"
    operator = world.elect()
    operator.settle(8)
    assert world.noted[ROOT] == "crd-1"
    return world, operator


def crd_made_anew(world: World, *, gone: str | None = None) -> None:
    """All NodePowers go with it. `gone`: a Node that seems to go meanwhile, whose machine draws on."""
    for name in list(world.store.objects):
        world.store.delete(name)
    if gone is not None:
        world.nodes[gone].present = False
    world.contract_uid = "crd-2"


def test_an_operator_that_lives_through_it_forgets_no_node_that_went_with_it() -> None:
    """Scene 50: fresh reads find neither Node nor NodePower."""
    world, operator = elected()
    crd_made_anew(world, gone="a0")
    operator.keeper.on_contract_crd("crd-2")
    world.tell_nodes()
    operator.settle(20)
    report = operator.last.budgets["a"]
    assert report.charge_w >= 450 and report.unclaimed == ("a0",)
    assert operator.last.budgets[ROOT].contract_uid == "crd-1", "a successor would not find it"


def test_an_absence_that_is_read_while_the_definition_goes_proves_nothing() -> None:
    world, operator = elected()
    crd_made_anew(world, gone="a0")
    operator.watch()
    world.tell_nodes()
    for uid in ("", "crd-2"):
        operator.keeper.on_absence_verified("a0", world.now_s, uid)
        assert "a0" in operator.keeper.roster.nodes
    operator.keeper.on_absence_verified("a0", world.now_s, "crd-1")
    assert "a0" not in operator.keeper.roster.nodes


def test_one_that_lives_through_it_with_all_its_nodes_notes_the_new_one_and_goes_on() -> None:
    world, operator = elected()
    crd_made_anew(world)
    operator.keeper.on_contract_crd("crd-2")
    operator.settle(1)
    assert operator.last.budgets[ROOT].contract_uid == "crd-1", "not before it saw them all (scene 53)"
    operator.settle(10)
    assert operator.last.budgets[ROOT].contract_uid == "crd-2"
    world.set_limit(1000)
    operator.settle(8)
    assert world.true_sum_w() > 900


def test_who_starts_under_another_definition_raises_nothing_until_a_person_confirms() -> None:
    """Scene 51, 52: nothing names the node that is missing."""
    world, operator = elected()
    operator.holds_lease = False
    crd_made_anew(world, gone="a0")
    world.set_limit(1300, b=900)
    successor = world.elect()
    successor.settle(20)
    assert world.true_sum_w() <= 900, "it draws on, unseen, and its neighbour got nothing of it"
    said = condition(successor, ROOT, "Ready")
    assert said.reason == "RaisesHeld" and "splitwatt.io/nodes-confirmed=crd-2" in said.message
    assert successor.last.budgets[ROOT].contract_uid == "crd-1"
    world.elect().settle(20)
    assert world.true_sum_w() <= 900, "nor does the next one"
    for uid, raised in (("crd-1", False), ("crd-2", True)):
        confirmed = replace(world.budgets[ROOT], confirmed_uid=uid)
        world.active.keeper.on_budget(confirmed, world.now_s)
        world.active.settle(12)
        assert (world.nodes["b0"].gpus["b0-g0"].true_w > 450) is raised, uid
    assert world.active.last.budgets[ROOT].contract_uid == "crd-2"


def test_who_knows_of_no_definition_keeps_what_a_predecessor_noted() -> None:
    """It started while there was none, or may not read it; the next one starts under another."""
    world, operator = elected()
    operator.holds_lease = False
    crd_made_anew(world, gone="a0")
    world.contract_uid = ""
    world.elect().settle(3)
    world.contract_uid = "crd-2"
    world.set_limit(1300, b=900)
    successor = world.elect()
    successor.settle(20)
    assert successor.last.budgets[ROOT].contract_uid == "crd-1"
    assert world.nodes["b0"].gpus["b0-g0"].true_w <= 450 and condition(successor, ROOT, "Ready").reason == "RaisesHeld"
