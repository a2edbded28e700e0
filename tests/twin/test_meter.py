"""The rack meter is late and a little wrong, and shows nothing before it knows something. Results say what happened."""

import json
import statistics
from pathlib import Path

import pytest
from splitwatt_twin.cluster import Cluster, Drop
from splitwatt_twin.meter import RackMeter
from splitwatt_twin.requests import ClusterKey, Request
from splitwatt_twin.results import LoadResults, percentile


def test_a_reading_is_as_old_as_the_delay_says() -> None:
    meter = RackMeter(rack="a1", delay_s=0.5, noise_percent=0, seed=1)
    assert meter.read_w(0.0) is None
    for i in range(20):
        meter.sample(1000.0 + i, i * 0.1)
    assert meter.read_w(0.4) is None
    assert meter.read_w(1.0) == 1005.0
    assert meter.read_w(1.04) == 1005.0
    assert meter.read_w(99.0) == 1019.0


def test_noise_is_small_centred_and_one_per_sample() -> None:
    meter = RackMeter(rack="a1", delay_s=0.0, noise_percent=0.5, seed=1)
    shown = []
    for i in range(2000):
        meter.sample(20_000.0, float(i))
        value = meter.read_w(float(i))
        assert value is not None and value == meter.read_w(float(i))
        shown.append(value)
    assert statistics.mean(shown) == pytest.approx(20_000, rel=0.001)
    assert statistics.stdev(shown) == pytest.approx(100, rel=0.1)
    assert max(abs(v - 20_000) for v in shown) <= 300


def _finished(key: ClusterKey, *, ttft_s: float, output: int, requeues: int = 0) -> Request:
    request = Request(cluster=key, arrived_s=10.0, prompt_tokens=100, output_tokens=output, requeues=requeues)
    request.token(10.0 + ttft_s)
    request.generated = output
    request.finished_s = 10.0 + ttft_s + (output - 1) * 0.02
    return request


def test_results_are_lines_and_a_summary(tmp_path: Path) -> None:
    key = ClusterKey("serving", "chat")
    results = LoadResults(tmp_path / "out" / "r.jsonl", wall_offset_s=1_000_000.0)
    for i in range(1, 101):
        results.add(_finished(key, ttft_s=i / 1000, output=11))
    results.add(_finished(key, ttft_s=0.2, output=1, requeues=1))
    results.flush()
    lines = [json.loads(line) for line in (tmp_path / "out" / "r.jsonl").read_text().splitlines()]
    assert len(lines) == 101
    assert lines[0]["t_s"] == pytest.approx(1_000_010.201) and lines[0]["arrived_s"] == 1_000_010.0
    assert (lines[0]["namespace"], lines[0]["cluster"], lines[0]["prompt"], lines[0]["output"]) == ("serving", "chat", 100, 11)
    assert (lines[0]["ttft_ms"], lines[0]["tbt_ms"], lines[0]["e2e_ms"]) == (1.0, 20.0, 201.0)
    assert lines[100]["tbt_ms"] is None and lines[100]["requeues"] == 1

    cluster = Cluster(key, wake=lambda _: None, send=lambda _, __: None)
    cluster.counts.arrived, cluster.counts.finished = 105, 101
    cluster.counts.dropped[Drop.QUEUE_FULL] = 4
    row = results.summary({key: cluster})["serving/chat"]
    assert row["finished"] == 101 and row["dropped"] == {"queue_full": 4} and row["output_tokens"] == 1101
    assert row["ttft_ms_p50"] == pytest.approx(51.0) and row["tbt_ms_p99"] == pytest.approx(20.0)
    results.close()


def test_a_summary_without_requests_has_no_percentiles() -> None:
    key = ClusterKey("serving", "chat")
    row = LoadResults(None, wall_offset_s=0).summary({key: Cluster(key, wake=lambda _: None, send=lambda _, __: None)})
    assert row["serving/chat"]["ttft_ms_p50"] is None and row["serving/chat"]["arrived"] == 0


def test_percentiles_are_linear_between_neighbours() -> None:
    assert percentile([1.0], 99) == 1.0
    assert percentile([0.0, 10.0], 50) == 5.0
    assert percentile(list(map(float, range(101))), 90) == 90.0
