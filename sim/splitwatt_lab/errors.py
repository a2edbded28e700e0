"""The one exception of the lab: a sentence for the person at the terminal that says what failed and what to change."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

_TAIL_BYTES: Final = 16_384
_SENTENCE_CHARS: Final = 400
_TELLING: Final = ("address already in use", "panic:", "fatal", "error", "err=", "err:", "failed", "cannot", "unable")


class LabError(RuntimeError):
    """Something a person has to change; the message is one sentence that says what."""


class PortInUseError(LabError):
    """A port that had to be this one is taken."""


def log_tail(log: Path) -> Sequence[str]:
    """The last lines of a log, oldest first; empty when there is none."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _TAIL_BYTES))
            return [line for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    except FileNotFoundError:
        return []


def telling_line(log: Path) -> str:
    """The last line of a log that looks like a reason, else its last line; shortened to fit a sentence."""
    lines = log_tail(log)
    for line in reversed(lines):
        if any(word in line.lower() for word in _TELLING):
            return line[:_SENTENCE_CHARS]
    return lines[-1][:_SENTENCE_CHARS] if lines else "it wrote nothing"
