"""The steps from one state of the control loop to the next, without a driver, an API server or a clock."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from splitwatt_agent.sampling import Facts, GpuReading
from splitwatt_agent.session import NO_SESSION, Granted, Standing
from splitwatt_agent.state import (
    REWOUND_S,
    STORE_WENT_BACK,
    ControlState,
    SeenVersion,
    closed,
    seen,
    session_began,
    session_ended,
    taken_in,
    with_readings,
)
from splitwatt_core.protocol.contract import GpuStatus, Grant, Mode, NodePower, Spec
from splitwatt_core.protocol.enforcer import ObjectVerdict, Readback

BEGUN = session_began(ControlState(ticked_s=0.0), boot_id="b")


def version(number: int, *, grant: int = 7, consistent: bool = False) -> SeenVersion:
    row = Grant(uuid="a", grant=grant, cap_w=400, safe_cap_w=400, charge_w=700)
    spec = Spec(term=1, for_uid="u", mode=Mode.STRICT, node_limit_w=5000 + number, gpus=(row,))
    return SeenVersion(NodePower("n", "u", number, spec), consistent)


def standing(acked: int) -> Standing:
    line = GpuStatus(
        uuid="a", acked_grant=acked, management_w=400, enforced_w=400, min_w=200, max_w=700, default_w=700, model="X"
    )
    return Standing("u", 1, (line,), {"a": Granted(400, "Decode")})


def test_what_others_read_cannot_be_written() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        BEGUN.verdict = ObjectVerdict.ACCEPTED  # type: ignore[misc]


def test_an_accepted_version_is_what_the_status_is_tied_to() -> None:
    state = taken_in(BEGUN, version(3), ObjectVerdict.ACCEPTED, 1.0)
    assert state.observed == version(3).node_power
    assert (state.node_limit_w, state.mode, state.newest) == (5003, Mode.STRICT, {"a": 7})


@pytest.mark.parametrize("verdict", [v for v in ObjectVerdict if v is not ObjectVerdict.ACCEPTED])
def test_no_other_version_changes_the_nodes_limit(verdict: ObjectVerdict) -> None:
    """A limit that went away with an object would let the guard's ceilings rise because something is missing (I5)."""
    before = taken_in(BEGUN, version(3), ObjectVerdict.ACCEPTED, 1.0)
    after = taken_in(before, version(9, grant=8), verdict, 2.0)
    assert (after.node_limit_w, after.mode, after.newest) == (5003, Mode.STRICT, {"a": 7})


@pytest.mark.parametrize("verdict", [ObjectVerdict.OLDER_VERSION, ObjectVerdict.UNSYNCED])
def test_a_version_that_does_not_count_hides_nothing(verdict: ObjectVerdict) -> None:
    assert taken_in(BEGUN, version(1), verdict, 1.0).verdict is verdict, "and is told where nothing else is"
    before = taken_in(BEGUN, version(3), ObjectVerdict.ACCEPTED, 1.0)
    assert taken_in(before, version(1), verdict, 2.0) == before


def test_a_consistent_read_that_is_too_old_is_believed_only_after_a_while() -> None:
    old = version(1, consistent=True)
    first = taken_in(BEGUN, old, ObjectVerdict.OLDER_VERSION, 100.0)
    assert (first.rewound_since_s, first.trouble) == (100.0, "")
    again = taken_in(first, old, ObjectVerdict.OLDER_VERSION, 100.0 + REWOUND_S - 0.1)
    assert again.trouble == ""
    assert taken_in(again, old, ObjectVerdict.OLDER_VERSION, 100.0 + REWOUND_S).trouble == STORE_WENT_BACK
    answered = taken_in(first, version(4), ObjectVerdict.ACCEPTED, 101.0)
    assert taken_in(answered, old, ObjectVerdict.OLDER_VERSION, 100.0 + REWOUND_S).trouble == "", "one good version starts anew"


def test_an_old_version_from_the_watch_says_nothing_about_the_store() -> None:
    assert taken_in(BEGUN, version(1), ObjectVerdict.OLDER_VERSION, 100.0).rewound_since_s is None


def test_a_session_that_ended_leaves_no_readings_of_its_driver_load() -> None:
    reading = GpuReading(Readback(400_000, 400_000), Facts(energy_mj=1))
    state = with_readings(BEGUN, {"a": reading}, 5.0)
    state = dataclasses.replace(state, standing=standing(7))
    over = session_ended(state, "the node has booted anew")
    assert (over.readings, over.facts, over.standing) == ({}, {}, NO_SESSION)
    told = closed(over, 6.0).report
    assert told is not None
    assert told.gpus == ()
    assert "the node has booted anew" in told.conditions[0].message
    begun = session_began(taken_in(over, version(3), ObjectVerdict.ACCEPTED, 6.0), boot_id="c")
    assert (begun.verdict, begun.observed, begun.trouble, begun.boot_id) == (None, None, "", "c")


def test_facts_stay_until_they_are_asked_for_again() -> None:
    first = with_readings(BEGUN, {"a": GpuReading(Readback(1, 1), Facts(energy_mj=1))}, 1.0)
    second = with_readings(first, {"a": GpuReading(Readback(2, 2), None)}, 1.2)
    assert second.facts == {"a": Facts(energy_mj=1)}
    assert second.readings["a"].readback.management_mw == 2
    assert second.read_at_s == 1.2


def test_a_spec_that_could_not_be_understood_is_no_news_once_one_could() -> None:
    troubled = dataclasses.replace(BEGUN, contract_error="grants must be a list")
    assert taken_in(troubled, version(3), ObjectVerdict.UNSYNCED, 1.0).contract_error, "this one does not count"
    assert taken_in(troubled, version(3), ObjectVerdict.ACCEPTED, 1.0).contract_error == ""


def test_without_a_driver_the_report_still_names_the_object_that_was_seen() -> None:
    """The operator takes words of another object for none; and there is no enforcer now that would know."""
    state = session_ended(taken_in(BEGUN, version(3), ObjectVerdict.ACCEPTED, 1.0), "no driver")
    told = closed(state, 2.0).report
    assert told is not None and told.observed_uid == "u"


@given(st.lists(st.tuples(st.floats(0.01, 5.0), st.integers(5, 9), st.integers(5, 9)), min_size=1, max_size=20))
def test_a_grant_is_overdue_from_the_first_tick_that_lacks_its_acknowledgement(steps: list[tuple[float, int, int]]) -> None:
    state, now_s, since_s = taken_in(BEGUN, version(3), ObjectVerdict.ACCEPTED, 0.0), 0.0, None
    for pause_s, newest, acked in steps:
        now_s += pause_s
        state = closed(dataclasses.replace(state, standing=standing(acked), newest={"a": newest}), now_s)
        since_s = None if newest == acked else (now_s if since_s is None else since_s)
        assert state.unacked_since_s.get("a") == since_s
        assert state.ticked_s == now_s


def test_a_report_changes_with_the_facts_and_not_with_the_time() -> None:
    state = closed(dataclasses.replace(BEGUN, standing=standing(7)), 1.0)
    assert closed(state, 2.0).report == state.report
    assert closed(dataclasses.replace(state, standing=standing(8)), 2.0).report != state.report


def test_a_spec_that_cannot_be_understood_keeps_the_objects_identity() -> None:
    raw: dict[str, Any] = {"metadata": {"name": "n", "uid": "u", "resourceVersion": "5"}, "spec": {"term": "x"}}
    found = seen(raw, consistent=True)
    assert found.error
    assert found.node_power is not None
    assert (found.node_power.uid, found.node_power.resource_version, found.node_power.spec) == ("u", 5, None)
    assert seen(None, consistent=False) == SeenVersion(None, False)
