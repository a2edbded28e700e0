"""The router before a cluster's pools: vllm-router, which asks a prefill engine first and hands its answer on to a decode one.

It finds the engines by itself: it watches the pods of its namespace under an account of its own, and takes those with the
labels of a role once they are ready. RBAC knows no labels, so what it may see are all pods of that one namespace; it may
change nothing.

A router stands before engines of one revision and asks no others. All routers of a cluster are behind its Service, and one that
knows no pair is not ready: so a request is read and answered by engines that understand each other.

Its pods ask for no GPU and have no gate. They carry neither the cluster's label nor a role's, so that nobody takes them for
engines: no watt is reserved for them.

Source: vllm-router 0.1.17, its command line and src/service_discovery.rs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from splitwatt_core.clusters import ClusterSpec, Role, RouterType, SpecError, cluster_label
from splitwatt_core.names import GPU_RESOURCE, LABEL_MANAGED_BY, LABEL_REVISION, LABEL_ROUTER, MANAGED_BY
from splitwatt_core.rendering.engine import of_all_pods
from splitwatt_core.rendering.objects import ROUTER_PART, Manifest, disruption_budget, made, object_name, selector_labels
from splitwatt_core.rendering.overlay import lay_over
from splitwatt_core.rendering.revision import RouterHome, engine_labels, labelled_with

DEFAULT_VLLM_ROUTER_IMAGE: Final = "vllm/vllm-router:v0.1.17"

ROUTER_CONTAINER: Final = "router"
ROUTER_PORT: Final = 8000
PORT_HTTP: Final = "http"
PORT_METRICS: Final = "metrics"

HEALTH_INTERVAL_S: Final = 3
"""Of the router's look at each engine. Its own default is a minute, for which it would go on asking one that is gone."""
POLICY: Final = "round_robin"
RESOURCES: Final = {"requests": {"cpu": "200m", "memory": "256Mi"}, "limits": {"memory": "2Gi"}}
LEAVE_S: Final = 5
"""Endpoints are told everywhere by then that this pod takes no more."""
DRAIN_S: Final = 120
"""Streams in flight may end."""

_OWN_FLAGS: Final = (
    "--host", "--port", "--vllm-pd-disaggregation", "--kv-connector", "--service-discovery", "--service-discovery-port",
    "--service-discovery-namespace", "--prefill-selector", "--decode-selector", "--selector", "--prometheus-host",
    "--prometheus-port", "--prefill", "--decode", "--worker-urls",
)  # fmt: skip
_DEFAULTS: Final = {"--policy": POLICY, "--health-check-interval-secs": str(HEALTH_INTERVAL_S)}
_KV_CONNECTORS: Final = {"NixlConnector": "nixl", "MooncakeConnector": "mooncake"}
"""vLLM's connector to the router's word for its way of asking. Others are asked as NIXL is."""
_PODS: Final = {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch"]}


def router_labels(cluster: str) -> dict[str, str]:
    """What selects the router's pods."""
    return {LABEL_ROUTER: cluster_label(cluster)}


def router_objects(cluster: ClusterSpec, homes: Sequence[RouterHome], *, image: str) -> list[Manifest]:
    """None at all without a router. `homes`: the Deployments that are to be rendered. `image`: the release's default. Raises
    SpecError."""
    if cluster.router.type is RouterType.NONE:
        return []
    account = object_name(cluster.name, ROUTER_PART)
    role_ref = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": account}
    subject = {"kind": "ServiceAccount", "name": account, "namespace": cluster.namespace}
    rbac = "rbac.authorization.k8s.io/v1"
    return [
        made(cluster, "v1", "ServiceAccount", ROUTER_PART, {"automountServiceAccountToken": False}),
        made(cluster, rbac, "Role", ROUTER_PART, {"rules": [_PODS]}),
        made(cluster, rbac, "RoleBinding", ROUTER_PART, {"roleRef": role_ref, "subjects": [subject]}),
        *(_deployment(cluster, home, image) for home in homes),
        disruption_budget(cluster, ROUTER_PART, router_labels(cluster.name)),
    ]


def router_args(cluster: ClusterSpec, home: RouterHome) -> list[str]:
    """vllm-router's command line: it finds engines of the home's revision alone. Raises SpecError when the user's arguments name
    a flag that is rendered."""
    given = [arg.split("=", 1)[0].replace("_", "-") for arg in cluster.router.args]
    for flag in given:
        if flag in _OWN_FLAGS:
            raise SpecError(f"spec.router.args must not set {flag}; it follows from the cluster itself")
    defaults = [word for flag, value in _DEFAULTS.items() if flag not in given for word in (flag, value)]
    return [
        *("--host", "0.0.0.0"),
        *("--port", str(ROUTER_PORT)),
        "--vllm-pd-disaggregation",
        *("--kv-connector", _KV_CONNECTORS.get(cluster.kv_transfer.connector, "nixl")),
        "--service-discovery",
        *("--service-discovery-namespace", cluster.namespace),
        *("--service-discovery-port", str(cluster.engine.port)),
        *("--prefill-selector", *_engines(cluster, home, Role.PREFILL)),
        *("--decode-selector", *_engines(cluster, home, Role.DECODE)),
        *("--prometheus-host", "0.0.0.0"),
        *("--prometheus-port", str(cluster.router.metrics_port)),
        *defaults,
        *cluster.router.args,
    ]


def _engines(cluster: ClusterSpec, home: RouterHome, role: Role) -> list[str]:
    labels: Mapping[str, str] = engine_labels(selector_labels(cluster.name, role), home.engines[role], home.revision)
    return [f"{key}={value}" for key, value in labels.items()]


def _deployment(cluster: ClusterSpec, home: RouterHome, image: str) -> Manifest:
    labels = router_labels(cluster.name)
    if home.name != object_name(cluster.name, ROUTER_PART):
        labels |= {LABEL_REVISION: home.revision}
    said = {**router_labels(cluster.name), LABEL_REVISION: home.revision, LABEL_MANAGED_BY: MANAGED_BY}
    template = {"metadata": {"labels": said}, "spec": _pod(cluster, home, image)}
    spec = {
        "replicas": cluster.router.replicas,
        "selector": {"matchLabels": labels},
        # No GPU stands behind it, so a new pod may come before the old one goes.
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
        "revisionHistoryLimit": 3,
        "template": lay_over(template, cluster.router.template, where="spec.router.template", gated=False),
    }
    return labelled_with(made(cluster, "apps/v1", "Deployment", ROUTER_PART, {"spec": spec}, name=home.name), home.revision)


def _pod(cluster: ClusterSpec, home: RouterHome, image: str) -> dict[str, Any]:
    container = {
        "name": ROUTER_CONTAINER,
        "image": cluster.router.image or image,
        "command": ["vllm-router"],
        "args": router_args(cluster, home),
        "ports": [
            {"name": PORT_HTTP, "containerPort": ROUTER_PORT, "protocol": "TCP"},
            {"name": PORT_METRICS, "containerPort": cluster.router.metrics_port, "protocol": "TCP"},
        ],
        "resources": _resources(cluster),
        "readinessProbe": _probe("/readiness", period_s=3, failures=2),
        "livenessProbe": _probe("/liveness", period_s=10, failures=6),
        "lifecycle": {"preStop": {"sleep": {"seconds": LEAVE_S}}},
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
    return {
        "serviceAccountName": object_name(cluster.name, ROUTER_PART),
        "automountServiceAccountToken": True,
        "containers": [container],
        # It may run beside engines where there are no other nodes.
        "tolerations": [{"key": GPU_RESOURCE, "operator": "Exists", "effect": "NoSchedule"}],
        "terminationGracePeriodSeconds": LEAVE_S + DRAIN_S,
        "enableServiceLinks": False,
        "securityContext": {"seccompProfile": {"type": "RuntimeDefault"}},
        **of_all_pods(cluster),
    }


def _resources(cluster: ClusterSpec) -> dict[str, Any]:
    given = cluster.router.resources
    for kind in ("requests", "limits"):
        for name in given.get(kind) or {}:
            if str(name).startswith("nvidia.com/"):
                raise SpecError(f"spec.router.resources.{kind} must not ask for {name}; routers get no GPU")
    return dict(given) or RESOURCES


def _probe(path: str, *, period_s: int, failures: int) -> dict[str, Any]:
    return {
        "httpGet": {"path": path, "port": PORT_HTTP},
        "periodSeconds": period_s,
        "failureThreshold": failures,
        "timeoutSeconds": 5,
    }
