"""Watches by kopf, feeding the store: `on.event` handlers alone, nothing kept and nothing written by kopf itself.

kopf reconnects and relists by itself, but a relist does not tell which objects vanished meanwhile: `relisted` then asks
for a `resync`. Handlers do nothing but store, so that no event ever waits for a decision.

kopf asks once, at its start, which kinds the API server serves, and watches no other ever after. So it is started for
those that are served, and anew as soon as another one is (a CustomResourceDefinition that was deleted and made again).

Invariant: every event reaches the store, or the process ends; an operator that misses a fact must not decide.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import kopf
from splitwatt_client import resources
from splitwatt_client.errors import ApiError, Rejected
from splitwatt_client.reading import Reader
from splitwatt_client.resources import ResourceType
from splitwatt_core.names import FIELD_MANAGER_OPERATOR, LABEL_CLUSTER, LABEL_MANAGED_BY, MANAGED_BY
from splitwatt_shell.supervise import end_all

from splitwatt_operator.cluster.credentials import KopfLogin
from splitwatt_operator.cluster.store import Key, Kind, Store, key_of, version_of

log = logging.getLogger(__name__)

NODE_LEASE_NAMESPACE: Final = "kube-node-lease"
RECONNECT_DELAYS_S: Final = (0.2, 0.5, 1.0, 2.0)
"""Pauses of kopf between attempts to reach the API server; the last one repeats for as long as it takes."""
HEARTBEAT_S: Final = 20.0
"""Nodes renew their Leases every ten seconds: where there is a node, that much silence is the API server's."""
KOPF_IDENTITY: Final[Any] = FIELD_MANAGER_OPERATOR
"""Peers would know us by it, and we have none. Left out, kopf makes one of the user's name, which a container's user lacks.
Its type is not public."""
SERVED_POLL_S: Final = 1.0
MAX_RESTARTS: Final = 5
RESTART_WINDOW_S: Final = 300.0


@dataclass(frozen=True, slots=True)
class Watched:
    kind: Kind
    resource: ResourceType
    label_selector: str | None = None
    optional: bool = False
    """Nothing waits for it: where the API server does not serve it there are none."""

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
    Watched(Kind.ROLE_SCALE, resources.ROLE_SCALES, optional=True),
    Watched(Kind.BUDGET, resources.POWER_BUDGETS),
    Watched(Kind.NODE_POWER, resources.NODE_POWERS),
    Watched(Kind.PROFILE, resources.POWER_PROFILES),
    Watched(Kind.DEPLOYMENT, resources.DEPLOYMENTS, _OWNED),
    Watched(Kind.SERVICE, resources.SERVICES, _OWNED),
    Watched(Kind.PDB, resources.POD_DISRUPTION_BUDGETS, _OWNED),
    Watched(Kind.SERVICE_ACCOUNT, resources.SERVICE_ACCOUNTS, _OWNED),
    Watched(Kind.ROLE, resources.ROLES, _OWNED),
    Watched(Kind.ROLE_BINDING, resources.ROLE_BINDINGS, _OWNED),
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

    def __init__(
        self,
        store: Store,
        login: KopfLogin,
        reader: Reader,
        *,
        own_lease: Key,
        after_spawn: Callable[[], None] = lambda: None,
    ) -> None:
        self._store = store
        self._login = login
        self._reader = reader
        self._own_lease = own_lease
        self._after_spawn = after_spawn
        self._failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.relisted = asyncio.Event()
        self._doubts: deque[str] = deque(maxlen=len(WATCHED))
        self._doubted = asyncio.Event()
        self.events = 0
        self._heard_s = self._hearing_since_s = float("-inf")

    def hearing_s(self, now_s: float) -> float:
        """For how long events have come without a pause of `HEARTBEAT_S`; 0 in such a pause. Monotonic."""
        return now_s - self._hearing_since_s if now_s - self._heard_s < HEARTBEAT_S else 0.0

    def restart(self, cause: str) -> None:
        """Somebody found out that they no longer deliver. Counts as a stop of their own."""
        self._doubts.append(cause)
        self._doubted.set()

    async def run(self) -> None:
        """Restart kopf when it stops; raises WatchError when it stops too often."""
        loop = asyncio.get_running_loop()
        restarts: deque[float] = deque(maxlen=MAX_RESTARTS)
        while True:
            missing = await self._missing()
            if missing:
                log.error(
                    "not watched, for the API server does not serve it: %s; install Splitwatt's CustomResourceDefinitions",
                    ", ".join(sorted(watched.resource.plural for watched in missing)),
                )
            cause, planned = await self._run_once(missing)
            now_s = loop.time()
            if not planned:
                if len(restarts) == MAX_RESTARTS and now_s - restarts[0] < RESTART_WINDOW_S:
                    raise WatchError(f"watches stopped {MAX_RESTARTS} times in {RESTART_WINDOW_S:.0f} s, last: {cause}")
                restarts.append(now_s)
            log.warning("watches stopped, starting them again: %s", cause)
            await asyncio.sleep(RECONNECT_DELAYS_S[0 if planned else -1])
            self.relisted.set()

    async def _missing(self) -> frozenset[Watched]:
        """The kinds that the API server does not serve now; asked for as long as it takes to hear."""
        while True:
            try:
                served = {v: await self._reader.served(v) for v in {watched.resource.api_version for watched in WATCHED}}
            except Rejected as refusal:
                log.warning("cannot ask what the API server serves (%s): all kinds are watched", refusal)
                return frozenset()
            except ApiError as failure:
                log.warning("waiting to hear what the API server serves: %s", failure)
                await asyncio.sleep(SERVED_POLL_S)
                continue
            return frozenset(w for w in WATCHED if w.resource.plural not in served[w.resource.api_version])

    async def _served_again(self, missing: frozenset[Watched]) -> str:
        """Returns once one of them is served."""
        while True:
            await asyncio.sleep(SERVED_POLL_S)
            if found := missing - await self._missing():
                return f"{', '.join(sorted(watched.resource.plural for watched in found))} is served again"

    async def _doubt(self) -> str:
        await self._doubted.wait()
        return "; ".join(self._doubts)

    async def _run_once(self, missing: frozenset[Watched]) -> tuple[str, bool]:
        """Why it ended, and whether that was for the better."""
        self._doubted.clear()
        self._doubts.clear()
        kopf_tasks = await kopf.spawn_tasks(
            registry=self._registry(missing),
            settings=self._settings(),
            identity=KOPF_IDENTITY,
            standalone=True,
            clusterwide=True,
        )
        tasks: list[asyncio.Task[Any]] = [*kopf_tasks, doubt := asyncio.create_task(self._doubt())]
        served = asyncio.create_task(self._served_again(missing)) if missing else None
        if served is not None:
            tasks.append(served)
        self._after_spawn()  # kopf takes over the signal handlers; whoever owns the process takes them back
        try:
            done, _ = await asyncio.wait([*tasks, self._failed], return_when=asyncio.FIRST_COMPLETED)
            if self._failed in done and (error := self._failed.exception()) is not None:
                raise WatchError(f"a watch event could not be stored: {error!r}") from error
            if served in done:
                assert served is not None
                return served.result(), True
            if doubt in done:
                return doubt.result(), False
            causes = [repr(error) for task in done if not task.cancelled() and (error := task.exception())]
            return "; ".join(causes) or "kopf ended by itself", False
        finally:
            await end_all(tasks)

    def _registry(self, missing: frozenset[Watched]) -> kopf.OperatorRegistry:
        registry = kopf.OperatorRegistry()
        kopf.on.login(registry=registry, id="login", backoff=RECONNECT_DELAYS_S[-1])(self._login.login)
        for watched in WATCHED:
            if watched not in missing:
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
        now_s = time.monotonic()
        if now_s - self._heard_s >= HEARTBEAT_S:
            self._hearing_since_s = now_s
        self._heard_s = now_s
        if event_type is None:
            self.relisted.set()
        if kind is Kind.LEASE and not kept_lease(key, self._own_lease):
            return
        if event_type == "DELETED":
            self._store.remove(kind, key, version=version_of(obj))
        else:
            self._store.apply(kind, obj)
