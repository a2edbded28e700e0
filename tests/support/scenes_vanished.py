"""Scenes 45 to 53 and 59 to 65: leaves, parents, labels and the NodePower CRD vanish (docs/protocol.md, R31 to R35).

Two racks below a row of 900 W, each holding 450 W, and another row beside it. b would like more, and may not have what a still
draws: the world asserts at every step that whoever may draw is counted where it does (T3).
"""

from __future__ import annotations

from support.scenes import LIMIT_W, send_all
from support.world import OTHER_ROOT, ROOT, Operator, World

HELD_W = 450


def two_rows() -> tuple[World, Operator]:
    world = World(limit_w=LIMIT_W, two_rows=True)
    operator = world.elect()
    operator.settle(8)
    world.check()
    assert limits(world) == (HELD_W, HELD_W)
    return world, operator


def limits(world: World) -> tuple[int, int]:
    """True limits of a and b, in watts."""
    return world.nodes["a0"].true_w, world.nodes["b0"].true_w


def held(world: World, *, seconds: int = 20) -> None:
    """The operator in charge lives on with all agents, and nothing moves: b does not rise into what a draws."""
    within(world, seconds=seconds)
    assert limits(world) == (HELD_W, HELD_W), f"somebody moved: {limits(world)} W"


def within(world: World, *, seconds: int = 20) -> None:
    """What is lowered meanwhile, because nothing proves its cap any more, may be given to others; no more."""
    for _ in range(seconds):
        world.active.settle(2)
        world.check()
        assert sum(limits(world)) <= LIMIT_W, f"a and b draw {limits(world)} W of {LIMIT_W} W"


def tell(world: World, leaf: str, *, parent: str | None) -> None:
    line = world.lines[leaf]
    line.left_out, line.parent = (line.parent if parent is None else None), parent
    world.tell_budgets()


def delete(world: World, name: str) -> None:
    world.lines[name].exists = False
    world.tell_budgets()


def unlabel(world: World, name: str) -> None:
    """Nobody has told the operator yet."""
    world.labels[name] = None


def delete_undone(world: World) -> None:
    world.lines["a"].exists, world.lines["a"].birth = True, world.lines["a"].birth + 1
    world.tell_budgets()


def back(world: World) -> None:
    """All is as it was: raises are allowed again."""
    world.lines["a"].parent, world.lines["a"].left_out = ROOT, None
    world.labels.clear()
    world.tell_nodes()
    delete_undone(world)
    world.set_limit(LIMIT_W, a=300, b=600)
    world.active.settle(12)
    assert limits(world) == (300, 600), f"all is back, and nothing moves: {limits(world)} W"
    world.check()


def scene_45_a_leaf_is_deleted() -> None:
    world, _ = two_rows()
    delete(world, "a")
    held(world)
    world.elect()
    held(world)
    back(world)


def scene_45b_the_operator_starts_after_the_leaf_was_deleted() -> None:
    world, operator = two_rows()
    operator.holds_lease = False
    delete(world, "a")
    world.elect()
    held(world)
    back(world)


def scene_46_a_leaf_gets_another_parent_while_its_agent_is_away() -> None:
    world, _ = two_rows()
    agent = world.agents["a0"]
    agent.crash()
    tell(world, "a", parent=OTHER_ROOT)
    for _ in range(2):
        world.active.settle(4)  # its next spec is written, and not acknowledged
        assert limits(world) == (HELD_W, HELD_W), f"a and b draw {limits(world)} W"
        assert world.active.last.budgets[ROOT].charge_w >= 2 * HELD_W, "it counts there until it acknowledges a later grant"
        world.elect()
    agent.start()
    world.active.settle(12)
    assert world.active.last.budgets[OTHER_ROOT].charge_w == limits(world)[0]
    assert limits(world)[1] > HELD_W, "it has left the first row"


def scene_47_a_label_is_taken_away_and_the_next_grant_is_acknowledged() -> None:
    world, _ = two_rows()
    unlabel(world, "a0")
    world.tell_nodes()
    world.set_limit(LIMIT_W, a=400, b=LIMIT_W)
    world.active.settle(6)
    assert world.active.last.budgets["a"].charge_w == limits(world)[0], "its leaf counts it still"
    assert sum(limits(world)) <= LIMIT_W, f"a and b draw {limits(world)} W of {LIMIT_W} W"
    world.set_limit(LIMIT_W)
    world.elect().settle(12)
    assert sum(limits(world)) <= LIMIT_W, f"a and b draw {limits(world)} W of {LIMIT_W} W"
    back(world)


def scene_48_a_leaf_loses_its_parent() -> None:
    world, _ = two_rows()
    tell(world, "a", parent=None)
    held(world)
    world.elect()
    held(world)
    back(world)


def scene_49_a_label_is_taken_away_unseen_and_the_leaf_gets_another_parent() -> None:
    world, operator = two_rows()
    unlabel(world, "a0")
    tell(world, "a", parent=OTHER_ROOT)
    operator.settle(12)
    assert operator.last.budgets[ROOT].charge_w >= 2 * HELD_W, "nobody claims the node for the other row"
    assert sum(limits(world)) <= LIMIT_W
    world.tell_nodes()
    operator.settle(4)
    assert operator.last.budgets[ROOT].charge_w >= 2 * HELD_W, "nobody claims the node for the other row"
    assert sum(limits(world)) <= LIMIT_W


def scene_50_the_crd_is_made_anew_and_a_node_restarts() -> None:
    world, operator = two_rows()
    world.lose_kind()
    world.nodes["a0"].present = False
    world.tell_nodes()
    operator.settle(4)
    world.make_kind()
    for _ in range(10):
        operator.settle(2)
        assert operator.last.budgets[ROOT].charge_w >= 2 * HELD_W, "fresh reads find neither Node nor NodePower"
        assert sum(limits(world)) <= LIMIT_W


def scene_51_a_leaf_is_deleted_then_the_crd_is_made_anew_and_the_operator_restarts() -> None:
    world, operator = two_rows()
    delete(world, "a")
    operator.settle(4)
    world.lose_kind()
    operator.settle(2)
    world.make_kind()
    operator.settle(2)
    within(world, seconds=4)
    world.elect()
    within(world)


def scene_51b_the_operator_restarts_before_the_new_node_powers_name_any_budget() -> None:
    world, operator = two_rows()
    delete(world, "a")
    operator.settle(4)
    world.lose_kind()
    world.make_kind()
    operator.watch()
    operator.step()  # makes them anew, without a spec
    operator.step()
    assert all(seen.spec is None for seen in world.store.objects.values())
    world.elect()
    within(world)


def scene_52_the_same_with_no_operator_alive_meanwhile() -> None:
    world, operator = two_rows()
    operator.holds_lease = False
    delete(world, "a")
    world.lose_kind()
    world.make_kind()
    for _ in range(2):
        world.elect()
        within(world)
        assert limits(world)[1] <= HELD_W, "nobody has confirmed that no machine is missing"
    delete_undone(world)
    world.confirm()
    world.active.settle(12)
    assert limits(world)[1] > 200, "a person has confirmed it, and nothing moves"


def scene_53_the_new_crd_is_noted_before_the_node_powers_are_missed() -> None:
    world, operator = two_rows()
    delete(world, "a")
    operator.settle(2)
    world.lose_kind()
    world.make_kind()
    operator.see_kind()
    send_all(operator)
    world.elect()
    within(world)
    assert limits(world)[1] <= HELD_W, "nobody has confirmed that no machine is missing"


def scene_59_a_leaf_hangs_on_the_other_row_while_a_label_is_away() -> None:
    world, operator = two_rows()
    unlabel(world, "a0")
    world.tell_nodes()
    for parent in (OTHER_ROOT, ROOT):
        tell(world, "a", parent=parent)
        operator.settle(4)
    world.labels.clear()
    world.tell_nodes()
    operator.settle(12)
    counted_w = operator.last.budgets[OTHER_ROOT].charge_w
    assert counted_w == 0, f"{OTHER_ROOT}: {counted_w} W are counted, and nothing claims a0 there"


def scene_60_a_claim_is_undone_while_the_parent_is_left_out() -> None:
    """A leaf of the other row claims the node, and a spec names both ways; claimed back it hangs where it hung."""
    world, operator = two_rows()
    world.agents["a0"].crash()  # so that nothing is acknowledged meanwhile
    world.add_line("c", like="a", rack="a")
    world.lines["c"].parent = OTHER_ROOT
    delete(world, "a")
    operator.settle(4)
    tell(world, "a", parent=None)
    delete(world, "c")
    delete_undone(world)
    world.agents["a0"].start()
    within(world)
    world.elect()
    within(world)
    back(world)


def scene_61_the_crd_is_made_anew_before_the_first_grants_are_acknowledged() -> None:
    world = World(limit_w=LIMIT_W)
    operator = world.elect()
    operator.settle(2)
    world.check()
    assert not any(row.acked_grant for seen in world.store.objects.values() for row in seen.status.gpus)
    delete(world, "a")
    world.lose_kind()
    world.make_kind()
    world.elect()
    for limit_w in (HELD_W, LIMIT_W):
        world.set_limit(limit_w)
        world.active.settle(12)
        assert limits(world)[1] <= HELD_W, (
            f"nobody has confirmed that no machine is missing, and b is set to {limits(world)[1]} W"
        )


def scene_62_the_new_crd_is_noted_where_a_node_counts_by_memory_alone() -> None:
    """The leaf hangs nowhere by now: only who lived through it knows that the row feeds it."""
    world, operator = two_rows()
    world.agents["a0"].crash()
    tell(world, "a", parent=None)
    world.lose_kind()
    world.make_kind()
    operator.watch()
    for _ in range(4):
        operator.step()
        operator.sent = [sent for sent in operator.sent if sent.write.name != "a0"]  # its new NodePower stays empty
        while operator.sent:
            operator.arrive()
    world.elect()
    within(world)
    world.agents["a0"].start()
    world.confirm()
    back(world)


def scene_63_a_leaf_loses_its_parent_and_the_crd_with_no_operator_alive() -> None:
    world, operator = two_rows()
    operator.holds_lease = False
    tell(world, "a", parent=None)
    world.lose_kind()
    world.make_kind()
    world.elect()
    world.set_limit(LIMIT_W - 100, a=LIMIT_W)
    world.active.settle(12)
    assert limits(world)[0] <= HELD_W, f"nobody has confirmed that it draws on no row, and a is set to {limits(world)[0]} W"
    world.confirm()
    back(world)


def scene_64_a_person_confirms_while_a_move_back_is_under_way() -> None:
    """No NodePower tells any more that a0 was on its way to the other row; a person has said that nobody is missing there."""
    world, operator = two_rows()
    world.agents["a0"].crash()
    tell(world, "a", parent=OTHER_ROOT)
    operator.settle(2)
    tell(world, "a", parent=ROOT)
    world.lose_kind()
    world.elect()
    world.make_kind()
    world.confirm()
    world.active.settle(4)
    world.agents["a0"].start()
    within(world)
    back(world)


def scene_65_a_leaf_comes_back_and_leaves_again_between_two_looks() -> None:
    """The grant that would have ended the first leave is acknowledged; it was made before the node came back."""
    world, operator = two_rows()
    tell(world, "a", parent=OTHER_ROOT)
    for _ in range(2):  # the fresh reads of the claim, and the grant after them
        operator.step()
        send_all(operator)
    for parent in (ROOT, OTHER_ROOT):
        tell(world, "a", parent=parent)
        world.check()
    world.agents["a0"].run()
    for _ in range(3):
        operator.watch()
        operator.step()
        send_all(operator)
    tell(world, "a", parent=ROOT)
    within(world)
    back(world)


SCENES = {name: f for name, f in sorted(globals().items()) if name.startswith("scene_")}
