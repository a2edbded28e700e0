"""Waiting for something that takes well under a second on an idle machine: patience bounds a hang, it measures nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from splitwatt_shell.waiting import poll_until

T = TypeVar("T")

PATIENCE_S = 90.0


def eventually(what: str, look: Callable[[], T | None], *, within_s: float = PATIENCE_S) -> T:
    """The first true answer of `look`. Fails with `what` and the last answer."""
    return poll_until(what, look, within_s=within_s)
