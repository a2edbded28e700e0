"""An agent that was dead while grants changed (docs/protocol.md, R36): what a new life of it still calls acknowledged."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st
from splitwatt_core.protocol.contract import NO_GRANT, Grant, NodePower, Spec
from splitwatt_core.protocol.enforcer import Enforcer, GpuIdentity, Readback
from splitwatt_core.protocol.record import Record, Taken

GPU = GpuIdentity("g0", "H100", min_mw=100_000, max_mw=700_000, default_mw=700_000)
DEFAULT_MW = 700_000


class Node:
    """One GPU, its agent's disk, and its object. Setters work unless `frozen`; the process may die at any moment."""

    def __init__(self) -> None:
        self.limit_mw = DEFAULT_MW
        self.record = Record()
        self.frozen = False
        self.uid, self.version = "u1", 0
        self.line: Grant | None = None
        self.caps_w: dict[int, int] = {}
        """All that was ever granted in the present object, as the operator counts it."""
        self.now_s = 0.0
        self.start()

    def start(self) -> None:
        self.enforcer = Enforcer(gpus={"g0": GPU}, record=self.record)
        self.read()

    def grant(self, number: int, cap_w: int) -> None:
        self.line = Grant("g0", number, cap_w=cap_w, safe_cap_w=cap_w, charge_w=cap_w)
        self.caps_w[number] = cap_w

    def anew(self) -> None:
        """The object is deleted and made again."""
        self.uid, self.line, self.caps_w = f"{self.uid}+", None, {}

    def read(self) -> None:
        self.version += 1
        spec = None if self.line is None else Spec(1, self.uid, gpus=(self.line,))
        self.enforcer.observe(NodePower("n1", self.uid, self.version, spec), consistent=True)

    def tick(self, *, durable: bool = True, readable: bool = True) -> int:
        """One round; what it would report as acknowledged."""
        self.now_s += 2.0
        back = Readback(self.limit_mw, self.limit_mw) if readable else Readback(None, None)
        actions = self.enforcer.tick(self.now_s, {"g0": back})
        acked = self.acked
        if actions.persist is not None and durable:
            self.record = actions.persist
            self.enforcer.persisted()
        for call in actions.set_caps:
            if not self.frozen:
                self.enforcer.setter_started("g0", self.now_s)
                self.limit_mw = call.cap_mw
                self.enforcer.setter_finished("g0", self.now_s, None)
        return acked

    @property
    def acked(self) -> int:
        return self.enforcer.status()[0].acked_grant

    def obey(self, number: int, cap_w: int) -> None:
        """Grant it, and have it acknowledged."""
        self.grant(number, cap_w)
        self.read()
        for _ in range(3):
            self.tick()
        assert (self.acked, self.limit_mw) == (number, cap_w * 1000)

    def record_only(self, number: int, cap_w: int) -> None:
        """Take it in and write it down; the limit stays."""
        self.grant(number, cap_w)
        self.read()
        self.frozen = True
        for _ in range(2):
            self.tick()
        self.frozen = False


def test_what_was_acknowledged_is_told_again_although_the_grant_changed_meanwhile() -> None:
    node = Node()
    node.obey(1, 300)
    node.grant(2, 500)
    node.start()
    assert node.tick() == 1, "from the first status on"
    for _ in range(3):
        node.tick()
    assert node.acked == 2 and node.limit_mw == 500_000


def test_scene_54_a_lowering_grant_on_the_record_was_not_set_yet() -> None:
    node = Node()
    node.obey(1, 500)
    node.record_only(2, 300)
    node.start()
    assert node.tick() == 1


def test_scene_55_a_raise_was_applied_and_a_lower_grant_recorded() -> None:
    node = Node()
    node.obey(1, 300)
    node.record_only(2, 600)
    node.limit_mw = 600_000  # set, and the process did not live to read it back
    node.record_only(3, 250)
    node.start()
    assert node.tick() == 1, "the limit is above both caps on the record, and the operator counts the 600 W between them"
    node.limit_mw = 650_000
    node.start()
    assert node.tick() == NO_GRANT, "nothing that was ever granted explains this"


def test_scene_56_the_highest_grant_on_the_record_was_acknowledged() -> None:
    node = Node()
    node.obey(1, 500)
    node.obey(2, 300)
    node.start()
    assert node.tick() == 2


def test_scene_57_nothing_is_told_for_another_object_or_without_a_readback() -> None:
    node = Node()
    node.obey(1, 300)
    node.start()
    assert node.tick(readable=False) == NO_GRANT
    assert node.tick() == 1
    node.anew()
    node.start()
    assert node.tick() == NO_GRANT
    node.uid = "u1"
    node.read()
    assert node.tick() == NO_GRANT, "the word was for that object; what is back under its uid is a restored one"


def test_scene_57_the_record_of_an_older_agent_names_no_object() -> None:
    node = Node()
    node.limit_mw = 300_000
    node.record = Record(1, {"g0": Taken(1, 300)})
    node.enforcer = Enforcer(gpus={"g0": GPU}, record=node.record)
    assert node.tick() == NO_GRANT, "before an object is seen"
    node.grant(1, 400)
    node.read()
    assert node.tick() == NO_GRANT


def test_scene_58_a_call_of_the_former_life_may_still_complete() -> None:
    """Within one process a driver load begins anew; between two, the lock of the state folder waits for the call."""
    node = Node()
    node.obey(1, 300)
    node.enforcer = Enforcer(gpus={"g0": GPU}, record=node.record)
    node.enforcer.setter_started("g0", node.now_s)
    node.read()
    assert node.tick() == NO_GRANT
    node.enforcer.setter_finished("g0", node.now_s, None)
    assert node.tick() == 1


def test_a_reset_is_not_taken_for_the_former_life() -> None:
    node = Node()
    node.obey(1, 300)
    node.limit_mw = DEFAULT_MW
    node.start()
    assert node.tick() == NO_GRANT


def test_nothing_is_told_again_to_a_store_that_went_back() -> None:
    """A backup of etcd keeps uids. Its numbers below those taken in say that it is another history."""
    node = Node()
    node.obey(1, 300)
    node.obey(5, 400)
    node.grant(1, 300)
    node.start()
    assert node.tick() == NO_GRANT and node.limit_mw == 400_000
    node.grant(6, 350)
    node.read()
    for _ in range(3):
        node.tick()
    assert node.acked == 6
    node.record = Record(9, node.record.grants)
    node.start()
    assert node.tick() == NO_GRANT, "a lower term says the same"


def test_a_grant_taken_in_before_the_limit_could_be_read_keeps_the_earlier_one() -> None:
    """The record is written while nothing is known of the limit; the next life must still know what was acknowledged."""
    node = Node()
    node.obey(1, 300)
    node.grant(2, 600)
    node.start()
    node.tick(readable=False)
    assert node.record.grants["g0"].grant == 2
    node.grant(3, 200)
    node.start()
    node.tick(readable=False)
    node.start()
    assert node.tick() == 1, "300 W is above the highest grant's cap, and the record of grant 2 knew of grant 1"


def test_what_is_told_again_holds_for_the_next_life_as_well() -> None:
    """Caps of grants that the acknowledgement retired must not explain a limit any more."""
    node = Node()
    node.obey(1, 600)
    node.record_only(2, 300)
    node.limit_mw = 300_000
    node.start()
    assert node.tick() == 2
    node.record_only(3, 250)
    node.limit_mw = 600_000
    node.start()
    assert node.tick() == NO_GRANT, "600 W belong to grant 1, which the operator counts no more"


def test_a_cap_taken_in_between_two_deaths_explains_a_limit_in_the_third_life() -> None:
    node = Node()
    node.obey(1, 300)
    node.grant(2, 600)
    node.start()
    node.frozen = True
    for _ in range(2):
        assert node.tick() == 1
    node.limit_mw = 600_000  # the call went through, and was not seen to
    node.record_only(3, 200)
    node.start()
    assert node.tick() == 1


STEP = st.one_of(
    st.tuples(st.just("grant"), st.sampled_from([200, 300, 400, 500, 600])),
    st.tuples(st.just("read"), st.just(0)),
    st.tuples(st.just("tick"), st.integers(0, 3)),
    st.tuples(st.just("die"), st.just(0)),
    st.tuples(st.just("set and die"), st.just(0)),
    st.tuples(st.just("reset"), st.just(0)),
    st.tuples(st.just("anew"), st.just(0)),
    st.tuples(st.just("freeze"), st.booleans()),
)


@given(st.lists(STEP, min_size=5, max_size=60))
def test_the_operator_never_counts_less_than_the_limit(steps: list[tuple[str, int]]) -> None:
    """R5 from what is reported, told over deaths: the highest cap from the acknowledged grant on covers the true limit; and
    without a reset or a new object something stays acknowledged once anything was (T4)."""
    node = Node()
    number, surprised, acked_once = 0, True, False
    for step, value in steps:
        match step:
            case "grant":
                number += 1
                node.grant(number, value)
            case "read":
                node.read()
            case "die":
                node.start()
            case "set and die":
                node.frozen = False
                node.tick()
                node.start()
            case "reset":
                node.limit_mw, surprised = DEFAULT_MW, True
            case "anew":
                node.anew()
                node.start()
                surprised, acked_once = True, False
            case "freeze":
                node.frozen = bool(value)
            case "tick":
                limit_mw = node.limit_mw
                acked = node.tick(durable=value != 1, readable=value != 2)
                if value == 2:
                    continue
                if acked > NO_GRANT:
                    counted_w = max(cap_w for n, cap_w in node.caps_w.items() if n >= acked)
                    assert limit_mw <= counted_w * 1000, f"{acked} is acknowledged at {limit_mw} mW"
                    surprised, acked_once = False, True
                elif acked_once:
                    assert surprised, "nothing happened, and nothing is acknowledged any more"


def test_a_record_says_what_it_says() -> None:
    taken = Taken(1, 300, 280, "u", acked_grant=0).followed_by(
        replace(Grant("g0", 2, cap_w=200, safe_cap_w=180, charge_w=300)), uid="u"
    )
    assert taken == Taken(2, 200, 180, "u", NO_GRANT, 200)
    assert taken.still_acked(200_000) == (2, 200) and taken.still_acked(200_001) == (NO_GRANT, 0)
