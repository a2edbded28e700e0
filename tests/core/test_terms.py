"""Which terms are believed, by property: a new one is above all that agents can have obeyed, and no number written by hand ends a
reign, uses the terms up or blocks a successor."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from splitwatt_core.protocol.contract import MAX_TERM, SIGN_OF_LIFE_S
from splitwatt_core.protocol.terms import MAX_RISE, NO_WORD, REACH, TOLD_FOR_S, TermsError, TermWord, next_term

OURS = 12
FORGED = st.integers(OURS + REACH + 1, MAX_TERM)
honest_term = st.integers(1, MAX_TERM // 2)
lost_starts = st.integers(0, REACH)


@given(true=honest_term, lease_lost=lost_starts, behind=st.lists(lost_starts, max_size=5), forged=st.lists(FORGED, max_size=3))
def test_after_a_restore_the_new_term_is_above_every_agents_whatever_else_is_forged(
    true: int, lease_lost: int, behind: list[int], forged: list[int]
) -> None:
    lease = max(1, true - lease_lost)
    carried = [max(1, lease - start) for start in behind]
    obeyed = [max(0, true - start) for start in behind] + [true]
    term = next_term(lease, carried=carried, obeyed=[*obeyed, *forged])
    assert true < term <= lease + REACH + 1


@given(lease=st.integers(1, MAX_TERM // 2), forged=st.lists(st.integers(0, MAX_TERM), max_size=5), stamped=st.booleans())
def test_no_status_uses_terms_up(lease: int, forged: list[int], stamped: bool) -> None:
    assert lease < next_term(lease, carried=[lease] if stamped else [], obeyed=forged) <= lease + REACH + 1


@given(lease=honest_term, forged=st.integers(0, MAX_TERM))
def test_one_forged_spec_among_others_does_not_block_a_successor(lease: int, forged: int) -> None:
    assert lease < next_term(lease, carried=[lease, forged, lease], obeyed=[lease]) <= lease + REACH + 1


@given(true=honest_term, unstamped=lost_starts, lease=st.integers(MAX_TERM - 5, 2**31 - 1))
def test_a_lease_written_by_hand_is_left_aside(true: int, unstamped: int, lease: int) -> None:
    """The predecessor's term may be one that nothing carries yet."""
    term = next_term(lease, carried=[true, true], obeyed=[true])
    assert true + unstamped < term <= MAX_TERM


@given(true=honest_term, lease=st.one_of(st.none(), st.integers(0, 5)), alone=st.booleans())
def test_a_lost_lease_follows_the_specs(true: int, lease: int | None, alone: bool) -> None:
    assert next_term(lease, carried=[true] if alone else [true, true], obeyed=[true]) == max(true, lease or 0) + 1


def test_a_process_never_falls_below_what_it_held() -> None:
    assert next_term(10, carried=[10], obeyed=[10], held=12) == 13


def test_the_first_term_of_all_is_one() -> None:
    assert next_term(None, carried=[], obeyed=[]) == 1


@pytest.mark.parametrize(("lease", "carried"), [(MAX_TERM, []), (2**31 - 1, []), (MAX_TERM, [MAX_TERM])])
def test_where_no_term_is_left_one_sentence_says_what_to_do(lease: int, carried: list[int]) -> None:
    with pytest.raises(TermsError, match=rf"no term is left above {lease}, .*Delete the Lease"):
        next_term(lease, carried=carried, obeyed=[])


@given(words=st.lists(st.tuples(FORGED, st.floats(0.0, 1000.0)), min_size=1, max_size=20))
def test_a_term_out_of_reach_never_ends_a_reign(words: list[tuple[int, float]]) -> None:
    word, now_s = NO_WORD, 0.0
    for term, later_s in words:
        now_s += later_s
        word = word.said(term, now_s, ours=OURS)
        assert word.superseding(ours=OURS) == 0 and str(term) in word.oddity(ours=OURS)
    healed = word.said(OURS, now_s, ours=OURS)
    assert (healed.superseding(ours=OURS), healed.oddity(ours=OURS)) == (0, "")


@given(
    words=st.lists(st.tuples(st.integers(OURS + 1, OURS + 3), st.floats(0.0, SIGN_OF_LIFE_S)), min_size=1, max_size=30),
    every=st.integers(1, 2),
)
def test_an_agent_that_lives_keeps_the_reign_whatever_is_written_over_its_word(
    words: list[tuple[int, float]], every: int
) -> None:
    """It speaks once a minute at least, between any two of the forged words."""
    word, now_s = NO_WORD, 0.0
    for i, (term, later_s) in enumerate(words):
        now_s += later_s / every
        word = word.said(OURS if i % (every + 1) == every else term, now_s, ours=OURS)
        assert word.superseding(ours=OURS) == 0


@given(ahead=st.integers(1, REACH), since_s=st.floats(0.0, 1e9))
def test_an_agent_that_keeps_to_a_higher_term_ends_the_reign(ahead: int, since_s: float) -> None:
    word = NO_WORD.said(OURS + ahead, since_s, ours=OURS)
    while word.again_s - since_s < TOLD_FOR_S:
        assert word.superseding(ours=OURS) == 0 and str(OURS + ahead) in word.oddity(ours=OURS)
        word = word.said(OURS + ahead, word.again_s + SIGN_OF_LIFE_S, ours=OURS)
    assert word.superseding(ours=OURS) == OURS + ahead


def test_one_word_is_not_the_agents_however_long_it_stands() -> None:
    word = NO_WORD.said(OURS + 1, 0.0, ours=OURS)
    assert word.stamped(OURS, ours=OURS).superseding(ours=OURS) == 0


@given(carried=st.integers(0, MAX_TERM))
def test_a_spec_ends_the_reign_where_a_successor_can_come_above_it(carried: int) -> None:
    word = TermWord().stamped(carried, ours=OURS)
    assert (word.superseding(ours=OURS) > 0) == (OURS < carried <= OURS + REACH)
    assert ("delete that NodePower" in word.oddity(ours=OURS)) == (carried > OURS + REACH)


def test_whatever_an_operator_takes_the_api_server_lets_through() -> None:
    assert REACH + 1 + REACH < MAX_RISE < MAX_TERM / 2
