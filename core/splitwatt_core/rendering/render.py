"""From one `ClusterSpec` to the ordinary Kubernetes objects that serve it. Pure, deterministic, nothing looked up.

Per role: a Deployment (for replicas over several nodes a LeaderWorkerSet, `rendering.groups`) whose pods are born behind the
power gate, a headless Service (a router picks single replicas, and
KV transfer needs their addresses) and a PodDisruptionBudget. Per cluster: a router (`rendering.router`, `rendering.llmd`) and one
Service, the way in for clients. It leads to the router, or without one to the decode pods; a decode engine that gets a request
without KV parameters computes the prompt itself, so that without a router nothing is split.

Invariants: every pod that asks for GPUs carries the power gate, and rollouts never surge, so that a cluster never holds
more GPUs than its replicas say. Deleting the InferenceCluster deletes everything: each object is owned by it.

Source: llm-d for the role label.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from splitwatt_core import __version__
from splitwatt_core.clusters import ClusterSpec, EngineType, Role, RouterType
from splitwatt_core.rendering.engine import PORT_HTTP, PORT_KV, pod_template
from splitwatt_core.rendering.groups import group_objects, spans_nodes
from splitwatt_core.rendering.llmd import ENVOY_IMAGE, PICKER_IMAGE, SIDECAR_IMAGE, behind, llmd_objects, with_sidecar
from splitwatt_core.rendering.objects import Manifest, disruption_budget, made, selector_labels, service_port, stamped
from splitwatt_core.rendering.overlay import lay_over
from splitwatt_core.rendering.router import DEFAULT_VLLM_ROUTER_IMAGE, router_labels, router_objects

NO_DEADLINE_S: Final = 2**31 - 1
"""Kubernetes reads this as "no progress deadline": a pod may wait behind the power gate for as long as power is short."""
REVISIONS_KEPT: Final = 3


@dataclass(frozen=True, slots=True)
class RenderContext:
    """What the release decides. Our own image is of the operator's version; as built here, until somebody says where it lies:
    without a registry its name would be somebody else's on docker.io."""

    vllm_image: str = "vllm/vllm-openai:v0.32.0"
    emulated_image: str = f"localhost/splitwatt-engine:{__version__}"
    router_image: str = DEFAULT_VLLM_ROUTER_IMAGE
    llmd_picker_image: str = PICKER_IMAGE
    llmd_sidecar_image: str = SIDECAR_IMAGE
    envoy_image: str = ENVOY_IMAGE


def render(cluster: ClusterSpec, context: RenderContext) -> tuple[Manifest, ...]:
    """Every object of the cluster, each with the hash of its own content as an annotation.

    Raises SpecError when the cluster asks for something that cannot be rendered.
    """
    objects = [_cluster_service(cluster), *router_objects(cluster, image=context.router_image)]
    objects += llmd_objects(cluster, picker_image=context.llmd_picker_image, envoy_image=context.envoy_image)
    for role in Role:
        selector = selector_labels(cluster.name, role)
        pods = group_objects(cluster, role, _pod(cluster, role, context)) if spans_nodes(cluster, role) else None
        objects += [_deployment(cluster, role, context)] if pods is None else pods
        objects += [_role_service(cluster, role), disruption_budget(cluster, role, selector)]
    return tuple(stamped(manifest) for manifest in objects)


# -------------------------------------------------------------------------------------------------------------- objects


def _pod(cluster: ClusterSpec, role: Role, context: RenderContext) -> Manifest:
    """Without the user's overlay."""
    image = context.vllm_image if cluster.engine.type is EngineType.VLLM else context.emulated_image
    return with_sidecar(pod_template(behind(cluster, role), role, image=image), cluster, role, image=context.llmd_sidecar_image)


def _deployment(cluster: ClusterSpec, role: Role, context: RenderContext) -> Manifest:
    pod = _pod(cluster, role, context)
    template = lay_over(pod, cluster.role(role).template, where=f"spec.{role.value}.template")
    spec = {
        "replicas": cluster.role(role).replicas,
        "selector": {"matchLabels": selector_labels(cluster.name, role)},
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}},
        "progressDeadlineSeconds": NO_DEADLINE_S,
        "revisionHistoryLimit": REVISIONS_KEPT,
        "template": template,
    }
    return made(cluster, "apps/v1", "Deployment", role, {"spec": spec})


def _cluster_service(cluster: ClusterSpec) -> Manifest:
    routed = cluster.router.type is not RouterType.NONE
    spec = {
        "type": "ClusterIP",
        "selector": router_labels(cluster.name) if routed else selector_labels(cluster.name, Role.DECODE),
        "ports": [service_port(PORT_HTTP, cluster.engine.port)],
    }
    return made(cluster, "v1", "Service", None, {"spec": spec})


def _role_service(cluster: ClusterSpec, role: Role) -> Manifest:
    spec = {
        "clusterIP": "None",
        "selector": selector_labels(cluster.name, role),
        "ports": [
            service_port(PORT_HTTP, cluster.engine.port),
            service_port(PORT_KV, cluster.kv_transfer.side_channel_port),
        ],
    }
    return made(cluster, "v1", "Service", role, {"spec": spec})
