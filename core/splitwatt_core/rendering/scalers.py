"""Autoscalers that aim at what we render: whom they fight, and where they should aim instead.

A rendered Deployment or LeaderWorkerSet follows its InferenceCluster, so a HorizontalPodAutoscaler on it is put back each time it
acts. The InferenceCluster has a scale of its own, which is decode's replicas; a CustomResourceDefinition has one scale and no
more, so prefill's is a RoleScale, and mixed has none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from splitwatt_core.clusters import ClusterSpec, Role
from splitwatt_core.names import GROUP_VERSION
from splitwatt_core.rendering.groups import GROUP_KIND
from splitwatt_core.rendering.objects import object_name
from splitwatt_core.rendering.role_scale import SCALED_ROLE


@dataclass(frozen=True, slots=True)
class Autoscaler:
    """One HorizontalPodAutoscaler and its spec.scaleTargetRef."""

    name: str
    target_kind: str
    target_name: str


def advice(autoscaler: Autoscaler, cluster: ClusterSpec, workloads: Mapping[str, Role] | None = None) -> str | None:
    """What to change about an autoscaler in the cluster's namespace; None when it scales nothing that we render. `workloads`:
    the names that they have now, beside the first ones."""
    roles = {object_name(cluster.name, role): role for role in cluster.roles} | dict(workloads or {})
    role = roles.get(autoscaler.target_name) if autoscaler.target_kind in ("Deployment", GROUP_KIND) else None
    if role is None:
        return None
    if role is SCALED_ROLE:
        kind, name, why = "RoleScale", object_name(cluster.name, role), f"which is the scale of {role.value}'s replicas"
    elif role is Role.DECODE:
        kind, name, why = "InferenceCluster", cluster.name, f"whose scale is {role.value}'s replicas"
    else:
        kind = ""
    instead = (
        f"aim it at the {kind}, {why} (scaleTargetRef apiVersion: {GROUP_VERSION}, kind: {kind}, name: {name})"
        if kind
        else f"delete it and set spec.{role.value}.replicas, which no autoscaler can"
    )
    return (
        f"HorizontalPodAutoscaler {autoscaler.name} scales {autoscaler.target_kind} {autoscaler.target_name}, which follows "
        f"InferenceCluster {cluster.name} and is put back each time: {instead}."
    )
