"""What power admission knows of a pod, and what the rest of the house makes of it.

The shell turns each Pod into one `Pod`, whole and without judgement; what follows from it together with its cluster is
said here, once, for caps and for admission.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from splitwatt_core.admission.scheduling import NodeRules
from splitwatt_core.budget.facts import NodeFact, PodFact
from splitwatt_core.clusters import PRIORITY_LOW, ClusterSpec, Role

LIFTED_LAST: Final = frozenset({"scheduling.volcano.sh/queue-allocation-gate"})
"""Scheduling gates that their owner takes only from a pod which has no other one: to wait for these would be to wait for ever.
Source: Volcano's design of gate-controlled scheduling, `HasOnlyVolcanoSchedulingGate`."""


class PodName(NamedTuple):
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class Pod:
    """One Pod with a cluster label.

    `version`: its resourceVersion. `label`: the cluster label's value. `role` None: none that we know. `gated`: behind the
    power gate. `other_gates`: the other scheduling gates that it has. `leaf`: the budget that its annotation names, `node`:
    where it is bound. `rules`: which nodes it may run on. `ended`: Succeeded or Failed; `terminating`: being deleted. `group`: of
    which replica it is a part, where that is of several pods. `labels`: of one whose cluster label is empty, so that it is of no
    InferenceCluster and asks for itself (`foreign`); None of all others.
    """

    name: PodName
    uid: str
    version: int
    label: str
    role: Role | None
    gpus: int
    created_s: float = 0.0
    gated: bool = False
    other_gates: tuple[str, ...] = ()
    leaf: str | None = None
    node: str | None = None
    rules: NodeRules = field(default_factory=NodeRules)
    ended: bool = False
    terminating: bool = False
    group: str = ""
    labels: Mapping[str, str] | None = None

    @property
    def waits_for(self) -> tuple[str, ...]:
        """Gates that are decided before power is: a quota may say no, and changes node selectors when it says yes."""
        return tuple(sorted(gate for gate in self.other_gates if gate not in LIFTED_LAST))


def pod_fact(pod: Pod, cluster: ClusterSpec | None) -> PodFact | None:
    """What caps and floors are decided by. None for a pod that has no role. One whose cluster is unknown keeps its phase, and so
    does one of a pool that was taken out of its cluster: a ceiling that is gone with it raises nothing."""
    if pod.role is None:
        return None
    mixed = pod.role is Role.MIXED
    if cluster is None or pod.role not in cluster.roles:
        return PodFact(
            pod.name.namespace, pod.name.name, pod.role.phase, PRIORITY_LOW, orphan=True, group=pod.group, mixed=mixed
        )  # fmt: skip
    return PodFact(
        namespace=pod.name.namespace,
        name=pod.name.name,
        phase=pod.role.phase,
        priority=cluster.priority,
        model=cluster.model,
        power_ceiling_w=cluster.role(pod.role).power_ceiling_w,
        group=pod.group,
        mixed=mixed,
    )


def closed(node: NodeFact) -> str:
    """Why a node takes no pod of ours, whatever that tolerates; "" when it does."""
    if not node.ready:
        return "not Ready"
    return "cordoned" if node.cordoned else ""


def gpus_used(pods: Mapping[PodName, Pod]) -> dict[str, int]:
    """By node, the GPUs of our pods that are bound there."""
    used: dict[str, int] = {}
    for pod in pods.values():
        if pod.node is not None and not pod.ended:
            used[pod.node] = used.get(pod.node, 0) + pod.gpus
    return used
