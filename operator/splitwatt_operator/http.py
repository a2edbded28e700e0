"""/metrics and /healthz, answered from the same loop that decides: a stuck loop answers neither, which is the point."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST

from splitwatt_operator.metrics import Metrics

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

SHUTDOWN_S: Final = 1.0

Health = Callable[[], str | None]
"""None when healthy, otherwise one sentence."""


class ListenError(RuntimeError):
    """The address cannot be used; the sentence says what to change."""


def parse_address(listen: str) -> tuple[str, int]:
    """`HOST:PORT`. Raises ListenError."""
    host, colon, port = listen.rpartition(":")
    if not colon or not host or not port.isdigit() or int(port) > 65535:
        raise ListenError(f"--listen {listen!r} is not HOST:PORT, such as 127.0.0.1:9400")
    return host.strip("[]"), int(port)


@asynccontextmanager
async def serve(listen: str, metrics: Metrics, health: Health) -> AsyncIterator[None]:
    """Listen while the context lasts. Raises ListenError when the address is taken or not ours."""
    host, port = parse_address(listen)

    async def get_metrics(_: web.Request) -> web.Response:
        return web.Response(body=metrics.text(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def get_health(_: web.Request) -> web.Response:
        problem = health()
        return web.Response(text=f"{problem or 'ok'}\n", status=200 if problem is None else 503)

    application = web.Application()
    application.router.add_get("/metrics", get_metrics)
    application.router.add_get("/healthz", get_health)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=SHUTDOWN_S)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, host, port).start()
        except OSError as error:
            raise ListenError(f"cannot listen on {listen} ({error.strerror}); choose another --listen") from error
        yield
    finally:
        await runner.cleanup()
