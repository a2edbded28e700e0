"""What every rendered object has: a name, labels, an owner, and the hash of what was rendered.

Invariant: names and selectors follow from the cluster's name alone. A Deployment's selector can never change, so neither may
they from release to release.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from splitwatt_core.clusters import MAX_LABEL_CHARS, NAME_HASH_CHARS, ClusterSpec, Role, cluster_label
from splitwatt_core.names import (
    ANNOTATION_RENDERED,
    GROUP_VERSION,
    LABEL_CLUSTER,
    LABEL_LLMD_ROLE,
    LABEL_MANAGED_BY,
    LABEL_ROLE,
    MANAGED_BY,
)
from splitwatt_core.rendering.drift import digest

Manifest = dict[str, Any]

ROUTER_PART: Final = "router"
"""As `object_name` takes it, beside the roles."""
PARTS: Final = (None, *Role, ROUTER_PART)
"""Whatever of a cluster may have objects of its own; None is the cluster itself."""

_DNS_LABEL: Final = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")


def object_name(cluster: str, part: Role | str | None = None, *, most: int = MAX_LABEL_CHARS) -> str:
    """The name of a cluster's objects: `NAME` or `NAME-PART`, as a DNS label of at most `most` characters.

    A name that is too long, or no DNS label, is cut and gets a hash of the whole, so that two never meet.
    """
    tail = "" if part is None else f"-{part}"
    whole = f"{cluster}{tail}"
    if len(whole) <= most and _DNS_LABEL.fullmatch(whole):
        return whole
    base = re.sub(r"[^-a-z0-9]", "-", cluster.lower())
    if not base[:1].isalpha():
        base = f"c{base}"
    room = most - len(tail) - NAME_HASH_CHARS - 1
    return f"{base[:room].rstrip('-')}-{digest(whole)[:NAME_HASH_CHARS]}{tail}"


def selector_labels(cluster: str, role: Role) -> dict[str, str]:
    """What selects one role's pods. Immutable in a Deployment, so it holds nothing that a release might change."""
    return {LABEL_CLUSTER: cluster_label(cluster), LABEL_ROLE: role.value}


def selector_text(cluster: str, role: Role) -> str:
    """The same as a string, as the scale subresource wants it."""
    return ",".join(f"{key}={value}" for key, value in sorted(selector_labels(cluster, role).items()))


def made(
    cluster: ClusterSpec, api_version: str, kind: str, part: Role | str | None, content: Mapping[str, Any], *, name: str = ""
) -> Manifest:
    """An object of this cluster, owned by it. `content`: all but what every object has. `name` "": the part's."""
    labels = {LABEL_MANAGED_BY: MANAGED_BY, LABEL_CLUSTER: cluster_label(cluster.name)}
    if isinstance(part, Role):
        labels |= {LABEL_ROLE: part.value, LABEL_LLMD_ROLE: part.llmd}
    return {
        "apiVersion": api_version,
        "kind": kind,
        "metadata": {
            "namespace": cluster.namespace,
            "name": name or object_name(cluster.name, part),
            "labels": labels,
            "ownerReferences": [
                {
                    "apiVersion": GROUP_VERSION,
                    "kind": "InferenceCluster",
                    "name": cluster.name,
                    "uid": cluster.uid,
                    "controller": True,
                    "blockOwnerDeletion": True,
                }
            ],
        },
        **content,
    }


def stamped(manifest: Manifest) -> Manifest:
    metadata = {**manifest["metadata"], "annotations": {ANNOTATION_RENDERED: digest(manifest)}}
    return {**manifest, "metadata": metadata}


def service_port(name: str, port: int) -> dict[str, Any]:
    return {"name": name, "port": port, "protocol": "TCP", "targetPort": name}


def disruption_budget(
    cluster: ClusterSpec, part: Role | str, selector: Mapping[str, str], *, standing: int | None = None
) -> Manifest:
    """One pod may be away at a time: of all that are asked for, or of the `standing` ones. Kubernetes counts `maxUnavailable`
    from what a controller is asked for, so that pods which wait for watts are away: no node is drained while one waits."""
    spec = {
        **({"maxUnavailable": 1} if standing is None else {"minAvailable": max(0, standing - 1)}),
        "selector": {"matchLabels": dict(selector)},
        # One that loads its weights, or hangs, serves nobody: it may go whoever else is away.
        "unhealthyPodEvictionPolicy": "AlwaysAllow",
    }
    return made(cluster, "policy/v1", "PodDisruptionBudget", part, {"spec": spec})
