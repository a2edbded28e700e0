"""The admission loop around the core's rules: what it makes of a patch that did not leave."""

from __future__ import annotations

from splitwatt_core.budget.keeper import Keeper
from splitwatt_core.policies.shipped import POLICIES
from splitwatt_operator.budgets.feeder import FACT_KINDS, Feeder
from splitwatt_operator.cluster.store import Kind
from splitwatt_operator.metrics import Metrics
from splitwatt_operator.pen import Pen
from splitwatt_operator.recorder import Recorder
from splitwatt_operator.serving.admission import Admitter
from support.objects import Objects

NOW_S = 1000.0


async def test_what_was_not_sent_for_want_of_the_lease_is_decided_anew() -> None:
    """The leaf that was decided on is gone when the Lease is back, and no pod is sent there."""
    objects, metrics = Objects(), Metrics()
    keeper, recorder = Keeper(term=1, policies=POLICIES), Recorder(metrics, instance="t")
    feeder, changes = Feeder(objects.store, objects.view, keeper, recorder), objects.store.subscribe(FACT_KINDS)
    admitter = Admitter(
        store=objects.store, view=objects.view, keeper=keeper, reader=None, recorder=recorder,  # type: ignore[arg-type]
        pen=Pen(None, metrics, held=lambda _: False), changed=lambda _: None,  # type: ignore[arg-type]
    )  # fmt: skip
    objects.budget("rack-a", "a")
    for node in ("n1", "n2"):
        objects.node(node)
        objects.node_power(node)
    objects.cluster()
    for role in ("prefill", "decode"):
        objects.pod(role, role)
    feeder.feed(changes.take(), NOW_S)
    keeper.step(NOW_S)
    assert await admitter.step()
    [standing] = admitter.standings.values()
    assert standing.verdict.admitted, "there was room"
    objects.remove(Kind.BUDGET, "rack-a")
    assert await admitter.step()
    [standing] = admitter.standings.values()
    assert (standing.verdict.admitted, standing.verdict.reason) == (False, "NoMatchingNodes")
