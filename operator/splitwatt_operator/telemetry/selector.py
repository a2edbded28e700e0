"""Is a meter's selector a plain vector selector? Only then can its sum, count and age be asked for.

An aggregation, function, range or offset would give a number whose age nobody knows, and a stale meter that looks fresh
is how a budget is lost. The API's grammar judges the form, here again because an object may be older than its schema;
Prometheus' own parser then has the last word on what a pattern cannot see (a wrong regular expression, say).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from splitwatt_api.promql import is_plain_selector

MAX_SHOWN_CHARS: Final = 120
_STRING: Final = re.compile(r'"(?:[^"\\\n]|\\.)*"|\'(?:[^\'\\\n]|\\.)*\'')
_CALL: Final = re.compile(r"([a-zA-Z_][a-zA-Z0-9_]*)\s*(?:(?:by|without)\s*\([^)]*\)\s*)?\(")
_ADVICE: Final = 'write a plain series selector such as rack_power_watts{rack="a1"}; the operator sums it itself'


def problem_of(selector: str) -> str | None:
    """One sentence that says what to change, or None when the selector has the right form."""
    if is_plain_selector(selector):
        return None
    bare = _STRING.sub('""', selector)
    if called := _CALL.search(bare):
        return f"the meter's selector {_shown(selector)} calls {called.group(1)}(), whose result has no age; {_ADVICE}"
    if "[" in bare:
        return f"the meter's selector {_shown(selector)} asks for a range; {_ADVICE}"
    if re.search(r"\boffset\b|@", bare):
        return f"the meter's selector {_shown(selector)} shifts time; {_ADVICE}"
    return f"the meter's selector {_shown(selector)} is not a plain series selector; {_ADVICE}"


def problem_of_tree(selector: str, tree: Mapping[str, Any]) -> str | None:
    """The same judgement on Prometheus' syntax tree (`/api/v1/parse_query`)."""
    if tree.get("type") != "vectorSelector":
        kind = tree.get("type", "query")
        return f"the meter's selector {_shown(selector)} is a {kind}, not a plain series selector; {_ADVICE}"
    if tree.get("offset") or tree.get("timestamp") or tree.get("startOrEnd"):
        return f"the meter's selector {_shown(selector)} shifts time; {_ADVICE}"
    return None


def _shown(selector: str) -> str:
    return selector if len(selector) <= MAX_SHOWN_CHARS else selector[: MAX_SHOWN_CHARS - 3] + "..."
