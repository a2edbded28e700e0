"""The agent's half, one GPU at a time: what is obeyed, what is set, what is acknowledged, what is said."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from splitwatt_core.protocol.contest import LEAST_TIMES, Contest
from splitwatt_core.protocol.contract import NO_GRANT, Grant, Health, NodePower, Phase, Spec
from splitwatt_core.protocol.enforcer import (
    HUNG_S,
    MAX_OUTSTANDING,
    RETRY_S,
    Actions,
    Enforcer,
    GpuIdentity,
    LockClock,
    ObjectVerdict,
    Readback,
    SetCap,
)
from splitwatt_core.protocol.milliwatts import watts_up
from splitwatt_core.protocol.record import Record, Taken

GPU = GpuIdentity("g0", "H100", min_mw=200_000, max_mw=700_000, default_mw=700_000)


def grant(number: int, cap_w: int, **more: object) -> Grant:
    return Grant("g0", number, cap_w=cap_w, safe_cap_w=cap_w, charge_w=cap_w, **more)  # type: ignore[arg-type]


def seen(version: int, *grants: Grant, term: int = 2, uid: str = "u1", for_uid: str = "u1") -> NodePower:
    return NodePower("n1", uid, version, Spec(term, for_uid, gpus=grants))


class Bench:
    """One GPU at `limit_w`, set by a setter that works unless told otherwise."""

    def __init__(self, *, record: Record | None = None, limit_w: int = 700) -> None:
        self.enforcer = Enforcer(gpus={"g0": GPU}, record=record or Record())
        self.limit_mw = limit_w * 1000
        self.now_s = 0.0
        self.calls: list[int] = []

    def observe(self, version: NodePower | None, *, consistent: bool = True) -> ObjectVerdict:
        return self.enforcer.observe(version, consistent=consistent)

    def tick(self, *, works: bool = True, error: Health | None = None, hangs: bool = False, **options: Any) -> Actions:
        self.now_s += 0.1
        back = options.pop("back", Readback(self.limit_mw, self.limit_mw))
        actions = self.enforcer.tick(self.now_s, {} if back is None else {"g0": back}, **options)
        if actions.persist is not None:
            self.enforcer.persisted()
        for call in actions.set_caps:
            self.calls.append(call.cap_mw // 1000)
            self.enforcer.setter_started("g0", self.now_s)
            if not hangs:
                if works and error is None:
                    self.limit_mw = call.cap_mw
                self.enforcer.setter_finished("g0", self.now_s, error)
        return actions

    def ticks(self, count: int = 3, **options: Any) -> None:
        for _ in range(count):
            self.tick(**options)

    @property
    def acked(self) -> int:
        return self.enforcer.status()[0].acked_grant

    @property
    def health(self) -> Health:
        return self.enforcer.health("g0")


def holding(cap_w: int = 300, number: int = 5) -> Bench:
    bench = Bench()
    bench.observe(seen(1, grant(number, cap_w)))
    bench.ticks()
    assert (bench.limit_mw, bench.acked) == (cap_w * 1000, number)
    return bench


# -------------------------------------------------------------------------------------------------------------- obeying


def test_nothing_counts_before_the_first_consistent_read() -> None:
    bench = Bench()
    assert bench.observe(seen(1, grant(5, 300)), consistent=False) is ObjectVerdict.UNSYNCED
    bench.ticks()
    assert bench.calls == [] and bench.enforcer.observed_uid == ""


@pytest.mark.parametrize(
    ("version", "verdict"),
    [
        (None, ObjectVerdict.ABSENT),
        (seen(0, grant(6, 600)), ObjectVerdict.OLDER_VERSION),
        (seen(2, grant(6, 600), for_uid="u0"), ObjectVerdict.WRONG_UID),
        (seen(2, grant(6, 600), term=1), ObjectVerdict.LOWER_TERM),
        (NodePower("n1", "u1", 2), ObjectVerdict.NO_SPEC),
    ],
)
def test_what_is_not_accepted_leaves_every_cap_as_it_is(version: NodePower | None, verdict: ObjectVerdict) -> None:
    bench = holding(300)
    assert bench.observe(version) is verdict
    bench.ticks()
    assert bench.limit_mw == 300_000


def test_without_an_object_a_cap_that_somebody_raised_is_lowered_again() -> None:
    bench = holding(300)
    bench.observe(None)
    bench.limit_mw = 500_000
    bench.now_s += RETRY_S
    bench.ticks()
    assert bench.limit_mw == 300_000 and bench.acked == NO_GRANT


def test_a_withdrawn_line_holds_the_cap() -> None:
    bench = holding(300)
    bench.observe(seen(2))
    bench.ticks()
    assert bench.limit_mw == 300_000
    assert bench.enforcer.granted_cap_w("g0") is None and bench.enforcer.granted_phase("g0") is None


def test_lines_for_gpus_that_are_not_here_are_named() -> None:
    bench = Bench()
    bench.observe(seen(1, grant(5, 300), replace(grant(5, 300), uuid="GPU-elsewhere")))
    assert bench.enforcer.unknown_gpus == ("GPU-elsewhere",)
    assert bench.enforcer.granted_cap_w("g0") == 300 and bench.enforcer.granted_phase("g0") == Phase.UNASSIGNED.value
    assert bench.enforcer.observed_term == 2


@pytest.mark.parametrize(("number", "cap_w"), [(4, 600), (5, 600), (NO_GRANT, 600)])
def test_a_grant_that_is_not_newer_is_refused(number: int, cap_w: int) -> None:
    bench = holding(300)
    bench.observe(seen(2, grant(number, cap_w)))
    bench.ticks()
    assert bench.limit_mw == 300_000 and bench.enforcer.granted_cap_w("g0") == 300


def test_what_was_persisted_outlives_the_process_and_may_only_lower() -> None:
    record = Record(term=2, grants={"g0": Taken(5, 300)})
    reset = Bench(record=record, limit_w=700)
    reset.ticks()
    assert reset.limit_mw == 300_000 and reset.acked == NO_GRANT
    lower = Bench(record=record, limit_w=250)
    lower.ticks()
    assert lower.calls == []


# -------------------------------------------------------------------------------------------------------------- setting


def test_a_raise_waits_until_its_record_is_durable_and_a_lower_does_not() -> None:
    bench = holding(300)
    bench.observe(seen(2, grant(6, 500)))
    first = bench.tick()
    assert first.persist == Record(2, {"g0": Taken(6, 500, 500, "u1", acked_grant=5, since_cap_w=500)}) and first.set_caps == ()
    assert bench.tick().set_caps == (SetCap("g0", 500_000),)
    bench.observe(seen(3, grant(7, 250)))
    both = bench.tick()
    assert both.persist is not None and both.set_caps == (SetCap("g0", 250_000),)


def test_who_has_a_reason_to_raise_nothing_only_lowers() -> None:
    bench = holding(300)
    bench.observe(seen(2, grant(6, 500, max_clock_mhz=1200)))
    bench.ticks(only_lower=True)
    assert bench.limit_mw == 300_000 and bench.acked == 5
    bench.observe(seen(3, grant(7, 250)))
    actions = bench.tick(only_lower=True)
    assert bench.limit_mw == 250_000 and actions.clocks == (), "a lock is not taken away either"
    bench.observe(seen(4, grant(8, 400)))
    bench.ticks()
    assert bench.limit_mw == 400_000 and bench.acked == 8


def test_caps_stay_within_the_legal_range() -> None:
    bench = holding(300)
    bench.observe(seen(2, grant(6, 900)))
    bench.ticks()
    assert bench.limit_mw == 700_000 and bench.acked == 6
    bench.observe(seen(3, grant(7, 100)))
    bench.ticks()
    assert bench.limit_mw == 200_000 and bench.acked == 6, "a cap below the minimum cannot be kept, and is never said to be"


def test_a_part_without_power_management_gets_no_call_and_is_called_so() -> None:
    bench = Bench()
    bench.enforcer = Enforcer(gpus={"g0": replace(GPU, cappable=False)}, record=Record())
    bench.observe(seen(1, grant(5, 300)))
    bench.ticks()
    assert (bench.calls, bench.acked, bench.health) == ([], NO_GRANT, Health.NOT_SUPPORTED)
    bench.tick(back=Readback(None, None, Health.LOST))
    assert bench.health is Health.LOST, "what is worse is said first"


def test_who_else_sets_the_limit_is_put_right_and_named() -> None:
    bench = holding(300)
    for _ in range(LEAST_TIMES):
        assert bench.enforcer.contests == {}
        bench.limit_mw = 650_000
        bench.now_s += RETRY_S
        bench.ticks()
        assert bench.limit_mw == 300_000
    assert bench.enforcer.contests == {"g0": Contest(650, LEAST_TIMES)}


def test_the_record_of_a_gpu_that_is_here_no_more_is_kept() -> None:
    bench = Bench(record=Record(2, {"gone": Taken(5, 300)}))
    bench.observe(seen(1, grant(6, 300)))
    persist = bench.tick().persist
    assert persist is not None and persist.grants.keys() == {"gone", "g0"}


def test_the_guard_only_lowers() -> None:
    bench = holding(300)
    bench.ticks(guard_w={"g0": 250})
    assert bench.limit_mw == 250_000 and bench.acked == 5
    bench.ticks(guard_w={"g0": 600})
    assert bench.limit_mw == 300_000
    bench.ticks(guard_w={})
    assert bench.limit_mw == 300_000


def test_clocks_are_locked_when_the_grant_says_so_and_once() -> None:
    bench = Bench()
    bench.observe(seen(1, grant(5, 300, max_clock_mhz=1410)))
    assert bench.tick().clocks == (LockClock("g0", 1410),)
    assert bench.tick().clocks == ()
    bench.observe(seen(2, grant(5, 300, max_clock_mhz=1200)))
    assert bench.tick().clocks == (LockClock("g0", 1200),), "another lock under the same grant"
    bench.observe(seen(3, grant(6, 300)))
    assert bench.tick().clocks == (), "a clock rises, like a cap, after the record is durable"
    assert bench.tick().clocks == (LockClock("g0", None),)


@pytest.mark.parametrize(
    ("recorded", "first", "asked"),
    [
        (None, grant(5, 300), ()),  # never granted anything: clocks are not ours to change
        (5, grant(5, 300), (LockClock("g0", None),)),  # its reset may never have come through
        (5, grant(6, 300), (LockClock("g0", None),)),  # it may have taken a lock away while no agent ran
        (5, grant(5, 300, max_clock_mhz=1410), (LockClock("g0", 1410),)),
        (None, grant(5, 300, max_clock_mhz=1410), (LockClock("g0", 1410),)),
    ],
)
def test_a_restarted_agent_puts_the_clocks_where_the_grant_says(
    recorded: int | None, first: Grant, asked: tuple[LockClock, ...]
) -> None:
    bench = Bench(record=Record(2, {} if recorded is None else {"g0": Taken(recorded, 300)}))
    bench.observe(seen(1, first))
    assert bench.tick().clocks + bench.tick().clocks == asked
    assert bench.tick().clocks == ()
    bench.observe(seen(2, grant(7, 300, max_clock_mhz=900)))
    assert bench.tick().clocks == (LockClock("g0", 900),)


# -------------------------------------------------------------------------------------------------------- acknowledging


def test_a_cap_counts_only_when_both_limits_read_back_at_or_below_it() -> None:
    bench = Bench()
    bench.observe(seen(1, grant(5, 300)))
    bench.ticks(works=False)
    assert bench.acked == NO_GRANT
    for back in (Readback(300_001, 200_000), Readback(200_000, 300_001), Readback(None, 200_000), Readback(200_000, None)):
        bench.tick(back=back, works=False)
        assert bench.acked == NO_GRANT
    bench.tick(back=Readback(300_000, 250_000))
    assert bench.acked == 5


def test_a_limit_that_rises_by_itself_takes_the_acknowledgement_back() -> None:
    bench = holding(300)
    bench.tick(back=Readback(301_000, 200_000), works=False)
    assert bench.acked == NO_GRANT
    bench.limit_mw = 300_000
    bench.tick()
    assert bench.acked == 5


def test_an_unreadable_gpu_keeps_what_was_acknowledged_and_is_left_alone() -> None:
    bench = holding(300)
    bench.tick(back=Readback(None, None, Health.LOST))
    assert bench.acked == 5 and bench.health is Health.LOST and bench.calls == [300]
    assert bench.enforcer.status()[0].management_w is None
    bench.tick(back=None)
    assert bench.health is Health.UNKNOWN


def test_a_new_object_has_no_acknowledgements_yet() -> None:
    bench = holding(300)
    bench.observe(NodePower("n1", "u2", 9))
    bench.tick()
    assert bench.acked == NO_GRANT and bench.enforcer.observed_uid == "u2"


def test_what_was_read_before_a_setter_returned_says_nothing() -> None:
    bench = Bench()
    bench.observe(seen(1, grant(5, 300)))
    bench.tick()
    line = bench.enforcer.status()[0]
    assert (line.management_w, line.enforced_w, line.acked_grant) == (None, None, NO_GRANT)


# --------------------------------------------------------------------------------------------------- setters that fail


def test_a_setter_that_does_nothing_is_tried_again_once_a_second_and_reported() -> None:
    bench = Bench()
    bench.observe(seen(1, grant(5, 300)))
    for _ in range(30):
        bench.tick(works=False)
    assert bench.health is Health.CAP_NOT_ENFORCED
    assert len(bench.calls) == 3
    bench.ticks(15)
    assert bench.health is Health.OK and bench.acked == 5


def test_a_setter_that_is_refused_is_reported_until_one_succeeds() -> None:
    bench = Bench()
    bench.observe(seen(1, grant(5, 300)))
    bench.ticks(error=Health.NO_PERMISSION)
    assert bench.health is Health.NO_PERMISSION and bench.acked == NO_GRANT
    bench.ticks(15)
    assert bench.health is Health.OK and bench.acked == 5


def test_a_setter_that_failed_is_reported_no_longer_once_the_limit_stands() -> None:
    """It answered an error and took effect all the same, or a person set the limit: no call is due that could succeed."""
    bench = Bench()
    bench.observe(seen(1, grant(5, 300)))
    bench.ticks(error=Health.UNKNOWN)
    bench.limit_mw = 300_000
    bench.ticks()
    assert (bench.calls, bench.acked, bench.health) == ([300], 5, Health.OK)
    bench.observe(seen(2, grant(6, 250)))
    bench.ticks(error=Health.UNKNOWN)
    assert (bench.acked, bench.health) == (5, Health.UNKNOWN)


def test_while_a_setter_hangs_nothing_is_acknowledged_and_only_lower_caps_are_set_beside_it() -> None:
    bench = Bench()
    bench.observe(seen(1, grant(5, 600)))
    bench.tick(hangs=True)
    bench.observe(seen(2, grant(6, 300)))
    bench.ticks(3)
    assert bench.calls == [600], "not called hung yet"
    bench.now_s += HUNG_S
    bench.ticks(3)
    assert bench.calls == [600, 300] and bench.limit_mw == 300_000
    assert bench.acked == NO_GRANT and bench.health is Health.HUNG
    bench.observe(seen(3, grant(7, 500)))
    bench.ticks(3)
    assert bench.calls == [600, 300], "a raise waits"
    bench.limit_mw = 600_000  # the hung call completes after all
    bench.enforcer.setter_finished("g0", bench.now_s, None)
    bench.now_s += RETRY_S
    bench.ticks(3)
    assert bench.limit_mw == 500_000 and bench.acked == 7 and bench.health is Health.OK


def test_setters_that_hang_have_a_bound() -> None:
    bench = Bench()
    for number in range(1, 12):
        bench.observe(seen(number, grant(number, 600 - number)))
        bench.tick(hangs=True)
        bench.now_s += HUNG_S
    assert len(bench.calls) == MAX_OUTSTANDING


def test_a_call_that_ended_without_beginning_is_a_bug() -> None:
    with pytest.raises(AssertionError, match="g0: a setter call ended that never began"):
        Bench().enforcer.setter_finished("g0", 0.0, None)


@pytest.mark.parametrize(("mw", "w"), [(299_999, 300), (300_000, 300), (300_001, 301), (0, 0)])
def test_limits_are_reported_in_watts_rounded_up(mw: int, w: int) -> None:
    assert watts_up(mw) == w
