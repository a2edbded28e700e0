"""/metrics, /healthz and /readyz, answered from the loop that does the work: a stuck one answers none, which is the point."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Final

from aiohttp import web
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from splitwatt_shell.address import Address

SHUTDOWN_S: Final = 1.0
"""How long the end waits for answers under way."""

Health = Callable[[], str | None]
"""None when healthy, otherwise one sentence."""


class ListenError(RuntimeError):
    """The address cannot be used; the sentence says what to change."""


def page(metrics: Collector) -> web.Response:
    """What `metrics` says now, as Prometheus reads it."""
    return web.Response(body=generate_latest(metrics), headers={"Content-Type": CONTENT_TYPE_LATEST})


@asynccontextmanager
async def serve(
    address: Address, metrics: Collector, *, health: Health = lambda: None, ready: Health = lambda: None
) -> AsyncIterator[Address]:
    """/metrics, /healthz and /readyz while the context lasts; yields the address in use, which port 0 leaves to the kernel.
    `metrics` is collected when somebody asks, on the loop's thread. Who is healthy and not `ready` says why at both.
    Raises ListenError when the address is taken or not ours."""

    async def answer(request: web.BaseRequest) -> web.Response:
        if request.path == "/metrics":
            return page(metrics)
        if request.path in ("/healthz", "/readyz"):
            sick, waiting = health(), ready()
            failed = sick is not None or (waiting is not None and request.path == "/readyz")
            return web.Response(text=f"{sick or waiting or 'ok'}\n", status=503 if failed else 200)
        return web.Response(status=404, text="/metrics, /healthz or /readyz\n")

    runner = web.ServerRunner(web.Server(answer, access_log=None), shutdown_timeout=SHUTDOWN_S)
    async with listening(runner, address) as used:
        yield used


@asynccontextmanager
async def listening(runner: web.BaseRunner, address: Address, *, tls: ssl.SSLContext | None = None) -> AsyncIterator[Address]:
    """The same for any application, with `tls` over it where that is given. At the end no request is let in, and those in
    flight have the runner's shutdown time."""
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, address.host, address.port, ssl_context=tls).start()
        except OSError as error:
            raise ListenError(
                f"cannot listen on {address} ({error.strerror}); stop what uses it or choose another {address.option}"
            ) from error
        yield replace(address, port=runner.addresses[0][1])
    finally:
        await runner.cleanup()
