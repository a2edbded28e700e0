"""What vLLM's NIXL connector counts, of the lab's engines: KV caches that came, and where prompt tokens are from.

Only the lab's own page shows them. An engine in a pod shows none: its KV caches are words on a wire, and what proves of a real
cluster that they move (`splitwatt_core.serving`) shall not be told so by an emulation.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from splitwatt_core import names

from splitwatt_twin.stats import EngineStats

KV_FETCH: Final = "vllm:num_requests_kv_fetch_by_stage"
STAGES: Final = ("waiting_to_start", "in_progress", "completed_waiting")


@dataclass(frozen=True, slots=True)
class TransferReading:
    """`coming`: KV caches on their way to this engine; `fetches`: it gets them from others at all."""

    labels: Sequence[str]
    stats: EngineStats
    coming: int
    fetches: bool


def transfer_metrics(readings: Sequence[TransferReading], *, labels: Sequence[str]) -> Iterable[Metric]:
    """`labels` are the names of what each reading gives the values of. A hand-off of the lab begins at once and never fails."""
    moved = HistogramMetricFamily(names.M_VLLM_NIXL_BYTES, "Bytes per KV cache transfer.", labels=labels)
    failed = CounterMetricFamily(names.M_VLLM_NIXL_FAILED, "KV cache transfers that failed.", labels=labels)
    sources = CounterMetricFamily(
        names.M_VLLM_PROMPT_BY_SOURCE, "Prompt tokens by source.", labels=[*labels, names.L_SOURCE]
    )  # fmt: skip
    stages = GaugeMetricFamily(KV_FETCH, "Requests whose KV cache is fetched.", labels=[*labels, "stage"])
    for r in readings:
        computed = 0 if r.fetches else r.stats.prompt_tokens
        for source, tokens in (("local_compute", computed), ("local_cache_hit", 0), ("external_kv_transfer", r.stats.kv_tokens)):
            sources.add_metric([*r.labels, source], tokens)
        moved.add_metric(r.labels, buckets=r.stats.kv_bytes.cumulative(), sum_value=r.stats.kv_bytes.total)
        failed.add_metric(r.labels, 0)
        for stage in STAGES if r.fetches else ():
            stages.add_metric([*r.labels, stage], r.coming if stage == "in_progress" else 0)
    yield from (moved, failed, sources, stages)
