"""Does the watch of each kind deliver? Lists of metadata alone say what should have arrived.

The canary hears one kind only, our own Lease. A stream of any other can be missing altogether (kopf began before the kind was
served) or can have died without a word. One kind is looked at after another, so that each has its turn about every half
minute; whatever a list shows has to be in the store `LAG_ALLOWED_S` later. A kind that fails this is told to `blind`,
which begins all watches anew; `Resync` then brings what was missed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from splitwatt_client.errors import ApiError
from splitwatt_client.reading import Reader
from splitwatt_core.conditions import some

from splitwatt_operator.cluster.store import Key, Kind, Store, key_of, version_of
from splitwatt_operator.cluster.watch import WATCHED, Watched

log = logging.getLogger(__name__)

TURN_S: Final = 3.0
"""Between two kinds."""
LAG_ALLOWED_S: Final = 15.0
"""What a list shows must have come through the watch by then."""
LOOKED_AT: Final = tuple(watched for watched in WATCHED if watched.kind is not Kind.LEASE)


class Sight:
    """`run` until cancelled. `blind` is told one sentence, once per look that finds a kind blind."""

    def __init__(self, store: Store, reader: Reader, *, blind: Callable[[str], None]) -> None:
        self._store = store
        self._reader = reader
        self._blind = blind

    async def run(self) -> None:
        while True:
            for watched in LOOKED_AT:
                await asyncio.sleep(TURN_S)
                try:
                    problem = await self._look(watched)
                except ApiError as failure:
                    log.debug("no look at %s: %s", watched.resource.plural, failure)
                    continue
                if problem is not None:
                    self._blind(problem)
                    await asyncio.sleep(LAG_ALLOWED_S)  # the new watches have to list first

    async def _look(self, watched: Watched) -> str | None:
        """One sentence when the watch of this kind has missed something. Raises ApiError."""
        listing = await self._reader.list_metadata(watched.resource, label_selector=watched.label_selector)
        listed_at = int(listing.resource_version)
        listed = {key_of(obj): version_of(obj) for obj in listing.items}
        if not self._missed(watched.kind, listed, listed_at):
            return None
        await asyncio.sleep(LAG_ALLOWED_S)
        missed = self._missed(watched.kind, listed, listed_at)
        if not missed:
            return None
        names = some(sorted(key.name for key in missed))
        return (
            f"the watch of {watched.resource.plural} is blind: {len(missed)} changes did not arrive within "
            f"{LAG_ALLOWED_S:.0f} s ({names})"
        )

    def _missed(self, kind: Kind, listed: dict[Key, int], listed_at: int) -> set[Key]:
        """What the store should know by this list: newer versions, and objects that are gone."""
        newer = {
            key
            for key, version in listed.items()
            if self._version(kind, key) < version and self._store.deleted_at(kind, key) < version
        }
        gone = {key for key in self._store.keys(kind) if key not in listed and self._version(kind, key) <= listed_at}
        return newer | gone

    def _version(self, kind: Kind, key: Key) -> int:
        known = self._store.get(kind, key.name, key.namespace)
        return -1 if known is None else version_of(known)
