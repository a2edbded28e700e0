"""Reads LeaderWorkerSets, a kind that many Kubernetes clusters do not serve, into the store.

What is watched must be served, or nothing begins; so they are not watched, but listed at each look at a cluster that has them.
From there on they are objects as others are: applied, put right, scaled and removed (`apply`), and read as revisions
(`revisions`).
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from typing import Final

from splitwatt_client.errors import Rejected
from splitwatt_client.reading import Reader
from splitwatt_client.resources import LEADER_WORKER_SETS
from splitwatt_core.clusters import ClusterName, ClusterSpec
from splitwatt_core.rendering.groups import GROUP_API, GROUP_CRDS, GROUP_KIND, spans_nodes
from splitwatt_core.rendering.objects import Manifest

from splitwatt_operator.cluster.store import JsonObject, Key, Kind, Store, key_of, version_of
from splitwatt_operator.serving.apply import controller_uid

log = logging.getLogger(__name__)

NUMBERS_S: Final = 5.0
"""While one is there, whose status says how a role stands and how a rollout goes on."""
AGAIN_S: Final = 30.0
"""While something stands in the way: the definitions may be installed meanwhile."""
FORBIDDEN: Final = 403
NOT_SERVED: Final = (
    f"Kubernetes serves no LeaderWorkerSet of {GROUP_API}, which nodesPerReplica needs: install LeaderWorkerSet (kubectl apply "
    f"--server-side -f {GROUP_CRDS}), or set nodesPerReplica to 1."
)


class Groups:
    """One for all clusters. Calls for one cluster must not overlap."""

    def __init__(self, reader: Reader, store: Store) -> None:
        self._reader = reader
        self._store = store
        self._without: dict[ClusterName, str] = {}
        """Clusters that are known to have none, by uid."""

    async def read(self, spec: ClusterSpec) -> str:
        """Why the cluster's LeaderWorkerSets can be neither read nor applied, in one sentence; "" when they can, or it has none.
        Raises ApiError when it is to be tried again."""
        wanted = any(spans_nodes(spec, role) for role in spec.roles)
        if not wanted and self._without.get(spec.id) == spec.uid:
            return ""
        try:
            listed = await self._reader.list(LEADER_WORKER_SETS, namespace=spec.namespace)
        except Rejected as refusal:
            if not (refusal.not_found or refusal.status == FORBIDDEN):
                raise
            if refusal.not_found:
                self._keep_only(spec.namespace, (), version=None)
            if wanted:
                return (
                    NOT_SERVED if refusal.not_found else f"LeaderWorkerSets of {spec.namespace} are not read: {refusal.message}"
                )
            if not refusal.not_found:
                log.warning("whether LeaderWorkerSets are left over is not known: %s", refusal, extra={"cluster": str(spec.id)})
            self._without[spec.id] = spec.uid
            return ""
        for item in listed.items:
            self._store.apply(Kind.GROUP, item)
        self._keep_only(spec.namespace, [key_of(item) for item in listed.items], version=int(listed.resource_version))
        if wanted or self._of(spec):
            self._without.pop(spec.id, None)
        else:
            self._without[spec.id] = spec.uid
        return ""

    def again_s(self, spec: ClusterSpec, problem: str) -> float | None:
        """When to look again; None for a cluster that has none."""
        if problem:
            return AGAIN_S
        return NUMBERS_S if self._of(spec) else None

    def forget(self, cluster: ClusterName) -> None:
        self._without.pop(cluster, None)

    def _of(self, spec: ClusterSpec) -> list[JsonObject]:
        return [obj for obj in self._store.all(Kind.GROUP) if controller_uid(obj) == spec.uid]

    def _keep_only(self, namespace: str, there: Collection[Key], *, version: int | None) -> None:
        """All others were gone at that version; None: the kind itself is."""
        for obj in list(self._store.all(Kind.GROUP)):
            key = key_of(obj)
            if key.namespace == namespace and key not in there and (version is None or version_of(obj) <= version):
                self._store.remove(Kind.GROUP, key, version=version or version_of(obj))


Named = tuple[Kind, Key]


def without_groups(manifests: Sequence[Manifest], keep: frozenset[Named]) -> tuple[list[Manifest], frozenset[Named]]:
    """(what can be applied, what stays besides) while LeaderWorkerSets cannot be read: those that may stand are not removed."""
    kept = {(Kind.GROUP, key_of(each)) for each in manifests if each["kind"] == GROUP_KIND}
    return [each for each in manifests if each["kind"] != GROUP_KIND], keep | kept
