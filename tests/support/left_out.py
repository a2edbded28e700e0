"""Proof that a rule is needed: its scene holds, and fails once the rule is left out of the real code."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

Patch = Callable[[pytest.MonkeyPatch], None]
"""Breaks the code in one place."""


def check_rule_matters(leave_out: Patch, scene: Callable[[], None], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`said`: what the scene's assertion says without the rule, so that it fails for that and nothing else."""
    scene()
    leave_out(monkeypatch)
    with pytest.raises(AssertionError, match=re.escape(said)):
        scene()
