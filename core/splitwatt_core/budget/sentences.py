"""How many objects one sentence names, and how they are counted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

MAX_NAMED: Final = 3
"""Objects named in one sentence; the rest are counted."""


def some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:MAX_NAMED])
    return shown if len(names) <= MAX_NAMED else f"{shown} and {len(names) - MAX_NAMED} more"


def counted(count: int, thing: str) -> str:
    """ "1 node", "3 nodes"."""
    return f"{count} {thing}" if count == 1 else f"{count} {thing}s"
