"""One thing that a person should know: how bad, of what, why, and what to do about it. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class Gravity(StrEnum):
    """Worst first."""

    BROKEN = "Broken"
    WARNING = "Warning"
    NOTE = "Note"

    @property
    def rank(self) -> int:
        return tuple(Gravity).index(self)


@dataclass(frozen=True, slots=True)
class Finding:
    """`check`: which rule found it, one word in CamelCase for scripts. `subject`: "PowerBudget rack-a1", "" for the whole.
    `fix`: a command, or a sentence where no command can do it. `since`: RFC 3339, "" where that is not known."""

    severity: Gravity
    check: str
    subject: str
    text: str
    fix: str = ""
    since: str = ""

    @property
    def line(self) -> str:
        """One sentence, as it is printed and tested."""
        return f"{self.subject}: {self.text}" if self.subject else self.text

    def wire(self) -> dict[str, Any]:
        told = {"severity": self.severity.value, "check": self.check, "subject": self.subject, "text": self.text}
        return told | {key: value for key, value in (("fix", self.fix), ("since", self.since)) if value}


def worst_first(findings: Iterable[Finding]) -> list[Finding]:
    """Of equally bad ones in the order in which they came: causes before what follows from them."""
    return sorted(findings, key=lambda f: f.severity.rank)


def worst(findings: Iterable[Finding]) -> Gravity | None:
    return min((f.severity for f in findings), key=lambda s: s.rank, default=None)
