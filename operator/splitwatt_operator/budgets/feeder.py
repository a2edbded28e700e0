"""Feeds the keeper from the view: each change becomes one call, and a bad object stops no other.

The keeper is told what the view holds, which is the last readable version. What cannot be read is said by an Event, once.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from splitwatt_core.admission.pods import Pod, pod_fact
from splitwatt_core.budget.keeper import Keeper
from splitwatt_core.clusters import cluster_label

from splitwatt_operator.cluster.owners import OwnerNews
from splitwatt_operator.cluster.read import UNREADABLE, sentence_of, subject_of, unix_s
from splitwatt_operator.cluster.store import Change, JsonObject, Key, Kind, Store
from splitwatt_operator.cluster.view import Seen, View
from splitwatt_operator.recorder import Recorder, Subject

FACT_KINDS: Final = (Kind.PROFILE, Kind.BUDGET, Kind.NODE, Kind.NODE_POWER, Kind.CLUSTER, Kind.POD)
"""A change of one of these is worth a decision at once."""
QUIET_KINDS: Final = (Kind.LEASE,)
"""Heartbeats: read at the next step, never a reason for one."""


class Feeder:
    """One per keeper."""

    def __init__(self, store: Store, view: View, keeper: Keeper, recorder: Recorder) -> None:
        self._store = store
        self._view = view
        self._keeper = keeper
        self._recorder = recorder
        self._uids: dict[str, str] = {}
        """Of each NodePower the keeper was told of: a late word of an earlier one must not take the present one away."""

    def feed(self, changes: Iterable[Change], now_s: float) -> None:
        profiles_changed = False
        for kind, key in changes:
            obj = self._store.get(kind, key.name, key.namespace)
            match kind:
                case Kind.NODE:
                    self._node(key.name, obj, now_s)
                case Kind.LEASE:
                    self._lease(key, obj)
                case Kind.BUDGET:
                    self._budget(key.name, obj, now_s)
                case Kind.NODE_POWER:
                    self._node_power(key.name, obj, now_s)
                case Kind.POD:
                    self._pod(key)
                case Kind.CLUSTER:
                    self._cluster(key)
                case Kind.PROFILE:
                    self._complain(obj, self._view.offered.get(key.name), "InvalidSpec", "not used")
                    profiles_changed = True
        if profiles_changed:
            self._keeper.on_profiles(self._view.profiles)

    def feed_owners(self, news: Iterable[OwnerNews]) -> None:
        """Pods that hold GPUs and are of no InferenceCluster."""
        for (namespace, name), owner in news:
            if owner is None:
                self._keeper.on_owner_gone(namespace, name)
            else:
                self._keeper.on_owner(owner)

    def _node(self, name: str, obj: JsonObject | None, now_s: float) -> None:
        seen = self._view.nodes.get(name)
        if obj is not None and seen is not None and seen.problem:
            self._say_of_node(name, "Unreadable", f"counted as it was last read: {seen.problem}")
        if seen is None:
            self._keeper.on_node_gone(name, now_s)
        elif seen.fact is not None:
            self._keeper.on_node(seen.fact, now_s)

    def _lease(self, key: Key, obj: JsonObject | None) -> None:
        renewed = ((obj or {}).get("spec") or {}).get("renewTime")
        if not renewed:
            return
        try:
            renewed_s = unix_s(renewed)
        except UNREADABLE as error:  # any kubelet may write its own: it is no sign of life, and nothing else
            told = f"its Lease {key.namespace}/{key.name} is ignored: renewTime {renewed!r:.64}: {sentence_of(error)}"
            self._say_of_node(key.name, "LeaseUnreadable", told)
            return
        self._keeper.on_node_lease(key.name, renewed_s)

    def _budget(self, name: str, obj: JsonObject | None, now_s: float) -> None:
        seen = self._view.budgets.get(name)
        self._complain(obj, seen, "InvalidSpec", "not acted on")
        if seen is None or seen.fact is None:
            self._keeper.on_budget_gone(name, now_s)
        else:
            self._keeper.on_budget(seen.fact, now_s)

    def _node_power(self, name: str, obj: JsonObject | None, now_s: float) -> None:
        seen = self._view.node_powers.get(name)
        self._complain(obj, seen, "Unreadable", "ignored")
        former = self._uids.pop(name, "")
        made_anew = seen is not None and former not in ("", seen.uid)
        if seen is None or (made_anew and seen.fact is None):
            self._keeper.on_node_power_gone(name, now_s, former)
        if seen is not None:
            self._uids[name] = seen.uid
            if seen.fact is not None:
                self._keeper.on_node_power(seen.fact, now_s)

    def _cluster(self, key: Key) -> None:
        label = cluster_label(key.name)
        for pod in list(self._view.pods.facts.values()):
            if pod.label == label and pod.name.namespace == key.namespace:
                self._tell(pod)

    def _pod(self, key: Key) -> None:
        seen = self._view.pods.get(key.name, key.namespace)
        if seen is None or seen.fact is None:
            self._keeper.on_pod_gone(key.namespace, key.name)
        else:
            self._tell(seen.fact)

    def _tell(self, pod: Pod) -> None:
        fact = None if pod.ended else pod_fact(pod, self._view.cluster_of(pod))
        if fact is None:
            self._keeper.on_pod_gone(*pod.name)
        else:
            self._keeper.on_pod(fact)

    def _say_of_node(self, name: str, reason: str, message: str) -> None:
        node = self._store.get(Kind.NODE, name)
        uid = "" if node is None else node["metadata"].get("uid", "")
        self._recorder.note(Subject("v1", Kind.NODE, name, "", uid), reason=reason, message=message, warning=True)

    def _complain(self, obj: JsonObject | None, seen: Seen[Any] | None, reason: str, what: str) -> None:
        """`what` becomes of the version that cannot be read."""
        if obj is not None and seen is not None and seen.problem:
            self._recorder.note(subject_of(obj), reason=reason, message=f"{what}: {seen.problem}", warning=True)
