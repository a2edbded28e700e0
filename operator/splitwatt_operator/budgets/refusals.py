"""What to make of NodePower writes that come to nothing: a pause per object, and a sentence once nothing gets through at all.

One refusal is the usual case of two writers that met, and is answered at once from a fresh read. Refusals in a row have a
lasting cause (a kind that is not served, a stale view, a right that was taken away, an admission webhook): asking twenty
times a second helps nobody and hides the cause in its own log.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

FIRST_PAUSE_S: Final = 0.1
LONGEST_PAUSE_S: Final = 5.0
STUCK_S: Final = 60.0
"""Refusals alone for this long: no cap can be moved."""
FORGOTTEN_S: Final = 30.0
"""Without a further refusal for this long nothing was tried, and nothing is concluded."""
MAX_REMEMBERED: Final = 10_000


class Refusals:
    """Told of each outcome; times are monotonic seconds."""

    def __init__(self) -> None:
        self._in_a_row: OrderedDict[str, int] = OrderedDict()
        self._count = 0
        self._since_s = self._last_s = float("-inf")
        self._last = ""

    def stored(self, name: str) -> None:
        """Caps can be moved."""
        self._in_a_row.pop(name, None)
        self._count, self._since_s = 0, float("-inf")

    def refused(self, name: str, why: str, now_s: float) -> float:
        """The pause before this object may be written again."""
        if self._count == 0 or now_s - self._last_s > FORGOTTEN_S:
            self._count, self._since_s = 0, now_s
        self._count, self._last_s, self._last = self._count + 1, now_s, why
        return self.unanswered(name)

    def unanswered(self, name: str) -> float:
        """The same after an unknown outcome, from which nothing is concluded."""
        times = self._in_a_row.pop(name, 0)
        self._in_a_row[name] = times + 1
        if len(self._in_a_row) > MAX_REMEMBERED:
            self._in_a_row.popitem(last=False)
        return 0.0 if times == 0 else min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(times - 1, 16))

    def problem(self, now_s: float) -> str | None:
        """One sentence while every write has been refused for `STUCK_S`."""
        if self._count == 0 or now_s - self._last_s > FORGOTTEN_S or now_s - self._since_s < STUCK_S:
            return None
        return (
            f"no cap can be moved for {now_s - self._since_s:.0f} s: all {self._count} writes of NodePowers were refused, "
            f"the last one with: {self._last}"
        )
