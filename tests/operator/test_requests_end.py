"""A request that is cancelled in the very turn in which its time runs out is cancelled: no library makes it a time-out."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from aiohttp import web
from splitwatt_client import ApiError, Connection
from splitwatt_client.resources import NODES
from splitwatt_operator.telemetry.prometheus import PrometheusClient, QueryError

TIMEOUT_S = 0.4
SETTLED_S = 0.1
PATIENCE_S = 3.0


@pytest.fixture
async def silent() -> AsyncIterator[str]:
    """A server that takes everything and answers nothing."""
    writers = []
    server = await asyncio.start_server(lambda _, writer: writers.append(writer), "127.0.0.1", 0)
    yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    server.close()
    for writer in writers:
        writer.transport.abort()


@contextlib.asynccontextmanager
async def api_server(url: str, folder: Path) -> AsyncIterator[Callable[[], Awaitable[object]]]:
    kubeconfig = folder / "kubeconfig"
    context = {"name": "c", "context": {"cluster": "c", "user": "u"}}
    config = {"clusters": [{"name": "c", "cluster": {"server": url}}], "users": [{"name": "u", "user": {}}]}
    kubeconfig.write_text(json.dumps({**config, "contexts": [context], "current-context": "c"}))
    async with Connection(kubeconfig, request_timeout_s=TIMEOUT_S) as connection:
        yield lambda: connection.get(NODES, "n1")


@contextlib.asynccontextmanager
async def prometheus(url: str, folder: Path) -> AsyncIterator[Callable[[], Awaitable[object]]]:
    async with PrometheusClient(url, timeout_s=TIMEOUT_S) as client:
        yield lambda: client.vector("up")


@pytest.mark.parametrize("first", ["time-out", "cancellation"])
@pytest.mark.parametrize("to", [api_server, prometheus], ids=lambda to: to.__name__)
async def test_both_in_one_turn(
    to: Callable[..., contextlib.AbstractAsyncContextManager[Callable[[], Awaitable[object]]]],
    first: str,
    silent: str,
    tmp_path: Path,
) -> None:
    async with to(silent, tmp_path) as ask:

        async def loop() -> None:
            while True:
                with contextlib.suppress(ApiError, QueryError):
                    await ask()

        running = asyncio.create_task(loop())
        await asyncio.sleep(SETTLED_S)
        now_s = asyncio.get_running_loop().time()
        time.sleep(TIMEOUT_S)  # noqa: ASYNC251 - so that both are due in the next turn
        asyncio.get_running_loop().call_at(now_s if first == "cancellation" else now_s + TIMEOUT_S, running.cancel)
        done, _ = await asyncio.wait({running}, timeout=PATIENCE_S)
        assert done == {running}
        with pytest.raises(asyncio.CancelledError):
            await running


async def test_however_many_requests_were_given_up_the_next_one_is_answered() -> None:
    """At every moment of their lives: before they have a connection, while it is made, before and while they are answered. Some
    clients lose the connection of one that is given up in the turn in which something comes of it."""
    delays_s: Iterator[float] = itertools.cycle([0.0, 0.01, 0.2, 0.3, 0.31, 0.5, 1.0])

    async def answer(request: web.Request) -> web.Response:
        await request.read()
        await asyncio.sleep(next(delays_s))
        return web.json_response({"status": "success", "data": {"resultType": "vector", "result": []}})

    application = web.Application()
    application.router.add_post("/{tail:.*}", answer)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    async with PrometheusClient(f"http://127.0.0.1:{runner.addresses[0][1]}", timeout_s=0.3, max_concurrent=4) as client:

        async def given_up(after_s: float) -> None:
            with contextlib.suppress(TimeoutError, QueryError):
                async with asyncio.timeout(after_s):
                    await client.vector("up")

        for _ in range(8):
            await asyncio.gather(*(given_up(after_s) for after_s in (0.05, 0.2, 0.3, 0.34) * 4))
        delays_s, client.timeout_s = itertools.repeat(0.0), PATIENCE_S
        for _ in range(8):
            assert await client.vector("up") == []
    await runner.cleanup()
