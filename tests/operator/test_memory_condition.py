"""MemoryExpanded: what a decode pool's memoryExpansion came to, from the API object on."""

from __future__ import annotations

from typing import Any

import pytest
from splitwatt_api.convert_cluster import cluster_from_wire
from splitwatt_operator.serving.memory import memory_condition


def wire(asked: dict[str, Any] | None, *args: str) -> dict[str, Any]:
    pool: dict[str, Any] = {"replicas": 1, "gpusPerReplica": 1}
    return {
        "apiVersion": "splitwatt.io/v1alpha1",
        "kind": "InferenceCluster",
        "metadata": {"name": "chat", "namespace": "serving", "uid": "u", "generation": 1},
        "spec": {
            "model": {"name": "meta-llama/Llama-3.1-8B-Instruct"},
            "engine": {"type": "VLLM", "args": list(args)},
            "prefill": pool,
            "decode": pool if asked is None else {**pool, "memoryExpansion": asked},
        },
    }


BASE: dict[str, Any] = {"gpu": "H100-SXM", "contextTokens": 2048}
GH200 = {"gpu": "GH200", "gpuMemoryGibibytes": 89, "contextTokens": 2048}


@pytest.mark.parametrize(("asked", "status", "reason"), [
    (BASE, False, "NothingPays"),
    ({**BASE, "lossyKvCache": "Allowed"}, True, "Fp8KvCache"),
    ({**BASE, "kvTierGibibytes": 100}, True, "KvTierOnHost"),
    ({**GH200, "hostWeightsGibibytes": 32}, True, "WeightsFetchedAhead"),
    ({**BASE, "gpu": "H9000"}, False, "Refused"),
])  # fmt: skip
def test_every_outcome_is_said(asked: dict[str, Any], status: bool, reason: str) -> None:
    found = memory_condition(cluster_from_wire(wire(asked)))
    assert found is not None and (found.type, found.status, found.reason) == ("MemoryExpanded", status, reason)
    assert found.message


def test_nothing_is_said_where_nothing_was_asked() -> None:
    assert memory_condition(cluster_from_wire(wire(None))) is None
