"""Files of facts with something wrong in them."""

from __future__ import annotations

import json
from typing import Any


def changed(text: str, rows: str, parts: dict[str, Any]) -> str:
    """The JSON `text` with the first of its `rows` alone, and parts of that replaced; None drops the part."""
    raw = json.loads(text)
    raw[rows] = raw[rows][:1]
    kept = {**raw[rows][0], **parts}
    raw[rows][0] = {key: value for key, value in kept.items() if value is not None or key not in parts}
    return json.dumps(raw)
