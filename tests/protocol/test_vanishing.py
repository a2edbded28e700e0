"""Objects and processes that vanish, few at a time in many short walks: no violation of I1-I6, T3 or T4, and all recover.

`make property-long` plays a million transitions of the same kind.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from support.long_walk import play
from support.swarm import EVENTS, draw
from support.vanishing import VANISHING, VanishingExplorer
from support.world import World

TRANSITIONS = 20_000
PARTS = 4
FIRST_SEED = 1_000_000
"""Apart from those of `make property-long`, which counts from 0."""
WALKS = -(-TRANSITIONS // EVENTS // PARTS)


@pytest.mark.no_cover  # what these lines are is covered elsewhere; watched line by line, the walks take twice as long
@pytest.mark.parametrize("part", range(PARTS))
def test_what_vanished_still_draws(part: int) -> None:
    first = FIRST_SEED + part * WALKS
    tally = play(range(first, first + WALKS))
    assert not tally.failures, "\n".join(tally.failures.values())
    assert tally.events.total() == WALKS * EVENTS >= TRANSITIONS / PARTS


def test_every_way_to_vanish_is_among_them() -> None:
    drawn = [draw(random.Random(FIRST_SEED + walk)).names for walk in range(PARTS * WALKS)]
    assert set(VANISHING) <= {name for names in drawn for name in names}


def test_what_finds_nothing_to_act_on_is_no_transition() -> None:
    explorer = VanishingExplorer(World(two_rows=True))
    explorer.world.active.settle(3)
    idle = ("write_arrives", "status_lands", "watch_all", "kind_made", "labels_put_back", "parents_put_back", "budgets_created")
    assert not any(explorer.play(name, lambda n: 0) for name in idle)
    assert all(explorer.play(name, lambda n: 0) for name in ("step", "label_removed", "labels_put_back", "kind_deleted"))


def test_the_search_prints_its_seeds_and_fails_where_one_does(tmp_path: Path) -> None:
    tests = Path(__file__).resolve().parents[1]
    broken = (
        "import sys; from support import long_walk, swarm\n"
        "swarm.World.check = lambda self: (_ for _ in ()).throw(AssertionError('planted'))\n"
        "sys.argv[1:] = ['--transitions', '400', '--processes', '1', '--first', '7']\n"
        "sys.exit(long_walk.main())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", broken],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tests)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert 'make property-long ARGS="--seed 7"' in done.stdout and "planted" in done.stdout
    assert '"failed_seeds": [\n  7,\n  8\n ]' in (tmp_path / "out" / "property.json").read_text()
