"""A status that tells of a higher term: somebody's forgery is named and outlived, a restored store's agents are followed."""

from __future__ import annotations

from dataclasses import replace

import pytest
from splitwatt_core.conditions import Condition
from splitwatt_core.protocol.contract import MAX_TERM, SIGN_OF_LIFE_S
from splitwatt_core.protocol.terms import REACH, next_term
from support.keepers import caps, condition, settled
from support.world import ROOT, Operator, World


def tell(world: World, node: str, term: int, *, minute: int = 0) -> None:
    """What stands in the node's status from now on; an agent says the time with it."""
    stored = world.store.objects[node]
    said = (Condition("Ready", False, "LowerTerm", f"Said at minute {minute}."),)
    told = replace(stored.status, observed_term=term, conditions=said)
    assert world.store.write_status(node, stored.uid, stored.resource_version, told) is not None


def look(operator: Operator) -> None:
    operator.watch()
    operator.step()


@pytest.mark.parametrize("ahead", [1, REACH, REACH + 1, MAX_TERM - 1])
def test_a_forged_term_is_named_and_gone_with_the_agents_next_word(ahead: int) -> None:
    world = World()
    operator = settled(world)
    before = caps(world, "a0")
    tell(world, "a0", operator.term + ahead)
    look(operator)
    steered = condition(operator, ROOT, "Steered")
    assert (steered.status, steered.reason) == (False, "ContradictoryStatus")
    assert "NodePower a0 says" in steered.message and f"term {operator.term + ahead}" in steered.message
    operator.settle(10)
    assert condition(operator, ROOT, "Steered").status and not operator.resigned
    assert caps(world, "a0") == before


@pytest.mark.parametrize("ahead", [1, MAX_TERM - 1])
def test_a_forged_term_on_a_node_without_an_agent_ends_nothing(ahead: int) -> None:
    world = World()
    operator = settled(world)
    tell(world, "a0", operator.term + ahead)
    for _ in range(10):
        world.now_s += SIGN_OF_LIFE_S
        look(operator)
    assert not operator.resigned and condition(operator, ROOT, "Steered").reason == "ContradictoryStatus"
    terms = [obj.status.observed_term for obj in world.store.objects.values()]
    assert operator.term < next_term(operator.term, carried=[operator.term], obeyed=terms) <= operator.term + 2


def test_an_agent_that_keeps_to_its_word_after_a_restore_is_followed() -> None:
    world = World()
    operator = settled(world)
    for minute in range(3):
        assert operator.last.resign is None
        tell(world, "a0", operator.term + 3, minute=minute)
        world.now_s += SIGN_OF_LIFE_S
        look(operator)
    assert operator.last.resign is not None and f"term {operator.term + 3}, above ours" in operator.last.resign
    assert next_term(operator.term, carried=[operator.term], obeyed=[operator.term + 3]) == operator.term + 4


def test_a_spec_that_nobody_can_write_on_is_named_and_ends_nothing() -> None:
    world = World()
    operator = settled(world)
    stored = world.store.objects["a0"]
    assert stored.spec is not None
    world.store.objects["a0"] = replace(stored, spec=replace(stored.spec, term=MAX_TERM))
    operator.keeper.on_node_power(
        replace(world.store.objects["a0"], resource_version=stored.resource_version + 10**6), world.now_s
    )
    operator.step()
    steered = condition(operator, ROOT, "Steered")
    assert f"NodePower a0 carries term {MAX_TERM}" in steered.message and "delete that NodePower" in steered.message
    assert not operator.resigned
