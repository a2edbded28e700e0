"""The tour names files and functions as they are, so that nobody is sent to a door that has been walled up."""

from __future__ import annotations

import re

from support.stops import REPOSITORY, missing, stops_of

TOUR = (REPOSITORY / "docs" / "tour.md").read_text(encoding="utf-8")
MAX_LINES = 150


def test_every_stop_of_the_tour_is_there() -> None:
    assert len([name for _, _, name in stops_of(TOUR) if name]) > 50
    assert missing(TOUR) == []


def test_a_door_that_is_walled_up_is_noticed() -> None:
    assert missing("`core/budget/keeper.py: Keeper.step`, `core/budget/keeper.py: Keeper.leap`") == [
        "core/budget/keeper.py: Keeper.leap"
    ]


def test_the_tour_has_six_walks_and_is_short() -> None:
    assert len(re.findall(r"^## \d\. ", TOUR, re.MULTILINE)) == 6
    assert len(TOUR.splitlines()) < MAX_LINES
