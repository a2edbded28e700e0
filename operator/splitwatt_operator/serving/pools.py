"""Brings the InferencePool of a cluster with llm-d's router, a kind that many Kubernetes clusters do not serve.

What is watched must be served, or nothing begins; so this kind is not watched, but read at each look at its cluster: an edit by
somebody else is put right at the next one. Whatever stands in the way is a sentence for RouterReady and keeps nothing else from
being done.

Invariant: only the pool of this very InferenceCluster is touched.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from splitwatt_client.errors import OutcomeUnknown, Rejected
from splitwatt_client.reading import Object, Reader
from splitwatt_client.resources import INFERENCE_POOLS
from splitwatt_core.clusters import ClusterName, ClusterSpec
from splitwatt_core.names import ANNOTATION_RENDERED
from splitwatt_core.rendering.drift import fingerprint
from splitwatt_core.rendering.llmd import POOL_API, POOL_CRDS
from splitwatt_core.rendering.objects import object_name

from splitwatt_operator.pen import NotSent, Pen, Stored
from splitwatt_operator.serving.apply import controller_uid

log = logging.getLogger(__name__)

AGAIN_S: Final = 30.0
"""While something stands in the way: the definitions may be installed meanwhile."""
NOT_SERVED: Final = (
    f"Kubernetes serves no InferencePool of {POOL_API}, which spec.router.type LLMD needs: install the Gateway API Inference "
    f"Extension's definitions (kubectl apply -f {POOL_CRDS}), or set spec.router.type to VLLM."
)


@dataclass(frozen=True, slots=True)
class PoolReport:
    """`problem`: one sentence, "" when the pool is as rendered or none is asked for. `repaired`: it was put right after an
    edit. `unsent`: the Lease was not surely held."""

    problem: str = ""
    repaired: bool = False
    unsent: bool = False

    @property
    def again_s(self) -> float | None:
        return AGAIN_S if self.problem else None


@dataclass(frozen=True, slots=True)
class _Stands:
    """Our last apply for the cluster `owner`; `rendered` "": it is known that it has no pool."""

    owner: str
    rendered: str = ""
    fingerprint: str = ""


class Pools:
    """One for all clusters. Calls for one cluster must not overlap."""

    def __init__(self, reader: Reader, pen: Pen) -> None:
        self._reader = reader
        self._pen = pen
        self._known: dict[ClusterName, _Stands] = {}

    async def bring(self, spec: ClusterSpec, pool: Mapping[str, Any] | None) -> PoolReport:
        """`pool`: as rendered; None removes what an earlier spec had. Raises ApiError when it is to be tried again."""
        if pool is None and self._known.get(spec.id) == _Stands(spec.uid):
            return PoolReport()
        try:
            live = await self._reader.get(INFERENCE_POOLS, object_name(spec.name), namespace=spec.namespace)
        except Rejected as refusal:
            return self._unreadable(spec, refusal, wanted=pool is not None)
        if pool is None:
            return await self._remove(spec, live)
        if live is not None and controller_uid(live) != spec.uid and not self._was_ours(spec, live):
            name = object_name(spec.name)
            return PoolReport(f"InferencePool {name} exists already and is not ours: rename it or this InferenceCluster.")
        return await self._apply(spec, pool, live)

    def forget(self, cluster: ClusterName) -> None:
        """The cluster is gone; its pool goes by garbage collection."""
        self._known.pop(cluster, None)

    def _unreadable(self, spec: ClusterSpec, refusal: Rejected, *, wanted: bool) -> PoolReport:
        if wanted:
            return PoolReport(NOT_SERVED if refusal.not_found else f"InferencePool {object_name(spec.name)}: {refusal.message}")
        if not refusal.not_found:
            log.warning("whether it has an InferencePool left is not known: %s", refusal, extra={"cluster": str(spec.id)})
        self._known[spec.id] = _Stands(spec.uid)
        return PoolReport()

    def _was_ours(self, spec: ClusterSpec, live: Object) -> bool:
        """The one that we applied, with its owner taken out by someone."""
        known = self._known.get(spec.id)
        return known is not None and known.owner == spec.uid and bool(known.rendered) and controller_uid(live) is None

    async def _apply(self, spec: ClusterSpec, pool: Mapping[str, Any], live: Object | None) -> PoolReport:
        known, rendered = self._known.get(spec.id), pool["metadata"]["annotations"][ANNOTATION_RENDERED]
        same = known is not None and known.owner == spec.uid and known.rendered == rendered
        if live is not None and known is not None and same and fingerprint(live, pool) == known.fingerprint:
            return PoolReport()
        match await self._pen.apply(pool):
            case Stored(answer):
                self._known[spec.id] = _Stands(spec.uid, rendered, fingerprint(answer, pool))
                return PoolReport(repaired=same)
            case NotSent():
                return PoolReport(unsent=True)
            case Rejected() as refusal:
                return PoolReport(f"InferencePool {object_name(spec.name)}: {refusal.message}")
            case OutcomeUnknown() as error:
                raise error

    async def _remove(self, spec: ClusterSpec, live: Object | None) -> PoolReport:
        if live is not None and controller_uid(live) == spec.uid:
            meta = live["metadata"]
            match await self._pen.delete(INFERENCE_POOLS, meta["name"], namespace=meta["namespace"], uid=meta["uid"]):
                case NotSent():
                    return PoolReport(unsent=True)
                case Rejected() | OutcomeUnknown() as error:
                    raise error
                case Stored():
                    log.info("removed InferencePool, no longer rendered", extra={"object": meta["name"]})
        self._known[spec.id] = _Stands(spec.uid)
        return PoolReport()
