"""What power admission looks at, and what it answers: frozen data between the shell and `admission.plan`.

Watts of budgets are watts at the meter; watts per GPU are watts at the GPU. A node's `idle_floor_w` is what the budgets'
`floor_room_w` already counts for each of its GPUs that runs none of our pods.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from splitwatt_core.admission.pods import PodName
from splitwatt_core.admission.scheduling import NodeRules
from splitwatt_core.budget.facts import CountedFloor, Taint
from splitwatt_core.budget.tree import Selector
from splitwatt_core.clusters import ClusterName, Role

NOT_COUNTED: Final = CountedFloor(0, 0.0)


@dataclass(frozen=True, slots=True)
class BudgetRoom:
    """One PowerBudget, leaf or not.

    `floor_room_w`: meter watts that could still be promised to floors below it, all GPUs that are counted there at
    their floors (`Keeper.floor_room_w`); negative when floors do not fit. `binding` False: its tree is in mode
    Observe, which decides and reports but holds nothing back. `selector` is a leaf's, None elsewhere. `fault`: what is
    wrong with its tree's place, so that nobody knows what stands above it; "" when nothing is. `max_nodes`: of an elastic leaf.
    """

    name: str
    floor_room_w: float
    parent: str | None = None
    selector: Selector | None = None
    binding: bool = True
    fault: str = ""
    max_nodes: int | None = None


@dataclass(frozen=True, slots=True)
class NodeRoom:
    """One node of a leaf.

    `gpus`: allocatable, 0 on one that is `closed`: not Ready or cordoned. `free_gpus`: those that no pod holds.
    `gpu_kind`: key into a pod's `floor_w`, "" while no agent has reported the node's GPUs. `loss_factor`: watts at the meter
    per GPU watt. `to_come`: an autoscaler may add it, and its watts are kept free already; its name means nothing.
    """

    name: str
    leaf: str
    labels: Mapping[str, str]
    gpus: int
    free_gpus: int
    gpu_kind: str = ""
    idle_floor_w: float = 0.0
    loss_factor: float = 1.0
    taints: tuple[Taint, ...] = ()
    closed: str = ""
    to_come: bool = False


@dataclass(frozen=True, slots=True)
class PodNeed:
    """What a pod asks for. `floor_w`: by GPU kind, the watts below which one of its GPUs must never be capped. `cluster`
    None: no InferenceCluster is known for it. `rules`: which nodes it may run on. `group`: of which replica it is a part, ""
    where it is one by itself. `leaves`: the only ones it may go to, None: any.
    """

    pod: PodName
    uid: str
    cluster: ClusterName | None
    role: Role
    gpus: int
    floor_w: Mapping[str, float]
    rules: NodeRules = field(default_factory=NodeRules)
    created_s: float = 0.0
    group: str = ""
    leaves: frozenset[str] | None = None

    def reaches(self, node: NodeRoom) -> bool:
        """By labels, and by the leaves that it may go to."""
        return (self.leaves is None or node.leaf in self.leaves) and self.rules.matches(node.name, node.labels)

    def may_use(self, node: NodeRoom) -> bool:
        """As kube-scheduler sees it, GPUs aside."""
        return not node.closed and self.reaches(node) and self.rules.untolerated(node.taints) is None


@dataclass(frozen=True, slots=True)
class BlockedPod:
    """A pod behind the power gate that is not looked at before others took their `gates` off."""

    need: PodNeed
    gates: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class HeldPod:
    """A pod past its gate. `leaf`: where its floor is reserved (its annotation) or, when bound, its node's.

    `counted`: the floors that the floor room of budgets counts already, because the node's agent reports the pod on GPUs; for
    the rest the reservation counts. `node` None: admitted, not yet scheduled. A terminating pod holds what it has until it
    is gone, but no longer stands for its role.
    """

    need: PodNeed
    leaf: str | None
    node: str | None = None
    counted: CountedFloor = NOT_COUNTED
    terminating: bool = False


@dataclass(frozen=True, slots=True)
class ClusterWant:
    """`nodes`: of one replica, which has a pod on each; 1 for a role that is left out."""

    cluster: ClusterName
    priority: int
    replicas: Mapping[Role, int]
    nodes: Mapping[Role, int] = field(default_factory=dict)

    def nodes_of(self, role: Role) -> int:
        return self.nodes.get(role, 1)


@dataclass(frozen=True, slots=True)
class AdmissionVerdict:
    """The condition PowerAdmitted of one cluster. `reason` is one CamelCase word, `message` has the numbers."""

    admitted: bool
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class AdmissionSnapshot:
    """`waiting`: pods behind the gate. Pods of clusters that are not in `clusters` stay there. `clusters`: those that want
    replicas, and foreign pods that ask for themselves. `refused`: foreign pods that room is not looked for, and why."""

    budgets: tuple[BudgetRoom, ...]
    nodes: tuple[NodeRoom, ...]
    clusters: tuple[ClusterWant, ...]
    waiting: tuple[PodNeed, ...]
    held: tuple[HeldPod, ...] = ()
    blocked: tuple[BlockedPod, ...] = ()
    refused: Mapping[ClusterName, AdmissionVerdict] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Admission:
    """Lift this pod's gate and tighten its node affinity to `selector`, the leaf's. `reservation_w` is at the meter. `node`:
    where the plan counts on it to go, which the scheduler is asked to prefer."""

    need: PodNeed
    leaf: str
    selector: Selector
    reservation_w: float
    node: str = ""


@dataclass(frozen=True, slots=True)
class AdmissionPlan:
    admissions: tuple[Admission, ...]
    verdicts: Mapping[ClusterName, AdmissionVerdict]
