"""`spec.workloads` of a root PowerBudget: what the site says of pods that are of no InferenceCluster.

A rule chooses pods by their labels, by their namespace's, or by both, and gives them a phase, a priority and a model. Whatever
it leaves out, labels that the pods have of their own serving say (`splitwatt_core.budget.known_labels`), if they have any.
"""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import ConfigDict, Field, WithJsonSchema
from splitwatt_core.protocol.contract import MAX_PRIORITY, MIN_PRIORITY, Phase

from splitwatt_api.base import CelRule, LabelRequirement, Labels, Wire, kubernetes, one_of
from splitwatt_api.inference_cluster import PriorityWord

MAX_WORKLOADS: Final = 24
"""The API server bounds the cost of all rules together, and a value that is a word or a number is dear to judge."""

RulePriority = Annotated[
    PriorityWord | Annotated[int, Field(ge=MIN_PRIORITY, le=MAX_PRIORITY, strict=True)],
    WithJsonSchema(
        kubernetes(
            CelRule(  # as an InferenceCluster's, but cheap enough to be asked of every rule: nothing reads the whole string
                f"type(self) == int ? (int(self) >= {MIN_PRIORITY} && int(self) <= {MAX_PRIORITY}) : "
                "(self == 'High' || self == 'Low')",
                f"priority must be High, Low, or a whole number from {MIN_PRIORITY} to {MAX_PRIORITY} (High is 100, Low is 0)",
            ),
            int_or_string=True,
        )
    ),
]


class WorkloadSelector(Wire):
    """Selects pods or namespaces by their labels: all of matchLabels and all of matchExpressions must hold."""

    match_labels: Labels = Field(default_factory=dict, description="Labels and the values they must have.")
    match_expressions: list[LabelRequirement] = Field(
        default_factory=list,
        max_length=16,
        description="Further requirements.",
        json_schema_extra=kubernetes(list_type="atomic"),
    )

    model_config = ConfigDict(
        json_schema_extra=kubernetes(
            CelRule(
                "(has(self.matchLabels) && size(self.matchLabels) > 0) || "
                "(has(self.matchExpressions) && size(self.matchExpressions) > 0)",
                "a selector of workloads must name at least one label; leave it out to select all",
            )
        )
    )


class WorkloadEntry(Wire):
    """What is said of the pods that one rule selects."""

    pod_selector: WorkloadSelector | None = Field(default=None, description="Labels of the pods; absent: all pods.")
    namespace_selector: WorkloadSelector | None = Field(
        default=None,
        description="Labels of the pods' namespaces, for instance kubernetes.io/metadata.name; absent: all namespaces.",
    )
    phase: Annotated[Phase, Field(json_schema_extra=one_of("phase", ("Prefill", "Decode")))] | None = Field(
        default=None,
        description="What they do: Prefill or Decode. An engine that does both is Prefill, which draws most. Absent: what a "
        "known label of the pod says; without one they are asked for no less than prefill would be.",
    )
    priority: RulePriority | None = Field(
        default=None,
        description="Who keeps watts when they are short: High (100), Low (0) or a class of your own. Absent: Low.",
    )
    model: str | None = Field(
        default=None,
        min_length=1,
        max_length=253,
        description="The model that they serve, by which a PowerProfile's phases are chosen. Absent: what a known label says.",
    )

    model_config = ConfigDict(
        json_schema_extra=kubernetes(
            CelRule(
                "has(self.podSelector) || has(self.namespaceSelector)",
                "a rule of workloads must select something: set podSelector, namespaceSelector or both",
            ),
            CelRule(
                "has(self.phase) || has(self.priority) || has(self.model)",
                "a rule of workloads must say something: set phase, priority or model",
            ),
        )
    )
