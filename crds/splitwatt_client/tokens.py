"""Tokens of a service account for other audiences than the API server: by the TokenRequest API, and kept while they last.

One audience, one token: what is shown to one peer is worth nothing at another.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote

from splitwatt_client.connection import Connection
from splitwatt_client.errors import OutcomeUnknown

LIFE_S: Final = 3600
FRESH_SHARE: Final = 0.8
"""A token is asked for anew after this share of its life."""
MAX_AT_ONCE: Final = 8


@dataclass(frozen=True, slots=True)
class _Token:
    text: str
    until_s: float


class AudienceTokens:
    """Of one service account. The right: `create` on `serviceaccounts/token`, of that name alone."""

    def __init__(self, connection: Connection, *, namespace: str, account: str) -> None:
        self._connection = connection
        self._path = f"/api/v1/namespaces/{quote(namespace, safe='')}/serviceaccounts/{quote(account, safe='')}/token"
        self._kept: dict[str, _Token] = {}
        self._turns = asyncio.Semaphore(MAX_AT_ONCE)

    async def token(self, audience: str) -> str:
        """One that is good for a while yet. Raises Rejected, OutcomeUnknown."""
        kept = self._kept.get(audience)
        if kept is not None and time.monotonic() < kept.until_s:
            return kept.text
        async with self._turns:
            asked_s = time.monotonic()
            body = {
                "apiVersion": "authentication.k8s.io/v1",
                "kind": "TokenRequest",
                "spec": {"audiences": [audience], "expirationSeconds": LIFE_S},
            }
            answer = await self._connection.request_json("POST", self._path, body=body)
        text = (answer.get("status") or {}).get("token")
        if not isinstance(text, str) or not text:
            raise OutcomeUnknown(f"POST {self._path}: the answer holds no token")
        self._kept[audience] = _Token(text, asked_s + FRESH_SHARE * LIFE_S)
        return text

    def forget(self, audience: str) -> None:
        """Somebody refused it, or nobody is there any more."""
        self._kept.pop(audience, None)
