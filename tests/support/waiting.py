"""Waiting for something that takes well under a second on an idle machine: patience bounds a hang, it measures nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from splitwatt_shell.waiting import poll_until

T = TypeVar("T")

PATIENCE_S = 90.0
PAUSE_S = 0.1
"""Between two looks, most of which ask a server something: who waits shall leave the CPU to what is waited for."""


def eventually(what: str, look: Callable[[], T | None], *, within_s: float = PATIENCE_S) -> T:
    """The first true answer of `look`. Fails with `what` and the last answer."""
    return poll_until(what, look, within_s=within_s, pause_s=PAUSE_S)
