"""A way to the API server that can be taken from one client alone: a partition, as that client sees it.

Each client has a loopback port of its own that leads to the API server; TLS passes through. A held relay forwards nothing
and closes nothing, as a broken cable does. When it is let go, what was sent meanwhile arrives late, as TCP would have it.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any, Self, TypeVar

from splitwatt_lab.ports import LOOPBACK

T = TypeVar("T")
_ANSWER_S = 10.0


class Relays:
    """All relays to one server, served from a thread of its own. Use as a context manager."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="relays", daemon=True)
        self._open: dict[str, asyncio.Event] = {}
        self._ports: dict[str, int] = {}
        self._servers: list[asyncio.Server] = []
        self._tasks: set[asyncio.Task[None]] = set()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._run(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=_ANSWER_S)
        self._loop.close()

    def port(self, client: str) -> int:
        """The client's own port; the same one at every call."""
        if client not in self._ports:
            self._ports[client] = self._run(self._serve(client))
        return self._ports[client]

    def hold(self, client: str) -> None:
        """Forward nothing any more, in neither direction."""
        self._loop.call_soon_threadsafe(self._open[client].clear)

    def let_go(self, client: str) -> None:
        self._loop.call_soon_threadsafe(self._open[client].set)

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(_ANSWER_S)

    async def _serve(self, client: str) -> int:
        event = self._open[client] = asyncio.Event()
        event.set()

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            self._tasks.add(task)
            try:
                await self._carry(event, reader, writer)
            finally:
                self._tasks.discard(task)

        server = await asyncio.start_server(accept, LOOPBACK, 0)
        self._servers.append(server)
        port: int = server.sockets[0].getsockname()[1]
        return port

    async def _carry(self, event: asyncio.Event, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await event.wait()
        try:
            far_reader, far_writer = await asyncio.open_connection(LOOPBACK, self._target)
        except OSError:
            writer.transport.abort()
            return
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(_pump(event, reader, far_writer))
                group.create_task(_pump(event, far_reader, writer))
        except* OSError:
            pass  # either side hung up, or the API server was killed: that is what is being played
        finally:
            writer.transport.abort()
            far_writer.transport.abort()

    async def _close(self) -> None:
        for server in self._servers:
            server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def _pump(event: asyncio.Event, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65_536):
        await event.wait()
        writer.write(data)
        await writer.drain()
    await event.wait()
    writer.transport.abort()
