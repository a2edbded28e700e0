"""The kinds as CustomResourceDefinitions: names, columns, subresources around each model's schema.

Columns show the numbers an operator on call wants; `priority: 1` columns appear with `-o wide` only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from pydantic import BaseModel
from splitwatt_core.names import API_GROUP, API_VERSION

from splitwatt_api.inference_cluster import InferenceCluster
from splitwatt_api.node_power import NodePower
from splitwatt_api.power_budget import PowerBudget
from splitwatt_api.power_profile import PowerProfile
from splitwatt_api.role_scale import RoleScale
from splitwatt_api.schema import structural


@dataclass(frozen=True, slots=True)
class Column:
    name: str
    path: str
    type: str = "integer"
    description: str = ""
    wide: bool = False

    def wire(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "type": self.type,
            "jsonPath": self.path,
            "description": self.description or self.name,
            **({"priority": 1} if self.wide else {}),
        }


def condition(name: str, type_: str, description: str, *, wide: bool = False) -> Column:
    return Column(name, f'.status.conditions[?(@.type=="{type_}")].status', "string", description, wide)


AGE: Final = Column("Age", ".metadata.creationTimestamp", "date", "Since when it exists.")


@dataclass(frozen=True, slots=True)
class CustomKind:
    model: type[BaseModel]
    plural: str
    short: str
    namespaced: bool
    columns: tuple[Column, ...]
    status: bool = True
    scale: tuple[str, str, str] | None = None

    @property
    def name(self) -> str:
        return self.model.__name__

    @property
    def crd_name(self) -> str:
        return f"{self.plural}.{API_GROUP}"

    def manifest(self) -> dict[str, Any]:
        subresources: dict[str, Any] = {"status": {}} if self.status else {}
        if self.scale is not None:
            spec, status, selector = self.scale
            subresources["scale"] = {
                "specReplicasPath": spec,
                "statusReplicasPath": status,
                "labelSelectorPath": selector,
            }
        version: dict[str, Any] = {
            "name": API_VERSION,
            "served": True,
            "storage": True,
            "additionalPrinterColumns": [column.wire() for column in self.columns],
            "schema": {"openAPIV3Schema": structural(self.model)},
        }
        if subresources:
            version["subresources"] = subresources
        return {
            "apiVersion": "apiextensions.k8s.io/v1",
            "kind": "CustomResourceDefinition",
            "metadata": {"name": self.crd_name},
            "spec": {
                "group": API_GROUP,
                "names": {
                    "kind": self.name,
                    "listKind": f"{self.name}List",
                    "plural": self.plural,
                    "singular": self.name.lower(),
                    "shortNames": [self.short],
                    "categories": ["splitwatt"],
                },
                "scope": "Namespaced" if self.namespaced else "Cluster",
                "versions": [version],
            },
        }


KINDS: Final = (
    CustomKind(
        InferenceCluster,
        "inferenceclusters",
        "ic",
        namespaced=True,
        scale=(".spec.decode.replicas", ".status.decode.replicas", ".status.decode.labelSelector"),
        columns=(
            Column("Model", ".spec.model.name", "string", "The model that is served.", wide=True),
            Column("Priority", ".spec.priority", "string", "Who keeps watts when they are short.", wide=True),
            Column("Prefill", ".status.prefill.wantedReplicas", description="Wanted prefill replicas."),
            Column("P-Ready", ".status.prefill.readyReplicas", description="Ready prefill replicas."),
            Column("Decode", ".spec.decode.replicas", description="Wanted decode replicas."),
            Column("D-Ready", ".status.decode.readyReplicas", description="Ready decode replicas."),
            Column("Mixed", ".spec.mixed.replicas", description="Wanted mixed replicas.", wide=True),
            Column("M-Ready", ".status.mixed.readyReplicas", description="Ready mixed replicas.", wide=True),
            condition("Power", "PowerAdmitted", "Whether the floors of all replicas are reserved."),
            Column("Floor W", ".status.powerFloorWatts", description="Watts reserved for them.", wide=True),
            Column("TTFT P99 ms", ".status.ttftP99Milliseconds", description="Time to the first token."),
            Column("TBT P99 ms", ".status.tbtP99Milliseconds", description="Time between tokens."),
            condition("SLO", "SLOAttained", "Whether the service keeps its promise.", wide=True),
            condition("Ready", "Ready", "Whether it serves."),
            AGE,
        ),
    ),
    CustomKind(
        RoleScale,
        "rolescales",
        "rsc",
        namespaced=True,
        scale=(".spec.replicas", ".status.replicas", ".status.labelSelector"),
        columns=(
            Column("Cluster", ".spec.cluster", "string", "The InferenceCluster."),
            Column("Role", ".spec.role", "string", "The role that is scaled."),
            Column("Wanted", ".spec.replicas", description="Wanted replicas."),
            Column("Pods", ".status.replicas", description="Pods that exist."),
            AGE,
        ),
    ),
    CustomKind(
        PowerBudget,
        "powerbudgets",
        "pb",
        namespaced=False,
        columns=(
            Column("Parent", ".spec.parent", "string", "The budget above."),
            Column("Mode", ".status.mode", "string", "What its tree does: Observe, Strict or Release."),
            Column("Limit W", ".spec.limitWatts", description="What was asked for."),
            Column("In force W", ".status.limitInForceWatts", description="What holds now."),
            Column("Charge W", ".status.chargeWatts", description="The most that may be drawn."),
            Column("Measured W", ".status.measuredWatts", description="What the meter reads."),
            Column("Posture", ".status.posture", "string", "The budget's state."),
            condition("Within", "WithinBudget", "Whether charge and meter are within the limit in force."),
            condition("Fresh", "TelemetryFresh", "Whether the meter is fresh.", wide=True),
            condition("Enforced", "CapsEnforced", "Whether every GPU obeys.", wide=True),
            condition("Feasible", "Feasible", "Whether minimum caps fit.", wide=True),
            Column("Nodes", ".status.nodes", description="Nodes charged to it.", wide=True),
            Column("GPUs", ".status.gpus", description="GPUs charged to it."),
            condition("Ready", "Ready", "Whether it is kept."),
            AGE,
        ),
    ),
    CustomKind(
        NodePower,
        "nodepowers",
        "np",
        namespaced=False,
        columns=(
            Column("Budgets", ".spec.budgets", "string", "Budgets the node is charged to."),
            Column("Term", ".spec.term", description="Which operator start wrote it."),
            Column("Seen", ".status.observedTerm", description="The term the agent follows.", wide=True),
            Column("GPUs", ".status.gpuCount", description="GPUs reported."),
            Column("Healthy", ".status.healthyGpuCount", description="GPUs that obey."),
            Column("Caps W", ".status.enforcedCapWattsTotal", description="Sum of the enforced limits."),
            Column("Limit W", ".spec.nodeLimitWatts", description="The node's allotment.", wide=True),
            condition("Enforced", "CapsEnforced", "Whether every granted cap holds."),
            condition("Ready", "Ready", "Whether the agent follows its grants."),
            AGE,
        ),
    ),
    CustomKind(
        PowerProfile,
        "powerprofiles",
        "pp",
        namespaced=False,
        status=False,
        columns=(
            Column("Products", ".spec.productNames", "string", "NVML product names.", wide=True),
            Column("Idle W", ".spec.idleWatts", description="Draw without work."),
            Column("Min W", ".spec.minCapWatts", description="The lowest cap."),
            Column("Default W", ".spec.defaultCapWatts", description="The cap after a reboot."),
            Column("Prefill W", '.spec.phases[?(@.phase=="Prefill")].naturalDrawWatts', description="Natural prefill draw."),
            Column("Decode W", '.spec.phases[?(@.phase=="Decode")].naturalDrawWatts', description="Natural decode draw."),
            AGE,
        ),
    ),
)
