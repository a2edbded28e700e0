"""A long seeded walk through everything that may happen, 32 000 events, and 136 000 in `make property-long`: no violation of
I1-I6."""

from __future__ import annotations

import random

import pytest
from support.explorer import ACTIONS, WEIGHTS, Explorer
from support.sizes import sized
from support.world import World

EVENTS_PER_WALK = 500
WALKS = sized(34)
"""Two policies as they are shipped on three fleets, and two that change locks much on the rich one:
8 x 34 x 500 events at the long size."""
FLEETS = {"small": (1, 1, False), "wide": (2, 2, False), "rich": (1, 2, True)}
WALKED = [(policy, fleet) for policy in ("Uniform", "PhaseAware") for fleet in FLEETS] + [("Polca", "rich"), ("Clocked", "rich")]


@pytest.mark.search
@pytest.mark.no_cover  # what these lines are is covered elsewhere; watched line by line, the walks take twice as long
@pytest.mark.parametrize(
    ("policy", "nodes_per_rack", "gpus_per_node", "rich"),
    [(policy, *FLEETS[fleet]) for policy, fleet in WALKED],
    ids=[f"{fleet}-{policy}" for policy, fleet in WALKED],
)
def test_no_event_breaks_the_ledger(policy: str, nodes_per_rack: int, gpus_per_node: int, rich: bool) -> None:
    for seed in range(WALKS):
        rng = random.Random(f"{policy} {nodes_per_rack} {gpus_per_node} {rich} {seed}")
        explorer = Explorer(World(nodes_per_rack=nodes_per_rack, gpus_per_node=gpus_per_node, policy=policy, rich=rich))
        names = rng.choices(ACTIONS, weights=list(WEIGHTS.values()), k=EVENTS_PER_WALK)
        for at, name in enumerate(names):
            try:
                explorer.play(name, rng.randrange)
            except AssertionError as error:
                raise AssertionError(
                    f"seed {seed}, event {at} ({name}): {error}; before it {names[max(0, at - 12) : at]}"
                ) from error
        try:
            explorer.recover()
        except AssertionError as error:
            raise AssertionError(f"seed {seed}, recovery: {error}") from error
