"""Agents' own connections on real kubelets: the chart's way, with pods' addresses, the API server's word on tokens and the
chart's network policies. The judge reads the GPUs."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from ground import rack
from ground.furnish import NAMESPACE
from ground.site import Site
from splitwatt_lab.judge import Judge

HEARD_S, FRESH_S = 120.0, 60.0


@pytest.fixture
def listening(installed: Site) -> Iterator[Site]:
    """The same release, with the connections switched on; and off again."""
    site = installed
    site.judge()
    site.install("--set=agent.stream.enabled=true", "--set=agent.stream.port=9403")
    yield site
    site.install("--set=agent.stream.enabled=false")


def endpoints(site: Site) -> dict[str, str]:
    found = {node: site.get("np", node).get("status", {}).get("stream") for node in site.cluster.nodes()}
    return {node: stream["address"] for node, stream in found.items() if stream is not None}


def heard(site: Site) -> int:
    """Streams that the operator reads, as its own metrics say."""
    living = [pod for pod in site.pods("operator") if "deletionTimestamp" not in pod["metadata"]]
    if len(living) != 1:
        return 0
    [pod] = living
    path = f"/api/v1/namespaces/{NAMESPACE}/pods/{pod['metadata']['name']}:9400/proxy/metrics"
    lines = site.cluster.http.get(path).text.splitlines()
    return int(next((float(line.split()[1]) for line in lines if line.startswith("splitwatt_agent_streams ")), 0))


def test_agents_are_heard_over_their_own_connections(listening: Site, judged: Judge) -> None:
    site = listening
    nodes = site.cluster.nodes()
    site.await_("each agent is heard", lambda: heard(site) == len(nodes), timeout_s=HEARD_S)
    addresses = endpoints(site)
    pods = {pod["spec"]["nodeName"]: pod["status"]["podIP"] for pod in site.pods("agent")}
    assert addresses == {node: f"{ip}:9403" for node, ip in pods.items()}
    site.await_(
        "the rack's meter is read",
        lambda: site.condition("pb", rack.NAME, condition="TelemetryFresh").get("status") == "True",
        timeout_s=FRESH_S,
    )
    logs = site.cluster.kubectl("logs", "-n", NAMESPACE, "-l", "app.kubernetes.io/component=operator", "--tail=500").stdout
    assert "reigning" in logs and "Traceback" not in logs, json.dumps(addresses)
