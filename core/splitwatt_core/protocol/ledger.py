"""What every GPU is charged: the operator's half of the protocol (docs/protocol.md, R4-R8, invariants I2 and I3).

Theory. The operator never knows a GPU's true power limit; it knows what it allowed and what was read back. The charge is
an upper bound of the truth that survives lost writes, late writes, restarts and lies:

    charge = max(reported management limit, but no less than the legal minimum, nor than the learnt floor,
                 cap of every grant >= the acknowledged one,
                 carry of every grant >  the acknowledged one)          and, without trust, the default limit

A grant's *carry* is the charge at the moment it was made, persisted beside it as `chargeWatts`: so a successor that sees
only the newest grant still counts what an overwritten one may do (R4). An acknowledgement of g retires only the grants
below g (R5). What a GPU was seen to draw above its cap is its floor: no cap takes those watts back. A charge falls
`settle_s` after the readback that allowed it to, for draw lags its cap (I2). Trust needs a
status of this object, this boot and a grant of at least 1 (R7).

Protected: charge >= true limit, always, except after a surprise that nobody could have seen.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Final

from splitwatt_core.protocol.contract import (
    MAX_GPU_WATTS,
    NO_GRANT,
    UNREADABLE_PREFIX,
    GpuStatus,
    Grant,
    Health,
    NodePower,
    Use,
    Workload,
)
from splitwatt_core.protocol.contradictions import contradiction, highest_granted, limits_stand

AGENT_METRICS_SILENT_S: Final = 5.0
"""Where agents are scraped once a second; an operator whose Prometheus is slower is told so."""
AGENT_STATUS_SILENT_S: Final = 90.0
NODE_LEASE_FRESH_S: Final = 40.0
"""The kubelet renews every 10 s and Kubernetes itself gives a node 40 s."""
UNPROVEN_GRACE_S: Final = 30.0
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
            self.found_w, self.found_granted = self.present_cap_w, self.row is not None
        if not unowned:
            self.unowned_since_s = None
        elif self.unowned_since_s is None:
            self.unowned_since_s = now_s
        self.owners, self.use = owners, use

    @property
    def settles_at_s(self) -> float | None:
        return min((until for until, _ in self.settling), default=None)


@dataclass(slots=True)
class NodeAccount:
    """One node: its Kubernetes Node (or not), its NodePower (or not), and its GPUs' accounts."""

    name: str
    present: bool = False
    boot_id: str = ""
    object: NodePower | None = None
    highest_version: int = 0
    stamped: bool = False
    foreign: bool = False
    """It once carried our term and then showed another: charged its default until stamped again (R3)."""
    gpus: dict[str, GpuAccount] = field(default_factory=dict)
    sample_s: float = float("-inf")
    sample_w: float = 0.0
    """The agent's own readings of all its GPUs, and when the oldest of them was taken."""
    sample_gpus: int | None = None
    """Of how many GPUs that is the sum, None: of all."""
    sample_told_s: float = float("-inf")
    """The time of that sample as it was told, which may lie ahead of our clock."""
    sample_problem: str = ""
    """Why what Prometheus has of it cannot be used, "" while it can."""
    agent_silent_s: float = AGENT_METRICS_SILENT_S
    """A sample older than this shows no life."""
    status_s: float = float("-inf")
    lease_s: float = float("-inf")
    unproven_since_s: float | None = None
    excluded: bool = False
    """A person keeps it out: it is charged as if nothing held, and nothing is granted to it."""
    removed: set[str] = field(default_factory=set)
    """GPUs that are gone for good: lines that an old spec still has for them count nothing."""
    listed: frozenset[str] = frozenset()
    """The newest inventory of this boot and object that was not empty."""

    # ------------------------------------------------------------------------------------------------ observations

    def observe(self, seen: NodePower, now_s: float, *, term: int) -> bool:
        """Take in one version of the object; False when it is not newer than one already seen (R6)."""
        if seen.resource_version <= self.highest_version:
            return False
        self.highest_version = seen.resource_version
        before = self.object
        self.object = seen
        if before is not None and before.uid != seen.uid:
            self.stamped = False
        if seen.spec is not None and seen.spec.term == term and seen.spec.for_uid == seen.uid:
            self.stamped, self.foreign = True, False
        elif self.stamped:
            self.stamped, self.foreign = False, True
        if before is None or before.uid != seen.uid or before.status != seen.status:
            self.status_s = now_s
        valid = self._take_status(seen)
        self._take_spec(seen)
        if valid and seen.status.gpus:
            self._name_stand_ins(seen)
        for row in seen.status.gpus:
            # What was seen of another boot or object is no evidence now.
            self.gpus[row.uuid].see_use(row.owners, row.use if valid else Use.UNKNOWN, now_s)
            if valid:
                self.gpus[row.uuid].see_limits(row, now_s)
        return True

    def see_boot(self, boot_id: str) -> bool:
        """The Node is present with this boot; True when it is another one than before. A status may have told of the new
        boot before the Node did, so it is judged again."""
        changed = boot_id != self.boot_id
        rebooted = changed and self.present
        self.present, self.boot_id = True, boot_id
        if changed:
            self.look_again()
        return rebooted

    def forget_object(self, uid: str) -> bool:
        """The object was deleted. Its grants stay open: an agent may still apply what it once read (R8, scene 10)."""
        if self.object is None or (uid and self.object.uid != uid):
            return False
        self.object = None
        self.stamped = self.foreign = False
        for gpu in self.gpus.values():
            gpu.acknowledge(NO_GRANT)
        return True

    def _take_status(self, seen: NodePower) -> bool:
        """False when it speaks of another object or boot."""
        status = seen.status
        valid = self._speaks(seen)
        listed = {row.uuid for row in status.gpus}
        here = (status.boot_id, seen.uid)
        self.removed -= listed
        times = Counter(row.uuid for row in status.gpus)
        for row in status.gpus:
            account = self.gpus.get(row.uuid)
            if account is None:
                # Its limits count together or not at all: a lowest cap above the default would be a grant above the charge.
                account = self.gpus[row.uuid] = GpuAccount(row.uuid, 0, 0, 0)
            if valid:
                account.listed_in = here
            granted = highest_granted(seen, row.uuid, account.row, ours=self.stamped)
            account.take(row, valid=valid, granted=granted, times=times[row.uuid])
        for uuid, account in list(self.gpus.items()):
            if uuid in listed:
                continue
            account.acknowledge(NO_GRANT)
            if not (valid and listed):
                continue
            if account.listed_in == here:
                account.health = Health.LOST  # a GPU does not leave a running machine: it draws on, unseen
            else:
                self.release(uuid)  # removed or replaced while the node was down, or released with its NodePower
        return valid

    def _name_stand_ins(self, seen: NodePower) -> None:
        """A GPU that could not say who it is has a name now: its stand-in is listed no more, and another is in its place. One
        for one: a stand-in that goes while nobody comes is a GPU that is lost."""
        # Who starts now knows the former list by the lines that were written for it.
        former = self.listed or {row.uuid for row in (seen.spec.gpus if seen.spec is not None else ())}
        self.listed = frozenset(row.uuid for row in seen.status.gpus)
        gone = sorted(u for u in self.gpus if u.startswith(UNREADABLE_PREFIX) and u not in self.listed)
        for uuid in gone[: len(self.listed - former)]:
            self.release(uuid)

    @property
    def own(self) -> frozenset[str] | None:
        """The GPUs that its agent lists as its own in this boot; None while it gives no list that counts."""
        seen = self.object
        if seen is None or not seen.status.gpus or not self._speaks(seen):
            return None
        return frozenset(row.uuid for row in seen.status.gpus)

    def _speaks(self, seen: NodePower) -> bool:
        """Whether its status is of this very object and, as far as that is known, of the present boot."""
        return seen.status.observed_uid == seen.uid and (not self.boot_id or seen.status.boot_id == self.boot_id)

    def look_again(self) -> None:
        """Take the newest status in once more, after what made it doubtful is gone."""
        if self.object is not None:
            self._take_status(self.object)

    def release(self, uuid: str) -> None:
        """A GPU that is none of this node's any more."""
        del self.gpus[uuid]
        self.removed.add(uuid)

    def _take_spec(self, seen: NodePower) -> None:
        if seen.spec is None or seen.spec.for_uid != seen.uid:
            return  # the agent ignores it (R10): it allows nothing
        for grant in seen.spec.gpus:
            if grant.uuid in self.removed:
                continue
            account = self.gpus.get(grant.uuid)
            if account is None:
                account = self.gpus[grant.uuid] = GpuAccount(grant.uuid, grant.charge_w, 0, grant.charge_w)
                account.listed_in = (seen.status.boot_id, seen.uid)
            if grant.grant >= account.acked:
                account.learn(grant)

    # ------------------------------------------------------------------------------------------------------- judging

    @property
    def most_w(self) -> int:
        """The most that its GPUs can draw, in GPU watts; 0 while none is known."""
        return sum(max(gpu.max_w, gpu.default_w, gpu.charge_w) for gpu in self.gpus.values())

    def see_sample(self, power_w: float, sampled_s: float, *, gpus: int | None = None) -> None:
        """Its agent's own readings. The same sample told again is no younger, however far its clock is ahead."""
        if sampled_s != self.sample_told_s:
            if sampled_s < self.sample_s:
                return
            self.sample_s = self.sample_told_s = sampled_s
        self.sample_w, self.sample_gpus, self.sample_problem = power_w, gpus, ""

    @property
    def sampled_w(self) -> float:
        """What its GPUs draw by its agent's sample. One whose draw could not be read is not one that draws nothing (I5): so
        many count at their charges, the highest."""
        unread = 0 if self.sample_gpus is None else max(0, len(self.gpus) - self.sample_gpus)
        if not unread:
            return self.sample_w
        return self.sample_w + sum(sorted((gpu.charge_w for gpu in self.gpus.values()), reverse=True)[:unread])

    def sample_stale(self, now_s: float) -> bool:
        return now_s - self.sample_s > self.agent_silent_s

    @property
    def gpus_charge_w(self) -> int:
        """The charges of all its GPUs, in GPU watts."""
        return sum(gpu.charge_w for gpu in self.gpus.values())

    @property
    def reported(self) -> bool:
        """Whether an agent ever wrote the status of the object."""
        return self.object is not None and bool(self.object.status.observed_uid)

    def alive(self, now_s: float) -> bool:
        """The agent showed life lately, by metrics or by status (I3)."""
        return not self.sample_stale(now_s) or now_s - self.status_s <= AGENT_STATUS_SILENT_S

    def _proven(self, now_s: float) -> bool:
        if self.alive(now_s):
            return True
        same_boot = self.object is not None and self.present and self.object.status.boot_id == self.boot_id
        return same_boot and now_s - self.lease_s <= NODE_LEASE_FRESH_S

    def trusted(self, now_s: float) -> bool:
        """Whether acknowledgements count: this uid, this boot, our term or no other since, and proof of life (R3, R7, I3)."""
        if self._proven(now_s):
            self.unproven_since_s = None
        elif self.unproven_since_s is None:
            self.unproven_since_s = now_s
        if self.unproven_since_s is not None and now_s - self.unproven_since_s >= UNPROVEN_GRACE_S:
            return False
        seen = self.object
        if seen is None or self.foreign or self.excluded or seen.status.observed_uid != seen.uid:
            return False
        return not self.present or seen.status.boot_id == self.boot_id

    def refresh(self, now_s: float, *, settle_s: float) -> None:
        """Bring all charges up to date. A heartbeat from the future is one of now: another machine's clock is ahead."""
        self.sample_s, self.lease_s = min(self.sample_s, now_s), min(self.lease_s, now_s)
        trusted = self.trusted(now_s)
        largest_w = max((gpu.default_w for gpu in self.gpus.values()), default=0)
        for gpu in self.gpus.values():
            # A GPU that cannot say what it may draw beside others that can draws as the largest of them.
            gpu.default_w = gpu.default_w if gpu.default_w > 0 else largest_w
            gpu.refresh(now_s, trusted=trusted, settle_s=settle_s)
