"""Whether somebody else sets a GPU's power limit against us: a script, a tuning job, another agent.

The agent puts a limit that was changed back within one turn, so power is held, and nobody would learn of the fight. A limit
that read back as we set it and then reads otherwise without a call of ours was set by another hand (or by a reset); what
happens `LEAST_TIMES` within `WINDOW_S` is no accident. A setter that lies or clamps is no other hand: its limit never read
back as it was set.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Final

from splitwatt_core.protocol.milliwatts import watts_up

WINDOW_S: Final = 300.0
LEAST_TIMES: Final = 3
STEPS: Final = (LEAST_TIMES, 10, 30, 100)
"""How often is told in these steps, so that a fight does not become a status write each time."""


@dataclass(frozen=True, slots=True)
class Contest:
    """`limit_w`: what the other hand set last. `times`: at least so often within `WINDOW_S`."""

    limit_w: int
    times: int


@dataclass(slots=True)
class ContestWatch:
    """One GPU. Times are monotonic seconds, limits milliwatts."""

    set_mw: int = 0
    """What our last call asked for."""
    settled: bool = False
    """It read back so since."""
    changes: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=STEPS[-1]))

    def called(self, limit_mw: int) -> None:
        """A call of ours is on its way."""
        self.set_mw, self.settled = limit_mw, False

    def see(self, now_s: float, limit_mw: int | None, *, calling: bool) -> None:
        """A readback of the management limit; `calling`: a call of ours has not returned."""
        while self.changes and now_s - self.changes[0][0] > WINDOW_S:
            self.changes.popleft()
        if limit_mw is None or calling:
            return
        if self.settled and limit_mw != self.set_mw:
            self.changes.append((now_s, limit_mw))
        self.settled = limit_mw == self.set_mw

    @property
    def contest(self) -> Contest | None:
        steps = [step for step in STEPS if step <= len(self.changes)]
        return Contest(limit_w=watts_up(self.changes[-1][1]), times=steps[-1]) if steps else None
