"""Whether a live object still says what we applied, judged only on the fields that we rendered.

Theory: the API server adds defaults and rewrites values (`1000m` becomes `1`), so a live object never equals its
manifest. Instead a fingerprint is taken of the *answer* to our own apply, projected onto the rendered fields; as long as
later versions have the same fingerprint, nobody changed what we own. Fields that we do not render belong to others.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from splitwatt_core.rendering.overlay import REPLACE_KEYS

_LIST_KEYS: Final = {
    **REPLACE_KEYS,
    "containers": "name",
    "initContainers": "name",
    "ports": "name",
    "ownerReferences": "uid",
}
_MISSING: Final = "\x00missing"
DIGEST_CHARS: Final = 16


def digest(value: Any) -> str:
    """A short hash of any JSON value, independent of the order of keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:DIGEST_CHARS]


def fingerprint(live: Mapping[str, Any], rendered: Mapping[str, Any]) -> str:
    """What `live` says at the fields of `rendered`, as a short hash."""
    return digest(_project(live, rendered, ""))


def _project(live: Any, shape: Any, field: str) -> Any:
    if isinstance(shape, Mapping):
        if not isinstance(live, Mapping):
            return _MISSING
        return {key: _project(live.get(key, _MISSING), value, key) for key, value in shape.items()}
    if isinstance(shape, list) and field in _LIST_KEYS and isinstance(live, list):
        by = _LIST_KEYS[field]
        if _keyed(shape, by) and _keyed(live, by):
            found = {item[by]: item for item in live}
            return [_project(found.get(item[by], _MISSING), item, "") for item in shape]
    return live


def _keyed(items: Sequence[Any], by: str) -> bool:
    keys = [item.get(by) for item in items if isinstance(item, Mapping)]
    return len(keys) == len(items) and None not in keys and len(set(keys)) == len(keys)
