"""The process: one store and its watches for life, one reign after another while the Lease is ours.

A standby watches too, so that it takes over with a full store. A reign outlasts an API server that was away, unless
somebody took the Lease meanwhile. Losing it otherwise (it was deleted, or given away by hand) begins a new candidacy with a
new term, exactly as a new process would; a higher term ends the process (R2). SIGTERM and SIGINT stop everything at once:
sending stops, the Lease is given up, no cap changes.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import AsyncExitStack
from typing import Final

from splitwatt_client.connection import Connection
from splitwatt_client.errors import ApiError, ConfigurationError
from splitwatt_client.leases import HeldLease, LeaseLostError
from splitwatt_client.resources import LEASES, NODE_POWERS
from splitwatt_client.tokens import AudienceTokens
from splitwatt_core.names import FIELD_MANAGER_OPERATOR
from splitwatt_core.protocol.candidacy import Candidacy
from splitwatt_core.protocol.terms import TermsError, next_term
from splitwatt_shell.serve import ListenError, serve
from splitwatt_shell.supervise import end_all, first_to_end, on_stop_signal

from splitwatt_operator.budgets.decision_log import DecisionLog, LogFileError
from splitwatt_operator.budgets.loop import SupersededError
from splitwatt_operator.cluster.canary import BlindError
from splitwatt_operator.cluster.credentials import KopfLogin
from splitwatt_operator.cluster.owners import OwnerLabels
from splitwatt_operator.cluster.resync import Resync
from splitwatt_operator.cluster.sight import Sight
from splitwatt_operator.cluster.store import Key, Store
from splitwatt_operator.cluster.view import View
from splitwatt_operator.cluster.watch import WatchError, Watches
from splitwatt_operator.life import Life
from splitwatt_operator.metrics import Metrics
from splitwatt_operator.options import LEASE_NAME, Options
from splitwatt_operator.recorder import Recorder
from splitwatt_operator.reign import LastingParts, Reign
from splitwatt_operator.streams.peers import Peers
from splitwatt_operator.telemetry.prometheus import PrometheusClient

log = logging.getLogger(__name__)

REQUEST_TIMEOUT_S: Final = 5.0
READ_RETRY_S: Final = 1.0
LEASE_SILENCE_S: Final = 60.0
"""Whoever seeks the Lease hears that often, at least, whose it is; unless the API server is silent to everybody."""
HEARING_S: Final = 30.0
"""An API server that the watches have heard for this long is not silent to everybody."""

EXIT_STOPPED: Final = 0
EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2
EXIT_SUPERSEDED: Final = 3


class Application:
    """One process. `run` returns its exit code; the last log line says why it ended."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._lease_key = Key(options.namespace, LEASE_NAME)
        self._stop = asyncio.Event()
        self._lease: HeldLease | None = None
        self._highest_held = 0
        """The highest term of a reign of this process."""
        self._reign: Reign | None = None
        self._watches: Watches | None = None

    async def run(self) -> int:
        try:
            await self._run()
        except (ListenError, ConfigurationError, LogFileError) as error:
            log.error("%s", error)
            return EXIT_USAGE
        except SupersededError as error:
            log.error("stopping, superseded: %s", error)
            return EXIT_SUPERSEDED
        except (WatchError, BlindError, ApiError, TermsError) as error:
            log.error("stopping: %s", error)
            return EXIT_FAILED
        except Exception:
            # A bug. The process ends, caps stay, and the next one starts from the stamps.
            log.exception("stopping: an error that should not happen")
            return EXIT_FAILED
        log.info("stopped; every cap stays as it is")
        return EXIT_STOPPED

    async def _run(self) -> None:
        options = self._options
        self._take_signals()
        metrics, store = Metrics(), Store()
        async with AsyncExitStack() as stack:
            decisions = DecisionLog(options.decision_log)
            stack.callback(decisions.close)
            life = Life(options.state_dir)
            stack.callback(life.close)  # after the connection
            candidacy = Candidacy(duration_s=options.lease_s, life=life.token)
            await stack.enter_async_context(serve(options.listen, metrics.registry, health=self._health))
            connection = await stack.enter_async_context(
                Connection(options.kubeconfig, request_timeout_s=REQUEST_TIMEOUT_S, user_agent=FIELD_MANAGER_OPERATOR)
            )
            prometheus = await stack.enter_async_context(PrometheusClient(options.end_point))
            recorder = Recorder(metrics, instance=options.identity)
            view = View(store)
            peers = None
            if options.stream_account:
                tokens = AudienceTokens(connection, namespace=options.namespace, account=options.stream_account)
                peers = await stack.enter_async_context(Peers(tokens, endpoint_of=view.endpoint))
            metrics.caps_from(lambda: [np.spec for np in view.node_powers.facts.values() if np.spec is not None])
            realm = LastingParts(
                store,
                view,
                OwnerLabels(store, view, connection),
                connection,
                prometheus,
                metrics,
                recorder,
                decisions,
                options.agent_silent_s,
                options.context,
                publish_profiles=options.publish_profiles,
                peers=peers,
            )
            self._watches = watches = Watches(
                store,
                KopfLogin(options.kubeconfig),
                connection,
                own_lease=self._lease_key,
                after_spawn=self._take_signals,
            )
            resync = Resync(store, connection, own_lease=self._lease_key, relisted=watches.relisted)
            sight = Sight(store, connection, blind=watches.restart)
            await first_to_end(signals=self._stop.wait(), work=self._work(realm, candidacy, watches, resync, sight))

    async def _work(self, realm: LastingParts, candidacy: Candidacy, watches: Watches, resync: Resync, sight: Sight) -> None:
        """Nothing begins before every kind could be listed once. The Lease is looked at meanwhile: what was seen counts."""
        looking = asyncio.create_task(self._new_lease(realm, candidacy).look())
        try:
            await resync.first()
        finally:
            await end_all({looking})
        await first_to_end(
            kopf=watches.run(),
            resync=resync.run(),
            sight=sight.run(),
            owners=realm.owners.run(),
            rule=self._rule(realm, candidacy, resync),
        )

    async def _rule(self, realm: LastingParts, candidacy: Candidacy, resync: Resync) -> None:
        """Candidacy, reign, and again."""

        async def complete() -> None:
            await resync.first()
            await realm.owners.first()

        while True:
            log.info("waiting for the Lease", extra={"lease": LEASE_NAME, "namespace": self._options.namespace})
            self._lease = lease = self._new_lease(realm, candidacy)
            self._highest_held = await lease.acquire(lambda last: term_after(last, realm.connection, held=self._highest_held))
            self._reign = Reign(realm, lease, lease_key=self._lease_key, complete=complete)
            try:
                await self._reign.run()
            except LeaseLostError as loss:
                log.warning("reign over: %s", loss, extra={"term": lease.term})
                self._lease = None
                await self._refuse_if_superseded(realm.connection, lease.term)
            finally:
                self._reign = None
                await lease.release()

    def _new_lease(self, realm: LastingParts, candidacy: Candidacy) -> HeldLease:
        """One at a time is sought or held: they share what was seen, and the life of this process."""
        return HeldLease(
            realm.connection,
            namespace=self._options.namespace,
            name=LEASE_NAME,
            identity=self._options.identity,
            field_manager=FIELD_MANAGER_OPERATOR,
            rule=candidacy,
        )

    async def _refuse_if_superseded(self, connection: Connection, term: int) -> None:
        """A Lease lost to silence may be sought again; one that another took ends the process (R2)."""
        while True:
            try:
                lease = await connection.get(LEASES, LEASE_NAME, namespace=self._options.namespace)
                break
            except ApiError as error:
                log.warning("waiting for the API server: %s", error)
                await asyncio.sleep(READ_RETRY_S)
        found = ((lease or {}).get("spec") or {}).get("leaseTransitions") or 0
        if found > term:
            raise SupersededError(f"the Lease carries term {found}, above ours ({term})")

    def _health(self) -> str | None:
        problem = None
        if self._lease is not None and self._watches is not None:
            now_s = time.monotonic()
            problem = lease_problem(self._lease, hearing_s=self._watches.hearing_s(now_s), now_s=now_s)
        return problem or (None if self._reign is None else self._reign.problem())

    def _take_signals(self) -> None:
        on_stop_signal(self._stop.set)


def lease_problem(lease: HeldLease, *, hearing_s: float, now_s: float) -> str | None:
    """One sentence when nothing was heard of the Lease for too long, though somebody should have asked, or was answered:
    `hearing_s` says for how long the API server has answered the watches. Its silence alone is nobody's fault in here."""
    silent_s = now_s - lease.judged_s
    if silent_s < LEASE_SILENCE_S or (now_s - lease.tried_s < LEASE_SILENCE_S and hearing_s < HEARING_S):
        return None
    return f"the Lease was neither held nor refused for {silent_s:.0f} s: no cap can be moved from here"


async def term_after(last: int | None, connection: Connection, *, held: int) -> int:
    """The term that follows `last`, the Lease's own, and all that NodePowers carry or their agents have obeyed, from a consistent
    read (R2): after a restore of the store agents know terms that no object shows. Raises ApiError, TermsError."""
    listing = await connection.list(NODE_POWERS)
    carried = [(obj.get("spec") or {}).get("term") or 0 for obj in listing.items]
    obeyed = [(obj.get("status") or {}).get("observedTerm") or 0 for obj in listing.items]
    return next_term(last, carried=carried, obeyed=obeyed, held=held)
