"""Kubernetes objects to keeper's facts: each change in the store becomes one call, and a bad object stops no other.

An object that cannot be read (a NodePower by another hand, a budget of a newer version) is reported by an Event and, for
budgets, by a condition; the keeper keeps what it knew of it, for silence must never raise anything (I5).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Final

from pydantic import ValidationError
from splitwatt_api import convert
from splitwatt_api.convert_profile import profile_from_wire
from splitwatt_core.budget.keeper import Keeper, NodeFact, PodFact
from splitwatt_core.budget.tree import BudgetSpec
from splitwatt_core.clusters import PRIORITY_LOW, ClusterSpec, Role, SpecError
from splitwatt_core.gpus.profiles import Profile, builtin
from splitwatt_core.names import LABEL_CLUSTER, LABEL_MANAGED_BY, LABEL_ROLE, MANAGED_BY
from splitwatt_core.protocol.contract import ContractError, Phase, node_power_from_wire

from splitwatt_operator.cluster.store import Change, JsonObject, Key, Kind, Store
from splitwatt_operator.recorder import Recorder, Subject

log = logging.getLogger(__name__)

FACT_KINDS: Final = (Kind.PROFILE, Kind.BUDGET, Kind.NODE, Kind.NODE_POWER, Kind.CLUSTER, Kind.POD)
"""A change of one of these is worth a decision at once."""
QUIET_KINDS: Final = (Kind.LEASE,)
"""Heartbeats: read at the next step, never a reason for one."""
ENDED_PHASES: Final = ("Succeeded", "Failed")
MAX_SENTENCE_CHARS: Final = 400

unix_s = convert.unix_s
"""RFC 3339 to Unix seconds, for whoever reads times of watched objects."""

UnreadableError = (ContractError, SpecError, ValidationError, ValueError, KeyError)
"""What reading an object of unexpected shape can raise."""


class FactFeeder:
    """Feeds one keeper from the store. `budgets` are those the keeper knows, `unreadable` the sentences about the rest."""

    def __init__(self, store: Store, keeper: Keeper, recorder: Recorder, *, policies: Iterable[str]) -> None:
        self._store = store
        self._keeper = keeper
        self._recorder = recorder
        self._policies = frozenset(policies)
        self._uids: dict[str, str] = {}
        self.budgets: dict[str, BudgetSpec] = {}
        self.unreadable: dict[str, str] = {}

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
                    self._pod(key, obj)
                case Kind.CLUSTER:
                    self._cluster(key)
                case Kind.PROFILE:
                    profiles_changed = True
        if profiles_changed:
            self._profiles()

    def _node(self, name: str, obj: JsonObject | None, now_s: float) -> None:
        if obj is None:
            self._keeper.on_node_gone(name, now_s)
            return
        boot_id = obj["status"]["nodeInfo"].get("bootID", "")
        self._keeper.on_node(NodeFact(name, obj["metadata"].get("labels", {}), boot_id), now_s)

    def _lease(self, key: Key, obj: JsonObject | None) -> None:
        renewed = (obj or {}).get("spec", {}).get("renewTime")
        if renewed:
            self._keeper.on_node_lease(key.name, unix_s(renewed))

    def _budget(self, name: str, obj: JsonObject | None, now_s: float) -> None:
        self.unreadable.pop(name, None)
        if obj is None:
            self.budgets.pop(name, None)
            self._keeper.on_budget_gone(name, now_s)
            return
        try:
            spec = convert.budget_from_wire(obj)
            if spec.policy not in self._policies:
                raise SpecError(f"spec.policy.type {spec.policy} is unknown; use one of {', '.join(self._policies)}")
        except UnreadableError as error:
            self.unreadable[name] = sentence_of(error)
            self._recorder.note(
                subject_of(obj), reason="InvalidSpec", message=f"not acted on: {sentence_of(error)}", warning=True
            )
            return
        self.budgets[name] = spec
        self._keeper.on_budget(spec, now_s)

    def _node_power(self, name: str, obj: JsonObject | None, now_s: float) -> None:
        if obj is None:
            self._keeper.on_node_power_gone(name, now_s, self._uids.pop(name, ""))
            return
        self._uids[name] = obj["metadata"]["uid"]
        try:
            node_power = node_power_from_wire(obj)
        except UnreadableError as error:
            self._recorder.note(subject_of(obj), reason="Unreadable", message=f"ignored: {sentence_of(error)}", warning=True)
            return
        self._keeper.on_node_power(node_power, now_s)

    def _cluster(self, key: Key) -> None:
        for pod in self._store.all(Kind.POD):
            meta = pod["metadata"]
            if meta.get("namespace") == key.namespace and meta.get("labels", {}).get(LABEL_CLUSTER) == key.name:
                self._pod(Key(key.namespace, meta["name"]), pod)

    def _pod(self, key: Key, obj: JsonObject | None) -> None:
        if obj is None or obj.get("status", {}).get("phase") in ENDED_PHASES:
            self._keeper.on_pod_gone(key.namespace, key.name)
            return
        labels = obj["metadata"].get("labels", {})
        fact = pod_fact(obj, self._cluster_spec(key.namespace, labels.get(LABEL_CLUSTER, "")))
        if fact is not None:
            self._keeper.on_pod(fact)

    def _cluster_spec(self, namespace: str, name: str) -> ClusterSpec | None:
        obj = self._store.get(Kind.CLUSTER, name, namespace)
        try:
            return None if obj is None else convert.cluster_from_wire(obj)
        except UnreadableError as error:
            log.warning("unreadable InferenceCluster: %s", sentence_of(error), extra={"cluster": name})
            return None

    def _profiles(self) -> None:
        """Those a user made before those that are shipped, and the built-in ones for what neither knows."""
        profiles: list[Profile] = []
        for obj in sorted(self._store.all(Kind.PROFILE), key=shipped):
            try:
                profiles.append(profile_from_wire(obj))
            except UnreadableError as error:
                self._recorder.note(
                    subject_of(obj), reason="InvalidSpec", message=f"not used: {sentence_of(error)}", warning=True
                )
        self._keeper.on_profiles([*profiles, *builtin()])


def shipped(profile: JsonObject) -> bool:
    """A PowerProfile that came with the chart; a user's own stand before those."""
    return bool(profile["metadata"].get("labels", {}).get(LABEL_MANAGED_BY) == MANAGED_BY)


def pod_fact(pod: JsonObject, cluster: ClusterSpec | None) -> PodFact | None:
    """None for a pod of ours that has no role. A pod whose cluster is unknown keeps its phase and ranks lowest."""
    meta = pod["metadata"]
    try:
        role = Role(meta.get("labels", {}).get(LABEL_ROLE, ""))
    except ValueError:
        return None
    phase: Phase = role.phase
    if cluster is None:
        return PodFact(meta["namespace"], meta["name"], phase, PRIORITY_LOW)
    return PodFact(
        namespace=meta["namespace"],
        name=meta["name"],
        phase=phase,
        priority=cluster.priority,
        model=cluster.model,
        power_ceiling_w=cluster.role(role).power_ceiling_w,
    )


def subject_of(obj: JsonObject) -> Subject:
    meta = obj["metadata"]
    return Subject(
        api_version=obj.get("apiVersion", "v1"),
        kind=obj.get("kind", ""),
        name=meta["name"],
        namespace=meta.get("namespace", ""),
        uid=meta.get("uid", ""),
    )


def sentence_of(error: Exception) -> str:
    """One line: a pydantic error names its first fields, any other its own words."""
    if isinstance(error, ValidationError):
        parts = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors(include_url=False)[:3]]
        return "; ".join(parts)[:MAX_SENTENCE_CHARS]
    if isinstance(error, KeyError):
        return f"{error} is missing"[:MAX_SENTENCE_CHARS]
    return " ".join(str(error).split())[:MAX_SENTENCE_CHARS]
