"""Which terms are believed (docs/protocol.md, R2): a new term is above every one that an agent has obeyed, and no number that
somebody wrote by hand ends a reign, uses the terms up or stands in a successor's way.

Theory. Terms rise by one with each start of an operator, so honest numbers lie close together: the Lease says the last term
there was, a NodePower's spec carries one that an operator stamped on it, a status says which one its agent obeyed. Only a
restore of the store, or a lost Lease, sets them apart, by as many starts as were lost. Beyond `REACH` they are no history of
one cluster: then the Lease counts, unless every spec stands against it.

A status is the agent's word, yet others can write it. So within reach too it ends a reign only when the agent has kept to it
for longer than it ever stays silent: whatever somebody else wrote there is written over meanwhile. A new operator need not
wait for that, for a term too high by less than the reach costs nothing.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Final

from splitwatt_core.protocol.contract import MAX_TERM, SIGN_OF_LIFE_S

REACH: Final = 10_000
"""So many starts between two honest numbers: an operator that starts every five minutes for a month."""
MAX_RISE: Final = 100 * REACH
"""The API server lets `spec.term` rise by no more at once: above all that an operator does, below what ends all terms."""
TOLD_FOR_S: Final = 1.5 * SIGN_OF_LIFE_S
"""An agent that lives has spoken at least once in this time."""


class TermsError(ValueError):
    """No term is left to take; the message says what to do."""


def next_term(lease: int | None, *, carried: Collection[int], obeyed: Collection[int], held: int = 0) -> int:
    """The term of a reign that begins, 1..MAX_TERM. `lease`: the Lease's own, None where there is no Lease; `carried`: of all
    specs; `obeyed`: of all statuses; `held`: the highest that this very process has held. Raises TermsError."""
    stamps = [term for term in carried if term > 0]
    last, jump = lease or 0, 1
    if stamps and last > max(stamps) + REACH:
        # Nobody stamped anything near it. What an operator took and never stamped lies within reach of the stamps.
        last, jump = max(stamps), REACH + 1
    elif stamps and (not lease or min(stamps) > last + REACH) and min(stamps) <= MAX_TERM // 2:
        last = max(last, min(stamps))  # the Lease was lost or set back; half of all terms are left whoever wrote these
    top = max([last, held, *(term for term in (*stamps, *obeyed) if term <= last + REACH)])
    if top + jump > MAX_TERM:
        raise TermsError(
            f"no term is left above {top}, which the Lease or a NodePower carries: terms end at {MAX_TERM}, and no operator "
            "starts that often. Delete the Lease, and every NodePower whose spec.term is as high; both are made anew"
        )
    return top + jump


@dataclass(frozen=True, slots=True)
class TermWord:
    """What a node's object says of a term above ours. `told`: its agent's status, since `told_s`, last said anew at `again_s`;
    0: nothing above ours. `carried`: its spec."""

    told: int = 0
    told_s: float = 0.0
    again_s: float = 0.0
    carried: int = 0

    def said(self, term: int, now_s: float, *, ours: int) -> TermWord:
        """After a status that is another than before, whatever object and boot it speaks of: an agent obeys for good."""
        if term <= ours:
            return replace(self, told=0)
        if term == self.told:
            return replace(self, again_s=now_s)
        return replace(self, told=term, told_s=now_s, again_s=now_s)

    def stamped(self, term: int, *, ours: int) -> TermWord:
        """After a spec of this term."""
        return replace(self, carried=term if term > ours else 0)

    def superseding(self, *, ours: int) -> int:
        """The higher term that ends our reign, 0: none. A spec is an operator's word, and ours on it is refused from now on."""
        if ours < self.carried <= ours + REACH:
            return self.carried
        return self.told if self.told <= ours + REACH and self.again_s - self.told_s >= TOLD_FOR_S else 0

    def oddity(self, *, ours: int) -> str:
        """What is wrong with it and what to do, as the end of a sentence about the node; "" when nothing is."""
        if self.carried > ours + REACH:
            return (
                f"carries term {self.carried}, which no Lease ever held (ours is {ours}), so no grant can be written to it: "
                "delete that NodePower, it is made anew"
            )
        if self.told > ours + REACH:
            return (
                f"says that its agent obeyed term {self.told}, which no Lease ever held (ours is {ours}): that counts for "
                f"nothing, and goes with the agent's next status within {SIGN_OF_LIFE_S:.0f} s; if it stays, start the agent "
                "there, and where one runs empty its state folder"
            )
        if self.told:
            return (
                f"says that its agent obeyed term {self.told}, above ours ({ours}): a higher one is taken if that agent keeps to "
                f"it for {TOLD_FOR_S:.0f} s; if it stays longer, start the agent there"
            )
        return ""


NO_WORD: Final = TermWord()
