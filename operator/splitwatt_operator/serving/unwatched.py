"""Brings objects of kinds that many Kubernetes clusters do not serve: an InferencePool, LeaderWorkerSets.

What is watched must be served, or nothing begins; so these kinds are not watched, but read at each look at their cluster: an edit
by somebody else is put right at the next one. Whatever stands in the way is a sentence for a condition, and keeps nothing else
from being done.

Invariant: only objects of this very InferenceCluster are touched.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from splitwatt_client.errors import OutcomeUnknown, Rejected
from splitwatt_client.reading import Object, Reader
from splitwatt_client.resources import INFERENCE_POOLS, LEADER_WORKER_SETS, ResourceType
from splitwatt_core.clusters import ClusterName, ClusterSpec, Role
from splitwatt_core.names import ANNOTATION_RENDERED
from splitwatt_core.rendering.drift import fingerprint
from splitwatt_core.rendering.groups import GROUP_API, GROUP_CRDS, GROUP_KIND
from splitwatt_core.rendering.llmd import POOL_API, POOL_CRDS, POOL_KIND
from splitwatt_core.rendering.objects import object_name

from splitwatt_operator.pen import NotSent, Pen, Stored
from splitwatt_operator.serving.apply import controller_uid

log = logging.getLogger(__name__)

AGAIN_S: Final = 30.0
"""While something stands in the way: the definitions may be installed meanwhile."""
NUMBERS_S: Final = 5.0
"""While an object is asked for whose status says how a role stands, and no watch brings it."""
UNWATCHED_KINDS: Final = (POOL_KIND, GROUP_KIND)


@dataclass(frozen=True, slots=True)
class Unserved:
    """Of one kind: its resource, and what to do where Kubernetes does not serve it."""

    resource: ResourceType
    advice: str


POOLS: Final = Unserved(
    INFERENCE_POOLS,
    f"Kubernetes serves no InferencePool of {POOL_API}, which spec.router.type LLMD needs: install the Gateway API Inference "
    f"Extension's definitions (kubectl apply -f {POOL_CRDS}), or set spec.router.type to VLLM.",
)
GROUPS: Final = Unserved(
    LEADER_WORKER_SETS,
    f"Kubernetes serves no LeaderWorkerSet of {GROUP_API}, which nodesPerReplica needs: install LeaderWorkerSet (kubectl apply "
    f"--server-side -f {GROUP_CRDS}), or set nodesPerReplica to 1.",
)


@dataclass(frozen=True, slots=True)
class Brought:
    """`problem`: one sentence, "" when the object is as rendered or none is asked for. `repaired`: it was put right after an
    edit. `unsent`: the Lease was not surely held. `live`: the object as it is, None where there is none of ours."""

    problem: str = ""
    repaired: bool = False
    unsent: bool = False
    live: Object | None = None


@dataclass(frozen=True, slots=True)
class _Stands:
    """Our last apply for the cluster `owner`; `rendered` "": it is known that it has no such object."""

    owner: str
    rendered: str = ""
    fingerprint: str = ""


class Unwatched:
    """One for all clusters, of one kind and one `part` of a cluster. Calls for one cluster must not overlap."""

    def __init__(self, reader: Reader, pen: Pen, kind: Unserved, part: Role | None) -> None:
        self._reader = reader
        self._pen = pen
        self._kind = kind
        self._part = part
        self._known: dict[ClusterName, _Stands] = {}

    async def bring(self, spec: ClusterSpec, manifest: Mapping[str, Any] | None) -> Brought:
        """`manifest`: as rendered; None removes what an earlier spec had. Raises ApiError when it is to be tried again."""
        if manifest is None and self._known.get(spec.id) == _Stands(spec.uid):
            return Brought()
        try:
            live = await self._reader.get(self._kind.resource, self._name(spec.id), namespace=spec.namespace)
        except Rejected as refusal:
            return self._unreadable(spec, refusal, wanted=manifest is not None)
        if manifest is None:
            return await self._remove(spec, live)
        if live is not None and controller_uid(live) != spec.uid and not self._was_ours(spec, live):
            return Brought(f"{self._say(spec.id)} exists already and is not ours: rename it or this InferenceCluster.")
        return await self._apply(spec, manifest, live)

    def forget(self, cluster: ClusterName) -> None:
        """The cluster is gone; its object goes by garbage collection."""
        self._known.pop(cluster, None)

    def _name(self, cluster: ClusterName) -> str:
        return object_name(cluster.name, self._part)

    def _say(self, cluster: ClusterName) -> str:
        return f"{self._kind.resource.kind} {self._name(cluster)}"

    def _unreadable(self, spec: ClusterSpec, refusal: Rejected, *, wanted: bool) -> Brought:
        if wanted:
            return Brought(self._kind.advice if refusal.not_found else f"{self._say(spec.id)}: {refusal.message}")
        if not refusal.not_found:
            log.warning("whether %s is left over is not known: %s", self._say(spec.id), refusal, extra={"cluster": str(spec.id)})
        self._known[spec.id] = _Stands(spec.uid)
        return Brought()

    def _was_ours(self, spec: ClusterSpec, live: Object) -> bool:
        """The one that we applied, with its owner taken out by someone."""
        known = self._known.get(spec.id)
        return known is not None and known.owner == spec.uid and bool(known.rendered) and controller_uid(live) is None

    async def _apply(self, spec: ClusterSpec, manifest: Mapping[str, Any], live: Object | None) -> Brought:
        known, rendered = self._known.get(spec.id), manifest["metadata"]["annotations"][ANNOTATION_RENDERED]
        same = known is not None and known.owner == spec.uid and known.rendered == rendered
        if live is not None and known is not None and same and fingerprint(live, manifest) == known.fingerprint:
            return Brought(live=live)
        match await self._pen.apply(manifest):
            case Stored(answer):
                self._known[spec.id] = _Stands(spec.uid, rendered, fingerprint(answer, manifest))
                return Brought(repaired=same, live=answer)
            case NotSent():
                return Brought(unsent=True)
            case Rejected() as refusal:
                return Brought(f"{self._say(spec.id)}: {refusal.message}", live=live)
            case OutcomeUnknown() as error:
                raise error

    async def _remove(self, spec: ClusterSpec, live: Object | None) -> Brought:
        if live is not None and controller_uid(live) == spec.uid:
            meta = live["metadata"]
            match await self._pen.delete(self._kind.resource, meta["name"], namespace=meta["namespace"], uid=meta["uid"]):
                case NotSent():
                    return Brought(unsent=True)
                case Rejected() | OutcomeUnknown() as error:
                    raise error
                case Stored():
                    log.info("removed %s, no longer rendered", self._say(spec.id), extra={"cluster": str(spec.id)})
        self._known[spec.id] = _Stands(spec.uid)
        return Brought()


@dataclass(frozen=True, slots=True)
class AllBrought:
    """`pool`, and by role the group of pods of each replica."""

    pool: Brought
    groups: Mapping[Role, Brought]

    @property
    def all(self) -> tuple[Brought, ...]:
        return (self.pool, *self.groups.values())

    @property
    def unsent(self) -> bool:
        return any(report.unsent for report in self.all)

    @property
    def problems(self) -> list[str]:
        return [report.problem for report in self.all if report.problem]

    @property
    def again_s(self) -> float | None:
        if any(report.live is not None for report in self.groups.values()):
            return NUMBERS_S
        return AGAIN_S if self.problems else None


class UnwatchedObjects:
    """All of them, for all clusters."""

    def __init__(self, reader: Reader, pen: Pen) -> None:
        self._pool = Unwatched(reader, pen, POOLS, None)
        self._groups = {role: Unwatched(reader, pen, GROUPS, role) for role in Role}

    async def bring(self, spec: ClusterSpec, manifests: Mapping[tuple[str, str], Mapping[str, Any]]) -> AllBrought:
        """`manifests`: by kind and name."""
        pool = await self._pool.bring(spec, manifests.get((POOL_KIND, object_name(spec.name))))
        groups = {
            role: await each.bring(spec, manifests.get((GROUP_KIND, object_name(spec.name, role))))
            for role, each in self._groups.items()
        }
        return AllBrought(pool, groups)

    def forget(self, cluster: ClusterName) -> None:
        for each in (self._pool, *self._groups.values()):
            each.forget(cluster)
