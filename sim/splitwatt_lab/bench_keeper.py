"""Time of one whole `Keeper.step` over 1 000 GPUs: ledger, columns, policy, transition, writes and reports.

The allocator alone is the smaller part of what an operator does in a second. Here the core's own keeper and enforcers talk
to each other through a store in memory that does what an API server does to NodePowers (uids, versions), so that only the
step is timed and nothing but the core is in it. Two kinds of step: one in which nothing changes, and the first one after the
root's limit was cut, in which every cap falls and every spec is written anew. And two fleets of 500 root budgets side by
side, without nodes and with one node each, for every root is a tree and a decision of its own.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from splitwatt_core.budget.facts import MeterReading, NodeFact, Plan
from splitwatt_core.budget.keeper import Keeper
from splitwatt_core.budget.tree import BudgetSpec, MeterSpec, Selector
from splitwatt_core.names import LABEL_RACK
from splitwatt_core.policies.shipped import POLICIES
from splitwatt_truth.store import ObjectStore

from splitwatt_lab.bench_node import StandInNode
from splitwatt_lab.errors import LabError

GPUS: Final = 1_000
ROOTS: Final = 500
GPUS_PER_NODE: Final = 8
NODES_PER_RACK: Final = 10
STEADY_STEPS: Final = 15
CUTS: Final = 5
SETTLE_STEPS: Final = 60
ROOT: Final = "site"
NODE_W: Final = 2_800
START_S: Final = 1_000_000.0
LIMIT_PER_NODE_W: Final = NODE_W + GPUS_PER_NODE * 450
CUT_RATIO: Final = 0.9
SENSED_S: Final = 1.0
WOKEN_S: Final = 0.1


@dataclass(slots=True)
class _World:
    """Everything in memory."""

    keeper: Keeper
    nodes: dict[str, StandInNode]
    racks: dict[str, str]
    store: ObjectStore = field(default_factory=ObjectStore)
    now_s: float = START_S

    def step(self, *, after_s: float = SENSED_S) -> tuple[Plan, float]:
        """One step with what came of it, and the milliseconds of the step itself. Before `SENSED_S` have passed nobody gave a new
        sample."""
        self.now_s += after_s
        if after_s >= SENSED_S:
            self._sense()
        started_s = time.perf_counter()
        plan = self.keeper.step(self.now_s)
        took_ms = (time.perf_counter() - started_s) * 1e3
        for name in plan.create:
            self.keeper.on_created(name, self.store.create(name), self.now_s)
            self._answer(name)
        for write in plan.writes:
            self.keeper.on_outcome(write, self.store.write_spec(write), self.now_s)
            self._answer(write.name)
        return plan, took_ms

    def _answer(self, name: str) -> None:
        node = self.nodes[name]
        seen = self.store.objects[name]
        node.see(seen, self.now_s, consistent=True)
        answered = self.store.write_status(name, seen.uid, seen.resource_version, node.status())
        assert answered is not None, "nobody else writes"
        node.see(answered, self.now_s, consistent=False)
        self.keeper.on_node_power(answered, self.now_s)

    def _sense(self) -> None:
        """A second's telemetry: agents below, meters above, none of them over its budget."""
        sums_w: dict[str, float] = {}
        for name, node in self.nodes.items():
            watts = sum(node.draw_w(self.now_s).values())
            sums_w[self.racks[name]] = sums_w.get(self.racks[name], 0.0) + 1.04 * watts + NODE_W
            self.keeper.on_agent_power(name, watts, self.now_s)
        for rack, watts in sums_w.items():
            self.keeper.on_meter(rack, MeterReading(watts, self.now_s, 1), self.now_s)


def world(gpus: int = GPUS) -> _World:
    """A keeper with nodes in racks of ten below one root, every GPU acknowledged. Raises LabError when they do not settle."""
    nodes = gpus // GPUS_PER_NODE
    racks = {f"n{k}": f"rack-{k // NODES_PER_RACK}" for k in range(nodes)}
    leaves = [leaf(rack, nodes=NODES_PER_RACK, parent=ROOT) for rack in dict.fromkeys(racks.values())]
    return _settled([root(nodes), *leaves], racks)


def many_roots(roots: int = ROOTS, *, with_nodes: bool) -> _World:
    """A keeper of as many trees, each one leaf; with a node in each or in none. Raises LabError when they do not settle."""
    names = [f"root-{k}" for k in range(roots)]
    racks = {f"n{k}": name for k, name in enumerate(names)} if with_nodes else {}
    return _settled([leaf(name, nodes=1) for name in names], racks)


def _settled(budgets: Sequence[BudgetSpec], racks: dict[str, str]) -> _World:
    """A keeper of these budgets with the nodes of `racks` in the leaf of that name."""
    keeper = Keeper(term=1, policies=POLICIES)
    nodes = {name: StandInNode(name, boot_id=f"boot-{name}") for name in racks}
    made = _World(keeper, nodes, racks)
    for budget in budgets:
        keeper.on_budget(budget, made.now_s)
    for name, rack in racks.items():
        keeper.on_node(NodeFact(name, {LABEL_RACK: rack}, nodes[name].boot_id), made.now_s)
        keeper.on_node_lease(name, made.now_s)
    settle(made)
    return made


def leaf(name: str, *, nodes: int, parent: str | None = None, ratio: float = 1.0, generation: int = 1) -> BudgetSpec:
    return BudgetSpec(
        name=name,
        uid=name,
        generation=generation,
        limit_w=round(nodes * LIMIT_PER_NODE_W * ratio),
        parent=parent,
        selector=Selector({LABEL_RACK: name}),
        non_gpu_w_per_node=NODE_W,
        overhead_percent=4,
        meter=MeterSpec(f'rack_power_watts{{rack="{name}"}}'),
    )


def root(nodes: int, ratio: float = 1.0, generation: int = 1) -> BudgetSpec:
    limit_w = round(nodes * LIMIT_PER_NODE_W * ratio)
    return BudgetSpec(name=ROOT, uid=ROOT, generation=generation, limit_w=limit_w, policy="Uniform")


def settle(made: _World) -> None:
    """Step until nothing is written any more."""
    quiet = 0
    for _ in range(SETTLE_STEPS):
        plan, _ = made.step()
        quiet = 0 if plan.writes or plan.create else quiet + 1
        if quiet == 3:
            return
    raise LabError(f"the keeper still writes after {SETTLE_STEPS} steps; run the property tests of the core")


def measure() -> dict[str, float]:
    """Flat figures in milliseconds, medians: `keeper_step_1000_ms`, `keeper_cut_1000_ms`, and of a step in which nothing
    changes `keeper_500_roots_ms` and `keeper_500_roots_with_nodes_ms`; of one between two seconds, for a cut of a single tree,
    `keeper_500_roots_one_cut_ms`. Raises LabError."""
    made = world()
    steady_ms = _steady_ms(made)
    cuts = []
    for cut in range(CUTS):
        made.keeper.on_budget(root(len(made.nodes), CUT_RATIO, 2 * cut + 2), made.now_s)
        plan, took_ms = made.step()
        if len(plan.writes) != len(made.nodes):
            raise LabError(f"a cut of the root wrote {len(plan.writes)} of {len(made.nodes)} specs; every cap should fall")
        cuts.append(took_ms)
        made.keeper.on_budget(root(len(made.nodes), 1.0, 2 * cut + 3), made.now_s)
        settle(made)
    trees = many_roots(with_nodes=True)
    return {
        "keeper_step_1000_ms": steady_ms,
        "keeper_cut_1000_ms": round(statistics.median(cuts), 3),
        "keeper_500_roots_ms": _steady_ms(many_roots(with_nodes=False)),
        "keeper_500_roots_with_nodes_ms": _steady_ms(trees),
        "keeper_500_roots_one_cut_ms": _one_cut_ms(trees),
    }


def _one_cut_ms(made: _World) -> float:
    """One tree after another is cut, shortly after a step over all of them."""
    taken = []
    for tree in list(made.racks.values())[:CUTS]:
        made.step()
        made.keeper.on_budget(leaf(tree, nodes=1, ratio=CUT_RATIO, generation=2), made.now_s)
        taken.append(made.step(after_s=WOKEN_S)[1])
    return round(statistics.median(taken), 3)


def _steady_ms(made: _World) -> float:
    return round(statistics.median(made.step()[1] for _ in range(STEADY_STEPS)), 3)


def main() -> int:
    for name, value_ms in measure().items():
        sys.stdout.write(f"{name:32} {value_ms:10.3f}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
