"""The admission loop around the core's rules: what it makes of a patch that did not leave."""

from __future__ import annotations

import asyncio

import pytest
from splitwatt_core.budget.keeper import Keeper
from splitwatt_core.policies.shipped import POLICIES
from splitwatt_operator.budgets.feeder import FACT_KINDS, Feeder
from splitwatt_operator.cluster.store import Kind
from splitwatt_operator.metrics import Metrics
from splitwatt_operator.pen import Pen
from splitwatt_operator.recorder import Recorder
from splitwatt_operator.serving import admission
from splitwatt_operator.serving.admission import Admitter
from splitwatt_shell.supervise import end_all
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


async def test_what_nobody_foresaw_lets_no_pod_in_and_ends_no_loop(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    objects, metrics = Objects(), Metrics()
    admitter = Admitter(
        store=objects.store, view=objects.view, keeper=Keeper(term=1, policies=POLICIES), reader=None,  # type: ignore[arg-type]
        recorder=Recorder(metrics, instance="t"), pen=Pen(None, metrics, held=lambda _: False),  # type: ignore[arg-type]
        changed=lambda _: None,
    )  # fmt: skip
    looks: list[int] = []

    def fails(*_: object) -> None:
        looks.append(1)
        raise ArithmeticError("a number that nobody foresaw")

    monkeypatch.setattr(admission, "snapshot_of", fails)
    monkeypatch.setattr(admission, "PERIOD_S", 0.02)
    monkeypatch.setattr(admission, "MIN_GAP_S", 0.01)
    loop = asyncio.create_task(admitter.run())
    while len(looks) < 3:
        await asyncio.wait([loop], timeout=0.02)
        assert not loop.done(), loop.exception()
    await end_all([loop])
    assert "a number that nobody foresaw" in caplog.text
