"""The built-in power profiles as PowerProfile objects, so that people can read them and change a number in place.

The operator decides by its own copies of them wherever no object says otherwise, so nothing waits for these. They are the
operator's and not Helm's: an upgrade, Argo CD or Flux would put a person's numbers back or delete and make the objects anew.
What somebody else has written into a spec stays as it is; what nobody has is brought to this version's numbers.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from collections.abc import Mapping
from typing import Any, Final

from splitwatt_api.convert_profile import profile_to_api
from splitwatt_client.errors import ApiError, Rejected
from splitwatt_client.reading import Reader
from splitwatt_client.resources import POWER_PROFILES
from splitwatt_core.gpus.profiles import Profile, builtin
from splitwatt_core.names import ANNOTATION_PUBLISHED, FIELD_MANAGER_OPERATOR

from splitwatt_operator.pen import Pen, Stored

log = logging.getLogger(__name__)

LOOK_AGAIN_S: Final = 3600.0
RETRY_S: Final = 30.0
HOOK: Final = "helm.sh/hook"
INSTALLERS: Final = frozenset({"helm", "helm-controller", "argocd-controller"})
"""Who wrote the objects of charts that made them by a hook: no person's numbers, unless they differ."""


def fingerprint(spec: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(spec, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:16]


def manifest(profile: Profile) -> dict[str, Any]:
    """What is applied: nothing that is not meant, and a mark by which the spec is known again."""
    wire = profile_to_api(profile).to_wire()
    metadata = {key: value for key, value in wire["metadata"].items() if value not in ({}, "", 0)}
    metadata["annotations"] = {ANNOTATION_PUBLISHED: fingerprint(wire["spec"])}
    return {"apiVersion": wire["apiVersion"], "kind": wire["kind"], "metadata": metadata, "spec": wire["spec"]}


def editor(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """Who besides us has had a hand in the spec of `found`, by field manager; "" when nobody has. What was only taken out
    leaves no manager behind, but a spec that is not the published one."""
    metadata = found["metadata"]
    annotations = metadata.get("annotations") or {}
    ours = {FIELD_MANAGER_OPERATOR} | (INSTALLERS if HOOK in annotations else frozenset())
    writers = (e["manager"] for e in metadata.get("managedFields") or () if "f:spec" in (e.get("fieldsV1") or {}))
    if by := next((name for name in writers if name not in ours), ""):
        return by
    published = annotations.get(ANNOTATION_PUBLISHED) or fingerprint(wanted["spec"])
    return "" if fingerprint(found.get("spec") or {}) == published else "somebody"


class Publisher:
    """Keeps the objects there while its reign lasts; a deleted one comes back."""

    def __init__(self, reader: Reader, pen: Pen) -> None:
        self._reader = reader
        self._pen = pen
        self._told: dict[str, str] = {}

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            settled = [await self._publish(profile) for profile in builtin()]
            await asyncio.sleep(LOOK_AGAIN_S if all(settled) else RETRY_S)

    async def _publish(self, profile: Profile) -> bool:
        """Whether it needs no other try."""
        wanted = manifest(profile)
        name = wanted["metadata"]["name"]
        try:
            found = await self._reader.get(POWER_PROFILES, name)
        except ApiError as error:
            self._tell(name, f"PowerProfile {name} could not be read, so it is not published yet: {error}")
            return False
        if found is not None:
            if by := editor(found, wanted):
                self._tell(name, f"PowerProfile {name} stays as {by} left it", level=logging.INFO)
                return True
            # The write is of the version that nobody else had edited, or it is refused.
            wanted["metadata"]["resourceVersion"] = found["metadata"]["resourceVersion"]
            wanted["metadata"]["uid"] = found["metadata"]["uid"]
        sent = await self._pen.apply(wanted)
        if isinstance(sent, Stored):
            self._told.pop(name, None)
            return True
        if not (isinstance(sent, Rejected) and sent.conflict):
            self._tell(name, f"PowerProfile {name} was not published: {sent}")
        return False

    def _tell(self, name: str, sentence: str, *, level: int = logging.WARNING) -> None:
        if self._told.get(name) != sentence:
            self._told[name] = sentence
            log.log(level, "%s", sentence)
