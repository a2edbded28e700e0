"""What every GPU is charged: the operator's half of the protocol (docs/protocol.md, R4-R8, invariants I2 and I3).

Theory. The operator never knows a GPU's true power limit; it knows what it allowed and what was read back. The charge is
an upper bound of the truth that survives lost writes, late writes, restarts and lies:

    charge = max(reported management limit, but no less than the legal minimum,
                 cap of every grant >= the acknowledged one,
                 carry of every grant >  the acknowledged one)          and, without trust, the default limit

A grant's *carry* is the charge at the moment it was made, persisted beside it as `chargeWatts`: so a successor that sees
only the newest grant still counts what an overwritten one may do (R4). An acknowledgement of g retires only the grants
below g (R5). A charge falls `settle_s` after the readback that allowed it to, for draw lags its cap (I2). Trust needs a
status of this object, this boot and a grant of at least 1 (R7).

Protected: charge >= true limit, always, except after a surprise that nobody could have seen.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from splitwatt_core.protocol.contract import NO_GRANT, GpuStatus, Grant, Health, NodePower, Workload

AGENT_METRICS_SILENT_S: Final = 5.0
"""Where agents are scraped once a second; an operator whose Prometheus is slower is told so."""
AGENT_STATUS_SILENT_S: Final = 90.0
NODE_LEASE_FRESH_S: Final = 40.0
"""The kubelet renews every 10 s and Kubernetes itself gives a node 40 s."""
UNPROVEN_GRACE_S: Final = 30.0
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
    workload: Workload | None = None
    row: Grant | None = None
    """The newest line written for it (sent or seen), whatever became of it."""
    open: list[OpenGrant] = field(default_factory=list)
    settling: list[tuple[float, int]] = field(default_factory=list)
    charge_w: int = 0
    raw_w: int = 0
    unacked_since_s: float | None = None
    listed_in: tuple[str, str] = ("", "")
    """Boot and object uid of the last inventory that had it."""

    def bound_w(self, *, trusted: bool) -> int:
        """The formula above, before settling."""
        # No driver keeps a limit below the legal minimum, whatever it reports: what can be granted at least is counted.
        bound = max(self.min_w, self.reported_w) if self.reported_w is not None else self.default_w
        for g in self.open:
            if g.grant >= self.acked:
                bound = max(bound, g.cap_w)
            if g.grant > self.acked:
                bound = max(bound, g.carry_w)
        return bound if trusted and self.acked > NO_GRANT else max(bound, self.default_w)

    def refresh(self, now_s: float, *, trusted: bool, settle_s: float) -> None:
        """Recompute the charge: rises at once, falls `settle_s` after the bound did."""
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
    sample_problem: str = ""
    """Why what Prometheus has of it cannot be used, "" while it can."""
    agent_silent_s: float = AGENT_METRICS_SILENT_S
    """A sample older than this shows no life."""
    status_s: float = float("-inf")
    lease_s: float = float("-inf")
    unproven_since_s: float | None = None
    removed: set[str] = field(default_factory=set)
    """GPUs that are gone for good: lines that an old spec still has for them count nothing."""

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
        self._take_status(seen)
        self._take_spec(seen)
        return True

    def see_boot(self, boot_id: str) -> bool:
        """The Node is present with this boot; True when it is another one than before. A status may have told of the new
        boot before the Node did, so it is judged again."""
        changed = boot_id != self.boot_id
        rebooted = changed and self.present
        self.present, self.boot_id = True, boot_id
        if changed and self.object is not None:
            self._take_status(self.object)
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

    def _take_status(self, seen: NodePower) -> None:
        status = seen.status
        valid = status.observed_uid == seen.uid and (not self.boot_id or status.boot_id == self.boot_id)
        listed = {row.uuid for row in status.gpus}
        here = (status.boot_id, seen.uid)
        self.removed -= listed
        for row in status.gpus:
            account = self.gpus.get(row.uuid)
            if account is None:
                account = self.gpus[row.uuid] = GpuAccount(row.uuid, row.default_w, row.min_w, row.max_w)
            if valid:
                account.listed_in = here
            self._take_row(account, row, valid=valid)
        for uuid, account in list(self.gpus.items()):
            if uuid in listed:
                continue
            account.acknowledge(NO_GRANT)
            if not (valid and listed):
                continue
            if account.listed_in == here:
                account.health = Health.LOST  # a GPU does not leave a running machine: it draws on, unseen
            else:
                del self.gpus[uuid]  # removed or replaced while the node was down, or released with its NodePower
                self.removed.add(uuid)

    @staticmethod
    def _take_row(account: GpuAccount, row: GpuStatus, *, valid: bool) -> None:
        if row.default_w > 0:
            account.default_w, account.min_w, account.max_w = row.default_w, row.min_w, row.max_w
        account.model = row.model or account.model
        account.health = row.health
        account.workload = row.workload
        if row.management_w is not None:
            # A void status may speak of another object or boot: then it may raise the bound, not lower it.
            account.reported_w = row.management_w if valid else max(row.management_w, account.reported_w or 0)
        account.acknowledge(row.acked_grant if valid else NO_GRANT)

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

    def sample_stale(self, now_s: float) -> bool:
        return now_s - self.sample_s > self.agent_silent_s

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
        if seen is None or self.foreign or seen.status.observed_uid != seen.uid:
            return False
        return not self.present or seen.status.boot_id == self.boot_id

    def refresh(self, now_s: float, *, settle_s: float) -> None:
        """Bring all charges up to date. A heartbeat from the future is one of now: another machine's clock is ahead."""
        self.sample_s, self.lease_s = min(self.sample_s, now_s), min(self.lease_s, now_s)
        trusted = self.trusted(now_s)
        for gpu in self.gpus.values():
            gpu.refresh(now_s, trusted=trusted, settle_s=settle_s)
