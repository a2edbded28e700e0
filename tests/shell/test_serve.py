"""/metrics and /healthz over real sockets."""

from __future__ import annotations

import asyncio

import httpx
import pytest
from prometheus_client import CollectorRegistry, Gauge
from splitwatt_shell.address import Address
from splitwatt_shell.serve import ListenError, serve


def gauge() -> CollectorRegistry:
    registry = CollectorRegistry()
    Gauge("draw_watts", "For the test.", registry=registry).set(7)
    return registry


async def test_health_and_metrics_are_served_until_the_context_ends() -> None:
    problem: list[str | None] = [None]
    async with serve(Address("127.0.0.1", 0), gauge(), health=lambda: problem[0]) as bound, httpx.AsyncClient() as http:
        assert bound.port != 0
        assert (await http.get(f"http://{bound}/healthz")).text == "ok\n"
        problem[0] = "no decision for 12 s"
        answer = await http.get(f"http://{bound}/healthz")
        assert (answer.status_code, answer.text) == (503, "no decision for 12 s\n")
        shown = await http.get(f"http://{bound}/metrics")
        assert "draw_watts 7.0" in shown.text
        assert shown.headers["Content-Type"].startswith("text/plain; version=")
        assert (await http.get(f"http://{bound}/")).status_code == 404
        # A kept connection, as Prometheus holds one, must not keep the process from ending.
    async with httpx.AsyncClient() as http:
        with pytest.raises(httpx.ConnectError):
            await http.get(f"http://{bound}/healthz")


async def test_a_taken_port_is_one_sentence() -> None:
    server = await asyncio.start_server(lambda r, w: None, "127.0.0.1", 0)
    taken = Address("127.0.0.1", server.sockets[0].getsockname()[1])
    with pytest.raises(ListenError, match=rf"^cannot listen on {taken} \(.+\); stop what uses it or choose another --listen$"):
        async with serve(taken, gauge()):
            pass
    server.close()
