"""Short walks with few faults at a time, and many of them: one seed chooses the world, some kinds of mishap with a small budget
for each, and the moments between ordinary events at which they happen.

A walk in which everything goes wrong at once finds little: a scene of a dozen exact steps needs the quiet in between.
"""

from __future__ import annotations

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
POLICIES: Final = ("Uniform", "Uniform", "PhaseAware", "Polca", "Clocked")
ORDINARY: Final[dict[str, int]] = {
    "step": 16,
    "watch_one": 4,
    "watch_all": 8,
    "write_arrives": 16,
    "nodes_told": 5,
    "agent_runs": 14,
    "agent_watches": 5,
    "agent_ticks": 8,
    "status_written": 6,
    "status_lands": 9,
    "agent_starts": 4,
    "limit_changes": 6,
    "load_changes": 2,
    "pod_starts": 1,
    "pod_ends": 1,
    "time_passes": 10,
    "calm": 7,
    "budgets_created": 1,
    "parents_put_back": 1,
    "labels_put_back": 1,
    "kind_made": 2,
    "node_returns": 1,
    "meters_return": 1,
    "setter_completes": 1,
}
"""What happens in every walk: life goes on, and people mend what is broken."""
FAULTS: Final = tuple(name for name in ALL_WEIGHTS if name not in ORDINARY)
SUBJECT: Final = (*(name for name in VANISHING if name in FAULTS), "new_leader", "node_moves", "node_vanishes", "agent_crashes")
"""Drawn more often than the rest."""
MAX_KINDS: Final = 4
MAX_OF_A_KIND: Final = 4


@dataclass(frozen=True, slots=True)
class Draw:
    """What a seed stands for. `names`: the walk's events in order."""

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
    """Play one seed and recover. How often each event happened; raises AssertionError with the seed and the last events."""
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
    world.active.settle(3)
    for at, name in enumerate(drawn.names):
        try:
            explorer.play(name, rng.randrange)
        except AssertionError as error:
            before = " ".join(drawn.names[max(0, at - 25) : at])
            raise AssertionError(f"seed {seed}, event {at} ({name}): {error}; before it: {before}") from error
    try:
        explorer.recover()
    except AssertionError as error:
        faults = [name for name in drawn.names if name in FAULTS]
        raise AssertionError(f"seed {seed}, recovery after {' '.join(faults)}: {error}") from error
    return Counter(drawn.names)
