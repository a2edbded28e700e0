"""Are the CustomResourceDefinitions there, and do they say what this release's models say? Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from splitwatt_api.kinds import KINDS
from splitwatt_core import __version__
from splitwatt_core.conditions import counted, some
from splitwatt_core.names import API_VERSION

from splitwatt_cli.doctor.facts import SiteFacts
from splitwatt_cli.finding import Finding, Gravity
from splitwatt_cli.snapshot import named

INSTALL = "helm install splitwatt helm/splitwatt -n splitwatt-system --create-namespace --set image.registry=REGISTRY"


def check(facts: SiteFacts) -> Iterator[Finding]:
    if why := facts.seen.unread.get("customresourcedefinitions"):
        text = f"whether the CRDs are there and of this release cannot be told: {why}"
        yield Finding(Gravity.WARNING, "DefinitionsUnread", "", text, "kubectl auth can-i list customresourcedefinitions")
        return
    there = named(facts.seen.definitions)
    missing = [kind.crd_name for kind in KINDS if kind.crd_name not in there]
    if len(missing) == len(KINDS):
        yield Finding(Gravity.BROKEN, "NotInstalled", "", "Splitwatt is not installed: none of its CRDs is there", INSTALL)
        return
    if missing:
        text = f"{counted(len(missing), 'CRD')} missing: {some(missing)}"
        yield Finding(Gravity.BROKEN, "DefinitionMissing", "", text, _apply())
    for kind in KINDS:
        obj = there.get(kind.crd_name)
        if obj is None:
            continue
        lacks, beyond = differences(kind.manifest(), obj)
        subject = f"CustomResourceDefinition {kind.crd_name}"
        if lacks:
            text = f"is of another release than this command ({__version__}): it lacks {some(lacks)}"
            yield Finding(Gravity.BROKEN, "OldDefinition", subject, text, _apply())
        elif beyond:
            text = f"is newer than this command ({__version__}): it also knows {some(beyond)}"
            yield Finding(Gravity.NOTE, "NewDefinition", subject, text, "pip install --upgrade 'splitwatt[cli]'")


def _apply() -> str:
    return "kubectl apply --server-side --force-conflicts -f crds/   # or helm upgrade of this release, with crds.install=true"


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Fields and rules that we have and they lack, and fields the other way round, as paths from the object."""
    own, other = _told(ours), _told(theirs)
    return sorted(own - other), sorted(path for path in other - own if not path.endswith(")"))


def _told(definition: Mapping[str, Any]) -> set[str]:
    for version in definition["spec"]["versions"]:
        if version["name"] == API_VERSION:
            return set(_walk(version["schema"]["openAPIV3Schema"], ""))
    return set()


def _walk(schema: Mapping[str, Any], path: str) -> Iterator[str]:
    """Only what cuts both ways: the API server fills in much of the rest by itself."""
    for rule in schema.get("x-kubernetes-validations") or ():
        yield f"{path.lstrip('.') or 'the object'} (rule: {rule.get('message') or rule['rule']})"
    for name, below in (schema.get("properties") or {}).items():
        if not path and name in ("apiVersion", "kind", "metadata"):
            continue
        yield f"{path}.{name}".lstrip(".")
        yield from _walk(below, f"{path}.{name}")
    if isinstance(items := schema.get("items"), Mapping):
        yield from _walk(items, f"{path}[]")
