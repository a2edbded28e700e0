"""/metrics of the lab: vLLM's names for every emulated replica, one meter per rack, and how the load fares.

Values are collected when Prometheus asks, from plain counters; nothing is kept twice. A replica's series end with its
pod, as they would if Prometheus had scraped the pod itself.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from splitwatt_core import names

from splitwatt_twin.cluster import Cluster
from splitwatt_twin.engine import DecodeEngine, PrefillEngine
from splitwatt_twin.meter_faults import MeterSeries
from splitwatt_twin.mixed import MixedEngine
from splitwatt_twin.requests import ClusterKey, PodKey
from splitwatt_twin.stats import EngineStats, Histogram
from splitwatt_twin.transfers import TransferReading, transfer_metrics

_POD_LABELS = [names.L_NAMESPACE, names.L_POD, names.L_CLUSTER, names.L_ROLE, names.L_MODEL_NAME]
_CLUSTER_LABELS = [names.L_NAMESPACE, names.L_CLUSTER]


@dataclass(frozen=True, slots=True)
class ReplicaView:
    """One running emulated engine and the pod it belongs to."""

    pod: PodKey
    cluster: ClusterKey
    role: str
    model: str
    engine: PrefillEngine | DecodeEngine | MixedEngine

    @property
    def labels(self) -> list[str]:
        return [*self.pod, self.cluster.name, self.role, self.model]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """`meters`: those that show something. `load_s` None: no load yet."""

    replicas: Sequence[ReplicaView]
    clusters: Collection[Cluster]
    meters: Sequence[MeterSeries]
    load_s: float | None
    late_s: float


class TwinCollector(Collector):
    def __init__(self, snapshot: Callable[[], Snapshot]) -> None:
        self._snapshot = snapshot

    def collect(self) -> Iterable[Metric]:
        now = self._snapshot()
        yield from engine_metrics([_reading(r) for r in now.replicas], labels=_POD_LABELS, finished_reason="stop")
        yield from transfer_metrics([_transfers(r, now.clusters) for r in now.replicas], labels=_POD_LABELS)
        yield from _clusters(now.clusters)
        meter = GaugeMetricFamily(names.M_RACK_POWER_WATTS, "Power at the rack's meter.")
        for shown in now.meters:
            meter.add_sample(names.M_RACK_POWER_WATTS, dict(shown.labels), shown.power_w, timestamp=shown.at_s)
        yield meter
        if now.load_s is not None:
            yield GaugeMetricFamily(names.M_TWIN_LOAD_SECONDS, "Seconds since the load began.", value=now.load_s)
        yield GaugeMetricFamily(
            names.M_TWIN_LATE_SECONDS, "Longest delay of an event behind its virtual time, last 10 s.", value=now.late_s
        )


@dataclass(frozen=True, slots=True)
class EngineReading:
    """One engine as vLLM's metrics show it. TTFT is each engine's own: at prefill until the prompt is read, at decode from a
    request's coming, the KV cache's way included, to the end of its first step, at mixed engines until
    the prompt is read. The gaps between tokens are of those that write answers."""

    labels: Sequence[str]
    running: int
    waiting: int
    kv_usage: float
    stats: EngineStats
    decodes: bool


def _reading(view: ReplicaView) -> EngineReading:
    engine = view.engine
    return EngineReading(
        labels=view.labels, running=engine.running, waiting=engine.waiting, stats=engine.stats,
        kv_usage=0.0 if isinstance(engine, PrefillEngine) else engine.kv_usage,
        decodes=not isinstance(engine, PrefillEngine),
    )  # fmt: skip


def _transfers(view: ReplicaView, clusters: Iterable[Cluster]) -> TransferReading:
    engine = view.engine
    coming = sum(c.coming(engine) for c in clusters if isinstance(engine, DecodeEngine) and c.key == view.cluster)
    return TransferReading(labels=view.labels, stats=engine.stats, coming=coming, fetches=isinstance(engine, DecodeEngine))


def engine_metrics(readings: Sequence[EngineReading], *, labels: Sequence[str], finished_reason: str) -> Iterable[Metric]:
    """vLLM's metrics of these engines; `labels` are the names of what each reading gives the values of."""
    running = GaugeMetricFamily(names.M_VLLM_RUNNING, "Requests in model execution batches.", labels=labels)
    waiting = GaugeMetricFamily(names.M_VLLM_WAITING, "Requests waiting to be processed.", labels=labels)
    kv_usage = GaugeMetricFamily(names.M_VLLM_KV_USAGE, "KV cache usage, 1 is all.", labels=labels)
    for r in readings:
        running.add_metric(r.labels, r.running)
        waiting.add_metric(r.labels, r.waiting)
        kv_usage.add_metric(r.labels, r.kv_usage)
    yield from (running, waiting, kv_usage)

    counters: tuple[tuple[str, str, Callable[[EngineStats], int]], ...] = (
        (names.M_VLLM_PROMPT_TOKENS, "Prefill tokens processed.", lambda s: s.prompt_tokens),
        (names.M_VLLM_GENERATION_TOKENS, "Generation tokens processed.", lambda s: s.generation_tokens),
    )
    for name, help_text, value in counters:
        counter = CounterMetricFamily(name, help_text, labels=labels)
        for r in readings:
            counter.add_metric(r.labels, value(r.stats))
        yield counter
    success = CounterMetricFamily(names.M_VLLM_SUCCESS, "Requests finished.", labels=[*labels, "finished_reason"])
    for r in readings:
        success.add_metric([*r.labels, finished_reason], r.stats.successes)
    yield success

    decodes = [r for r in readings if r.decodes]
    histograms: tuple[tuple[str, str, Sequence[EngineReading], Callable[[EngineStats], Histogram]], ...] = (
        (names.M_VLLM_TTFT, "Time to first token.", readings, lambda s: s.ttft),
        (names.M_VLLM_TBT, "Time between tokens.", decodes, lambda s: s.tbt),
        (names.M_VLLM_E2E, "End-to-end request latency.", decodes, lambda s: s.e2e),
    )
    for name, help_text, shown, histogram in histograms:
        family = HistogramMetricFamily(name, help_text, labels=labels)
        for r in shown:
            h = histogram(r.stats)
            family.add_metric(r.labels, buckets=h.cumulative(), sum_value=h.total)
        yield family


def _clusters(clusters: Iterable[Cluster]) -> Iterable[Metric]:
    arrived = CounterMetricFamily(names.M_TWIN_ARRIVED, "Requests that arrived.", labels=_CLUSTER_LABELS)
    requeued = CounterMetricFamily(names.M_TWIN_REQUEUED, "Requests that lost their replica.", labels=_CLUSTER_LABELS)
    waiting = GaugeMetricFamily(names.M_TWIN_WAITING, "Requests with no replica to go to.", labels=_CLUSTER_LABELS)
    dropped = CounterMetricFamily(names.M_TWIN_DROPPED, "Requests that were refused.", labels=[*_CLUSTER_LABELS, names.L_REASON])
    for c in clusters:
        labels = [c.key.namespace, c.key.name]
        arrived.add_metric(labels, c.counts.arrived)
        requeued.add_metric(labels, c.counts.requeued)
        waiting.add_metric(labels, len(c.waiting) + len(c.waiting_decode))
        for reason, count in c.counts.dropped.items():
            dropped.add_metric([*labels, reason.value], count)
    yield from (arrived, requeued, waiting, dropped)
