"""What vanished still draws: deleted budgets, parents that change or go, labels that are taken away (I5, R31-R33)."""

from __future__ import annotations

import pytest
from splitwatt_core.columns import Posture
from splitwatt_core.conditions import Condition
from splitwatt_core.protocol.contract import MAX_BUDGETS_PER_NODE
from support.keepers import settled
from support.scenes import ready
from support.world import ROOT, Line, Operator, World

LIMIT_W = 900


def said(operator: Operator, budget: str, kind: str) -> Condition:
    return next(c for c in operator.last.budgets[budget].conditions if c.type == kind)


def delete(world: World, *names: str) -> None:
    for name in names:
        world.lines[name].exists = False
    world.tell_budgets()


def apply(world: World, *names: str) -> None:
    for name in names:
        world.lines[name].exists = True
        world.lines[name].birth += 1
    world.tell_budgets()


def rack_label(world: World, node: str, rack: str | None) -> None:
    """`None`: the label is taken away. What stands behind which feed does not change by that."""
    world.labels[node] = rack
    world.tell_nodes()


def caps_w(world: World) -> dict[str, int]:
    return {gpu.uuid: gpu.true_w for node in world.nodes.values() for gpu in node.gpus.values()}


def test_a_deleted_leaf_counts_above_and_its_neighbours_rise_into_nothing() -> None:
    world, operator, *_ = ready(a=450, b=900)
    before = caps_w(world)
    delete(world, "a")
    operator.settle(30)
    assert caps_w(world) == before
    assert operator.last.budgets[ROOT].charge_w == 900 and "a" not in operator.last.budgets
    assert operator.last.budgets[ROOT].nodes == 2


def test_a_successor_counts_what_a_deleted_leaf_held() -> None:
    world, operator, *_ = ready(a=450, b=900)
    before = caps_w(world)
    delete(world, "a")
    operator.settle(2)
    world.elect().settle(30)
    assert caps_w(world) == before
    assert world.active.last.budgets[ROOT].charge_w == 900


def test_also_one_that_starts_after_it_and_counts_losses_and_other_watts_as_before() -> None:
    """Deleted while no operator was alive."""
    world = World(rich=True, limit_w=2500)
    operator = world.elect()
    operator.settle(10)
    before_w = operator.last.budgets[ROOT].charge_w
    operator.holds_lease = False
    world.operators.clear()
    delete(world, "a")
    successor = world.elect()
    successor.settle(2)
    assert successor.last.budgets[ROOT].charge_w == pytest.approx(before_w)


def test_a_limit_that_is_cut_reaches_what_stands_below_a_tombstone() -> None:
    world, operator, *_ = ready(a=450, b=450)
    delete(world, "a")
    operator.settle(2)
    world.set_limit(600, a=450, b=450)
    operator.settle(12)
    assert world.true_sum_w() <= 600 and world.nodes["a0"].gpus["a0-g0"].true_w < 450
    world.set_limit(900, a=450, b=450)
    operator.settle(12)
    assert world.nodes["a0"].gpus["a0-g0"].true_w < 450, "nothing is raised below a budget that is gone"


def test_a_leaf_that_is_applied_again_takes_over_where_it_stood() -> None:
    world, operator, *_ = ready(a=450, b=900)
    before = caps_w(world)
    delete(world, "a")
    operator.settle(6)
    apply(world, "a")
    for _ in range(20):
        operator.settle(1)
        report = operator.last.budgets["a"]
        assert report.posture is Posture.NORMAL and report.charge_w == 450
        assert operator.last.budgets[ROOT].charge_w == 900 and caps_w(world) == before
    world.set_limit(900, a=500, b=400)
    operator.settle(12)
    assert world.nodes["a0"].gpus["a0-g0"].true_w == 500, "raised again, as before"


def test_a_leaf_of_another_name_claims_its_nodes_and_the_tombstone_goes() -> None:
    world, operator, *_ = ready(a=450, b=450)
    world.lines["anew"] = Line(ROOT, 450, leaf=True)
    delete(world, "a")
    rack_label(world, "a0", "anew")
    for _ in range(10):
        operator.settle(1)
        assert world.true_sum_w() <= LIMIT_W and operator.last.budgets[ROOT].charge_w <= LIMIT_W
    assert operator.keeper.standing.keys() == {ROOT, "b", "anew"}
    assert operator.last.budgets["anew"].posture is Posture.NORMAL


def test_a_budget_that_nobody_names_leaves_nothing_behind() -> None:
    world, operator, *_ = ready()
    world.lines["c"] = Line(ROOT, 900, leaf=True)
    world.tell_budgets()
    operator.step()
    delete(world, "c")
    operator.step()
    assert operator.keeper.standing.keys() == operator.keeper.books.keys() == {ROOT, "a", "b"}


def test_a_missing_budget_in_the_middle_and_a_missing_root_let_nothing_free() -> None:
    for missing in ("cage", ROOT):
        world = World(rich=True, limit_w=2500)
        operator = world.elect()
        operator.settle(10)
        before, charge_w = caps_w(world), operator.last.budgets["b"].charge_w
        row_w = operator.last.budgets[ROOT].charge_w
        delete(world, missing)
        operator.settle(20)
        assert caps_w(world) == before
        child = "a" if missing == "cage" else "b"
        assert said(operator, child, "Ready").reason == "InvalidTree" and repr(missing) in said(operator, child, "Ready").message
        assert operator.last.budgets["b"].charge_w == charge_w
        assert missing == ROOT or operator.last.budgets[ROOT].charge_w == row_w
        world.elect().settle(20)
        assert all(cap_w <= before[uuid] for uuid, cap_w in caps_w(world).items())
        assert missing == ROOT or world.active.last.budgets[ROOT].charge_w <= row_w


def test_another_parent_counts_beside_the_former_one_until_a_later_grant_is_acknowledged() -> None:
    world, operator, agent, *_ = ready(a=450, b=450)
    world.lines["other"] = Line(None, 2000)
    agent.alive = False
    world.lines["a"].parent = "other"
    world.tell_budgets()
    operator.settle(4)
    assert operator.last.budgets[ROOT].charge_w >= 900, "its agent has not answered for the new way"
    assert operator.last.budgets["other"].charge_w >= 450
    spec = world.store.objects["a0"].spec
    assert spec is not None and spec.budgets == ("a", "other", "a", ROOT) and spec.leaving == (ROOT,)
    successor = world.elect()
    successor.settle(4)
    assert successor.last.budgets[ROOT].charge_w >= 900, "nor for a successor"
    agent.alive = True
    successor.settle(8)
    assert successor.last.budgets[ROOT].charge_w == world.nodes["b0"].gpus["b0-g0"].true_w
    spec = world.store.objects["a0"].spec
    assert spec is not None and (spec.budgets, spec.leaving) == (("a", "other"), ())


def test_a_parent_that_is_left_out_lets_nothing_go() -> None:
    """Scene 48: a field is lost in a template. With another parent later on it is a move."""
    world, operator, *_ = ready(a=450, b=900)
    before = caps_w(world)
    world.lines["a"].parent = None
    world.tell_budgets()
    operator.settle(20)
    world.elect().settle(20)
    assert world.active.last.budgets[ROOT].charge_w == 900 and caps_w(world) == before
    world.lines["other"] = Line(None, 2000)
    world.lines["a"].parent = "other"
    world.tell_budgets()
    world.active.settle(12)
    assert world.active.last.budgets[ROOT].charge_w < 900 + 1 and world.nodes["b0"].gpus["b0-g0"].true_w > 450


@pytest.mark.parametrize("parent", [None, "nowhere", "other"])
def test_fixed_watts_stay_where_the_nodes_of_their_budget_still_count(parent: str | None) -> None:
    """A rack's switches hang on the same feed, whatever its spec.parent says."""
    world = World(limit_w=1000)
    world.lines["a"].fixed_w = 100
    world.lines |= {"other": Line(None, 5000), "nowhere": Line(None, 5000, exists=False)}
    world.set_limit(1000, a=550, b=1000)
    operator = world.elect()
    operator.settle(10)
    before = caps_w(world)
    assert operator.last.budgets[ROOT].charge_w == 1000
    world.agents["a0"].alive = False  # nothing is acknowledged, so a claim does not end either
    world.lines["a"].parent = parent
    world.tell_budgets()
    operator.settle(20)
    assert operator.last.budgets[ROOT].charge_w == 1000
    assert caps_w(world) == before


def test_a_label_that_is_taken_away_moves_nothing_and_nothing_is_raised_on_the_node() -> None:
    for restart in (False, True):
        world, operator, *_ = ready(a=450, b=900)
        before = caps_w(world)
        rack_label(world, "a0", None)
        operator.settle(4)
        if restart:
            operator = world.elect()
        operator.settle(20)
        assert caps_w(world) == before and operator.last.budgets[ROOT].charge_w == 900
        assert operator.last.budgets["a"].charge_w == 450
        world.set_limit(1000, a=550, b=450)
        operator.settle(8)
        assert world.nodes["a0"].gpus["a0-g0"].true_w == 450


def test_a_label_taken_away_and_then_another_parent_keeps_the_node_where_it_draws() -> None:
    """Scene 49: the operator sees only the second."""
    world, operator, *_ = ready(a=450, b=900)
    world.lines["other"] = Line(None, 2000)
    world.lines["a"].parent = "other"
    rack_label(world, "a0", None)
    world.tell_budgets()
    operator.settle(20)
    assert operator.last.budgets[ROOT].charge_w == 900
    spec = world.store.objects["a0"].spec
    assert spec is not None and ROOT in spec.budgets


def test_a_person_releases_by_name() -> None:
    world, operator, *_ = ready(a=450, b=900)
    delete(world, "a")
    operator.settle(4)
    for word, left_w in (("b", 900), ("a", 450)):
        world.store.annotate("a0", release=frozenset({word}))
        operator.watch()
        operator.step()
        assert operator.last.budgets[ROOT].charge_w == left_w, word
    assert operator.keeper.standing.keys() == {ROOT, "b"}


def test_a_node_that_is_claimed_cannot_be_released() -> None:
    world, operator, *_ = ready(a=450, b=450)
    world.store.annotate("a0", release=frozenset({"all"}))
    operator.settle(4)
    assert operator.last.budgets["a"].charge_w == 450 and operator.last.release == ()


@pytest.mark.parametrize("restart", [False, True])
def test_a_release_of_a_node_that_is_claimed_does_not_wait_for_the_day_that_its_label_is_lost(restart: bool) -> None:
    world, operator, *_ = ready(a=450, b=450)
    world.reads_late = not restart
    world.store.annotate("a0", release=frozenset({"all"}))
    operator.watch()
    notes = operator.step().notes
    assert [(n.name, n.reason, n.warning) for n in notes if n.reason == "ReleaseVoid"] == [("a0", "ReleaseVoid", True)]
    assert "splitwatt.io/release=all is void" in notes[-1].message
    assert operator.step().take_back == (), "at a measured pace"
    rack_label(world, "a0", None)
    operator = world.elect() if restart else operator
    operator.settle(4)
    assert operator.last.budgets["a"].charge_w == 450, "said before it lost its label"
    assert bool(world.store.objects["a0"].release) is not restart, "taken back when a fresh read found the Node"
    world.reads_late = False
    for word in ("", "a"):
        world.store.annotate("a0", release=frozenset({word} - {""}))
        operator.watch()
    operator.settle(2)
    assert operator.last.budgets["a"].charge_w == 0, "said anew, after it lost its label"


def test_a_release_ends_when_a_leaf_claims_the_node_again() -> None:
    world, operator, *_ = ready(a=450, b=450)
    rack_label(world, "a0", None)
    world.store.annotate("a0", release=frozenset({"a"}))
    operator.settle(2)
    assert operator.last.budgets["a"].charge_w == 0
    rack_label(world, "a0", "a")
    operator.settle(4)
    assert world.store.objects["a0"].release == frozenset()
    rack_label(world, "a0", None)
    operator.settle(4)
    assert operator.last.budgets["a"].charge_w > 0


def test_more_budgets_than_a_spec_can_name_keep_no_cap_from_falling() -> None:
    """Sixty-six leaves over one rack, then all but one of them gone, beside a GPU that acknowledges nothing meanwhile."""
    world = World(gpus_per_node=2, limit_w=2000)
    operator = settled(world)
    stuck, sound = world.nodes["a0"].gpus.values()
    stuck.lies = True
    leaves = [f"a-{k}" for k in range(MAX_BUDGETS_PER_NODE + 2)]
    for leaf in leaves:
        world.add_line(leaf, like="a", rack="a")
    world.set_limit(1900)
    operator.settle(3)
    for name in ("a", *leaves[:-1]):
        world.lines[name].exists = False
    world.set_limit(1600)
    operator.settle(3)
    before_w = sound.true_w
    spec = world.store.objects["a0"].spec
    assert spec is not None and spec.budgets[:2] == (leaves[-1], ROOT) and len(spec.budgets) == MAX_BUDGETS_PER_NODE
    world.set_limit(1300)
    operator.settle(3)
    assert sound.true_w < before_w <= stuck.true_w, "the GPU that obeys is lowered"
    assert operator.last.budgets[ROOT].charge_w <= 1300
    stuck.lies = False
    operator.settle(8)
    spec = world.store.objects["a0"].spec
    assert spec is not None and spec.budgets == (leaves[-1], ROOT), "all are left once a later grant is acknowledged"


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("slip", [ROOT, "cage"])
def test_a_budget_above_others_that_gets_a_node_selector_by_mistake_lets_nothing_go(slip: str, restart: bool) -> None:
    """What stands below it still names it, so nobody claims those nodes from it: it looks like a leaf, and is none of theirs."""
    world = World(rich=True, limit_w=3000)
    operator = settled(world, 60)
    before_w, before = operator.last.budgets[slip].charge_w, caps_w(world)
    world.lines[slip].leaf, world.lines[slip].rack = True, "nowhere"
    world.tell_budgets()
    if restart:
        operator = world.elect()
    operator.settle(30)
    assert operator.last.budgets[slip].charge_w == pytest.approx(before_w)
    below = "cage" if slip == ROOT else "a"
    assert f"{slip!r}, which selects nodes itself" in said(operator, below, "Ready").message
    assert restart or "remove spec.nodeSelector, for " in said(operator, slip, "Ready").message
    assert all(watts <= before[uuid] for uuid, watts in caps_w(world).items())
    world.lines[slip].leaf, world.lines[slip].rack = False, ""
    world.tell_budgets()
    operator.settle(30)
    assert operator.last.budgets[slip].charge_w == pytest.approx(before_w)
    assert said(operator, below, "Ready").status
