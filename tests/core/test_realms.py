"""What policies are shown: their own tree, meters that speak, locks in force, and what they remembered themselves."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from splitwatt_core.budget import realms
from splitwatt_core.budget.facts import Plan, PodFact
from splitwatt_core.budget.fleet import slot
from splitwatt_core.budget.realms import KEPT_S
from splitwatt_core.columns import Posture
from splitwatt_core.policies.phase_aware import PhaseAware
from splitwatt_core.policies.signature import Decision, Policy, PowerSnapshot
from splitwatt_core.policies.uniform import Uniform
from splitwatt_core.protocol.contract import Health, Mode, Phase, Workload
from support.keepers import condition, settled
from support.world import ROOT, Line, Operator, World


@dataclass
class Spy:
    """Uniform's caps, a lock of its own, and a memory that counts its decisions. Keeps what it was shown."""

    name: str = "Spy"
    lock_mhz: int = 0
    shown: list[PowerSnapshot] = field(default_factory=list)

    def decide(self, snapshot: PowerSnapshot, now_s: float) -> Decision:
        self.shown.append(snapshot)
        decision = Uniform().decide(snapshot, now_s)
        locks = np.full(len(decision.cap_w), self.lock_mhz, dtype=np.int32)
        told = snapshot.memory if isinstance(snapshot.memory, int) else 0
        return replace(decision, max_clock_mhz=locks, memory=told + 1)

    def last(self, root: str) -> PowerSnapshot:
        return next(seen for seen in reversed(self.shown) if seen.budgets.names[0] == root)


def watched(world: World, **more: Policy) -> tuple[Operator, Spy]:
    spy = Spy()
    world.policy = spy.name
    world.policies = {**world.policies, spy.name: spy, **more}
    world.tell_budgets()
    return settled(world), spy


def locks(world: World, node: str) -> list[int | None]:
    spec = world.store.objects[node].spec
    assert spec is not None
    return [grant.max_clock_mhz for grant in spec.gpus]


def later(world: World) -> Operator:
    """When no decision is kept any more."""
    world.now_s += KEPT_S
    return world.active


def two_trees() -> World:
    world = World(limit_w=900)
    world.lines[ROOT].exists = False
    for rack in ("a", "b"):
        world.lines[rack].parent = None
    return world


def test_each_tree_is_shown_alone_with_its_own_memory() -> None:
    world = two_trees()
    _, spy = watched(world)
    for root in ("a", "b"):
        seen = spy.last(root)
        assert seen.budgets.names == (root,) and seen.gpus.leaf.tolist() == [0]
        assert seen.slot is not None and seen.slot.tolist() == [slot("", f"{root}0-g0")]
        assert seen.clocks is not None and seen.clocks.top_mhz.tolist() == [2000.0]
    for _ in range(2):
        before = {root: spy.last(root).memory for root in ("a", "b")}
        later(world).step()
        assert {root: spy.last(root).memory for root in ("a", "b")} == {root: n + 1 for root, n in before.items()}  # type: ignore[operator]


def test_another_policy_begins_without_the_memory_of_the_first() -> None:
    world = World()
    successor = Spy("Other")
    operator, spy = watched(world, Other=successor)
    assert isinstance(spy.last(ROOT).memory, int)
    world.policy = "Other"
    world.tell_budgets()
    operator.step()
    assert successor.shown[0].memory is None
    later(world).step()
    assert successor.last(ROOT).memory == 1


def test_what_observe_decided_is_no_memory_of_strict() -> None:
    world = World()
    world.lines[ROOT].mode = Mode.OBSERVE
    operator, spy = watched(world)
    assert isinstance(spy.last(ROOT).memory, int), "it remembers what it said"
    world.lines[ROOT].mode = Mode.STRICT
    world.tell_budgets()
    operator.step()
    assert spy.last(ROOT).memory is None
    operator.step()
    assert spy.last(ROOT).memory == 1


def test_a_tree_that_is_deleted_and_made_anew_goes_on() -> None:
    world = two_trees()
    operator, spy = watched(world)
    world.lines["a"].exists = False
    world.tell_budgets()
    operator.step()
    world.lines["a"].exists = True
    world.tell_budgets()
    operator.step()
    assert spy.last("a").memory is not None, "its nodes stood below it all the time"


def test_nobody_is_asked_about_a_tree_without_gpus_and_it_is_reported_all_the_same() -> None:
    world = two_trees()
    world.lines.update({f"empty-{k}": Line(None, 900, leaf=True, fixed_w=1000 * (k == 0)) for k in range(20)})
    operator, spy = watched(world)
    spy.shown.clear()
    later(world).step()
    assert sorted(seen.budgets.names[0] for seen in spy.shown) == ["a", "b"], "two trees have GPUs, and each is asked about once"
    assert operator.last.budgets.keys() == world.budgets.keys()
    for k in range(20):
        report = operator.last.budgets[f"empty-{k}"]
        assert (report.posture, report.nodes, report.gpus, report.reasons) == (Posture.ADOPTING, 0, 0, ())
        assert (report.charge_w, report.short_w) == ((1000.0, 100.0) if k == 0 else (0.0, 0.0))
        assert condition(operator, f"empty-{k}", "Ready").reason == "NoNodes"
        assert operator.keeper.floor_room_w(f"empty-{k}") == (-100.0 if k == 0 else 900.0)


def test_a_tree_that_lost_its_gpus_begins_anew_with_the_next_ones() -> None:
    world = two_trees()
    operator, spy = watched(world)
    world.store.delete("a0")
    world.agents["a0"].crash()
    world.nodes["a0"].present = False
    world.tell_nodes()
    operator.settle(8)
    assert operator.last.budgets["a"].gpus == 0
    spy.shown.clear()
    later(world).step()
    assert [seen.budgets.names[0] for seen in spy.shown] == ["b"]
    world.nodes["b0"].rack = "a"
    world.tell_nodes()
    operator.settle(1)
    first, *_ = (seen for seen in spy.shown if seen.budgets.names[0] == "a")
    assert first.memory is None


def test_a_tree_is_decided_beside_many_as_it_is_alone() -> None:
    """Whatever comes: limits, a crash, a reboot. Its own meters, sums, caps, reports and notes are the same to the last bit."""

    def played(world: World) -> Iterator[Plan]:
        world.pods[("ns", "a")] = PodFact("ns", "a", Phase.PREFILL, 5)
        world.nodes["a0"].workloads["a0-g0"] = Workload("ns", "a")
        world.policy = "PhaseAware"
        operator = world.elect()
        for step, limit_w in enumerate((1500, 1500, 1100, 1100, 600, 900, 1500)):
            world.set_limit(limit_w, **{name: 5000 for name in world.lines if name.startswith("beside")})
            if step == 3:
                world.agents["b0"].crash()
            if step == 5:
                world.reboot("b0")
                world.tell_nodes()
            for _ in range(6):
                operator.settle(1)
                yield operator.last

    many = World(rich=True)
    many.lines.update({f"beside-{k}": Line(None, 5000, leaf=True, fixed_w=10 * k) for k in range(12)})
    many.add_node("c0", "beside-3")
    compared = 0
    for alone, beside in zip(played(World(rich=True)), played(many), strict=True):
        assert {name: beside.budgets[name] for name in alone.budgets} == alone.budgets
        assert [(w.name, w.spec) for w in beside.writes if w.name != "c0"] == [(w.name, w.spec) for w in alone.writes]
        compared += len(alone.writes)
    assert compared > 5, "nothing was decided"


def test_where_a_late_gpu_stands_aside_both_decisions_start_from_one_memory_and_the_one_that_acts_is_kept() -> None:
    world = World(limit_w=900)
    operator, spy = watched(world)
    world.agents["a0"].crash()
    world.set_limit(600)
    for _ in range(8):
        world.now_s += 1.0
        operator.watch()
        operator.step()
        while operator.sent:
            operator.arrive()
        world.agents["b0"].run()
    acts, asks = spy.shown[-2:]
    assert acts.memory == asks.memory, "asked twice in one step, about the fleet with and without it"
    later(world).step()
    assert spy.shown[-2].memory == acts.memory + 1  # type: ignore[operator]


def test_grants_that_lower_are_written_before_those_that_raise() -> None:
    world = two_trees()
    world.policy = "Uniform"
    world.set_limit(900, a=400)
    operator = settled(world)
    world.set_limit(900, b=400)
    operator.step()
    assert [write.name for write in operator.last.writes] == ["b0", "a0"]


def test_a_tree_of_which_nothing_changed_is_not_decided_again_at_once() -> None:
    world = two_trees()
    operator, spy = watched(world)
    later(world).step()
    spy.shown.clear()
    operator.step()
    assert spy.shown == []
    world.set_limit(900, a=500)
    operator.step()
    assert [seen.budgets.names[0] for seen in spy.shown] == ["a"]
    spy.shown.clear()
    world.now_s -= 1.0  # a clock that was set back
    operator.step()
    assert len(spy.shown) == 2


MOVES = st.tuples(st.sampled_from([0.0, 0.05, 0.2, 0.4, 0.7]), st.sampled_from([300, 600, 900, 1500]), st.sampled_from("abx"))


@settings(deadline=None, max_examples=60)
@given(policy=st.sampled_from(["Uniform", "Plain"]), moves=st.lists(MOVES, min_size=3, max_size=12))
def test_what_is_kept_is_what_would_be_decided_anew(policy: str, moves: list[tuple[float, int, str]]) -> None:
    """Of policies that time alone does not move, every grant, report and note is the same."""

    def played(kept_s: float) -> Iterator[Plan]:
        world = two_trees()
        world.policies = {**world.policies, "Plain": PhaseAware()}
        world.policy = policy
        world.tell_budgets()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(realms, "KEPT_S", kept_s)
            operator = settled(world)
            for pause_s, limit_w, rack in moves:
                world.now_s += pause_s
                if rack in world.lines:
                    world.set_limit(900, **{rack: limit_w})
                operator.step()
                yield operator.last
                while operator.sent:
                    operator.arrive()
                for agent in world.agents.values():
                    agent.run()
                operator.watch()

    for kept, anew in zip(list(played(realms.KEPT_S)), list(played(0.0)), strict=True):
        assert [(w.name, w.spec) for w in kept.writes] == [(w.name, w.spec) for w in anew.writes]
        assert kept.budgets == anew.budgets and kept.notes == anew.notes


# -------------------------------------------------------------------------------------------------------------- meters


def read(spy: Spy) -> dict[str, float]:
    seen = spy.last(ROOT)
    assert seen.meter is not None
    return dict(zip(seen.budgets.names, seen.meter.measured_w.tolist(), strict=True))


def test_meters_that_speak_are_shown_with_the_limit_in_force() -> None:
    world = World(limit_w=900)
    _, spy = watched(world)
    world.set_limit(800)
    world.active.step()
    seen = spy.last(ROOT)
    assert seen.meter is not None and seen.meter.limit_w.tolist() == [900.0, 900.0, 900.0], "in its grace the old one holds"
    assert read(spy) == pytest.approx({name: world.meter_w(name) for name in (ROOT, "a", "b")})


def test_a_silent_meter_is_no_reading_though_agents_could_be_asked() -> None:
    world = World(limit_w=900)
    operator, spy = watched(world)
    world.dark.add("a")
    world.now_s += 6.0
    operator.step()
    assert operator.last.budgets["a"].measured_w is not None, "the agents' sum, for people"
    assert np.isnan(read(spy)["a"]) and read(spy)["b"] > 0 and read(spy)[ROOT] > 0


def test_without_a_meter_of_its_own_a_root_reads_what_all_its_children_read_or_nothing() -> None:
    world = World(limit_w=900)
    operator, spy = watched(world)
    bare = replace(world.budgets[ROOT], meter=None)
    operator.keeper.on_budget(bare, world.now_s)
    operator.step()
    assert read(spy)[ROOT] == pytest.approx(read(spy)["a"] + read(spy)["b"])
    world.dark.add("a")
    world.now_s += 6.0
    operator.step()
    assert np.isnan(read(spy)[ROOT]) and read(spy)["b"] > 0


def test_nothing_is_read_before_a_budgets_first_caps_can_show() -> None:
    world = World(limit_w=900)
    spy = Spy()
    world.policies = {**world.policies, spy.name: spy}
    world.policy = spy.name
    world.tell_budgets()
    operator = world.elect()
    operator.settle(1)
    assert spy.shown == [], "no GPU is known yet"
    for _ in range(20):
        operator.settle(1)
        book = operator.keeper.books[ROOT]
        assert np.isnan(read(spy)[ROOT]) == (not book.adopted or world.now_s - book.adopted_s < 3.0)
    assert read(spy)[ROOT] > 0


# --------------------------------------------------------------------------------------------------------------- clocks


def test_a_lock_is_granted_under_the_same_cap_and_shown_to_the_policy() -> None:
    world = World(limit_w=900)
    operator, spy = watched(world)
    before = world.store.objects["a0"].spec.gpus[0]  # type: ignore[union-attr]
    charged_w = operator.last.budgets[ROOT].charge_w
    spy.lock_mhz = 1200
    operator.step()
    assert operator.last.budgets[ROOT].charge_w == charged_w
    operator.settle(2)
    after = world.store.objects["a0"].spec.gpus[0]  # type: ignore[union-attr]
    assert (after.cap_w, after.max_clock_mhz, after.grant) == (before.cap_w, 1200, before.grant)
    assert operator.last.budgets[ROOT].charge_w == charged_w
    shown = spy.last(ROOT).clocks
    assert shown is not None and shown.granted_mhz.tolist() == [1200, 1200]


def test_a_lock_is_deepened_under_a_stale_meter_but_not_loosened() -> None:
    world = World(limit_w=900)
    operator, spy = watched(world)
    spy.lock_mhz = 1200
    operator.settle(2)
    world.dark.add("a")
    world.now_s += 6.0
    spy.lock_mhz = 0
    operator.settle(2)
    assert (locks(world, "a0"), locks(world, "b0")) == ([1200], [None])
    spy.lock_mhz = 1000
    operator.settle(2)
    assert (locks(world, "a0"), locks(world, "b0")) == ([1000], [1000])


def test_a_gpu_that_cannot_be_steered_keeps_its_lock() -> None:
    world = World(limit_w=900)
    operator, spy = watched(world)
    spy.lock_mhz = 1200
    operator.settle(2)
    operator.keeper.roster.nodes["a0"].gpus["a0-g0"].health = Health.LOST
    for lock in (1000, 0):
        spy.lock_mhz = lock
        operator.step()
        written = {write.name: [g.max_clock_mhz for g in write.spec.gpus] for write in operator.last.writes}
        assert written.get("a0", [1200]) == [1200]
        assert written["b0"] == [lock or None]
        while operator.sent:
            operator.arrive()
        world.agents["b0"].run()
        operator.keeper.on_node_power(world.store.objects["b0"], world.now_s)
