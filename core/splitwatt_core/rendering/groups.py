"""A replica over several nodes: a LeaderWorkerSet instead of a Deployment, a group of pods for each replica, one on each node.

The leader has the port, and is what Services, routers and the proof of KV transfer know as an engine: it alone carries the role's
label. Its workers carry `splitwatt.io/worker-of`, by which power admission and caps know them. All stand behind the gate, and a
group leaves it whole; a container that ends anywhere ends the whole group, for the rest would wait for it at full draw.

Tensor parallelism spans all GPUs of the group: vLLM's NixlConnector refuses pipeline parallelism.

Source: kubernetes-sigs/lws v0.9.0, api/leaderworkerset/v1/leaderworkerset_types.go for the object, and for the variables that it
sets in each container; vLLM 0.32, docs/serving/parallelism_scaling.md (multi-node with multiprocessing) and engine/arg_utils.py
for the flags, nixl/base_worker.py for what it refuses.
"""

from __future__ import annotations

from typing import Any, Final

from splitwatt_core.clusters import ClusterSpec, EngineType, Role, RouterType, SpecError, cluster_label
from splitwatt_core.names import ANNOTATION_NODES, LABEL_CLUSTER, LABEL_MANAGED_BY, LABEL_WORKER, MANAGED_BY
from splitwatt_core.rendering.objects import Manifest, disruption_budget, made, object_name

GROUP_API: Final = "leaderworkerset.x-k8s.io/v1"
GROUP_KIND: Final = "LeaderWorkerSet"
GROUP_CRDS: Final = "https://github.com/kubernetes-sigs/lws/releases/download/v0.9.0/manifests.yaml"

_OWN_FLAGS: Final = (
    "--nnodes", "-n", "--node-rank", "-r", "--master-addr", "--headless", "--pipeline-parallel-size", "-pp",
    "--distributed-executor-backend",
)  # fmt: skip
_LEADER: Final = "$(LWS_LEADER_ADDRESS)"
_RANK: Final = "$(LWS_WORKER_INDEX)"
WORKER_LEAVES_S: Final = 10
"""What is left of a worker's grace for its process to end by itself."""
_OF_THE_PORT: Final = ("ports", "startupProbe", "readinessProbe", "livenessProbe")


def spans_nodes(cluster: ClusterSpec, role: Role) -> bool:
    return cluster.role(role).nodes_per_replica > 1


def worker_labels(cluster: str, role: Role) -> dict[str, str]:
    """What selects a role's workers, and no leader."""
    return {LABEL_CLUSTER: cluster_label(cluster), LABEL_WORKER: role.value}


def group_set(cluster: ClusterSpec, role: Role, leaders: Manifest, workers: Manifest, *, name: str, replicas: int) -> Manifest:
    """The LeaderWorkerSet of one revision, of these pod templates."""
    spec = {
        "replicas": replicas,
        "startupPolicy": "LeaderCreated",
        "rolloutStrategy": {"type": "RollingUpdate", "rollingUpdateConfiguration": {"maxUnavailable": 1, "maxSurge": 0}},
        "networkConfig": {"subdomainPolicy": "Shared"},
        "leaderWorkerTemplate": {
            "size": cluster.role(role).nodes_per_replica,
            "restartPolicy": "RecreateGroupOnPodRestart",
            "leaderTemplate": leaders,
            "workerTemplate": workers,
        },
    }
    return made(cluster, GROUP_API, GROUP_KIND, role, {"spec": spec}, name=name)


def workers_budget(cluster: ClusterSpec, role: Role, *, standing: int | None = None) -> Manifest:
    """Of the pods that the role's own budget does not select. `standing`: replicas."""
    workers = None if standing is None else standing * (cluster.role(role).nodes_per_replica - 1)
    budget = disruption_budget(cluster, role, worker_labels(cluster.name, role), standing=workers)
    budget["metadata"]["name"] = object_name(cluster.name, f"{role.value}-workers")
    return budget


def _check(cluster: ClusterSpec, role: Role) -> None:
    where = f"spec.{role.value}.nodesPerReplica"
    if cluster.engine.type is not EngineType.VLLM:
        raise SpecError(f"{where} must be 1 for engine.type {cluster.engine.type}; VLLM alone is rendered over several nodes")
    if cluster.router.type is RouterType.LLMD:
        raise SpecError(f"{where} must be 1 before router LLMD; set spec.router.type to VLLM for replicas over several nodes")
    for flag in (arg.split("=", 1)[0] for arg in cluster.engine.args):
        if flag in _OWN_FLAGS:
            raise SpecError(f"spec.engine.args must not set {flag}; it follows from nodesPerReplica")


def leader(pod: Manifest, cluster: ClusterSpec, role: Role) -> Manifest:
    """`pod`: the role's pod template as it is on one node, without the user's overlay. Raises SpecError."""
    _check(cluster, role)
    nodes = cluster.role(role).nodes_per_replica
    [container] = pod["spec"]["containers"]
    args = [*container["args"], "--nnodes", str(nodes), "--node-rank", "0", "--master-addr", _LEADER]
    return _with(pod, {**container, "args": args}, nodes)


def worker(pod: Manifest, cluster: ClusterSpec, role: Role) -> Manifest:
    """Of the same `pod`. It answers nobody, so nobody asks it. It goes when its leader has gone, whose requests it serves: it
    waits as long as that may take."""
    [container] = pod["spec"]["containers"]
    nodes = cluster.role(role).nodes_per_replica
    args = [*container["args"], "--nnodes", str(nodes), "--node-rank", _RANK, "--master-addr", _LEADER, "--headless"]
    kept = {key: value for key, value in container.items() if key not in _OF_THE_PORT}
    grace_s = pod["spec"]["terminationGracePeriodSeconds"]
    waits = {"preStop": {"sleep": {"seconds": max(1, grace_s - WORKER_LEAVES_S)}}}
    labels = worker_labels(cluster.name, role) | {LABEL_MANAGED_BY: MANAGED_BY}
    return _with(pod, {**kept, "args": args, "lifecycle": waits}, nodes, labels=labels)


def _with(pod: Manifest, container: dict[str, Any], nodes: int, **metadata: Any) -> Manifest:
    noted = {**pod["metadata"].get("annotations", {}), ANNOTATION_NODES: str(nodes)}
    return {
        **pod,
        "metadata": {**pod["metadata"], "annotations": noted, **metadata},
        "spec": {**pod["spec"], "containers": [container]},
    }
