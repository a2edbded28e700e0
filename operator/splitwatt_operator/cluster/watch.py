"""Watches by kopf, feeding the store: `on.event` handlers alone, nothing kept and nothing written by kopf itself.

kopf reconnects and relists by itself, but a relist does not tell which objects vanished meanwhile: `relisted` then asks
for a `resync`. Handlers do nothing but store, so that no event ever waits for a decision.

Invariant: every event reaches the store, or the process ends; an operator that misses a fact must not decide.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import kopf
from splitwatt_client import resources
from splitwatt_client.resources import ResourceType
from splitwatt_core.names import LABEL_CLUSTER, LABEL_MANAGED_BY, MANAGED_BY

from splitwatt_operator.cluster.credentials import KopfLogin
from splitwatt_operator.cluster.store import Key, Kind, Store, key_of, version_of

log = logging.getLogger(__name__)

NODE_LEASE_NAMESPACE: Final = "kube-node-lease"
RECONNECT_DELAYS_S: Final = (0.2, 0.5, 1.0, 2.0)
"""Pauses of kopf between attempts to reach the API server; the last one repeats for as long as it takes."""
MAX_RESTARTS: Final = 5
RESTART_WINDOW_S: Final = 300.0


@dataclass(frozen=True, slots=True)
class Watched:
    kind: Kind
    resource: ResourceType
    label_selector: str | None = None

    @property
    def group(self) -> str:
        return self.resource.api_version.rpartition("/")[0]

    @property
    def version(self) -> str:
        return self.resource.api_version.rpartition("/")[2]


_OWNED: Final = f"{LABEL_MANAGED_BY}={MANAGED_BY}"
WATCHED: Final = (
    Watched(Kind.NODE, resources.NODES),
    Watched(Kind.LEASE, resources.LEASES),
    Watched(Kind.POD, resources.PODS, LABEL_CLUSTER),
    Watched(Kind.CLUSTER, resources.INFERENCE_CLUSTERS),
    Watched(Kind.BUDGET, resources.POWER_BUDGETS),
    Watched(Kind.NODE_POWER, resources.NODE_POWERS),
    Watched(Kind.PROFILE, resources.POWER_PROFILES),
    Watched(Kind.DEPLOYMENT, resources.DEPLOYMENTS, _OWNED),
    Watched(Kind.SERVICE, resources.SERVICES, _OWNED),
    Watched(Kind.PDB, resources.POD_DISRUPTION_BUDGETS, _OWNED),
)


class WatchError(RuntimeError):
    """Watching cannot go on; the process has to be started anew."""


class _Forever:
    """kopf's pauses between attempts, without an end: an API server that is away is waited for, not died of."""

    def __iter__(self) -> Iterator[float]:
        yield from RECONNECT_DELAYS_S
        while True:
            yield RECONNECT_DELAYS_S[-1]


def kept_lease(key: Key, own: Key) -> bool:
    """Of all Leases only the nodes' heartbeats and our own are of interest."""
    return key.namespace == NODE_LEASE_NAMESPACE or key == own


class Watches:
    """`run` until cancelled. `relisted` is set whenever a stream began anew and the store may hold what is gone."""

    def __init__(self, store: Store, login: KopfLogin, *, own_lease: Key, after_spawn: Callable[[], None] = lambda: None) -> None:
        self._store = store
        self._login = login
        self._own_lease = own_lease
        self._after_spawn = after_spawn
        self._failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.relisted = asyncio.Event()
        self.events = 0

    async def run(self) -> None:
        """Restart kopf when it stops; raises WatchError when it stops too often."""
        loop = asyncio.get_running_loop()
        restarts: deque[float] = deque(maxlen=MAX_RESTARTS)
        while True:
            cause = await self._run_once()
            now_s = loop.time()
            if len(restarts) == MAX_RESTARTS and now_s - restarts[0] < RESTART_WINDOW_S:
                raise WatchError(f"watches stopped {MAX_RESTARTS} times in {RESTART_WINDOW_S:.0f} s, last: {cause}")
            restarts.append(now_s)
            log.warning("watches stopped, starting them again: %s", cause)
            await asyncio.sleep(RECONNECT_DELAYS_S[-1])
            self.relisted.set()

    async def _run_once(self) -> str:
        tasks = await kopf.spawn_tasks(registry=self._registry(), settings=self._settings(), standalone=True, clusterwide=True)
        self._after_spawn()  # kopf takes over the signal handlers; whoever owns the process takes them back
        try:
            done, _ = await asyncio.wait([*tasks, self._failed], return_when=asyncio.FIRST_COMPLETED)
            if self._failed in done and (error := self._failed.exception()) is not None:
                raise WatchError(f"a watch event could not be stored: {error!r}") from error
            causes = [repr(task.exception()) for task in done if not task.cancelled() and task.exception()]
            return "; ".join(causes) or "kopf ended by itself"
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _registry(self) -> kopf.OperatorRegistry:
        registry = kopf.OperatorRegistry()
        kopf.on.login(registry=registry, id="login", backoff=RECONNECT_DELAYS_S[-1])(self._login.login)
        for watched in WATCHED:
            kopf.on.event(watched.group, watched.version, watched.resource.plural, registry=registry, id=watched.kind.value)(
                self._handler(watched.kind)
            )
        return registry

    def _settings(self) -> kopf.OperatorSettings:
        settings = kopf.OperatorSettings()
        settings.process.ultimate_exiting_timeout = None  # its timer would kill us after a restart of the watches
        settings.posting.enabled = False
        settings.scanning.disabled = True  # no rights on namespaces and CRDs needed
        settings.networking.connect_timeout = 5.0
        settings.networking.request_timeout = 30.0
        settings.networking.error_backoffs = _Forever()
        for watched in WATCHED:
            if watched.label_selector is not None:
                settings.watching.label_selectors[watched.group, watched.version, watched.resource.plural] = (
                    watched.label_selector
                )
        return settings

    def _handler(self, kind: Kind) -> Any:
        async def on_event(event: Any, **_: Any) -> None:
            try:
                self._take(kind, event["type"], event["object"])
            except Exception as error:  # noqa: BLE001  # kopf would log it and go on with a store that misses a fact
                if not self._failed.done():
                    self._failed.set_exception(error)

        return on_event

    def _take(self, kind: Kind, event_type: str | None, obj: dict[str, Any]) -> None:
        key = key_of(obj)
        self.events += 1
        if event_type is None:
            self.relisted.set()
        if kind is Kind.LEASE and not kept_lease(key, self._own_lease):
            return
        if event_type == "DELETED":
            self._store.remove(kind, key, version=version_of(obj))
        else:
            self._store.apply(kind, obj)
