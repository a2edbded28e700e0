"""The one piece of PromQL that a user may write: a plain vector selector.

A meter must not be an aggregation or a function, for their results carry no age: a stale meter would look fresh. The
grammar below is PromQL's vector selector without ranges, offsets and `@`; it is one pattern in the common subset of
RE2 (the API server's CEL) and Python, so both judge alike. Regular expressions inside `=~` are Prometheus' to judge.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

_NAME: Final = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
_STRING: Final = r"(\"([^\"\\\n]|\\.)*\"|'([^'\\\n]|\\.)*')"
_MATCHER: Final = rf"\s*[a-zA-Z_][a-zA-Z0-9_]*\s*(=~|!~|!=|=)\s*{_STRING}\s*"
_BRACES: Final = rf"\{{({_MATCHER}(,{_MATCHER})*,?\s*)?\}}"
SELECTOR_PATTERN: Final = rf"^\s*{_NAME}\s*({_BRACES})?\s*$"
"""A metric name is asked for: a selector by labels alone could pick up anything."""

_SELECTOR: Final = re.compile(SELECTOR_PATTERN)
_PARTS: Final = re.compile(rf"\s*({_NAME})\s*(?:\{{(.*)\}})?\s*", re.DOTALL)
_ONE_MATCHER: Final = re.compile(_MATCHER)


def is_plain_selector(text: str) -> bool:
    return _SELECTOR.fullmatch(text) is not None


def is_matcher(text: str) -> bool:
    """One label matcher, for example cluster="a"."""
    return _ONE_MATCHER.fullmatch(text) is not None


def with_matchers(selector: str, matchers: Sequence[str]) -> str:
    """The same plain selector, held to series that also match these. Raises ValueError where one of them is none."""
    if not is_plain_selector(selector):
        raise ValueError(f"{selector!r} is not a plain vector selector")
    for matcher in matchers:
        if not is_matcher(matcher):
            raise ValueError(f'{matcher!r} is not a label matcher like cluster="a"')
    parts = _PARTS.fullmatch(selector)
    assert parts is not None, "the grammar above is the narrower one"
    own = (parts[2] or "").strip().removesuffix(",")
    return f"{parts[1]}{{{','.join([*([own] if own else []), *matchers])}}}" if matchers else selector
