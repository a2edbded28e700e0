"""A raise under way is no loss of trust: what was acknowledged stands until the raise itself is, or something else moved."""

from __future__ import annotations

from splitwatt_core.protocol.contract import Grant, NodePower, Spec
from splitwatt_core.protocol.enforcer import Enforcer, GpuIdentity, Readback
from splitwatt_core.protocol.record import Record

GPU = GpuIdentity("g", "H100", 200_000, 700_000, 700_000)


def spec(version: int, *, grant: int, cap_w: int) -> NodePower:
    row = Grant(uuid="g", grant=grant, cap_w=cap_w, safe_cap_w=cap_w, charge_w=cap_w)
    return NodePower("n", "uid", version, Spec(term=1, for_uid="uid", gpus=(row,)))


def read(enforcer: Enforcer, now_s: float, limit_w: int) -> int:
    """One tick on a readback; returns what is acknowledged."""
    actions = enforcer.tick(now_s, {"g": Readback(limit_w * 1000, limit_w * 1000)})
    if actions.persist is not None:
        enforcer.persisted()
    for call in actions.set_caps:
        enforcer.setter_started(call.uuid, now_s)
    return enforcer.status()[0].acked_grant


def at_200_w() -> Enforcer:
    """Grant 3 of 200 W is applied and acknowledged."""
    enforcer = Enforcer(gpus={"g": GPU}, record=Record())
    enforcer.observe(spec(1, grant=3, cap_w=200), consistent=True)
    read(enforcer, 0.0, 700)
    enforcer.setter_finished("g", 0.1, None)
    assert read(enforcer, 0.2, 200) == 3
    return enforcer


def test_the_former_acknowledgement_stands_while_a_raise_is_under_way() -> None:
    enforcer = at_200_w()
    enforcer.observe(spec(2, grant=4, cap_w=540), consistent=True)
    assert read(enforcer, 1.0, 200) == 3
    assert read(enforcer, 1.1, 200) == 3
    # The driver has the new limit already, the call has not returned: nothing new may be acknowledged, nothing is lost.
    assert read(enforcer, 1.2, 540) == 3
    enforcer.setter_finished("g", 1.3, None)
    assert read(enforcer, 1.4, 540) == 4


def test_a_raise_that_was_overtaken_by_a_cut_keeps_the_trust_too() -> None:
    enforcer = at_200_w()
    enforcer.observe(spec(2, grant=4, cap_w=540), consistent=True)
    read(enforcer, 1.0, 200)
    read(enforcer, 1.1, 200)
    enforcer.observe(spec(3, grant=5, cap_w=300), consistent=True)
    enforcer.setter_finished("g", 1.2, None)
    assert read(enforcer, 1.3, 540) == 3
    assert read(enforcer, 1.4, 540) == 3
    enforcer.setter_finished("g", 1.5, None)
    assert read(enforcer, 1.6, 300) == 5


def test_a_limit_above_every_call_of_ours_is_a_reset() -> None:
    enforcer = at_200_w()
    enforcer.observe(spec(2, grant=4, cap_w=540), consistent=True)
    read(enforcer, 1.0, 200)
    read(enforcer, 1.1, 200)
    assert read(enforcer, 1.2, 700) == 0
