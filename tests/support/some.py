"""For loops that assert, and for `all(…)`: over nothing they would pass, whatever the code under test does."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

T = TypeVar("T")


def some(things: Iterable[T]) -> list[T]:
    """All of `things`, of which there is one at least."""
    found = list(things)
    assert found, "there is nothing to look at"
    return found
