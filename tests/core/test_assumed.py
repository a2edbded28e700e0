"""Gates that count as lifted: which attempts may still be met, and when one is sent again."""

from __future__ import annotations

from splitwatt_core.admission.assumed import RECHECK_S, Assumed
from splitwatt_core.admission.pods import Pod, PodName
from splitwatt_core.admission.snapshot import Admission, PodNeed
from splitwatt_core.budget.tree import Selector
from splitwatt_core.clusters import Role

NAME = PodName("s", "p")


def gated(version: int) -> Pod:
    return Pod(NAME, "uid-p", version, "chat", Role.DECODE, 8, gated=True)


def one() -> tuple[Assumed, Admission]:
    admission = Admission(PodNeed(NAME, "uid-p", None, Role.DECODE, 8, {}), "rack-a", Selector(), 1200.0)
    assumed = Assumed()
    assumed.take([admission])
    return assumed, admission


def test_the_newest_attempt_says_which_versions_can_still_be_met() -> None:
    """A later attempt may be bound to an older version, which another watch showed; the first one may land all the same."""
    assumed, _ = one()
    assumed.sent("uid-p", version=7, now_s=0.0)
    assumed.unknown("uid-p")
    assumed.sent("uid-p", version=5, now_s=10.0)
    assumed.unknown("uid-p")
    for version, stands in ((5, True), (6, True), (7, True), (8, False)):
        assumed.settle([gated(version)])
        assert (assumed.leaves() == {"uid-p": "rack-a"}) is stands, version


def test_what_was_never_sent_stands_whatever_the_version() -> None:
    assumed, admission = one()
    assumed.settle([gated(99)])
    assert assumed.due(0.0) == [admission]


def test_an_attempt_is_repeated_after_a_pause_and_not_before() -> None:
    assumed, admission = one()
    assert assumed.due(100.0) == [admission], "the first is due at once"
    assumed.sent("uid-p", version=1, now_s=100.0)
    assert assumed.due(100.0 + RECHECK_S - 0.01) == []
    assert assumed.due(100.0 + RECHECK_S) == [admission]


def test_a_refusal_frees_the_watts_unless_an_attempt_is_unsure() -> None:
    assumed, _ = one()
    assumed.sent("uid-p", version=1, now_s=0.0)
    assert assumed.refused("uid-p") and len(assumed) == 0
    assumed, _ = one()
    assumed.sent("uid-p", version=1, now_s=0.0)
    assumed.unknown("uid-p")
    assert not assumed.refused("uid-p") and len(assumed) == 1
