"""What the sums of I1 must count, by the world's own knowledge of who draws where (T3)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from splitwatt_core.budget.claims import managed

if TYPE_CHECKING:
    from support.operators import Operator
    from support.world import World


def charged_sums(operator: Operator) -> dict[str, float]:
    """Watts at the meter below each budget that is there: every node once in each that it owes, at what the operator charges
    its GPUs; at what it may truly draw where the operator knows nothing of it."""
    world = operator.world
    drawn = {name: _drawn(operator, name) for name in world.nodes}
    return {budget: _sum(world, budget, drawn) for budget in operator.keeper.budgets}


def _drawn(operator: Operator, name: str) -> tuple[float, bool]:
    """GPU watts, and whether an agent is known to rule them."""
    account = operator.keeper.roster.nodes.get(name)
    if account is None:
        return float(operator.world.nodes[name].true_w), True
    operator.keeper._refresh(account, operator.world.now_s)
    return float(sum(gpu.charge_w for gpu in account.gpus.values())), managed(account)


def _sum(world: World, budget: str, drawn: dict[str, tuple[float, bool]]) -> float:
    total_w = float(sum(line.fixed_w for name, line in world.lines.items() if line.exists and budget in world.declared(name)))
    for name, (gpu_w, known) in drawn.items():
        leaves = {way[0] for way in world.feeds.below(name, budget)}
        of_leaf = [world.lines[leaf] for leaf in leaves]
        total_w += min(
            (line.loss_factor * gpu_w + (line.non_gpu_w if known else world.flat_w(line)) for line in of_leaf), default=0.0
        )
    return total_w
