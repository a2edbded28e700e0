"""From Kubernetes objects to admission's snapshot: which pods wait, which are past their gate, and where room is.

Everything is read from the store at one moment and from the keeper's last step. Invariant: a pod past its gate stays
reserved until that same step counted its floors, so that no watt is promised twice between two loops.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from splitwatt_api import convert
from splitwatt_core.admission.snapshot import (
    AdmissionSnapshot,
    BudgetRoom,
    ClusterWant,
    HeldPod,
    Name,
    NodeRoom,
    PodNeed,
)
from splitwatt_core.budget.keeper import Keeper
from splitwatt_core.budget.tree import BudgetSpec, Requirement, Selector, build_tree
from splitwatt_core.clusters import ClusterSpec, Role
from splitwatt_core.gpus import profiles as profile_law
from splitwatt_core.gpus.profiles import Profile
from splitwatt_core.names import ANNOTATION_BUDGET, GATE_POWER, GPU_RESOURCE, LABEL_CLUSTER, LABEL_ROLE
from splitwatt_core.protocol.contract import GpuStatus, Mode, status_from_wire
from splitwatt_core.rendering.render import cluster_label

from splitwatt_operator.cluster.facts import ENDED_PHASES, UnreadableError, sentence_of, shipped
from splitwatt_operator.cluster.store import JsonObject, Kind, Store

log = logging.getLogger(__name__)

MAX_CACHED: Final = 50_000
"""Conversions kept: more than the objects of a thousand nodes; a fuller cache is emptied, which costs one slow look."""
_REPELLING: Final = (
    "node.kubernetes.io/not-ready",
    "node.kubernetes.io/unreachable",
    "node.kubernetes.io/unschedulable",
)


class Cache:
    """Conversions of objects by uid and version, so that unchanged ones are read once."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[str, Any]] = {}

    def get(self, obj: JsonObject, convert_: Callable[[JsonObject], Any]) -> Any:
        """None for an object that cannot be read; whoever owns its kind reports that."""
        uid, version = obj["metadata"]["uid"], obj["metadata"]["resourceVersion"]
        known = self._known.get(uid)
        if known is not None and known[0] == version:
            return known[1]
        if len(self._known) >= MAX_CACHED:
            self._known.clear()
        try:
            value = convert_(obj)
        except UnreadableError as error:
            log.debug("unreadable: %s", sentence_of(error), extra={"object": obj["metadata"]["name"]})
            value = None
        self._known[uid] = (version, value)
        return value


@dataclass(frozen=True, slots=True)
class GpuKind:
    """GPUs that behave alike: the same model with the same legal range of caps."""

    model: str
    min_w: int
    max_w: int

    def __str__(self) -> str:
        return f"{self.model} {self.min_w}-{self.max_w} W"


def gated(pod: JsonObject) -> bool:
    return any(gate.get("name") == GATE_POWER for gate in pod.get("spec", {}).get("schedulingGates") or ())


def live(pod: JsonObject) -> bool:
    return pod.get("status", {}).get("phase") not in ENDED_PHASES


def role_of(pod: JsonObject) -> Role | None:
    try:
        return Role(pod["metadata"].get("labels", {}).get(LABEL_ROLE, ""))
    except ValueError:
        return None


class Surveyor:
    """Builds snapshots. Keeps nothing but conversions, and which leaf selects which node."""

    def __init__(self, store: Store, keeper: Keeper) -> None:
        self._store = store
        self._keeper = keeper
        self._cache = Cache()
        self._selectors: Mapping[str, Selector] = {}
        self._leaf_cache = Cache()

    def clusters(self) -> dict[Name, ClusterSpec]:
        """Readable, not being deleted; by namespace and the value of the cluster label."""
        found: dict[Name, ClusterSpec] = {}
        for obj in self._store.all(Kind.CLUSTER):
            spec: ClusterSpec | None = self._cache.get(obj, convert.cluster_from_wire)
            if spec is not None and not obj["metadata"].get("deletionTimestamp"):
                found[Name(spec.namespace, cluster_label(spec.name))] = spec
        return found

    def snapshot(self, assumed: Mapping[str, str]) -> AdmissionSnapshot:
        """`assumed`: by pod uid, the leaf of a gate that was lifted, or may have been, and that no watch has shown yet."""
        clusters = self.clusters()
        budgets = self._budgets()
        pods = [pod for pod in self._store.all(Kind.POD) if live(pod) and role_of(pod) is not None]
        nodes = self._nodes(budgets, pods)
        kinds = {kind for _, kind in nodes if kind is not None}
        floors = _Floors(self._profiles(), kinds)
        counted = self._keeper.floors_counted()
        waiting, held = [], []
        for pod in pods:
            meta, uid = pod["metadata"], pod["metadata"]["uid"]
            need = _need(pod, clusters, floors)
            terminating = bool(meta.get("deletionTimestamp"))
            if gated(pod) and uid not in assumed:
                if not terminating and need.cluster in clusters:
                    waiting.append(need)
                continue
            leaf = meta.get("annotations", {}).get(ANNOTATION_BUDGET)
            if leaf is None and uid in assumed:
                leaf = assumed[uid]
            held.append(
                HeldPod(
                    need=need,
                    leaf=leaf,
                    node=pod["spec"].get("nodeName"),
                    counted_gpus=min(need.gpus, counted.get((meta["namespace"], meta["name"]), 0)),
                    terminating=terminating,
                )
            )
        return AdmissionSnapshot(
            budgets=self._rooms(budgets),
            nodes=tuple(node for node, _ in nodes),
            clusters=tuple(
                ClusterWant(name, spec.priority, {role: spec.role(role).replicas for role in Role})
                for name, spec in sorted(clusters.items())
            ),
            waiting=tuple(waiting),
            held=tuple(held),
        )

    def _budgets(self) -> dict[str, BudgetSpec]:
        found: dict[str, BudgetSpec] = {}
        for obj in self._store.all(Kind.BUDGET):
            spec: BudgetSpec | None = self._cache.get(obj, convert.budget_from_wire)
            if spec is not None:
                found[spec.name] = spec
        return found

    def _rooms(self, budgets: Mapping[str, BudgetSpec]) -> tuple[BudgetRoom, ...]:
        tree = build_tree(budgets)
        return tuple(
            BudgetRoom(
                name=name,
                headroom_floor_w=self._keeper.floor_headroom_w(name),
                parent=tree.parent[name],
                selector=budgets[name].selector,
                binding=budgets[tree.root[name]].mode is not Mode.OBSERVE,
            )
            for name in tree.order
        )

    def _profiles(self) -> Sequence[Profile]:
        """The same, in the same order, that caps are decided by: a floor must not promise what the policy does not count."""
        objects = sorted(self._store.all(Kind.PROFILE), key=shipped)
        read = [self._cache.get(obj, convert.profile_from_wire) for obj in objects]
        return [*(profile for profile in read if profile is not None), *profile_law.builtin()]

    def _nodes(self, budgets: Mapping[str, BudgetSpec], pods: Iterable[JsonObject]) -> list[tuple[NodeRoom, GpuKind | None]]:
        """Every node that exactly one leaf selects; one that two select is charged to both and takes nobody."""
        used: dict[str, int] = {}
        for pod in pods:
            if (name := pod["spec"].get("nodeName")) is not None:
                used[name] = used.get(name, 0) + gpus_of(pod)
        selectors = {name: b.selector for name, b in budgets.items() if b.selector is not None}
        if selectors != self._selectors:
            self._selectors, self._leaf_cache = selectors, Cache()
        found = []
        for obj in self._store.all(Kind.NODE):
            name, labels = obj["metadata"]["name"], obj["metadata"].get("labels", {})
            leaf = self._leaf_cache.get(obj, self._only_leaf)
            if leaf is None:
                continue
            kind = self._gpu_kind(name)
            gpus = int(obj["status"]["allocatable"].get(GPU_RESOURCE, 0)) if schedulable(obj) else 0
            room = NodeRoom(
                name=name,
                leaf=leaf,
                labels=labels,
                gpus=gpus,
                free_gpus=max(0, gpus - used.get(name, 0)),
                gpu_kind="" if kind is None else str(kind),
                idle_floor_w=0.0 if kind is None else float(kind.min_w),
                loss_factor=budgets[leaf].loss_factor,
            )
            found.append((room, kind))
        return found

    def _only_leaf(self, node: JsonObject) -> str | None:
        labels = node["metadata"].get("labels", {})
        leaves = [name for name, selector in self._selectors.items() if selector.matches(labels)]
        return leaves[0] if len(leaves) == 1 else None

    def _gpu_kind(self, node: str) -> GpuKind | None:
        """What the node's agent reports; of several kinds the one that may draw most."""
        obj = self._store.get(Kind.NODE_POWER, node)
        gpus: tuple[GpuStatus, ...] | None = None if obj is None else self._cache.get(obj, _reported)
        known = [gpu for gpu in gpus or () if gpu.min_w > 0]
        if not known:
            return None
        largest = max(known, key=lambda gpu: (gpu.max_w, gpu.model))
        return GpuKind(largest.model, largest.min_w, largest.max_w)


def _reported(obj: JsonObject) -> tuple[GpuStatus, ...]:
    return status_from_wire(obj.get("status") or {}).gpus


def schedulable(node: JsonObject) -> bool:
    """Ready, not cordoned, and not repelling everyone. Other taints are for the pod's tolerations to meet."""
    spec = node.get("spec", {})
    if spec.get("unschedulable"):
        return False
    if any(t.get("key") in _REPELLING and t.get("effect") != "PreferNoSchedule" for t in spec.get("taints") or ()):
        return False
    return any(c["type"] == "Ready" and c["status"] == "True" for c in node["status"].get("conditions", ()))


def gpus_of(pod: JsonObject) -> int:
    """What the scheduler counts for it: containers run together, init containers before them, one at a time."""
    spec = pod["spec"]

    def asked(container: Mapping[str, Any]) -> int:
        return int(((container.get("resources") or {}).get("requests") or {}).get(GPU_RESOURCE, 0))

    together = sum(asked(c) for c in spec.get("containers") or ())
    return max([together, *(asked(c) for c in spec.get("initContainers") or ())])


class _Floors:
    """The floor of one GPU by role, served model, ceiling and GPU kind: the rule by which the keeper counts it too."""

    def __init__(self, profiles: Sequence[Profile], kinds: Iterable[GpuKind]) -> None:
        self._profiles = profiles
        self._kinds = sorted(kinds, key=str)
        self._known: dict[tuple[Role, str, int | None], Mapping[str, float]] = {}

    def of(self, role: Role, model: str, ceiling_w: int | None) -> Mapping[str, float]:
        key = (role, model, ceiling_w)
        if key not in self._known:
            self._known[key] = {str(kind): self._floor_w(kind, role, model, ceiling_w) for kind in self._kinds}
        return self._known[key]

    def _floor_w(self, kind: GpuKind, role: Role, model: str, ceiling_w: int | None) -> float:
        found = profile_law.lookup(self._profiles, kind.model, role.phase, model=model)
        if found is None:
            found = profile_law.conservative(role.phase, min_cap_w=kind.min_w, max_cap_w=kind.max_w)
        high_w = max(kind.min_w, kind.max_w if ceiling_w is None else min(kind.max_w, ceiling_w))
        natural_w = min(max(found.natural_w, kind.min_w), high_w)
        return float(min(max(found.cliff_w, kind.min_w), natural_w))


def _need(pod: JsonObject, clusters: Mapping[Name, ClusterSpec], floors: _Floors) -> PodNeed:
    meta, spec = pod["metadata"], pod["spec"]
    cluster = Name(meta["namespace"], meta.get("labels", {}).get(LABEL_CLUSTER, ""))
    role = role_of(pod)
    assert role is not None, "pods without a role are left out before"
    owner = clusters.get(cluster)
    model, ceiling_w = ("", None) if owner is None else (owner.model, owner.role(role).power_ceiling_w)
    return PodNeed(
        pod=Name(meta["namespace"], meta["name"]),
        uid=meta["uid"],
        cluster=cluster,
        role=role,
        gpus=gpus_of(pod),
        floor_w=floors.of(role, model, ceiling_w),
        selector=Selector(spec.get("nodeSelector") or {}),
        terms=tuple(_term(term) for term in required_terms(pod)),
        created_s=convert.unix_s(meta["creationTimestamp"]),
    )


def required_terms(pod: JsonObject) -> Sequence[Mapping[str, Any]]:
    """The pod's required node affinity terms, any of which is enough."""
    affinity = (pod["spec"].get("affinity") or {}).get("nodeAffinity") or {}
    terms: Sequence[Mapping[str, Any]] = (affinity.get("requiredDuringSchedulingIgnoredDuringExecution") or {}).get(
        "nodeSelectorTerms"
    ) or ()
    return terms


_NOWHERE: Final = Requirement("splitwatt.io/unsupported-affinity", "In", ())


def _term(term: Mapping[str, Any]) -> Selector:
    """Gt, Lt and matchFields are not understood here: such a term matches nothing, which a condition then says."""
    rows = term.get("matchExpressions") or ()
    if term.get("matchFields") or any(row["operator"] in ("Gt", "Lt") for row in rows):
        return Selector(match_expressions=(_NOWHERE,))
    return Selector(
        match_expressions=tuple(Requirement(row["key"], row["operator"], tuple(row.get("values") or ())) for row in rows)
    )
