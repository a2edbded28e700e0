"""LeaderWorkerSets as they are read into the store: what came, what went, and where the kind is not served."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any, cast

import pytest
from splitwatt_client.errors import Rejected
from splitwatt_client.reading import ObjectList, Reader
from splitwatt_core.clusters import ClusterSpec, EngineSpec, EngineType, RoleSpec
from splitwatt_core.rendering.render import RenderContext, render
from splitwatt_operator.cluster.store import Key, Kind, Store
from splitwatt_operator.serving.groups import AGAIN_S, NOT_SERVED, NUMBERS_S, Groups, without_groups

POOL = RoleSpec(2, 8)
NARROW = ClusterSpec(
    namespace="s", name="chat", uid="u", generation=1, model="m", engine=EngineSpec(EngineType.VLLM), prefill=POOL, decode=POOL
)  # fmt: skip
WIDE = replace(NARROW, decode=replace(POOL, nodes_per_replica=2))


def group(name: str, version: int, owner: str = "u") -> dict[str, Any]:
    meta = {
        "name": name,
        "namespace": "s",
        "resourceVersion": str(version),
        "ownerReferences": [{"controller": True, "uid": owner}],
    }
    return {"apiVersion": "leaderworkerset.x-k8s.io/v1", "kind": "LeaderWorkerSet", "metadata": meta}


class Listing:
    """The one request of it. `answer`: what comes; `asked`: how often."""

    def __init__(self, answer: ObjectList | Rejected) -> None:
        self.answer, self.asked = answer, 0

    async def list(self, *_: Any, **__: Any) -> ObjectList:
        self.asked += 1
        if isinstance(self.answer, Rejected):
            raise self.answer
        return self.answer


def listed(version: int, *items: dict[str, Any]) -> ObjectList:
    return ObjectList(items, str(version))


def read(groups: Groups, spec: ClusterSpec) -> str:
    return asyncio.run(groups.read(spec))


def made(answer: ObjectList | Rejected) -> tuple[Listing, Store, Groups]:
    listing, store = Listing(answer), Store()
    return listing, store, Groups(cast("Reader", listing), store)


def test_what_is_listed_is_known_and_what_is_listed_no_more_is_gone() -> None:
    listing, store, groups = made(listed(5, group("chat-decode-1", 3), group("others", 4, owner="v")))
    assert read(groups, WIDE) == "" and groups.again_s(WIDE, "") == NUMBERS_S
    assert set(store.keys(Kind.GROUP)) == {Key("s", "chat-decode-1"), Key("s", "others")}
    listing.answer = listed(9, group("others", 4, owner="v"))
    assert read(groups, WIDE) == "" and store.keys(Kind.GROUP) == [Key("s", "others")]


def test_one_that_was_made_after_the_list_was_taken_stays() -> None:
    _, store, groups = made(listed(5))
    store.apply(Kind.GROUP, group("chat-decode-1", 6))
    read(groups, WIDE)
    assert store.keys(Kind.GROUP) == [Key("s", "chat-decode-1")]


def test_a_cluster_on_single_nodes_is_asked_for_once_and_until_what_it_had_is_gone() -> None:
    listing, _, groups = made(listed(5, group("chat-decode-1", 3)))
    for _ in range(3):
        assert read(groups, NARROW) == ""
    assert listing.asked == 3 and groups.again_s(NARROW, "") == NUMBERS_S, "a former spec's is still there"
    listing.answer = listed(7)
    for _ in range(3):
        read(groups, NARROW)
    assert listing.asked == 4 and groups.again_s(NARROW, "") is None
    read(groups, replace(NARROW, uid="another"))
    assert listing.asked == 5, "made anew, it may have found one"


@pytest.mark.parametrize("status", [404, 403])
def test_where_it_is_not_served_or_not_to_be_read_only_who_needs_it_is_told(status: int) -> None:
    listing, store, groups = made(listed(5, group("chat-decode-1", 3)))
    read(groups, WIDE)
    listing.answer = refused(status)
    said = read(groups, WIDE)
    assert said == NOT_SERVED if status == 404 else "no such thing" in said
    assert groups.again_s(WIDE, said) == AGAIN_S
    assert bool(store.keys(Kind.GROUP)) is (status == 403), "what cannot be read may still be there"
    assert [read(groups, NARROW) for _ in range(3)] == ["", "", ""] and listing.asked == 3


def test_an_api_server_that_is_busy_is_asked_again() -> None:
    _, _, groups = made(refused(503))
    with pytest.raises(Rejected):
        read(groups, WIDE)


def test_while_sets_cannot_be_read_those_that_stand_are_not_removed_and_all_else_is_applied() -> None:
    manifests = render(WIDE, RenderContext())
    former = (Kind.DEPLOYMENT, Key("s", "chat-prefill-1"))
    applied, keep = without_groups(manifests, frozenset({former}))
    [group] = [m["metadata"]["name"] for m in manifests if m["kind"] == "LeaderWorkerSet"]
    assert keep == {former, (Kind.GROUP, Key("s", group))} and len(applied) == len(manifests) - 1


def refused(status: int) -> Rejected:
    return Rejected(status=status, reason="No", message="no such thing")
