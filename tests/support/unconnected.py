"""The operator's real parts, none of which has an API server or a Prometheus to speak to."""

from __future__ import annotations

import asyncio

from splitwatt_client.connection import Connection
from splitwatt_client.errors import Rejected
from splitwatt_client.resources import ResourceType
from splitwatt_core.budget.keeper import Keeper
from splitwatt_core.policies.shipped import POLICIES
from splitwatt_operator.budgets.decision_log import DecisionLog
from splitwatt_operator.budgets.loop import BudgetLoop
from splitwatt_operator.budgets.performer import Performer
from splitwatt_operator.budgets.statuses import BudgetStatuses
from splitwatt_operator.cluster.owners import OwnerLabels
from splitwatt_operator.cluster.store import Store
from splitwatt_operator.cluster.view import View
from splitwatt_operator.metrics import Metrics
from splitwatt_operator.pen import Pen
from splitwatt_operator.recorder import Recorder
from splitwatt_operator.telemetry.meters import Telemetry
from splitwatt_operator.telemetry.prometheus import PrometheusClient


class NothingToRead(Connection):
    """Has no right to read anything, and says so at once."""

    async def get(self, resource: ResourceType, name: str, *, namespace: str | None = None) -> None:
        raise Rejected(status=403, reason="Forbidden", message="nothing may be read here", subject=name)


class Unconnected:
    """`held`: whether the Lease is ours. `complete`: whether lists can be had; `told`: when the loop rests and goes on."""

    def __init__(self, *, held: bool = True) -> None:
        self.store, self.metrics, self.connection = Store(), Metrics(), NothingToRead()
        self.view = View(self.store)
        self.keeper = Keeper(term=1, policies=POLICIES)
        self.pen = Pen(self.connection, self.metrics, held=lambda now_s: self.held)
        self.recorder = Recorder(self.metrics, instance="test")
        self.held = held
        self.complete = asyncio.Event()
        self.complete.set()
        self.listed = 0
        self.told: list[bool] = []

    def budget_loop(self) -> BudgetLoop:
        async def complete() -> None:
            self.listed += 1
            await self.complete.wait()

        return BudgetLoop(
            store=self.store,
            view=self.view,
            owners=OwnerLabels(self.store, self.view, self.connection),
            keeper=self.keeper,
            performer=Performer(self.connection, self.pen, self.keeper, done=lambda: None),
            telemetry=Telemetry(PrometheusClient("http://127.0.0.1:1")),
            statuses=BudgetStatuses(self.pen, self.store, self.metrics),
            recorder=self.recorder,
            metrics=self.metrics,
            decisions=DecisionLog(None),
            held=lambda now_s: self.held,
            complete=complete,
            reigning=self.told.append,
        )
