"""Acknowledgements that come late: neighbours make room while a sum is too high, and nothing is stirred up once it holds."""

from __future__ import annotations

import pytest
from splitwatt_core.fleet import LATE_ACK_S, Fleet
from support.keepers import caps, settled
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
                agent.tick()
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
    monkeypatch.setattr(Fleet, "without_late", lambda self, _: self._fixed_at_charge(self.late & self.steerable))
    with pytest.raises(AssertionError):
        test_caps_settle_though_every_acknowledgement_is_late(16)
