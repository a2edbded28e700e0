"""The real Prometheus: targets that come and go, samples that are absent when their source is."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from splitwatt_lab import ports, prometheus
from splitwatt_lab.errors import LabError
from splitwatt_lab.ports import LOOPBACK
from splitwatt_lab.processes import Process, ProcessGroup
from splitwatt_lab.prometheus import PrometheusServer
from splitwatt_lab.servers import start_server
from support.waiting import eventually

EXPORTER = """
import sys
from prometheus_client import Gauge, start_http_server
Gauge("rack_power_watts", "At the meter.", ["rack", "job"]).labels("a", "meter").set(21000)
start_http_server(int(sys.argv[1]), addr="127.0.0.1")
__import__("time").sleep(3600)
"""


@pytest.fixture
def server(group: ProcessGroup, tmp_path: Path) -> PrometheusServer:
    server = PrometheusServer(group, tmp_path / "prometheus")
    server.start()
    return server


def exporter(group: ProcessGroup, name: str) -> tuple[Process, str]:
    process, port = start_server(
        group, name, lambda port: [sys.executable, "-c", EXPORTER, str(port)], healthy=lambda port: not ports.is_free(port)
    )
    return process, f"{LOOPBACK}:{port}"


def test_targets_are_scraped_every_second_and_vanish_when_they_die(group: ProcessGroup, server: PrometheusServer) -> None:
    agent, agent_address = exporter(group, "agent-exporter")
    _, twin_address = exporter(group, "twin-exporter")
    server.set_targets("agent", {agent_address: {"node": "n1"}})
    server.set_targets("twin", {twin_address: {}})
    eventually("both series are there", lambda: len(server.query("rack_power_watts")) == 2)
    by_job = {labels["job"]: (labels, value) for labels, value in server.query("rack_power_watts")}
    assert by_job["agent"][0]["node"] == "n1" and by_job["agent"][0]["exported_job"] == "meter"
    assert by_job["meter"][1] == 21000.0, "the twin's own labels win"
    eventually(
        "it is scraped once a second", lambda: server.query("count_over_time(rack_power_watts{job='agent'}[5s])")[0][1] >= 4
    )

    agent.kill()
    eventually("the series ends", lambda: not server.query("rack_power_watts{job='agent'}"))
    assert server.query("rack_power_watts{job='meter'}"), "the others are still there"


def test_it_comes_back_on_its_port_with_its_data(group: ProcessGroup, server: PrometheusServer) -> None:
    process, address = exporter(group, "exporter")
    server.set_targets("operator", {address: {}})
    eventually("it is scraped again", lambda: server.query("rack_power_watts"))
    process.kill()
    url = server.url
    server.stop()
    assert ports.is_free(server.port)
    server.start()
    assert server.url == url
    assert server.query("last_over_time(rack_power_watts[1h])")


def test_a_broken_query_and_an_unknown_job_are_sentences(server: PrometheusServer) -> None:
    with pytest.raises(LabError, match=r"Prometheus refused 'sum\(': .*parse error"):
        server.query("sum(")
    with pytest.raises(LabError, match="is a scalar, not an instant vector"):
        server.query("1")
    with pytest.raises(LabError, match="no scrape job 'agents'; choose one of agent, operator, twin"):
        server.set_targets("agents", {})


def test_a_missing_prometheus_is_one_sentence(
    group: ProcessGroup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LabError, match="no `prometheus` on PATH; run `make setup`"):
        PrometheusServer(group, tmp_path / "prometheus").start()
    assert prometheus.main() == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_a_rule_file_that_cannot_be_read_is_named(group: ProcessGroup, tmp_path: Path) -> None:
    rules = tmp_path / "rules.yml"
    rules.write_text("groups: [{name: x, rules: [{alert: A, expr: 'sum('}]}]")
    with pytest.raises(LabError, match=r"prometheus ended with code \d .*log: .*prometheus\.log"):
        PrometheusServer(group, tmp_path / "prometheus", rules=[rules]).start()
