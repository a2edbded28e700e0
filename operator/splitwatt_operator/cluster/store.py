"""What the operator knows of the cluster: one in-memory store, fed by watches, read by every loop.

Each kind is kept as slimmed JSON (see `slim`): only what some loop reads, never `managedFields`, so that 200 nodes cost
a few megabytes. Objects are replaced, never changed in place: whoever holds one holds a snapshot.

Invariant (docs/protocol.md, R6): an object never goes back in resourceVersion, and a deleted version never comes back. Watches,
relists and resyncs may deliver in any order; the highest version of a name wins, and tombstones remember deletions.
Nothing here decides: an object that is missing from the store is "not seen", not "gone for good" (R8 asks afresh).
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, NamedTuple

from splitwatt_operator.cluster.slim import slim

JsonObject = Mapping[str, Any]
MAX_TOMBSTONES: Final = 4096
"""Deletions remembered per kind. A watch delivers in order, so only a resync that crosses a deletion needs one."""


class Kind(StrEnum):
    """What is watched, and GROUP, which is read (`serving.groups`). The value is the Kubernetes kind."""

    NODE = "Node"
    LEASE = "Lease"
    POD = "Pod"
    CLUSTER = "InferenceCluster"
    ROLE_SCALE = "RoleScale"
    BUDGET = "PowerBudget"
    NODE_POWER = "NodePower"
    PROFILE = "PowerProfile"
    DEPLOYMENT = "Deployment"
    GROUP = "LeaderWorkerSet"
    SERVICE = "Service"
    PDB = "PodDisruptionBudget"
    SERVICE_ACCOUNT = "ServiceAccount"
    ROLE = "Role"
    ROLE_BINDING = "RoleBinding"


OWN_STATUS: Final = (Kind.BUDGET,)
"""Kinds whose status nobody but the operator writes: when it comes back, subscribers are told and nobody is woken for it."""


class Key(NamedTuple):
    """`namespace` is "" for cluster-scoped kinds."""

    namespace: str
    name: str


class Change(NamedTuple):
    kind: Kind
    key: Key


Follower = Callable[[Kind, Key, JsonObject | None], None]
"""What is told of each version as it comes in, None for a deletion."""


@dataclass(slots=True)
class Subscription:
    """Which objects of some kinds changed since the last `take`; bounded by the number of objects there are."""

    kinds: frozenset[Kind]
    wake: asyncio.Event
    pending: dict[Change, None] = field(default_factory=dict)

    def take(self) -> list[Change]:
        """The changes since the last call, oldest first, each once. Clear `wake` before, not after."""
        changes = list(self.pending)
        self.pending.clear()
        return changes


def key_of(obj: JsonObject) -> Key:
    meta = obj["metadata"]
    return Key(meta.get("namespace", ""), meta["name"])


def version_of(obj: JsonObject) -> int:
    """resourceVersion as a number; Kubernetes guarantees their order for one resource since 1.35."""
    return int(obj["metadata"]["resourceVersion"])


def _status_alone(known: JsonObject | None, kept: JsonObject) -> bool:
    """Whether nothing but the status differs."""
    return known is not None and _said_by_others(known) == _said_by_others(kept)


def _said_by_others(obj: JsonObject) -> tuple[JsonObject, object]:
    return {name: value for name, value in obj["metadata"].items() if name != "resourceVersion"}, obj.get("spec")


class Store:
    """See the module's docstring. Used from one event loop; nothing here awaits."""

    def __init__(self) -> None:
        self._objects: dict[Kind, dict[Key, JsonObject]] = {kind: {} for kind in Kind}
        self._tombstones: dict[Kind, OrderedDict[Key, int]] = {kind: OrderedDict() for kind in Kind}
        self._highest: dict[Kind, int] = dict.fromkeys(Kind, 0)
        self._subscriptions: list[Subscription] = []
        self._followers: list[Follower] = []

    def apply(self, kind: Kind, obj: JsonObject) -> bool:
        """Take in one observed version. False when it is no news: as old as, or older than, what is known."""
        key, version = key_of(obj), version_of(obj)
        self._highest[kind] = max(self._highest[kind], version)
        known = self._objects[kind].get(key)
        if known is not None and version_of(known) >= version:
            return False
        if self._tombstones[kind].get(key, -1) >= version:
            return False
        kept = self._objects[kind][key] = slim(kind.value, obj)
        self._notify(Change(kind, key), kept, news=kind not in OWN_STATUS or not _status_alone(known, kept))
        return True

    def remove(self, kind: Kind, key: Key, *, version: int) -> bool:
        """Take in a deletion at `version`. False when a newer object of that name is known, or none at all."""
        self._highest[kind] = max(self._highest[kind], version)
        graves = self._tombstones[kind]
        graves[key] = max(version, graves.pop(key, -1))
        while len(graves) > MAX_TOMBSTONES:
            graves.popitem(last=False)
        known = self._objects[kind].get(key)
        if known is None or version_of(known) > version:
            return False
        del self._objects[kind][key]
        self._notify(Change(kind, key), None)
        return True

    def get(self, kind: Kind, name: str, namespace: str = "") -> JsonObject | None:
        return self._objects[kind].get(Key(namespace, name))

    def all(self, kind: Kind) -> Iterator[JsonObject]:
        """Every known object of a kind; a snapshot, safe while the store changes."""
        return iter(list(self._objects[kind].values()))

    def keys(self, kind: Kind) -> list[Key]:
        return list(self._objects[kind])

    def deleted_at(self, kind: Kind, key: Key) -> int:
        """The version at which the name was last seen deleted; -1 when never (or long ago)."""
        return self._tombstones[kind].get(key, -1)

    def highest(self, kind: Kind) -> int:
        """The highest version of the kind ever seen: no consistent list taken afterwards may be older."""
        return self._highest[kind]

    def size(self, kind: Kind) -> int:
        return len(self._objects[kind])

    def follow(self, follower: Follower) -> None:
        """Tell `follower` of every object that is known, and from now on of each change, before any subscription wakes. What
        it raises comes out of `apply` and `remove`."""
        for kind, objects in self._objects.items():
            for key, obj in objects.items():
                follower(kind, key, obj)
        self._followers.append(follower)

    def subscribe(self, kinds: Collection[Kind], *, wake: asyncio.Event | None = None) -> Subscription:
        """Everything known already counts as changed, in the order of `kinds`, so that a late subscriber misses nothing.
        `wake` may be an event that others set as well."""
        subscription = Subscription(frozenset(kinds), wake or asyncio.Event())
        for kind in kinds:
            for key in self._objects[kind]:
                subscription.pending[Change(kind, key)] = None
        if subscription.pending:
            subscription.wake.set()
        self._subscriptions.append(subscription)
        return subscription

    def unsubscribe(self, subscription: Subscription) -> None:
        self._subscriptions.remove(subscription)

    def _notify(self, change: Change, obj: JsonObject | None, *, news: bool = True) -> None:
        for follower in self._followers:
            follower(change.kind, change.key, obj)
        for subscription in self._subscriptions:
            if change.kind in subscription.kinds:
                subscription.pending[change] = None
                if news:
                    subscription.wake.set()
