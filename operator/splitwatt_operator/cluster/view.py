"""The one view of the cluster: each watched object as its core fact, read once per version, for every loop.

Rule of the last readable: when a version of an object cannot be read, the fact of its last readable version stays, and
beside it the sentence that says what to change. For silence must never raise anything (I5), and an owner's slip of the pen
must not stop what runs:

- PowerBudget: the former limit, tree and policy stay in force.
- InferenceCluster: it is rendered, capped and admitted by its former spec, so its objects are kept in that shape, and
  nothing is deleted or scaled because of the slip. A spec that cannot be rendered counts as unreadable.
- PowerProfile: its former numbers stay in force. NodePower, Node, Pod: what was known of it stays known.

What stays belongs to one object: deleted and made anew (another uid), it has no former version, and nothing stays. Nor
does a former spec outlive the process: a cluster that was never readable to it keeps its objects as they are, untouched.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Generic, TypeVar

from splitwatt_core.admission.pods import Pod
from splitwatt_core.budget.facts import NodeFact
from splitwatt_core.budget.tree import BudgetSpec
from splitwatt_core.clusters import ClusterName, ClusterSpec, LabelOwners, cluster_label
from splitwatt_core.gpus.profiles import Offered, Profile, in_force
from splitwatt_core.policies.shipped import POLICIES
from splitwatt_core.protocol.contract import NodePower, node_power_from_wire
from splitwatt_core.protocol.endpoint import StreamEndpoint
from splitwatt_core.rendering.objects import object_name
from splitwatt_core.rendering.role_scale import SCALED_ROLE, ScaleFact, replicas_in_force

from splitwatt_operator.cluster import read
from splitwatt_operator.cluster.store import JsonObject, Key, Kind, Store

log = logging.getLogger(__name__)

Fact = TypeVar("Fact")


@dataclass(frozen=True, slots=True)
class Seen(Generic[Fact]):
    """One object. `fact`: of its last readable version, None while there was none. `problem`: why the newest cannot be
    read, "" when `fact` is the newest. The other fields are the newest version's, which metadata always tells."""

    uid: str
    generation: int
    terminating: bool
    fact: Fact | None
    problem: str = ""

    @property
    def sentence(self) -> str:
        """The problem as its owner should hear it."""
        return f"the former spec stays in force: {self.problem}" if self.fact is not None and self.problem else self.problem


class Shelf(Generic[Fact]):
    """All objects of one kind, by key. `spec_alone`: the fact depends on nothing but the spec, whose every change has a new
    generation, so that a version with a new status needs no reading."""

    def __init__(self, read_one: Callable[[JsonObject], Fact], *, spec_alone: bool = False) -> None:
        self._read_one = read_one
        self._spec_alone = spec_alone
        self._seen: dict[Key, Seen[Fact]] = {}
        self._facts: dict[Key, Fact] = {}
        self.facts: Mapping[Key, Fact] = MappingProxyType(self._facts)
        """Live: who awaits in between copies it."""

    def get(self, name: str, namespace: str = "") -> Seen[Fact] | None:
        return self._seen.get(Key(namespace, name))

    def items(self) -> Iterator[tuple[Key, Seen[Fact]]]:
        return iter(list(self._seen.items()))

    def problems(self) -> dict[str, str]:
        """By name, of a cluster-scoped kind: the sentences about what cannot be read."""
        return {key.name: seen.sentence for key, seen in self._seen.items() if seen.problem}

    def take(self, key: Key, obj: JsonObject | None) -> None:
        """A newer version, or (None) the object is gone."""
        if obj is None:
            self._seen.pop(key, None)
            self._facts.pop(key, None)
            return
        seen = self._seen[key] = self._look(obj, self._seen.get(key))
        if seen.fact is None:
            self._facts.pop(key, None)
        else:
            self._facts[key] = seen.fact

    def put(self, key: Key, seen: Seen[Fact] | None) -> None:
        """What was seen elsewhere, in place of what is here."""
        self._seen.pop(key, None)
        self._facts.pop(key, None)
        if seen is not None:
            self._seen[key] = seen
            if seen.fact is not None:
                self._facts[key] = seen.fact

    def _look(self, obj: JsonObject, before: Seen[Fact] | None) -> Seen[Fact]:
        meta = obj["metadata"]
        uid, generation, terminating, problem = meta["uid"], meta.get("generation", 0), bool(meta.get("deletionTimestamp")), ""
        before = before if before is not None and before.uid == uid else None
        if self._spec_alone and before is not None and before.generation == generation:
            return replace(before, terminating=terminating)
        fact = None if before is None else before.fact
        try:
            fact = self._read_one(obj)
        except read.UNREADABLE as error:
            problem = read.sentence_of(error) or type(error).__name__
            log.warning("unreadable %s: %s", obj.get("kind", "object"), problem, extra={"object": meta["name"]})
        return Seen(uid, generation, terminating, fact, problem)


class View:
    """Follows a store from its first object on; every change is here before any subscriber of the store wakes."""

    def __init__(self, store: Store, *, policies: Collection[str] = frozenset(POLICIES)) -> None:
        self.budgets: Shelf[BudgetSpec] = Shelf(read.budget_reader(policies))
        self.declared: Shelf[ClusterSpec] = Shelf(read.cluster, spec_alone=True)
        """InferenceClusters as they are written."""
        self.clusters: Shelf[ClusterSpec] = Shelf(read.cluster)
        """The same with the replicas that are in force, for whoever acts by them."""
        self.role_scales: Shelf[ScaleFact] = Shelf(read.role_scale)
        self.node_powers: Shelf[NodePower] = Shelf(node_power_from_wire)
        self.nodes: Shelf[NodeFact] = Shelf(read.node)
        self.pods: Shelf[Pod] = Shelf(read.pod)
        self.offered: Shelf[Offered] = Shelf(read.profile)
        self._shelves: dict[Kind, Shelf[Any]] = {
            Kind.BUDGET: self.budgets,
            Kind.CLUSTER: self.declared,
            Kind.ROLE_SCALE: self.role_scales,
            Kind.NODE_POWER: self.node_powers,
            Kind.NODE: self.nodes,
            Kind.POD: self.pods,
            Kind.PROFILE: self.offered,
        }
        self.spaces: Mapping[str, Mapping[str, str]] = {}
        """Labels of namespaces, as `owners` read them last."""
        self._scaled: dict[Key, Key] = {}
        """From the name of a RoleScale to its cluster's."""
        self._departed: dict[tuple[str, str], ClusterSpec] = {}
        """By namespace and label: deleted clusters whose pods are still there, and run by the last spec."""
        self._created_s: dict[ClusterName, float] = {}
        self._owners: LabelOwners | None = None
        self._in_force: tuple[Profile, ...] | None = None
        store.follow(self._take)

    def endpoint(self, node: str) -> StreamEndpoint | None:
        """Where the node's agent listens itself, as its NodePower's status says."""
        seen = self.node_powers.get(node)
        return None if seen is None or seen.fact is None else seen.fact.status.stream

    def listening(self) -> frozenset[str]:
        """Nodes whose agents listen themselves."""
        return frozenset(key.name for key, fact in self.node_powers.facts.items() if fact.status.stream is not None)

    def _take(self, kind: Kind, key: Key, obj: JsonObject | None) -> None:
        shelf = self._shelves.get(kind)
        if shelf is None:
            return
        if kind is Kind.CLUSTER and obj is None:
            self._depart(key)
        shelf.take(key, obj)
        if kind in (Kind.CLUSTER, Kind.ROLE_SCALE):
            self._scale(kind, key, obj)
        if kind is Kind.POD and obj is None:
            self._forget_departed()
        if kind is Kind.PROFILE:
            self._in_force = None
        elif kind is Kind.CLUSTER:
            self._name(ClusterName(*key), obj)

    def _scale(self, kind: Kind, key: Key, obj: JsonObject | None) -> None:
        """A cluster or its RoleScale is another one now."""
        if kind is Kind.CLUSTER:
            cluster, of = key, Key(key.namespace, object_name(key.name, SCALED_ROLE))
            if obj is None:
                self._scaled.pop(of, None)
            else:
                self._scaled[of] = cluster
        elif (found := self._scaled.get(key)) is not None:
            cluster, of = found, key
        else:
            return
        seen = self.declared.get(cluster.name, cluster.namespace)
        if seen is not None and seen.fact is not None and (prefill := seen.fact.prefill) is not None:
            scale = self.role_scales.facts.get(of)
            own = scale if scale is not None and scale.owner == seen.uid else None
            wanted = replicas_in_force(prefill.replicas, own)
            seen = replace(seen, fact=replace(seen.fact, prefill=replace(prefill, replicas=wanted)))
        self.clusters.put(cluster, seen)

    def declared_replicas(self, name: ClusterName) -> int | None:
        """Of the role that has a RoleScale, what the InferenceCluster itself says; None where it was never readable, and where it
        has no such role."""
        spec = self.declared.facts.get(Key(*name))
        return spec.role(SCALED_ROLE).replicas if spec is not None and SCALED_ROLE in spec.roles else None

    def cluster_of_scale(self, key: Key) -> ClusterName | None:
        """Whose RoleScale has this name."""
        cluster = self._scaled.get(key)
        return None if cluster is None else ClusterName(*cluster)

    def _depart(self, key: Key) -> None:
        spec = self.clusters.facts.get(key)
        if spec is not None:
            self._departed[key.namespace, cluster_label(key.name)] = spec
            self._forget_departed()

    def _forget_departed(self) -> None:
        if self._departed:
            left = {(pod.name.namespace, pod.label) for pod in self.pods.facts.values()}
            self._departed = {label: spec for label, spec in self._departed.items() if label in left}

    def _name(self, name: ClusterName, obj: JsonObject | None) -> None:
        created_s = None if obj is None else read.unix_s(obj["metadata"]["creationTimestamp"])  # the API server sets it
        if created_s == self._created_s.get(name):
            return
        if created_s is None:
            del self._created_s[name]
        else:
            self._created_s[name] = created_s
        self._owners = None

    @property
    def owners(self) -> LabelOwners:
        """From cluster labels of pods, objects and metrics back to clusters."""
        if self._owners is None:
            self._owners = LabelOwners(self._created_s)
        return self._owners

    @property
    def profiles(self) -> tuple[Profile, ...]:
        """Those in force, most specific first: one answer for caps and for floors."""
        if self._in_force is None:
            self._in_force = in_force(self.offered.facts.values())
        return self._in_force

    def cluster(self, name: ClusterName) -> Seen[ClusterSpec] | None:
        return self.clusters.get(name.name, name.namespace)

    def cluster_of(self, pod: Pod) -> ClusterSpec | None:
        """The spec that a pod runs by, that of a deleted cluster as well; None when its cluster is unknown."""
        owner = self.owners.of(pod.name.namespace, pod.label)
        if owner is None:
            return self._departed.get((pod.name.namespace, pod.label))
        return self.clusters.facts.get(Key(*owner))
