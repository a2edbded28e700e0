"""What is kept of each watched object: the fields that some loop reads, and no more.

A Node carries kilobytes of image lists, and every object carries `managedFields` as large as itself. Dropping both is
what keeps the operator small; a field that a loop starts to read has to be added here first.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

_DROPPED_METADATA: Final = ("managedFields", "selfLink")
_DROPPED_ANNOTATIONS: Final = ("kubectl.kubernetes.io/last-applied-configuration",)


def _metadata(raw: Mapping[str, Any]) -> dict[str, Any]:
    meta = {k: v for k, v in raw.items() if k not in _DROPPED_METADATA}
    if annotations := meta.get("annotations"):
        meta["annotations"] = {k: v for k, v in annotations.items() if k not in _DROPPED_ANNOTATIONS}
    return meta


def _pick(raw: Mapping[str, Any] | None, *names: str) -> dict[str, Any]:
    return {name: raw[name] for name in names if name in raw} if raw else {}


def _identity(raw: Mapping[str, Any]) -> dict[str, Any]:
    return _pick(raw, "name", "namespace", "uid", "resourceVersion", "labels", "deletionTimestamp")


def _node(obj: Mapping[str, Any]) -> dict[str, Any]:
    status = obj.get("status", {})
    return {
        "metadata": _identity(obj["metadata"]),
        "spec": _pick(obj.get("spec"), "unschedulable", "taints", "providerID"),
        "status": {
            "allocatable": status.get("allocatable", {}),
            "nodeInfo": _pick(status.get("nodeInfo"), "bootID"),
            "conditions": [_pick(c, "type", "status") for c in status.get("conditions", []) if c.get("type") == "Ready"],
        },
    }


def _lease(obj: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "metadata": _identity(obj["metadata"]),
        "spec": _pick(obj.get("spec"), "holderIdentity", "renewTime", "leaseTransitions", "leaseDurationSeconds"),
    }


def slim(kind: str, obj: Mapping[str, Any]) -> Mapping[str, Any]:
    """A new object with `apiVersion` and `kind` as they came, and the kept fields."""
    if kind == "Node":
        return _node(obj)
    if kind == "Lease":
        return _lease(obj)
    return {**obj, "metadata": _metadata(obj["metadata"])}
