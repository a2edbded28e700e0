"""The store against plain lists: it is filled, what vanished unheard is dropped, and a failed list changes nothing."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from splitwatt_client.connection import Connection
from splitwatt_operator.cluster.credentials import KopfLogin
from splitwatt_operator.cluster.resync import Resync
from splitwatt_operator.cluster.store import Key, Kind, Store
from splitwatt_operator.cluster.watch import WatchError, Watches

LEASE = Key("nowhere", "splitwatt-operator")


def ghost(name: str, version: int) -> dict[str, Any]:
    return {"kind": "PowerBudget", "metadata": {"name": name, "uid": "gone", "resourceVersion": str(version)}}


class OvertakenConnection(Connection):
    """A watch delivers something newer while the answer to a list of budgets is on its way."""

    def __init__(self, kubeconfig: Path, store: Store) -> None:
        super().__init__(kubeconfig)
        self._overtaken = store

    async def list(self, resource: Any, **selectors: Any) -> Any:
        answer = await super().list(resource, **selectors)
        if resource.kind == Kind.BUDGET:
            self._overtaken.apply(Kind.BUDGET, ghost("newer-than-the-list", int(answer.resource_version) + 1))
        return answer


async def test_a_store_that_went_back_in_time_ends_the_process(datacenter: Any) -> None:
    store = Store()
    store.apply(Kind.BUDGET, ghost("from-the-future", 2**62))
    async with Connection(datacenter.plane.kubeconfig) as connection:
        with pytest.raises(WatchError, match="went back in time"):
            await Resync(store, connection, own_lease=LEASE, relisted=asyncio.Event()).first()


async def test_the_store_becomes_what_the_lists_say(datacenter: Any) -> None:
    [node] = datacenter.add_nodes("n1")
    budget = datacenter.budget("leaf", limitWatts=40000)
    store = Store()
    store.apply(Kind.BUDGET, ghost("vanished", 1))
    async with OvertakenConnection(datacenter.plane.kubeconfig, store) as connection:
        await Resync(store, connection, own_lease=LEASE, relisted=asyncio.Event()).first()
    assert store.get(Kind.NODE, node.name) is not None
    listed = store.get(Kind.BUDGET, budget)
    assert listed is not None and listed["spec"]["limitWatts"] == 40000
    assert store.get(Kind.BUDGET, "vanished") is None
    # A watch may be ahead of a list: what is newer than the list is not judged by it.
    assert store.get(Kind.BUDGET, "newer-than-the-list") is not None
    # Heartbeats of nodes are kept, other Leases of the cluster are not.
    assert {key.namespace for key in store.keys(Kind.LEASE)} <= {"kube-node-lease"}
    assert "managedFields" not in listed["metadata"]


async def test_a_relist_makes_it_look_again(datacenter: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("splitwatt_operator.cluster.resync.PAUSE_S", 0.1)
    monkeypatch.setattr("splitwatt_operator.cluster.resync.LAG_ALLOWED_S", 0.1)
    budget = datacenter.budget("leaf", limitWatts=40000)
    store, relisted = Store(), asyncio.Event()
    async with Connection(datacenter.plane.kubeconfig) as connection:
        resync = asyncio.create_task(Resync(store, connection, own_lease=LEASE, relisted=relisted).run())
        store.apply(Kind.BUDGET, ghost("vanished", 1))
        await asyncio.sleep(0.3)
        assert store.get(Kind.BUDGET, "vanished") is not None
        relisted.set()
        heard = store.subscribe([Kind.BUDGET])
        async with asyncio.timeout(60.0):
            while store.get(Kind.BUDGET, "vanished") is not None or store.get(Kind.BUDGET, budget) is None:
                heard.wake.clear()
                await heard.wake.wait()
        resync.cancel()


async def test_a_failed_list_removes_nothing(datacenter: Any, tmp_path: Any) -> None:
    kubeconfig = tmp_path / "nobody.kubeconfig"
    kubeconfig.write_text(datacenter.plane.kubeconfig.read_text().replace(datacenter.plane.url, "https://127.0.0.1:1"))
    store = Store()
    store.apply(Kind.NODE, {**ghost("n1", 5), "kind": "Node", "status": {}})
    async with Connection(kubeconfig) as connection:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(Resync(store, connection, own_lease=LEASE, relisted=asyncio.Event()).first(), 3.0)
    assert store.get(Kind.NODE, "n1") is not None


async def test_watches_in_doubt_begin_anew_and_too_many_doubts_end_the_process(
    datacenter: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("splitwatt_operator.cluster.watch.MAX_RESTARTS", 1)
    store, kubeconfig = Store(), datacenter.plane.kubeconfig
    heard = store.subscribe([Kind.BUDGET])

    async def arrives(short: str) -> None:
        budget = datacenter.budget(short, leaf=False, limitWatts=40000)
        async with asyncio.timeout(60.0):
            while store.get(Kind.BUDGET, budget) is None:
                heard.wake.clear()
                await heard.wake.wait()

    async with Connection(kubeconfig) as connection:
        watches = Watches(store, KopfLogin(kubeconfig), connection, own_lease=LEASE)
        running = asyncio.create_task(watches.run())
        await arrives("before")
        watches.restart("the watch of nodepowers is blind")
        async with asyncio.timeout(60.0):
            while "starting them again: the watch of nodepowers is blind" not in caplog.text:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        events = watches.events
        await arrives("after")
        assert watches.events > events
        watches.restart("and again")
        with pytest.raises(WatchError, match="and again"):
            async with asyncio.timeout(60.0):
                await running
