"""What the fleet shows below each budget at one moment: charged, modelled, measured by whom, adopted by now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from splitwatt_core.budget.claims import Placement, managed, rates_in
from splitwatt_core.budget.fleet import Fleet
from splitwatt_core.budget.meters.plausible import UNKNOWN_NODE_W
from splitwatt_core.budget.tree import BudgetSpec
from splitwatt_core.protocol.contract import Health, Mode
from splitwatt_core.protocol.node_account import NodeAccount

UNMANAGED_AFTER_S: Final = 30.0
"""A node without an agent keeps a new budget in adoption for this long; then it is charged its flat rate for good."""


@dataclass(frozen=True, slots=True)
class Survey:
    """One budget. Watts at the meter.

    modelled_w: agents' GPU watts with losses (of a stale agent, and of a GPU whose draw it cannot read, the charge: what is
    not told would look like watts that nobody declared), declared non-GPU, unmanaged and fixed watts. explained_w: the same
    with every GPU at its maximum, and no node without an agent below what a server may draw. drawn_w, known_w: GPU watts that
    agents read lately, and the same with what silent agents read last, of nodes that count in one leaf alone; drawn_s: when the
    oldest of these samples was taken, infinite where there is none. stale_agents: managed nodes without a fresh agent sample.
    unmeasured: all nodes without one, with an agent or not. Neither counts a node whose Node object is gone and whose GPUs are
    charged their default: it counts at its worst, and cannot be measured any more. unadopted: nodes with a GPU that is neither
    acknowledged nor sick or silent. nodes: all of them; bare: those of whose GPUs nobody tells.
    silent: at a leaf, the names behind stale_agents.
    """

    charged_w: float
    modelled_w: float
    explained_w: float
    drawn_w: float
    known_w: float
    drawn_s: float
    stale_agents: int
    unmeasured: int
    unadopted: int
    nodes: int
    bare: int = 0
    silent: tuple[str, ...] = ()


def take_survey(
    fleet: Fleet,
    placements: Sequence[Placement],
    *,
    budgets: Mapping[str, BudgetSpec],
    opened_s: Mapping[str, float],
    now_s: float,
) -> tuple[Survey, ...]:
    """One survey per budget, in the fleet's order. `opened_s`: since when each budget is known."""
    tree, forest = fleet.tree, fleet.forest
    agent_w, most_w, drawn_w, known_w, unmeasured, unadopted, own_bare = (np.zeros(forest.size) for _ in range(7))
    silent: list[list[str]] = [[] for _ in range(forest.size)]
    drawn_s = np.full(forest.size, np.inf)
    for p in placements:
        leaf = p.leaves[0]
        b = tree.index[leaf]
        stale = p.node.sample_stale(now_s)
        agent_w[b] += rates_in(leaf, p, budgets).loss_factor * (p.node.gpus_charge_w if stale else p.node.sampled_w)
        most_w[b] += _most_w(p)
        if len(p.leaves) == 1:  # where a node stands that moves just now, its meter knows alone
            drawn_w[b] += 0.0 if stale else p.node.sample_w
            known_w[b] += p.node.sample_w
            drawn_s[b] = drawn_s[b] if stale else min(drawn_s[b], p.node.sample_s)
        missed = stale and not _worst_counts(p.node)
        if managed(p.node) and missed:
            silent[b].append(p.node.name)
        unmeasured[b] += missed
        own_bare[b] += not managed(p.node)
        observing = budgets[tree.root[leaf]].mode is Mode.OBSERVE or bool(tree.frozen_by(leaf, budgets))
        unadopted[b] += not _adopted(p, now_s, observing=observing, open_for_s=now_s - opened_s[leaf])
    stale_agents = np.array([len(names) for names in silent])
    *counts, bare = (forest.sum_up(own).astype(np.int64) for own in (stale_agents, unmeasured, unadopted, own_bare))
    columns = (
        fleet.charged_w(),
        forest.sum_up(agent_w) + fleet.rest_w,
        forest.sum_up(most_w) + fleet.rest_w,
        forest.sum_up(drawn_w),
        forest.sum_up(known_w),
        forest.min_up(drawn_s),
        *counts,
        fleet.nodes,
        bare,
    )
    rows = zip(*(column.tolist() for column in columns), map(tuple, silent), strict=True)
    return tuple(Survey(*row) for row in rows)


def _worst_counts(node: NodeAccount) -> bool:
    """The Node object is gone, and every GPU is charged its default limit."""
    return not node.present and managed(node) and all(gpu.charge_w >= gpu.default_w for gpu in node.gpus.values())


def _most_w(p: Placement) -> float:
    """The most that the node's GPUs can draw, at the meter; without an agent what it may draw beyond its flat rate."""
    if not managed(p.node):
        return max(0.0, UNKNOWN_NODE_W - p.rates.unmanaged_w)
    return p.rates.loss_factor * p.node.most_w


def _adopted(p: Placement, now_s: float, *, observing: bool, open_for_s: float) -> bool:
    """Every GPU acknowledged, or sick or silent and charged its default limit (I1)."""
    node = p.node
    if node.present and not node.stamped:
        return False
    if observing:
        return True
    if not managed(node):
        return open_for_s > UNMANAGED_AFTER_S
    alive = node.alive(now_s)
    return all(
        (gpu.row is not None and gpu.acked == gpu.row.grant and not gpu.settling)
        or (gpu.charge_w >= gpu.default_w and (not alive or node.excluded or gpu.health is not Health.OK))
        for gpu in node.gpus.values()
    )
