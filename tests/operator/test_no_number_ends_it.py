"""Numbers and times from outside that nobody foresaw: told, counted, and nothing else stops."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import generate_latest
from splitwatt_api import convert
from splitwatt_api.base import MAX_TOLD
from splitwatt_core.budget.facts import BudgetReport
from splitwatt_core.budget.keeper import Keeper, Plan
from splitwatt_core.budget.tree import MAX_LIMIT_W, new_limit
from splitwatt_core.columns import Posture
from splitwatt_core.policies.shipped import POLICIES
from splitwatt_operator.budgets.feeder import FACT_KINDS, QUIET_KINDS, Feeder
from splitwatt_operator.budgets.loop import BudgetLoop
from splitwatt_operator.budgets.statuses import BudgetStatuses
from splitwatt_operator.cluster.owners import OwnerLabels
from splitwatt_operator.cluster.store import Key, Kind
from splitwatt_operator.metrics import Metrics
from splitwatt_operator.pen import Pen
from splitwatt_operator.recorder import Subject
from support.objects import Objects

NOW_S = 1000.0
WATTS = st.floats(min_value=0.0, max_value=1e300)


def report(name: str = "a", **changes: Any) -> BudgetReport:
    return replace(BudgetReport(name, new_limit(900, 1.0), 0.0, None, Posture.NORMAL, 0, 0, 0.0, None, ()), **changes)


@given(charge_w=WATTS, measured_w=WATTS, short_w=WATTS, gpus=st.integers(0, 10**9))
def test_any_watts_that_can_be_summed_up_can_be_told(charge_w: float, measured_w: float, short_w: float, gpus: int) -> None:
    wide = report(charge_w=charge_w, measured_w=measured_w, short_w=short_w, gpus=gpus)
    status = convert.budget_status(wide, generation=1, previous=None, now_s=NOW_S)
    assert status["chargeWatts"] >= min(charge_w, MAX_TOLD) - 1e-6
    assert abs(status["measuredWatts"] - min(measured_w, MAX_TOLD)) <= 1


class Taking:
    """An API server that takes every status."""

    def __init__(self) -> None:
        self.taken: list[str] = []

    async def apply(self, manifest: Any, **_: Any) -> Any:
        self.taken.append(manifest["metadata"]["name"])
        return manifest


def failures(metrics: Metrics) -> str:
    lines = generate_latest(metrics.registry).decode().splitlines()
    return " ".join(line for line in lines if line.startswith("splitwatt_report_failures_total"))


async def test_one_status_that_cannot_be_made_is_left_out_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    objects, api, metrics = Objects(), Taking(), Metrics()
    for name in ("a", "b", "c"):
        objects.budget(name, name)
    statuses = BudgetStatuses(Pen(api, metrics, held=lambda now_s: True), objects.store, metrics)  # type: ignore[arg-type]
    broken = report("b", limit=new_limit(900, 1e300))
    reports = {"a": report("a"), "b": broken, "c": report("c")}
    for second in range(3):
        statuses.show(reports, generations={}, invalid_meters={}, unreadable={}, now_s=NOW_S + second)
    await asyncio.sleep(0.05)
    assert api.taken == ["a", "c"]
    assert failures(metrics) == 'splitwatt_report_failures_total{kind="PowerBudget"} 3.0'
    assert len([r for r in caplog.records if r.levelname == "ERROR"]) == 1, "once, not every second"


class Loose:
    """Stands for parts of the loop that end in an error."""

    def __getattr__(self, name: str) -> Any:
        def fails(*_: Any, **__: Any) -> None:
            raise RuntimeError(name)

        return fails


async def test_what_goes_wrong_with_words_stops_neither_the_plan_nor_the_loop() -> None:
    objects, metrics, began = Objects(), Metrics(), []

    class Performing:
        def start(self, plan: Plan) -> None:
            began.append(plan)

    async def complete() -> None: ...

    loop = BudgetLoop(
        store=objects.store,
        view=objects.view,
        owners=OwnerLabels(objects.store, objects.view, Loose()),
        keeper=Keeper(term=1, policies=POLICIES),
        performer=Performing(),  # type: ignore[arg-type]
        telemetry=Loose(),  # type: ignore[arg-type]
        statuses=Loose(),  # type: ignore[arg-type]
        recorder=Loose(),  # type: ignore[arg-type]
        metrics=metrics,
        decisions=Loose(),  # type: ignore[arg-type]
        held=lambda now_s: True,
        complete=complete,
        reigning=lambda _: None,
    )
    parts = [asyncio.create_task(part) for part in (loop.run(), loop.measure())]
    done, _ = await asyncio.wait(parts, timeout=1.5)
    for part in parts:
        part.cancel()
    await asyncio.gather(*parts, return_exceptions=True)
    assert not done
    assert len(began) >= 2
    assert 'kind="DecisionLog"' in failures(metrics) and 'kind="PowerBudget"' in failures(metrics)


def test_two_valid_budgets_may_sum_up_to_more_than_may_be_typed() -> None:
    objects = Objects()
    keeper = Keeper(term=1, policies=POLICIES)
    most = {"limitWatts": 1000, "fixedWatts": MAX_LIMIT_W}
    objects.put(Kind.BUDGET, "big", spec=most)
    objects.put(Kind.BUDGET, "small", spec={**most, "parent": "big"})
    feed(objects, keeper, Heard())
    plan = keeper.step(NOW_S)
    for name, told in plan.budgets.items():
        status = convert.budget_status(told, generation=1, previous=None, now_s=NOW_S)
        assert status["chargeWatts"] == (2 if name == "big" else 1) * MAX_LIMIT_W


# ------------------------------------------------------------------------------------------------------- times of others


class Heard:
    """What would become Events."""

    def __init__(self) -> None:
        self.notes: list[tuple[str, str, str, str]] = []

    def note(self, subject: Subject, *, reason: str, message: str, warning: bool = False) -> None:
        assert warning
        self.notes.append((subject.kind, subject.name, reason, message))


def feed(objects: Objects, keeper: Keeper, heard: Heard, *keys: tuple[Kind, Key]) -> None:
    feeder = Feeder(objects.store, objects.view, keeper, heard)  # type: ignore[arg-type]
    changes = objects.store.subscribe((*FACT_KINDS, *QUIET_KINDS))
    feeder.feed(changes.take(), NOW_S)
    objects.store.unsubscribe(changes)


def lease(objects: Objects, node: str, spec: Any) -> None:
    objects.put(Kind.LEASE, node, meta={"namespace": "kube-node-lease"}, spec=spec)


BAD_TIMES = ["0000-01-01T00:00:00.000000Z", "yesterday", "2026-01-01T00:00:00", "2026-01-01T00:00:00+25:00", 7, 1e30, ["x"], {}]


@pytest.mark.parametrize("renewed", BAD_TIMES, ids=str)
def test_a_lease_whose_time_cannot_be_read_is_told_of_its_node_and_stops_no_other(renewed: Any) -> None:
    objects, heard, keeper = Objects(), Heard(), Keeper(term=1, policies=POLICIES)
    for node in ("n1", "n2"):
        objects.node(node)
    lease(objects, "n1", {"renewTime": renewed})
    lease(objects, "n2", {"renewTime": "2026-01-01T00:00:00.000000Z"})
    feed(objects, keeper, heard)
    said = [] if not renewed else [("Node", "n1", "LeaseUnreadable")]
    assert [note[:3] for note in heard.notes] == said
    assert all("kube-node-lease/n1 is ignored: renewTime" in note[3] for note in heard.notes)
    assert keeper.roster.nodes["n1"].lease_s == float("-inf"), "what cannot be read is no sign of life"
    assert keeper.roster.nodes["n2"].lease_s > 0


@pytest.mark.parametrize("spec", [None, {}, {"renewTime": None}, {"renewTime": ""}])
def test_a_lease_without_a_time_says_nothing(spec: Any) -> None:
    objects, heard, keeper = Objects(), Heard(), Keeper(term=1, policies=POLICIES)
    objects.node("n1")
    lease(objects, "n1", spec)
    feed(objects, keeper, heard)
    assert heard.notes == []


@pytest.mark.parametrize("labels", ["a=b", ["a"], 7])
def test_a_node_that_cannot_be_read_is_told_and_stops_no_other(labels: Any) -> None:
    objects, heard, keeper = Objects(), Heard(), Keeper(term=1, policies=POLICIES)
    objects.put(Kind.NODE, "n1", status={"nodeInfo": "none", "allocatable": labels})
    objects.node("n2")
    feed(objects, keeper, heard)
    assert [note[:3] for note in heard.notes] == [("Node", "n1", "Unreadable")]
    assert set(keeper.roster.nodes) == {"n2"}
