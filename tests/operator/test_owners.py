"""Labels of pods that hold GPUs, read from a real API server and passed through to the keeper as they are."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from splitwatt_client import Connection
from splitwatt_client.errors import OutcomeUnknown, Rejected
from splitwatt_client.reading import ObjectList
from splitwatt_client.resources import ResourceType
from splitwatt_core.budget.keeper import Keeper
from splitwatt_core.budget.workloads import OwnerFact
from splitwatt_core.policies.shipped import POLICIES
from splitwatt_lab.controlplane import ControlPlane
from splitwatt_operator.budgets.feeder import Feeder
from splitwatt_operator.cluster import owners
from splitwatt_operator.cluster.owners import OwnerLabels
from splitwatt_operator.cluster.store import Kind
from support.endings import ends_in_the_turn_of_its_wake
from support.objects import H100_MODEL, Objects

PATIENCE_S = 30.0


@pytest.fixture
async def api(crds: ControlPlane) -> AsyncIterator[Connection]:
    async with Connection(crds.kubeconfig) as connection:
        yield connection


class Deaf(Connection):
    """Nothing it asks for by metadata is answered, but for `answers`; `refused`: kinds that it has no right to."""

    def __init__(self, refused: tuple[str, ...] = (), **answers: list[dict[str, Any]]) -> None:
        self.refused, self.answers, self.asked = refused, answers, 0

    async def list_metadata(
        self, resource: ResourceType, *, namespace: str | None = None, label_selector: str | None = None
    ) -> ObjectList:
        self.asked += 1
        if resource.plural in self.refused:
            raise Rejected(status=403, reason="Forbidden", message="may not be listed", subject="")
        if resource.plural not in self.answers:
            raise OutcomeUnknown("no answer")
        return ObjectList(tuple({"metadata": meta} for meta in self.answers[resource.plural]), "1")


def hold(objects: Objects, node: str, *pods: tuple[str, str]) -> None:
    """The node's agent tells of one GPU that these pods hold."""
    line = {"uuid": f"GPU-{node}", "model": H100_MODEL, "minCapWatts": 200, "maxCapWatts": 700, "defaultCapWatts": 700}
    workloads = [{"namespace": namespace, "pod": pod} for namespace, pod in pods]
    gpu = {**line, "health": "OK", **({"workload": workloads[0], "workloads": workloads} if pods else {})}
    objects.put(Kind.NODE_POWER, node, status={"gpus": [gpu], "bootID": "b"})


def run(plane: ControlPlane, namespace: str, name: str, **labels: str) -> str:
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": labels},
        "spec": {"containers": [{"name": "engine", "image": "none"}]},
    }
    plane.kubectl("apply", "-f", "-", stdin=json.dumps(pod))
    uid: str = plane.http.get(f"/api/v1/namespaces/{namespace}/pods/{name}").json()["metadata"]["uid"]
    return uid


async def test_holders_are_told_of_with_their_labels_and_their_namespaces(
    crds: ControlPlane, api: Connection, namespace: str
) -> None:
    crds.kubectl("label", "namespace", namespace, "team=a")
    uid = run(crds, namespace, "d", **{"llm-d.ai/role": "decode"})
    run(crds, namespace, "holds-none", app="x")
    objects = Objects()
    labels = OwnerLabels(objects.store, objects.view, api)
    hold(objects, "n1", (namespace, "d"))
    hold(objects, "n2", (namespace, "d"), (namespace, "gone"))
    assert await labels.look()
    around = {"team": "a", "kubernetes.io/metadata.name": namespace}
    found = OwnerFact(namespace, "d", uid, {"llm-d.ai/role": "decode"}, around)
    assert dict(labels.take()) == {
        (namespace, "d"): found,
        (namespace, "gone"): OwnerFact(namespace, "gone", "", {}, around),
    }
    assert await labels.look() and labels.take() == [], "told once"
    crds.kubectl("label", "pod", "d", "-n", namespace, "llm-d.ai/role-", "app=y")
    assert await labels.look()
    assert labels.take() == [((namespace, "d"), OwnerFact(namespace, "d", uid, {"app": "y"}, around))]
    hold(objects, "n1")
    assert labels.take() == [], "another GPU is still its own"
    hold(objects, "n2")
    assert dict(labels.take()) == {(namespace, "d"): None, (namespace, "gone"): None}


async def test_a_holder_that_is_named_is_read_soon_and_one_that_a_cluster_classes_is_not(
    crds: ControlPlane, api: Connection, namespace: str
) -> None:
    run(crds, namespace, "d", app="x")
    objects = Objects()
    labels, woken = OwnerLabels(objects.store, objects.view, api), asyncio.Event()
    labels.wake = woken.set
    running = asyncio.create_task(labels.run())
    objects.pod("ours", "decode")
    hold(objects, "n1", (namespace, "d"), ("s", "ours"))
    async with asyncio.timeout(PATIENCE_S):
        await woken.wait()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert [pod for pod, _ in labels.take()] == [(namespace, "d")]


async def test_who_begins_anew_is_told_of_everybody(crds: ControlPlane, api: Connection, namespace: str) -> None:
    run(crds, namespace, "d", app="x")
    objects = Objects()
    labels = OwnerLabels(objects.store, objects.view, api)
    hold(objects, "n1", (namespace, "d"))
    await labels.first()
    first = labels.take()
    assert first and labels.take() == []
    labels.tell_all()
    assert labels.take() == first


async def test_what_cannot_be_listed_changes_nothing_and_a_beginning_waits_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(owners, "GAP_S", 0.01)
    objects = Objects()
    hold(objects, "n1", ("s", "d"))
    pod = {"name": "d", "uid": "u", "labels": {"app": "x"}}
    api = Deaf(pods=[pod])
    labels = OwnerLabels(objects.store, objects.view, api)
    first = asyncio.create_task(labels.first())
    async with asyncio.timeout(PATIENCE_S):
        while api.asked < 4:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert not first.done(), "the namespaces' labels are not known"
    api.answers["namespaces"] = [{"name": "s", "labels": {"team": "a"}}]
    async with asyncio.timeout(PATIENCE_S):
        await first
    assert labels.take() == [(("s", "d"), OwnerFact("s", "d", "u", {"app": "x"}, {"team": "a"}))]
    del api.answers["pods"]
    assert not await labels.look()
    assert labels.take() == []


async def test_no_beginning_waits_for_ever_for_labels_that_cannot_be_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit may be cut meanwhile."""
    monkeypatch.setattr(owners, "GAP_S", 0.01)
    monkeypatch.setattr(owners, "FIRST_S", 0.1)
    objects = Objects()
    hold(objects, "n1", ("s", "d"))
    labels = OwnerLabels(objects.store, objects.view, Deaf(namespaces=[]))
    async with asyncio.timeout(PATIENCE_S):
        await labels.first()
    assert labels.take() == []


async def test_without_the_right_to_namespaces_the_fleet_is_ruled_all_the_same() -> None:
    """Of an older chart: pods that a rule chooses by their namespace keep their caps, all others are classed."""
    objects = Objects()
    hold(objects, "n1", ("s", "d"))
    labels = OwnerLabels(objects.store, objects.view, Deaf(("namespaces",), pods=[{"name": "d", "uid": "u"}]))
    assert await labels.look()
    assert labels.take() == [(("s", "d"), OwnerFact("s", "d", "u", {}, None))]


async def test_an_end_that_meets_its_wake_is_not_missed() -> None:
    objects = Objects()
    labels = OwnerLabels(objects.store, objects.view, Deaf(namespaces=[], pods=[]))
    await ends_in_the_turn_of_its_wake((labels.run(), labels._due.set), settled_s=0.3, patience_s=2.0)


def test_the_keeper_hears_of_each_and_of_its_end() -> None:
    class Told(Keeper):
        def __init__(self) -> None:
            super().__init__(term=1, policies=POLICIES)
            self.owners: list[object] = []

        def on_owner(self, owner: OwnerFact) -> None:
            self.owners.append(owner)
            super().on_owner(owner)

        def on_owner_gone(self, namespace: str, name: str) -> None:
            self.owners.append((namespace, name))
            super().on_owner_gone(namespace, name)

    objects, keeper = Objects(), Told()
    owner = OwnerFact("s", "d", "u")
    Feeder(objects.store, objects.view, keeper, None).feed_owners([(owner.key, owner), (("s", "e"), None)])  # type: ignore[arg-type]
    assert keeper.owners == [owner, ("s", "e")]
