"""Revisions: which engines understand each other's KV caches, and what the objects of each revision are called.

An engine fetches a KV cache only from one of the same version, model and settings; vLLM's NIXL handshake refuses any other. So
whatever an engine is started with makes a revision, of both roles together: image, command, arguments, environment, weights.
Replicas, GPUs of a node, probes and watts do not. Too many revisions are safe, too few are not.

The first Deployments of a cluster are called NAME-ROLE; those of a later revision, while that name is taken, get the revision's
name behind it. A LeaderWorkerSet always has it: its controller makes a Service of its name, by which workers find a leader that
is not ready yet, and takes one that is there already for that. A Deployment that was made before revisions were named has no
label on its pods. It is known again by what its engines are started with, and is not restarted for want of a label.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from splitwatt_core.clusters import PAIR, Role, SpecError
from splitwatt_core.names import ANNOTATION_NODES, LABEL_REVISION
from splitwatt_core.rendering.drift import digest
from splitwatt_core.rendering.objects import Manifest, object_name

REVISION_CHARS: Final = 8
_STARTED_WITH: Final = ("image", "command", "args")
GROUP_NAME_CHARS: Final = 48
"""Of a LeaderWorkerSet's name: with `-999` behind it, of a leader, it is the name of a StatefulSet, whose pods bear it in a label
with a hash of ten behind that."""


def kv_content(template: Mapping[str, Any]) -> dict[str, Any]:
    """Of a pod template, rendered or live, what its engines are started with. Only fields that the API server keeps as they are:
    environment that refers elsewhere is left out."""
    spec, nodes = template["spec"], (template["metadata"].get("annotations") or {}).get(ANNOTATION_NODES)
    return {
        **({} if nodes is None else {"nodes": nodes}),
        "containers": [
            {
                **{key: container.get(key) for key in _STARTED_WITH},
                "env": sorted((row["name"], row["value"]) for row in container.get("env") or () if "value" in row),
            }
            for container in spec["containers"]
        ],
        "weights": sorted(
            str((volume.get("persistentVolumeClaim") or {}).get("claimName") or (volume.get("image") or {}).get("reference"))
            for volume in spec.get("volumes") or ()
            if "persistentVolumeClaim" in volume or "image" in volume
        ),
    }


def revision_of(templates: Mapping[Role, Mapping[str, Any]]) -> str:
    """The revision that these pod templates are of, as a label value. A mixed pool beside the pair makes none: it comes, goes and
    changes without the pair's engines being started anew."""
    pair = {role: template for role, template in templates.items() if role in PAIR} or templates
    return digest({role.value: kv_content(template) for role, template in pair.items()})[:REVISION_CHARS]


def names_for(cluster: str, part: Role | str, revision: str, *, group: bool = False) -> tuple[str, ...]:
    """What a Deployment of this revision may be called, the better name first; or a `group`'s LeaderWorkerSet."""
    if group:
        return (object_name(cluster, f"{part}-{revision}", most=GROUP_NAME_CHARS),)
    return object_name(cluster, part), object_name(cluster, f"{part}-{revision}")


@dataclass(frozen=True, slots=True)
class Home:
    """A Deployment's name; `labelled`: its pods bear their revision. `pod_hash`: of one whose pods do not, by which they are
    known instead; "" when that is not known."""

    name: str
    labelled: bool = True
    pod_hash: str = ""

    def own_labels(self, cluster: str, part: Role | str, revision: str) -> dict[str, str]:
        """Beside the part's labels in the Deployment's selector, which never changes."""
        return {} if self.name == object_name(cluster, part) else {LABEL_REVISION: revision}


@dataclass(frozen=True, slots=True)
class RouterHome:
    """A router's Deployment, and the revision that it stands before: where that one's engines are."""

    revision: str
    name: str
    engines: Mapping[Role, Home]


@dataclass(frozen=True, slots=True)
class RenderPlan:
    """What is to be rendered while the cluster rolls out: the newest revision's engines with so many `replicas`, and `routers`.
    A role without a home waits until a name is free. `standing`: replicas that watts were there for, of all revisions; a role of
    which that is not known is left out. `way_in`: the role that clients reach until a router is ready, None: the router."""

    homes: Mapping[Role, Home]
    replicas: Mapping[Role, int]
    routers: tuple[RouterHome, ...] = field(default=())
    standing: Mapping[Role, int] = field(default_factory=dict)
    way_in: Role | None = None


def engine_labels(base: Mapping[str, str], home: Home, revision: str) -> dict[str, str]:
    """What a router knows a role's engines of one revision by."""
    if home.labelled:
        return {**base, LABEL_REVISION: revision}
    return {**base, "pod-template-hash": home.pod_hash} if home.pod_hash else dict(base)


def labelled_with(manifest: Manifest, revision: str) -> Manifest:
    """The same object, which says of which revision it is. Raises SpecError for one that says another."""
    meta = manifest["metadata"]
    if meta["labels"].get(LABEL_REVISION, revision) != revision:
        raise SpecError(f"an overlay's metadata.labels must not set {LABEL_REVISION}; it follows from what the engines run")
    return {**manifest, "metadata": {**meta, "labels": {**meta["labels"], LABEL_REVISION: revision}}}
