"""Holding a Lease by compare-and-swap, and the terms that fence its former holders (docs/protocol.md, R2).

Theory: every write of the Lease carries the resourceVersion that it was decided on, so of two candidates one is
refused. Nobody compares wall clocks. When a record may be taken, and for how long after the *sending* of a renewal its holder
may send, is for a `LeaseRule` to say, which is told every record as it was seen.

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
from typing import Any, Final, Protocol, TypeVar

from splitwatt_client.connection import Connection
from splitwatt_client.errors import ApiError, OutcomeUnknown, Rejected
from splitwatt_client.reading import Object
from splitwatt_client.resources import LEASES

log = logging.getLogger(__name__)

T = TypeVar("T")

MAX_INT32: Final = 2**31 - 1
MIN_PAUSE_S: Final = 0.05
"""Between two requests, however late the next one is."""

NextTerm = Callable[[int | None], Awaitable[int]]
"""From the Lease's own term, None where there is no Lease, the one to take; asked again right before each attempt."""


class LeaseRule(Protocol):
    """Decides about one Lease, and remembers what was seen of it. Times are `time.monotonic()`, or seconds."""

    duration_s: int

    @property
    def hold_s(self) -> float:
        """For so long after the sending of a successful renewal its holder may send."""

    @property
    def renew_s(self) -> float:
        """From the sending of one renewal to that of the next."""

    @property
    def look_s(self) -> float:
        """Between two looks of a candidate, and two attempts to regain it."""

    def name(self, identity: str, *, token: str) -> str:
        """Of a holder."""

    def saw(self, version: str, holder: str, duration_s: float, *, now_s: float) -> None:
        """A look was answered. `version`: uid and resourceVersion; "": there is no Lease. `holder` "": nobody."""

    def unheard(self) -> None:
        """A look had no answer."""

    def taken(self) -> None:
        """The Lease became ours."""

    def vacant_from_s(self, *, me: str) -> float:
        """Later than this it may be taken, bound to the version last told."""

    def given_up_duration_s(self) -> int:
        """What stands in a record that its holder gave up."""


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
        rule: LeaseRule,
    ) -> None:
        self._connection = connection
        self._namespace = namespace
        self._name = name
        self._field_manager = field_manager
        self._rule = rule
        self.identity = rule.name(identity, token=secrets.token_hex(4))
        self._term = 0
        self._version = ""
        self._uid = ""
        self._acquired_at = ""
        self._sent_s = float("-inf")
        """When the last attempt to write it was sent."""
        self._held_until_s = float("-inf")
        self._over_s = float("-inf")
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

    def over_s(self) -> float:
        """Monotonic: no successor begins before that. What was sent while it was held and is not out by then is to be given
        up."""
        return self._over_s

    async def acquire(self, next_term: NextTerm) -> int:
        """Wait until the Lease is ours; returns the new term. Rides out an unreachable API server.

        Raises Rejected when the server refuses access, whatever `next_term` raises except OutcomeUnknown.
        """
        while True:
            try:
                lease = await self._look()
                if time.monotonic() > self._rule.vacant_from_s(me=self.identity) and await self._take(lease, next_term):
                    return self._term
            except OutcomeUnknown:
                # A take-over that landed unnoticed carries our identity and is recognised by the next read.
                pass
            self.tried_s = time.monotonic()
            await self._until(self._rule.vacant_from_s(me=self.identity))

    async def look(self) -> None:
        """Look until cancelled, for a candidacy that begins later. Refusals are the candidacy's to raise."""
        while True:
            try:
                await self._look()
            except ApiError as failure:
                log.debug("lease %s not seen: %s", self._name, failure)
            self.tried_s = time.monotonic()
            await asyncio.sleep(self._rule.look_s)

    async def keep(self) -> None:
        """Renew until cancelled, through silences of any length; ask `held`. Raises LeaseLostError once the loss is certain."""
        while True:
            now_s = time.monotonic()
            rest_s = self._sent_s + self._rule.renew_s - now_s if self.held(now_s) else self._rule.look_s
            await asyncio.sleep(max(MIN_PAUSE_S, rest_s))
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

    async def _look(self) -> Object | None:
        try:
            lease = await self._read()
        except OutcomeUnknown:
            self._rule.unheard()
            raise
        if lease is None:
            self._rule.saw("", "", 0.0, now_s=time.monotonic())
        else:
            meta, spec = lease["metadata"], lease.get("spec") or {}
            version = f"{meta['uid']}/{meta['resourceVersion']}"
            duration_s = float(spec.get("leaseDurationSeconds") or self._rule.duration_s)
            self._rule.saw(version, spec.get("holderIdentity") or "", duration_s, now_s=time.monotonic())
        return lease

    async def _until(self, vacant_s: float) -> None:
        """The next look: just after the Lease falls vacant, where that comes first."""
        left_s = vacant_s - time.monotonic()
        await asyncio.sleep(left_s + MIN_PAUSE_S if 0.0 < left_s < self._rule.look_s else self._rule.look_s)

    async def _take(self, lease: Object | None, next_term: NextTerm) -> bool:
        """One attempt; False when somebody else was faster."""
        term = await next_term(None if lease is None else (lease.get("spec") or {}).get("leaseTransitions") or 0)
        if term > MAX_INT32:
            raise LeaseLostError(f"lease {self._name}: term {term} does not fit leaseTransitions; delete the Lease")
        self._acquired_at = _now()
        try:
            if lease is None:
                self._sent_s = sent_s = time.monotonic()
                body = self._body(holder=self.identity, term=term)
                written = await self._in_time(self._connection.create(body, field_manager=self._field_manager))
                self._note(written, sent_s)
            else:
                meta = lease["metadata"]
                await self._write(holder=self.identity, term=term, version=meta["resourceVersion"], uid=meta["uid"])
        except Rejected as refusal:
            if refusal.conflict:
                return False
            raise
        self._term = term
        self._rule.taken()
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
        lease = await self._in_time(self._connection.get(LEASES, self._name, namespace=self._namespace))
        self.judged_s = time.monotonic()
        return lease

    async def _in_time(self, request: Awaitable[T]) -> T:
        """An answer that comes later than a renewal is good for would only keep the next attempt waiting."""
        try:
            async with asyncio.timeout(self._rule.hold_s):
                return await request
        except TimeoutError as error:
            raise OutcomeUnknown(f"lease {self._name}: no answer within {self._rule.hold_s:g} s") from error

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
        self._sent_s = sent_s = time.monotonic()
        written = await self._in_time(self._connection.apply(body, field_manager=self._field_manager))
        if holder:
            self._note(written, sent_s)

    def _note(self, written: Object, sent_s: float) -> None:
        self._version = written["metadata"]["resourceVersion"]
        self._uid = written["metadata"]["uid"]
        self._held_until_s = sent_s + self._rule.hold_s
        self._over_s = sent_s + self._rule.duration_s
        self.judged_s = time.monotonic()

    def _body(self, *, holder: str, term: int) -> dict[str, Any]:
        return {
            "apiVersion": LEASES.api_version,
            "kind": LEASES.kind,
            "metadata": {"name": self._name, "namespace": self._namespace},
            "spec": {
                "holderIdentity": holder,
                "leaseDurationSeconds": self._rule.duration_s if holder else self._rule.given_up_duration_s(),
                "acquireTime": self._acquired_at,
                "renewTime": _now(),
                "leaseTransitions": term,
            },
        }


def _now() -> str:
    """MicroTime for people reading the Lease; no decision rests on it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
