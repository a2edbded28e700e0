"""Brings one cluster's objects to what was rendered, and keeps them there against other people's edits.

An object is applied when what we render for it changed, when it is gone, or when its live version no longer says what
the API server answered to our last apply (`rendering.drift`). The first look after a start applies everything once: an
apply that changes nothing writes nothing.

A Deployment or LeaderWorkerSet of a former revision is not rendered any more: it is kept as it is, or scaled. One that is deleted
stays until its pods are gone, which is how everybody sees that a router is asked no more.

Invariant: only objects of this very InferenceCluster are touched. An object of the same name that belongs to anyone else
is left alone and reported; for two controllers on one object the API server would refuse the write as well.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from splitwatt_client.errors import ApiError, OutcomeUnknown, Rejected
from splitwatt_client.reading import Reader
from splitwatt_client.resources import resource_of
from splitwatt_core.names import ANNOTATION_RENDERED, LABEL_REVISION
from splitwatt_core.rendering.drift import fingerprint

from splitwatt_operator.cluster.store import JsonObject, Key, Kind, Store, version_of
from splitwatt_operator.pen import NotSent, Pen, Stored

log = logging.getLogger(__name__)

OWNED_KINDS: Final = (
    Kind.DEPLOYMENT, Kind.GROUP, Kind.SERVICE, Kind.PDB, Kind.SERVICE_ACCOUNT, Kind.ROLE, Kind.ROLE_BINDING,
)  # fmt: skip
WORKLOADS: Final = (Kind.DEPLOYMENT, Kind.GROUP)
"""Those that make pods."""
REPAIR_PAUSE_S: Final = 1.0
"""Before the second repair of one object in a row; doubled each time, so that two writers who disagree do not spin."""
LONGEST_REPAIR_PAUSE_S: Final = 60.0
CALM_AFTER_S: Final = 120.0
"""An object that nobody edited for this long is repaired at once again."""


@dataclass(slots=True)
class _Applied:
    """What is known of our last apply of one object. `owner`: the cluster's uid; `uid`: the object's own."""

    rendered: str
    fingerprint: str
    version: int
    owner: str
    uid: str
    repairs: int = 0
    repaired_s: float = float("-inf")


@dataclass(slots=True)
class ApplyReport:
    """`problems`: one sentence per object that is not as rendered. `repaired`: objects put right after an edit.
    `retry_s`: look again by then, None when nothing is owed. `unsent`: the Lease was not surely held, so all from there on was
    left as it is."""

    problems: list[str] = field(default_factory=list)
    repaired: list[str] = field(default_factory=list)
    retry_s: float | None = None
    failed: bool = False
    unsent: bool = False


@dataclass(frozen=True, slots=True)
class ForFormer:
    """To a Deployment or LeaderWorkerSet that is not rendered any more: how many replicas it has, and of which revision it is."""

    replicas: int
    revision: str
    kind: Kind = Kind.DEPLOYMENT


class Applier:
    """One for all clusters. Calls for one cluster must not overlap."""

    def __init__(self, reader: Reader, pen: Pen, store: Store) -> None:
        self._reader = reader
        self._pen = pen
        self._store = store
        self._applied: dict[tuple[Kind, Key], _Applied] = {}

    async def bring(
        self,
        uid: str,
        manifests: Sequence[Mapping[str, Any]],
        *,
        keep: Collection[tuple[Kind, Key]] = (),
        tell: Mapping[Key, ForFormer] | None = None,
    ) -> ApplyReport:
        """Tell former revisions what is theirs, apply what differs, then remove what is owned by the cluster `uid` and
        neither rendered nor to `keep`."""
        outcome = ApplyReport()
        wanted: set[tuple[Kind, Key]] = set(keep)
        for key, told in (tell or {}).items():
            await self._tell(key, told, outcome)
            if outcome.unsent:
                return outcome
        for manifest in manifests:
            key = Key(manifest["metadata"]["namespace"], manifest["metadata"]["name"])
            wanted.add((Kind(manifest["kind"]), key))
            try:
                await self._one(uid, manifest, key, outcome)
            except ApiError as error:
                reason = error.message if isinstance(error, Rejected) else str(error)
                outcome.problems.append(f"{manifest['kind']} {key.name}: {reason}")
                outcome.failed = True
            if outcome.unsent:
                return outcome
        await self._prune(uid, wanted, outcome)
        return outcome

    def forget(self, namespace: str, names: Sequence[str]) -> None:
        """The cluster is gone; its objects go by garbage collection."""
        keys = [(kind, Key(namespace, name)) for kind in OWNED_KINDS for name in names]
        owners = {known.owner for key in keys if (known := self._applied.get(key)) is not None}
        for key in [key for key, known in self._applied.items() if known.owner in owners]:
            del self._applied[key]

    async def _one(self, uid: str, manifest: Mapping[str, Any], key: Key, outcome: ApplyReport) -> None:
        kind, rendered = Kind(manifest["kind"]), manifest["metadata"]["annotations"][ANNOTATION_RENDERED]
        known = self._applied.get((kind, key))
        live = self._store.get(kind, key.name, key.namespace)
        if known is None and live is None:
            # The watch sees labelled objects only: somebody else's may stand there unseen.
            live = await self._reader.get(resource_of(manifest), key.name, namespace=key.namespace)
        if live is not None and not _ours(live, uid, known):
            outcome.problems.append(f"{kind.value} {key.name} exists already and is not ours: rename it or this InferenceCluster")
            outcome.retry_s = LONGEST_REPAIR_PAUSE_S
            return
        edited = False
        if known is not None and known.rendered == rendered and known.owner == uid:
            if live is None:
                if self._store.deleted_at(kind, key) < known.version:
                    return  # the watch has not shown it yet
                edited = True
            elif version_of(live) <= known.version or fingerprint(live, manifest) == known.fingerprint:
                return
            else:
                edited = True
        if edited and known is not None and (pause_s := _pause_s(known)) > 0:
            outcome.retry_s = pause_s if outcome.retry_s is None else min(outcome.retry_s, pause_s)
            return
        match await self._pen.apply(manifest):
            case Stored(answer):
                self._store.apply(kind, answer)
            case NotSent():
                outcome.unsent = True
                return
            case Rejected() | OutcomeUnknown() as error:
                raise error
        now = _Applied(rendered, fingerprint(answer, manifest), version_of(answer), uid, answer["metadata"]["uid"])
        if edited and known is not None:
            now.repairs, now.repaired_s = known.repairs + 1, asyncio.get_running_loop().time()
            outcome.repaired.append(f"{kind.value} {key.name}")
        self._applied[kind, key] = now

    async def _tell(self, key: Key, told: ForFormer, outcome: ApplyReport) -> None:
        """Bound to the number that was decided on."""
        live = self._store.get(told.kind, key.name, key.namespace)
        if live is None:
            return
        self._applied.pop((told.kind, key), None)
        patch = [
            {"op": "test", "path": "/metadata/uid", "value": live["metadata"]["uid"]},
            {"op": "test", "path": "/spec/replicas", "value": live["spec"]["replicas"]},
            {"op": "replace", "path": "/spec/replicas", "value": told.replicas},
            {"op": "add", "path": f"/metadata/labels/{LABEL_REVISION.replace('/', '~1')}", "value": told.revision},
        ]
        match await self._pen.patch(resource_of(live), key.name, patch, namespace=key.namespace):
            case Stored(answer):
                self._store.apply(told.kind, answer)
            case NotSent():
                outcome.unsent = True
            case Rejected() | OutcomeUnknown() as error:
                outcome.problems.append(f"{told.kind.value} {key.name} was not scaled to {told.replicas}: {error}")
                outcome.failed = True

    async def _prune(self, uid: str, wanted: set[tuple[Kind, Key]], outcome: ApplyReport) -> None:
        for kind in OWNED_KINDS:
            for live in self._store.all(kind):
                meta = live["metadata"]
                key = Key(meta["namespace"], meta["name"])
                if controller_uid(live) != uid or (kind, key) in wanted or meta.get("deletionTimestamp"):
                    continue
                last = kind in WORKLOADS
                match await self._pen.delete(resource_of(live), key.name, namespace=key.namespace, uid=meta["uid"], last=last):
                    case Stored():
                        self._applied.pop((kind, key), None)
                        log.info("removed %s, no longer rendered", kind.value, extra={"object": key.name})
                    case NotSent():
                        outcome.unsent = True
                        return
                    case Rejected() | OutcomeUnknown() as error:
                        outcome.problems.append(f"{kind.value} {key.name} could not be removed: {error}")
                        outcome.failed = True


def controller_uid(obj: JsonObject) -> str | None:
    """The uid of the object that controls this one, if any."""
    for owner in obj["metadata"].get("ownerReferences") or ():
        if owner.get("controller"):
            uid: str = owner["uid"]
            return uid
    return None


def _ours(live: JsonObject, uid: str, known: _Applied | None) -> bool:
    """Controlled by the cluster, or the very object we applied with its owner taken out by someone: that is put right."""
    owner = controller_uid(live)
    return owner == uid or (owner is None and known is not None and known.uid == live["metadata"]["uid"])


def _pause_s(known: _Applied) -> float:
    """How long to wait before repairing again; 0 when it may be done now."""
    since_s = asyncio.get_running_loop().time() - known.repaired_s
    if since_s > CALM_AFTER_S:
        known.repairs = 0
        return 0.0
    due_s = min(LONGEST_REPAIR_PAUSE_S, REPAIR_PAUSE_S * 2.0 ** (known.repairs - 1)) if known.repairs else 0.0
    return max(0.0, due_s - since_s)
