"""Acknowledgements that come late: neighbours make room while a sum is too high, or once an agent is mute; while agents live
and the sums hold, nothing is stirred up."""

from __future__ import annotations

import pytest
from splitwatt_core.budget.facts import PodFact
from splitwatt_core.budget.fleet import LATE_ACK_S, MUTE_S, Fleet
from splitwatt_core.protocol.contract import Phase, Workload
from splitwatt_core.protocol.node_account import AGENT_METRICS_SILENT_S
from support.keepers import caps, condition, settled
from support.scenes import ready
from support.world import ROOT, Operator, World

STEP_S = 0.5


def second(world: World, operator: Operator, *answering: str) -> None:
    """Two steps of the operator, whose writes all arrive; only these nodes' agents look at them, all draw and are sampled."""
    for _ in range(2):
        world.now_s += STEP_S
        operator.watch()
        operator.step()
        while operator.sent:
            operator.arrive()
        for name in answering:
            world.agents[name].run()


def test_neighbours_make_room_for_a_late_agent_until_the_sum_holds() -> None:
    world, operator, _, _, a, b = ready(a=450, b=450)
    world.set_limit(700)
    for _ in range(int(LATE_ACK_S)):
        second(world, operator, "b0")
    assert (a.true_w, b.true_w) == (450, 350), "it may still answer"
    for _ in range(3):
        second(world, operator, "b0")
    assert (a.true_w, b.true_w) == (450, 250) and operator.last.budgets[ROOT].charge_w == 700
    for _ in range(4):
        second(world, operator, "a0", "b0")
    assert (a.true_w, b.true_w) == (350, 350)


def test_a_late_raise_costs_nobody_anything() -> None:
    world, operator, *_, a, b = ready(a=300, b=300)
    world.set_limit(900)
    for _ in range(int(LATE_ACK_S) + 4):
        second(world, operator, "b0")
    assert (a.true_w, b.true_w) == (300, 450)
    assert operator.charge_w("a0", "a0-g0") == 450, "granted, and so charged, though nobody answered"


def assign(world: World, operator: Operator | None, rack: str, phase: Phase) -> None:
    """The rack's node runs a pod of this phase on all its GPUs."""
    pod = world.pods[("ns", rack)] = PodFact("ns", rack, phase, 0)
    world.nodes[f"{rack}0"].workloads.update({uuid: Workload("ns", rack) for uuid in world.nodes[f"{rack}0"].gpus})
    if operator is not None:
        operator.keeper.on_pod(pod)


def owing(*, gpus: int = 1) -> tuple[World, Operator]:
    """a0 prefills at 672 W of the row's 1100 W per GPU, turns to decode, and its agent hears nothing of the lower cap."""
    world = World(policy="PhaseAware", gpus_per_node=gpus, limit_w=1100 * gpus)
    assign(world, None, "a", Phase.PREFILL)
    operator = settled(world, 12)
    assert caps(world, "a0") == [672] * gpus
    assign(world, operator, "a", Phase.DECODE)
    return world, operator


def test_a_neighbour_gets_what_a_cut_off_agent_leaves_once_it_was_mute_for_a_minute() -> None:
    """Scraped, so alive, but deaf: its watts are not dealt out, and they do not hold up anybody's raise for good."""
    world, operator = owing()
    second(world, operator, "b0")
    assign(world, operator, "b", Phase.PREFILL)
    for _ in range(int(MUTE_S) + 5):
        second(world, operator, "b0")
    assert caps(world, "a0") == [672] and caps(world, "b0") == [1100 - 672]
    ready_now = condition(operator, ROOT, "Ready")
    assert (ready_now.status, ready_now.reason) == (True, "AcknowledgementsLate")
    assert "grants to a0 are not acknowledged: look at those agents" in ready_now.message
    for _ in range(5):
        second(world, operator, "a0", "b0")
    assert condition(operator, ROOT, "Ready").reason == "Holding"
    assert sum(caps(world, "a0") + caps(world, "b0")) <= 1100 and caps(world, "b0") > [600]


def test_a_neighbour_gets_what_a_dead_agent_leaves_as_soon_as_its_samples_end() -> None:
    world, operator = owing()
    world.agents["a0"].crash()
    assign(world, operator, "b", Phase.PREFILL)
    for _ in range(int(AGENT_METRICS_SILENT_S) + 4):
        second(world, operator, "b0")
    assert caps(world, "a0") == [672] and caps(world, "b0") == [1100 - 672]


def test_dips_of_a_limit_are_given_back_though_a_neighbour_is_mute() -> None:
    world, operator = owing()
    assign(world, operator, "b", Phase.PREFILL)
    for dip_w in (0, 40, 80, 120):
        world.set_limit(1100 - dip_w)
        for _ in range(20):
            second(world, operator, "b0")
        world.set_limit(1100)
        for _ in range(20):
            second(world, operator, "b0")
    assert caps(world, "b0") == [1100 - 672]


def test_a_raise_that_is_owed_is_taken_back_when_the_sum_no_longer_holds_it() -> None:
    world, operator, *_, a, b = ready(a=300, b=300)
    world.set_limit(900)
    for _ in range(int(LATE_ACK_S) + 2):
        second(world, operator, "b0")
    assert (a.true_w, b.true_w) == (300, 450)
    world.set_limit(600)
    for _ in range(8):
        second(world, operator, "b0")
    world.agents["a0"].run()
    assert world.true_sum_w() <= 600, "it heard of the raise first, and far too late"


def test_admission_is_promised_no_watts_that_a_late_gpu_still_holds() -> None:
    world, operator = owing(gpus=2)
    for _ in range(int(LATE_ACK_S) + 3):
        second(world, operator, "b0")
    free_w = 2 * 1100 - operator.last.budgets[ROOT].charge_w
    assert operator.keeper.floor_room_w(ROOT) == free_w
    assert operator.keeper.floors_counted() == {}


def through_a_slow_way(world: World, operator: Operator, *, requests_per_s: int, seconds: int) -> list[tuple[float, ...]]:
    """An API server that serves this many writes a second, specs and statuses in turn. The true caps after each second."""
    seen: list[tuple[float, ...]] = []
    for _ in range(seconds):
        for turn in range(requests_per_s):
            world.now_s += 1.0 / requests_per_s
            if turn % (requests_per_s // 2) == 0:
                operator.watch()
                operator.step()
            waiting = [agent for agent in world.agents.values() if agent.statuses]
            if operator.sent and (turn % 2 == 0 or not waiting):
                operator.arrive()
            elif waiting:
                waiting[turn % len(waiting)].deliver_status()
            for agent in world.agents.values():
                agent.watch()
                agent.turn()
                if not agent.statuses:
                    agent.send_status()
        world.check()
        seen.append(tuple(float(w) for name in world.nodes for w in caps(world, name)))
    return seen


@pytest.mark.parametrize("requests_per_s", [4, 8, 16])
def test_caps_settle_though_every_acknowledgement_is_late(requests_per_s: int) -> None:
    """Forty nodes behind a way that takes longer for one cut than acknowledgements may take: no storm of writes."""
    nodes = 40
    world = World(nodes_per_rack=nodes // 2, limit_w=nodes * 500)
    operator = settled(world, 12)
    world.set_limit(nodes * 400)
    written = world.store.version
    seen = through_a_slow_way(world, operator, requests_per_s=requests_per_s, seconds=60 * 16 // requests_per_s)
    fits_after_s = next(i for i, row in enumerate(seen) if sum(row) <= nodes * 400)
    assert fits_after_s > LATE_ACK_S, "the way was not slow"
    assert set(seen[-1]) == {400.0}, "every cap where it belongs"
    assert all(sum(row) <= nodes * 400 for row in seen[fits_after_s:]), "and never above the limit again"
    assert world.store.version - written <= 8 * nodes


def test_without_this_rule_a_slow_way_never_comes_to_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """The proof that the scene above can fail: late GPUs stand aside whatever the sums say."""
    monkeypatch.setattr(Fleet, "with_late_aside", lambda self, _: self._fixed_at_charge(self.late & self.steerable))
    with pytest.raises(AssertionError, match="every cap where it belongs"):
        test_caps_settle_though_every_acknowledgement_is_late(16)


@pytest.mark.parametrize("ahead_s", [0.0, 3600.0])
def test_a_cut_is_obeyed_though_the_operators_clock_is_set_back_while_its_grace_runs(ahead_s: float) -> None:
    """Whatever was noted by a clock that was ahead: the grace, an agent's last word, since when it owes an acknowledgement."""
    world = World(gpus_per_node=2, limit_w=2400)
    operator = settled(world, 20)
    world.now_s += ahead_s
    operator.settle(3)
    world.agents["a0"].crash()
    world.set_limit(2000)
    operator.step()
    world.now_s -= ahead_s
    operator.settle(40)
    report = operator.last.budgets[ROOT]
    assert report.limit.in_force_w == 2000 and report.charge_w <= 2000
    assert condition(operator, ROOT, "CapsEnforced").reason == "AcknowledgementsLate"
    assert caps(world, "b0") == [400, 400], "they make room for the one that does not answer"
