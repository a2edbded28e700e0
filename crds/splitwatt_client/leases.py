"""Holding a Lease by compare-and-swap, and the terms that fence its former holders (docs/protocol.md, R2).

Theory: every write of the Lease carries the resourceVersion that it was decided on, so of two candidates one is
refused. Nobody compares wall clocks: a candidate takes over only after it has itself watched one and the same record
for the record's whole duration (as far as that can be true, MAX_DURATIONS), and a holder counts its own time from the
moment *before* its last successful renewal was sent, less a margin. A record is seen only after it was sent, so a
holder's time is over before a successor's begins.

A term is new for every acquisition: the caller says which follows `spec.leaseTransitions`, and it is stored there by the
very write that takes the Lease. It is therefore never used twice, also not by a process that restarts with the same name,
since each `HeldLease` adds its own random suffix to the identity.

A holding outlives a silence in which nobody else took the Lease. While no renewal succeeds, `held` is False and nothing may
be sent; whether it goes on, with the same term, is for the API server to say: either the renewal is accepted, which is
bound to the version of our own last one, or an uncached read shows our own record (uid, holder, term) still standing.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any, Final

from splitwatt_client.connection import Connection
from splitwatt_client.errors import ApiError, OutcomeUnknown, Rejected
from splitwatt_client.reading import Object
from splitwatt_client.resources import LEASES

log = logging.getLogger(__name__)

DEFAULT_DURATION_S: Final = 10
MARGIN_FRACTION: Final = 0.2
"""Share of the duration that a holder gives away: it bounds clock drift and the time a decided write takes to leave."""
RENEWALS_PER_DURATION: Final = 5
POLLS_PER_DURATION: Final = 10
MAX_DURATIONS: Final = 4
"""A record that says it is good for longer than so many of our own durations was written by another hand: no holder counts by
it, and no successor waits for it."""
MAX_INT32: Final = 2**31 - 1

NextTerm = Callable[[int | None], Awaitable[int]]
"""From the Lease's own term, None where there is no Lease, the one to take; asked again right before each attempt."""


class LeaseLostError(ApiError):
    """Somebody else holds the Lease, or it was taken away. The process that held it must not go on writing."""


class HeldLease:
    """One candidacy for one Lease, then its holding. Not reusable: after a loss begin another, with a new term."""

    def __init__(
        self,
        connection: Connection,
        *,
        namespace: str,
        name: str,
        identity: str,
        field_manager: str,
        duration_s: int = DEFAULT_DURATION_S,
    ) -> None:
        self._connection = connection
        self._namespace = namespace
        self._name = name
        self._field_manager = field_manager
        self._duration_s = duration_s
        self.identity = f"{identity}_{secrets.token_hex(4)}"
        self._term = 0
        self._version = ""
        self._uid = ""
        self._acquired_at = ""
        self._held_until_s = float("-inf")
        self.judged_s = time.monotonic()
        """When the API server last said whose the Lease is: ours by a renewal, or not ours. Monotonic; at first, now."""
        self.tried_s = time.monotonic()
        """When an attempt to take, keep or regain it last ended, in whatever way."""

    @property
    def term(self) -> int:
        """The fencing term of this holding; 0 before `acquire` has returned."""
        return self._term

    def held(self, monotonic_now_s: float) -> bool:
        """Whether the Lease is surely still ours, by this process's `time.monotonic()`. Ask before each send."""
        return monotonic_now_s < self._held_until_s

    async def acquire(self, next_term: NextTerm) -> int:
        """Wait until the Lease is ours; returns the new term. Rides out an unreachable API server.

        Raises Rejected when the server refuses access, whatever `next_term` raises except OutcomeUnknown.
        """
        seen_version, seen_since_s = "", 0.0
        while True:
            try:
                lease = await self._read()
                if lease is not None and lease["metadata"]["resourceVersion"] != seen_version:
                    seen_version, seen_since_s = lease["metadata"]["resourceVersion"], time.monotonic()
                if (lease is None or self._vacant(lease, seen_since_s)) and await self._take(lease, next_term):
                    return self._term
            except OutcomeUnknown:
                # A take-over that landed unnoticed carries our identity and is recognised by the next read.
                pass
            self.tried_s = time.monotonic()
            await asyncio.sleep(self._duration_s / POLLS_PER_DURATION)

    async def keep(self) -> None:
        """Renew until cancelled, through silences of any length; ask `held`. Raises LeaseLostError once the loss is certain."""
        while True:
            held = self.held(time.monotonic())
            await asyncio.sleep(self._duration_s / (RENEWALS_PER_DURATION if held else POLLS_PER_DURATION))
            try:
                await self._renew()
            except OutcomeUnknown as unknown:
                log.info("lease %s not renewed: %s", self._name, unknown)
            finally:
                self.tried_s = time.monotonic()

    async def release(self) -> None:
        """Give the Lease up at once, so that a successor need not wait. Best effort; harmless when not held."""
        self._held_until_s = float("-inf")
        if not self._version:
            return
        try:
            await self._write(holder="", term=self._term, version=self._version, uid=self._uid)
        except ApiError:
            # Then the successor waits for the Lease to run out, which is always safe.
            return
        finally:
            self._version = ""

    # --------------------------------------------------------------------------------------------------------- below

    def _vacant(self, lease: Object, seen_since_s: float) -> bool:
        spec = lease.get("spec") or {}
        if not spec.get("holderIdentity") or spec["holderIdentity"] == self.identity:
            return True
        duration_s = min(float(spec.get("leaseDurationSeconds") or self._duration_s), MAX_DURATIONS * self._duration_s)
        return time.monotonic() - seen_since_s > duration_s

    async def _take(self, lease: Object | None, next_term: NextTerm) -> bool:
        """One attempt; False when somebody else was faster."""
        term = await next_term(None if lease is None else (lease.get("spec") or {}).get("leaseTransitions") or 0)
        if term > MAX_INT32:
            raise LeaseLostError(f"lease {self._name}: term {term} does not fit leaseTransitions; delete the Lease")
        self._acquired_at = _now()
        try:
            if lease is None:
                sent_s = time.monotonic()
                body = self._body(holder=self.identity, term=term)
                written = await self._connection.create(body, field_manager=self._field_manager)
                self._note(written, sent_s)
            else:
                meta = lease["metadata"]
                await self._write(holder=self.identity, term=term, version=meta["resourceVersion"], uid=meta["uid"])
        except Rejected as refusal:
            if refusal.conflict:
                return False
            raise
        self._term = term
        return True

    async def _renew(self) -> None:
        try:
            await self._write(holder=self.identity, term=self._term, version=self._version, uid=self._uid)
        except Rejected as refusal:
            if not refusal.conflict:
                if not self.held(time.monotonic()):
                    raise LeaseLostError(f"lease {self._name} was not renewed in time: {refusal}") from refusal
                return  # a refusal may pass (a role binding being replaced); the clock decides
            # Either an earlier renewal of unknown outcome had landed, or the Lease is somebody else's now.
            lease = await self._read()
            if lease is None or not self._stands(lease):
                self._held_until_s = float("-inf")
                holder = ((lease or {}).get("spec") or {}).get("holderIdentity") or "nobody"
                raise LeaseLostError(f"lease {self._name} is held by {holder} now") from refusal
            self._version = lease["metadata"]["resourceVersion"]  # the next renewal is due soon and carries this one

    async def _read(self) -> Object | None:
        lease = await self._connection.get(LEASES, self._name, namespace=self._namespace)
        self.judged_s = time.monotonic()
        return lease

    def _stands(self, lease: Object) -> bool:
        """Whether this is our own record, and nobody else's was ever written over it: not another term, not a Lease made anew,
        not one from before our last renewal, as after a restore."""
        meta, spec = lease["metadata"], lease.get("spec") or {}
        return (
            meta["uid"] == self._uid
            and int(meta["resourceVersion"]) >= int(self._version)
            and spec.get("holderIdentity") == self.identity
            and spec.get("leaseTransitions") == self._term
        )

    async def _write(self, *, holder: str, term: int, version: str, uid: str) -> None:
        body = self._body(holder=holder, term=term)
        body["metadata"] |= {"resourceVersion": version, "uid": uid}
        sent_s = time.monotonic()
        written = await self._connection.apply(body, field_manager=self._field_manager)
        if holder:
            self._note(written, sent_s)

    def _note(self, written: Object, sent_s: float) -> None:
        self._version = written["metadata"]["resourceVersion"]
        self._uid = written["metadata"]["uid"]
        self._held_until_s = sent_s + self._duration_s * (1.0 - MARGIN_FRACTION)
        self.judged_s = time.monotonic()

    def _body(self, *, holder: str, term: int) -> dict[str, Any]:
        return {
            "apiVersion": LEASES.api_version,
            "kind": LEASES.kind,
            "metadata": {"name": self._name, "namespace": self._namespace},
            "spec": {
                "holderIdentity": holder,
                "leaseDurationSeconds": self._duration_s,
                "acquireTime": self._acquired_at,
                "renewTime": _now(),
                "leaseTransitions": term,
            },
        }


def _now() -> str:
    """MicroTime for people reading the Lease; no decision rests on it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
