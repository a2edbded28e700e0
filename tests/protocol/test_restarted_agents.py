"""All agents of a row are killed, one limit is lowered a little meanwhile, and they come back (docs/protocol.md, R36)."""

from __future__ import annotations

from support.scenes import LIMIT_W, ready, send_all, within


def test_agents_that_come_back_after_a_small_cut_cost_nobody_a_cap() -> None:
    """Were nothing called acknowledged, every GPU would count at its default of 700 W, and all would fall to their minimum."""
    world, operator, first, second, a, b = ready(a=500, b=400)
    assert (a.true_w, b.true_w) == (500, 400)
    for agent in (first, second):
        agent.crash()
    world.set_limit(LIMIT_W, a=460, b=400)
    world.now_s += 10.0
    send_all(operator)
    assert world.store.objects["a0"].spec.gpus[0].cap_w == 460  # type: ignore[union-attr]
    lowest = [a.true_w, b.true_w]
    for agent in (first, second):
        agent.start()
        agent.read()
        agent.turn()
        agent.send_status()
        agent.deliver_status()
    for _ in range(8):
        operator.watch()
        send_all(operator)
        for agent in (first, second):
            agent.run()
        lowest = [min(lowest[0], a.true_w), min(lowest[1], b.true_w)]
        world.now_s += 0.5
        within(world)
    assert lowest == [460, 400]
