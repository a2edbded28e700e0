"""What keeps a plan from being made."""

from __future__ import annotations


class PlanError(ValueError):
    """The message is one sentence that says what to change. Each part of the planner has a kind of its own below it."""
