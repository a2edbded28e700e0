"""What the agents said below one budget at the last steps, so that a meter's sample can be held against its own time.

A meter's sample is older than the agents'. Held against what they say now, every falling load would look like watts that
nobody declared, and every rising one like a meter that reads too little.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Final

KEPT_S: Final = 30.0
EVERY_S: Final = 0.5
"""Two looks within it are kept as the later one."""
MAX_LOOKS: Final = 120


@dataclass(frozen=True, slots=True)
class Look:
    """One step. modelled_w: watts at the meter, as in `Survey`. drawn_w, known_w: GPU watts that agents with fresh samples
    read, and the same with what silent agents read last. drawn_s: when the oldest of the fresh samples was taken."""

    at_s: float
    modelled_w: float
    drawn_w: float = 0.0
    known_w: float = 0.0
    drawn_s: float = float("-inf")


@dataclass(frozen=True, slots=True)
class Past:
    """The newest look last; at most MAX_LOOKS of them."""

    looks: tuple[Look, ...] = ()

    def with_look(self, look: Look, *, max_age_s: float) -> Past:
        """`max_age_s`: how old a meter's sample may be."""
        kept_s = KEPT_S + max_age_s
        every_s = max(EVERY_S, 2.0 * kept_s / MAX_LOOKS)
        # From the newest or the oldest end: a clock that is set back, and time that passes, cut off little at once.
        kept = self.looks
        while kept and kept[-1].at_s > look.at_s:
            kept = kept[:-1]
        old = next((k for k, past in enumerate(kept) if look.at_s - past.at_s <= kept_s), len(kept))
        kept = kept[old:] if old else kept
        if len(kept) > 1 and look.at_s - kept[-2].at_s < every_s:
            gone = kept[-1]  # steps may follow each other faster than the span can be held
            look = replace(look, drawn_w=min(look.drawn_w, gone.drawn_w), known_w=min(look.known_w, gone.known_w))
            kept = kept[:-1]
        return Past((*kept, look))

    def modelled_at(self, sampled_s: float) -> float:
        """What the model said at a sample's time: between the two looks around it, or at the nearest. Raises IndexError
        before the first look."""
        after = self.looks[-1]
        for before in reversed(self.looks):
            if before.at_s <= sampled_s:
                if before is after:
                    return before.modelled_w
                share = (sampled_s - before.at_s) / (after.at_s - before.at_s)
                return before.modelled_w + (after.modelled_w - before.modelled_w) * share
            after = before
        return after.modelled_w

    def least_since(self, from_s: float) -> tuple[float, float]:
        """The smallest drawn_w and known_w of all looks from then on, zeros where there is none."""
        since = list(takewhile(lambda look: look.at_s >= from_s, reversed(self.looks)))
        return min((look.drawn_w for look in since), default=0.0), min((look.known_w for look in since), default=0.0)

    def caught_up(self, sampled_s: float) -> bool:
        """Whether all fresh agents' samples are newer than that by now."""
        return bool(self.looks) and self.looks[-1].drawn_s >= sampled_s
