"""A watch that does not end and does not lie: a consistent list, then changes, resumed or begun anew as needed.

What it protects: the consumer's picture is never silently older than `MAX_SILENCE_S`. The server ends each watch at the
time we ask for; only then it is resumed from the last version seen. Every other end (a connection on which nothing
arrives, not even a bookmark; one that breaks; one that the server closes early, because it goes away; "410 Gone") and
`relist_s` since the last list begin with a new consistent list: a server that comes back may serve a store restored
from a backup, and a watch resumed from a version of the future hears nothing and does not notice.

The consumer gets `Synced` (the whole truth: what is not in it does not exist), `Changed`, `Deleted`, and `Interrupted`
whenever the picture stops being live; after that it stays the last known one until the next event. Attempts are spaced
by a doubling, jittered backoff between `BACKOFF_MIN_S` and `BACKOFF_MAX_S`.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any, Final

import aiohttp

from splitwatt_client.connection import Connection, selectors
from splitwatt_client.errors import ApiError, OutcomeUnknown, Rejected, failure_of
from splitwatt_client.reading import Object
from splitwatt_client.resources import ResourceType

SERVER_TIMEOUT_S: Final = 240
"""The server ends each watch after this long, plus up to a quarter for jitter."""
MAX_SILENCE_S: Final = 90.0
"""API servers send a bookmark about once a minute; longer silence means the connection is dead."""
CONNECT_TIMEOUT_S: Final = 10.0
BACKOFF_MIN_S: Final = 0.2
BACKOFF_MAX_S: Final = 10.0
DEFAULT_RELIST_S: Final = 900.0
ON_TIME_S: Final = 1.0
"""A watch that ended no earlier than this before the time asked for was ended by its own timeout."""
STEADY_S: Final = 60.0
"""A watch that lasted this long ends a series of failures: the next pause is a short one again."""


@dataclass(frozen=True, slots=True)
class Synced:
    """The whole state at one moment, from a consistent read. An object that is not in it does not exist."""

    items: tuple[Object, ...]
    resource_version: str


@dataclass(frozen=True, slots=True)
class Changed:
    """Added or modified."""

    obj: Object


@dataclass(frozen=True, slots=True)
class Deleted:
    """Gone, with its last state. With a label selector: gone, or it matches no longer."""

    obj: Object


@dataclass(frozen=True, slots=True)
class Interrupted:
    """The picture is no longer live; attempts go on. `failure` says why in one sentence."""

    failure: ApiError


WatchEvent = Synced | Changed | Deleted | Interrupted


class _GoneError(Exception):
    """The server no longer has the version we would resume from."""


async def watch(
    connection: Connection,
    resource: ResourceType,
    *,
    name: str | None = None,
    namespace: str | None = None,
    label_selector: str | None = None,
    field_selector: str | None = None,
    relist_s: float = DEFAULT_RELIST_S,
    server_timeout_s: int = SERVER_TIMEOUT_S,
    max_silence_s: float = MAX_SILENCE_S,
) -> AsyncGenerator[WatchEvent, None]:
    """Never returns and never raises ApiError; stop it by closing the generator or cancelling the task."""
    backoff_s = BACKOFF_MIN_S
    while True:
        try:
            listed = await connection.list(
                resource, namespace=namespace, name=name, label_selector=label_selector, field_selector=field_selector
            )
        except ApiError as failure:
            yield Interrupted(failure)
            backoff_s = await _pause(backoff_s)
            continue
        yield Synced(items=listed.items, resource_version=listed.resource_version)
        stream = _Stream(connection, resource, version=listed.resource_version, max_silence_s=max_silence_s)
        relist_at = time.monotonic() + relist_s
        ending: ApiError | None = None
        while ending is None and time.monotonic() < relist_at:
            timeout_s = round(server_timeout_s * random.uniform(1.0, 1.25))
            begun = time.monotonic()
            events = stream.follow(_query(name, label_selector, field_selector, timeout_s), namespace=namespace)
            try:
                async for event in events:
                    yield event
                if time.monotonic() - begun < max(timeout_s - ON_TIME_S, timeout_s / 2):
                    ending = OutcomeUnknown(f"watch of {resource.plural}: the server ended it early")
            except _GoneError:
                ending = OutcomeUnknown(f"watch of {resource.plural}: the server no longer has the version to go on from")
            except ApiError as failure:
                ending = failure
            finally:
                await events.aclose()
            if ending is None or time.monotonic() - begun >= STEADY_S:
                backoff_s = BACKOFF_MIN_S
        if ending is not None:  # never at once: a thousand watchers of a server that goes away would all list together
            yield Interrupted(ending)
            backoff_s = await _pause(backoff_s)


class _Stream:
    """One watch, resumable: remembers the version of the last event or bookmark."""

    def __init__(self, connection: Connection, resource: ResourceType, *, version: str, max_silence_s: float) -> None:
        self._connection = connection
        self._resource = resource
        self._version = version
        self._limits = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S, sock_read=max_silence_s)

    async def follow(self, query: list[tuple[str, str]], *, namespace: str | None) -> AsyncGenerator[Changed | Deleted, None]:
        """Events until the server ends the watch. Raises _GoneError, Rejected, OutcomeUnknown."""
        try:
            response = await self._connection.open(
                "GET",
                self._resource.path(namespace=namespace),
                query=[*query, ("resourceVersion", self._version)],
                limits=self._limits,
            )
        except Rejected as refusal:
            if refusal.status == 410:
                raise _GoneError from refusal
            raise
        try:
            async for line in response.content:
                event = self._event(json.loads(line))
                if event is not None:
                    yield event
        except TimeoutError as error:
            raise OutcomeUnknown(f"watch of {self._resource.plural}: nothing heard, not even a bookmark") from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise OutcomeUnknown(f"watch of {self._resource.plural} broke off ({error})") from error
        finally:
            response.close()

    def _event(self, raw: Any) -> Changed | Deleted | None:
        kind, obj = raw["type"], raw["object"]
        if kind == "ERROR":
            if obj.get("code") == 410:
                raise _GoneError
            raise failure_of(status=int(obj.get("code") or 500), http_reason=obj.get("reason"), body=json.dumps(obj))
        self._version = obj["metadata"]["resourceVersion"]
        if kind == "BOOKMARK":
            return None
        return Deleted(obj) if kind == "DELETED" else Changed(obj)


def _query(name: str | None, label_selector: str | None, field_selector: str | None, timeout_s: int) -> list[tuple[str, str]]:
    return [
        *selectors(name=name, label_selector=label_selector, field_selector=field_selector),
        ("watch", "true"),
        ("allowWatchBookmarks", "true"),
        ("timeoutSeconds", str(timeout_s)),
    ]


async def _pause(backoff_s: float) -> float:
    """Waits with jitter, so that a thousand watchers do not return together. Returns the next backoff."""
    await asyncio.sleep(backoff_s * random.uniform(0.5, 1.0))
    return min(BACKOFF_MAX_S, 2 * backoff_s)
