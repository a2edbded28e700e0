"""Keeps each cluster's RoleScale: there, its status true, and told what its InferenceCluster says.

The rule which number counts is `splitwatt_core.rendering.role_scale`'s; the view has applied it already. Nothing here makes a
cluster unready: without a RoleScale its own replicas hold.
"""

from __future__ import annotations

import logging
from typing import Any, Final

from splitwatt_client.errors import OutcomeUnknown, Rejected
from splitwatt_client.resources import ROLE_SCALES
from splitwatt_core.clusters import ClusterSpec
from splitwatt_core.names import ANNOTATION_DECLARED_REPLICAS, GROUP_VERSION
from splitwatt_core.rendering.objects import object_name, selector_text
from splitwatt_core.rendering.role_scale import SCALED_ROLE, heard, role_scale

from splitwatt_operator.cluster import read
from splitwatt_operator.cluster.store import JsonObject, Kind, Store
from splitwatt_operator.pen import NotSent, Pen, Sent, Stored
from splitwatt_operator.serving.revisions import replicas_of

log = logging.getLogger(__name__)

AGAIN_S: Final = 5.0
"""After a write that met another one: the watch brings what stands now."""


class RoleScales:
    """One for all clusters. Calls for one cluster must not overlap."""

    def __init__(self, pen: Pen, store: Store) -> None:
        self._pen = pen
        self._store = store

    async def keep(self, cluster: ClusterSpec, declared: int) -> float | None:
        """`declared`: what the InferenceCluster itself says. Returns when to look again, None where all is well."""
        name = object_name(cluster.name, SCALED_ROLE)
        live = self._store.get(Kind.ROLE_SCALE, name, cluster.namespace)
        if live is None:
            return self._done(cluster, await self._pen.create(role_scale(cluster, declared)))
        if live["metadata"].get("deletionTimestamp"):
            return AGAIN_S
        try:
            scale = read.role_scale(live)
        except read.UNREADABLE as error:
            log.warning("RoleScale %s is unreadable: %s", name, read.sentence_of(error), extra={"cluster": str(cluster.id)})
            return None
        if scale.owner != cluster.uid:
            log.warning("RoleScale %s is somebody else's and scales nothing here", name, extra={"cluster": str(cluster.id)})
            return None
        if not heard(declared, scale):
            sent = await self._pen.patch(ROLE_SCALES, name, _tell(live, declared), namespace=cluster.namespace)
            if not isinstance(sent, Stored):
                return self._done(cluster, sent)
            live = sent.obj
            self._done(cluster, sent)
        status = self._status(cluster)
        if live.get("status") == status:
            return None
        meta = {"namespace": cluster.namespace, "name": name, "uid": live["metadata"]["uid"]}
        manifest = {"apiVersion": GROUP_VERSION, "kind": "RoleScale", "metadata": meta, "status": status}
        return self._done(cluster, await self._pen.apply(manifest, subresource="status"))

    def _status(self, cluster: ClusterSpec) -> dict[str, Any]:
        replicas = replicas_of(self._store, cluster, SCALED_ROLE)
        return {"replicas": replicas, "labelSelector": selector_text(cluster.name, SCALED_ROLE)}

    def _done(self, cluster: ClusterSpec, sent: Sent) -> float | None:
        match sent:
            case Stored(answer):
                self._store.apply(Kind.ROLE_SCALE, answer)
                return None
            case NotSent():
                return AGAIN_S
            case Rejected(not_found=True) | Rejected(conflict=True):
                log.info("RoleScale not written, again soon: %s", sent, extra={"cluster": str(cluster.id)})
                return AGAIN_S
            case Rejected() | OutcomeUnknown():
                log.warning("RoleScale not written: %s", sent, extra={"cluster": str(cluster.id)})
                return AGAIN_S


def _tell(live: JsonObject, declared: int) -> list[dict[str, Any]]:
    """One write of both, bound to what was read: whoever scales in between is not overwritten unseen."""
    meta = live["metadata"]
    key = ANNOTATION_DECLARED_REPLICAS.replace("~", "~0").replace("/", "~1")
    patch: list[dict[str, Any]] = [{"op": "test", "path": "/metadata/resourceVersion", "value": meta["resourceVersion"]}]
    if not meta.get("annotations"):
        patch.append({"op": "add", "path": "/metadata/annotations", "value": {}})
    patch.append({"op": "add", "path": f"/metadata/annotations/{key}", "value": str(declared)})
    if read.role_scale(live).declared is not None:
        patch.append({"op": "replace", "path": "/spec/replicas", "value": declared})
    return patch
