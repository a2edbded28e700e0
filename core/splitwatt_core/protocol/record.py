"""What an agent keeps on its disk, and what a later life of it may still call acknowledged (docs/protocol.md, R12 and R36).

The highest grant taken in is durable before it is applied, and nothing lower is applied again (R12). With it stands the
grant that was held for acknowledged then, and the highest cap taken in from that one on. So a new process that reads a
limit back knows which acknowledgement is still true, whatever became of the grants between: the operator counts the caps
of all grants from the acknowledged one on.

What it protects: an acknowledgement is never told for another object than the one it was granted in, nor against a limit
that reads higher than what the operator counts for it. The boot need not be on the disk: after a reboot the limit reads
higher, or the word is true all the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from splitwatt_core.protocol.brake import Brake
from splitwatt_core.protocol.contract import MAX_GPU_WATTS, MAX_GRANT, MAX_TERM, NO_GRANT, Grant
from splitwatt_core.protocol.milliwatts import MW_PER_W


@dataclass(frozen=True, slots=True)
class Taken:
    """The highest grant of one GPU. `uid`: the object it was taken from, "" where an older agent did not write it.
    `since_cap_w`: the highest cap of all grants taken in from `acked_grant` on, itself included."""

    grant: int = NO_GRANT
    cap_w: int = 0
    safe_cap_w: int = 0
    uid: str = ""
    acked_grant: int = NO_GRANT
    since_cap_w: int = 0

    def followed_by(self, line: Grant, *, uid: str) -> Taken:
        """After a higher grant was taken in from the object of this uid."""
        return replace(
            self,
            grant=line.grant,
            cap_w=line.cap_w,
            safe_cap_w=line.safe_cap_w,
            uid=uid,
            since_cap_w=max(self.since_cap_w, line.cap_w),
        )

    def acknowledged(self, grant: int, since_cap_w: int) -> Taken:
        """`grant` is the acknowledged one now; NO_GRANT: none is."""
        if (grant, since_cap_w) == (self.acked_grant, self.since_cap_w):
            return self
        return replace(self, acked_grant=grant, since_cap_w=since_cap_w)

    def still_acked(self, limit_mw: int) -> tuple[int, int]:
        """Grant that is acknowledged where the higher of both limits reads `limit_mw`, and the highest cap in watts taken in
        from it on. NO_GRANT and 0 when the limit says that neither is true any more."""
        if limit_mw <= self.cap_w * MW_PER_W:
            return self.grant, self.cap_w
        if self.acked_grant > NO_GRANT and limit_mw <= self.since_cap_w * MW_PER_W:
            return self.acked_grant, self.since_cap_w
        return NO_GRANT, 0


@dataclass(frozen=True, slots=True)
class Record:
    """What is durable before it is applied (R12): the highest term, and by GPU what was taken in. `brakes`: those in force,
    durable before they are acknowledged (R28)."""

    term: int = 0
    grants: Mapping[str, Taken] = field(default_factory=dict)
    brakes: Mapping[str, Brake] = field(default_factory=dict)


def checked(record: Record) -> Record:
    """The record, where an agent can have written it: a number from nowhere would refuse every grant to come, or call one
    acknowledged that nobody made. Raises ValueError."""
    if not 0 <= record.term <= MAX_TERM:
        raise ValueError(f"term {record.term} is none")
    for uuid, taken in record.grants.items():
        caps = (taken.cap_w, taken.safe_cap_w, taken.since_cap_w)
        if not NO_GRANT <= taken.acked_grant <= taken.grant <= MAX_GRANT:
            raise ValueError(f"grant {taken.grant} of {uuid}, with {taken.acked_grant} acknowledged, is none")
        if not all(0 <= cap_w <= MAX_GPU_WATTS for cap_w in caps):
            raise ValueError(f"caps of {max(caps, key=abs)} W, of {uuid}, are none")
    for uuid, brake in record.brakes.items():
        if not NO_GRANT < brake.grant <= MAX_GRANT or not 0 <= (brake.cap_w or 0) <= MAX_GPU_WATTS:
            raise ValueError(f"a brake of {brake.cap_w} W under grant {brake.grant}, of {uuid}, is none")
    return record
