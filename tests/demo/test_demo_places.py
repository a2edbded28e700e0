"""The demo's two InferenceClusters on its racks, without a demo: whatever is born first and wherever the scheduler binds, both
are served after the limit of the rack that serves most was cut.

The manifests are the demo's own; snapshot and plan are the operator's. What is simulated: births in any order with looks of
admission between them, a scheduler that picks any node of the leaf that fits, and racks of which one seems to have more room.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from splitwatt_api.convert import budget_from_wire, cluster_from_wire
from splitwatt_core.admission.plan import plan_admission
from splitwatt_core.admission.pods import Pod, PodName
from splitwatt_core.admission.scheduling import NodeRules
from splitwatt_core.admission.site import Site, snapshot_of
from splitwatt_core.admission.snapshot import AdmissionPlan
from splitwatt_core.budget.facts import CountedFloor, NodeFact
from splitwatt_core.budget.tree import BudgetSpec, Selector
from splitwatt_core.clusters import ClusterName, ClusterSpec, LabelOwners, cluster_label
from splitwatt_core.gpus.profiles import builtin
from splitwatt_core.names import LABEL_POOL, LABEL_RACK
from splitwatt_core.protocol.contract import GpuStatus
from splitwatt_lab import scenario
from splitwatt_lab.site import SiteSpec

MODEL, IDLE_W, CLIFF_W = "NVIDIA H100 80GB HBM3", 200, 350


def whole(manifest: dict[str, Any]) -> dict[str, Any]:
    name = manifest["metadata"]["name"]
    meta = {**manifest["metadata"], "uid": f"u-{name}", "generation": 1, "resourceVersion": "1"}
    return {**manifest, "metadata": meta}


@dataclass
class Racks:
    """The demo's site, as admission sees it."""

    spec: SiteSpec
    chance: random.Random
    differ_w: float
    pods: dict[PodName, Pod] = field(default_factory=dict)
    clusters: dict[ClusterName, ClusterSpec] = field(default_factory=dict)

    def __post_init__(self) -> None:
        read = [budget_from_wire(whole(doc)) for doc in scenario.budgets(self.spec, "PhaseAware")]
        self.budgets = {budget.name: budget for budget in read}
        self.nodes = {
            node.name: NodeFact(node.name, {LABEL_RACK: node.rack, LABEL_POOL: node.pool}, "b", gpus=node.gpus)
            for node in self.spec.nodes()
        }
        self.noise_w = {name: self.chance.uniform(0.0, self.differ_w) for name in self.budgets}

    def _below(self, budget: BudgetSpec) -> list[tuple[NodeFact, BudgetSpec]]:
        leaves = [b for b in self.budgets.values() if b.selector is not None and budget.name in (b.name, b.parent)]
        return [(n, leaf) for leaf in leaves for n in self.nodes.values() if leaf.selector and leaf.selector.matches(n.labels)]

    def floor_room_w(self, budget: BudgetSpec) -> float:
        """Every GPU at its floor: those of bound pods at the cliff, the others at their minimum."""
        left_w = budget.limit_w - budget.reserve_w - self.noise_w[budget.name]
        left_w -= sum(b.fixed_w for b in self.budgets.values() if budget.name in (b.name, b.parent))
        for node, leaf in self._below(budget):
            busy = sum(pod.gpus for pod in self.pods.values() if pod.node == node.name)
            left_w -= leaf.non_gpu_w_per_node + leaf.loss_factor * (busy * CLIFF_W + (node.gpus - busy) * IDLE_W)
        return left_w

    def look(self) -> AdmissionPlan:
        """One look of admission, and what it admits is past its gate."""
        gpu = GpuStatus("g", model=MODEL, min_w=IDLE_W, max_w=700)
        plan = plan_admission(
            snapshot_of(
                Site(
                    budgets=self.budgets,
                    clusters=self.clusters,
                    owners=LabelOwners(dict.fromkeys(self.clusters, 0.0)),
                    pods=self.pods,
                    nodes=self.nodes,
                    gpus=dict.fromkeys(self.nodes, (gpu,)),
                    profiles=builtin(),
                    floor_room_w={name: self.floor_room_w(budget) for name, budget in self.budgets.items()},
                    counted={p.name: CountedFloor(p.gpus, p.gpus * CLIFF_W) for p in self.pods.values() if p.node is not None},
                )
            )
        )
        for admission in plan.admissions:
            name = admission.need.pod
            self.pods[name] = replace(self.pods[name], gated=False, leaf=admission.leaf)
        return plan

    def bind(self) -> None:
        """The scheduler puts what is past its gate on any node of the leaf that fits."""
        used = Counter({p.node: 0 for p in self.pods.values()})
        for pod in self.pods.values():
            used[pod.node] += pod.gpus
        for pod in sorted(self.pods.values(), key=lambda _: self.chance.random()):
            if pod.gated or pod.node is not None or self.chance.random() < 0.3:
                continue
            leaf = self.budgets[pod.leaf or ""]
            assert leaf.selector is not None
            fits = [
                n.name
                for n in self.nodes.values()
                if leaf.selector.matches(n.labels) and pod.rules.matches(n.name, n.labels) and n.gpus - used[n.name] >= pod.gpus
            ]
            assert fits, f"{pod.name} was let into {pod.leaf}, where no node is free"
            node = self.chance.choice(fits)
            used[node] += pod.gpus
            self.pods[pod.name] = replace(pod, node=node)

    def serve(self, manifest: dict[str, Any]) -> ClusterSpec:
        """The InferenceCluster is applied: its pods are born in any order, with looks and binds between."""
        made = cluster_from_wire(whole(manifest))
        self.clusters[made.id] = made
        births = [(role, i) for role in made.roles for i in range(made.role(role).replicas)]
        self.chance.shuffle(births)
        for second, (role, i) in enumerate(births):
            name = PodName(made.namespace, f"{made.name}-{role.value}-{i}")
            pool = made.role(role)
            self.pods[name] = Pod(
                name=name,
                uid=str(name),
                version=1,
                label=cluster_label(made.name),
                role=role,
                gpus=pool.gpus_per_replica,
                created_s=float(second),
                gated=True,
                rules=NodeRules(Selector(pool.node_selector)),
            )
            if self.chance.random() < 0.5:
                self.look()
            if self.chance.random() < 0.5:
                self.bind()
        for _ in range(4):
            self.plan = self.look()
            self.bind()
        return made

    def waiting(self, spec: ClusterSpec) -> list[str]:
        return [str(p.name) for p in self.pods.values() if p.gated and p.name.namespace == spec.namespace]


@pytest.mark.parametrize(("nodes_per_rack", "mixed", "differ_w"), [(2, 0, 300.0), (4, 0, 1000.0), (4, 1, 1000.0)])
def test_both_clusters_are_served_whatever_comes_first(nodes_per_rack: int, mixed: int, differ_w: float) -> None:
    spec = SiteSpec(nodes_per_rack=nodes_per_rack, mixed=mixed)
    for seed in range(150):
        racks = Racks(spec, random.Random(seed), differ_w)
        chat, batch = scenario.clusters(spec)
        served = racks.serve(chat)
        assert racks.waiting(served) == [], f"seed {seed}: {racks.plan.verdicts[served.id].message}"
        cut = racks.budgets[f"rack-{scenario.busiest_rack(spec, [pod.node or '' for pod in racks.pods.values()])}"]
        racks.budgets[cut.name] = replace(cut, limit_w=round(cut.limit_w * scenario.CUT_RATIO))
        second = racks.serve(batch)
        assert racks.waiting(second) == [], f"seed {seed}: {racks.plan.verdicts[second.id].message}"
