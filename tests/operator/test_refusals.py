"""Refused grants: a pause per object, and a sentence once nothing gets through."""

from __future__ import annotations

from splitwatt_operator.budgets.refusals import FORGOTTEN_S, LONGEST_PAUSE_S, STUCK_S, Refusals


def test_the_first_refusal_is_answered_at_once_and_the_next_ones_wait_longer() -> None:
    refusals = Refusals()
    pauses = [refusals.refused("n1", "409", float(i)) for i in range(12)]
    assert pauses[0] == 0.0
    assert pauses[1:] == sorted(pauses[1:])
    assert pauses[1] > 0.0
    assert pauses[-1] == LONGEST_PAUSE_S
    assert refusals.refused("n2", "409", 13.0) == 0.0, "each object by itself"
    refusals.stored("n1")
    assert refusals.refused("n1", "409", 14.0) == 0.0


def test_an_outcome_that_is_unknown_waits_as_well_and_proves_nothing() -> None:
    refusals = Refusals()
    pauses = [refusals.unanswered("n1") for _ in range(12)]
    assert (pauses[0], pauses[-1]) == (0.0, LONGEST_PAUSE_S)
    assert refusals.problem(1e9) is None


def test_only_refusals_for_a_minute_are_told_with_the_last_reason() -> None:
    refusals = Refusals()
    for now_s in range(int(STUCK_S)):
        refusals.refused(f"n{now_s % 3}", f"reason {now_s}", float(now_s))
        assert refusals.problem(float(now_s)) is None
    refusals.refused("n1", "409 Conflict: it has been modified", STUCK_S)
    said = refusals.problem(STUCK_S)
    assert said == (
        "no cap can be moved for 60 s: all 61 writes of NodePowers were refused, the last one with: "
        "409 Conflict: it has been modified"
    )
    refusals.stored("n2")
    assert refusals.problem(STUCK_S) is None


def test_a_refusal_long_ago_with_nothing_to_write_since_is_no_problem() -> None:
    refusals = Refusals()
    refusals.refused("n1", "409", 0.0)
    assert refusals.problem(STUCK_S + 1.0) is None
    refusals.refused("n1", "409", 2 * FORGOTTEN_S)
    assert refusals.problem(2 * FORGOTTEN_S + 1.0) is None, "it counts from the new one"
