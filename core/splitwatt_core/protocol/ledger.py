"""What every GPU is charged: the heart of the operator's half of the protocol (docs/protocol.md, R4-R7, invariant I2).

Theory. The operator never knows a GPU's true power limit; it knows what it allowed and what was read back. The charge is
an upper bound of the truth that survives lost writes, late writes, restarts and lies:

    charge = max(reported management limit, but no less than the legal minimum, nor than the learnt floor,
                 cap of every grant >= the acknowledged one,
                 carry of every grant >  the acknowledged one)          and, without trust, the default limit

A grant's *carry* is the charge at the moment it was made, persisted beside it as `chargeWatts`: so a successor that sees
only the newest grant still counts what an overwritten one may do (R4). An acknowledgement of g retires only the grants
below g (R5). What a GPU was seen to draw above its cap is its floor: no cap takes those watts back. A charge falls
`settle_s` after the readback that allowed it to, for draw lags its cap (I2). Whose acknowledgements are trusted is its node's
account to say (`node_account`); a GPU's own needs a grant of at least 1 (R7).

Protected: charge >= true limit, always, except after a surprise that nobody could have seen.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from splitwatt_core.protocol.contract import MAX_GPU_WATTS, NO_GRANT, GpuStatus, Grant, Health, Use, Workload
from splitwatt_core.protocol.contradictions import contradiction, limits_stand

OUTSIDE_FAR_W: Final = 20
OUTSIDE_AFTER_S: Final = 120.0
"""An enforced limit so far below ours for so long is somebody else's: what the GPU cannot draw is granted to others then."""
OUTSIDE_PROBE_W: Final = 10
"""How far our cap then stays above that limit. Were both equal, nobody could see when the other one lets go."""
MAX_OPEN_GRANTS: Final = 64
"""Open grants kept per GPU; beyond it the oldest are folded into one that carries their highest watts."""


@dataclass(frozen=True, slots=True)
class OpenGrant:
    """A grant that was or may have been sent and is not retired yet. Watts."""

    grant: int
    cap_w: int
    carry_w: int


@dataclass(slots=True)
class GpuAccount:
    """One GPU's bookkeeping. `charge_w` is kept current by `refresh`."""

    uuid: str
    default_w: int
    min_w: int
    max_w: int
    model: str = ""
    reported_w: int | None = None
    acked: int = NO_GRANT
    health: Health = Health.UNKNOWN
    owners: tuple[Workload, ...] = ()
    use: Use = Use.UNKNOWN
    floor_w: int = 0
    found_w: int = 0
    """The cap that it had when its present use began: since its owners are these, or since it has none and is not idle."""
    found_granted: bool = False
    """That cap was one of ours, so it says nothing of what the GPU had before."""
    found_first: bool = False
    """Its present use is the first that was seen of it, so its line may have been written for these very owners."""
    unowned_since_s: float | None = None
    """Since when it has no owner and no proof of idleness."""
    outside_w: int | None = None
    """The enforced limit, while it is below the management limit."""
    outside_since_s: float | None = None
    """Since when it lies far below."""
    outside_holds: bool = False
    """It did for long, and nobody has let go since."""
    row: Grant | None = None
    """The newest line written for it (sent or seen), whatever became of it."""
    open: list[OpenGrant] = field(default_factory=list)
    settling: list[tuple[float, int]] = field(default_factory=list)
    charge_w: int = 0
    raw_w: int = 0
    unacked_since_s: float | None = None
    oddity: str = ""
    """What is told of it and cannot be true, as the end of a sentence; "" when nothing is."""
    unknown_ack: int = NO_GRANT
    """The number that it acknowledges and that nobody is known to have granted."""
    braked: int = NO_GRANT
    """The number of the brake that holds it, as its agent says: only a grant above it lifts that (R30)."""
    listed_in: tuple[str, str] = ("", "")
    """Boot and object uid of the last inventory that had it."""

    def bound_w(self, *, trusted: bool) -> int:
        """The formula above, before settling."""
        # No driver keeps a limit below the legal minimum, whatever it reports: what can be granted at least is counted.
        bound = max(self.min_w, self.reported_w) if self.reported_w is not None else self.default_w
        bound = max(bound, self.floor_w)
        for g in self.open:
            if g.grant >= self.acked:
                bound = max(bound, g.cap_w)
            if g.grant > self.acked:
                bound = max(bound, g.carry_w)
        return bound if trusted and self.acked > NO_GRANT else max(bound, self.default_w)

    def see_limits(self, row: GpuStatus, now_s: float) -> None:
        """Whether somebody else limits it as well. The charge knows nothing of that: they may let go at any moment (I6)."""
        if row.management_w is None or row.enforced_w is None:
            return
        self.outside_w = row.enforced_w if row.enforced_w < row.management_w else None
        if self.outside_w is None:
            self.outside_holds = False
        if row.management_w - row.enforced_w < OUTSIDE_FAR_W:
            self.outside_since_s = None
        elif self.outside_since_s is None:
            self.outside_since_s = now_s

    @property
    def outside_ceiling_w(self) -> int | None:
        """The highest cap that is of any use to it, None while nobody else holds it down."""
        return self.outside_w + OUTSIDE_PROBE_W if self.outside_holds and self.outside_w is not None else None

    def refresh(self, now_s: float, *, trusted: bool, settle_s: float) -> None:
        """Recompute the charge: rises at once, falls `settle_s` after the bound did."""
        if self.outside_since_s is not None and now_s - self.outside_since_s >= OUTSIDE_AFTER_S:
            self.outside_holds = True
        bound = self.bound_w(trusted=trusted)
        if bound < self.raw_w:
            self.settling.append((now_s + settle_s, self.raw_w))
        self.raw_w = bound
        self.settling = [(until, w) for until, w in self.settling if until > now_s and w > bound]
        self.charge_w = max([bound, *(w for _, w in self.settling)])
        latest = self.row.grant if self.row is not None else NO_GRANT
        if latest > self.acked:
            self.unacked_since_s = now_s if self.unacked_since_s is None else self.unacked_since_s
        else:
            self.unacked_since_s = None

    def set_back(self, by_s: float, now_s: float) -> None:
        """Our clock was set back: what has to last still lasts no longer for that, and what has lasted did so until now."""
        self.settling = [(until - by_s, w) for until, w in self.settling]
        for name in ("unacked_since_s", "outside_since_s", "unowned_since_s"):
            if (since_s := getattr(self, name)) is not None:
                setattr(self, name, min(since_s, now_s))

    def learn(self, grant: Grant) -> None:
        """Count a grant line, before it is sent (R6) or when it is seen in an object somebody else wrote."""
        if self.row is None or grant.grant >= self.row.grant:
            self.row = grant
        if any(g.grant == grant.grant and g.cap_w >= grant.cap_w and g.carry_w >= grant.charge_w for g in self.open):
            return
        self.open.append(OpenGrant(grant.grant, grant.cap_w, max(grant.charge_w, grant.cap_w)))
        if len(self.open) > MAX_OPEN_GRANTS:
            self._fold()

    def _fold(self) -> None:
        """Merge the two oldest open grants into one that stands for both: the later number, the higher watts."""
        first, second = sorted(self.open, key=lambda g: g.grant)[:2]
        merged = OpenGrant(second.grant, max(first.cap_w, second.cap_w), max(first.carry_w, second.carry_w))
        self.open = [merged, *(g for g in self.open if g is not first and g is not second)]

    def acknowledge(self, acked: int) -> None:
        """Take over the acknowledged number, up or (after a reset, or on a new object) down; retire what lies below."""
        self.acked = acked
        if acked > NO_GRANT:
            self.open = [g for g in self.open if g.grant >= acked]

    @property
    def latest_cap_w(self) -> int | None:
        return self.row.cap_w if self.row is not None else None

    @property
    def present_cap_w(self) -> int:
        """The cap granted last; without a grant the limit that it reports, or its default."""
        if self.row is not None:
            return self.row.cap_w
        return self.default_w if self.reported_w is None else min(max(self.reported_w, self.min_w), self.max_w)

    def take(self, row: GpuStatus, *, valid: bool, granted: int, times: int) -> None:
        """One line of a status, with what `contradiction` asks of it."""
        self.oddity = contradiction(row, valid=valid, granted=granted, times=times)
        self.unknown_ack = row.acked_grant if valid and row.acked_grant > granted else NO_GRANT
        if row.default_w > 0:
            self.default_w, self.min_w, self.max_w = row.default_w, row.min_w, row.max_w
            if not limits_stand(row):
                self.default_w = self.max_w = min(max(row.min_w, row.default_w, row.max_w), MAX_GPU_WATTS)
                self.min_w = 0
        self.model = row.model or self.model
        self.braked = row.brake.grant if valid and row.brake is not None else NO_GRANT
        self.health = row.health
        self.floor_w = min(max(row.floor_w, 0), max(self.default_w, self.max_w)) if valid else self.floor_w
        if row.management_w is not None:
            # A void status may speak of another object or boot: then it may raise the bound, not lower it.
            management_w = min(row.management_w, MAX_GPU_WATTS)
            self.reported_w = management_w if valid else max(management_w, self.reported_w or 0)
        if self.oddity:
            self.doubt(self.oddity)  # and not a moment sooner: what an acknowledgement retires does not come back
        else:
            self.acknowledge(row.acked_grant if valid else NO_GRANT)

    def doubt(self, oddity: str) -> None:
        """What is told of it cannot be true: nothing of it counts as acknowledged, and no cap is to be set by it."""
        self.oddity, self.health = oddity, Health.UNKNOWN
        self.acknowledge(NO_GRANT)

    def see_use(self, owners: tuple[Workload, ...], use: Use, now_s: float) -> None:
        """Who holds it and what is seen of it. A new use, or the end of idleness without a known owner, begins from the cap
        of this moment; what is only known better meanwhile (Busy, Unknown) is the same use."""
        first = self.found_w <= 0
        was_idle = not self.owners and self.use is Use.IDLE
        unowned = not owners and use is not Use.IDLE
        if first or owners != self.owners or (was_idle and unowned):
            self.found_w, self.found_granted, self.found_first = self.present_cap_w, self.row is not None, first
        if not unowned:
            self.unowned_since_s = None
        elif self.unowned_since_s is None:
            self.unowned_since_s = now_s
        self.owners, self.use = owners, use

    @property
    def settles_at_s(self) -> float | None:
        return min((until for until, _ in self.settling), default=None)
