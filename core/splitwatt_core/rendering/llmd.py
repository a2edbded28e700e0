"""llm-d's router before a cluster's pools, run standalone: an endpoint picker with an Envoy beside it, and no Gateway.

Envoy takes the clients' requests and asks the picker by ext_proc where each goes. The picker knows the engines by the cluster's
InferencePool, chooses a decode pod and, where enough of the prompt is new to it, a prefill pod, which it names in a header. On
each decode pod a routing sidecar stands at the port that the pool names: it has the prefill pod read the prompt first, and then
sends the request with the KV cache's address to the engine beside it.

Of an unsplit cluster each request goes whole to one of the mixed pods: the picker has one list, and no sidecar stands before
them.

The picker's and Envoy's configurations are arguments, not ConfigMaps: a changed one rolls the pods by itself, and the operator
needs no right to anybody's ConfigMaps.

Source: llm-d/llm-d-router v0.10.0 (before: llm-d-inference-scheduler): config/charts/llm-d-router-standalone and routerlib for
pod, ports, probes and rights; deploy/config/pd-epp-config.yaml and epp-config.yaml for the plugins; pkg/epp/server/options.go and
pkg/sidecar/proxy/options.go for flags; deploy/components/vllm-decode for the sidecar. InferencePool: Gateway API Inference
Extension v1.6.0.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any, Final

from splitwatt_core.clusters import PAIR, ClusterSpec, EngineType, Role, RouterType, SpecError, cluster_label
from splitwatt_core.names import GPU_RESOURCE, LABEL_CLUSTER, LABEL_MANAGED_BY, MANAGED_BY
from splitwatt_core.rendering.engine import PORT_HTTP, of_all_pods
from splitwatt_core.rendering.llmd_envoy import READY_PORT, bootstrap
from splitwatt_core.rendering.objects import ROUTER_PART, Manifest, disruption_budget, made, object_name, service_port
from splitwatt_core.rendering.overlay import lay_over
from splitwatt_core.rendering.router import PORT_METRICS, ROUTER_PORT, resources_of, rights_of, router_labels

PICKER_IMAGE: Final = "ghcr.io/llm-d/llm-d-router-endpoint-picker:v0.10.0"
SIDECAR_IMAGE: Final = "ghcr.io/llm-d/llm-d-router-disagg-sidecar:v0.10.0"
ENVOY_IMAGE: Final = "docker.io/envoyproxy/envoy:distroless-v1.33.2"
"""The one that the picker's own chart runs beside it."""

POOL_API: Final = "inference.networking.k8s.io/v1"
POOL_KIND: Final = "InferencePool"
POOL_CRDS: Final = "https://github.com/kubernetes-sigs/gateway-api-inference-extension/releases/download/v1.6.0/manifests.yaml"

PICKER_CONTAINER: Final = "epp"
ENVOY_CONTAINER: Final = "envoy-proxy"
SIDECAR_CONTAINER: Final = "routing-sidecar"
"""All three as upstream names them, for whoever overlays or reads their logs."""
PORT_PICKER: Final = "grpc"
PICKER_PORT: Final = 9002
PICKER_HEALTH_PORT: Final = 9003
PICKER_SERVICE: Final = "envoy.service.ext_proc.v3.ExternalProcessor"
"""What the picker's health is asked by."""

PORT_ENGINE: Final = "engine-http"
ENGINE_PORTS: Final = (8200, 8201, 8202)
"""Of a decode engine behind its sidecar: the sidecar's own default, or the next that the cluster does not use."""

BLOCK_TOKENS: Final = 64
"""Of a block of prefixes, until engines say theirs (vllm:cache_config_info); the picker takes no smaller ones."""
NEW_TOKENS: Final = 16
"""A prompt with so many tokens that the decode pod has not seen is read by prefill. As in upstream's sample."""

STREAM_S: Final = 120
"""Streams in flight may end. Envoy leaves at once when told to, and answers pass through the picker: both are told late."""
AFTER_STREAM_S: Final = 10
PICKER_RESOURCES: Final = {"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"memory": "16Gi"}}
ENVOY_RESOURCES: Final = {"requests": {"cpu": "500m", "memory": "512Mi"}, "limits": {"memory": "4Gi"}}
SIDECAR_RESOURCES: Final = {"requests": {"cpu": "100m", "memory": "128Mi"}}

_READ: Final = ["get", "list", "watch"]
_REQUESTS: Final = ["inferenceobjectives", "inferencemodelrewrites"]
"""The picker watches them where their definitions are installed, under either group, and does not start if it may not."""
_RIGHTS: Final = [
    {"apiGroups": [""], "resources": ["pods"], "verbs": _READ},
    {"apiGroups": ["inference.networking.k8s.io"], "resources": ["inferencepools"], "verbs": _READ},
    {"apiGroups": ["llm-d.ai"], "resources": _REQUESTS, "verbs": _READ},
    {"apiGroups": ["inference.networking.x-k8s.io"], "resources": _REQUESTS, "verbs": _READ},
]
_OWN_FLAGS: Final = (
    "--pool-name", "--pool-namespace", "--pool-group", "--endpoint-selector", "--endpoint-target-ports", "--grpc-port",
    "--grpc-health-port", "--metrics-port", "--secure-serving", "--ha-enable-leader-election",
)  # fmt: skip
_CONFIG_FLAGS: Final = ("--config-text", "--config-file")
_KV_CONNECTORS: Final = {
    "NixlConnector": "nixlv2", "MooncakeConnector": "mooncake", "OffloadingConnector": "offloading",
    "SharedStorageConnector": "shared-storage",
}  # fmt: skip
"""vLLM's connector to the sidecar's word for its way of asking."""


def is_llmd(cluster: ClusterSpec) -> bool:
    return cluster.router.type is RouterType.LLMD


def llmd_objects(cluster: ClusterSpec, *, picker_image: str, envoy_image: str) -> list[Manifest]:
    """None at all for another router. Raises SpecError."""
    if not is_llmd(cluster):
        return []
    if cluster.split:
        _connector(cluster)
    return [
        inference_pool(cluster),
        *rights_of(cluster, _RIGHTS),
        _service(cluster),
        _deployment(cluster, picker_image, envoy_image),
        disruption_budget(cluster, ROUTER_PART, router_labels(cluster.name)),
    ]


def inference_pool(cluster: ClusterSpec) -> Manifest:
    """All roles' pods, and who picks among them. A Gateway's route may name it as well; it never picks by itself, for that
    would send prompts to decode and answers to prefill."""
    spec = {
        "selector": {"matchLabels": {LABEL_CLUSTER: cluster_label(cluster.name)}},
        "targetPorts": [{"number": cluster.engine.port}],
        "appProtocol": "http",
        "endpointPickerRef": {
            "kind": "Service",
            "name": object_name(cluster.name, ROUTER_PART),
            "port": {"number": PICKER_PORT},
            "failureMode": "FailClose",
        },
    }
    return made(cluster, POOL_API, POOL_KIND, None, {"spec": spec})


def picker_config(cluster: ClusterSpec) -> dict[str, Any]:
    """The EndpointPickerConfig: decode first, and prefill for what is new to the chosen decode pod. Of an unsplit cluster one of
    its pods, which decode's filter lets through."""
    scorers = [{"pluginRef": "prefix-cache-scorer", "weight": 2}, {"pluginRef": "queue-scorer", "weight": 1}]
    roles: tuple[Role, ...] = PAIR if cluster.split else (Role.DECODE,)
    handlers: list[dict[str, Any]] = [{"type": "single-profile-handler"}]
    if cluster.split:
        handlers = [
            {"type": "prefix-based-pd-decider", "parameters": {"nonCachedTokens": NEW_TOKENS}},
            {"type": "disagg-profile-handler", "parameters": {"deciders": {"prefill": "prefix-based-pd-decider"}}},
        ]
    return {
        "apiVersion": "llm-d.ai/v1alpha1",
        "kind": "EndpointPickerConfig",
        "plugins": [
            {"type": "approx-prefix-cache-producer", "parameters": {"autoTune": True, "blockSizeTokens": BLOCK_TOKENS}},
            {"type": "prefix-cache-scorer"},
            {"type": "queue-scorer"},
            *({"type": f"{role.value}-filter"} for role in roles),
            {"type": "max-score-picker"},
            *handlers,
        ],
        "schedulingProfiles": [
            {"name": role.value, "plugins": [{"pluginRef": f"{role.value}-filter"}, {"pluginRef": "max-score-picker"}, *scorers]}
            for role in roles
        ],
    }


def picker_args(cluster: ClusterSpec) -> list[str]:
    """Raises SpecError when the user's arguments name a flag that is rendered."""
    given = [arg.split("=", 1)[0] for arg in cluster.router.args]
    for flag in given:
        if flag in _OWN_FLAGS:
            raise SpecError(f"spec.router.args must not set {flag}; it follows from the cluster itself")
    config = json.dumps(picker_config(cluster), separators=(",", ":"))
    return [
        *("--pool-name", object_name(cluster.name)),
        *("--pool-namespace", cluster.namespace),
        *("--pool-group", POOL_API.partition("/")[0]),
        *("--grpc-port", str(PICKER_PORT)),
        *("--grpc-health-port", str(PICKER_HEALTH_PORT)),
        *("--metrics-port", str(cluster.router.metrics_port)),
        # Its own check would need the right to review tokens of the whole Kubernetes cluster.
        "--metrics-endpoint-auth=false",
        "--tracing=false",
        *("--zap-encoder", "json"),
        *(() if any(flag in _CONFIG_FLAGS for flag in given) else ("--config-text", config)),
        *cluster.router.args,
    ]


# ----------------------------------------------------------------------------------------------------------- decode's pods


def behind(cluster: ClusterSpec, role: Role) -> ClusterSpec:
    """The cluster as an engine of this role sees it: before a decode engine stands its sidecar, at the port that is asked."""
    if not is_llmd(cluster) or role is not Role.DECODE:
        return cluster
    return replace(cluster, engine=replace(cluster.engine, port=engine_port(cluster)))


def engine_port(cluster: ClusterSpec) -> int:
    taken = (cluster.engine.port, cluster.kv_transfer.side_channel_port)
    return next(port for port in ENGINE_PORTS if port not in taken)


def with_sidecar(template: Manifest, cluster: ClusterSpec, role: Role, *, image: str) -> Manifest:
    """The pod template of a role, of decode with its routing sidecar. It starts before the engine and ends after it."""
    if not is_llmd(cluster) or role is not Role.DECODE:
        return template
    spec = template["spec"]
    sidecar = {
        "name": SIDECAR_CONTAINER,
        "image": image,
        "args": [
            f"--port={cluster.engine.port}",
            f"--model-server-port={engine_port(cluster)}",
            f"--kv-connector={_connector(cluster)}",
            # Its certificate would be one that nobody knows; upstream's manifests turn it off too.
            "--secure-proxy=false",
        ],
        "ports": [{"name": PORT_HTTP, "containerPort": cluster.engine.port, "protocol": "TCP"}],
        "restartPolicy": "Always",
        "readinessProbe": {"httpGet": {"path": "/health", "port": PORT_HTTP}, "periodSeconds": 5, "timeoutSeconds": 5},
        "resources": SIDECAR_RESOURCES,
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
    containers = [_renamed(container) for container in spec["containers"]]
    return {**template, "spec": {**spec, "initContainers": [sidecar, *spec.get("initContainers", ())], "containers": containers}}


def _renamed(container: dict[str, Any]) -> dict[str, Any]:
    """The engine's own port gives up its name: Services and the picker mean the sidecar's."""
    ports = [{**port, "name": PORT_ENGINE} if port["name"] == PORT_HTTP else port for port in container["ports"]]
    probes = {
        probe: {**container[probe], "httpGet": {**container[probe]["httpGet"], "port": PORT_ENGINE}}
        for probe in ("startupProbe", "readinessProbe", "livenessProbe")
    }
    return {**container, "ports": ports, **probes}


def _connector(cluster: ClusterSpec) -> str:
    word = _KV_CONNECTORS.get(cluster.kv_transfer.connector)
    if word is None and cluster.engine.type is EngineType.VLLM:
        known = ", ".join(sorted(_KV_CONNECTORS))
        raise SpecError(f"spec.kvTransfer.connector {cluster.kv_transfer.connector} is none that LLMD's sidecar knows: {known}")
    return word or "nixlv2"


# ------------------------------------------------------------------------------------------------------------- the router


def _service(cluster: ClusterSpec) -> Manifest:
    """Where Gateways find the picker. Clients use the cluster's own Service, which leads to Envoy."""
    port = {**service_port(PORT_PICKER, PICKER_PORT), "appProtocol": "kubernetes.io/h2c"}
    spec = {"type": "ClusterIP", "selector": router_labels(cluster.name), "ports": [port]}
    return made(cluster, "v1", "Service", ROUTER_PART, {"spec": spec})


def _deployment(cluster: ClusterSpec, picker_image: str, envoy_image: str) -> Manifest:
    labels = router_labels(cluster.name)
    pod = {
        "serviceAccountName": object_name(cluster.name, ROUTER_PART),
        "automountServiceAccountToken": True,
        "containers": [_envoy(envoy_image), _picker(cluster, picker_image)],
        "tolerations": [{"key": GPU_RESOURCE, "operator": "Exists", "effect": "NoSchedule"}],
        "terminationGracePeriodSeconds": STREAM_S + AFTER_STREAM_S,
        "enableServiceLinks": False,
        "securityContext": {"seccompProfile": {"type": "RuntimeDefault"}},
        **of_all_pods(cluster),
    }
    template = {"metadata": {"labels": labels | {LABEL_MANAGED_BY: MANAGED_BY}}, "spec": pod}
    spec = {
        "replicas": cluster.router.replicas,
        "selector": {"matchLabels": labels},
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
        "revisionHistoryLimit": 3,
        "template": lay_over(template, cluster.router.template, where="spec.router.template", gated=False),
    }
    return made(cluster, "apps/v1", "Deployment", ROUTER_PART, {"spec": spec})


def _envoy(image: str) -> dict[str, Any]:
    return {
        "name": ENVOY_CONTAINER,
        "image": image,
        "command": ["envoy"],
        "args": [
            *("--service-node", ENVOY_CONTAINER),
            *("--log-level", "warn"),
            "--cpuset-threads",
            *("--config-yaml", json.dumps(bootstrap(port=ROUTER_PORT, picker_port=PICKER_PORT), separators=(",", ":"))),
        ],
        "ports": [{"name": PORT_HTTP, "containerPort": ROUTER_PORT, "protocol": "TCP"}],
        "readinessProbe": {"httpGet": {"path": "/ready", "port": READY_PORT}, "periodSeconds": 5, "failureThreshold": 1},
        **_common(ENVOY_RESOURCES),
    }


def _picker(cluster: ClusterSpec, image: str) -> dict[str, Any]:
    health = {"port": PICKER_HEALTH_PORT, "service": PICKER_SERVICE}
    return {
        "name": PICKER_CONTAINER,
        "image": cluster.router.image or image,
        "args": picker_args(cluster),
        "env": [
            {"name": "NAMESPACE", "valueFrom": {"fieldRef": {"fieldPath": "metadata.namespace"}}},
            {"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
        ],
        "ports": [
            {"name": PORT_PICKER, "containerPort": PICKER_PORT, "protocol": "TCP"},
            {"name": PORT_METRICS, "containerPort": cluster.router.metrics_port, "protocol": "TCP"},
        ],
        # Neither is well before the InferencePool was read, so a picker without one is started anew now and then.
        "readinessProbe": {"grpc": health, "periodSeconds": 2},
        "livenessProbe": {"grpc": health, "initialDelaySeconds": 5, "periodSeconds": 10, "failureThreshold": 6},
        **_common(resources_of(cluster, PICKER_RESOURCES)),
    }


def _common(resources: dict[str, Any]) -> dict[str, Any]:
    return {
        "resources": resources,
        "lifecycle": {"preStop": {"sleep": {"seconds": STREAM_S}}},
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
