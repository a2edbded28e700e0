"""Locks, paces and what policies remember, through the whole keeper: restarts, silence, another policy."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

from splitwatt_core.budget.facts import PodFact
from splitwatt_core.columns import Posture
from splitwatt_core.policies.foresight import ForesightSettings
from splitwatt_core.policies.pacing import Pace
from splitwatt_core.policies.phase_aware import PhaseAware
from splitwatt_core.policies.polca import Polca
from splitwatt_core.protocol.contract import Phase, Workload
from support.keepers import settled
from support.some import some
from support.world import ROOT, Operator, World

FORESIGHT = ForesightSettings(dwell_s=6.0, release_per_s=4.0)
LIMIT_W = 2900
POLICIES = (PhaseAware(pace=Pace(), foresight=FORESIGHT), Polca())


def world_with(policy: str) -> tuple[World, Operator]:
    """High decode in rack a, low prefill in rack b, two GPUs each, all at full draw, and 500 W to spare."""
    world = World(policy=policy, gpus_per_node=2, limit_w=LIMIT_W)
    world.policies = {p.name: p for p in POLICIES}
    for rack, phase, priority in (("a", Phase.DECODE, 5), ("b", Phase.PREFILL, 0)):
        world.pods[("ns", rack)] = PodFact("ns", rack, phase, priority)
        world.nodes[f"{rack}0"].workloads.update({uuid: Workload("ns", rack) for uuid in world.nodes[f"{rack}0"].gpus})
        for gpu in world.nodes[f"{rack}0"].gpus.values():
            gpu.wants_w = 450 if phase is Phase.DECODE else 640
    return world, settled(world, 30)


def locks(world: World, node: str) -> list[int]:
    spec = world.store.objects[node].spec
    assert spec is not None
    return [grant.max_clock_mhz or 0 for grant in spec.gpus]


def until(operator: Operator, seen: Callable[[], bool], rounds: int = 60) -> int:
    """Rounds until it is seen."""
    for count in range(rounds):
        if seen():
            return count
        operator.settle(1)
    raise AssertionError(f"not seen in {rounds} rounds")


def test_undeclared_watts_are_met_by_locks_while_the_posture_is_normal() -> None:
    world, operator = world_with("PhaseAware")
    assert world.meter_w(ROOT) < LIMIT_W and not any(locks(world, "b0"))
    for extra_w in range(0, 360, 20):
        world.undeclared_w = extra_w  # in each of two racks
        operator.settle(1)
        assert world.meter_w(ROOT) < LIMIT_W
        if any(locks(world, "b0")):
            break
    assert all(locks(world, "b0")) and not any(locks(world, "a0"))
    assert operator.last.budgets[ROOT].posture is Posture.NORMAL


def test_silence_and_a_restart_loosen_no_lock_and_a_calm_dwell_does() -> None:
    world, operator = world_with("PhaseAware")
    for extra_w in range(0, 360, 20):
        world.undeclared_w = extra_w
        operator.settle(1)
        if any(locks(world, "b0")):
            break
    held = locks(world, "b0")
    world.undeclared_w = 0
    world.dark.add(ROOT)
    world.now_s += 6.0
    operator.settle(30)
    assert locks(world, "b0") == held, "a meter that is away"
    world.dark.clear()
    operator.holds_lease = False
    successor = world.elect()
    successor.settle(8)
    assert locks(world, "b0") == held, "a new start, and less than a dwell of readings"
    assert until(successor, lambda: not any(locks(world, "b0"))) > 1


def test_polca_locks_the_low_priority_at_its_thresholds_and_holds_what_another_policy_locked() -> None:
    world, operator = world_with("Polca")
    assert world.meter_w(ROOT) < 0.75 * LIMIT_W and not any(locks(world, "b0"))
    world.undeclared_w = 120
    until(operator, lambda: all(locks(world, "b0")))
    assert locks(world, "b0") == [round(1275 * 2000 / 1410)] * 2 and not any(locks(world, "a0"))
    world.policy = "PhaseAware"
    world.undeclared_w = 0
    world.tell_budgets()
    operator.settle(3)
    assert all(0 < lock <= round(1275 * 2000 / 1410) for lock in some(locks(world, "b0"))), "begun where the locks were"
    world.policy = "Polca"
    world.tell_budgets()
    operator.settle(1)
    assert all(locks(world, "b0"))


def test_paced_raises_arrive_and_a_new_start_raises_nothing_at_once() -> None:
    world, operator = world_with("PhaseAware")
    pods = ("first", "second")  # each GPU has a moment of its own: 0.29 and 0.85 of a slot
    for pod in pods:
        world.pods[("ns", pod)] = PodFact("ns", pod, Phase.PREFILL, 0)
    world.nodes["b0"].workloads.update(
        {uuid: Workload("ns", pod) for pod, uuid in zip(pods, world.nodes["b0"].gpus, strict=True)}
    )
    operator.settle(20)
    world.set_limit(LIMIT_W, b=2 * 200)
    until(operator, lambda: world.nodes["b0"].true_w <= 2 * 200)
    world.set_limit(LIMIT_W)
    operator.holds_lease = False
    successor = world.elect()
    successor.step()
    assert not any(grant.cap_w > 200 for write in successor.last.writes for grant in write.spec.gpus if write.name == "b0")
    steps = [tuple(gpu.true_w for gpu in world.nodes["b0"].gpus.values())]
    for _ in range(20):
        successor.settle(1)
        steps.append(tuple(gpu.true_w for gpu in world.nodes["b0"].gpus.values()))
    assert min(steps[-1]) >= 640, "natural draw, after as many steps as it takes"
    # Out of the collapse at once, then a step of 2 s at 150 W/s at a time.
    rises = [b - a for one, next_ in pairwise(steps) for a, b in zip(one, next_, strict=True) if a >= 400]
    assert 0 < max(rises) <= 300
    assert any(one != other for one, other in steps), "each at a moment of its own"
