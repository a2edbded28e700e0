"""The operator's pen on a real API server: nothing leaves once the Lease is in doubt, and four outcomes are told apart."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from splitwatt_client import Connection, OutcomeUnknown, Rejected
from splitwatt_client.resources import (
    CONFIG_MAPS,
    DEPLOYMENTS,
    EVENTS_V1,
    INFERENCE_CLUSTERS,
    POD_DISRUPTION_BUDGETS,
    ROLE_BINDINGS,
    ROLES,
    SERVICE_ACCOUNTS,
    SERVICES,
    ResourceType,
)
from splitwatt_core.budget.facts import Outcome, Plan, SpecWrite
from splitwatt_core.budget.facts import Rejected as NotWritten
from splitwatt_core.budget.keeper import Keeper
from splitwatt_core.names import LABEL_CLUSTER
from splitwatt_core.policies.shipped import POLICIES
from splitwatt_core.protocol.contract import Mode, Spec
from splitwatt_core.rendering.render import RenderContext
from splitwatt_lab.controlplane import ControlPlane
from splitwatt_operator.budgets.performer import Performer
from splitwatt_operator.cluster.store import Kind, Store
from splitwatt_operator.cluster.view import View
from splitwatt_operator.metrics import Metrics
from splitwatt_operator.pen import NotSent, Pen, Stored
from splitwatt_operator.recorder import Recorder, Subject
from splitwatt_operator.serving import loop as serving
from support.flaky_proxy import flaky

PATIENCE_S = 60.0
POLL_S = 0.05


@pytest.fixture
async def api(crds: ControlPlane) -> AsyncIterator[Connection]:
    async with Connection(crds.kubeconfig) as connection:
        yield connection


class Ink:
    """The pen's two ends that a test holds: a Lease that is lost after so many sends, and the count of what was sent."""

    def __init__(self, sends: float) -> None:
        self.sends = sends
        self.metrics = Metrics()

    def pen(self, connection: Connection) -> Pen:
        return Pen(connection, self.metrics, held=lambda now_s: sum(self.sent().values()) < self.sends)

    def sent(self) -> dict[str, float]:
        """Writes by kind, as /metrics counts them."""
        samples = (sample for metric in self.metrics.api_writes.collect() for sample in metric.samples)
        return {sample.labels["kind"]: sample.value for sample in samples if sample.name.endswith("_total")}


def note(namespace: str, name: str = "note", **metadata: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": namespace, **metadata}}


def inference_cluster(namespace: str) -> dict[str, Any]:
    pool = {"replicas": 1, "gpusPerReplica": 8, "nodeSelector": {"pool": "p"}}
    return {
        "apiVersion": INFERENCE_CLUSTERS.api_version,
        "kind": "InferenceCluster",
        "metadata": {"name": "chat", "namespace": namespace},
        "spec": {"model": {"name": "test/model"}, "engine": {"type": "Emulated"}, "prefill": pool, "decode": pool},
    }


async def eventually(what: str, probe: Callable[[], bool]) -> None:
    try:
        async with asyncio.timeout(PATIENCE_S):
            while not probe():  # noqa: ASYNC110 - counters have no event to wait for
                await asyncio.sleep(POLL_S)
    except TimeoutError:
        raise AssertionError(f"{what}: not within {PATIENCE_S:g} s") from None


async def owned(api: Connection, namespace: str) -> int:
    """Objects of the cluster that stand at the API server."""
    kinds: tuple[ResourceType, ...] = (
        DEPLOYMENTS, SERVICES, POD_DISRUPTION_BUDGETS, SERVICE_ACCOUNTS, ROLES, ROLE_BINDINGS,
    )  # fmt: skip
    return sum([len((await api.list(kind, namespace=namespace, label_selector=LABEL_CLUSTER)).items) for kind in kinds])


async def test_an_operator_deposed_in_the_middle_of_a_burst_sends_nothing_more(api: Connection, namespace: str) -> None:
    store, ink = Store(), Ink(sends=3)
    store.apply(Kind.CLUSTER, await api.create(inference_cluster(namespace)))
    keeper, recorder = Keeper(term=1, policies=POLICIES), Recorder(ink.metrics, instance="test")
    task = asyncio.create_task(
        serving.run(store, View(store), api, ink.pen(api), keeper, recorder=recorder, context=RenderContext(), metrics=Metrics())
    )
    try:
        await eventually("three objects", lambda: sum(ink.sent().values()) >= 3)
        await asyncio.sleep(2 * serving.LEASE_PAUSE_S)  # it looks again meanwhile
        assert sum(ink.sent().values()) == 3
        assert await owned(api, namespace) == 3
        cluster = await api.get(INFERENCE_CLUSTERS, "chat", namespace=namespace)
        assert cluster is not None
        assert "conditions" not in cluster.get("status", {}), "nothing is said about a state that was not brought about"

        ink.sends = float("inf")
        await eventually("the rest", lambda: ink.sent().get("InferenceCluster/status", 0) > 0)
        kinds = ("Deployment", "Service", "PodDisruptionBudget")
        assert [ink.sent()[kind] for kind in kinds] == [3, 3, 3], "what was sent before is not sent again"
        assert await owned(api, namespace) == 12
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_sentence_that_was_not_sent_is_said_as_soon_as_the_lease_is_back(
    api: Connection, namespace: str, caplog: pytest.LogCaptureFixture
) -> None:
    made = await api.create(inference_cluster(namespace))
    store, ink = Store(), Ink(sends=0)
    store.apply(Kind.CLUSTER, {**made, "spec": {**made["spec"], "prefill": "none"}})
    keeper, recorder = Keeper(term=1, policies=POLICIES), Recorder(ink.metrics, instance="test")
    with caplog.at_level(logging.WARNING):
        task = asyncio.create_task(
            serving.run(
                store, View(store), api, ink.pen(api), keeper, recorder=recorder, context=RenderContext(), metrics=Metrics()
            )
        )
        try:
            await eventually("it was looked at", lambda: any(r.name.endswith(".recorder") for r in caplog.records))
            assert ink.sent() == {}
            ink.sends = 1
            await eventually("its status", lambda: ink.sent() == {"InferenceCluster/status": 1})
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def test_a_grant_that_was_not_sent_is_no_longer_in_flight() -> None:
    """To the ledger it is as a refusal: it never happened, and the next step may decide anew."""
    told: list[Outcome] = []

    class Listening(Keeper):
        def on_outcome(self, write: SpecWrite, outcome: Outcome, now_s: float) -> None:
            told.append(outcome)
            super().on_outcome(write, outcome, now_s)

    nowhere, ink, done = Connection(), Ink(sends=0), asyncio.Event()
    performer = Performer(nowhere, ink.pen(nowhere), Listening(term=1, policies=POLICIES), done=done.set)
    performer.start(Plan(writes=(SpecWrite("n1", "u1", 1, Spec(term=1, for_uid="u1", mode=Mode.STRICT)),)))
    await asyncio.wait_for(done.wait(), PATIENCE_S)
    await performer.stop()
    assert told == [NotWritten("not sent: the Lease is not surely held")]
    assert ink.sent() == {}


async def test_what_waited_for_its_turn_is_not_sent_when_the_lease_went_meanwhile(
    crds: ControlPlane, namespace: str, tmp_path: Path
) -> None:
    async with flaky(crds, tmp_path) as (proxy, kubeconfig), Connection(kubeconfig, request_timeout_s=PATIENCE_S) as connection:
        ink = Ink(sends=9)
        lane = ink.pen(connection).lane(1)
        proxy.answers = False
        tasks = [asyncio.create_task(lane.apply(note(namespace))) for _ in range(3)]
        await eventually("the first is under way", lambda: proxy.connections > 0)
        ink.sends, proxy.answers = 0, True
        proxy.cut()
        outcomes = await asyncio.gather(*tasks)
    assert [type(outcome) for outcome in outcomes] == [OutcomeUnknown, NotSent, NotSent]
    assert ink.sent() == {"ConfigMap": 1}


async def test_lanes_do_not_wait_for_each_other(crds: ControlPlane, namespace: str, tmp_path: Path) -> None:
    async with flaky(crds, tmp_path) as (proxy, kubeconfig), Connection(kubeconfig, request_timeout_s=PATIENCE_S) as connection:
        ink = Ink(sends=9)
        pen = ink.pen(connection)
        busy, free = pen.lane(1), pen.lane(1)
        proxy.answers = False
        tasks = [asyncio.create_task(lane.apply(note(namespace))) for lane in (busy, busy, free)]
        await eventually("one send in each lane", lambda: ink.sent() == {"ConfigMap": 2})
        assert not any(task.done() for task in tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert ink.sent() == {"ConfigMap": 2}, "the second of the busy lane waited"


async def test_stored_rejected_and_unknown_are_told_apart(crds: ControlPlane, namespace: str, tmp_path: Path) -> None:
    async with flaky(crds, tmp_path) as (proxy, kubeconfig), Connection(kubeconfig, request_timeout_s=1.0) as connection:
        ink = Ink(sends=9)
        pen = ink.pen(connection)
        made = await pen.create(note(namespace))
        assert isinstance(made, Stored)
        uid = made.obj["metadata"]["uid"]
        again = await pen.create(note(namespace))
        assert isinstance(again, Rejected)
        assert again.conflict
        other = await pen.delete(CONFIG_MAPS, "note", namespace=namespace, uid="another")
        assert isinstance(other, Rejected)
        label = [{"op": "add", "path": "/metadata/labels", "value": {"a": "b"}}]
        patched = await pen.patch(CONFIG_MAPS, "note", label, namespace=namespace)
        assert isinstance(patched, Stored)
        assert patched.obj["metadata"]["labels"] == {"a": "b"}
        proxy.answers = False
        assert isinstance(await pen.apply(note(namespace, uid=uid)), OutcomeUnknown)
        proxy.answers = True
        assert await pen.delete(CONFIG_MAPS, "note", namespace=namespace, uid=uid) == Stored({})
        assert await pen.delete(CONFIG_MAPS, "note", namespace=namespace, uid=uid) == Stored({})
        assert ink.sent() == {"ConfigMap": 7}, "each was sent once and counted once"


async def test_events_of_a_deposed_operator_are_dropped_and_counted(api: Connection, namespace: str) -> None:
    ink = Ink(sends=1)
    recorder = Recorder(ink.metrics, instance="test")
    subject = Subject("v1", "Namespace", namespace, namespace)
    recorder.note(subject, reason="First", message="It is said.")
    recorder.note(subject, reason="Second", message="It is not.")
    task = asyncio.create_task(recorder.run(ink.pen(api)))
    try:
        await eventually("one is dropped", lambda: ink.metrics.registry.get_sample_value("splitwatt_events_dropped_total") == 1)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert ink.sent() == {"Event": 1}
    found = (await api.list(EVENTS_V1, namespace=namespace)).items
    assert [event["reason"] for event in found] == ["First"]


async def test_a_send_without_answer_is_given_up_when_a_successor_may_begin(
    crds: ControlPlane, namespace: str, tmp_path: Path
) -> None:
    """A renewal meanwhile puts that off, and what is answered in time is not disturbed."""
    loop = asyncio.get_running_loop()
    async with flaky(crds, tmp_path) as (proxy, kubeconfig), Connection(kubeconfig, request_timeout_s=60.0) as slow:
        ends = [loop.time() + 1.0]
        pen = Pen(slow, Metrics(), held=lambda now_s: True, over_s=lambda: ends[0])
        assert isinstance(await pen.create(note(namespace, "first")), Stored)
        proxy.answers = False
        began_s = loop.time()
        sending = asyncio.create_task(pen.create(note(namespace, "second")))
        await asyncio.sleep(0.5)
        ends[0] = began_s + 2.0
        await asyncio.sleep(1.0)
        assert not sending.done()
        assert isinstance(await asyncio.wait_for(sending, PATIENCE_S), OutcomeUnknown)
        assert 2.0 <= loop.time() - began_s < 30.0
        proxy.answers = True
        proxy.cut()
