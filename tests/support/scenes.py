"""The sixteen scenes of the protocol, each a function that plays it on the core's real code and asserts what must hold.

Two racks of one node with one GPU each (caps 200-700 W, default 700 W) under one row; `a0-g0` and `b0-g0` are called a and
b. Kept as functions so that a test can play a scene on broken code and see it fail.
"""

from __future__ import annotations

from typing import Any

from splitwatt_core.budget.facts import SpecWrite, Unknown
from splitwatt_core.protocol.enforcer import ObjectVerdict
from splitwatt_core.protocol.record import Record
from support.world import DEFAULT_W, Agent, Gpu, Operator, World

LIMIT_W = 900


def ready(**rack_limit_w: int) -> tuple[World, Operator, Agent, Agent, Gpu, Gpu]:
    """A settled world at 900 W; racks as told."""
    world = World(limit_w=LIMIT_W)
    world.set_limit(LIMIT_W, **rack_limit_w)
    operator = world.elect()
    operator.settle(8)
    world.check()
    a, b = world.nodes["a0"].gpus["a0-g0"], world.nodes["b0"].gpus["b0-g0"]
    return world, operator, world.agents["a0"], world.agents["b0"], a, b


def within(world: World) -> None:
    world.check()
    assert world.true_sum_w() <= LIMIT_W, f"true limits add up to {world.true_sum_w()} W of {LIMIT_W} W"


def send_all(operator: Operator) -> None:
    operator.step()
    while operator.sent:
        operator.arrive()


def scene_01_acknowledged_before_the_raise_is_applied() -> None:
    world, operator, agent, _, a, _ = ready(a=300, b=300)
    world.set_limit(LIMIT_W, a=450, b=300)
    send_all(operator)
    agent.watch()
    agent.send_status()  # the raise is known, nothing was set yet: the readback is below the new cap
    while agent.statuses:
        agent.deliver_status()
    granted = world.store.objects["a0"].spec.gpus[0].grant  # type: ignore[union-attr]
    assert a.true_w == 300, "nothing was set yet"
    assert world.store.objects["a0"].status.gpus[0].acked_grant < granted, "acknowledged before it was applied"
    first = agent.enforcer.tick(world.now_s, agent.readbacks())
    assert agent.enforcer.status()[0].acked_grant < granted, "a readback below the cap is no acknowledgement of a raise"
    assert first.persist is not None, "a grant is persisted before it is applied"
    agent.enforcer.persisted()
    agent.run()
    operator.settle(3)
    within(world)


def scene_01b_an_acknowledged_cap_stays_charged_while_the_readback_is_lower() -> None:
    world, operator, agent, _, a, _ = ready(a=450, b=450)
    agent.turn({"a0-g0": 250})  # the node guard lowers beneath the grant
    agent.turn({"a0-g0": 250})
    agent.send_status()
    agent.deliver_status()
    operator.settle(0)
    operator.watch()
    world.now_s += 2.0
    operator.step()
    assert a.true_w == 250
    agent.turn()  # and lets go again, without asking anybody
    assert a.true_w == 450
    within(world)


def scene_02_an_overwritten_raise_is_applied_late_after_a_restart() -> None:
    world, operator, agent, _, a, _ = ready(a=300, b=300)
    world.set_limit(LIMIT_W, a=600, b=300)
    send_all(operator)
    agent.watch()  # it has read the raise, and will apply it late
    agent.alive = False
    world.set_limit(LIMIT_W, a=300, b=300)
    send_all(operator)  # overwritten by a low grant, unacknowledged
    world.set_limit(LIMIT_W, a=300, b=600)
    successor = world.elect()
    for _ in range(4):
        world.now_s += 0.6
        successor.step()
        while successor.sent:
            successor.arrive()
        world.agents["b0"].run()
        successor.watch()
    for _ in range(3):
        agent.turn()
    assert a.true_w == 600
    within(world)


def scene_03_a_timed_out_write_lands_after_a_lower_one_was_acknowledged() -> None:
    world, operator, agent, _, _, _ = ready(a=300, b=300)
    world.set_limit(LIMIT_W, a=600, b=300)
    operator.step()
    late = operator.sent.pop(0)
    operator.keeper.on_outcome(late.write, Unknown("time-out"), world.now_s)
    world.set_limit(LIMIT_W, a=250, b=300)
    operator.settle(4)
    before = world.store.objects["a0"].spec
    world.store.write_spec(late.write)  # it lands now
    assert world.store.objects["a0"].spec == before, "a late write replaced what was decided after it"
    agent.run()
    world.set_limit(LIMIT_W, a=250, b=600)
    operator.settle(4)
    within(world)


def _two_leaders(*, same_term: bool) -> None:
    """The old leader's raise of a is under way while the new one wants to raise b."""
    world, old, agent, _, _, _ = ready(a=300, b=300)
    world.set_limit(LIMIT_W, a=600, b=300)
    old.step()
    late = old.sent.pop(0)
    world.set_limit(LIMIT_W, a=300, b=600)
    world.term_step = 0 if same_term else 1
    new = world.elect()
    new.step()
    b_first = [i for i, sent in enumerate(new.sent) if sent.write.name == "b0"]
    for i in b_first:
        new.arrive(i)
    world.agents["b0"].run()
    new.watch()
    new.step()
    b_next = [i for i, sent in enumerate(new.sent) if sent.write.name == "b0"]
    for i in b_next:
        new.arrive(i)
    world.agents["b0"].run()
    world.store.write_spec(late.write)  # the old leader's raise lands before the new one's stamp
    agent.run()
    assert world.true_sum_w() <= LIMIT_W, f"both leaders' raises are in force: {world.true_sum_w()} W of {LIMIT_W} W"
    new.settle(6)
    within(world)


def scene_04_old_and_new_leader_raise_different_nodes() -> None:
    _two_leaders(same_term=False)


def scene_05_a_restart_takes_a_new_term() -> None:
    _two_leaders(same_term=World(limit_w=LIMIT_W).term_step == 0)


def scene_06_a_timeout_and_a_stale_cache_give_nothing_twice() -> None:
    world, operator, agent, _, a, _ = ready(a=300, b=300)
    world.set_limit(LIMIT_W, a=600, b=300)
    operator.step()
    write = operator.sent[0].write
    operator.time_out()
    operator.arrive()  # it did land
    agent.run()
    assert a.true_w == 600
    world.set_limit(LIMIT_W, a=300, b=600)
    operator.seen = len(world.store.log)  # the operator's watch is stuck: its cache shows the time before
    for _ in range(3):
        world.now_s += 0.6
        operator.step()
        while operator.sent:
            operator.arrive()
        world.agents["b0"].run()
    assert write.spec.gpus[0].cap_w == 600
    within(world)


def scene_06b_an_older_version_is_ignored() -> None:
    world, operator, _, _, _, _ = ready(a=300, b=300)
    old = world.store.objects["a0"]
    world.set_limit(LIMIT_W, a=600, b=300)
    operator.settle(4)
    operator.keeper.on_node_power(old, world.now_s)
    world.now_s += 1.0
    operator.see_node(world.nodes["a0"])
    within(world)
    operator.step()
    within(world)


def scene_07_a_restarted_agent_reads_an_old_version() -> None:
    world, operator, agent, _, a, _ = ready(a=600, b=300)
    old = world.store.objects["a0"]
    world.set_limit(LIMIT_W, a=300, b=600)
    operator.settle(6)
    agent.crash()
    agent.record = Record()  # even its disk is new
    agent.start()
    agent.observed = old
    assert agent.enforcer.observe(old, consistent=False) is ObjectVerdict.UNSYNCED, "a cache is no first read"
    for _ in range(3):
        agent.turn()
    assert a.true_w == 300
    within(world)


def scene_07b_a_lower_grant_than_the_persisted_one_is_refused() -> None:
    world, operator, agent, _, a, _ = ready(a=600, b=300)
    old = world.store.objects["a0"]
    world.set_limit(LIMIT_W, a=300, b=600)
    operator.settle(6)
    agent.crash()
    agent.start()
    agent.enforcer.observe(old, consistent=True)  # a read that only claims to be consistent
    for _ in range(3):
        agent.turn()
    assert a.true_w == 300, "a grant below the persisted one is refused"
    within(world)


def scene_08_a_delayed_status_lands_after_a_reset_was_reported() -> None:
    world, operator, agent, _, a, _ = ready(a=450, b=300)
    world.set_limit(LIMIT_W, a=300, b=300)
    send_all(operator)
    agent.watch()
    for _ in range(3):
        agent.turn()
    agent.send_status()  # "300 W", delayed
    world.reset("a0", "a0-g0")
    agent.read_at = world.count
    agent.enforcer.tick(world.now_s, agent.readbacks())
    agent.send_status()
    agent.deliver_status(1)  # "700 W"
    operator.watch()
    world.check()
    assert not a.surprised, "the reset was reported"
    agent.deliver_status(0)
    operator.watch()
    world.now_s += 1.0
    operator.see_node(world.nodes["a0"])
    world.check()


def scene_09_a_hung_setter_completes_after_a_lower_one() -> None:
    world, operator, agent, _, a, _ = ready(a=300, b=300)
    world.set_limit(LIMIT_W, a=600, b=300)
    send_all(operator)
    agent.hang_next = True
    agent.run()
    assert agent.hung and a.true_w == 300
    world.set_limit(LIMIT_W, a=300, b=600)
    operator.settle(6)
    agent.complete()
    assert a.true_w == 600
    within(world)
    operator.settle(6)
    within(world)
    assert a.true_w == 300


def scene_10_a_node_power_is_deleted_while_its_node_is_there() -> None:
    world, operator, agent, _, a, _ = ready(a=450, b=450)
    world.store.delete("a0")
    operator.watch()
    agent.watch()
    for _ in range(3):
        agent.turn()
    assert a.true_w == 450, "an absent object holds the caps"
    operator.step()
    within(world)
    assert (operator.charge_w("a0", "a0-g0") or 0) >= DEFAULT_W, "a deleted object is charged its default"
    operator.settle(8)
    within(world)


def scene_11_a_node_that_seemed_gone_is_back_and_its_node_power_is_deleted() -> None:
    world, operator, _, _, _, _ = ready(a=450, b=450)
    operator.keeper.on_node_gone("a0", world.now_s)  # the operator's cache
    world.store.delete("a0")
    operator.watch()
    operator.step()
    world.check()
    assert (operator.charge_w("a0", "a0-g0") or 0) >= DEFAULT_W, "gone is only what fresh reads find gone"
    operator.see_node(world.nodes["a0"])
    operator.settle(8)
    within(world)


def scene_12_a_lowering_of_an_unknown_cap_raises_it() -> None:
    world, operator, _, b_agent, a, b = ready(a=300, b=600)
    assert (a.true_w, b.true_w) == (300, 600)
    world.store.delete("a0")
    world.set_limit(LIMIT_W)
    b_agent.alive = False  # b keeps 600 W for now
    for _ in range(4):
        world.now_s += 0.3
        operator.watch()
        operator.step()
        while operator.sent:
            operator.arrive()
        world.agents["a0"].run()
        assert world.true_sum_w() <= LIMIT_W, f"{a.true_w} W + {b.true_w} W"
    within(world)


def scene_13_a_node_power_restored_from_a_backup() -> None:
    world, operator, agent, _, a, _ = ready(a=600, b=300)
    backup = world.store.objects["a0"]
    world.set_limit(LIMIT_W, a=300, b=600)
    operator.settle(6)
    agent.crash()
    agent.record = Record()
    world.store.delete("a0")
    restored = world.store.create("a0", spec=backup.spec, status=backup.status)
    assert restored is not None
    agent.start()
    agent.run()
    assert a.true_w == 300, "a restored copy names another object's uid and is ignored"
    operator.watch()
    operator.step()
    within(world)
    operator.settle(8)
    within(world)


def scene_14_a_restored_node_power_escapes_the_newer_terms_fence() -> None:
    world, old, agent, _, a, _ = ready(a=300, b=300)
    backup = world.store.objects["a0"]
    world.set_limit(LIMIT_W, a=600, b=300)
    old.step()  # what the old leader wants for a
    wanted = old.sent[0].write.spec
    world.set_limit(LIMIT_W, a=300, b=600)
    new = world.elect()
    new.settle(8)
    world.store.delete("a0")
    restored = world.store.create("a0", spec=backup.spec, status=backup.status)
    assert restored is not None
    forged = SpecWrite("a0", restored.uid, restored.resource_version, type(wanted)(**_fields(wanted, restored.uid)))
    world.store.write_spec(forged)  # the old leader found an object whose term it may still write
    agent.run()
    assert a.true_w <= 300, "a term below one already obeyed is refused"
    new.watch()
    new.step()
    world.check()
    new.settle(8)
    within(world)


def scene_14b_an_object_that_shows_another_term_is_charged_its_default() -> None:
    world, operator, _, _, _, _ = ready(a=300, b=300)
    obj = world.store.objects["a0"]
    assert obj.spec is not None
    world.store.fence = False
    world.elect()  # takes a new term, and is not heard of again
    successor = world.active
    successor.settle(6)
    obj = world.store.objects["a0"]
    assert obj.spec is not None
    spec = _fields(obj.spec, obj.uid)
    spec["term"] = 1
    world.store.write_spec(SpecWrite("a0", obj.uid, obj.resource_version, type(obj.spec)(**spec)))
    successor.watch()
    assert (successor.charge_w("a0", "a0-g0") or 0) >= DEFAULT_W, "what others wrote proves no lower limit"
    del operator


def _fields(spec: object, uid: str) -> dict[str, Any]:
    values = {name: getattr(spec, name) for name in spec.__dataclass_fields__}  # type: ignore[attr-defined]
    values["for_uid"] = uid
    return values


def scene_15_a_lowered_limit_waits_for_a_fenced_operator() -> None:
    world, old, _, _, _, _ = ready()
    assert world.true_sum_w() == LIMIT_W
    old.holds_lease = False
    world.set_limit(600)  # the unfenced one starts its grace
    world.now_s += 60.0
    for node in world.agents.values():
        node.run()
    new = world.elect()
    assert new.keeper.books["row"].limit.in_force_w == LIMIT_W, "the grace starts when a fenced operator has seen it"
    for _ in range(12):
        new.settle(1)
        report = new.last.budgets["row"]
        assert world.true_sum_w() <= report.limit.in_force_w
        assert report.charge_w <= report.limit.in_force_w or report.limit.pending
    assert world.active.last.budgets["row"].limit.in_force_w == 600
    world.check()


def scene_16_a_node_moves_and_the_operator_restarts() -> None:
    world, operator, agent, _, _, _ = ready(a=450, b=450)
    agent.crash()
    world.move("a0", "b")
    world.tell_nodes()
    operator.watch()
    send_all(operator)
    successor = world.elect()
    send_all(successor)
    successor.step()
    charged = {name: r.charge_w for name, r in successor.last.budgets.items()}
    assert charged["a"] >= 450, "it counts where it was until a grant issued after the move is acknowledged"
    assert charged["b"] >= 900
    assert charged["row"] <= 900, "and once above both"
    agent.start()
    successor.settle(8)
    assert successor.last.budgets["a"].charge_w == 0, "it has left its former budget"
    world.check()


SCENES = {name: f for name, f in sorted(globals().items()) if name.startswith("scene_")}
