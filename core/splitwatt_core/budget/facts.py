"""What the operator's shell tells the keeper, and what the keeper answers: frozen data that decides nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from splitwatt_core.budget.claims import Claim
from splitwatt_core.budget.tree import BelowState, LimitState
from splitwatt_core.columns import Posture
from splitwatt_core.conditions import Condition
from splitwatt_core.names import LABEL_EXCLUDED, LABEL_MODE
from splitwatt_core.policies.signature import Reason
from splitwatt_core.protocol.brake import BrakeOrder
from splitwatt_core.protocol.contract import Mode, NodePower, Phase, Spec


class Taint(NamedTuple):
    key: str
    effect: str
    value: str = ""

    def __str__(self) -> str:
        return f"{self.key}{f'={self.value}' if self.value else ''}:{self.effect}"


@dataclass(frozen=True, slots=True)
class NodeFact:
    """One Kubernetes Node, present. `boot_id` is status.nodeInfo.bootID; `gpus`: allocatable. `provider_id`: the machine,
    where a cloud or a provisioner names it in spec.providerID."""

    name: str
    labels: Mapping[str, str]
    boot_id: str
    gpus: int = 0
    ready: bool = True
    cordoned: bool = False
    taints: tuple[Taint, ...] = ()
    provider_id: str = ""

    @property
    def excluded(self) -> bool:
        """A person keeps it out by a label: its GPUs are charged in full and never granted to."""
        return self.labels.get(LABEL_EXCLUDED, "").lower() == "true"

    @property
    def released(self) -> bool:
        """A person wants its GPUs back at their default limits."""
        return self.labels.get(LABEL_MODE, "") == Mode.RELEASE.value


@dataclass(frozen=True, slots=True)
class PodFact:
    """A pod that holds GPUs, of ours or of somebody's whom labels or rules class (`workloads`): which phase it runs (Unassigned:
    nobody says), how it ranks, the served model, and the highest cap of its role. `orphan`: its cluster is gone, so what that
    asked for stands in the lines of its GPUs alone, if anywhere. `group`: pods of its namespace that say the same are one
    replica. `unread`: nothing is known of it yet. `conflict`: what was said of it and does not count, in words. `mixed`: it does
    both phases by turns."""

    namespace: str
    name: str
    phase: Phase
    priority: int
    model: str = ""
    power_ceiling_w: int | None = None
    orphan: bool = False
    group: str = ""
    unread: bool = False
    conflict: str = ""
    mixed: bool = False


class CountedFloor(NamedTuple):
    """What the floor room counts for one pod: on how many GPUs, and the sum of their floors in GPU watts."""

    gpus: int
    floor_w: float


@dataclass(frozen=True, slots=True)
class MeterReading:
    """One budget's meter: watts, and when the oldest contributing sample was taken (same clock as `now_s`). `extremes_w`: the
    least and the most of its series, where they were asked for."""

    power_w: float
    sampled_s: float
    series: int
    extremes_w: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class MeterFailure:
    """The query failed, or gave no data: not the same as zero watts (I5)."""

    reason: str


@dataclass(frozen=True, slots=True)
class SpecWrite:
    """One NodePower spec to write, tied to the version it was decided on (R1). `over`: the spec of that version."""

    name: str
    uid: str
    resource_version: int
    spec: Spec
    over: Spec | None = None


@dataclass(frozen=True, slots=True)
class NodeBrake:
    """A brake for one node's agent."""

    node: str
    order: BrakeOrder


@dataclass(frozen=True, slots=True)
class Written:
    """The API server's answer: the write is in this version."""

    node_power: NodePower


@dataclass(frozen=True, slots=True)
class Rejected:
    """The API server said no (409 conflict, 404, 422): this write did not and will not happen."""

    reason: str


@dataclass(frozen=True, slots=True)
class Unknown:
    """Time-out, lost connection, 5xx: it may have happened, or may yet."""

    reason: str


Outcome = Written | Rejected | Unknown


@dataclass(frozen=True, slots=True)
class Tombstone:
    """A deleted budget that nodes still count in, and what everything below it is charged, in watts at the meter."""

    name: str
    nodes: tuple[str, ...]
    charge_w: float


@dataclass(frozen=True, slots=True)
class Replaced:
    """A NodePower whose Node is gone, and the Node under which the same machine runs another boot."""

    node_power: NodePower
    heir: NodeFact


@dataclass(frozen=True, slots=True)
class WouldCut:
    """Of one budget and all below it. By role: `gpus` that would be cut below their present limit, by `cut_w` GPU watts;
    of them `short_gpus`, by `short_w` below the lower of that limit and the draw of their phase, which is what a service would
    feel. `locked`: clocks that would be locked. `held`: pods that admission would have held, with the `lacking_w` meter watts
    that their floors lack here."""

    total: int = 0
    gpus: Mapping[Phase, int] = field(default_factory=dict)
    cut_w: Mapping[Phase, float] = field(default_factory=dict)
    short_gpus: int = 0
    short_w: float = 0.0
    locked: int = 0
    held: tuple[str, ...] = ()
    lacking_w: float = 0.0


@dataclass(frozen=True, slots=True)
class BudgetReport:
    """What `status` of one PowerBudget says, and what the metrics show. Watts at the meter."""

    name: str
    limit: LimitState
    charge_w: float
    measured_w: float | None
    posture: Posture
    nodes: int
    gpus: int
    short_w: float
    adoption_s: float | None
    conditions: tuple[Condition, ...]
    reasons: tuple[Reason, ...] = ()
    below: tuple[BelowState, ...] = ()
    """The budgets right below, tombstones among them, for a successor."""
    gone: tuple[Tombstone, ...] = ()
    """Tombstones anywhere below."""
    unclaimed: tuple[str, ...] = ()
    """Nodes that count here though no leaf selects them, or their Node is gone (R34)."""
    contract_uid: str = ""
    """Of the NodePower definition under which its nodes are counted (R35)."""
    mode: Mode | None = None
    """Of its tree, None where its place in it is wrong."""
    would: WouldCut | None = None
    """What Strict would do, where the tree only observes."""


@dataclass(frozen=True, slots=True)
class Note:
    """Something a person would want to know: becomes a Kubernetes Event on `kind`/`name`."""

    kind: str
    name: str
    reason: str
    message: str
    warning: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do now. `create`: nodes whose NodePower is to be created, without spec (R3). `writes`: at most one per
    object, and none while another is in flight. `verify`: nodes to read afresh, Node and NodePower both (R8). `release`:
    NodePowers that a person releases, to be deleted once a fresh read finds no Node (R33). `take_back`: NodePowers whose release
    is void, its annotation to be removed once a fresh read finds the Node. `replaced`: NodePowers of machines that run under
    another name, to be deleted once fresh reads find the same. `confirm`: claims to be read afresh.
    `brakes`: what agents that listen themselves are told at once, beside the writes.
    `resign`: a higher term was seen, the process must stop at once (R2). `wake_s`: call again by then at the latest."""

    create: tuple[str, ...] = ()
    writes: tuple[SpecWrite, ...] = ()
    verify: tuple[str, ...] = ()
    release: tuple[NodePower, ...] = ()
    take_back: tuple[NodePower, ...] = ()
    replaced: tuple[Replaced, ...] = ()
    confirm: tuple[Claim, ...] = ()
    brakes: tuple[NodeBrake, ...] = ()
    budgets: Mapping[str, BudgetReport] = field(default_factory=dict)
    notes: tuple[Note, ...] = ()
    resign: str | None = None
    wake_s: float = 0.0
