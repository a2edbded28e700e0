"""The pod of one engine: its command line, where its weights come from, when it counts as well, and how it goes.

An engine that leaves is told by nobody that it shall: Kubernetes takes it out of the router's sight at once, then waits for its
preStop hook, and only then ends the process. So the hook is what lets requests end. An engine whose prompts others answer stays
for the lease of its KV caches besides, for decode fetches them after the prompt was answered.

Sources: vLLM's NixlConnector guide for flags and environment; vLLM 0.32, config/kv_transfer.py and the connector's
base_scheduler.py for policy and lease.
"""

from __future__ import annotations

import json
from itertools import combinations
from typing import Any, Final

from splitwatt_core.clusters import ClusterSpec, EngineType, Role, SpecError
from splitwatt_core.memory.pool import choice_of, refuse_tier_flag, with_tier
from splitwatt_core.names import GATE_POWER, GPU_RESOURCE, LABEL_LLMD_ROLE, LABEL_MANAGED_BY, MANAGED_BY
from splitwatt_core.rendering import sglang
from splitwatt_core.rendering.objects import Manifest, selector_labels
from splitwatt_core.rendering.vllm_flags import refuse_own

ENGINE_CONTAINER: Final = "engine"
PORT_HTTP: Final = "http"
PORT_KV: Final = "kv-side"
SHM_SIZE: Final = "16Gi"
"""Upper bound of /dev/shm, which tensor-parallel workers use; the container default of 64 MiB crashes them."""

PROBE_PATH: Final = "/health"
STARTUP_PERIOD_S: Final = 10
READY_PERIOD_S: Final = 5
LIVE_PERIOD_S: Final = 10
PROBE_TIMEOUT_S: Final = 5

LEAVE_S: Final = 5
"""Routers and endpoints have heard of a pod's going by then."""
KV_LEASE_S: Final = 30
"""NixlConnector's own: a prefill engine's KV caches may still be fetched for this long after its last answer."""
KV_LEASE_KEY: Final = "kv_lease_duration"
"""Where kvTransfer.extraConfig says another one, in seconds."""
DRAIN_S: Final = {Role.PREFILL: 60, Role.DECODE: 300, Role.MIXED: 300}
"""At most, from being told to go: the longest decode of the conversation trace takes under 50 s, of a long answer minutes."""
AFTER_DRAIN_S: Final = 15
"""For the process to end by itself."""
EMULATED_GRACE_S: Final = 60
"""The emulated engine ends its requests by itself, and no KV cache is fetched from it."""

DRAIN_SCRIPT: Final = """\
import sys, time, urllib.request
url, least_s, most_s = sys.argv[1], float(sys.argv[2]), float(sys.argv[3])
begun_s = time.monotonic()
def busy():
    try:
        page = urllib.request.urlopen(url, timeout=5).read().decode()
    except OSError:
        return False
    rows = [row for row in page.splitlines() if row.startswith(("vllm:num_requests_running", "vllm:num_requests_waiting"))]
    return any(float(row.rpartition(" ")[2]) > 0 for row in rows)
time.sleep(least_s)
while time.monotonic() - begun_s < most_s and busy():
    time.sleep(1)
"""
"""Until the engine has no request, within bounds. Python is there: the engine is made of it."""

_BUSY: Final = '"vllm:num_requests_running", "vllm:num_requests_waiting"'

MODEL_DIR: Final = "/models/served"
CACHE_DIR: Final = "/models/cache"

KV_ROLE: Final = {Role.PREFILL: "kv_producer", Role.DECODE: "kv_consumer", Role.MIXED: "kv_both"}
"""A mixed engine beside the two others reads prompts for decode engines and writes answers to what prefill engines read, as
its router says (llm-d takes it for both). Of an unsplit cluster it has no connector: nobody is there to hand a KV cache to, and
one registers the whole cache, wants a layout of its own and opens a port."""
VLLM_COMMAND: Final = ["vllm", "serve"]
"""Said outright: the image's entry point changed between releases."""


def pod_template(cluster: ClusterSpec, role: Role, *, image: str) -> Manifest:
    """`image`: the release's for this type of engine. Raises SpecError."""
    labels = selector_labels(cluster.name, role) | {LABEL_LLMD_ROLE: role.llmd, LABEL_MANAGED_BY: MANAGED_BY}
    volumes, mounts, env = _weights(cluster)
    shm = {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": SHM_SIZE}}
    spec: dict[str, Any] = {
        "schedulingGates": [{"name": GATE_POWER}],
        "containers": [_container(cluster, role, image=image, mounts=mounts, env=env)],
        "volumes": [shm, *volumes],
        "tolerations": [{"key": GPU_RESOURCE, "operator": "Exists", "effect": "NoSchedule"}],
        "terminationGracePeriodSeconds": _grace_s(cluster, role),
        "automountServiceAccountToken": False,
        # A Service named `vllm` would otherwise set VLLM_PORT, which the engine reads as its own setting.
        "enableServiceLinks": False,
        "securityContext": {"seccompProfile": {"type": "RuntimeDefault"}},
        **of_all_pods(cluster),
    }
    if selector := dict(cluster.role(role).node_selector):
        spec["nodeSelector"] = selector
    metadata: dict[str, Any] = {"labels": labels}
    if cluster.engine.type is EngineType.SGLANG and (noted := sglang.pod_annotations(cluster, role)):
        metadata["annotations"] = noted
    return {"metadata": metadata, "spec": spec}


def of_all_pods(cluster: ClusterSpec) -> dict[str, Any]:
    """What the cluster asks of its engines' and its router's pods alike."""
    asked: dict[str, Any] = {}
    if cluster.priority_class is not None:
        asked["priorityClassName"] = cluster.priority_class
    if cluster.image_pull_secrets:
        asked["imagePullSecrets"] = [{"name": name} for name in cluster.image_pull_secrets]
    return asked


def _container(
    cluster: ClusterSpec, role: Role, *, image: str, mounts: list[dict[str, Any]], env: list[dict[str, Any]]
) -> dict[str, Any]:
    gpus, probes = str(cluster.role(role).gpus_per_replica), cluster.engine.probes
    container: dict[str, Any] = {
        "name": ENGINE_CONTAINER,
        "image": cluster.engine.image or image,
        "args": engine_args(cluster, role),
        "env": [*(_side_channel(cluster) if cluster.split else ()), *env],
        "ports": [{"name": name, "containerPort": port, "protocol": "TCP"} for name, port in engine_ports(cluster).items()],
        "resources": {"requests": {GPU_RESOURCE: gpus}, "limits": {GPU_RESOURCE: gpus}},
        "startupProbe": _probe(STARTUP_PERIOD_S, probes.startup_s),
        "readinessProbe": _probe(READY_PERIOD_S, probes.unready_s),
        "livenessProbe": _probe(LIVE_PERIOD_S, probes.restart_s),
        "volumeMounts": [{"name": "shm", "mountPath": "/dev/shm"}, *mounts],
        "lifecycle": {"preStop": _pre_stop(cluster, role)},
        "securityContext": {"allowPrivilegeEscalation": False},
    }
    if cluster.engine.type is EngineType.VLLM:
        container["command"] = list(VLLM_COMMAND)
    if cluster.engine.type is EngineType.SGLANG:
        container["command"] = list(sglang.COMMAND)
        container["env"] = [*sglang.ENV, *env]
    return container


def _side_channel(cluster: ClusterSpec) -> list[dict[str, Any]]:
    return [
        {"name": "VLLM_NIXL_SIDE_CHANNEL_HOST", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
        {"name": "VLLM_NIXL_SIDE_CHANNEL_PORT", "value": str(cluster.kv_transfer.side_channel_port)},
    ]


def engine_ports(cluster: ClusterSpec) -> dict[str, int]:
    """By name. An engine without a connector has no side channel."""
    side = {PORT_KV: cluster.kv_transfer.side_channel_port} if cluster.split else {}
    return {PORT_HTTP: cluster.engine.port, **side}


# --------------------------------------------------------------------------------------------------------------- weights


def _weights(cluster: ClusterSpec) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[dict[str, Any]]]:
    """(volumes, mounts, environment). Emulated engines have no weights."""
    source = cluster.source
    volumes: list[dict[str, Any]] = []
    mounts: list[dict[str, Any]] = []
    env: list[dict[str, Any]] = []
    if cluster.engine.type is EngineType.EMULATED:
        return volumes, mounts, env
    if source.token_secret is not None:
        name, key = source.token_secret
        env.append({"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": name, "key": key}}})
    if source.cache_claim is not None:
        env.append({"name": "HF_HOME", "value": CACHE_DIR})
        volumes.append({"name": "cache", "persistentVolumeClaim": {"claimName": source.cache_claim}})
        mounts.append({"name": "cache", "mountPath": CACHE_DIR})
    if source.claim is not None:
        volumes.append({"name": "model", "persistentVolumeClaim": {"claimName": source.claim, "readOnly": True}})
    if source.image is not None:
        volumes.append({"name": "model", "image": {"reference": source.image, "pullPolicy": "IfNotPresent"}})
    if source.claim is not None or source.image is not None:
        mounts.append({"name": "model", "mountPath": MODEL_DIR, "readOnly": True})
    return volumes, mounts, env


def _model(cluster: ClusterSpec) -> str:
    """What the engine is told to load: the model's own name where a hub has it."""
    source = cluster.source
    if cluster.engine.type is EngineType.EMULATED:
        return cluster.model
    if source.claim is not None or source.image is not None:
        return f"{MODEL_DIR}/{(source.path or '').strip('/')}".rstrip("/")
    return source.path or cluster.model


# ------------------------------------------------------------------------------------------------------------ the process


def engine_args(cluster: ClusterSpec, role: Role) -> list[str]:
    """The engine's command line. The emulated engine takes the same one.

    Raises SpecError when the user's arguments name a flag that is rendered, and for groups whose KV caches do not fit.
    """
    for one, other in combinations(cluster.roles, 2):
        gpus, others = cluster.role(one).gpus, cluster.role(other).gpus
        if max(gpus, others) % min(gpus, others):
            nodes = ", over all nodes of a replica" if any(cluster.role(r).nodes_per_replica > 1 for r in (one, other)) else ""
            raise SpecError(
                f"spec.{one}.gpusPerReplica {gpus} and spec.{other}.gpusPerReplica {others} must divide one another{nodes}: a "
                "GPU fetches the KV cache of whole attention heads"
            )
    model = _model(cluster)
    if cluster.engine.type is EngineType.SGLANG:
        return sglang.engine_args(cluster, role, model)
    given = [arg.split("=", 1)[0] for arg in cluster.engine.args]
    refuse_own(cluster.engine.args)
    if cluster.engine.type is EngineType.VLLM:
        refuse_tier_flag(cluster)
    memory = choice_of(cluster)
    named = any(flag.replace("_", "-") == "--served-model-name" for flag in given)
    return [
        model,
        *(() if named or model == cluster.model else ("--served-model-name", cluster.model)),
        "--port",
        str(cluster.engine.port),
        "--tensor-parallel-size",
        str(cluster.role(role).gpus),
        *(("--kv-transfer-config", _transfer(cluster, role)) if cluster.split else ()),
        *(() if memory is None else memory.args(role)),
        *cluster.engine.args,
    ]


def _transfer(cluster: ClusterSpec, role: Role) -> str:
    transfer: dict[str, Any] = {"kv_connector": cluster.kv_transfer.connector, "kv_role": KV_ROLE[role]}
    if role is not Role.PREFILL:
        transfer["kv_load_failure_policy"] = "recompute" if cluster.kv_transfer.recompute else "fail"
    if cluster.kv_transfer.extra_config:
        transfer["kv_connector_extra_config"] = dict(cluster.kv_transfer.extra_config)
    return json.dumps(with_tier(transfer, choice_of(cluster), role), sort_keys=True, separators=(",", ":"))


def _probe(period_s: int, within_s: int) -> dict[str, Any]:
    """Failed when nothing was well for `within_s`."""
    return {
        "httpGet": {"path": PROBE_PATH, "port": PORT_HTTP},
        "periodSeconds": period_s,
        "failureThreshold": max(1, -(-within_s // period_s)),
        "timeoutSeconds": PROBE_TIMEOUT_S,
    }


def _kv_lease_s(cluster: ClusterSpec) -> int:
    given = cluster.kv_transfer.extra_config.get(KV_LEASE_KEY)
    return given if isinstance(given, int) and given > 0 else KV_LEASE_S


def _drain_s(cluster: ClusterSpec, role: Role) -> int:
    asked_s = cluster.role(role).drain_s or DRAIN_S[role]
    return max(asked_s, _kv_lease_s(cluster)) if _fetched_from(cluster, role) else asked_s


def _fetched_from(cluster: ClusterSpec, role: Role) -> bool:
    """Whether its KV caches may still be fetched after its answer."""
    return cluster.split and role is not Role.DECODE


def _grace_s(cluster: ClusterSpec, role: Role) -> int:
    if cluster.engine.type is EngineType.EMULATED:
        return LEAVE_S + EMULATED_GRACE_S
    return _drain_s(cluster, role) + AFTER_DRAIN_S


def _pre_stop(cluster: ClusterSpec, role: Role) -> dict[str, Any]:
    if cluster.engine.type is EngineType.EMULATED:
        return {"sleep": {"seconds": LEAVE_S}}
    least_s = _kv_lease_s(cluster) if _fetched_from(cluster, role) else LEAVE_S
    page = f"http://localhost:{cluster.engine.port}/metrics"
    script = (
        DRAIN_SCRIPT
        if cluster.engine.type is EngineType.VLLM
        else DRAIN_SCRIPT.replace(_BUSY, json.dumps(sglang.BUSY_METRICS)[1:-1])
    )
    return {"exec": {"command": ["python3", "-c", script, page, str(least_s), str(_drain_s(cluster, role))]}}
