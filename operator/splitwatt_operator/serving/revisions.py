"""What stands of a cluster's revisions, read from its Deployments and LeaderWorkerSets, and what the next look makes of it.

Nothing is remembered but `PlacesSeen`: who takes over in the midst of a rollout reads the same and goes on. Workloads of former
revisions are never rendered anew, for their spec is not asked for any more; they are told how many replicas they have, and go
when empty.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Final

from splitwatt_core.clusters import LABEL_ROUTERS, PAIR, ClusterName, ClusterSpec, Role, RouterType, cluster_label
from splitwatt_core.names import GATE_POWER, LABEL_CLUSTER, LABEL_REVISION, LABEL_ROLE, LABEL_ROUTER
from splitwatt_core.rendering.groups import spans_nodes
from splitwatt_core.rendering.objects import ROUTER_PART, object_name, selector_labels
from splitwatt_core.rendering.revision import Home, RenderPlan, RouterHome, kv_content, names_for, revision_of
from splitwatt_core.serving.rollout import PoolState, RevisionState, RolloutPlan, plan_rollout

from splitwatt_operator.cluster.store import JsonObject, Key, Kind, Store
from splitwatt_operator.serving.apply import WORKLOADS, ForFormer, controller_uid

POD_HASH: Final = "pod-template-hash"


@dataclass(frozen=True, slots=True)
class LiveWorkload:
    """One Deployment or LeaderWorkerSet of the cluster; the latter counts groups, where the former counts pods. `going`: told to
    go, and its pods may still be there."""

    part: Role | str
    revision: str
    home: Home
    obj: JsonObject
    going: bool

    @property
    def kind(self) -> Kind:
        return Kind(self.obj["kind"])

    @property
    def key(self) -> Key:
        return Key(self.obj["metadata"]["namespace"], self.home.name)

    @property
    def wanted(self) -> int:
        wanted: int = self.obj["spec"].get("replicas", 1)
        return wanted

    @property
    def empty(self) -> bool:
        status = self.obj.get("status") or {}
        seen = status.get("observedGeneration", 0) >= self.obj["metadata"].get("generation", 0)
        return seen and not self.wanted and not status.get("replicas")


@dataclass(frozen=True, slots=True)
class Revisions:
    """`newest`: the revision that is asked for. `plan`: what is next."""

    newest: str
    live: Sequence[LiveWorkload]
    plan: RolloutPlan
    rendered: RenderPlan
    tell: Mapping[Key, ForFormer] = field(default_factory=dict)
    """What is told to those of former revisions. No Deployment is called as a LeaderWorkerSet is."""
    keep: frozenset[tuple[Kind, Key]] = frozenset()
    """Those that are not rendered and stay all the same."""

    @property
    def named(self) -> dict[str, Role]:
        return {each.home.name: Role(each.part) for each in self.live if each.part in set(Role)}

    def of(self, part: Role | str) -> list[LiveWorkload]:
        return [each for each in self.live if each.part == part]


class PlacesSeen:
    """How many replicas of each role were ready at most, since a revision is asked for: so many there were watts for. This alone
    is remembered, and whoever takes over begins anew."""

    def __init__(self) -> None:
        self._seen: dict[ClusterName, tuple[str, str, dict[Role, int]]] = {}

    def see(self, spec: ClusterSpec, newest: str, engines: Sequence[LiveWorkload]) -> Mapping[Role, int]:
        uid, revision, most = self._seen.get(spec.id, ("", "", {}))
        if (uid, revision) != (spec.uid, newest):
            most = {}
        ready = Counter[Role]()
        for each in engines:
            ready[Role(each.part)] += _ready(each)
        most = {role: min(spec.role(role).replicas, max(most.get(role, 0), ready[role])) for role in spec.roles}
        self._seen[spec.id] = (spec.uid, newest, most)
        return most

    def forget(self, name: ClusterName) -> None:
        self._seen.pop(name, None)


def revisions_of(
    store: Store, spec: ClusterSpec, templates: Mapping[Role, Mapping[str, Any]], places: PlacesSeen | None = None
) -> Revisions:
    """Cost: the store's workloads, and its pods where some are not labelled or several revisions are there. `places`: of
    whoever acts by the answer."""
    newest = revision_of(templates)
    live = _live(store, spec, templates, newest)
    engines = [each for each in live if isinstance(each.part, Role) and not each.going]
    routers = [each for each in live if each.part == ROUTER_PART]
    with_router = spec.router.type in LABEL_ROUTERS
    replicas = {role: spec.role(role).replicas for role in spec.roles}
    gated = _gated(store, spec) if any(each.revision != newest for each in engines) else {}
    states = {
        revision: RevisionState(
            {
                Role(each.part): PoolState(each.wanted, _ready(each), gated.get((each.part, revision), 0))
                for each in engines
                if each.revision == revision
            },
            with_router and any(each.revision == revision for each in routers),
            sum(_ready(each) for each in routers if each.revision == revision and not each.going),
        )
        for revision in {each.revision for each in (*engines, *(routers if with_router else ()))}
    }
    seen = places.see(spec, newest, engines) if places is not None else {}
    plan = plan_rollout(states, newest=newest, replicas=replicas, with_router=with_router, ready_at_most=seen)
    taken = {each.home.name for each in live}
    homes = {}
    for role in spec.roles:
        if (home := _home(engines, role, newest) or _free(spec, role, newest, taken, group=spans_nodes(spec, role))) is not None:
            homes[role] = home
    former = [each for each in engines if each.revision != newest]
    rendered, kept_routers = _routers(spec, plan, newest, homes, engines=engines, routers=routers, taken=taken)
    return Revisions(
        newest,
        live,
        plan,
        RenderPlan(homes, plan.replicas[newest], rendered, seen, _way_in(store, spec, routers)),
        {
            each.key: ForFormer(to, each.revision, each.kind)
            for each in former
            if (to := plan.replicas[each.revision][Role(each.part)]) != each.wanted
            or not (each.obj["metadata"].get("labels") or {}).get(LABEL_REVISION)
        },
        frozenset(
            (each.kind, each.key)
            for each in (*former, *kept_routers)
            if each.part == ROUTER_PART or plan.replicas[each.revision][Role(each.part)] or not each.empty
        ),
    )


def _routers(
    spec: ClusterSpec, plan: RolloutPlan, newest: str, homes: Mapping[Role, Home], *,
    engines: Sequence[LiveWorkload], routers: Sequence[LiveWorkload], taken: set[str],
) -> tuple[tuple[RouterHome, ...], list[LiveWorkload]]:  # fmt: skip
    """(those to render, those that stay as they are)."""
    rendered, stay = [], []
    for revision in sorted(plan.routers):
        there = next((each for each in routers if each.revision == revision and not each.going), None)
        if there is not None and revision != newest:
            stay.append(there)
            continue
        home = there.home if there is not None else _free(spec, ROUTER_PART, revision, taken)
        theirs = homes if revision == newest else {role: h for role in Role if (h := _home(engines, role, revision)) is not None}
        if home is not None and (Role.MIXED in theirs or theirs.keys() >= {*PAIR}):
            taken.add(home.name)
            rendered.append(RouterHome(revision, home.name, theirs))
    return tuple(rendered), stay


def _way_in(store: Store, spec: ClusterSpec, routers: Sequence[LiveWorkload]) -> Role | None:
    """Of a cluster without a router that gets one: the role that its Service leads to, until one is ready."""
    if any(_ready(each) and not each.going for each in routers):
        return None
    service = store.get(Kind.SERVICE, object_name(spec.name), spec.namespace)
    if service is None or spec.router.type is RouterType.NONE or controller_uid(service) != spec.uid:
        return None
    leads_to = service["spec"].get("selector")
    return next((role for role in Role if selector_labels(spec.name, role) == leads_to), None)


def _live(store: Store, spec: ClusterSpec, templates: Mapping[Role, Mapping[str, Any]], newest: str) -> list[LiveWorkload]:
    found = []
    for obj in _workloads(store):
        if obj["metadata"]["namespace"] == spec.namespace and _theirs(obj, spec):
            selects = _selects(obj)
            if LABEL_ROUTER in selects:
                found.append((ROUTER_PART, obj))
            elif selects.get(LABEL_ROLE) in set(Role):
                found.append((Role(selects[LABEL_ROLE]), obj))
    nameless = {Role(part): obj for part, obj in found if part in set(Role) and not _named(obj)}
    theirs = _nameless_revision(nameless, templates, newest)
    return sorted(
        (
            LiveWorkload(part, _named(obj) or theirs, _home_of(store, obj, part),
                 obj, "deletionTimestamp" in obj["metadata"])
            for part, obj in found
        ),
        key=lambda each: each.home.name,
    )  # fmt: skip


def _workloads(store: Store) -> Iterator[JsonObject]:
    return chain.from_iterable(store.all(kind) for kind in WORKLOADS)


def _template(workload: JsonObject) -> Mapping[str, Any]:
    """Of the pods that are known as engines: of a group its leader's."""
    spec = workload["spec"]
    found: Mapping[str, Any] = (
        spec["leaderWorkerTemplate"]["leaderTemplate"] if "leaderWorkerTemplate" in spec else spec["template"]
    )
    return found


def _selects(workload: JsonObject) -> Mapping[str, str]:
    if workload["kind"] == Kind.GROUP:
        return _template(workload)["metadata"].get("labels") or {}
    return (workload["spec"].get("selector") or {}).get("matchLabels") or {}


def _named(workload: JsonObject) -> str:
    """By its label, or its pods' where somebody took it; "" when it was made before revisions were named."""
    labels = (workload["metadata"].get("labels") or {}, _template(workload)["metadata"].get("labels") or {})
    return next((of[LABEL_REVISION] for of in labels if LABEL_REVISION in of), "")


def _theirs(obj: JsonObject, spec: ClusterSpec) -> bool:
    """The cluster's, or one whose owner somebody took out, which is put right."""
    owner = controller_uid(obj)
    return owner == spec.uid or (
        owner is None and obj["metadata"].get("labels", {}).get(LABEL_CLUSTER) == cluster_label(spec.name)
    )


def _nameless_revision(nameless: Mapping[Role, JsonObject], templates: Mapping[Role, Mapping[str, Any]], newest: str) -> str:
    """Of Deployments that were made before revisions were named: the newest, where their engines are started with the same."""
    live = {role: _template(obj) for role, obj in nameless.items()}
    if all(role in templates and kv_content(live[role]) == kv_content(templates[role]) for role in live):
        return newest
    return revision_of(live)


def _home_of(store: Store, obj: JsonObject, part: Role | str) -> Home:
    meta = obj["metadata"]
    labels = _template(obj)["metadata"].get("labels") or {}
    if part == ROUTER_PART or LABEL_REVISION in labels:
        return Home(meta["name"])
    hashes = set()
    for pod in store.all(Kind.POD):
        owner: Mapping[str, Any] = next((o for o in pod["metadata"].get("ownerReferences") or () if o.get("controller")), {})
        own = (pod["metadata"].get("labels") or {}).get(POD_HASH)
        same = pod["metadata"]["namespace"] == meta["namespace"] and "deletionTimestamp" not in pod["metadata"]
        if own and same and owner.get("name") == f"{meta['name']}-{own}":
            hashes.add(own)
    return Home(meta["name"], labelled=False, pod_hash=hashes.pop() if len(hashes) == 1 else "")


def _gated(store: Store, spec: ClusterSpec) -> Counter[tuple[str, str]]:
    """By role and revision: pods that wait behind the power gate. One that bears no revision is older than any."""
    label, found = cluster_label(spec.name), Counter[tuple[str, str]]()
    for pod in store.all(Kind.POD):
        meta, labels = pod["metadata"], pod["metadata"].get("labels") or {}
        if meta["namespace"] != spec.namespace or labels.get(LABEL_CLUSTER) != label or "deletionTimestamp" in meta:
            continue
        if any(gate.get("name") == GATE_POWER for gate in pod["spec"].get("schedulingGates") or ()):
            found[labels.get(LABEL_ROLE, ""), labels.get(LABEL_REVISION, "")] += 1
    return found


def _home(engines: Iterable[LiveWorkload], role: Role, revision: str) -> Home | None:
    return next((each.home for each in engines if each.part == role and each.revision == revision), None)


def _free(spec: ClusterSpec, part: Role | str, revision: str, taken: set[str], *, group: bool = False) -> Home | None:
    return next((Home(name) for name in names_for(spec.name, part, revision, group=group) if name not in taken), None)


def _ready(live: LiveWorkload) -> int:
    ready: int = (live.obj.get("status") or {}).get("readyReplicas", 0)
    return ready


# -------------------------------------------------------------------------------------------------------------- for the status


def together(workloads: Sequence[LiveWorkload], newest: str) -> JsonObject | None:
    """One part's workloads as if they were one, of which those of the newest revision are up to date; None without any."""
    staying = [each for each in workloads if not each.going]
    if not staying:
        return None
    status = {
        field: sum((each.obj.get("status") or {}).get(field, 0) for each in staying) for field in ("replicas", "readyReplicas")
    }
    ours = next((each.obj for each in staying if each.revision == newest), None)
    if ours is None:
        return {"metadata": {"generation": 1}, "status": status}
    kept = {field: (ours.get("status") or {}).get(field, 0) for field in ("updatedReplicas", "observedGeneration")}
    return {"metadata": {"generation": ours["metadata"].get("generation", 0)}, "status": status | kept}


def replicas_of(store: Store, spec: ClusterSpec, role: Role) -> int:
    """Replicas that a role has, of all revisions."""
    found = (obj for obj in _workloads(store) if controller_uid(obj) == spec.uid and _selects(obj).get(LABEL_ROLE) == role)
    return sum((obj.get("status") or {}).get("replicas", 0) for obj in found)


def routers_ready(store: Store, spec: ClusterSpec) -> bool:
    """Whether the cluster's Service leads anywhere."""
    return any(
        LABEL_ROUTER in _selects(obj) and (obj.get("status") or {}).get("readyReplicas")
        for obj in store.all(Kind.DEPLOYMENT)
        if controller_uid(obj) == spec.uid
    )
