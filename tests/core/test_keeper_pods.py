"""What pods want of the keeper: phases, shared caps, floors, safe caps. Scenes on the core's real code."""

from __future__ import annotations

from dataclasses import replace

import pytest
from splitwatt_core.budget.facts import PodFact, SpecWrite
from splitwatt_core.clusters import PRIORITY_LOW
from splitwatt_core.protocol.contract import Phase, PowerClass, Workload
from support.keepers import caps, condition, settled
from support.scenes import ready, send_all
from support.world import DEFAULT_W, MIN_W, ROOT, Operator, World

# ----------------------------------------------------------------------------------------------------- pods and phases


def with_pods(limit_w: int) -> tuple[World, Operator]:
    """PhaseAware: a decode pod of two GPUs in rack a, a prefill pod of two in rack b."""
    world = World(policy="PhaseAware", gpus_per_node=2, limit_w=limit_w)
    for rack, phase in (("a", Phase.DECODE), ("b", Phase.PREFILL)):
        world.pods[("ns", rack)] = PodFact("ns", rack, phase, 0)
        world.nodes[f"{rack}0"].workloads.update({uuid: Workload("ns", rack) for uuid in world.nodes[f"{rack}0"].gpus})
    return world, settled(world, 12)


def test_decode_gives_first_and_a_pods_gpus_share_one_cap() -> None:
    world, _ = with_pods(2 * 350 + 2 * 640)
    decode, prefill = caps(world, "a0"), caps(world, "b0")
    assert decode[0] == decode[1] and prefill[0] == prefill[1]
    assert prefill[0] == 640 and 250 <= decode[0] <= 350


def test_a_restarted_operator_finds_phases_and_caps_as_they_were() -> None:
    world, operator = with_pods(2 * 350 + 2 * 640)
    before = {n: obj.spec.gpus for n, obj in world.store.objects.items() if obj.spec is not None}
    assert {g.phase for rows in before.values() for g in rows} == {Phase.DECODE, Phase.PREFILL}
    operator.holds_lease = False
    successor = world.elect()
    successor.settle(4)
    after = {n: obj.spec.gpus for n, obj in world.store.objects.items() if obj.spec is not None}
    assert after == before
    assert successor.last.budgets[ROOT].charge_w == operator.last.budgets[ROOT].charge_w


@pytest.mark.parametrize("written", [True, False])
def test_pods_whose_cluster_went_while_no_operator_ran_keep_class_and_ceiling(written: bool) -> None:
    """Every successor finds them in the lines; where an older operator wrote none, nothing rises and nothing is taken away."""
    world = World(policy="PhaseAware", gpus_per_node=2, limit_w=2 * 450 + 2 * 400)
    world.pods[("ns", "a")] = PodFact("ns", "a", Phase.PREFILL, 7, power_ceiling_w=450)
    world.pods[("ns", "b")] = PodFact("ns", "b", Phase.PREFILL, 3)
    for rack in "ab":
        world.nodes[f"{rack}0"].workloads.update({uuid: Workload("ns", rack) for uuid in world.nodes[f"{rack}0"].gpus})
    operator = settled(world, 12)
    assert (caps(world, "a0"), caps(world, "b0")) == ([450, 450], [400, 400])
    for obj in list(world.store.objects.values()):
        assert obj.spec is not None
        if not written:
            older = tuple(replace(line, power_class=None) for line in obj.spec.gpus)
            world.store.write_spec(SpecWrite(obj.name, obj.uid, obj.resource_version, replace(obj.spec, gpus=older)))
    world.pods[("ns", "a")] = PodFact("ns", "a", Phase.PREFILL, PRIORITY_LOW, orphan=True)
    for _ in range(2):
        operator.holds_lease = False
        operator = world.elect()
        operator.settle(6)
        spec = world.store.objects["a0"].spec
        assert spec is not None and {line.power_class for line in spec.gpus} == {PowerClass(7, 450) if written else None}
        assert (caps(world, "a0"), caps(world, "b0")) == ([450, 450], [400, 400])
    world.set_limit(10_000)
    operator.settle(12)
    assert caps(world, "a0") == [450, 450], "not raised above its ceiling, whatever is left"
    world.set_limit(2 * 450 + 2 * 300)
    operator.settle(12)
    if written:
        assert caps(world, "a0") == [400, 400] and max(caps(world, "b0")) < 400, "who ranks higher gives last"


def test_a_phase_that_changes_is_told_without_a_new_grant() -> None:
    world, operator = with_pods(4 * MIN_W)
    before = world.store.objects["a0"].spec
    world.pods[("ns", "a")] = PodFact("ns", "a", Phase.PREFILL, 0)
    operator.keeper.on_pod(world.pods[("ns", "a")])
    operator.settle(3)
    after = world.store.objects["a0"].spec
    assert before is not None and after is not None
    assert [g.grant for g in after.gpus] == [g.grant for g in before.gpus]
    assert {g.phase for g in after.gpus} == {Phase.PREFILL}


def test_floor_room_counts_cliffs_of_what_runs_and_says_which() -> None:
    _, operator = with_pods(2000)
    assert operator.keeper.floor_room_w(ROOT) == 2000 - 2 * 250 - 2 * 400
    assert dict(operator.keeper.floors_counted()) == {("ns", "a"): (2, 2 * 250.0), ("ns", "b"): (2, 2 * 400.0)}
    operator.keeper.on_pod_gone("ns", "a")
    operator.step()
    strangers = {("ns", "a"): (2, 2 * 250.0), ("ns", "b"): (2, 2 * 400.0)}
    assert operator.keeper.floors_counted() == strangers, "whoever holds them is counted"


def test_a_workload_of_somebody_else_is_given_no_less_than_prefill() -> None:
    world = World(policy="PhaseAware", limit_w=2000)
    world.nodes["a0"].workloads["a0-g0"] = Workload("their", "job")
    settled(world, 12)
    assert caps(world, "a0") == [DEFAULT_W] and caps(world, "b0") == [MIN_W]


# ------------------------------------------------------------------------------------------------------ safe caps, I4


def test_safe_caps_that_do_not_fit_hold_every_raise_back_and_say_so() -> None:
    world, operator, *_, a, b = ready(a=300, b=300)
    for spec in (replace(world.budgets[ROOT], safe_cap_w=500, limit_w=900), world.budgets["a"], world.budgets["b"]):
        operator.keeper.on_budget(replace(spec, limit_w=900), world.now_s)
    for _ in range(5):
        world.now_s += 0.6
        operator.watch()
        send_all(operator)
        for agent in world.agents.values():
            agent.run()
    assert (a.true_w, b.true_w) == (300, 300)
    infeasible = condition(operator, ROOT, "Feasible")
    assert infeasible.reason == "SafeCapsAboveLimit" and "need 100 W more" in infeasible.message


def test_every_grant_carries_the_trees_safe_cap_but_none_above_its_cap() -> None:
    world, operator, *_ = ready(a=300, b=600)
    for name in (ROOT, "a", "b"):
        operator.keeper.on_budget(replace(world.budgets[name], safe_cap_w=400 if name == ROOT else None), world.now_s)
    operator.settle(3)
    safe = {n: obj.spec.gpus[0].safe_cap_w for n, obj in world.store.objects.items() if obj.spec is not None}
    assert safe == {"a0": 300, "b0": 400}
