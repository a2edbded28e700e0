"""Who may take the Lease, and until when its holder may send: never two at once, wherever clocks stand and processes stall."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable

import pytest
from splitwatt_core.protocol.candidacy import (
    GIVEN_UP_DURATION_S,
    GRACE_RENEWALS,
    HOLD_SHARE,
    MAX_DURATION_S,
    Candidacy,
    life_of,
)
from support.lease_world import ACTS, BY_HAND, DURATION_S, LeaseWorld
from support.sizes import sized

STEPS = 400
WALKS = sized(8000)
OURS, THEIRS = "0123456789abcdef", "fedcba9876543210"


def rule(life: str = "") -> Candidacy:
    return Candidacy(duration_s=DURATION_S, life=life)


def without(*names: str) -> dict[str, float]:
    return {act: weight for act, weight in ACTS.items() if act not in names}


def walk(seed: int, *, rule_of: Callable[[str], Candidacy] = rule, acts: dict[str, float] | None = None) -> LeaseWorld:
    """Three candidates, two of them with a life."""
    world = LeaseWorld(random.Random(seed), rule_of, acts or ACTS)
    world.walk(STEPS)
    return world


def walk_by_hand(seed: int, *, rule_of: Callable[[str], Candidacy] = rule) -> LeaseWorld:
    """A person deletes the Lease, clears its holder or writes another duration; all have seen a holder before. Nobody starts
    anew: a process that never saw a holder takes a Lease that is not there at once, and the term fences its predecessor."""
    world = LeaseWorld(random.Random(seed), rule_of, without("kill") | BY_HAND)
    world.all_look()
    world.walk(STEPS)
    return world


def test_no_two_hold_it_at_once() -> None:
    seen: Counter[str] = Counter()
    for seed in range(WALKS):
        seen += walk(seed).seen
    assert seen["taken"] > WALKS, "successors begin"
    assert seen["killed"] > WALKS
    assert seen["found its own former life"] > WALKS / 10


def test_not_by_a_persons_hand_either() -> None:
    seen: Counter[str] = Counter()
    for seed in range(WALKS):
        seen += walk_by_hand(seed).seen
    assert seen["taken"] > WALKS
    assert seen["by hand"] > WALKS / 2


class HoldsToTheEnd(Candidacy):
    """The holder keeps no margin: then clocks would have to run alike."""

    @property
    def hold_s(self) -> float:
        return float(self.duration_s)


class CountsFromTheAnswer(Candidacy):
    """As if the last renewal had been sent when it was answered, up to half a second later."""

    @property
    def hold_s(self) -> float:
        return super().hold_s + 0.5


class CountsFromTheFirstLook(Candidacy):
    """Whatever was renewed since."""

    def saw(self, version: str, holder: str, duration_s: float, *, now_s: float) -> None:
        super().saw(version, holder, duration_s, now_s=now_s)
        self.first_s = getattr(self, "first_s", now_s)
        self._since_s = self.first_s


class BelievesTheRecord(Candidacy):
    """What somebody wrote there shortens a holder's time."""

    def _honoured_s(self, duration_s: float) -> float:
        return duration_s


class RemembersFromBefore(Candidacy):
    """What it saw before it held the Lease counts when it lost it."""

    def taken(self) -> None:
        since_s = self._since_s
        super().taken()
        self._since_s = since_s


class TakesWhatIsGone(Candidacy):
    """A Lease without a holder has none."""

    def vacant_from_s(self, *, me: str) -> float:
        gone = self._record is None or not self._record.holder
        return -math.inf if gone and not math.isinf(self._since_s) else super().vacant_from_s(me=me)


@pytest.mark.parametrize(
    ("broken", "played"),
    [
        (HoldsToTheEnd, walk),
        (CountsFromTheAnswer, walk),
        (CountsFromTheFirstLook, walk),
        (BelievesTheRecord, walk_by_hand),
        (TakesWhatIsGone, walk_by_hand),
        (RemembersFromBefore, walk_by_hand),
    ],
)
def test_a_rule_that_is_broken_is_noticed(broken: type[Candidacy], played: Callable[..., LeaseWorld]) -> None:
    with pytest.raises(AssertionError, match="both hold the Lease"):
        for seed in range(8 * WALKS):
            played(seed, rule_of=lambda life: broken(duration_s=DURATION_S, life=life))


def test_a_life_without_a_lock_is_noticed() -> None:
    """As where two machines had the same number."""
    with pytest.raises(AssertionError, match="both hold the Lease"):
        for seed in range(8 * WALKS):
            world = LeaseWorld(random.Random(seed), rule, ACTS, lives=(OURS, OURS, ""))
            world.walk(STEPS)


def seen(*records: tuple[float, str, str, float], life: str = "") -> Candidacy:
    """(when, version, holder, duration) of each look."""
    made = rule(life)
    for now_s, version, holder, duration_s in records:
        made.saw(version, holder, duration_s, now_s=now_s)
    return made


def test_only_a_record_that_stands_still_falls_vacant() -> None:
    assert rule().vacant_from_s(me="me") == math.inf, "nothing was seen"
    assert seen((10.0, "u/1", "a", 3.0)).vacant_from_s(me="me") == 13.0
    assert seen((10.0, "u/1", "a", 3.0), (12.0, "u/1", "a", 3.0)).vacant_from_s(me="me") == 13.0
    assert seen((10.0, "u/1", "a", 3.0), (12.0, "u/2", "a", 3.0)).vacant_from_s(me="me") == 15.0
    assert seen((10.0, "u/1", "a", 3.0), (12.0, "v/1", "a", 3.0)).vacant_from_s(me="me") == 15.0, "made anew"


def test_the_longer_duration_counts_and_no_impossible_one() -> None:
    assert seen((0.0, "u/1", "a", 15.0)).vacant_from_s(me="me") == 15.0, "an operator of another setting"
    assert seen((0.0, "u/1", "a", 1.0)).vacant_from_s(me="me") == DURATION_S
    assert seen((0.0, "u/1", "a", 2.0**31)).vacant_from_s(me="me") == MAX_DURATION_S


def test_nobody_waits_for_the_dead() -> None:
    former = Candidacy(duration_s=15, life=OURS).name("pod", token="01234567")
    assert life_of(former) == OURS
    assert seen((10.0, "u/1", former, 15.0), life=OURS).vacant_from_s(me="me") == -math.inf
    assert seen((10.0, "u/1", former, 15.0), life=THEIRS).vacant_from_s(me="me") == 25.0
    assert seen((10.0, "u/1", former, 15.0)).vacant_from_s(me="me") == 25.0, "without a life nothing is proven"
    nameless = Candidacy(duration_s=15).name("pod", token="01234567")
    assert life_of(nameless) == ""
    assert seen((10.0, "u/1", nameless, 15.0), life=OURS).vacant_from_s(me="me") == 25.0


def test_a_lease_that_is_gone_is_taken_at_once_only_where_nobody_was_seen() -> None:
    assert seen((10.0, "", "", 0.0)).vacant_from_s(me="me") == -math.inf
    assert seen((10.0, "u/1", "a", 15.0), (11.0, "", "", 0.0)).vacant_from_s(me="me") == 26.0
    assert seen((10.0, "u/1", "a", 3.0), (11.0, "u/2", "", 3.0)).vacant_from_s(me="me") == 14.0, "cleared by hand"
    given_up = (11.0, "u/2", "", float(GIVEN_UP_DURATION_S))
    assert seen((10.0, "u/1", "a", 3.0), given_up).vacant_from_s(me="me") == -math.inf
    held = seen((10.0, "", "", 0.0))
    held.taken()
    assert held.vacant_from_s(me="me") == math.inf, "what was seen before is over"
    held.saw("", "", 0.0, now_s=20.0)
    assert held.vacant_from_s(me="me") == 20.0 + DURATION_S, "since it was seen gone"


def test_after_a_silence_of_the_server_the_holder_is_heard_first() -> None:
    waiting = seen((10.0, "u/1", "a", 3.0))
    waiting.unheard()
    waiting.saw("u/1", "a", 3.0, now_s=30.0)
    assert waiting.vacant_from_s(me="me") == 30.0 + GRACE_RENEWALS * waiting.renew_s
    waiting.saw("u/1", "a", 3.0, now_s=31.0)
    assert waiting.vacant_from_s(me="me") == 30.0 + GRACE_RENEWALS * waiting.renew_s, "that comes once"


def test_a_holder_is_done_before_its_record_is_old() -> None:
    assert (rule().hold_s, HOLD_SHARE) == (pytest.approx(0.8 * DURATION_S), 0.8)
    assert rule().renew_s * GRACE_RENEWALS < rule().hold_s, "several renewals may fail"
