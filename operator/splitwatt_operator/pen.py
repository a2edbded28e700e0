"""The pen: the operator's one way to write to the API server.

Invariant (R2): nothing leaves unless the Lease is surely held at that very moment, by the monotonic clock. The pen asks for
each send by itself, after the send has waited for its turn, so that of a burst nothing follows once the Lease is in doubt. A
send that has no answer when a successor may begin is given up then, so that it does not leave this process any more.

A send ends in one of four outcomes, which are returned and not raised, so that each caller says what it makes of each: stored;
rejected, so nothing was stored; unknown, so it may have been or may yet be; not sent. Only what is sent is counted, and
what of it was refused.

The other rooms hold a `Reader`, which cannot write; import-linter keeps `Connection` from them. Not the pen's are the
writes of the Lease itself (`splitwatt_client.leases`): they establish what the pen asks for, and each is bound to the version
that it was decided on. The canary counts those that come back through the watch. kopf writes nothing: it only watches.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from splitwatt_client.connection import Connection
from splitwatt_client.errors import OutcomeUnknown, Rejected
from splitwatt_client.reading import Object
from splitwatt_client.resources import ResourceType
from splitwatt_core.names import FIELD_MANAGER_OPERATOR

from splitwatt_operator.metrics import Metrics

MAX_AT_ONCE: Final = 32
"""Sends under way in one lane, unless it has a bound of its own."""


@dataclass(frozen=True, slots=True)
class Stored:
    """`obj` as the API server answered; empty after a deletion."""

    obj: Object


@dataclass(frozen=True, slots=True)
class NotSent:
    """The Lease was not surely held: nothing was sent, and nobody refused. It may be again, or the reign is about to end."""

    def __str__(self) -> str:
        return "not sent: the Lease is not surely held"


Sent = Stored | Rejected | OutcomeUnknown | NotSent


class Pen:
    """`held` says whether the Lease is surely ours at a monotonic time, `over_s` from when it may be another's, as of now. A
    cancelled send is as unknown as a time-out."""

    def __init__(
        self,
        connection: Connection,
        metrics: Metrics,
        *,
        held: Callable[[float], bool],
        over_s: Callable[[], float] = lambda: math.inf,
        at_once: int = MAX_AT_ONCE,
    ) -> None:
        self._connection = connection
        self._metrics = metrics
        self._held = held
        self._over_s = over_s
        self._turns = asyncio.Semaphore(at_once)

    def lane(self, at_once: int) -> Pen:
        """The same pen with turns of its own, so that one kind of write need not wait for another."""
        return Pen(self._connection, self._metrics, held=self._held, over_s=self._over_s, at_once=at_once)

    async def apply(self, manifest: Mapping[str, Any], *, subresource: str | None = None) -> Sent:
        """Server-side apply; `metadata.uid` and `metadata.resourceVersion` in it bind the write."""
        kind = manifest["kind"] if subresource is None else f"{manifest['kind']}/{subresource}"
        return await self._send(
            kind,
            lambda: self._connection.apply(manifest, field_manager=FIELD_MANAGER_OPERATOR, subresource=subresource),
        )

    async def create(self, manifest: Mapping[str, Any]) -> Sent:
        """An object of that name is a Rejected with `conflict`."""
        return await self._send(manifest["kind"], lambda: self._connection.create(manifest, field_manager=FIELD_MANAGER_OPERATOR))

    async def patch(
        self, resource: ResourceType, name: str, patch: Sequence[Mapping[str, Any]], *, namespace: str | None = None
    ) -> Sent:
        """A JSON patch: what server-side apply cannot say, such as taking an entry out of a list that is somebody else's."""
        return await self._send(
            resource.kind,
            lambda: self._connection.patch(resource, name, patch, namespace=namespace, field_manager=FIELD_MANAGER_OPERATOR),
        )

    async def delete(
        self, resource: ResourceType, name: str, *, namespace: str | None = None, uid: str, last: bool = False
    ) -> Sent:
        """Of the very object `uid`; one that is gone already counts as Stored. `last`: it stays until what it owns is gone."""

        async def delete() -> Object:
            propagation = "Foreground" if last else "Background"
            await self._connection.delete(resource, name, namespace=namespace, uid=uid, propagation=propagation)
            return {}

        return await self._send(resource.kind, delete)

    async def _send(self, kind: str, request: Callable[[], Awaitable[Object]]) -> Sent:
        async with self._turns:
            if not self._held(time.monotonic()):
                return NotSent()
            self._metrics.count_write(kind)
            try:
                return Stored(await self._in_time(kind, request))
            except Rejected as refusal:
                self._metrics.count_refusal(kind, refusal.status)
                return refusal
            except OutcomeUnknown as outcome:
                return outcome

    async def _in_time(self, kind: str, request: Callable[[], Awaitable[Object]]) -> Object:
        """Until the Lease may be another's; a renewal meanwhile puts that off."""
        sending = asyncio.ensure_future(request())
        try:
            while not sending.done():
                left_s = self._over_s() - time.monotonic()
                if left_s <= 0.0:
                    raise OutcomeUnknown(f"{kind}: no answer while the Lease was held")
                await asyncio.wait({sending}, timeout=None if math.isinf(left_s) else left_s)
            return sending.result()
        finally:
            if not sending.done():
                sending.cancel()
                sending.add_done_callback(_heard)


def _heard(sending: asyncio.Future[Object]) -> None:
    """Of one that was given up: how it ended is of no use to anybody."""
    if not sending.cancelled():
        sending.exception()
