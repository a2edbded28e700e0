"""From one `ClusterSpec` to the ordinary Kubernetes objects that serve it. Pure, deterministic, nothing looked up.

Per role: a Deployment (for replicas over several nodes a LeaderWorkerSet, `rendering.groups`) whose pods are born behind the
power gate, a headless Service (a router picks single replicas, and KV transfer needs their addresses) and a PodDisruptionBudget.
Per cluster: a router (`rendering.router`, `rendering.llmd`) and one Service, the way in for clients. It leads to the router, or
without one to the decode pods; a decode engine that gets a request without KV parameters computes the prompt itself, so that
without a router nothing is split. Of an unsplit cluster it leads to the mixed pods.

What changes the engines makes a new revision (`rendering.revision`), which gets Deployments, LeaderWorkerSets and routers of its
own beside the former ones; how many replicas each has meanwhile is `serving.rollout`'s to say.

Invariants: every pod that asks for GPUs carries the power gate, and rollouts never surge, so that a cluster never holds
more GPUs than its replicas say. Deleting the InferenceCluster deletes everything: each object is owned by it.

Source: llm-d for the role label.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from splitwatt_core import __version__
from splitwatt_core.clusters import ClusterSpec, EngineType, Role, RouterType
from splitwatt_core.rendering import engine_check, sglang
from splitwatt_core.rendering.engine import PORT_HTTP, engine_ports, pod_template
from splitwatt_core.rendering.groups import group_set, leader, spans_nodes, worker, workers_budget
from splitwatt_core.rendering.llmd import ENVOY_IMAGE, PICKER_IMAGE, SIDECAR_IMAGE, behind, llmd_objects, with_sidecar
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
    sglang_image: str = sglang.DEFAULT_IMAGE
    sglang_router_image: str = sglang.DEFAULT_ROUTER_IMAGE
    llmd_picker_image: str = PICKER_IMAGE
    llmd_sidecar_image: str = SIDECAR_IMAGE
    envoy_image: str = ENVOY_IMAGE

    def engine(self, engine: EngineType) -> str:
        return {EngineType.VLLM: self.vllm_image, EngineType.SGLANG: self.sglang_image}.get(engine, self.emulated_image)

    def router(self, router: RouterType) -> str:
        return self.sglang_router_image if router is RouterType.SGLANG else self.router_image


def pod_templates(cluster: ClusterSpec, context: RenderContext) -> dict[Role, Manifest]:
    """By role, before anybody says of which revision they are. Raises SpecError."""
    return {role: _templates(cluster, role, context)[1] for role in cluster.roles}


def render(cluster: ClusterSpec, context: RenderContext, plan: RenderPlan | None = None) -> tuple[Manifest, ...]:
    """Every object of the cluster, each with the hash of its own content as an annotation. `plan` None: it is new, or all of
    it is of one revision under its first names.

    Raises SpecError when the cluster asks for something that cannot be rendered.
    """
    templates = {}
    for role in cluster.roles:
        plain, templates[role] = _templates(cluster, role, context)
        engine_check.check(cluster, role, plain, templates[role])
    revision = revision_of(templates)
    at = _first_plan(cluster, revision) if plan is None else plan
    objects = [
        _cluster_service(cluster, at.way_in),
        *router_objects(cluster, at.routers, image=context.router(cluster.router.type)),
    ]
    objects += llmd_objects(cluster, picker_image=context.llmd_picker_image, envoy_image=context.envoy_image)
    for role in cluster.roles:
        selector = selector_labels(cluster.name, role)
        if role in at.homes and spans_nodes(cluster, role):
            workers = _laid_over(cluster, role, worker(_pod(cluster, role, context), cluster, role))
            objects.append(_group(cluster, role, (templates[role], workers), at, revision))
        elif role in at.homes:
            objects.append(_deployment(cluster, role, templates[role], at, revision))
        if spans_nodes(cluster, role):
            objects.append(workers_budget(cluster, role, standing=at.standing.get(role)))
        budget = disruption_budget(cluster, role, selector, standing=at.standing.get(role))
        objects += [_role_service(cluster, role), budget]
    return tuple(stamped(manifest) for manifest in objects)


def unjudged(cluster: ClusterSpec, context: RenderContext) -> list[str]:
    """What nobody can say of a cluster that can be rendered before its engines run, in sentences."""
    return engine_check.unjudged(cluster, list(pod_templates(cluster, context).values()))


def _first_plan(cluster: ClusterSpec, revision: str) -> RenderPlan:
    homes = {role: Home(names_for(cluster.name, role, revision, group=spans_nodes(cluster, role))[0]) for role in cluster.roles}
    router = RouterHome(revision, names_for(cluster.name, ROUTER_PART, revision)[0], homes)
    return RenderPlan(homes, {role: cluster.role(role).replicas for role in cluster.roles}, (router,))


# -------------------------------------------------------------------------------------------------------------- objects


def _pod(cluster: ClusterSpec, role: Role, context: RenderContext) -> Manifest:
    """As it is on one node, without the user's overlay."""
    bare = pod_template(behind(cluster, role), role, image=context.engine(cluster.engine.type))
    return with_sidecar(bare, cluster, role, image=context.llmd_sidecar_image)


def _laid_over(cluster: ClusterSpec, role: Role, plain: Manifest) -> Manifest:
    return lay_over(plain, cluster.role(role).template, where=f"spec.{role.value}.template")


def _templates(cluster: ClusterSpec, role: Role, context: RenderContext) -> tuple[Manifest, Manifest]:
    """The pod template as it is rendered, and with the user's laid over it; of several nodes the leader's."""
    plain = _pod(cluster, role, context)
    if spans_nodes(cluster, role):
        plain = leader(plain, cluster, role)
    return plain, _laid_over(cluster, role, plain)


def _group(cluster: ClusterSpec, role: Role, templates: tuple[Manifest, Manifest], at: RenderPlan, revision: str) -> Manifest:
    """`templates`: of leaders and workers."""
    leaders, workers = (labelled_with(each, revision) for each in templates)
    group = group_set(cluster, role, leaders, workers, name=at.homes[role].name, replicas=at.replicas[role])
    return labelled_with(group, revision)


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


def _cluster_service(cluster: ClusterSpec, until_routed: Role | None) -> Manifest:
    """A cluster that gets a router is served without it until one is ready."""
    routed = cluster.router.type is not RouterType.NONE and until_routed is None
    way_in = until_routed or (Role.DECODE if cluster.split else Role.MIXED)
    spec = {
        "type": "ClusterIP",
        "selector": router_labels(cluster.name) if routed else selector_labels(cluster.name, way_in),
        "ports": [service_port(PORT_HTTP, cluster.engine.port)],
    }
    return made(cluster, "v1", "Service", None, {"spec": spec})


def _role_service(cluster: ClusterSpec, role: Role) -> Manifest:
    spec = {
        "clusterIP": "None",
        "selector": selector_labels(cluster.name, role),
        "ports": [service_port(name, port) for name, port in engine_ports(cluster).items()],
    }
    return made(cluster, "v1", "Service", role, {"spec": spec})
