"""How a user's pod template overlay is laid over the rendered template, and what it may not touch.

The rule, field by field: mappings merge deep and the overlay wins; `null` removes; lists with a key (table below) merge
by that key; tolerations are added; every other list is replaced whole. Items of `containers` merge deep, items that are a
choice of one source (`env`, `volumes`) are replaced, since two sources in one item are invalid.

Invariant: no overlay gets GPUs past power admission. Its gate, its labels, the role's node selector and the GPU count
stay as rendered; an overlay that speaks of them is refused with a sentence, never silently overruled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from splitwatt_core.clusters import SpecError
from splitwatt_core.names import GATE_POWER

_GPU_RESOURCE_PREFIX: Final = "nvidia.com/"
"""Whole GPUs and MIG slices alike: watts of either would be drawn without a reservation."""

_DEEP_KEYS: Final = {
    "containers": "name",
    "initContainers": "name",
    "ports": "containerPort",
}
REPLACE_KEYS: Final = {
    "env": "name",
    "volumes": "name",
    "volumeMounts": "mountPath",
    "volumeDevices": "devicePath",
    "imagePullSecrets": "name",
    "schedulingGates": "name",
    "resourceClaims": "name",
    "hostAliases": "ip",
}
_ADDED: Final = frozenset({"tolerations"})
_TEMPLATE_KEYS: Final = frozenset({"metadata", "spec"})
_METADATA_KEYS: Final = frozenset({"labels", "annotations"})


def lay_over(template: Mapping[str, Any], overlay: Mapping[str, Any], *, where: str, gated: bool = True) -> dict[str, Any]:
    """The template with the overlay laid over it. `where` names the overlay in sentences ("spec.prefill.template"). Not `gated`:
    pods that ask for no GPU and wait behind no gate, and no overlay gets them one.

    Raises SpecError for an overlay of the wrong shape, or one that touches what power admission stands on.
    """
    _only_keys(overlay, _TEMPLATE_KEYS, where)
    _only_keys(_mapping(overlay, "metadata", where), _METADATA_KEYS, f"{where}.metadata")
    merged = _merge_mapping(template, {k: v for k, v in overlay.items() if v is not None}, where)
    _check_kept(template, merged, where, gated=gated)
    return merged


def _merge_mapping(base: Mapping[str, Any], over: Mapping[str, Any], path: str) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        if value is None:
            merged.pop(key, None)
        elif key not in merged:
            merged[key] = _without_nulls(value)
        else:
            merged[key] = _merge_value(key, merged[key], value, f"{path}.{key}")
    return merged


def _merge_value(key: str, base: Any, over: Any, path: str) -> Any:
    if isinstance(base, Mapping):
        if not isinstance(over, Mapping):
            raise SpecError(f"{path} must be an object, not {over!r}")
        return _merge_mapping(base, over, path)
    if isinstance(base, list):
        if not isinstance(over, list):
            raise SpecError(f"{path} must be a list, not {over!r}")
        if key in _ADDED:
            return base + [item for item in over if item not in base]
        if key in _DEEP_KEYS or key in REPLACE_KEYS:
            return _merge_keyed(key, base, over, path)
    return _without_nulls(over)


def _merge_keyed(field: str, base: Sequence[Any], over: Sequence[Any], path: str) -> list[Any]:
    by = _DEEP_KEYS.get(field) or REPLACE_KEYS[field]
    merged = {item[by]: item for item in base}
    for i, item in enumerate(over):
        if not isinstance(item, Mapping) or item.get(by) is None:
            raise SpecError(f"{path}[{i}] needs {by!r}, by which it is merged into the rendered template")
        known = merged.get(item[by])
        if known is not None and field in _DEEP_KEYS:
            merged[item[by]] = _merge_mapping(known, item, f"{path}[{item[by]}]")
        else:
            merged[item[by]] = _without_nulls(item)
    return list(merged.values())


def _without_nulls(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _without_nulls(v) for k, v in value.items() if v is not None}
    if isinstance(value, list):
        return [_without_nulls(v) for v in value]
    return value


# ------------------------------------------------------------------------------------------------------ what is refused


def _check_kept(template: Mapping[str, Any], merged: Mapping[str, Any], where: str, *, gated: bool) -> None:
    """The post-condition that keeps the module's invariant, whichever way the overlay was written."""
    _unchanged(template, merged, ("metadata", "labels"), where, "pick a label of your own")
    _unchanged(template, merged, ("spec", "nodeSelector"), where, "change the role's nodeSelector instead")
    spec = merged["spec"]
    if gated and spec.get("nodeName") is not None:
        raise SpecError(f"{where}.spec.nodeName bypasses power admission; use the role's nodeSelector instead")
    if gated and {"name": GATE_POWER} not in (spec.get("schedulingGates") or []):
        raise SpecError(f"{where}.spec.schedulingGates must keep the gate {GATE_POWER}; take the line out")
    if not gated and spec.get("resourceClaims"):
        raise SpecError(f"{where}.spec.resourceClaims cannot be set: a claim may be a GPU's, and nothing admits these pods")
    asked = _gpus_asked(template["spec"], where)
    for place, count in _gpus_asked(spec, where).items():
        if asked.pop(place, None) != count:
            asked_by = "gpusPerReplica alone" if gated else "engines alone"
            raise SpecError(f"{where}.spec.{place} cannot be set; GPUs are asked for by {asked_by}")
    for place in asked:
        raise SpecError(f"{where}.spec.{place} must not be removed; GPUs are asked for by gpusPerReplica alone")


def _gpus_asked(spec: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Every GPU request and limit of a pod spec, by its place in it."""
    found = {}
    for field in ("containers", "initContainers"):
        containers = spec.get(field) or []
        if not isinstance(containers, list) or not all(isinstance(c, Mapping) for c in containers):
            raise SpecError(f"{where}.spec.{field} must be a list of objects")
        for container in containers:
            place = f"{field}[{container.get('name')}]"
            resources = _mapping(container, "resources", f"{where}.spec.{place}")
            for kind in resources:
                for name, count in _mapping(resources, kind, f"{where}.spec.{place}.resources").items():
                    if name.startswith(_GPU_RESOURCE_PREFIX):
                        found[f"{place}.resources.{kind}.{name}"] = count
    return found


def _unchanged(template: Mapping[str, Any], merged: Mapping[str, Any], path: tuple[str, str], where: str, advice: str) -> None:
    outer, inner = path
    kept = (merged[outer].get(inner) or {}) if outer in merged else {}
    for key, value in template[outer].get(inner, {}).items():
        if kept.get(key) != value:
            raise SpecError(f"{where}.{outer}.{inner} must keep {key}: {value}; {advice}")


def _mapping(parent: Mapping[str, Any], key: str, where: str) -> Mapping[str, Any]:
    value = parent.get(key)
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise SpecError(f"{where}.{key} must be an object, not {value!r}")
    return value


def _only_keys(overlay: Mapping[str, Any], known: frozenset[str], where: str) -> None:
    for key in overlay:
        if key not in known:
            raise SpecError(f"{where}.{key} is not known here; an overlay may hold {' and '.join(sorted(known))}")
