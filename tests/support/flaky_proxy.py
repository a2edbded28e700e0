"""A TCP proxy in front of the API server that can lose answers, fall silent, or cut connections. TLS passes through."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

from splitwatt_lab.controlplane import ControlPlane


class FlakyProxy:
    """`answers` False: requests go through, answers are swallowed. `accepts` False: new connections are
    hung up on. `connections` counts those ever accepted."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._writers: set[asyncio.StreamWriter] = set()
        self.answers = True
        self.accepts = True
        self.connections = 0
        self.port = 0

    async def serve(self) -> asyncio.Server:
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        return server

    def cut(self) -> None:
        """Break every open connection."""
        for writer in list(self._writers):
            writer.transport.abort()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        if not self.accepts:
            writer.transport.abort()
            return
        try:
            far_reader, far_writer = await asyncio.open_connection(*self._target)
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, far_writer}
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pump(reader, far_writer, answers=False))
                group.create_task(self._pump(far_reader, writer, answers=True))
        except* OSError:
            pass  # either side hung up: the whole point of this proxy
        finally:
            self._writers -= {writer, far_writer}
            writer.transport.abort()
            far_writer.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, answers: bool) -> None:
        while data := await reader.read(65536):
            if answers and not self.answers:
                continue
            writer.write(data)
            await writer.drain()
        writer.transport.abort()


@asynccontextmanager
async def flaky(plane: ControlPlane, folder: Path) -> AsyncIterator[tuple[FlakyProxy, Path]]:
    """The proxy and a kubeconfig that goes through it."""
    where = urlsplit(plane.url)
    assert where.hostname is not None
    assert where.port is not None
    proxy = FlakyProxy(where.hostname, where.port)
    server = await proxy.serve()
    kubeconfig = folder / "flaky.kubeconfig"
    kubeconfig.write_text(plane.kubeconfig.read_text().replace(plane.url, f"https://127.0.0.1:{proxy.port}"))
    try:
        yield proxy, kubeconfig
    finally:
        server.close()
        proxy.cut()
