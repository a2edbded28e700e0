"""From facts to admission's snapshot: which pods wait, which are past their gate, and where room is.

Everything comes from one moment of the cluster and from the keeper's last step. The two are never exactly of the same
age, so what the keeper counted is compared with what is asked for now. Invariants: a pod past its gate stays reserved
until that same step counted its floors, so that no watt is promised twice between two loops; and its floor is the one by
which the keeper caps it (`demand_of_pod`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from splitwatt_core.admission import foreign
from splitwatt_core.admission.pods import Pod, PodName, closed, gpus_used, pod_fact
from splitwatt_core.admission.snapshot import (
    NOT_COUNTED,
    AdmissionSnapshot,
    AdmissionVerdict,
    BlockedPod,
    BudgetRoom,
    ClusterWant,
    HeldPod,
    NodeRoom,
    PodNeed,
)
from splitwatt_core.budget.demand import GpuKind, demand_of_pod
from splitwatt_core.budget.facts import CountedFloor, NodeFact, PodFact
from splitwatt_core.budget.leaves import Leaves
from splitwatt_core.budget.tree import BudgetSpec, Selector, Tree, build_tree
from splitwatt_core.clusters import ClusterName, ClusterSpec, LabelOwners, Role
from splitwatt_core.gpus.profiles import Profile
from splitwatt_core.protocol.contract import GpuStatus, Mode, Phase


@dataclass(frozen=True, slots=True)
class Site:
    """What is known at one moment.

    `clusters`: by name, the spec that is acted on. `leaving`: those that are served no more: being deleted, or refused.
    `gpus`: by node, what its agent reported last. `profiles`: those in force, most specific first. From the keeper's last
    step: `floor_room_w` by budget (`Keeper.floor_room_w`), `counted` by pod (`Keeper.floors_counted`) and `awaited` by elastic
    leaf (`Keeper.nodes_awaited`). `assumed`: by pod uid, the leaf of a gate that was lifted, or may have been, and that no watch
    has shown yet. `spaces`: labels of namespaces, as far as they were read.
    """

    budgets: Mapping[str, BudgetSpec]
    clusters: Mapping[ClusterName, ClusterSpec]
    owners: LabelOwners
    pods: Mapping[PodName, Pod]
    nodes: Mapping[str, NodeFact]
    gpus: Mapping[str, Sequence[GpuStatus]]
    profiles: Sequence[Profile]
    floor_room_w: Mapping[str, float]
    counted: Mapping[tuple[str, str], CountedFloor] = field(default_factory=dict)
    awaited: Mapping[str, int] = field(default_factory=dict)
    leaving: frozenset[ClusterName] = frozenset()
    assumed: Mapping[str, str] = field(default_factory=dict)
    spaces: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


def snapshot_of(site: Site) -> AdmissionSnapshot:
    """Pure: equal sites give equal snapshots. Cost: pods + nodes + budgets."""
    kinds = {name: kind for name, gpus in site.gpus.items() if (kind := _gpu_kind(gpus)) is not None}
    floors = _Floors(site.profiles, set(kinds.values()))
    tree = build_tree(site.budgets)
    waiting, held, blocked = [], [], []
    askers: list[ClusterWant] = []
    refused: dict[ClusterName, AdmissionVerdict] = {}
    for pod in site.pods.values():
        if pod.ended or (pod.role is None and pod.labels is None):
            continue
        waits = pod.gated and pod.uid not in site.assumed
        if pod.role is not None:
            need = _need(pod, pod.role, site, floors)
            served = need.cluster in site.clusters and need.cluster not in site.leaving
        elif waits or pod.leaf is not None or pod.uid in site.assumed:
            found = _classed(pod, site, tree, waits=waits)
            if isinstance(found, AdmissionVerdict):
                refused |= {} if pod.terminating else {foreign.asker_of(pod.name): found}
                continue
            need, served = _foreign_need(pod, found, tree, floors), True
            if waits and not pod.terminating:
                askers.append(ClusterWant(foreign.asker_of(pod.name), found.priority, {found.role: 1}))
        else:
            continue  # it never asked
        if waits:
            if served and not pod.terminating and pod.waits_for:
                blocked.append(BlockedPod(need, pod.waits_for))
            elif served and not pod.terminating:
                waiting.append(need)
            continue
        held.append(
            HeldPod(
                need=need,
                leaf=site.assumed.get(pod.uid) if pod.leaf is None else pod.leaf,
                node=pod.node,
                counted=site.counted.get(pod.name, NOT_COUNTED),
                terminating=pod.terminating,
            )
        )
    return AdmissionSnapshot(
        budgets=_budgets(site, tree),
        nodes=(*_nodes(site, kinds), *_nodes_to_come(site)),
        clusters=(
            *(
                ClusterWant(
                    name,
                    spec.priority,
                    {role: spec.role(role).replicas for role in spec.roles},
                    {role: spec.role(role).nodes_per_replica for role in spec.roles},
                )
                for name, spec in sorted(site.clusters.items())
                if name not in site.leaving
            ),
            *askers,
        ),
        waiting=tuple(waiting),
        held=tuple(held),
        blocked=tuple(blocked),
        refused=refused,
    )


def _budgets(site: Site, tree: Tree) -> tuple[BudgetRoom, ...]:
    return tuple(
        BudgetRoom(
            name=name,
            floor_room_w=site.floor_room_w.get(name, 0.0),
            parent=tree.parent[name],
            selector=site.budgets[name].selector,
            binding=site.budgets[tree.root[name]].mode is not Mode.OBSERVE,
            fault=_fault(tree, name),
            max_nodes=None if (elastic := site.budgets[name].elastic) is None else elastic.max_nodes,
        )
        for name in tree.order
    )


def _fault(tree: Tree, name: str) -> str:
    root = tree.root[name]
    return f"PowerBudget {root}: {tree.fault[root]}" if root in tree.fault else ""


def _nodes(site: Site, kinds: Mapping[str, GpuKind]) -> tuple[NodeRoom, ...]:
    """Every node that exactly one leaf selects: one that two select is charged to both and takes nobody."""
    leaves, used = Leaves(site.budgets.values()), gpus_used(site.pods)
    rooms: list[NodeRoom] = []
    for name, node in site.nodes.items():
        selecting = leaves.selecting(node.labels)
        if len(selecting) != 1:
            continue
        kind = kinds.get(name)
        shut = closed(node)
        gpus = 0 if shut else node.gpus
        rooms.append(
            NodeRoom(
                name=name,
                leaf=selecting[0],
                labels=node.labels,
                gpus=gpus,
                free_gpus=max(0, gpus - used.get(name, 0) - _held_by_others(site, name)),
                gpu_kind="" if kind is None else str(kind),
                idle_floor_w=0.0 if kind is None else float(kind.min_w),
                loss_factor=site.budgets[selecting[0]].loss_factor,
                taints=node.taints,
                closed=shut,
            )
        )
    return tuple(rooms)


def _held_by_others(site: Site, node: str) -> int:
    """GPUs of a node whose agent names pods for them, none of which is ours: other people's serving, of which no watch tells."""
    return sum(
        bool(gpu.owners) and not any((owner.namespace, owner.pod) in site.pods for owner in gpu.owners)
        for gpu in site.gpus.get(node, ())
    )


def _nodes_to_come(site: Site) -> Iterator[NodeRoom]:
    """What an autoscaler may still add to elastic leaves."""
    for leaf, count in site.awaited.items():
        budget = site.budgets.get(leaf)
        if budget is None or budget.elastic is None or budget.selector is None:
            continue
        labels = {**_labels_of(budget.selector), **budget.elastic.labels}
        gpus = budget.elastic.gpus
        for i in range(count):
            yield NodeRoom(f"{leaf}: node {i + 1} to come", leaf, labels, gpus, gpus, to_come=True)


def _labels_of(selector: Selector) -> dict[str, str]:
    """Labels that a node needs for a leaf to select it, as far as the selector says their values."""
    either = {r.key: r.values[0] for r in selector.match_expressions if r.operator == "In" and len(r.values) == 1}
    return {**either, **selector.match_labels}


def _gpu_kind(gpus: Sequence[GpuStatus]) -> GpuKind | None:
    """What the node's agent reports; of several kinds the one that may draw most."""
    known = [gpu for gpu in gpus if gpu.min_w > 0]
    if not known:
        return None
    largest = max(known, key=lambda gpu: (gpu.max_w, gpu.model))
    return GpuKind(largest.model, largest.min_w, largest.max_w, largest.default_w)


class _Floors:
    """The floor of one GPU of a pod, by GPU kind; looked up once for all pods alike."""

    def __init__(self, profiles: Sequence[Profile], kinds: set[GpuKind]) -> None:
        self._profiles = profiles
        self._kinds = sorted(kinds, key=str)
        self._known: dict[tuple[Phase, bool, str, int | None], Mapping[str, float]] = {}

    def of(self, fact: PodFact) -> Mapping[str, float]:
        key = (fact.phase, fact.mixed, fact.model, fact.power_ceiling_w)
        if key not in self._known:
            demands = {kind: demand_of_pod(kind, fact, profiles=self._profiles) for kind in self._kinds}
            self._known[key] = {str(kind): float(demand.cliff_w) for kind, demand in demands.items()}
        return self._known[key]


def _need(pod: Pod, role: Role, site: Site, floors: _Floors) -> PodNeed:
    cluster = site.owners.of(pod.name.namespace, pod.label)
    spec = None if cluster is None else site.clusters.get(cluster)
    fact = pod_fact(pod, spec)
    assert fact is not None, "it has a role"
    return PodNeed(
        pod=pod.name,
        uid=pod.uid,
        cluster=cluster,
        role=role,
        gpus=pod.gpus,
        floor_w=floors.of(fact),
        rules=pod.rules,
        created_s=pod.created_s,
        group=pod.group if spec is not None and spec.role(role).nodes_per_replica > 1 else "",
    )


def _classed(pod: Pod, site: Site, tree: Tree, *, waits: bool) -> foreign.Classed | AdmissionVerdict:
    """A foreign pod below every root, or past its gate below the one where it was sent."""
    around = site.spaces.get(pod.name.namespace)
    if waits:
        return foreign.classed(pod, [site.budgets[root] for root in sorted(set(tree.root.values()))], around=around)
    leaf = site.assumed.get(pod.uid, "") if pod.leaf is None else pod.leaf
    return foreign.as_held(pod, site.budgets.get(tree.root.get(leaf, "")), around=around)


def _foreign_need(pod: Pod, found: foreign.Classed, tree: Tree, floors: _Floors) -> PodNeed:
    """With the dearest floor that it may have."""
    floor_w: dict[str, float] = {}
    for fact in found.facts:
        for kind, watts in floors.of(fact).items():
            floor_w[kind] = max(watts, floor_w.get(kind, 0.0))
    everywhere = found.roots.issuperset(tree.root.values())
    return PodNeed(
        pod=pod.name,
        uid=pod.uid,
        cluster=foreign.asker_of(pod.name),
        role=found.role,
        gpus=pod.gpus,
        floor_w=floor_w,
        rules=pod.rules,
        created_s=pod.created_s,
        leaves=None if everywhere else frozenset(leaf for leaf, root in tree.root.items() if root in found.roots),
    )
