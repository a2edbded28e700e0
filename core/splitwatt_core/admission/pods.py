"""What power admission knows of a pod, and what the rest of the house makes of it.

The shell turns each Pod into one `Pod`, whole and without judgement; what follows from it together with its cluster is
said here, once, for caps and for admission.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from splitwatt_core.budget.facts import NodeFact, PodFact
from splitwatt_core.budget.tree import Requirement, Selector
from splitwatt_core.clusters import PRIORITY_LOW, ClusterSpec, Role

UNSUPPORTED_TERM: Final = Selector(match_expressions=(Requirement("splitwatt.io/unsupported-affinity", "In", ()),))
"""A node affinity term that is not understood (Gt, Lt, matchFields): it matches nothing, which a condition then says."""
REPELLING_TAINTS: Final = (
    "node.kubernetes.io/not-ready",
    "node.kubernetes.io/unreachable",
    "node.kubernetes.io/unschedulable",
)


class PodName(NamedTuple):
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class Pod:
    """One Pod with a cluster label.

    `version`: its resourceVersion. `label`: the cluster label's value. `role` None: none that we know. `gated`: behind the
    power gate. `leaf`: the budget that its annotation names, `node`: where it is bound. It may run on nodes that match
    `selector` and, when there are `terms`, at least one of those. `ended`: Succeeded or Failed; `terminating`: being deleted.
    """

    name: PodName
    uid: str
    version: int
    label: str
    role: Role | None
    gpus: int
    created_s: float = 0.0
    gated: bool = False
    leaf: str | None = None
    node: str | None = None
    selector: Selector = field(default_factory=Selector)
    terms: tuple[Selector, ...] = ()
    ended: bool = False
    terminating: bool = False


def pod_fact(pod: Pod, cluster: ClusterSpec | None) -> PodFact | None:
    """What caps and floors are decided by. None for a pod that has no role. One whose cluster is unknown keeps its phase
    and ranks lowest."""
    if pod.role is None:
        return None
    if cluster is None:
        return PodFact(pod.name.namespace, pod.name.name, pod.role.phase, PRIORITY_LOW)
    return PodFact(
        namespace=pod.name.namespace,
        name=pod.name.name,
        phase=pod.role.phase,
        priority=cluster.priority,
        model=cluster.model,
        power_ceiling_w=cluster.role(pod.role).power_ceiling_w,
    )


def takes_pods(node: NodeFact) -> bool:
    """Ready, not cordoned, and not repelling everyone. Other taints are for the pod's tolerations to meet."""
    repelled = any(key in REPELLING_TAINTS and effect != "PreferNoSchedule" for key, effect in node.taints)
    return node.ready and not node.cordoned and not repelled


def gpus_used(pods: Mapping[PodName, Pod]) -> dict[str, int]:
    """By node, the GPUs of our pods that are bound there."""
    used: dict[str, int] = {}
    for pod in pods.values():
        if pod.node is not None and not pod.ended:
            used[pod.node] = used.get(pod.node, 0) + pod.gpus
    return used
