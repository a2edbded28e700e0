"""`PowerBudget` (pb): how many watts may flow through one meter, and how they are shared below it.

Budgets form trees. Mode and policy stand at the root, once per tree; nodes are selected by leaves; a parent's nodes are
its children's. What needs other budgets to judge (sums, cycles, overlaps) is a condition, never a refusal. The invariant
that shapes the rules: **a cut of a limit is never refused** because of what else the object says, so the rule that
compares the limit with the reserve lets a lower limit pass.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Final, Literal

from pydantic import ConfigDict, Field, field_validator
from splitwatt_core.budget.raises import MAX_UNCLAIMED
from splitwatt_core.budget.tree import LIMIT_GRACE_S, MAX_PENDING_LIMITS, METER_MAX_AGE_S, SETTLE_MS
from splitwatt_core.columns import Posture
from splitwatt_core.policies.signature import Unassigned
from splitwatt_core.protocol.contract import MAX_GPUS_PER_NODE, Mode

from splitwatt_api.base import (
    BudgetWatts,
    BudgetWattsOrZero,
    CelRule,
    Conditions,
    Generation,
    GpuWatts,
    Labels,
    LabelSelector,
    NodeWatts,
    ObjectMeta,
    ObjectName,
    Timestamp,
    Told,
    Wire,
    kubernetes,
    one_of,
)
from splitwatt_api.promql import SELECTOR_PATTERN, is_plain_selector
from splitwatt_api.workload_rules import MAX_WORKLOADS, WorkloadEntry

MAX_BELOW: Final = 1024
"""Budgets right below one that its status keeps; of a wider tree the first by name."""
MAX_GONE: Final = 64
"""Deleted budgets that a status names; the condition's numbers count them all."""


class PolicyType(StrEnum):
    UNIFORM = "Uniform"
    PHASE_AWARE = "PhaseAware"
    POLCA = "Polca"


class PostureName(StrEnum):
    """The core's `Posture` as a word on the wire."""

    ADOPTING = Posture.ADOPTING.name.capitalize()
    NORMAL = Posture.NORMAL.name.capitalize()
    TRIM = Posture.TRIM.name.capitalize()
    SHED = Posture.SHED.name.capitalize()
    BRAKE = Posture.BRAKE.name.capitalize()


class Aggregate(StrEnum):
    SUM = "Sum"


BudgetMode = Annotated[Mode, Field(json_schema_extra=one_of("mode", ("Observe", "Strict", "Release"), later="Oversubscribed"))]


class PolicyChoice(Wire):
    """Who gets how much of what may be drawn."""

    type: Annotated[PolicyType, Field(json_schema_extra=one_of("policy.type", ("Uniform", "PhaseAware", "Polca")))] = Field(
        default=PolicyType.PHASE_AWARE,
        description=(
            "Uniform: every GPU the same. PhaseAware: by priority and phase, decode gives first. Polca: for comparison, "
            "Uniform's caps and clock locks by two thresholds."
        ),
    )
    unassigned_gpus: Unassigned = Field(
        default=Unassigned.MINIMUM,
        description="What a GPU without a workload gets: Minimum (its lowest cap) or Hold (the cap it has).",
    )
    safe_cap_watts: GpuWatts | None = Field(
        default=None,
        description="Safe cap of every GPU in the tree, in watts; absent: the cap it is granted is its safe cap.",
    )


def _plain_selector(field: str) -> dict[str, Any]:
    return kubernetes(
        CelRule(
            f"self.matches(r'''{SELECTOR_PATTERN}''')",
            f'{field} must be a plain vector selector like rack_power_watts{{rack="a1"}}: remove functions, '
            "aggregations, operators, ranges and offsets",
        )
    )


class MeterScale(Wire):
    """How many watts one unit of the meter is: numerator / denominator."""

    numerator: int = Field(
        default=1,
        ge=1,
        le=1_000_000,
        strict=True,
        description="Watts per unit, for units above a watt: 1000 for kilowatts, 10 for hundredths of a kilowatt.",
    )
    denominator: int = Field(
        default=1,
        ge=1,
        le=1_000_000,
        strict=True,
        description="Units per watt, for units below a watt: 10 for deciwatts, 1000 for milliwatts.",
    )


class Meter(Wire):
    """The meter of record in Prometheus. The operator itself asks for sum, count and age of the selected series."""

    selector: str = Field(
        min_length=1,
        max_length=1024,
        description='A plain vector selector, for example rack_power_watts{rack="a1"}; no functions, sums or ranges.',
        json_schema_extra=_plain_selector("meter.selector"),
    )
    aggregate: Aggregate = Field(default=Aggregate.SUM, description="How several series become one number: Sum.")
    expected_series: int = Field(
        default=1,
        ge=1,
        le=1024,
        strict=True,
        description="How many series the selector must find; fewer or more is a failed reading.",
    )
    max_age_seconds: int = Field(
        default=METER_MAX_AGE_S,
        ge=1,
        le=300,
        strict=True,
        description="A reading whose oldest sample is older than this, in seconds, is stale.",
    )
    scale: MeterScale = Field(
        default_factory=MeterScale, description="The meter's unit, where it is not a watt. Absent: one watt."
    )
    age_selector: str | None = Field(
        default=None,
        min_length=1,
        max_length=1024,
        description=(
            "Selects the raw series whose sample times are the reading's age, for a selector of recorded series: these go on "
            "after their source died. Absent: the selected series' own."
        ),
        json_schema_extra=_plain_selector("meter.ageSelector"),
    )

    @field_validator("selector", "age_selector")
    @classmethod
    def _plain(cls, value: str | None) -> str | None:
        if value is not None and not is_plain_selector(value):
            raise ValueError(f'{value!r} is not a plain vector selector like rack_power_watts{{rack="a1"}}')
        return value


class ElasticLeaf(Wire):
    """Nodes that an autoscaler may add to a leaf."""

    max_nodes: int = Field(
        ge=1,
        le=1000,
        strict=True,
        description="The most nodes this leaf may have, those that are there included. For each that is not there yet, "
        "unmanagedWattsPerNode is kept free here and in every budget above.",
    )
    gpus_per_node: int = Field(
        ge=1, le=MAX_GPUS_PER_NODE, strict=True, description="How many GPUs a node that is added has, at least."
    )
    node_labels: Labels = Field(
        default_factory=dict,
        description="Labels that such a node has besides those of nodeSelector, for the pods' own selectors to match. The "
        "autoscaler has to know all of them, as labels of its node group or NodePool.",
    )


_LEAF_ONLY: Final = "counts per selected node: set nodeSelector, or remove it and set it on the leaf budgets below"


_AWAITED: Final = "(has({0}.elastic) && has({0}.unmanagedWattsPerNode) ? {0}.elastic.maxNodes * {0}.unmanagedWattsPerNode : 0)"


class PowerBudgetSpec(Wire):
    """What the owner of the power feed asks for."""

    limit_watts: BudgetWatts = Field(description="What may be drawn at the meter, in watts.")
    parent: ObjectName | None = Field(default=None, description="The budget above this one; absent: a root.")
    mode: BudgetMode | None = Field(
        default=None,
        description="Root only. Observe: decide and tell, grant nothing. Strict: hold the limit. Release: give "
        "default limits and clocks back, as far as the limit allows. Absent: Observe, but who is in Strict stays there.",
    )
    policy: PolicyChoice | None = Field(default=None, description="Root only. Absent: PhaseAware.")
    workloads: list[WorkloadEntry] = Field(
        default_factory=list,
        max_length=MAX_WORKLOADS,
        description="Root only. Classes pods of other people's serving, on nodes of this tree: the first rule that selects a "
        "pod counts, before the pod's own labels. Pods of an InferenceCluster are classed by that.",
        json_schema_extra=kubernetes(list_type="atomic"),
    )
    frozen: bool = Field(
        default=False,
        description="Leave every cap below this budget as it is: nothing is granted, raised or lowered, and what stands is "
        "charged. The limit is not kept meanwhile, for instance while somebody else sets power limits.",
    )
    reserve_watts: BudgetWattsOrZero = Field(
        default=0, description="Watts kept back for surprises such as a GPU reset behind a dead agent."
    )
    node_selector: LabelSelector | None = Field(
        default=None, description="Makes this a leaf: the nodes behind the meter. Selectors of leaves are disjoint."
    )
    non_gpu_watts_per_node: NodeWatts | None = Field(
        default=None, description="Leaf only, required there. The most one node draws besides its GPUs, at the meter, in watts."
    )
    unmanaged_watts_per_node: NodeWatts | None = Field(
        default=None, description="Leaf only, required there. What a selected node without an agent is charged, in watts."
    )
    elastic: ElasticLeaf | None = Field(
        default=None,
        description="Leaf only. Lets pods past their power gate before there is a node for them, so that an autoscaler "
        "(Karpenter, cluster-autoscaler) sees them and adds one. Absent: pods wait for nodes that are there.",
    )
    fixed_watts: BudgetWattsOrZero = Field(
        default=0, description="Watts behind this meter that belong to no node: switches, fans."
    )
    overhead_percent: int = Field(
        default=0,
        ge=0,
        le=100,
        strict=True,
        description="Leaf only. Conversion losses between the meter and the GPUs, in percent of GPU watts.",
    )
    meter: Meter | None = Field(
        default=None,
        description="The meter of record; absent: what the budgets below measure stands in for it, at a leaf what agents read.",
    )
    limit_grace_seconds: int = Field(
        default=LIMIT_GRACE_S,
        ge=0,
        le=600,
        strict=True,
        description="How long after it is first seen a lowered limit comes into force, in seconds.",
    )
    settle_milliseconds: int = Field(
        default=SETTLE_MS,
        ge=0,
        le=60_000,
        strict=True,
        description="How long after an acknowledged lower cap its watts count as freed, in milliseconds.",
    )

    model_config = ConfigDict(
        json_schema_extra=kubernetes(
            CelRule(
                "!has(self.parent) || !has(self.mode)",
                "mode is set once per tree, at the root: remove mode here, or remove parent",
                field_path=".mode",
            ),
            CelRule(
                "!has(self.parent) || !has(self.policy)",
                "policy is set once per tree, at the root: remove policy here, or remove parent",
                field_path=".policy",
            ),
            CelRule(
                "!has(self.parent) || !has(self.workloads) || size(self.workloads) == 0",
                "workloads are classed once per tree, at the root: remove workloads here, or remove parent",
                field_path=".workloads",
            ),
            CelRule(
                "has(self.nodeSelector) || !has(self.nonGpuWattsPerNode) || self.nonGpuWattsPerNode == 0",
                f"nonGpuWattsPerNode {_LEAF_ONLY}",
                field_path=".nonGpuWattsPerNode",
            ),
            CelRule(
                "has(self.nodeSelector) || !has(self.unmanagedWattsPerNode)",
                f"unmanagedWattsPerNode {_LEAF_ONLY}",
                field_path=".unmanagedWattsPerNode",
            ),
            CelRule(
                "has(self.nodeSelector) || self.overheadPercent == 0",
                f"overheadPercent {_LEAF_ONLY}",
                field_path=".overheadPercent",
            ),
            CelRule(
                "has(self.nodeSelector) || !has(self.elastic)",
                "elastic is for a leaf: set nodeSelector, or remove it and set it on the leaf budgets below",
                field_path=".elastic",
            ),
            CelRule(
                "!has(self.elastic) || !has(self.unmanagedWattsPerNode) || self.unmanagedWattsPerNode > 0",
                "an elastic budget keeps unmanagedWattsPerNode free for every node to come: set it to the server's rating",
                field_path=".unmanagedWattsPerNode",
            ),
            CelRule(
                f"{_AWAITED.format('self')} <= self.limitWatts || (oldSelf.hasValue() && self.limitWatts <= "
                f"oldSelf.value().limitWatts && {_AWAITED.format('self')} <= {_AWAITED.format('oldSelf.value()')})",
                "elastic.maxNodes times unmanagedWattsPerNode must not be above limitWatts: lower elastic.maxNodes",
                field_path=".elastic",
                optional_old=True,
            ),
            CelRule(
                "!has(self.nodeSelector) || has(self.nonGpuWattsPerNode)",
                "a budget with a nodeSelector must say nonGpuWattsPerNode, the most one node draws besides its GPUs in watts "
                "(2800 for a server of 8 H100; 0 only where the meter sees GPUs alone)",
            ),
            CelRule(
                "!has(self.nodeSelector) || has(self.unmanagedWattsPerNode)",
                "a budget with a nodeSelector must say unmanagedWattsPerNode, the most a selected node without an agent "
                "may draw in watts (the server's rating; 0 if there can be none)",
            ),
            CelRule(
                "self.reserveWatts < self.limitWatts || (oldSelf.hasValue() && "
                "self.limitWatts <= oldSelf.value().limitWatts && self.reserveWatts <= oldSelf.value().reserveWatts)",
                "reserveWatts must be below limitWatts, or nothing is left to grant: lower reserveWatts",
                field_path=".reserveWatts",
                optional_old=True,
            ),
        )
    )


class PendingLimit(Wire):
    """A lowered limit that waits for its grace."""

    watts: BudgetWatts = Field(description="The limit, in watts.")
    in_force_at: Timestamp = Field(description="When it comes into force.")


class BelowBudget(Wire):
    """What is kept of a budget right below, for an operator that starts after that one was deleted."""

    name: ObjectName = Field(description="Its name.")
    limit_watts: BudgetWatts = Field(description="Its limit as last seen, in watts.")
    fixed_watts: BudgetWattsOrZero = Field(default=0, description="Its fixedWatts as last seen, in watts.")


class GoneBudget(Wire):
    """A deleted budget that nodes still count in."""

    name: ObjectName = Field(description="Its name.")
    nodes: Told = Field(description="How many nodes count there.")
    charge_watts: Told = Field(description="What everything below it is charged, in watts.")


class PowerBudgetStatus(Wire):
    """What the operator knows of the budget. Watts are watts at the meter."""

    observed_generation: Generation | None = Field(default=None, description="The metadata.generation acted on.")
    limit_in_force_watts: BudgetWatts | None = Field(
        default=None, description="The limit that holds now, in watts; a lowered one follows after its grace."
    )
    limit_in_force_since: Timestamp | None = Field(default=None, description="Since when it holds.")
    pending_limits: list[PendingLimit] = Field(
        default_factory=list,
        max_length=MAX_PENDING_LIMITS,
        description="Lowered limits that wait for their grace.",
        json_schema_extra=kubernetes(list_type="atomic"),
    )
    charge_watts: Told | None = Field(
        default=None, description="The most everything below may draw, as the ledger counts it, in watts."
    )
    measured_watts: Told | None = Field(default=None, description="What the meter reads, in watts; absent: no fresh reading.")
    short_watts: Told | None = Field(
        default=None, description="How many watts are missing even with every GPU at its minimum cap."
    )
    mode: Mode | None = Field(default=None, description="The mode of its tree; absent: its place in the tree is wrong.")
    posture: PostureName | None = Field(default=None, description="The budget's state: Adopting, Normal, Trim, Shed or Brake.")
    nodes: Told | None = Field(default=None, description="How many nodes are charged to it.")
    gpus: Told | None = Field(default=None, description="How many GPUs are charged to it.")
    adoption_milliseconds: Told | None = Field(
        default=None, description="How long it took until every GPU was acknowledged or charged its default limit."
    )
    below: list[BelowBudget] = Field(
        default_factory=list,
        max_length=MAX_BELOW,
        description="The budgets right below, with those that were deleted while nodes still count there.",
        json_schema_extra=kubernetes(list_type="atomic"),
    )
    node_power_definition_uid: str | None = Field(
        default=None,
        alias="nodePowerDefinitionUID",
        max_length=64,
        description="Uid of the NodePower CustomResourceDefinition under which its nodes were last counted.",
    )
    gone_budgets: list[GoneBudget] = Field(
        default_factory=list,
        max_length=MAX_GONE,
        description="Budgets anywhere below that were deleted while nodes still count there.",
        json_schema_extra=kubernetes(list_type="atomic"),
    )
    unclaimed_nodes: list[ObjectName] = Field(
        default_factory=list,
        max_length=MAX_UNCLAIMED,
        description="Nodes that count here though no leaf selects them or their Node is gone; nothing is raised on them.",
        json_schema_extra=kubernetes(list_type="atomic"),
    )
    conditions: Conditions = Field(
        default_factory=list,
        description="Ready, WithinBudget, TelemetryFresh, CapsEnforced, Feasible, OwnersKnown, Steered; Observing in that mode.",
    )


class PowerBudget(Wire):
    """A limit on the power drawn behind one meter, shared by all clusters and namespaces on the nodes below it."""

    api_version: Literal["splitwatt.io/v1alpha1"] = "splitwatt.io/v1alpha1"
    kind: Literal["PowerBudget"] = "PowerBudget"
    metadata: ObjectMeta
    spec: PowerBudgetSpec = Field(description="What the owner of the power feed asks for.")
    status: PowerBudgetStatus | None = Field(default=None, description="What the operator knows of the budget.")

    model_config = ConfigDict(
        json_schema_extra=kubernetes(
            CelRule(
                "!has(self.spec.parent) || self.spec.parent != self.metadata.name",
                "a budget cannot be its own parent: name the budget above it, or remove parent",
                field_path=".spec.parent",
            ),
        )
    )


def posture_name(posture: Posture) -> PostureName:
    return PostureName(posture.name.capitalize())
