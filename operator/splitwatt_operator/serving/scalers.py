"""Finds the HorizontalPodAutoscalers that fight with us over replicas, when there is a fight.

Asked for only after a rendered Deployment or LeaderWorkerSet had to be put right, and as long as one was found: a right to list
them is enough, and a cluster without autoscalers costs no request.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final

from splitwatt_client.errors import ApiError
from splitwatt_client.reading import Reader
from splitwatt_client.resources import HORIZONTAL_POD_AUTOSCALERS
from splitwatt_core.clusters import ClusterName, ClusterSpec, Role
from splitwatt_core.rendering.scalers import Autoscaler, advice

from splitwatt_operator.serving.apply import WORKLOADS

log = logging.getLogger(__name__)

LOOK_EVERY_S: Final = 15.0
"""The period of the HorizontalPodAutoscaler controller: more often there is no news."""


@dataclass(frozen=True, slots=True)
class _Found:
    sentences: tuple[str, ...]
    looked_s: float


class Scalers:
    """One for all clusters."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._found: dict[ClusterName, _Found] = {}

    async def look(
        self, cluster: ClusterSpec, repaired: Collection[str], workloads: Mapping[str, Role] | None = None
    ) -> tuple[str, ...]:
        """One sentence for each autoscaler that scales what we render. `repaired`: objects that were put right just now.
        `workloads`: by name, as they are called now."""
        known, now_s = self._found.get(cluster.id), asyncio.get_running_loop().time()
        fought = any(what.partition(" ")[0] in WORKLOADS for what in repaired)
        if known is None and not fought:
            return ()
        if known is not None and now_s - known.looked_s < LOOK_EVERY_S:
            return known.sentences
        try:
            listed = await self._reader.list(HORIZONTAL_POD_AUTOSCALERS, namespace=cluster.namespace)
        except ApiError as error:
            log.warning("HorizontalPodAutoscalers not read: %s", error, extra={"cluster": str(cluster.id)})
            return () if known is None else known.sentences
        found = []
        for item in listed.items:
            target = item["spec"]["scaleTargetRef"]
            sentence = advice(Autoscaler(item["metadata"]["name"], target["kind"], target["name"]), cluster, workloads)
            found += [] if sentence is None else [sentence]
        if found:
            self._found[cluster.id] = _Found(tuple(sorted(found)), now_s)
        else:
            self._found.pop(cluster.id, None)
        return tuple(sorted(found))

    def again_s(self, cluster: ClusterName) -> float | None:
        """When to look again at a cluster whose autoscaler is known; None when none is."""
        return LOOK_EVERY_S if cluster in self._found else None

    def forget(self, cluster: ClusterName) -> None:
        self._found.pop(cluster, None)
