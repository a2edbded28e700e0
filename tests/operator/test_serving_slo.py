"""Latencies as the operator reads them, from a real Prometheus that scrapes an engine's histogram."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from splitwatt_core.clusters import (
    PAIR,
    ClusterName,
    ClusterSpec,
    EngineSpec,
    EngineType,
    LabelOwners,
    Role,
    RoleSpec,
    cluster_label,
)
from splitwatt_core.serving.latency import LEVELS, Ttft
from splitwatt_lab.processes import ProcessGroup
from splitwatt_lab.prometheus import PrometheusServer
from splitwatt_operator.serving.slo import LEVEL, Latency, SloMeter
from splitwatt_operator.telemetry.prometheus import PrometheusClient, Sample
from support.exporter import Exporter

PATIENCE_S = 60.0
CLUSTER = "chat-" + "x" * 95
"""Its label is not its name."""
BUCKETS_S = (0.1, 0.2, 0.6, 1.0)
TBT_MS = 99
"""Prometheus interpolates within a bucket: 99 % of the way through (0, 0.1]."""
WHOLE = "whole"
"""One that is not split."""
SPEC = ClusterSpec(
    namespace="s", name=CLUSTER, uid="u", generation=1, model="m", engine=EngineSpec(EngineType.VLLM),
    prefill=RoleSpec(1, 1), decode=RoleSpec(1, 1),
)  # fmt: skip


class Engines(Exporter):
    """Two engines that finish requests all the time: every TTFT lies in (0.2, 0.6] at prefill and in (0.6, 1] at decode, every
    TBT in (0, 0.1]. And a mixed one of another cluster, as quick as prefill and as decode. `kind`: as its metrics begin; vLLM and
    SGLang have the same names behind it. `labelled` False: with the labels alone that a scrape of pods gives by itself."""

    def __init__(self, kind: str, *, labelled: bool) -> None:
        self._kind, self._labelled = kind, labelled
        started_s = time.monotonic()
        super().__init__(lambda: self.text(10 * (time.monotonic() - started_s)))

    @property
    def cluster(self) -> str:
        return CLUSTER if self._labelled else "chat"

    def text(self, count: float) -> str:
        rows = []
        ttft, tbt = f"{self._kind}:time_to_first_token_seconds", f"{self._kind}:inter_token_latency_seconds"
        named = set()
        for metric, cluster, role, upper_s in (
            (ttft, self.cluster, "prefill", 0.6),
            (ttft, self.cluster, "decode", 1.0),
            (ttft, WHOLE, "mixed", 0.6),
            (tbt, self.cluster, "decode", 0.1),
            (tbt, WHOLE, "mixed", 0.1),
        ):
            revision = "" if role == "prefill" else "-1a2b3c4d"
            labels = f'namespace="s",model_name="m",engine="0",pod="{cluster}-{role}{revision}-6d5f8c7b9-x2x4z"'
            if self._labelled:
                labels += f',cluster="{cluster_label(cluster)}",role="{role}"'
            if metric not in named:
                named.add(metric)
                rows.append(f"# TYPE {metric} histogram")
            for le in (*BUCKETS_S, "+Inf"):
                below = count if float(le) >= upper_s else 0.0
                rows.append(f'{metric}_bucket{{{labels},le="{le}"}} {below}')
            rows += [f"{metric}_count{{{labels}}} {count}", f"{metric}_sum{{{labels}}} {count * upper_s}"]
        return "\n".join([*rows, ""])


@pytest.fixture(params=[("vllm", True), ("vllm", False), ("sglang", True)], ids=["labelled", "bare", "sglang"])
def engines(request: pytest.FixtureRequest) -> Iterator[Engines]:
    kind, labelled = request.param
    made = Engines(kind, labelled=labelled)
    yield made
    made.close()


async def test_latencies_are_read_by_cluster_and_forgotten_when_nobody_answers(engines: Engines, tmp_path: Path) -> None:
    changed: list[ClusterName] = []
    chat = ClusterName("s", engines.cluster)
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
                while not (_all_of(PAIR, meter.latencies.get(chat)) and _all_of((Role.MIXED,), meter.latencies.get(whole))):
                    await asyncio.sleep(0.2)
                    await meter.read()
            assert set(meter.latencies) == {chat, whole}
            latency = meter.latencies[chat]
            # 99.1, 99.5 and 99.9 % of the way through (0.2, 0.6] and (0.6, 1].
            for role, least_s in ((Role.PREFILL, 0.2), (Role.DECODE, 0.6)):
                for level in LEVELS:
                    assert latency.first_s[role][level] == pytest.approx(least_s + 0.4 * level)
            assert latency.ttft(SPEC) == Ttft(996, 1596, (Role.PREFILL, Role.DECODE))
            assert meter.latencies[whole].ttft(SPEC) == Ttft(596, 596, (Role.MIXED,))
            assert latency.tbt_p99_ms == meter.latencies[whole].tbt_p99_ms == TBT_MS
            assert set(changed) == {chat, whole}
            group.close()
            await meter.read()
            assert meter.latencies == {}


def _all_of(roles: Sequence[Role], latency: Latency | None) -> bool:
    """Its histograms were scraped twice."""
    return latency is not None and set(latency.first_s) == set(roles) and latency.tbt_p99_ms is not None


class Telling:
    """A Prometheus whose every quantile is this many seconds."""

    matchers = ()

    def __init__(self, seconds: object) -> None:
        self._seconds = seconds

    async def vector(self, query: str) -> list[Sample]:
        label = {"namespace": "s", "cluster": cluster_label(CLUSTER)}
        return [
            Sample({**label, "role": role, LEVEL: str(level)}, self._seconds)  # type: ignore[arg-type]
            for role in (*PAIR, "router") for level in (*LEVELS, "x")
        ]  # fmt: skip


@pytest.mark.parametrize(("seconds", "told_ms"), [(0.25, 250), (0.0, 0), (1e306, None), (-0.5, None), (1e9, None), ("x", None)])
async def test_a_latency_that_cannot_be_is_none_and_ends_nothing(seconds: object, told_ms: int | None) -> None:
    """Buckets are the engines' to choose, and whoever has the label is an engine."""
    chat = ClusterName("s", CLUSTER)
    meter = SloMeter(Telling(seconds), lambda: LabelOwners({chat: 0.0}), lambda _: None)  # type: ignore[arg-type]
    await meter.read()
    latency = meter.latencies.get(chat, Latency())
    assert latency.tbt_p99_ms == told_ms
    ttft = latency.ttft(SPEC)
    assert (None if ttft is None else (ttft.least_ms, ttft.most_ms)) == (None if told_ms is None else (told_ms, 2 * told_ms))
