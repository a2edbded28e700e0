"""Scenes of what keeps the power, beside those of the protocol (I2, I3, I6)."""

from __future__ import annotations

from splitwatt_core.protocol.contract import NO_GRANT, Health, Status
from support.scenes import LIMIT_W, ready, send_all, within
from support.world import DEFAULT_W, MIN_W


def lower_first() -> None:
    """Watts freed in a reach b only after a's acknowledgement has settled (I2)."""
    world, operator, agent, _, a, b = ready(a=600, b=300)
    agent.alive = False
    world.set_limit(LIMIT_W, a=300, b=600)
    for _ in range(3):
        world.now_s += 0.6
        operator.watch()
        send_all(operator)
        world.agents["b0"].run()
    assert a.true_w == 600 and b.true_w == 300, "raised before what pays for it was lowered"
    agent.start()
    operator.settle(4)
    assert a.true_w == 300 and b.true_w == 600
    within(world)


def settle_time() -> None:
    """A charge falls only a settle time after the acknowledgement, for draw lags its cap (I2)."""
    world, operator, agent, _, _, _ = ready(a=600, b=300)
    world.set_limit(LIMIT_W, a=300, b=300)
    send_all(operator)
    agent.run()
    operator.watch()
    operator.step()
    assert operator.charge_w("a0", "a0-g0") == 600, "draw may lag the cap still"
    world.now_s += 0.6
    operator.step()
    assert operator.charge_w("a0", "a0-g0") == 300


def a_dead_agent_is_charged_its_default_once_its_boot_is_unproven() -> None:
    """I3: silence alone keeps the charge; silence without proof of the boot does not."""
    world, operator, agent, _, _, _ = ready(a=300, b=300)
    agent.crash()
    for _ in range(100):
        world.now_s += 2.0
        operator.keeper.on_node_lease("a0", world.now_s)
        operator.step()
    assert operator.charge_w("a0", "a0-g0") == 300, "the node's lease proves the same boot"
    for _ in range(60):
        world.now_s += 2.0
        operator.step()
    assert (operator.charge_w("a0", "a0-g0") or 0) >= DEFAULT_W, "nothing proves the boot any more"
    world.check()


def a_lying_setter_is_never_acknowledged() -> None:
    """I6, also behind an outside limiter."""
    world, operator, agent, _, a, _ = ready(a=450, b=450)
    a.lies, a.outside_w = True, MIN_W
    world.set_limit(LIMIT_W, a=300, b=450)
    operator.settle(6)
    status: Status = world.store.objects["a0"].status
    granted = world.store.objects["a0"].spec.gpus[0].grant  # type: ignore[union-attr]
    assert a.true_w == 450 and a.enforced_w == MIN_W
    assert NO_GRANT < status.gpus[0].acked_grant < granted, "acknowledged by the enforced limit alone"
    assert status.gpus[0].health is Health.CAP_NOT_ENFORCED
    assert operator.charge_w("a0", "a0-g0") == 450
    world.check()
    del agent
