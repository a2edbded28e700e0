"""The brake (docs/protocol.md, R25-R30): scenes 36 to 42, what each rule is worth, and a search."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test
from splitwatt_core.protocol import enforcer as enforcers
from splitwatt_core.protocol.brake import Brake, BrakeOrder, BrakesInForce, Depth
from splitwatt_core.protocol.contract import GRANTS_PER_TERM
from splitwatt_core.protocol.enforcer import Enforcer
from support.braked import DEFAULT_W, MIN_W, BrakedNode
from support.left_out import Patch, check_rule_matters


def obeying(cap_w: int = 500, *, safe_cap_w: int = 300, number: int = 1) -> BrakedNode:
    node = BrakedNode()
    node.grant(number, cap_w, safe_cap_w=safe_cap_w)
    node.run()
    assert (node.limit_w, node.acked) == (cap_w, number)
    return node


# ------------------------------------------------------------------------------------------------------------- scenes


def scene_36_a_raise_that_was_decided_before_the_brake_arrives_after_it() -> None:
    node = obeying()
    node.brake(3)
    node.run()
    node.grant(2, 600, safe_cap_w=400)
    node.run()
    assert node.limit_w == 300, "an older grant lifted it"
    node.grant(3, 650, safe_cap_w=400)
    node.run()
    assert node.limit_w == 300, "nor does the one that the brake itself names"
    node.grant(4, 650, safe_cap_w=400)
    node.run()
    assert node.limit_w == 650


def scene_38_a_brake_that_arrives_after_the_grant_that_ended_it() -> None:
    node = obeying()
    node.grant(4, 600)
    node.run()
    node.brake(3)
    node.run()
    assert node.limit_w == 600, "it was over before it came"


def scene_39_a_milder_brake_comes_second() -> None:
    node = obeying()
    node.brake(2, Depth.MINIMUM)
    node.run()
    node.brake(3, Depth.SAFE)
    node.run()
    assert node.limit_w == MIN_W, "the channel raised"
    node.grant(3, 500)
    node.run()
    assert node.limit_w == MIN_W, "the higher number stands"
    node.grant(4, 500)
    node.run()
    assert node.limit_w == 500


def scene_40_an_older_grant_with_a_higher_safe_cap_lands() -> None:
    node = obeying()
    node.brake(5, Depth.SAFE)
    node.run()
    node.grant(4, 600, safe_cap_w=450)
    node.run()
    assert node.limit_w == 300, "safe caps became watts when the brake came"
    node.grant(5, 250, safe_cap_w=200)
    node.run()
    assert node.limit_w == 250, "a grant that does not lift it may lower further"


def scene_41_the_agent_restarts_after_it_acknowledged_the_brake() -> None:
    node = obeying()
    node.brake(1, Depth.MINIMUM)
    node.run()
    assert node.enforcer.brakes == {"g0": Brake(1, MIN_W)}, "acknowledged"
    for reads in (False, True):
        node.start(reads=reads)
        node.run()
        assert node.limit_w == MIN_W, "it restarted and raised"
    assert node.enforcer.brakes == {"g0": Brake(1, MIN_W)}, "it is told as ever (R30)"


def scene_42_the_object_goes_and_comes_back_while_braked() -> None:
    node = obeying()
    node.brake(1, Depth.MINIMUM)
    node.run()
    node.enforcer.observe(None, consistent=True)
    node.run()
    node.read()
    node.run()
    assert node.limit_w == MIN_W, "a line that came back lifted it"


def scene_28_the_disk_is_slow() -> None:
    """R28: lower first, then make it durable, then acknowledge it."""
    node = obeying()
    node.brake(1, Depth.MINIMUM)
    node.log.clear()
    node.tick(disk=False)
    assert node.limit_w == MIN_W
    assert not node.enforcer.brakes, "acknowledged from memory"
    node.run()
    assert node.enforcer.brakes


def scene_28_the_agent_dies_amid_it() -> None:
    node = obeying()
    node.brake(1, Depth.MINIMUM)
    node.tick(dies=True)
    assert node.limit_w == MIN_W, "it waited for the disk"


def scene_29_a_grant_is_acknowledged_while_braked() -> None:
    node = obeying()
    node.brake(9, Depth.MINIMUM)
    node.run()
    node.grant(5, 400)
    node.run()
    assert node.acked == 5, "a braked GPU must not keep its charge for ever"
    assert node.limit_w == MIN_W


def scene_28_the_grant_that_lifts_it_is_not_durable() -> None:
    node = obeying()
    node.brake(1, Depth.MINIMUM)
    node.run()
    node.grant(2, 500)
    for _ in range(3):
        node.tick(disk=False)
    assert node.limit_w == MIN_W, "raised by a grant that the disk does not hold"
    node.start(reads=False)
    node.run()
    assert node.limit_w == MIN_W
    node.read()
    node.run()
    assert node.limit_w == 500


SCENES = [value for name, value in sorted(globals().items()) if name.startswith("scene_")]


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.__name__)
def test_scene(scene: Callable[[], None]) -> None:
    scene()


def test_scene_37_a_successor_that_has_given_out_nothing_brakes_above_all_of_its_predecessors() -> None:
    node = obeying(number=7 * GRANTS_PER_TERM + 5)
    node.brake(8 * GRANTS_PER_TERM, Depth.SAFE)
    node.run()
    assert node.limit_w == 300
    node.grant(7 * GRANTS_PER_TERM + 9, 600)
    node.run()
    assert node.limit_w == 300, "a grant of its predecessor that nobody had seen"
    node.grant(8 * GRANTS_PER_TERM + 1, 600)
    node.run()
    assert node.limit_w == 600


def test_clocks_are_braked_and_given_back_by_a_later_grant() -> None:
    node = obeying()
    node.brake(1, Depth.CLOCKS, max_clock_mhz=1200)
    node.run()
    assert (node.limit_w, node.clock_mhz) == (500, 1200)
    node.brake(1, Depth.CLOCKS, max_clock_mhz=1400)
    node.run()
    assert node.clock_mhz == 1200, "the lower one stands"
    node.start(reads=True)
    node.clock_mhz = None  # a driver keeps locks over the life of an agent, or not
    node.run()
    assert node.clock_mhz == 1200
    node.grant(2, 500, max_clock_mhz=1600)
    node.run()
    assert node.clock_mhz == 1600


def test_gpus_that_were_never_granted_anything_go_to_their_minimum() -> None:
    node = BrakedNode()
    node.brake(1, Depth.SAFE)
    node.run()
    assert node.limit_w == MIN_W


def test_only_the_gpus_that_it_names_are_braked() -> None:
    node = obeying()
    assert node.enforcer.brake(BrakeOrder(1, Depth.MINIMUM, uuids=frozenset({"other"}))) == ()
    node.run()
    assert node.limit_w == 500


@pytest.mark.parametrize(
    ("grant", "to", "said"), [(0, Depth.SAFE, "needs a grant number"), (1, Depth.CLOCKS, "needs the megahertz")]
)
def test_an_order_that_means_nothing_is_refused(grant: int, to: Depth, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        BrakeOrder(grant, to)


# ------------------------------------------------------------------------------------------------ each rule left out


def r26_any_grant_lifts_it(m: pytest.MonkeyPatch) -> None:
    m.setattr(Brake, "lifted_by", lambda self, grant: True)


def r26_the_brakes_own_number_lifts_it(m: pytest.MonkeyPatch) -> None:
    m.setattr(Brake, "lifted_by", lambda self, grant: grant >= self.grant)


def r26_a_brake_that_is_over_counts(m: pytest.MonkeyPatch) -> None:
    def credulous(self: Enforcer, order: BrakeOrder) -> tuple[str, ...]:
        self._brakes.take("g0", Brake(order.grant, 300))
        self._dirty = True
        return ("g0",)

    m.setattr(Enforcer, "brake", credulous)


def r26_the_second_brake_replaces_the_first(m: pytest.MonkeyPatch) -> None:
    m.setattr(Brake, "beside", lambda self, other: self)


def r27_safe_caps_are_looked_up_later(m: pytest.MonkeyPatch) -> None:
    def late(self: Enforcer, uuid: str, gpu: enforcers._Gpu, guard_w: int | None) -> int | None:
        if (brake := self._brakes.now.get(uuid)) is not None and gpu.target is not None:
            self._brakes.now[uuid] = replace(brake, cap_w=gpu.target.safe_cap_w)
        return real(self, uuid, gpu, guard_w)

    real = Enforcer._wanted_mw
    m.setattr(Enforcer, "_wanted_mw", late)


def r28_the_record_comes_first(m: pytest.MonkeyPatch) -> None:
    real = BrakesInForce.ticked
    m.setattr(BrakesInForce, "ticked", lambda self: real(self) and False)


def r28_it_is_acknowledged_from_memory(m: pytest.MonkeyPatch) -> None:
    m.setattr(Enforcer, "brakes", property(lambda self: self._brakes.now))


def r28_it_is_not_on_the_record(m: pytest.MonkeyPatch) -> None:
    real = BrakesInForce.__init__
    m.setattr(BrakesInForce, "__init__", lambda self, found: real(self, {}))


def r29_nothing_is_acknowledged_while_braked(m: pytest.MonkeyPatch) -> None:
    real = Enforcer._wanted_mw

    def silent(self: Enforcer, uuid: str, gpu: enforcers._Gpu, guard_w: int | None) -> int | None:
        wanted_mw = real(self, uuid, gpu, guard_w)
        return None if wanted_mw == gpu.readback.management_mw else wanted_mw

    m.setattr(Enforcer, "_wanted_mw", silent)


LEFT_OUT: list[tuple[Patch, Callable[[], None], str]] = [
    (r26_any_grant_lifts_it, scene_36_a_raise_that_was_decided_before_the_brake_arrives_after_it, "an older grant lifted it"),
    (r26_the_brakes_own_number_lifts_it, scene_36_a_raise_that_was_decided_before_the_brake_arrives_after_it, "nor does the one"),
    (r26_a_brake_that_is_over_counts, scene_38_a_brake_that_arrives_after_the_grant_that_ended_it, "it was over before it came"),
    (r26_the_second_brake_replaces_the_first, scene_39_a_milder_brake_comes_second, "the channel raised"),
    (r27_safe_caps_are_looked_up_later, scene_40_an_older_grant_with_a_higher_safe_cap_lands, "became watts when"),
    (r28_the_record_comes_first, scene_28_the_agent_dies_amid_it, "it waited for the disk"),
    (r28_it_is_acknowledged_from_memory, scene_28_the_disk_is_slow, "acknowledged from memory"),
    (r28_it_is_not_on_the_record, scene_41_the_agent_restarts_after_it_acknowledged_the_brake, "it restarted and raised"),
    (r29_nothing_is_acknowledged_while_braked, scene_29_a_grant_is_acknowledged_while_braked, "must not keep its charge"),
]


@pytest.mark.parametrize(("leave_out", "scene", "said"), LEFT_OUT, ids=[case[0].__name__ for case in LEFT_OUT])
def test_rule_matters(leave_out: Patch, scene: Callable[[], None], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check_rule_matters(leave_out, scene, said, monkeypatch)


# ------------------------------------------------------------------------------------------------------------- search

WATTS = st.sampled_from([MIN_W, 200, 350, 500, 600, DEFAULT_W])
MOSTLY = st.sampled_from([True, True, True, False])


class Braked(RuleBasedStateMachine):
    """Grants and brakes are decided in order and arrive in any; the process dies at any moment and the disk refuses at times."""

    @initialize()
    def begin(self) -> None:
        self.node = obeying()
        self.last = 1
        """The last number given out."""
        self.sent: list[tuple[int, int, int]] = []
        """Grants under way: number, cap, safe cap."""
        self.orders: list[BrakeOrder] = []
        self.held: dict[int, int] = {}
        """By the number of each acknowledged brake, the watts it must hold to."""
        self.landed = 1

    @rule(cap_w=WATTS, safe_w=WATTS)
    def decide_a_grant(self, cap_w: int, safe_w: int) -> None:
        self.last += 1
        self.sent.append((self.last, cap_w, min(cap_w, safe_w)))

    @rule(to=st.sampled_from([Depth.SAFE, Depth.MINIMUM]), at_once=MOSTLY)
    def decide_a_brake(self, to: Depth, at_once: bool) -> None:
        order = BrakeOrder(self.last, to)
        if at_once:
            self.node.enforcer.brake(order)
        else:
            self.orders.append(order)

    @precondition(lambda self: self.sent)
    @rule(at=st.integers(0, 2))
    def a_grant_lands(self, at: int) -> None:
        number, cap_w, safe_w = self.sent.pop(at % len(self.sent))
        if self.node.line is not None and number < self.node.line.grant:
            return  # the API server has the later one
        self.node.grant(number, cap_w, safe_cap_w=safe_w)
        self.landed = number

    @precondition(lambda self: self.orders)
    @rule(at=st.integers(0, 2), again=st.booleans())
    def a_late_brake_arrives(self, at: int, again: bool) -> None:
        order = self.orders[at % len(self.orders)]
        self.node.enforcer.brake(order)
        if not again:
            self.orders.remove(order)

    @rule(disk=MOSTLY, rounds=st.integers(1, 3))
    def some_rounds(self, disk: bool, rounds: int) -> None:
        for _ in range(rounds):
            self.node.tick(disk=disk)

    @rule(reads=MOSTLY, dies=st.booleans())
    def the_agent_restarts(self, reads: bool, dies: bool) -> None:
        if dies:
            self.node.tick(dies=True)
        self.node.start(reads=reads)

    @invariant()
    def a_told_brake_holds_until_a_later_grant(self) -> None:
        if not hasattr(self, "node"):
            return
        for brake in self.node.enforcer.brakes.values():
            assert brake.cap_w is not None
            self.held[brake.grant] = min(brake.cap_w, self.held.get(brake.grant, DEFAULT_W))
        self.held = {number: watts for number, watts in self.held.items() if number >= self.landed}
        assert all(self.node.limit_w <= watts for watts in self.held.values())

    def teardown(self) -> None:
        """Faults over, the operator grants anew (R30): every watt comes back."""
        self.last += 1
        self.node.start(reads=True)
        self.node.grant(self.last, DEFAULT_W)
        self.node.run()
        assert self.node.limit_w == DEFAULT_W and self.node.acked == self.last


Braked.TestCase.settings = settings(
    max_examples=150, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestBraked = Braked.TestCase


@pytest.mark.parametrize(
    "leave_out", [r26_any_grant_lifts_it, r26_the_second_brake_replaces_the_first, r28_it_is_not_on_the_record]
)
def test_the_search_notices(leave_out: Patch, monkeypatch: pytest.MonkeyPatch) -> None:
    leave_out(monkeypatch)
    sharp = settings(Braked.TestCase.settings, max_examples=2000, database=None, derandomize=True, phases=[Phase.generate])
    with pytest.raises(AssertionError):
        run_state_machine_as_test(Braked, settings=sharp)
