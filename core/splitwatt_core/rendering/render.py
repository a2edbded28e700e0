"""From one `ClusterSpec` to the ordinary Kubernetes objects that serve it. Pure, deterministic, nothing looked up.

Per role: a Deployment whose pods are born behind the power gate, a headless Service (a router picks single replicas, and
KV transfer needs their addresses) and a PodDisruptionBudget. Per cluster: a router (`rendering.router`) and one Service, the
way in for clients. It leads to the router, or without one to the decode pods; a decode engine that gets a request without KV
parameters computes the prompt itself, so that without a router nothing is split.

Invariants: every pod that asks for GPUs carries the power gate, and rollouts never surge, so that a cluster never holds
more GPUs than its replicas say. Deleting the InferenceCluster deletes everything: each object is owned by it.

Sources: vLLM's NixlConnector guide for flags and environment; llm-d for the role label.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final

from splitwatt_core import __version__
from splitwatt_core.clusters import ClusterSpec, EngineType, Role, RouterType, SpecError
from splitwatt_core.names import GATE_POWER, GPU_RESOURCE, LABEL_LLMD_ROLE, LABEL_MANAGED_BY, MANAGED_BY
from splitwatt_core.rendering.objects import Manifest, disruption_budget, made, selector_labels, service_port, stamped
from splitwatt_core.rendering.overlay import lay_over
from splitwatt_core.rendering.router import DEFAULT_VLLM_ROUTER_IMAGE, router_labels, router_objects

ENGINE_CONTAINER: Final = "engine"
PORT_HTTP: Final = "http"
PORT_KV: Final = "kv-side"
SHM_SIZE: Final = "16Gi"
"""Upper bound of /dev/shm, which tensor-parallel workers use; the container default of 64 MiB crashes them."""

PROBE_PATH: Final = "/health"
STARTUP_PERIOD_S: Final = 10
STARTUP_FAILURES: Final = 360
"""An hour: the first start may download hundreds of gigabytes of weights."""
READY_PERIOD_S: Final = 5
READY_FAILURES: Final = 3
LIVE_PERIOD_S: Final = 10
LIVE_FAILURES: Final = 6
PROBE_TIMEOUT_S: Final = 5

DRAIN_S: Final = 60
"""Grace for requests in flight; the longest decode of the conversation trace takes under 50 s."""
NO_DEADLINE_S: Final = 2**31 - 1
"""Kubernetes reads this as "no progress deadline": a pod may wait behind the power gate for as long as power is short."""
REVISIONS_KEPT: Final = 3

KV_ROLE: Final = {Role.PREFILL: "kv_producer", Role.DECODE: "kv_consumer"}
_OWN_FLAGS: Final = ("--port", "--tensor-parallel-size", "-tp", "--kv-transfer-config")


@dataclass(frozen=True, slots=True)
class RenderContext:
    """What the release decides. Our own image is of the operator's version; as built here, until somebody says where it lies:
    without a registry its name would be somebody else's on docker.io."""

    vllm_image: str = "vllm/vllm-openai:v0.12.0"
    emulated_image: str = f"localhost/splitwatt-engine:{__version__}"
    router_image: str = DEFAULT_VLLM_ROUTER_IMAGE


def render(cluster: ClusterSpec, context: RenderContext) -> tuple[Manifest, ...]:
    """Every object of the cluster, each with the hash of its own content as an annotation.

    Raises SpecError when the cluster asks for something that cannot be rendered.
    """
    objects = [_cluster_service(cluster), *router_objects(cluster, image=context.router_image)]
    for role in Role:
        selector = selector_labels(cluster.name, role)
        objects += [_deployment(cluster, role, context), _role_service(cluster, role), disruption_budget(cluster, role, selector)]
    return tuple(stamped(manifest) for manifest in objects)


# -------------------------------------------------------------------------------------------------------------- objects


def _deployment(cluster: ClusterSpec, role: Role, context: RenderContext) -> Manifest:
    template = lay_over(_template(cluster, role, context), cluster.role(role).template, where=f"spec.{role.value}.template")
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


# ----------------------------------------------------------------------------------------------------------------- pods


def _template(cluster: ClusterSpec, role: Role, context: RenderContext) -> Manifest:
    labels = selector_labels(cluster.name, role) | {LABEL_LLMD_ROLE: role.value, LABEL_MANAGED_BY: MANAGED_BY}
    spec: dict[str, Any] = {
        "schedulingGates": [{"name": GATE_POWER}],
        "containers": [_engine(cluster, role, context)],
        "volumes": [{"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": SHM_SIZE}}],
        "tolerations": [{"key": GPU_RESOURCE, "operator": "Exists", "effect": "NoSchedule"}],
        "terminationGracePeriodSeconds": DRAIN_S,
        "automountServiceAccountToken": False,
        # A Service named `vllm` would otherwise set VLLM_PORT, which the engine reads as its own setting.
        "enableServiceLinks": False,
        "securityContext": {"seccompProfile": {"type": "RuntimeDefault"}},
    }
    if selector := dict(cluster.role(role).node_selector):
        spec["nodeSelector"] = selector
    return {"metadata": {"labels": labels}, "spec": spec}


def _engine(cluster: ClusterSpec, role: Role, context: RenderContext) -> dict[str, Any]:
    gpus = str(cluster.role(role).gpus_per_replica)
    container: dict[str, Any] = {
        "name": ENGINE_CONTAINER,
        "image": _image(cluster, context),
        "args": engine_args(cluster, role),
        "env": [
            {"name": "VLLM_NIXL_SIDE_CHANNEL_HOST", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
            {"name": "VLLM_NIXL_SIDE_CHANNEL_PORT", "value": str(cluster.kv_transfer.side_channel_port)},
        ],
        "ports": [
            {"name": PORT_HTTP, "containerPort": cluster.engine.port, "protocol": "TCP"},
            {"name": PORT_KV, "containerPort": cluster.kv_transfer.side_channel_port, "protocol": "TCP"},
        ],
        "resources": {"requests": {GPU_RESOURCE: gpus}, "limits": {GPU_RESOURCE: gpus}},
        "startupProbe": _probe(STARTUP_PERIOD_S, STARTUP_FAILURES),
        "readinessProbe": _probe(READY_PERIOD_S, READY_FAILURES),
        "livenessProbe": _probe(LIVE_PERIOD_S, LIVE_FAILURES),
        "volumeMounts": [{"name": "shm", "mountPath": "/dev/shm"}],
        "securityContext": {"allowPrivilegeEscalation": False},
    }
    if cluster.engine.type is EngineType.VLLM:
        container["command"] = ["vllm", "serve"]  # said outright: the image's entry point changed between releases
    return container


def engine_args(cluster: ClusterSpec, role: Role) -> list[str]:
    """The engine's command line. The emulated engine takes the same one.

    Raises SpecError when the user's arguments name a flag that is rendered.
    """
    for arg in cluster.engine.args:
        flag = arg.split("=", 1)[0]
        if flag in _OWN_FLAGS or flag.startswith("--kv-transfer-config."):
            raise SpecError(f"spec.engine.args must not set {flag}; it follows from gpusPerReplica, port and kvTransfer")
    transfer: dict[str, Any] = {"kv_connector": cluster.kv_transfer.connector, "kv_role": KV_ROLE[role]}
    if cluster.kv_transfer.extra_config:
        transfer["kv_connector_extra_config"] = dict(cluster.kv_transfer.extra_config)
    return [
        cluster.model,
        "--port",
        str(cluster.engine.port),
        "--tensor-parallel-size",
        str(cluster.role(role).gpus_per_replica),
        "--kv-transfer-config",
        json.dumps(transfer, sort_keys=True, separators=(",", ":")),
        *cluster.engine.args,
    ]


def _image(cluster: ClusterSpec, context: RenderContext) -> str:
    if cluster.engine.image is not None:
        return cluster.engine.image
    return context.vllm_image if cluster.engine.type is EngineType.VLLM else context.emulated_image


def _probe(period_s: int, failures: int) -> dict[str, Any]:
    return {
        "httpGet": {"path": PROBE_PATH, "port": PORT_HTTP},
        "periodSeconds": period_s,
        "failureThreshold": failures,
        "timeoutSeconds": PROBE_TIMEOUT_S,
    }
