"""When may a candidate take the Lease, and until when may its holder send (docs/protocol.md, R2).

Theory. No two clocks are compared. A holder counts on its own monotonic clock from the moment *before* its last successful
renewal was sent, and sends for `hold_s`. A candidate counts on its own monotonic clock from the moment *after* it first saw the
newest record, and waits for `duration_s`, which is a quarter longer. A record is seen only after it was sent, so the holder has
ended before the candidate begins, wherever their clocks stand, as long as none runs a quarter faster than another. The taking
itself is bound to the version that was watched: a renewal that lands in between makes it fail.

So only what was *seen* counts, and what was seen once counts for as long as the process lives: through every candidacy, and
from its first look on, before it has anything else to decide by.

One thing is proven without any waiting: that a process is dead whose `life` is ours. A life is a lock on a file of this machine
that a process holds from before its candidacy to its end, and the number in that file. Whoever holds the lock now has outlived
every holder of that number. What the dead one still had under way meets the fence of terms, as after a Lease that was given up.

A candidate that was not answered either knows nothing of the holder: when answers come again, the holder has `GRACE_RENEWALS`
to be heard first. That costs no safety; it keeps a reign through a silence of the API server.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Final

HOLD_SHARE: Final = 0.8
"""Of its duration for which a holder sends. The rest bounds how much faster a clock may run than another (a quarter), and the
time that a send takes to leave the process."""
RENEWALS_PER_DURATION: Final = 5
LOOKS_PER_DURATION: Final = 10
GRACE_RENEWALS: Final = 3
MAX_DURATION_S: Final = 60.0
"""A record that says it is good for longer was written by another hand: no holder counts by it, and no successor waits for it."""
GIVEN_UP_DURATION_S: Final = 1
"""In a record without a holder: its holder gave it up itself, and sends nothing any more. As client-go does."""
_LIFE: Final = re.compile(r"_([0-9a-f]{16})_[0-9a-f]{8}\Z")


@dataclass(frozen=True, slots=True)
class _Record:
    version: str
    holder: str
    duration_s: float


def life_of(holder: str) -> str:
    """The life that a holder wrote, "" for none."""
    found = _LIFE.search(holder)
    return found.group(1) if found else ""


class Candidacy:
    """What one process has seen of one Lease. Times are its own monotonic seconds. `duration_s`: of its own record. `life`: the
    one that this process holds the lock of, "": none."""

    def __init__(self, *, duration_s: int, life: str = "") -> None:
        self.duration_s = duration_s
        self.life = life
        self._record: _Record | None = None
        self._since_s = math.inf
        """When the present record, or that there is none, was first seen."""
        self._answered_since_s = math.inf
        """Since when every look was answered."""
        self._rival_s = 0.0
        """For how long a holder may go on whose record is gone: of the last one that was seen, this process not excepted. 0: none
        was ever seen."""

    @property
    def hold_s(self) -> float:
        """For so long after the sending of a successful renewal its holder may send."""
        return HOLD_SHARE * self.duration_s

    @property
    def renew_s(self) -> float:
        """From the sending of one renewal to that of the next."""
        return self.duration_s / RENEWALS_PER_DURATION

    @property
    def look_s(self) -> float:
        """Between two looks of a candidate, and between two attempts of a holder to regain what it held."""
        return self.duration_s / LOOKS_PER_DURATION

    def name(self, identity: str, *, token: str) -> str:
        """What a holder writes: unique for each candidacy by `token`, 8 hex digits."""
        return f"{identity}_{self.life}_{token}" if self.life else f"{identity}_{token}"

    def given_up_duration_s(self) -> int:
        """What a holder writes that gives its Lease up."""
        return GIVEN_UP_DURATION_S

    def saw(self, version: str, holder: str, duration_s: float, *, now_s: float) -> None:
        """A look was answered, uncached, and is told after its answer. `version`: uid and resourceVersion together; "": there is
        no Lease. `holder` "": nobody."""
        record = _Record(version, holder, duration_s) if version else None
        if math.isinf(self._since_s) or record != self._record:
            self._record, self._since_s = record, now_s
        if math.isinf(self._answered_since_s):
            self._answered_since_s = now_s
        if holder:
            self._rival_s = self._honoured_s(duration_s)

    def taken(self) -> None:
        """The Lease became ours: what was seen before is over, and whoever looks for it later must not think that nobody ever
        had it."""
        self._since_s = math.inf
        self._rival_s = max(self._rival_s, float(self.duration_s))

    def unheard(self) -> None:
        """A look had no answer."""
        self._answered_since_s = math.inf

    def vacant_from_s(self, *, me: str) -> float:
        """The Lease may be taken later than this, bound to the version that was last told; infinity before the first look."""
        if math.isinf(self._since_s):
            return math.inf
        record = self._record
        if record is None or not record.holder:
            given_up = record is not None and record.duration_s <= GIVEN_UP_DURATION_S
            if given_up or not self._rival_s:
                return -math.inf
            return self._since_s + self._rival_s  # another hand took it away: who held it may not know yet
        if record.holder == me or self._dead(record.holder):
            return -math.inf  # the former: a taking of ours that landed unheard
        heard_s = self._answered_since_s + GRACE_RENEWALS * self.renew_s
        return max(self._since_s + self._honoured_s(record.duration_s), heard_s)

    def _honoured_s(self, duration_s: float) -> float:
        """Never less than our own: a number that somebody wrote there shortens no holder's time."""
        return max(float(self.duration_s), min(duration_s, MAX_DURATION_S))

    def _dead(self, holder: str) -> bool:
        """Whether its process has surely ended. A reign of this very process that is over counts as ended."""
        return bool(self.life) and life_of(holder) == self.life
