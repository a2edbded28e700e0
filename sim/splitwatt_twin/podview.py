"""A pod as the twin sees it: the few fields of the raw object that decide whether an engine runs, and which one.

Pure: raw JSON in, `PodView` out, None for a pod that is none of ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from splitwatt_core.clusters import Role
from splitwatt_core.names import GPU_RESOURCE, LABEL_CLUSTER, LABEL_ROLE

from splitwatt_twin.requests import ClusterKey, PodKey

_ENDED: Final = frozenset({"Succeeded", "Failed"})


@dataclass(frozen=True, slots=True)
class PodView:
    """`ready`: it takes requests (Ready condition, not being deleted). `created`: RFC 3339, orders pods of one node."""

    key: PodKey
    uid: str
    cluster: ClusterKey
    role: Role
    node: str
    gpus: int
    container: str
    model: str
    created: str
    ready: bool


def view(pod: Mapping[str, Any]) -> PodView | None:
    """None: not bound yet, already ended, without GPUs, or without our labels. A role we do not know is None as well."""
    meta, spec, status = pod["metadata"], pod.get("spec") or {}, pod.get("status") or {}
    labels = meta.get("labels") or {}
    roles = {role.value: role for role in Role}
    if not spec.get("nodeName") or status.get("phase") in _ENDED:
        return None
    if LABEL_CLUSTER not in labels or labels.get(LABEL_ROLE, "").lower() not in roles:
        return None
    engine = next((c for c in spec.get("containers") or [] if _gpus(c) > 0), None)
    if engine is None:
        return None
    args = engine.get("args") or []
    return PodView(
        key=PodKey(meta["namespace"], meta["name"]),
        uid=meta["uid"],
        cluster=ClusterKey(meta["namespace"], labels[LABEL_CLUSTER]),
        role=roles[labels[LABEL_ROLE].lower()],
        node=spec["nodeName"],
        gpus=_gpus(engine),
        container=engine.get("name", ""),
        model=args[0] if args and not args[0].startswith("-") else "",
        created=meta.get("creationTimestamp") or "",
        ready=_ready(status) and not meta.get("deletionTimestamp"),
    )


def _gpus(container: Mapping[str, Any]) -> int:
    resources = container.get("resources") or {}
    limits, requests = resources.get("limits") or {}, resources.get("requests") or {}
    quantity = str(limits.get(GPU_RESOURCE) or requests.get(GPU_RESOURCE) or "")
    return int(quantity) if quantity.isdigit() else 0


def _ready(status: Mapping[str, Any]) -> bool:
    return any(c.get("type") == "Ready" and c.get("status") == "True" for c in status.get("conditions") or [])
