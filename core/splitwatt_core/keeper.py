"""The operator's whole power law in one place: facts in, one plan per step out.

A `Keeper` is one operator start (one term). The shell feeds it everything that watches, reads, queries and write results
say, calls `step` about once a second (and at once after a budget changed), performs the plan, and reports each write's
outcome. The keeper never trusts silence: a write whose outcome is unknown stays charged (R6), an absent object is charged
until fresh reads prove it gone (R8), stale telemetry stops raises (I5).

    facts --> [ledger: who may draw what]  --> [policy: who should draw what] --> [transition: lower, read back, raise] --> writes
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from splitwatt_core.budgets import BudgetSpec, LimitState
from splitwatt_core.contract import NodePower, Phase, Spec
from splitwatt_core.policy import Policy, Posture, Reason


@dataclass(frozen=True, slots=True)
class NodeFact:
    """One Kubernetes Node, present. `boot_id` is status.nodeInfo.bootID."""

    name: str
    labels: Mapping[str, str]
    boot_id: str


@dataclass(frozen=True, slots=True)
class PodFact:
    """A pod of ours that holds GPUs: which phase it runs and how it ranks. `natural_w`/`cliff_w` override the profile's."""

    namespace: str
    name: str
    phase: Phase
    priority: int
    model: str = ""
    power_ceiling_w: int | None = None


@dataclass(frozen=True, slots=True)
class MeterReading:
    """One budget's meter: watts, and when the oldest contributing sample was taken (same clock as `now_s`)."""

    power_w: float
    sampled_s: float
    series: int


@dataclass(frozen=True, slots=True)
class MeterFailure:
    """The query failed, or gave no data: not the same as zero watts (I5)."""

    reason: str


@dataclass(frozen=True, slots=True)
class SpecWrite:
    """One NodePower spec to write, tied to the version it was decided on (R1)."""

    name: str
    uid: str
    resource_version: int
    spec: Spec


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
class BudgetCondition:
    type: str
    status: bool
    reason: str
    message: str


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
    conditions: tuple[BudgetCondition, ...]
    reasons: tuple[Reason, ...] = ()


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
    object, and none while another is in flight. `verify`: nodes to read afresh, Node and NodePower both (R8).
    `resign`: a higher term was seen, the process must stop at once (R2). `wake_s`: call again by then at the latest."""

    create: tuple[str, ...] = ()
    writes: tuple[SpecWrite, ...] = ()
    verify: tuple[str, ...] = ()
    budgets: Mapping[str, BudgetReport] = field(default_factory=dict)
    notes: tuple[Note, ...] = ()
    resign: str | None = None
    wake_s: float = 0.0


class Keeper:
    """See the module's docstring. Not thread-safe; all times are seconds of one wall clock (Unix time)."""

    def __init__(self, *, term: int, policies: Mapping[str, Policy]) -> None:
        """`term` comes from the Lease (R2). `policies` by the name used in PowerBudget.spec.policy.type."""
        raise NotImplementedError

    # Facts. Each is safe to repeat; versions older than one already seen are ignored (R6).
    def on_budget(self, spec: BudgetSpec, now_s: float) -> None:
        raise NotImplementedError

    def on_budget_gone(self, name: str, now_s: float) -> None:
        raise NotImplementedError

    def on_node(self, node: NodeFact, now_s: float) -> None:
        raise NotImplementedError

    def on_node_gone(self, name: str, now_s: float) -> None:
        raise NotImplementedError

    def on_node_lease(self, node: str, renewed_s: float) -> None:
        raise NotImplementedError

    def on_node_power(self, node_power: NodePower, now_s: float) -> None:
        raise NotImplementedError

    def on_node_power_gone(self, name: str, now_s: float) -> None:
        raise NotImplementedError

    def on_absence_verified(self, name: str, now_s: float) -> None:
        """Fresh, uncached reads found neither Node nor NodePower: only now is the node's charge zero (R8)."""
        raise NotImplementedError

    def on_pod(self, pod: PodFact) -> None:
        raise NotImplementedError

    def on_pod_gone(self, namespace: str, name: str) -> None:
        raise NotImplementedError

    def on_meter(self, budget: str, reading: MeterReading | MeterFailure, now_s: float) -> None:
        raise NotImplementedError

    def on_agent_power(self, node: str, power_w: float, sampled_s: float) -> None:
        """Sum of the agent's own readings of a node, from Prometheus: the fallback meter, and proof that the agent lives."""
        raise NotImplementedError

    def on_outcome(self, write: SpecWrite, outcome: Outcome, now_s: float) -> None:
        raise NotImplementedError

    def on_created(self, name: str, node_power: NodePower | None, now_s: float) -> None:
        """A NodePower of `Plan.create` was created, or (None) could not be."""
        raise NotImplementedError

    def step(self, now_s: float) -> Plan:
        raise NotImplementedError

    # For admission and for people.
    def floor_headroom_w(self, leaf: str) -> float:
        """Meter watts that could still be promised to floors in this leaf, all present GPUs at their floors."""
        raise NotImplementedError
