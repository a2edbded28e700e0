"""Each kind's watch is questioned: what a list shows has to arrive."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from splitwatt_client.errors import OutcomeUnknown
from splitwatt_client.reading import ObjectList
from splitwatt_client.resources import ResourceType
from splitwatt_operator.cluster import sight
from splitwatt_operator.cluster.sight import LOOKED_AT, Sight
from splitwatt_operator.cluster.store import Key, Kind, Store

PATIENCE_S = 30.0


def obj(name: str, version: int) -> dict[str, Any]:
    return {"metadata": {"name": name, "uid": name, "resourceVersion": str(version)}, "spec": {}, "status": {}}


class Lists:
    """An API server that lists what the test says; a kind that is not named is empty. `silent`: it answers nothing."""

    def __init__(self, version: int, **objects: list[dict[str, Any]]) -> None:
        self.version = version
        self.objects = objects
        self.silent = False
        self.asked: list[str] = []

    async def list_metadata(self, resource: ResourceType, *, label_selector: str | None = None) -> ObjectList:
        self.asked.append(resource.plural)
        if self.silent:
            raise OutcomeUnknown("no answer")
        return ObjectList(tuple(self.objects.get(resource.plural, ())), str(self.version))


async def said(lists: Lists, store: Store, *, rounds: int = 2, meanwhile: Any = None) -> list[str]:
    """What was told as blind while every kind had its turn so many times."""
    told: list[str] = []
    running = asyncio.create_task(Sight(store, lists, blind=told.append).run())  # type: ignore[arg-type]
    try:
        async with asyncio.timeout(PATIENCE_S):
            while len(lists.asked) <= rounds * len(LOOKED_AT) and not told:
                if meanwhile is not None:
                    meanwhile()
                await asyncio.sleep(0.001)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    return told


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sight, "TURN_S", 0.002)
    monkeypatch.setattr(sight, "LAG_ALLOWED_S", 0.05)


async def test_a_store_that_holds_what_the_lists_show_is_not_blind() -> None:
    store = Store()
    store.apply(Kind.NODE_POWER, obj("n1", 7))
    store.apply(Kind.BUDGET, obj("newer-than-the-list", 12))
    store.remove(Kind.NODE_POWER, Key("", "deleted-since"), version=11)
    lists = Lists(10, nodepowers=[obj("n1", 7), obj("deleted-since", 9)])
    assert await said(lists, store) == []
    assert {watched.resource.plural for watched in LOOKED_AT} <= set(lists.asked)


@pytest.mark.parametrize(
    ("known", "listed"),
    [([], [obj("n1", 7)]), ([obj("n1", 5)], [obj("n1", 7)]), ([obj("n1", 5)], [])],
    ids=["new", "changed", "gone"],
)
@pytest.mark.parametrize("kind", [Kind.NODE_POWER, Kind.BUDGET, Kind.PROFILE, Kind.CLUSTER, Kind.NODE, Kind.POD])
async def test_what_does_not_arrive_is_named(kind: Kind, known: list[Any], listed: list[Any]) -> None:
    store = Store()
    for each in known:
        store.apply(kind, each)
    [plural] = [watched.resource.plural for watched in LOOKED_AT if watched.kind is kind]
    [problem] = await said(Lists(10, **{plural: listed}), store)
    assert problem.startswith(f"the watch of {plural} is blind: 1 changes did not arrive")
    assert "(n1)" in problem


async def test_what_arrives_late_but_in_time_is_no_blindness() -> None:
    store, lists = Store(), Lists(10, nodepowers=[obj("n1", 7)])

    def deliver() -> None:
        if "nodepowers" in lists.asked:
            store.apply(Kind.NODE_POWER, obj("n1", 7))

    assert await said(lists, store, meanwhile=deliver) == []


async def test_an_api_server_that_is_away_proves_nothing() -> None:
    lists = Lists(10, nodepowers=[obj("n1", 7)])
    lists.silent = True
    assert await said(lists, Store()) == []
