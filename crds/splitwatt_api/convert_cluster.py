"""InferenceCluster -> the core's `ClusterSpec`, every default filled in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from splitwatt_core.clusters import (
    PRIORITY_HIGH,
    PRIORITY_LOW,
    ClusterSpec,
    EngineSpec,
    KvTransferSpec,
    RoleSpec,
    RouterSpec,
    SloSpec,
)

from splitwatt_api.inference_cluster import InferenceCluster, PriorityWord, RolePool, Router

PRIORITY: Final = {PriorityWord.HIGH: PRIORITY_HIGH, PriorityWord.LOW: PRIORITY_LOW}


def cluster_from_wire(raw: Mapping[str, Any]) -> ClusterSpec:
    """An InferenceCluster as the API server gives it. Raises pydantic.ValidationError, or core's SpecError."""
    return cluster_to_core(InferenceCluster.from_wire(raw, lenient=True))


def cluster_to_core(cluster: InferenceCluster) -> ClusterSpec:
    spec, engine, kv = cluster.spec, cluster.spec.engine, cluster.spec.kv_transfer
    return ClusterSpec(
        namespace=cluster.metadata.namespace or "",
        name=cluster.metadata.name,
        uid=cluster.metadata.uid,
        generation=cluster.metadata.generation,
        model=spec.model.name,
        engine=EngineSpec(type=engine.type, image=engine.image, port=engine.port, args=tuple(engine.args)),
        prefill=_role(spec.prefill),
        decode=_role(spec.decode),
        priority=PRIORITY[spec.priority] if isinstance(spec.priority, PriorityWord) else spec.priority,
        slo=SloSpec(ttft_p99_ms=spec.slo.ttft_p99_milliseconds, tbt_p99_ms=spec.slo.tbt_p99_milliseconds),
        kv_transfer=KvTransferSpec(
            connector=kv.connector,
            side_channel_port=kv.side_channel_port,
            extra_config=dict(kv.extra_config or {}),
        ),
        router=_router(spec.router),
    )


def _router(router: Router) -> RouterSpec:
    return RouterSpec(
        type=router.type,
        image=router.image,
        replicas=router.replicas,
        args=tuple(router.args),
        resources={} if router.resources is None else router.resources.to_wire(),
        metrics_port=router.metrics_port,
    )


def _role(pool: RolePool) -> RoleSpec:
    return RoleSpec(
        replicas=pool.replicas,
        gpus_per_replica=pool.gpus_per_replica,
        node_selector=dict(pool.node_selector),
        power_ceiling_w=pool.power_ceiling_watts,
        template={} if pool.template is None else pool.template.to_wire(),
    )
