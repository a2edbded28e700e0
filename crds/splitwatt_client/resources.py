"""Which resources we speak to, and their paths. Written down instead of discovered.

Discovery would cost requests at every start and keep a cache file in a shared temporary folder; the few kinds that
Splitwatt touches never change their paths. `resource_of` finds the entry for a manifest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote


@dataclass(frozen=True, slots=True)
class ResourceType:
    """One REST resource. `api_version` as in manifests ("v1", "apps/v1"), `plural` as in URLs."""

    api_version: str
    kind: str
    plural: str
    namespaced: bool = True

    def path(self, *, namespace: str | None = None, name: str | None = None, subresource: str | None = None) -> str:
        """The URL path. Without `namespace` a namespaced resource means all namespaces (lists and watches only)."""
        if name is not None and self.namespaced and namespace is None:
            raise ValueError(f"{self.kind} {name} needs a namespace")
        parts = ["", "apis" if "/" in self.api_version else "api", self.api_version]
        if self.namespaced and namespace is not None:
            parts += ["namespaces", quote(namespace, safe="")]
        parts.append(self.plural)
        if name is not None:
            parts.append(quote(name, safe=""))
        if subresource is not None:
            parts.append(subresource)
        return "/".join(parts)


_OURS: Final = "splitwatt.io/v1alpha1"

INFERENCE_CLUSTERS: Final = ResourceType(_OURS, "InferenceCluster", "inferenceclusters")
ROLE_SCALES: Final = ResourceType(_OURS, "RoleScale", "rolescales")
POWER_BUDGETS: Final = ResourceType(_OURS, "PowerBudget", "powerbudgets", namespaced=False)
NODE_POWERS: Final = ResourceType(_OURS, "NodePower", "nodepowers", namespaced=False)
POWER_PROFILES: Final = ResourceType(_OURS, "PowerProfile", "powerprofiles", namespaced=False)

NODES: Final = ResourceType("v1", "Node", "nodes", namespaced=False)
NAMESPACES: Final = ResourceType("v1", "Namespace", "namespaces", namespaced=False)
PODS: Final = ResourceType("v1", "Pod", "pods")
SERVICES: Final = ResourceType("v1", "Service", "services")
CONFIG_MAPS: Final = ResourceType("v1", "ConfigMap", "configmaps")
SECRETS: Final = ResourceType("v1", "Secret", "secrets")
SERVICE_ACCOUNTS: Final = ResourceType("v1", "ServiceAccount", "serviceaccounts")
TOKEN_REVIEWS: Final = ResourceType("authentication.k8s.io/v1", "TokenReview", "tokenreviews", namespaced=False)
EVENTS: Final = ResourceType("v1", "Event", "events")
EVENTS_V1: Final = ResourceType("events.k8s.io/v1", "Event", "events")
DEPLOYMENTS: Final = ResourceType("apps/v1", "Deployment", "deployments")
REPLICA_SETS: Final = ResourceType("apps/v1", "ReplicaSet", "replicasets")
DAEMON_SETS: Final = ResourceType("apps/v1", "DaemonSet", "daemonsets")
POD_DISRUPTION_BUDGETS: Final = ResourceType("policy/v1", "PodDisruptionBudget", "poddisruptionbudgets")
HORIZONTAL_POD_AUTOSCALERS: Final = ResourceType("autoscaling/v2", "HorizontalPodAutoscaler", "horizontalpodautoscalers")
ROLES: Final = ResourceType("rbac.authorization.k8s.io/v1", "Role", "roles")
ROLE_BINDINGS: Final = ResourceType("rbac.authorization.k8s.io/v1", "RoleBinding", "rolebindings")
INFERENCE_POOLS: Final = ResourceType("inference.networking.k8s.io/v1", "InferencePool", "inferencepools")
LEADER_WORKER_SETS: Final = ResourceType("leaderworkerset.x-k8s.io/v1", "LeaderWorkerSet", "leaderworkersets")
LEASES: Final = ResourceType("coordination.k8s.io/v1", "Lease", "leases")
CUSTOM_RESOURCE_DEFINITIONS: Final = ResourceType(
    "apiextensions.k8s.io/v1", "CustomResourceDefinition", "customresourcedefinitions", namespaced=False
)
RESOURCE_SLICES: Final = ResourceType("resource.k8s.io/v1", "ResourceSlice", "resourceslices", namespaced=False)

_ALL: Final = {
    (r.api_version, r.kind): r
    for r in (
        INFERENCE_CLUSTERS, ROLE_SCALES, POWER_BUDGETS, NODE_POWERS, POWER_PROFILES, NODES, NAMESPACES, PODS, SERVICES,
        CONFIG_MAPS, SECRETS, SERVICE_ACCOUNTS, EVENTS, EVENTS_V1, DEPLOYMENTS, REPLICA_SETS, DAEMON_SETS, POD_DISRUPTION_BUDGETS,
        HORIZONTAL_POD_AUTOSCALERS, ROLES, ROLE_BINDINGS, LEASES, CUSTOM_RESOURCE_DEFINITIONS, RESOURCE_SLICES,
        INFERENCE_POOLS, LEADER_WORKER_SETS,
    )
}  # fmt: skip


def resource_of(manifest: Mapping[str, Any]) -> ResourceType:
    """The resource a manifest belongs to. Raises ValueError for a kind that is not listed here."""
    key = (str(manifest.get("apiVersion", "")), str(manifest.get("kind", "")))
    if key not in _ALL:
        raise ValueError(f"{key[0]} {key[1]} is not a known resource; pass resource=ResourceType(...)")
    return _ALL[key]
