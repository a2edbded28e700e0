"""A silent DNS costs queries, and nobody else: the operator keeps its Lease, and addresses that are known stand."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from splitwatt_lab.certs import Authority
from splitwatt_operator.telemetry import lookup as rules
from splitwatt_operator.telemetry.endpoint import EndPoint
from splitwatt_operator.telemetry.prometheus import PrometheusClient, QueryError, Sample

NAME = "prometheus.monitoring.svc"
ANSWER = {"status": "success", "data": {"resultType": "vector", "result": [{"metric": {"a": "1"}, "value": [1.0, "12.5"]}]}}
FOUND = [Sample({"a": "1"}, 12.5)]


class Dns:
    """What getaddrinfo says of NAME: `addresses`, `error`, or nothing while it is `silent`. Others are looked up as ever."""

    def __init__(self) -> None:
        self.addresses: list[str] = ["127.0.0.1"]
        self.error: OSError | None = None
        self.asked = self.under_way = self.most = 0
        self._heard = threading.Event()
        self._heard.set()
        self._real = socket.getaddrinfo

    def fall_silent(self) -> None:
        self._heard.clear()

    def speak(self) -> None:
        self._heard.set()

    def __call__(self, host: Any, port: Any, *rest: Any, **options: Any) -> list[Any]:
        if host != NAME:
            return self._real(host, port, *rest, **options)
        self.asked += 1
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        assert self._heard.wait(60.0), "a test left a look-up behind"
        self.under_way -= 1
        if self.error is not None:
            raise self.error
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in self.addresses]


@asynccontextmanager
async def answering(
    *, keep_alive: bool = True, tls: ssl.SSLContext | None = None, hosts: list[str] | None = None
) -> AsyncIterator[int]:
    """The port of a Prometheus that knows one sample. `hosts` collects whom requests named."""

    async def handle(request: web.Request) -> web.Response:
        if hosts is not None:
            hosts.append(request.host)
        response = web.json_response(ANSWER)
        if not keep_alive:
            response.force_close()
        return response

    application = web.Application()
    application.router.add_route("*", "/{tail:.*}", handle)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls).start()
    yield int(runner.addresses[0][1])
    await runner.cleanup()


@pytest.fixture
def dns(monkeypatch: pytest.MonkeyPatch) -> Iterator[Dns]:
    stand_in = Dns()
    monkeypatch.setattr(socket, "getaddrinfo", stand_in)
    yield stand_in
    stand_in.speak()


async def test_a_silent_dns_leaves_the_process_its_threads(dns: Dns) -> None:
    """As many queries as would fill asyncio's pool several times over."""
    dns.fall_silent()
    async with PrometheusClient(f"http://{NAME}:9090", timeout_s=0.02) as prometheus:
        for _ in range(100):
            with pytest.raises(QueryError, match=f"DNS does not answer for {NAME}"):
                await prometheus.vector("up")
        assert (dns.asked, dns.most) == (1, 1)
        async with asyncio.timeout(10.0):
            assert await asyncio.to_thread(lambda: "free") == "free"


async def test_a_query_goes_through_as_soon_as_dns_speaks(dns: Dns) -> None:
    dns.fall_silent()
    async with answering() as port, PrometheusClient(f"http://{NAME}:{port}", timeout_s=5.0) as prometheus:
        asked = asyncio.create_task(prometheus.vector("up"))
        await asyncio.sleep(0.1)
        dns.speak()
        assert await asked == FOUND


async def test_an_address_that_is_known_stands_while_dns_is_silent_or_fails(dns: Dns, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "FRESH_S", 0.0)
    async with answering(keep_alive=False) as port, PrometheusClient(f"http://{NAME}:{port}", timeout_s=5.0) as prometheus:
        assert await prometheus.vector("up") == FOUND
        dns.fall_silent()
        loop = asyncio.get_running_loop()
        started_s = loop.time()
        for _ in range(20):
            assert await prometheus.vector("up") == FOUND
        assert dns.asked == 2 and loop.time() - started_s < 2.5, "patience is spent once a look-up, not once a query"
        dns.error = socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        dns.speak()
        assert await prometheus.vector("up") == FOUND


async def test_a_name_that_is_gone_is_not_asked_at_its_former_address(dns: Dns, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "FRESH_S", 0.0)
    async with answering(keep_alive=False) as port, PrometheusClient(f"http://{NAME}:{port}", timeout_s=5.0) as prometheus:
        assert await prometheus.vector("up") == FOUND
        dns.error = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        with pytest.raises(QueryError, match="Name or service not known"):
            await prometheus.vector("up")


async def test_a_server_that_moved_is_found_when_addresses_are_old(dns: Dns, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "FRESH_S", 0.0)
    async with answering() as port, PrometheusClient(f"http://{NAME}:{port}", timeout_s=5.0) as prometheus:
        dns.addresses = ["127.0.0.9"]  # nobody listens there
        with pytest.raises(QueryError):
            await prometheus.vector("up")
        dns.addresses = ["127.0.0.1"]
        assert await prometheus.vector("up") == FOUND


async def test_of_several_addresses_one_that_answers_is_enough(dns: Dns) -> None:
    dns.addresses = ["127.0.0.9", "127.0.0.1"]
    async with answering() as port, PrometheusClient(f"http://{NAME}:{port}", timeout_s=5.0) as prometheus:
        assert await prometheus.vector("up") == FOUND


async def test_the_host_and_the_certificate_are_those_of_the_name(dns: Dns, tmp_path: Path) -> None:
    authority = Authority(tmp_path, "site")
    hosts: list[str] = []
    for name in (NAME, "another.example"):
        pair = authority.server(name, dns_names=[name], addresses=["127.0.0.1"])
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.load_cert_chain(pair.certificate, pair.key)
        async with (
            answering(tls=tls, hosts=hosts) as port,
            PrometheusClient(EndPoint(f"https://{NAME}:{port}", ca_file=authority.certificate), timeout_s=5.0) as prometheus,
        ):
            if name == NAME:
                assert await prometheus.vector("up") == FOUND
                assert hosts == [f"{NAME}:{port}"]
            else:
                with pytest.raises(QueryError, match="certificate"):
                    await prometheus.vector("up")
