"""The store only moves forward, whatever order versions and deletions arrive in."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from splitwatt_operator.cluster import store as store_module
from splitwatt_operator.cluster.slim import slim
from splitwatt_operator.cluster.store import Change, Key, Kind, Store


def budget(name: str, version: int, **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "splitwatt.io/v1alpha1",
        "kind": "PowerBudget",
        "metadata": {"name": name, "uid": "u", "resourceVersion": str(version), "managedFields": [{"x": "y"}]},
        "spec": spec,
    }


def version(store: Store, name: str) -> int | None:
    found = store.get(Kind.BUDGET, name)
    return None if found is None else int(found["metadata"]["resourceVersion"])


def test_an_older_version_is_no_news() -> None:
    store = Store()
    assert store.apply(Kind.BUDGET, budget("a", 9))
    assert not store.apply(Kind.BUDGET, budget("a", 8))
    assert not store.apply(Kind.BUDGET, budget("a", 9))
    assert version(store, "a") == 9
    # Versions are numbers: 10 is after 9, which strings would not say.
    assert store.apply(Kind.BUDGET, budget("a", 10))


def test_its_own_status_that_comes_back_is_told_and_wakes_nobody() -> None:
    store = Store()
    store.apply(Kind.BUDGET, budget("a", 1, limitWatts=900))
    changes = store.subscribe([Kind.BUDGET, Kind.NODE_POWER])

    def woken_by(kind: Kind, obj: dict[str, Any]) -> bool:
        changes.take()
        changes.wake.clear()
        assert store.apply(kind, obj)
        assert len(changes.take()) == 1
        return changes.wake.is_set()

    assert not woken_by(Kind.BUDGET, budget("a", 2, limitWatts=900) | {"status": {"posture": "Normal"}})
    assert woken_by(Kind.BUDGET, budget("a", 3, limitWatts=800) | {"status": {"posture": "Normal"}})
    annotated = budget("a", 4, limitWatts=800)
    annotated["metadata"]["annotations"] = {"splitwatt.io/nodes-confirmed": "u"}
    assert woken_by(Kind.BUDGET, annotated)
    made_anew = budget("a", 5, limitWatts=800)
    made_anew["metadata"]["uid"] = "u2"
    assert woken_by(Kind.BUDGET, made_anew)
    node_power = {"kind": "NodePower", "metadata": {"name": "n", "uid": "u", "resourceVersion": "6"}}
    assert woken_by(Kind.NODE_POWER, node_power)
    acknowledged = {**node_power, "metadata": {**node_power["metadata"], "resourceVersion": "7"}, "status": {"observedTerm": 1}}  # type: ignore[dict-item]
    assert woken_by(Kind.NODE_POWER, acknowledged), "an agent's word is news"


def test_every_order_of_the_same_facts_ends_in_the_same_store() -> None:
    facts = [("apply", 3), ("remove", 4), ("apply", 6), ("apply", 5)]
    for order in itertools.permutations(facts):
        store = Store()
        for what, at in order:
            if what == "apply":
                store.apply(Kind.BUDGET, budget("a", at))
            else:
                store.remove(Kind.BUDGET, Key("", "a"), version=at)
        assert version(store, "a") == 6, order


def test_a_deleted_version_never_comes_back() -> None:
    store = Store()
    store.apply(Kind.BUDGET, budget("a", 3))
    assert store.remove(Kind.BUDGET, Key("", "a"), version=5)
    assert not store.apply(Kind.BUDGET, budget("a", 4))
    assert version(store, "a") is None
    assert store.apply(Kind.BUDGET, budget("a", 6))


def test_a_deletion_of_an_older_object_leaves_its_namesake() -> None:
    store = Store()
    store.apply(Kind.BUDGET, budget("a", 7))
    assert not store.remove(Kind.BUDGET, Key("", "a"), version=5)
    assert version(store, "a") == 7


def test_tombstones_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "MAX_TOMBSTONES", 3)
    store = Store()
    for i in range(10):
        store.remove(Kind.BUDGET, Key("", f"b{i}"), version=i)
    assert [store.deleted_at(Kind.BUDGET, Key("", f"b{i}")) for i in range(10)] == [-1] * 7 + [7, 8, 9]


async def test_a_subscriber_hears_what_was_there_before_and_each_change_once() -> None:
    store = Store()
    store.apply(Kind.BUDGET, budget("a", 1))
    heard = store.subscribe([Kind.BUDGET])
    assert heard.wake.is_set()
    assert heard.take() == [Change(Kind.BUDGET, Key("", "a"))]
    heard.wake.clear()
    store.apply(Kind.BUDGET, budget("b", 2))
    store.apply(Kind.BUDGET, budget("b", 3))
    store.apply(Kind.PROFILE, budget("p", 4))
    assert heard.wake.is_set()
    assert heard.take() == [Change(Kind.BUDGET, Key("", "b"))]
    assert heard.take() == []
    store.remove(Kind.BUDGET, Key("", "b"), version=5)
    assert heard.take() == [Change(Kind.BUDGET, Key("", "b"))]
    store.unsubscribe(heard)
    store.apply(Kind.BUDGET, budget("c", 6))
    assert heard.take() == []


def test_slim_objects_keep_what_is_read_and_drop_the_rest() -> None:
    store = Store()
    store.apply(Kind.BUDGET, budget("a", 1, limitWatts=5))
    kept = store.get(Kind.BUDGET, "a")
    assert kept is not None
    assert kept["spec"] == {"limitWatts": 5}
    assert "managedFields" not in kept["metadata"]
    node = {
        "metadata": {"name": "n", "resourceVersion": "1", "labels": {"a": "b"}, "annotations": {"big": "x" * 1000}},
        "spec": {"unschedulable": True, "podCIDR": "10.0.0.0/8", "providerID": "aws:///z/i-1"},
        "status": {
            "nodeInfo": {"bootID": "b1", "kernelVersion": "6"},
            "images": [{"names": ["x" * 1000]}],
            "conditions": [{"type": "Ready", "status": "True", "message": "m"}, {"type": "MemoryPressure", "status": "False"}],
        },
    }
    assert slim("Node", node) == {
        "metadata": {"name": "n", "resourceVersion": "1", "labels": {"a": "b"}},
        "spec": {"unschedulable": True, "providerID": "aws:///z/i-1"},
        "status": {
            "allocatable": {},
            "nodeInfo": {"bootID": "b1"},
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    }
