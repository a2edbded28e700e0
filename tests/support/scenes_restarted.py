"""Scenes 54 to 58b: agents that were dead while grants changed (docs/protocol.md, R36).

That no status says of an acknowledged GPU that nothing is acknowledged is asserted by the world, at every status (T4).
"""

from __future__ import annotations

from splitwatt_core.protocol.contract import NO_GRANT, GpuStatus
from support.scenes import LIMIT_W, ready, send_all, within
from support.world import DEFAULT_W, Agent, World


def first_word(world: World, agent: Agent) -> GpuStatus:
    """What a new process says after its first read and its first look at the hardware."""
    agent.start()
    agent.read()
    agent.turn()
    agent.send_status()
    while agent.statuses:
        agent.deliver_status()
    world.active.watch()
    world.check()
    said = world.store.objects[agent.node.name].status.gpus[0]
    agent.run()
    world.active.settle(4)
    within(world)
    return said


def acked(world: World) -> int:
    return world.store.objects["a0"].status.gpus[0].acked_grant


def scene_54_a_lowering_grant_is_on_the_record_and_not_yet_set() -> None:
    world, operator, agent, _, a, _ = ready(a=600, b=300)
    before = acked(world)
    world.set_limit(LIMIT_W, a=300, b=300)
    send_all(operator)
    agent.watch()
    agent.die_in_turn(durable=True, called=False)
    assert a.true_w == 600
    assert first_word(world, agent).acked_grant == before, "what it had acknowledged is acknowledged still"


def scene_55_a_raise_was_applied_and_a_lower_grant_recorded() -> None:
    world, operator, agent, _, a, _ = ready(a=300, b=300)
    before = acked(world)
    world.set_limit(LIMIT_W, a=600, b=300)
    send_all(operator)
    agent.watch()
    for _ in range(2):
        agent.turn()  # recorded, then set; nobody has read it back
    assert a.true_w == 600
    world.set_limit(LIMIT_W, a=250, b=300)
    operator.watch()
    send_all(operator)
    agent.watch()
    agent.die_in_turn(durable=True, called=False)
    assert first_word(world, agent).acked_grant == before, "above both caps on the record, and below the one between them"


def scene_56_the_highest_grant_on_the_record_was_acknowledged() -> None:
    world, operator, agent, _, a, _ = ready(a=600, b=300)
    world.set_limit(LIMIT_W, a=300, b=300)
    operator.settle(4)
    highest = acked(world)
    agent.crash()
    world.set_limit(LIMIT_W, a=500, b=300)
    send_all(operator)
    said = first_word(world, agent)
    assert a.true_w == 500
    assert said.acked_grant == highest, "the earlier acknowledgement is told where the later one is true"


def scene_57_the_record_speaks_of_another_object() -> None:
    world, operator, agent, _, _, _ = ready(a=300, b=300)
    agent.crash()
    world.store.delete("a0")
    operator.watch()
    operator.step()  # made anew, without a spec
    assert world.store.objects["a0"].spec is None
    assert first_word(world, agent).acked_grant == NO_GRANT, "another object's grant is reported for this one"


def scene_57b_the_record_is_believed_only_with_a_readback() -> None:
    world, _, agent, _, a, _ = ready(a=300, b=300)
    agent.crash()
    world.reset("a0", "a0-g0")  # nobody was there to see it
    said = first_word(world, agent)
    assert said.acked_grant == NO_GRANT, "acknowledged, and the limit reads 700 W"
    assert a.true_w < DEFAULT_W


def scene_58_a_call_of_the_former_life_completes_after_a_lower_one_was_acknowledged() -> None:
    world, operator, agent, _, a, _ = ready(a=300, b=300)
    world.set_limit(LIMIT_W, a=600, b=300)
    send_all(operator)
    agent.hang_next = True
    agent.run()
    agent.crash()
    assert agent.hung and a.true_w == 300
    world.set_limit(LIMIT_W, a=300, b=600)
    agent.start()
    operator.settle(6)
    agent.complete()
    assert a.true_w == 600
    within(world)
    agent.start()
    operator.settle(6)
    within(world)
    assert a.true_w == 300, "the next process takes over when the lock is free"


def scene_58b_a_call_hangs_before_the_first_read() -> None:
    world, _, agent, _, a, _ = ready(a=600, b=300)
    before = acked(world)
    agent.crash()
    agent.start()
    agent.hang_next = True
    agent.turn({"a0-g0": 300})  # the node guard, which asks for no grant
    assert agent.hung and a.true_w == 600
    agent.read()
    agent.turn()
    agent.send_status()
    agent.deliver_status()
    assert acked(world) == before, "the call that hangs can only lower"
    agent.complete()
    within(world)


SCENES = {name: f for name, f in sorted(globals().items()) if name.startswith("scene_")}
