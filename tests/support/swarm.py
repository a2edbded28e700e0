"""Short walks with few faults at a time, and many of them: one seed chooses the world, some kinds of mishap with a small budget
for each, and the moments between ordinary events at which they happen.

A walk in which everything goes wrong at once finds little: a scene of a dozen exact steps needs the quiet in between.
"""

from __future__ import annotations

import itertools
import random
from collections import Counter
from dataclasses import dataclass
from typing import Final

from support.vanishing import ALL_WEIGHTS, VANISHING, VanishingExplorer
from support.world import World

EVENTS: Final = 240
"""Transitions of one walk, before everything is put right and the fleet has to recover."""
FLEETS: Final = ((1, 1, False), (1, 1, False), (1, 2, False), (2, 1, False), (1, 2, True))
"""Nodes per rack, GPUs per node, rich: small ones more often, for scenes need few."""
POLICIES: Final = (*("Uniform",) * 7, "PhaseAware", "Polca", "Clocked")
ORDINARY: Final[dict[str, int]] = {
    "step": 10,
    "watch_one": 10,
    "watch_all": 10,
    "write_arrives": 24,
    "nodes_told": 6,
    "agent_runs": 8,
    "agent_watches": 12,
    "agent_ticks": 16,
    "status_written": 16,
    "status_lands": 24,
    "agent_starts": 4,
    "limit_changes": 8,
    "load_changes": 3,
    "pod_starts": 2,
    "pod_ends": 2,
    "time_passes": 10,
    "calm": 3,
    "budgets_created": 1,
    "parents_put_back": 1,
    "labels_put_back": 1,
    "kind_made": 2,
    "node_returns": 1,
    "meters_return": 1,
    "setter_completes": 1,
}
"""What happens in every walk: life goes on, and people mend what is broken."""
_CUMULATED: Final = tuple(itertools.accumulate(ORDINARY.values()))
FAULTS: Final = tuple(name for name in ALL_WEIGHTS if name not in ORDINARY)
SUBJECT: Final = (*(name for name in VANISHING if name in FAULTS), "new_leader", "node_moves", "node_vanishes", "agent_crashes")
"""Drawn more often than the rest."""
WHOLE_EVERY: Final = 8
"""Every so many seeds the recovery is played for its whole time, and not only until the fleet has settled."""
MAX_KINDS: Final = 4
MAX_OF_A_KIND: Final = 4


@dataclass(frozen=True, slots=True)
class Draw:
    """What a seed stands for. `names`: the walk's events in order, as far as each finds something to act on."""

    policy: str
    nodes_per_rack: int
    gpus_per_node: int
    rich: bool
    names: tuple[str, ...]


def draw(rng: random.Random) -> Draw:
    kinds = rng.choices(SUBJECT, k=rng.randint(1, MAX_KINDS)) + rng.choices(FAULTS, k=rng.randint(0, 1))
    faults = [kind for kind in dict.fromkeys(kinds) for _ in range(rng.randint(1, MAX_OF_A_KIND))]
    names = rng.choices(tuple(ORDINARY), weights=tuple(ORDINARY.values()), k=EVENTS - len(faults))
    for fault in faults:
        names.insert(rng.randrange(len(names)), fault)
    nodes, gpus, rich = rng.choice(FLEETS)
    return Draw(rng.choice(POLICIES), nodes, gpus, rich, tuple(names))


def walk(seed: int) -> Counter[str]:
    """Play one seed and recover. How often each event happened, `EVENTS` in all: in place of one that finds nothing to act on
    another is drawn. Raises AssertionError with the seed and the last events."""
    rng = random.Random(seed)
    drawn = draw(rng)
    world = World(
        policy=drawn.policy,
        nodes_per_rack=drawn.nodes_per_rack,
        gpus_per_node=drawn.gpus_per_node,
        rich=drawn.rich,
        two_rows=True,
    )
    explorer = VanishingExplorer(world)
    world.active.settle(rng.randrange(4))
    played: list[str] = []
    for drawn_name in drawn.names:
        name = drawn_name
        try:
            while not explorer.play(name, rng.randrange):
                name = rng.choices(tuple(ORDINARY), cum_weights=_CUMULATED)[0]
        except AssertionError as error:
            before = " ".join(played[-25:])
            raise AssertionError(f"seed {seed}, event {len(played)} ({name}): {error}; before it: {before}") from error
        played.append(name)
    try:
        explorer.recover(whole=seed % WHOLE_EVERY == 0)
    except AssertionError as error:
        faults = [name for name in played if name in FAULTS]
        raise AssertionError(f"seed {seed}, recovery after {' '.join(faults)}: {error}") from error
    return Counter(played)
