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
    MemoryExpansionSpec,
    ModelSource,
    ProbeSpec,
    RoleSpec,
    RouterSpec,
    SloSpec,
)

from splitwatt_api.inference_cluster import DecodePool, InferenceCluster, OnFailure, PriorityWord, RolePool
from splitwatt_api.memory_fields import LossyKvCache
from splitwatt_api.serving_fields import Router, WeightsSource

PRIORITY: Final = {PriorityWord.HIGH: PRIORITY_HIGH, PriorityWord.LOW: PRIORITY_LOW}


def cluster_from_wire(raw: Mapping[str, Any]) -> ClusterSpec:
    """An InferenceCluster as the API server gives it, but its status. Raises pydantic.ValidationError, or core's SpecError."""
    return cluster_to_core(InferenceCluster.from_wire({**raw, "status": None}, lenient=True))


def priority_to_core(said: PriorityWord | int) -> int:
    return PRIORITY[said] if isinstance(said, PriorityWord) else said


def cluster_to_core(cluster: InferenceCluster) -> ClusterSpec:
    spec, engine, kv = cluster.spec, cluster.spec.engine, cluster.spec.kv_transfer
    return ClusterSpec(
        namespace=cluster.metadata.namespace or "",
        name=cluster.metadata.name,
        uid=cluster.metadata.uid,
        generation=cluster.metadata.generation,
        model=spec.model.name,
        engine=EngineSpec(
            type=engine.type,
            image=engine.image,
            port=engine.port,
            args=tuple(engine.args),
            probes=ProbeSpec(
                startup_s=engine.probes.startup_seconds,
                unready_s=engine.probes.unready_seconds,
                restart_s=engine.probes.restart_seconds,
            ),
        ),
        prefill=None if spec.prefill is None else _role(spec.prefill),
        decode=None if spec.decode is None else _role(spec.decode),
        mixed=None if spec.mixed is None else _role(spec.mixed),
        priority=priority_to_core(spec.priority),
        slo=SloSpec(ttft_p99_ms=spec.slo.ttft_p99_milliseconds, tbt_p99_ms=spec.slo.tbt_p99_milliseconds),
        kv_transfer=KvTransferSpec(
            connector=kv.connector,
            side_channel_port=kv.side_channel_port,
            extra_config=dict(kv.extra_config or {}),
            recompute=kv.on_failure is OnFailure.RECOMPUTE,
        ),
        router=_router(spec.router),
        source=_source(spec.model.source),
        priority_class=spec.priority_class_name,
        image_pull_secrets=tuple(secret.name for secret in spec.image_pull_secrets),
    )


def _source(source: WeightsSource | None) -> ModelSource:
    if source is None:
        return ModelSource()
    hub, token = source.hub, None if source.hub is None else source.hub.token_secret
    below = source.claim or source.image
    return ModelSource(
        token_secret=None if token is None else (token.name, token.key),
        cache_claim=None if hub is None else hub.cache_claim,
        claim=None if source.claim is None else source.claim.name,
        image=None if source.image is None else source.image.reference,
        path=source.path if below is None else below.path,
    )


def _router(router: Router) -> RouterSpec:
    return RouterSpec(
        type=router.type,
        image=router.image,
        replicas=router.replicas,
        args=tuple(router.args),
        resources={} if router.resources is None else router.resources.to_wire(),
        metrics_port=router.metrics_port,
        template={} if router.template is None else router.template.to_wire(),
    )


def _memory(pool: RolePool) -> MemoryExpansionSpec | None:
    asked = pool.memory_expansion if isinstance(pool, DecodePool) else None
    if asked is None:
        return None
    return MemoryExpansionSpec(
        gpu=asked.gpu,
        gpu_bytes=None if asked.gpu_memory_gibibytes is None else asked.gpu_memory_gibibytes * 2**30,
        context_tokens=asked.context_tokens,
        lossy_kv=asked.lossy_kv_cache is LossyKvCache.ALLOWED,
        host_weights_bytes=asked.host_weights_gibibytes * 2**30,
        kv_tier_bytes=asked.kv_tier_gibibytes * 2**30,
    )


def _role(pool: RolePool) -> RoleSpec:
    return RoleSpec(
        replicas=pool.replicas,
        gpus_per_replica=pool.gpus_per_replica,
        nodes_per_replica=pool.nodes_per_replica,
        node_selector=dict(pool.node_selector),
        power_ceiling_w=pool.power_ceiling_watts,
        drain_s=pool.drain_seconds,
        memory_expansion=_memory(pool),
        template={} if pool.template is None else pool.template.to_wire(),
    )
