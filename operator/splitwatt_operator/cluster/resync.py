"""Does the store hold what the API server holds? Plain lists answer, where a watch can only promise.

Run to the end once before anything is decided (R3 counts *every* node present), after every relist of a watch (which
does not tell what vanished meanwhile), and from time to time against streams that died silently.

Invariant: an object leaves the store only when a consistent list taken at a later version lacks it; a failed list, or
one that crosses newer events, changes nothing (I5: an empty answer is not a failed one).
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from typing import Final

from splitwatt_client.errors import ApiError, Rejected
from splitwatt_client.reading import Reader
from splitwatt_shell.waiting import woken

from splitwatt_operator.cluster.store import Key, Kind, Store, key_of, version_of
from splitwatt_operator.cluster.watch import WATCHED, Watched, WatchError, kept_lease

log = logging.getLogger(__name__)

PERIOD_S: Final = 300.0
PAUSE_S: Final = 5.0
"""At most one resync in this time, however often streams relist."""
RETRY_S: Final = 1.0
SAY_AGAIN_S: Final = 30.0
LAG_ALLOWED_S: Final = 10.0
"""How long a watch may take to deliver what a list already shows, before the list's word is taken."""


@dataclass(slots=True)
class Findings:
    """What one pass put right: nothing, on a healthy day."""

    added: int = 0
    removed: int = 0


class Resync:
    """`first` returns when the store is complete; `run` then keeps it so until cancelled. Both raise WatchError when the
    API server's store went back in time."""

    def __init__(self, store: Store, reader: Reader, *, own_lease: Key, relisted: asyncio.Event) -> None:
        self._store = store
        self._reader = reader
        self._own_lease = own_lease
        self._relisted = relisted

    async def first(self) -> None:
        """Fill the store from consistent lists. Waits as long as it takes, and says for what."""
        for watched in WATCHED:
            said, said_s = "", 0.0
            while True:
                try:
                    await self._compare(watched, lag_allowed_s=0.0)
                    break
                except ApiError as failure:
                    if watched.optional and isinstance(failure, Rejected):
                        log.warning(
                            "no list of %s, and none is waited for: %s", watched.resource.plural, _advice(watched, failure)
                        )
                        break
                    advice, now_s = _advice(watched, failure), time.monotonic()
                    if advice != said or now_s - said_s > SAY_AGAIN_S:
                        log.warning("waiting for a list of %s: %s", watched.resource.plural, advice)
                        said, said_s = advice, now_s
                    await asyncio.sleep(RETRY_S)

    async def run(self) -> None:
        while True:
            self._relisted.clear()
            await woken(self._relisted, within_s=PERIOD_S)
            await asyncio.sleep(PAUSE_S)
            self._relisted.clear()
            for watched in WATCHED:
                try:
                    findings = await self._compare(watched, lag_allowed_s=LAG_ALLOWED_S)
                except ApiError as failure:
                    if watched.optional and isinstance(failure, Rejected):
                        continue
                    log.warning("no resync of %s: %s", watched.resource.plural, failure)
                    self._relisted.set()  # again, after the pause; the other kinds have their turn all the same
                    continue
                if findings.added or findings.removed:
                    log.warning(
                        "the watch of %s had missed objects: %d new or newer, %d gone",
                        watched.resource.plural, findings.added, findings.removed,
                    )  # fmt: skip

    async def _compare(self, watched: Watched, *, lag_allowed_s: float) -> Findings:
        kind, store, findings = watched.kind, self._store, Findings()
        seen_before = store.highest(kind)
        listing = await self._reader.list(watched.resource, label_selector=watched.label_selector)
        listed_at = int(listing.resource_version)
        if listed_at < seen_before:
            raise WatchError(
                f"the API server's store went back in time (version {listed_at} of {watched.resource.plural} after "
                f"{seen_before}), as after a restore from a backup: what is known here is void, start anew"
            )
        present = {key_of(obj): obj for obj in listing.items}
        if kind is Kind.LEASE:
            present = {key: obj for key, obj in present.items() if kept_lease(key, self._own_lease)}
        for key in store.keys(kind):
            known = store.get(kind, key.name, key.namespace)
            if key not in present and known is not None and version_of(known) <= listed_at:
                findings.removed += store.remove(kind, key, version=listed_at)
        if lag_allowed_s and any(self._is_news(kind, key, version_of(obj)) for key, obj in present.items()):
            await asyncio.sleep(lag_allowed_s)
        for obj in present.values():
            findings.added += store.apply(kind, obj)
        return findings

    def _is_news(self, kind: Kind, key: Key, version: int) -> bool:
        known = self._store.get(kind, key.name, key.namespace)
        return (known is None or version_of(known) < version) and self._store.deleted_at(kind, key) < version


def _advice(watched: Watched, failure: ApiError) -> str:
    name = f"{watched.resource.plural} ({watched.resource.api_version})"
    if isinstance(failure, Rejected) and failure.not_found:
        return f"the API server does not serve {name}; install Splitwatt's CustomResourceDefinitions"
    if isinstance(failure, Rejected) and failure.status == 403:
        return f"no right to list {name}; grant list and watch to the operator's service account ({failure.message})"
    return str(failure)
