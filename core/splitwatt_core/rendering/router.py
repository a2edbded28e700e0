"""The router before a cluster's pools: vllm-router, which asks a prefill engine first and hands its answer on to a decode one.
Before an unsplit cluster it sends each request whole to a mixed engine. It does either, never both: it takes a pod for prefill or
for decode, or takes one kind of pods, so that it cannot send what two pools have no room for to a third.

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

from splitwatt_core.clusters import LABEL_ROUTERS, ClusterSpec, EngineType, Role, RouterType, SpecError, cluster_label
from splitwatt_core.names import GPU_RESOURCE, LABEL_MANAGED_BY, LABEL_REVISION, LABEL_ROUTER, MANAGED_BY
from splitwatt_core.rendering import sglang
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
    "--prometheus-port", "--prefill", "--decode", "--worker-urls", *sglang.ROUTER_OWN_FLAGS,
)  # fmt: skip
_DEFAULTS: Final = {"--policy": POLICY, "--health-check-interval-secs": str(HEALTH_INTERVAL_S)}
_KV_CONNECTORS: Final = {"NixlConnector": "nixl", "MooncakeConnector": "mooncake"}
"""vLLM's connector to the router's word for its way of asking. Others are asked as NIXL is."""
_PODS: Final = {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch"]}


def router_labels(cluster: str) -> dict[str, str]:
    """What selects the router's pods."""
    return {LABEL_ROUTER: cluster_label(cluster)}


def router_objects(cluster: ClusterSpec, homes: Sequence[RouterHome], *, image: str) -> list[Manifest]:
    """None at all for another router, or none. `homes`: the Deployments that are to be rendered. `image`: the release's default.
    Raises SpecError."""
    if cluster.router.type is RouterType.NONE:
        return []
    if (cluster.router.type is RouterType.SGLANG) is not (cluster.engine.type is EngineType.SGLANG):
        raise SpecError(
            f"spec.router.type {cluster.router.type} cannot split for engine.type {cluster.engine.type}: SGLang's engines stand "
            "behind router.type SGLang or None, all others behind any but SGLang"
        )
    if cluster.router.type not in LABEL_ROUTERS:
        return []
    return [
        *rights_of(cluster, [_PODS]),
        *(_deployment(cluster, home, image) for home in homes),
        disruption_budget(cluster, ROUTER_PART, router_labels(cluster.name)),
    ]


def rights_of(cluster: ClusterSpec, rules: Sequence[Mapping[str, Any]]) -> list[Manifest]:
    """A router's account, and what it may."""
    account = object_name(cluster.name, ROUTER_PART)
    role_ref = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": account}
    subject = {"kind": "ServiceAccount", "name": account, "namespace": cluster.namespace}
    rbac = "rbac.authorization.k8s.io/v1"
    return [
        made(cluster, "v1", "ServiceAccount", ROUTER_PART, {"automountServiceAccountToken": False}),
        made(cluster, rbac, "Role", ROUTER_PART, {"rules": [dict(rule) for rule in rules]}),
        made(cluster, rbac, "RoleBinding", ROUTER_PART, {"roleRef": role_ref, "subjects": [subject]}),
    ]


def router_args(cluster: ClusterSpec, home: RouterHome) -> list[str]:
    """The router's command line: it finds engines of the home's revision alone. sglang-router, from which vllm-router was made,
    has the same words for all but splitting. Raises SpecError when the user's arguments name a flag that is rendered."""
    given = [arg.split("=", 1)[0].replace("_", "-") for arg in cluster.router.args]
    for flag in given:
        if flag in _OWN_FLAGS:
            raise SpecError(f"spec.router.args must not set {flag}; it follows from the cluster itself")
    defaults = [word for flag, value in _DEFAULTS.items() if flag not in given for word in (flag, value)]
    return [
        *("--host", "0.0.0.0"),
        *("--port", str(ROUTER_PORT)),
        *_mode(cluster, home),
        "--service-discovery",
        *("--service-discovery-namespace", cluster.namespace),
        *("--service-discovery-port", str(cluster.engine.port)),
        *_engines(cluster, home),
        *("--prometheus-host", "0.0.0.0"),
        *("--prometheus-port", str(cluster.router.metrics_port)),
        *defaults,
        *cluster.router.args,
    ]


def _mode(cluster: ClusterSpec, home: RouterHome) -> list[str]:
    """Without a word it sends each request whole to one engine."""
    if Role.DECODE not in home.engines:
        return []
    if cluster.router.type is RouterType.SGLANG:
        return ["--pd-disaggregation"]
    return ["--vllm-pd-disaggregation", "--kv-connector", _KV_CONNECTORS.get(cluster.kv_transfer.connector, "nixl")]


def _engines(cluster: ClusterSpec, home: RouterHome) -> list[str]:
    if Role.DECODE not in home.engines:
        return ["--selector", *_words(cluster, home, Role.MIXED)]
    return [
        *("--prefill-selector", *_words(cluster, home, Role.PREFILL)),
        *("--decode-selector", *_words(cluster, home, Role.DECODE)),
    ]


def _words(cluster: ClusterSpec, home: RouterHome, role: Role) -> list[str]:
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
        "command": list(sglang.ROUTER_COMMAND) if cluster.router.type is RouterType.SGLANG else ["vllm-router"],
        "args": router_args(cluster, home),
        "ports": [
            {"name": PORT_HTTP, "containerPort": ROUTER_PORT, "protocol": "TCP"},
            {"name": PORT_METRICS, "containerPort": cluster.router.metrics_port, "protocol": "TCP"},
        ],
        "resources": resources_of(cluster, RESOURCES),
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


def resources_of(cluster: ClusterSpec, default: Mapping[str, Any]) -> dict[str, Any]:
    """What the user asks for, else `default`. Raises SpecError when it names a GPU."""
    given = cluster.router.resources
    for kind in ("requests", "limits"):
        for name in given.get(kind) or {}:
            if str(name).startswith("nvidia.com/"):
                raise SpecError(f"spec.router.resources.{kind} must not ask for {name}; routers get no GPU")
    return dict(given or default)


def _probe(path: str, *, period_s: int, failures: int) -> dict[str, Any]:
    return {
        "httpGet": {"path": path, "port": PORT_HTTP},
        "periodSeconds": period_s,
        "failureThreshold": failures,
        "timeoutSeconds": 5,
    }
