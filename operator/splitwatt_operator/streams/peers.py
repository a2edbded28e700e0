"""One agent as a peer: where it listens, that it is who its NodePower says, and what is shown to it.

Trust needs nothing but the API server: the certificate's fingerprint comes from the status of the NodePower, which nobody but
that agent may write, and the token is for this one node.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Final, Self

import aiohttp
from splitwatt_client.errors import ApiError
from splitwatt_client.tokens import AudienceTokens
from splitwatt_core.protocol.endpoint import StreamEndpoint
from splitwatt_core.protocol.stream import audience_of

CONNECT_S: Final = 2.0
UNAUTHORIZED: Final = 401


class PeerError(Exception):
    """No answer, or a refusal; the sentence says which."""


class Peers:
    """`endpoint_of`: what the newest status of a node says, None where it says nothing."""

    def __init__(self, tokens: AudienceTokens, *, endpoint_of: Callable[[str], StreamEndpoint | None]) -> None:
        self._tokens = tokens
        self._endpoint_of = endpoint_of
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        # One connection a stream, and no bound of one peer's on another's.
        self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), trust_env=False)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    def endpoint(self, node: str) -> StreamEndpoint | None:
        return self._endpoint_of(node)

    @asynccontextmanager
    async def ask(
        self, method: str, node: str, path: str, *, body: Any = None, within_s: float | None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """A 200 response, still to be read. `within_s`: for all of it, None where it has no end. Raises PeerError."""
        endpoint = self._endpoint_of(node)
        if endpoint is None:
            raise PeerError("its NodePower names no connection of its own")
        assert self._session is not None, "entered"
        audience = audience_of(node)
        try:
            token = await self._tokens.token(audience)
            async with self._session.request(
                method,
                f"https://{endpoint.address}{path}",
                json=body,
                headers={"Authorization": f"Bearer {token}"},
                ssl=aiohttp.Fingerprint(bytes.fromhex(endpoint.sha256)),
                timeout=aiohttp.ClientTimeout(total=within_s, sock_connect=CONNECT_S),
                allow_redirects=False,
            ) as response:
                if response.status == UNAUTHORIZED:
                    self._tokens.forget(audience)
                if not response.ok:
                    raise PeerError(f"{response.status}: {(await response.text())[:200]}")
                yield response
        except ApiError as failure:
            raise PeerError(f"no token: {failure}") from failure
        except aiohttp.ServerFingerprintMismatch as failure:
            raise PeerError("its certificate is not the one that its NodePower names") from failure
        except (aiohttp.ClientError, TimeoutError, OSError, asyncio.IncompleteReadError) as failure:
            raise PeerError(str(failure) or type(failure).__name__) from failure
