"""Latencies as the operator reads them, from a real Prometheus that scrapes an engine's histogram."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import astuple
from pathlib import Path

import pytest
from splitwatt_core.clusters import ClusterName, LabelOwners, cluster_label
from splitwatt_lab.processes import ProcessGroup
from splitwatt_lab.prometheus import PrometheusServer
from splitwatt_operator.serving.slo import Latency, SloMeter
from splitwatt_operator.telemetry.prometheus import PrometheusClient, Sample
from support.exporter import Exporter

PATIENCE_S = 60.0
CLUSTER = "chat-" + "x" * 95
"""Its label is not its name."""
WHOLE = "whole"
"""One that is not split."""
BUCKETS_S = (0.1, 0.2, 0.6, 1.0)
TTFT_MS, TBT_MS = 596, 99
"""Prometheus interpolates within a bucket: 99 % of the way through (0.2, 0.6] and (0, 0.1]."""
WHOLE_TTFT_MS, WHOLE_TBT_MS = 996, 199
"""And through (0.6, 1.0] and (0.1, 0.2]."""


class Engines(Exporter):
    """Engines that finish requests all the time: every TTFT lies in (0.2, 0.6], every TBT in (0, 0.1], and of one that is not
    split in the buckets above. `kind`: as its metrics begin; vLLM and SGLang have the same names behind it."""

    def __init__(self, kind: str) -> None:
        self._kind, started_s = kind, time.monotonic()
        super().__init__(lambda: self.text(10 * (time.monotonic() - started_s)))

    def text(self, count: float) -> str:
        rows = []
        for metric, cluster, role, upper_s in (
            (f"{self._kind}:time_to_first_token_seconds", CLUSTER, "prefill", 0.6),
            (f"{self._kind}:time_to_first_token_seconds", WHOLE, "mixed", 1.0),
            (f"{self._kind}:inter_token_latency_seconds", CLUSTER, "decode", 0.1),
            (f"{self._kind}:inter_token_latency_seconds", WHOLE, "mixed", 0.2),
        ):
            labels = f'namespace="s",cluster="{cluster_label(cluster)}",role="{role}",pod="{cluster}-{role}-0"'
            if role != "mixed":
                rows.append(f"# TYPE {metric} histogram")
            for le in (*BUCKETS_S, "+Inf"):
                below = count if float(le) >= upper_s else 0.0
                rows.append(f'{metric}_bucket{{{labels},le="{le}"}} {below}')
            rows += [f"{metric}_count{{{labels}}} {count}", f"{metric}_sum{{{labels}}} {count * upper_s}"]
        return "\n".join([*rows, ""])


@pytest.fixture(params=["vllm", "sglang"])
def engines(request: pytest.FixtureRequest) -> Iterator[Engines]:
    made = Engines(request.param)
    yield made
    made.close()


async def test_latencies_are_read_by_cluster_and_forgotten_when_nobody_answers(engines: Engines, tmp_path: Path) -> None:
    changed: list[ClusterName] = []
    chat = ClusterName("s", CLUSTER)
    whole = ClusterName("s", WHOLE)
    owners = LabelOwners({chat: 0.0, whole: 0.0})
    with ProcessGroup(tmp_path / "processes") as group:
        server = PrometheusServer(group, tmp_path / "prometheus")
        server.set_targets("twin", {engines.address: {}})
        server.start()
        async with PrometheusClient(server.url, timeout_s=5.0) as client:
            meter = SloMeter(client, lambda: owners, changed.append)
            await meter.read()
            async with asyncio.timeout(PATIENCE_S):
                while None in (*astuple(meter.latencies.get(chat, Latency())), *astuple(meter.latencies.get(whole, Latency()))):
                    await asyncio.sleep(0.2)
                    await meter.read()
            assert meter.latencies == {chat: Latency(TTFT_MS, TBT_MS), whole: Latency(WHOLE_TTFT_MS, WHOLE_TBT_MS)}
            assert set(changed) == {chat, whole}
            group.close()
            await meter.read()
            assert meter.latencies == {}


class Telling:
    """A Prometheus whose every 99th percentile is this many seconds."""

    matchers = ()

    def __init__(self, seconds: object) -> None:
        self._seconds = seconds

    async def vector(self, query: str) -> list[Sample]:
        label = {"namespace": "s", "cluster": cluster_label(CLUSTER)}
        return [Sample(label, self._seconds)]  # type: ignore[arg-type]


@pytest.mark.parametrize(("seconds", "told_ms"), [(0.25, 250), (0.0, 0), (1e306, None), (-0.5, None), (1e9, None), ("x", None)])
async def test_a_latency_that_cannot_be_is_none_and_ends_nothing(seconds: object, told_ms: int | None) -> None:
    """Buckets are the engines' to choose, and whoever has the label is an engine."""
    chat = ClusterName("s", CLUSTER)
    meter = SloMeter(Telling(seconds), lambda: LabelOwners({chat: 0.0}), lambda _: None)  # type: ignore[arg-type]
    await meter.read()
    assert meter.latencies.get(chat, Latency()) == Latency(told_ms, told_ms)
