"""What people are told about budgets: conditions with their sentences, and a note when one turns."""

from __future__ import annotations

from dataclasses import replace

from splitwatt_core.budget.facts import MeterReading
from splitwatt_core.budget.roster import Roster
from splitwatt_core.columns import Posture
from splitwatt_core.protocol.contract import Health, Mode
from support.keepers import condition
from support.scenes import ready
from support.world import ROOT, Line, Operator, World


def said(operator: Operator, budget: str, kind: str) -> tuple[bool | None, str, str]:
    found = condition(operator, budget, kind)
    return found.status, found.reason, found.message


def test_a_budget_that_is_kept_says_so_in_seven_conditions() -> None:
    _, operator, *_ = ready()
    assert [(c.type, c.status, c.reason) for c in operator.last.budgets["a"].conditions] == [
        ("Ready", True, "Holding"),
        ("WithinBudget", True, "Within"),
        ("TelemetryFresh", True, "Fresh"),
        ("CapsEnforced", True, "ReadBack"),
        ("Feasible", True, "Feasible"),
        ("OwnersKnown", True, "AllKnown"),
        ("Steered", True, "All"),
    ]
    report = operator.last.budgets["a"]
    assert (report.nodes, report.gpus, report.short_w, report.posture) == (1, 1, 0.0, Posture.NORMAL)
    assert [(r.gpus, r.mean_cap_w) for r in report.reasons] == [(1, 450.0)]


def test_a_budget_without_nodes_says_what_to_look_at() -> None:
    world, operator, *_ = ready()
    world.lines["c"] = Line(ROOT, 900, leaf=True)
    world.tell_budgets()
    operator.settle(6)
    assert said(operator, "c", "Ready") == (
        False,
        "NoNodes",
        "no node is selected, here or below: label nodes or check nodeSelector",
    )
    world.lines["c"].metered = False
    world.tell_budgets()
    operator.settle(1)
    assert said(operator, "c", "TelemetryFresh") == (
        False,
        "NoNodes",
        "no meter, and no node whose agent could tell, here or below: label nodes or check nodeSelector",
    )


def test_while_nodes_are_adopted_nothing_is_in_force() -> None:
    world = World()
    operator = world.elect()
    operator.step()
    assert said(operator, "a", "WithinBudget") == (False, "Adopting", "not in force yet")
    assert condition(operator, "a", "Ready").reason == "Adopting"


def test_in_observe_it_claims_to_keep_nothing() -> None:
    world = World(limit_w=900)
    world.lines[ROOT].mode = Mode.OBSERVE
    world.tell_budgets()
    operator = world.elect()
    operator.settle(6)
    assert said(operator, "a", "Ready") == (True, "Observing", "mode is Observe: decides and reports, grants nothing")
    assert said(operator, ROOT, "WithinBudget") == (
        False,
        "ChargedAboveLimit",
        "charged 1400 W, limit 900 W: 500 W over; mode is Observe, nothing is lowered",
    )


def test_a_surprise_is_a_charge_above_the_limit_until_it_is_lowered() -> None:
    world, operator, agent, *_ = ready()
    world.reset("a0", "a0-g0")
    agent.read_at = world.count
    agent.enforcer.tick(world.now_s, agent.readbacks())
    agent.send_status()
    agent.deliver_status()
    operator.watch()
    notes = operator.step().notes
    assert said(operator, ROOT, "WithinBudget") == (
        False,
        "ChargedAboveLimit",
        "charged 1150 W, limit 900 W: 250 W over, lowering",
    )
    assert (ROOT, "ChargedAboveLimit", True) in [(n.name, n.reason, n.warning) for n in notes]
    operator.settle(4)
    assert condition(operator, ROOT, "WithinBudget").status
    assert not [n for n in operator.step().notes if n.name == ROOT], "said once"


def test_a_meter_above_the_limit_is_named_with_both_numbers() -> None:
    world, operator, *_ = ready()
    world.now_s += 10.0
    world.dark.add("a")
    operator.keeper.on_meter("a", MeterReading(1234.0, world.now_s, 1), world.now_s)
    operator.step()
    assert said(operator, "a", "WithinBudget") == (False, "MeasuredAboveLimit", "measured 1234 W, limit 900 W")


def test_a_reading_of_before_a_cut_is_not_told_as_one_above_it() -> None:
    world, operator, *_ = ready()
    world.now_s += 10.0
    world.dark.add("a")
    operator.keeper.on_meter("a", MeterReading(800.0, world.now_s, 1), world.now_s)
    operator.step()
    operator.keeper.on_budget(replace(world.budgets["a"], limit_w=600, limit_grace_s=1.0), world.now_s)
    world.now_s += 3.0
    operator.step()
    report = operator.last.budgets["a"]
    assert (report.limit.in_force_w, report.measured_w, report.posture) == (600, 800.0, Posture.NORMAL)
    assert condition(operator, "a", "WithinBudget").status
    operator.keeper.on_meter("a", MeterReading(800.0, world.now_s, 1), world.now_s)
    operator.step()
    assert said(operator, "a", "WithinBudget") == (False, "MeasuredAboveLimit", "measured 800 W, limit 600 W")


def test_without_a_meter_the_agents_sum_is_used_while_all_of_them_speak() -> None:
    world, operator, *_ = ready()
    operator.keeper.on_budget(replace(world.budgets["a"], meter=None), world.now_s)
    operator.step()
    assert said(operator, "a", "TelemetryFresh") == (True, "AgentsSum", "no meter: the agents' sum is used")
    world.agents["a0"].crash()
    world.now_s += 6.0
    operator.step()
    assert said(operator, "a", "TelemetryFresh") == (
        False,
        "AgentsSilent",
        "no meter, and the agents' samples are 6 s old on a0: scrape interval? make it shorter, or the operator's "
        "--agent-silence-seconds, now 5, longer",
    )


def test_series_that_cannot_be_told_apart_are_no_sample_and_named() -> None:
    world, operator, *_ = ready()
    operator.keeper.on_budget(replace(world.budgets["a"], meter=None), world.now_s)
    world.agents["a0"].crash()
    world.now_s += 6.0
    operator.keeper.on_agent_doubt("a0", "two series say they are of node a0")
    operator.step()
    assert said(operator, "a", "TelemetryFresh")[2] == "no meter, and two series say they are of node a0"
    operator.keeper.on_agent_power("a0", 300.0, world.now_s)
    operator.step()
    assert said(operator, "a", "TelemetryFresh")[0] is True


def test_a_longer_silence_of_agents_can_be_allowed() -> None:
    world = World()
    operator = world.elect()
    operator.keeper.roster = Roster(agent_silent_s=40.0)
    for node in world.nodes.values():
        operator.see_node(node)
    for obj in world.store.objects.values():
        operator.keeper.on_node_power(obj, world.now_s)
    operator.settle(8)
    operator.keeper.on_budget(replace(world.budgets["a"], meter=None), world.now_s)
    world.agents["a0"].crash()
    world.now_s += 39.0
    operator.step()
    assert said(operator, "a", "TelemetryFresh")[1] == "AgentsSum"
    world.now_s += 2.0
    operator.step()
    assert "are 41 s old on a0: scrape interval?" in said(operator, "a", "TelemetryFresh")[2]


def test_a_reading_that_nothing_explains_is_refused_with_its_value() -> None:
    world, operator, *_ = ready()
    world.now_s += 1.0
    world.dark.add("a")
    operator.keeper.on_meter("a", MeterReading(65535.0, world.now_s, 1), world.now_s)
    plan = operator.step()
    status, reason, message = said(operator, "a", "TelemetryFresh")
    assert (status, reason) == (False, "Implausible")
    assert message.startswith("the meter reads 65535 W, and no more than 1400 W can flow there: GPUs at their maxima")
    assert plan.budgets["a"].posture is Posture.NORMAL
    assert "meter is implausible" in said(operator, "a", "Ready")[2]


def test_a_reading_below_the_gpus_own_draw_is_named_with_both_numbers() -> None:
    world, operator, *_ = ready()
    world.dark.add("a")
    for _ in range(12):
        world.now_s += 1.0
        operator.keeper.on_meter("a", MeterReading(0.0, world.now_s, 1), world.now_s)
        operator.step()
    drawn_w = sum(gpu.draw_w for gpu in world.nodes["a0"].gpus.values())
    status, reason, message = said(operator, "a", "TelemetryFresh")
    assert (status, reason) == (False, "Contradicted")
    assert message.startswith(f"the meter reads 0 W while the GPUs behind it draw {drawn_w:.0f} W")
    assert operator.last.budgets["a"].measured_w == drawn_w


def test_watts_that_nobody_declared_are_named_with_what_to_change() -> None:
    world, operator, *_ = ready()
    world.undeclared_w = 100
    for _ in range(12):
        world.now_s += 0.4
        operator.settle(1)
    fresh, reason, message = said(operator, "a", "TelemetryFresh")
    assert (fresh, reason) == (True, "NonGpuUnderDeclared")
    assert message.endswith("W more than declared: raise nonGpuWattsPerNode or fixedWatts")


def test_sick_gpus_are_named_up_to_three_and_counted_above() -> None:
    world = World(gpus_per_node=5, limit_w=9000)
    operator = world.elect()
    operator.settle(6)
    for gpu in operator.keeper.roster.nodes["a0"].gpus.values():
        gpu.health = Health.HUNG
    operator.step()
    expected = (False, "GpusNotCapped", "5 GPUs: a0/a0-g0 Hung, a0/a0-g1 Hung, a0/a0-g2 Hung and 2 more")
    assert said(operator, "a", "CapsEnforced") == said(operator, ROOT, "CapsEnforced") == expected
    assert condition(operator, "b", "CapsEnforced").status


def test_a_limit_that_minimum_caps_cannot_meet_says_how_many_watts_miss() -> None:
    world, operator, *_ = ready()
    world.set_limit(300)
    operator.settle(6)
    assert said(operator, ROOT, "Feasible") == (
        False,
        "MinimumCapsAboveLimit",
        "minimum caps need 100 W more than the limit: raise limitWatts or remove nodes",
    )
    assert operator.last.budgets[ROOT].short_w == 100.0
    assert world.true_sum_w() == 400, "everything at its minimum"


def test_held_raises_are_named_with_the_reason_also_below_the_budget_that_holds_them() -> None:
    world, operator, *_ = ready()
    world.dark.add(ROOT)
    world.now_s += 10.0
    operator.step()
    for name in (ROOT, "a"):
        status, reason, message = said(operator, name, "Ready")
        assert (status, reason) == (True, "RaisesHeld")
        assert message.startswith("limits are kept; nothing is raised: meter is stale")
