"""From one `ClusterSpec` to the ordinary Kubernetes objects that serve it. Pure, deterministic, nothing looked up.

Per role: a Deployment whose pods are born behind the power gate, a headless Service (a router picks single replicas, and
KV transfer needs their addresses) and a PodDisruptionBudget. Per cluster: a router (`rendering.router`) and one Service, the
way in for clients. It leads to the router, or without one to the decode pods; a decode engine that gets a request without KV
parameters computes the prompt itself, so that without a router nothing is split.

What changes the engines makes a new revision (`rendering.revision`), which gets Deployments and routers of its own beside the
former ones; how many replicas each has meanwhile is `serving.rollout`'s to say.

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
from splitwatt_core.rendering.objects import (
    ROUTER_PART,
    Manifest,
    disruption_budget,
    made,
    selector_labels,
    service_port,
    stamped,
)
from splitwatt_core.rendering.overlay import lay_over
from splitwatt_core.rendering.revision import Home, RenderPlan, RouterHome, labelled_with, names_for, revision_of
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


def pod_templates(cluster: ClusterSpec, context: RenderContext) -> dict[Role, Manifest]:
    """By role, before anybody says of which revision they are. Raises SpecError."""
    image = context.vllm_image if cluster.engine.type is EngineType.VLLM else context.emulated_image
    return {
        role: lay_over(pod_template(cluster, role, image=image), cluster.role(role).template, where=f"spec.{role.value}.template")
        for role in Role
    }


def render(cluster: ClusterSpec, context: RenderContext, plan: RenderPlan | None = None) -> tuple[Manifest, ...]:
    """Every object of the cluster, each with the hash of its own content as an annotation. `plan` None: it is new, or all of
    it is of one revision under its first names.

    Raises SpecError when the cluster asks for something that cannot be rendered.
    """
    templates = pod_templates(cluster, context)
    revision = revision_of(templates)
    at = _first_plan(cluster, revision) if plan is None else plan
    objects = [_cluster_service(cluster), *router_objects(cluster, at.routers, image=context.router_image)]
    for role in Role:
        selector = selector_labels(cluster.name, role)
        if role in at.homes:
            objects.append(_deployment(cluster, role, templates[role], at, revision))
        objects += [_role_service(cluster, role), disruption_budget(cluster, role, selector)]
    return tuple(stamped(manifest) for manifest in objects)


def _first_plan(cluster: ClusterSpec, revision: str) -> RenderPlan:
    homes = {role: Home(names_for(cluster.name, role, revision)[0]) for role in Role}
    router = RouterHome(revision, names_for(cluster.name, ROUTER_PART, revision)[0], homes)
    return RenderPlan(homes, {role: cluster.role(role).replicas for role in Role}, (router,))


# -------------------------------------------------------------------------------------------------------------- objects


def _deployment(cluster: ClusterSpec, role: Role, template: Manifest, at: RenderPlan, revision: str) -> Manifest:
    home = at.homes[role]
    if home.labelled:
        template = labelled_with(template, revision)
    spec = {
        "replicas": at.replicas[role],
        "selector": {"matchLabels": selector_labels(cluster.name, role) | home.own_labels(cluster.name, role, revision)},
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}},
        "progressDeadlineSeconds": NO_DEADLINE_S,
        "revisionHistoryLimit": REVISIONS_KEPT,
        "template": template,
    }
    return labelled_with(made(cluster, "apps/v1", "Deployment", role, {"spec": spec}, name=home.name), revision)


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
