"""Short words for tests of the whole keeper."""

from __future__ import annotations

from splitwatt_core.conditions import Condition
from support.world import Operator, World


def settled(world: World, rounds: int = 10) -> Operator:
    """An elected operator after that many rounds in which everybody answers."""
    operator = world.elect()
    operator.settle(rounds)
    return operator


def condition(operator: Operator, budget: str, kind: str) -> Condition:
    return next(c for c in operator.last.budgets[budget].conditions if c.type == kind)


def caps(world: World, node: str) -> list[int]:
    """True limits of a node's GPUs, in watts."""
    return [gpu.true_w for gpu in world.nodes[node].gpus.values()]
