"""The keeper as a whole: trees, moves, modes, adoption, meters, successors. Scenes on the core's real code."""

from __future__ import annotations

from dataclasses import replace

import pytest
from splitwatt_core.budget.facts import MeterFailure, MeterReading
from splitwatt_core.budget.keeper import Keeper, NodeFact
from splitwatt_core.budget.tree import BudgetSpec, Selector
from splitwatt_core.columns import Posture
from splitwatt_core.policies.uniform import Uniform
from splitwatt_core.protocol.contract import MAX_TERM, GpuStatus, Mode, NodePower, Spec, Status
from support.keepers import condition, settled
from support.scenes import ready, send_all
from support.world import DEFAULT_W, MIN_W, ROOT, Line, Operator, World


def two_trees() -> World:
    """`a` and `b` are roots of their own."""
    world = World(limit_w=900)
    world.lines[ROOT].exists = False
    for rack in ("a", "b"):
        world.lines[rack].parent = None
    world.tell_budgets()
    return world


# ------------------------------------------------------------------------------------------------------- terms, start


@pytest.mark.parametrize("term", [0, -1, MAX_TERM + 1])
def test_a_term_must_leave_room_for_grant_numbers(term: int) -> None:
    with pytest.raises(ValueError, match=f"term must be between 1 and {MAX_TERM}, not {term}"):
        Keeper(term=term, policies={"Uniform": Uniform()})


def test_it_resigns_as_soon_as_it_sees_a_higher_term() -> None:
    world, old, *_ = ready()
    new = world.elect()
    send_all(new)
    old.watch()
    old.step()
    assert old.last.resign is not None and "term 2, above ours (1)" in old.last.resign


@pytest.mark.parametrize("reported_w", [0, 1, MIN_W - 1])
def test_a_limit_that_no_driver_can_keep_does_not_stop_the_operator(reported_w: int) -> None:
    """A broken GPU says 0 W, in a budget that is full: the first grant is the minimum, and lifts no sum."""
    keeper = Keeper(term=1, policies={"Uniform": Uniform()})
    keeper.on_budget(BudgetSpec("rack", "u", 1, limit_w=100, policy="Uniform", selector=Selector({"rack": "a"})), 0.0)
    keeper.on_node(NodeFact("n", {"rack": "a"}, "boot"), 0.0)
    gpu = GpuStatus("g", management_w=reported_w, enforced_w=reported_w, min_w=MIN_W, max_w=DEFAULT_W, default_w=DEFAULT_W)
    spec, status = Spec(term=1, for_uid="np", budgets=("rack",)), Status("np", 1, "boot", (replace(gpu, acked_grant=1),))
    keeper.on_node_power(NodePower("n", "np", 1, spec, status), 0.0)
    [write] = keeper.step(0.0).writes
    assert [grant.cap_w for grant in write.spec.gpus] == [MIN_W]


def test_an_empty_world_has_an_empty_plan() -> None:
    plan = Keeper(term=1, policies={"Uniform": Uniform()}).step(10.0)
    assert (plan.create, plan.writes, plan.budgets, plan.resign) == ((), (), {}, None)
    assert plan.wake_s == 11.0


def test_it_asks_to_be_called_again_when_a_charge_settles() -> None:
    world, operator, agent, *_ = ready(a=600, b=300)
    world.set_limit(900, a=300, b=300)
    send_all(operator)
    agent.run()
    operator.watch()
    assert operator.step().wake_s == pytest.approx(world.now_s + 0.5)


def test_grant_numbers_that_run_out_end_the_term(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("splitwatt_core.budget.keeper.GRANTS_PER_TERM", 1)
    world = World()
    operator = world.elect()
    operator.step()
    operator.watch()
    operator.step()
    world.now_s += 1.0
    operator.step()
    assert operator.last.resign == "this term's grant numbers are used up: restart for a new term"


# --------------------------------------------------------------------------- raises wait for every stamp that matters


def test_a_write_to_a_node_that_vanished_from_the_list_still_holds_raises_back() -> None:
    """The predecessor's raise is under way to a node whose Node object was deleted; its agent lives on."""
    world, old, agent, _, a, b = ready(a=300, b=300)
    world.set_limit(900, a=600, b=300)
    old.step()
    late = old.sent.pop(0)
    assert late.write.name == "a0"
    world.nodes["a0"].present = False
    world.set_limit(900, a=300, b=600)
    new = world.elect()
    new.step()
    for i in [i for i, sent in enumerate(new.sent) if sent.write.name == "b0"]:
        new.arrive(i)
    for _ in range(3):
        world.now_s += 0.6
        world.agents["b0"].run()
        new.watch()
        new.step()
        for i in [i for i, sent in enumerate(new.sent) if sent.write.name == "b0"]:
            new.arrive(i)
        world.agents["b0"].run()
    assert b.true_w == 300, "raised while a predecessor's raise of a may still land"
    world.store.write_spec(late.write)
    agent.run()
    assert a.true_w + b.true_w <= 900
    new.settle(6)
    assert (a.true_w, b.true_w) == (600, 300) and new.last.budgets[ROOT].charge_w == 900
    assert condition(new, ROOT, "Ready").reason == "Holding", "stamped, though it is not in the list"


def test_a_node_that_moved_between_trees_holds_raises_back_in_both() -> None:
    world = two_trees()
    world.add_node("a1", "a")
    world.set_limit(900, a=900, b=900)
    settled(world)
    world.move("a0", "b")
    world.tell_nodes()
    world.set_limit(2000, a=2000, b=2000)
    successor = world.elect()
    successor.step()
    for i in [i for i, sent in enumerate(successor.sent) if sent.write.name == "a1"]:
        successor.arrive(i)
    successor.step()
    assert not successor.keeper.roster.nodes["a0"].stamped and successor.keeper.roster.nodes["a1"].stamped
    ready_a = condition(successor, "a", "Ready")
    assert ready_a.reason == "RaisesHeld" and "a0 does not carry this operator's term yet" in ready_a.message
    successor.settle(8)
    assert condition(successor, "a", "Ready").reason == "Holding"
    assert successor.last.budgets["a"].nodes == 1


# ------------------------------------------------------------------------------------------------- moves and conflicts


def test_a_moving_node_counts_in_both_racks_and_once_in_the_row() -> None:
    world, operator, agent, *_ = ready(a=450, b=450)
    agent.crash()
    world.move("a0", "b")
    world.tell_nodes()
    send_all(operator)
    operator.step()
    charged = {name: r.charge_w for name, r in operator.last.budgets.items()}
    assert (charged["a"], charged["b"]) == (450, 900)
    assert charged[ROOT] == 900


def test_two_leaves_that_claim_one_node_both_count_it_and_raise_nothing() -> None:
    world, operator, _, _, a, b = ready(a=300, b=300)
    # A second leaf for rack a, in the same tree.
    world.lines["a2"] = Line(ROOT, 900, leaf=True)
    world.tell_budgets()
    spec = replace(world.budgets["a2"], selector=world.budgets["a"].selector)
    operator.keeper.on_budget(spec, world.now_s)
    world.budgets["a2"] = spec
    world.set_limit(900, a=600, b=300, a2=600)
    operator.keeper.on_budget(replace(world.budgets["a2"], selector=spec.selector), world.now_s)
    for _ in range(5):
        world.now_s += 0.6
        operator.watch()
        send_all(operator)
        for agent in world.agents.values():
            agent.run()
    assert (a.true_w, b.true_w) == (300, 300)
    for name in ("a", "a2"):
        assert operator.last.budgets[name].charge_w == 300
        clash = condition(operator, name, "Ready")
        assert clash.reason == "OverlappingSelectors"
        assert clash.message == "nodes selected by several budgets: a0 (a and a2); make the nodeSelectors disjoint"
    assert operator.last.budgets[ROOT].charge_w == 600
    assert condition(operator, "b", "Ready").reason == "Holding"


def test_a_move_within_a_tree_that_observes_ends_though_nothing_is_granted() -> None:
    world = World(limit_w=2000)
    world.lines[ROOT].mode = Mode.OBSERVE
    world.tell_budgets()
    operator = settled(world, 4)
    world.move("a0", "b")
    world.tell_nodes()
    operator.settle(4)
    assert [operator.last.budgets[n].nodes for n in ("a", "b")] == [0, 2]
    assert operator.last.budgets["a"].charge_w == 0


# --------------------------------------------------------------------------------------------------- meters and models


def metered(world: World, operator: Operator, extra_w: float, seconds: int) -> None:
    world.undeclared_w = int(extra_w)
    for _ in range(seconds):
        world.now_s += 0.4
        operator.settle(1)


def test_watts_that_nobody_declared_are_withheld_from_raises_too() -> None:
    world, operator, *_, a, b = ready()
    metered(world, operator, 100.0, 12)
    assert condition(operator, ROOT, "TelemetryFresh").reason == "NonGpuUnderDeclared"
    beyond_w = operator.keeper.books[ROOT].correction.power_w
    assert beyond_w > 150.0 and a.true_w == b.true_w < 450
    before_w = a.true_w
    world.set_limit(900, b=300)  # b has to give watts, which a may have
    for _ in range(3):
        world.now_s += 0.6
        operator.watch()
        send_all(operator)
        world.agents["a0"].run()  # b's agent takes its time
        assert world.true_sum_w() + beyond_w <= 900
    operator.settle(4)
    assert a.true_w > before_w > b.true_w
    assert world.true_sum_w() + beyond_w <= 900


def test_a_silent_agents_watts_are_not_taken_for_undeclared_ones() -> None:
    world, _, agent, *_ = ready()
    agent.crash()
    successor = settled(world, 20)
    assert successor.keeper.books[ROOT].correction.power_w == 0.0


def test_a_stale_meter_holds_raises_back_and_lowers_nothing() -> None:
    world, operator, *_, a, b = ready(a=300, b=300)
    world.dark.update(world.lines)
    world.now_s += 10.0
    world.set_limit(900, a=450, b=450)
    operator.settle(4)
    assert (a.true_w, b.true_w) == (300, 300)
    assert "meter is stale" in condition(operator, "a", "Ready").message
    world.dark.clear()
    operator.settle(4)
    assert (a.true_w, b.true_w) == (450, 450)


def test_a_failed_query_says_why() -> None:
    world, operator, *_ = ready()
    world.dark.update(world.lines)
    world.now_s += 10.0
    operator.keeper.on_meter("a", MeterFailure("Prometheus is away"), world.now_s)
    operator.step()
    stale = condition(operator, "a", "TelemetryFresh")
    assert (stale.status, stale.reason) == (False, "MeterStale") and "Prometheus is away" in stale.message


@pytest.mark.parametrize("power_w", [-5.0, 2_147_483.0, 1e308])
def test_an_agents_sum_that_cannot_be_true_is_no_sample(power_w: float) -> None:
    """A negative one would hide its neighbour's watts."""
    world = World(limit_w=900)
    for line in world.lines.values():
        line.metered = False
    world.tell_budgets()
    operator = settled(world)
    world.agents["a0"].alive = False  # its own samples are not to be told beside the odd ones
    for _ in range(12):
        world.now_s += 1.0
        operator.keeper.on_agent_power("a0", power_w, world.now_s)
        operator.step()
    said = condition(operator, "a", "TelemetryFresh")
    assert not said.status and f"the agent on a0 says that its GPUs draw {power_w:.0f} W" in said.message
    assert operator.last.budgets["a"].posture is Posture.NORMAL


def test_words_about_strangers_are_passed_over() -> None:
    keeper = Keeper(term=1, policies={"Uniform": Uniform()})
    keeper.on_meter("nobody", MeterReading(1.0, 1.0, 1), 1.0)
    keeper.on_agent_power("nobody", 1.0, 1.0)
    keeper.on_node_lease("nobody", 1.0)
    keeper.on_node_gone("nobody", 1.0)
    keeper.on_node_power_gone("nobody", 1.0)
    keeper.on_absence_verified("nobody", 1.0)
    keeper.on_budget_gone("nobody", 1.0)
    keeper.on_pod_gone("ns", "nobody")
    assert keeper.floor_room_w("nobody") == 0.0
    assert keeper.roster.nodes == {}


# -------------------------------------------------------------------------------------------------------- settle times


def test_watts_are_free_after_the_longest_settle_time_of_all_budgets_that_count_the_node() -> None:
    world, operator, agent, *_ = ready(a=600, b=300)
    world.lines[ROOT].settle_ms = 2000
    world.set_limit(900, a=300, b=600)
    send_all(operator)
    agent.run()
    for wait_s, charged_w in ((0.0, 600), (1.9, 600), (0.2, 300)):
        world.now_s += wait_s
        operator.watch()
        operator.step()
        assert operator.charge_w("a0", "a0-g0") == charged_w


# ------------------------------------------------------------------------------------------------- nodes come and go


def test_a_reboot_is_noted_once() -> None:
    world, operator, *_ = ready()
    world.reboot("a0")
    world.tell_nodes()
    notes = operator.step().notes
    assert [n.reason for n in notes if n.kind == "Node"] == ["NodeRebooted"]
    world.tell_nodes()
    assert not [n for n in operator.step().notes if n.kind == "Node"]


def test_a_node_that_is_gone_for_good_is_verified_and_then_charged_nothing() -> None:
    world, operator, agent, *_ = ready(a=450, b=450)
    agent.crash()
    world.nodes["a0"].present = world.nodes["a0"].powered = False
    world.tell_nodes()
    operator.settle(1)
    assert operator.last.verify == () and operator.last.budgets["a"].charge_w == 450, "its NodePower is still there"
    world.store.delete("a0")
    operator.watch()
    assert operator.step().verify == ("a0",)
    assert operator.step().budgets["a"].charge_w == 0
    assert operator.step().verify == ()


def test_a_node_power_that_could_not_be_created_is_asked_for_again() -> None:
    keeper = World().elect().keeper
    assert keeper.step(1000.0).create == ("a0", "b0")
    assert keeper.step(1001.0).create == ()
    keeper.on_created("a0", None, 1001.0)
    assert keeper.step(1002.0).create == ("a0",)


def test_a_node_that_no_budget_selects_is_left_alone() -> None:
    world, operator, *_ = ready()
    operator.keeper.on_node(NodeFact("stranger", {"rack": "z"}, "boot"), world.now_s)
    plan = operator.step()
    assert plan.create == () and condition(operator, ROOT, "Ready").reason == "Holding"


def test_an_empty_budget_below_a_root_without_a_meter_hides_no_overload() -> None:
    """The racks read more than the root's limit; a third budget comes, and no node is in it yet."""
    world = World(limit_w=900)
    operator = settled(world)
    operator.keeper.on_budget(replace(world.budgets[ROOT], meter=None, limit_w=700), world.now_s)
    world.undeclared_w = 200
    operator.settle(30)
    before = operator.last.budgets[ROOT]
    assert before.posture is Posture.BRAKE and before.measured_w == pytest.approx(world.meter_w("a") + world.meter_w("b"))
    empty = replace(world.budgets["a"], name="c", uid="c-1", selector=Selector({"rack": "c"}), meter=None)
    operator.keeper.on_budget(empty, world.now_s)
    for _ in range(40):
        operator.watch()
        operator.read_telemetry()
        world.now_s += 0.6
        after = operator.keeper.step(world.now_s).budgets[ROOT]
    assert (after.posture, after.measured_w) == (Posture.BRAKE, pytest.approx(before.measured_w))
