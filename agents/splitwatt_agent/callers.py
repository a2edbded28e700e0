"""Who may speak over the agent's own connection: whoever the API server calls the operator, for this one node.

What it protects: the channel can only lower, so the worst that a stolen token does is to slow one node. While the API server
is away nobody new is let in; whom it has known lately may go on for `KNOWN_S`.
"""

from __future__ import annotations

import hashlib
import logging
import time
from typing import Final

from splitwatt_client import ApiError, Connection
from splitwatt_client.resources import TOKEN_REVIEWS
from splitwatt_core.protocol.stream import audience_of

log = logging.getLogger(__name__)

KNOWN_S: Final = 300.0
"""How long an answer of the API server stands. A token that was taken back is good for this long at most."""
REFUSED_S: Final = 5.0
"""The same for a refusal: somebody who knocks all the time costs the API server one question in so many seconds."""
MAX_KNOWN: Final = 64
MAX_TOKEN_CHARS: Final = 8192


class Callers:
    """Answers by token, kept by its hash alone."""

    def __init__(self, connection: Connection, *, node: str, user: str) -> None:
        """`user`: the operator's, `system:serviceaccount:NAMESPACE:NAME`."""
        self._connection = connection
        self._audience = audience_of(node)
        self._user = user
        self._known: dict[bytes, tuple[str, float]] = {}

    async def why_not(self, authorization: str) -> str:
        """Why the bearer of this header is not let in, "" where he is."""
        kind, _, token = authorization.partition(" ")
        if kind != "Bearer" or not token or len(token) > MAX_TOKEN_CHARS:
            return f"a bearer token for the audience {self._audience} is needed"
        key, now_s = hashlib.sha256(token.encode()).digest(), time.monotonic()
        if (found := self._known.get(key)) is not None and now_s < found[1]:
            return found[0]
        try:
            why = await self._ask(token)
        except ApiError as failure:
            log.warning("the API server was asked whose token this is, and did not say: %s", failure)
            return "the API server does not say whose token this is"
        if len(self._known) >= MAX_KNOWN:
            self._known.clear()
        self._known[key] = (why, now_s + (REFUSED_S if why else KNOWN_S))
        return why

    async def _ask(self, token: str) -> str:
        review = {"spec": {"token": token, "audiences": [self._audience]}}
        answer = await self._connection.create(review, resource=TOKEN_REVIEWS)
        status = answer.get("status", {})
        if not status.get("authenticated") or self._audience not in status.get("audiences", ()):
            return f"the API server knows no such token for the audience {self._audience}"
        found = status.get("user", {}).get("username", "")
        return "" if found == self._user else f"{found} is not {self._user}"
