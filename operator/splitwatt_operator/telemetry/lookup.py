"""Addresses of the one host that queries go to, with one look-up under way at most.

`getaddrinfo` cannot be given up: while DNS is silent a call holds its thread for as long as resolv.conf says, half a minute
and more. asyncio gives each call a thread of the one pool that the whole process shares, so a query a second might soon leave
none for anybody. Here a look-up has a thread of its own, no second one begins while it lasts, and addresses that were once
known stand until DNS says something else.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from typing import Final

from aiohttp.abc import AbstractResolver, ResolveResult

FRESH_S: Final = 10.0
"""Addresses this old are looked up again."""
PATIENCE_S: Final = 0.2
"""A look-up that takes longer is no longer waited for where addresses are known."""


class Lookup(AbstractResolver):
    """For one host and port: all queries of a client go there. aiohttp asks for each new connection, never for an address."""

    def __init__(self) -> None:
        self._known: list[ResolveResult] = []
        self._known_s = float("-inf")
        self._under_way: asyncio.Future[list[ResolveResult]] | None = None
        self._asked_s = 0.0
        self._host = ""

    @property
    def unanswered(self) -> str:
        """The name that DNS was asked for and is silent about, with nothing known from before; else empty."""
        return self._host if self._under_way is not None and not self._known else ""

    async def resolve(self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET) -> list[ResolveResult]:
        """Waits for DNS where nothing is known: the caller's time-out ends that. Raises OSError when there is no such name, or
        DNS failed and never told an address."""
        now_s = asyncio.get_running_loop().time()
        if now_s - self._known_s < FRESH_S:
            return list(self._known)
        asked = self._under_way or self._ask(host, port, family, now_s)
        if not self._known:
            return list(await asyncio.shield(asked))
        await asyncio.wait([asked], timeout=max(0.0, self._asked_s + PATIENCE_S - now_s))
        if asked.done() and isinstance(error := asked.exception(), socket.gaierror) and error.errno == socket.EAI_NONAME:
            raise error
        return list(self._known)

    async def close(self) -> None:
        """A look-up under way ends by itself."""

    def _ask(self, host: str, port: int, family: socket.AddressFamily, now_s: float) -> asyncio.Future[list[ResolveResult]]:
        loop = asyncio.get_running_loop()
        asked: asyncio.Future[list[ResolveResult]] = loop.create_future()
        self._under_way, self._asked_s, self._host = asked, now_s, host

        def answered(found: list[ResolveResult] | OSError) -> None:
            self._under_way = None
            if isinstance(found, OSError):
                asked.set_exception(found)
                asked.exception()  # nobody may be waiting any more
                return
            self._known, self._known_s = found, loop.time()
            asked.set_result(found)

        def ask() -> None:
            found: list[ResolveResult] | OSError
            try:
                found = _addresses(host, port, family)
            except UnicodeError as error:  # a label that IDNA cannot write
                found = socket.gaierror(socket.EAI_NONAME, str(error))
            except OSError as error:
                found = error
            if not loop.is_closed():
                loop.call_soon_threadsafe(answered, found)

        # A daemon: the process need not wait for DNS to end.
        threading.Thread(target=ask, name=f"look up {host}", daemon=True).start()
        return asked


def _addresses(host: str, port: int, family: socket.AddressFamily) -> list[ResolveResult]:
    """Blocks. Raises OSError, UnicodeError."""
    rows = socket.getaddrinfo(host, port, family=family, type=socket.SOCK_STREAM)
    numeric = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
    return [
        ResolveResult(hostname=host, host=str(address[0]), port=port, family=kind, proto=proto, flags=numeric)
        for kind, _, proto, _, address in rows
    ]
