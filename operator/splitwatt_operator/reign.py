"""One reign: what the active replica does from taking the Lease to losing it, with one term and one keeper.

A pause in which the API server was silent and nobody else took the Lease is part of it: nothing is decided or sent, and
afterwards it goes on with the same term and all that it remembers. What it sent before and knows no outcome of stays charged
(R6), and no stamp is due, for the stamps that stand are of this term (R3).

Whoever reigns next, here or elsewhere, starts from nothing but the stamps on the NodePowers (R3): a reign leaves no state
behind in memory, and the API server's fence (R2) holds off what it may still have under way. Nothing is sent at the end
of a reign, in particular nothing that would raise a cap (I5).
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from splitwatt_client.connection import Connection
from splitwatt_client.leases import HeldLease
from splitwatt_core.budget.keeper import Keeper
from splitwatt_core.policies.shipped import POLICIES
from splitwatt_core.protocol.stream import NodeDraw
from splitwatt_core.rendering.render import RenderContext
from splitwatt_shell.supervise import first_to_end

from splitwatt_operator.budgets.decision_log import DecisionLog
from splitwatt_operator.budgets.loop import BudgetLoop, grants_say_it
from splitwatt_operator.budgets.performer import Performer
from splitwatt_operator.budgets.statuses import BudgetStatuses
from splitwatt_operator.cluster.canary import Canary
from splitwatt_operator.cluster.owners import OwnerLabels
from splitwatt_operator.cluster.store import Key, Store
from splitwatt_operator.cluster.view import View
from splitwatt_operator.metrics import Metrics
from splitwatt_operator.pen import Pen
from splitwatt_operator.publish import Publisher
from splitwatt_operator.recorder import Recorder
from splitwatt_operator.serving import loop as serving
from splitwatt_operator.streams.brakes import Braker
from splitwatt_operator.streams.peers import Peers
from splitwatt_operator.streams.samples import SampleReader
from splitwatt_operator.telemetry.meters import Telemetry
from splitwatt_operator.telemetry.prometheus import PrometheusClient

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LastingParts:
    """What outlives a reign."""

    store: Store
    view: View
    owners: OwnerLabels
    connection: Connection
    prometheus: PrometheusClient
    metrics: Metrics
    recorder: Recorder
    decisions: DecisionLog
    agent_silent_s: float
    context: RenderContext
    publish_profiles: bool = False
    peers: Peers | None = None
    """Agents that listen themselves; None: grants alone are used."""


class Reign:
    """Built once the Lease is held; `run` until something ends it, and raise that. `complete` returns once the store holds
    what the API server holds."""

    def __init__(self, realm: LastingParts, lease: HeldLease, *, lease_key: Key, complete: Callable[[], Awaitable[None]]) -> None:
        store, connection, metrics = realm.store, realm.connection, realm.metrics
        self._realm = realm
        self._lease = lease
        self._keeper = keeper = Keeper(
            term=lease.term, policies=POLICIES, agent_silent_s=realm.agent_silent_s, awaits_owners=True
        )
        metrics.would_from(keeper.hand)
        self._pen = pen = Pen(connection, metrics, held=lease.held, over_s=lease.over_s)
        self._statuses = BudgetStatuses(pen, store, metrics)
        self._performer = Performer(connection, pen, keeper, done=self._wake)
        self._brakes = None if realm.peers is None else Braker(realm.peers, metrics, held=lease.held)
        self._loop = BudgetLoop(
            brake=self._brakes.start if self._brakes is not None else grants_say_it,
            store=store,
            view=realm.view,
            owners=realm.owners,
            keeper=keeper,
            performer=self._performer,
            telemetry=Telemetry(realm.prometheus, agent_silent_s=realm.agent_silent_s),
            statuses=self._statuses,
            recorder=realm.recorder,
            metrics=metrics,
            decisions=realm.decisions,
            held=lease.held,
            complete=complete,
            reigning=self._reigning,
        )
        self._canary = Canary(store, metrics, lease=lease_key, identity=lease.identity, held=lease.held)

    async def run(self) -> None:
        """Never returns by itself. Raises LeaseLostError, SupersededError, BlindError, or a bug's exception."""
        self._realm.metrics.term.set(self._lease.term)
        try:
            await first_to_end(lease=self._lease.keep(), reign=self._parts())
        finally:
            self._realm.metrics.end_reign()
            await self._performer.stop()
            if self._brakes is not None:
                await self._brakes.stop()
            await self._statuses.stop()

    async def _parts(self) -> None:
        realm = self._realm
        await self._loop.begin()
        self._reigning(True)
        optional = {"profiles": Publisher(realm.connection, self._pen).run()} if realm.publish_profiles else {}
        if realm.peers is not None:
            optional["samples"] = SampleReader(realm.peers, realm.metrics, nodes=realm.view.listening, heard=self._heard).run()
        await first_to_end(
            **optional,
            budgets=self._loop.run(),
            telemetry=self._loop.measure(),
            canary=self._canary.run(),
            events=realm.recorder.run(self._pen),
            serving=serving.run(
                realm.store,
                realm.view,
                realm.connection,
                self._pen,
                self._keeper,
                recorder=realm.recorder,
                prometheus=realm.prometheus,
                context=realm.context,
                metrics=realm.metrics,
            ),
        )

    def _reigning(self, on: bool) -> None:
        self._realm.metrics.active.set(on)
        about = {"term": self._lease.term, "identity": self._lease.identity}
        if on:
            log.info("reigning", extra=about)
        else:
            log.warning("reign over until the Lease is ours again: not renewed in time, nothing is decided or sent", extra=about)

    def problem(self) -> str | None:
        """One sentence when this reign is not well."""
        return self._loop.problem() or self._canary.problem() or self._performer.problem()

    def _heard(self, node: str, drawn: NodeDraw, sampled_s: float) -> None:
        self._keeper.on_agent_power(node, drawn.power_w, sampled_s, gpus=drawn.gpus, own=True)

    def _wake(self) -> None:
        self._loop.wake.set()
