"""One reign: what the active replica does from taking the Lease to losing it, with one term and one keeper.

Whoever reigns next, here or elsewhere, starts from nothing but the stamps on the NodePowers (R3): a reign leaves no state
behind in memory, and the API server's fence (R2) holds off what it may still have under way. Nothing is sent at the end
of a reign, in particular nothing that would raise a cap (I5).
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import Final

from splitwatt_client.connection import Connection
from splitwatt_client.leases import HeldLease
from splitwatt_core.budget.keeper import Keeper
from splitwatt_core.policies.shipped import POLICIES
from splitwatt_shell.supervise import first_to_end

from splitwatt_operator.budgets.decision_log import DecisionLog
from splitwatt_operator.budgets.loop import BudgetLoop
from splitwatt_operator.budgets.performer import Performer
from splitwatt_operator.budgets.statuses import BudgetStatuses
from splitwatt_operator.cluster.canary import Canary
from splitwatt_operator.cluster.store import Key, Store
from splitwatt_operator.cluster.view import View
from splitwatt_operator.metrics import Metrics
from splitwatt_operator.pen import Pen
from splitwatt_operator.recorder import Recorder
from splitwatt_operator.serving import loop as serving
from splitwatt_operator.telemetry.meters import Telemetry
from splitwatt_operator.telemetry.prometheus import PrometheusClient

log = logging.getLogger(__name__)

MAX_STEP_AGE_S: Final = 10.0
"""A budget loop that has not decided for this long is stuck."""


@dataclass(frozen=True, slots=True)
class LastingParts:
    """What outlives a reign."""

    store: Store
    view: View
    connection: Connection
    prometheus: PrometheusClient
    metrics: Metrics
    recorder: Recorder
    decisions: DecisionLog
    agent_silent_s: float


class Reign:
    """Built once the Lease is held; `run` until something ends it, and raise that."""

    def __init__(self, realm: LastingParts, lease: HeldLease, *, lease_key: Key) -> None:
        store, connection, metrics = realm.store, realm.connection, realm.metrics
        self._realm = realm
        self._lease = lease
        self._keeper = keeper = Keeper(term=lease.term, policies=POLICIES, agent_silent_s=realm.agent_silent_s)
        self._pen = pen = Pen(connection, metrics, held=lease.held)
        self._statuses = BudgetStatuses(pen, store, metrics)
        self._performer = Performer(connection, pen, keeper, done=self._wake)
        self._loop = BudgetLoop(
            store=store,
            view=realm.view,
            keeper=keeper,
            performer=self._performer,
            telemetry=Telemetry(realm.prometheus, agent_silent_s=realm.agent_silent_s),
            statuses=self._statuses,
            recorder=realm.recorder,
            metrics=metrics,
            decisions=realm.decisions,
        )
        self._canary = Canary(store, metrics, lease=lease_key, identity=lease.identity, held=lease.held)

    async def run(self) -> None:
        """Never returns by itself. Raises LeaseLostError, SupersededError, BlindError, or a bug's exception."""
        realm = self._realm
        realm.metrics.active.set(1)
        realm.metrics.term.set(self._lease.term)
        log.info("reigning", extra={"term": self._lease.term, "identity": self._lease.identity})
        try:
            await first_to_end(
                lease=self._lease.keep(),
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
                ),
            )
        finally:
            realm.metrics.active.set(0)
            await self._performer.stop()
            await self._statuses.stop()

    def problem(self) -> str | None:
        """One sentence when this reign is not well."""
        if (age_s := time.monotonic() - self._loop.stepped_s) > MAX_STEP_AGE_S:
            return f"no budget decision for {age_s:.0f} s"
        return self._canary.problem()

    def _wake(self) -> None:
        self._loop.wake.set()
