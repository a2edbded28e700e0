"""One real Prometheus for two clusters whose nodes and racks have the same names, and for series that outlive their source."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path

from splitwatt_core.budget.facts import MeterFailure, MeterReading
from splitwatt_core.budget.tree import BudgetSpec, MeterSpec
from splitwatt_lab import ports
from splitwatt_lab.ports import LOOPBACK
from splitwatt_lab.processes import Process, ProcessGroup
from splitwatt_lab.prometheus import PrometheusServer
from splitwatt_lab.servers import start_server
from splitwatt_operator.telemetry.endpoint import EndPoint
from splitwatt_operator.telemetry.meters import Readings, Telemetry
from splitwatt_operator.telemetry.prometheus import PrometheusClient
from support.waiting import PATIENCE_S

EXPORTER = """
import sys
from prometheus_client import Gauge, start_http_server
power = Gauge("splitwatt_gpu_power_watts", "As an agent has it.", ["node", "gpu", "role"])
for gpu in range(2):
    power.labels("gpu-0", f"{sys.argv[2]}-{gpu}", "decode").set(200)
Gauge("rack_power_watts", "At the meter, in kilowatts.", ["rack"]).labels("r1").set(1.5)
start_http_server(int(sys.argv[1]), addr="127.0.0.1")
__import__("time").sleep(3600)
"""
RULES = """
groups:
  - name: recorded
    interval: 1s
    rules: [{record: "rack:power:kilowatts", expr: "last_over_time(rack_power_watts[10m])"}]
"""


def exporter(group: ProcessGroup, name: str) -> tuple[Process, str]:
    process, port = start_server(
        group, name, lambda port: [sys.executable, "-c", EXPORTER, str(port), name], healthy=lambda port: not ports.is_free(port)
    )
    return process, f"{LOOPBACK}:{port}"


def budget(**meter: object) -> BudgetSpec:
    spec = MeterSpec(**{"selector": 'rack_power_watts{rack="r1"}', "scale": (1000, 1), **meter})  # type: ignore[arg-type]
    return BudgetSpec(name="rack", uid="u", generation=1, limit_w=9000, meter=spec)


async def read_until(end_point: EndPoint, spec: BudgetSpec, done: Callable[[Readings], bool]) -> Readings:
    async with PrometheusClient(end_point, timeout_s=5.0) as client, asyncio.timeout(PATIENCE_S):
        telemetry = Telemetry(client)
        readings = await telemetry.read([spec])
        while not done(readings):
            await asyncio.sleep(0.3)
            readings = await telemetry.read([spec])
    return readings


async def test_two_clusters_behind_one_end_point_are_told_apart_or_named(tmp_path: Path) -> None:
    with ProcessGroup(tmp_path / "processes") as group:
        _, first = exporter(group, "one")
        _, second = exporter(group, "two")
        server = PrometheusServer(group, tmp_path / "prometheus")
        server.set_targets("agent", {first: {"cluster": "a"}, second: {"cluster": "b"}})
        server.start()
        mixed = await read_until(EndPoint(server.url), budget(), lambda found: bool(found.doubts))
        assert not mixed.agents, "two nodes of one name are not added up"
        sentence = mixed.doubts["gpu-0"]
        assert 'cluster="a"' in sentence and 'cluster="b"' in sentence
        reading = mixed.meters["rack"]
        assert isinstance(reading, MeterReading) and reading.series == 2, "expectedSeries refuses it"

        alone = EndPoint(server.url, matchers=('cluster="b"',))
        held = await read_until(alone, budget(), lambda found: "gpu-0" in found.agents)
        assert (held.agents["gpu-0"].power_w, held.agents["gpu-0"].gpus) == (400.0, 2) and not held.doubts
        reading = held.meters["rack"]
        assert isinstance(reading, MeterReading)
        assert (reading.power_w, reading.series, reading.extremes_w) == (1500.0, 1, (1500.0, 1500.0))


async def test_a_recorded_series_is_as_old_as_its_source(tmp_path: Path) -> None:
    rules = tmp_path / "rules.yml"
    rules.write_text(RULES)
    recorded = {"selector": "rack:power:kilowatts"}
    with ProcessGroup(tmp_path / "processes") as group:
        meter, address = exporter(group, "meter")
        server = PrometheusServer(group, tmp_path / "prometheus", rules=[rules])
        server.set_targets("agent", {address: {}})
        server.start()
        aged = budget(**recorded, age_selector="rack_power_watts")
        end_point = EndPoint(server.url)
        await read_until(end_point, aged, lambda found: isinstance(found.meters["rack"], MeterReading))
        meter.kill()
        gone = await read_until(end_point, aged, lambda found: isinstance(found.meters["rack"], MeterFailure))
        assert "its source is gone" in str(gone.meters["rack"])
        blind = await read_until(end_point, budget(**recorded), lambda found: True)
        assert isinstance(blind.meters["rack"], MeterReading), "which is why there is a meter.ageSelector"
