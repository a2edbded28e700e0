"""Of which clusters a probe can prove that KV caches move."""

from __future__ import annotations

from typing import Final

from splitwatt_core.clusters import PAIR, ClusterSpec, EngineType, RouterType

COUNTED_CONNECTORS: Final = ("NixlConnector",)
"""Those of vLLM's connectors that count what they move."""


def why_not(cluster: ClusterSpec) -> tuple[str, str] | None:
    """(reason, sentence) where nothing can be proven, and nothing need be; None where a proof is owed."""
    if not cluster.split:
        return "Unsplit", "Mixed replicas read prompts and write answers by themselves: no KV cache moves."
    if cluster.router.type is RouterType.NONE:
        return "NoRouter", "spec.router.type is None: no KV cache is asked for, and decode pods read the prompts themselves."
    if cluster.engine.type is EngineType.EMULATED:
        return "Emulated", "Emulated engines move no KV cache."
    if cluster.engine.type is EngineType.SGLANG:
        return (
            "NotCounted",
            "No counter of SGLang is known that tells a KV cache that came from a prompt that decode read itself.",
        )
    if cluster.kv_transfer.connector not in COUNTED_CONNECTORS:
        told = f"{cluster.kv_transfer.connector} does not count what it moves; {', '.join(COUNTED_CONNECTORS)} does."
        return "NotCounted", told
    if not all(cluster.role(role).replicas for role in PAIR):
        return "ScaledToZero", "A KV cache moves between a prefill and a decode replica; one of the roles has none."
    return None
