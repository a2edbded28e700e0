"""A site as admission sees it: one rack of two nodes with eight H100 each, and one InferenceCluster."""

from __future__ import annotations

from typing import Any

from splitwatt_core.admission.pods import Pod, PodName
from splitwatt_core.admission.scheduling import NodeRules
from splitwatt_core.admission.site import Site
from splitwatt_core.budget.facts import NodeFact
from splitwatt_core.budget.tree import BudgetSpec, Selector
from splitwatt_core.clusters import LabelOwners, Role, cluster_label
from splitwatt_core.gpus.profiles import builtin
from splitwatt_core.protocol.contract import GpuStatus
from support.served import cluster

H100 = "NVIDIA H100 80GB HBM3"
KIND = f"{H100} 200-700 W"
CLIFF_W = 350.0


def leaf(name: str, rack: str, **spec: Any) -> BudgetSpec:
    return BudgetSpec(name, f"u-{name}", 1, 20_000, selector=Selector({"rack": rack}), overhead_percent=4, **spec)


def pod(role: Role | None, name: str = "p", *, of: str = "chat", **rest: Any) -> Pod:
    fields = {"gpus": 8, "gated": True, "rules": NodeRules(Selector({"pool": "p"})), **rest}
    return Pod(PodName("s", name), f"uid-{name}", 1, cluster_label(of), role, **fields)


def site(*pods: Pod, **changes: Any) -> Site:
    chat = cluster("chat")
    whole: dict[str, Any] = {
        "budgets": {"rack-a": leaf("rack-a", "a")},
        "clusters": {chat.id: chat},
        "owners": LabelOwners({chat.id: 0.0}),
        "pods": {p.name: p for p in pods},
        "nodes": {name: NodeFact(name, {"rack": "a", "pool": "p"}, "b", gpus=8) for name in ("n1", "n2")},
        "gpus": {name: (GpuStatus(f"GPU-{name}", model=H100, min_w=200, max_w=700),) for name in ("n1", "n2")},
        "profiles": builtin(),
        "floor_room_w": {"rack-a": 1e4},
        **changes,
    }
    return Site(**whole)
