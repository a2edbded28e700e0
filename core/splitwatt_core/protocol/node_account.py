"""What is known of one node, and whether its agent is believed (docs/protocol.md, R3, R6-R8, invariant I3).

An account takes in versions of the node's NodePower, its Node, its agent's samples and its Lease, and keeps the account of each
of its GPUs (`ledger`). Acknowledgements count while the status is of this object and this boot, the object carries our term or
no other since, and the agent or the kubelet showed life lately.

Protected: nothing is believed of an older version, another object or another boot; a GPU that leaves the list of a running
machine draws on, unseen, and stays charged.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Final

from splitwatt_core.protocol.contract import NO_GRANT, UNREADABLE_PREFIX, Health, NodePower, Use
from splitwatt_core.protocol.contradictions import highest_granted
from splitwatt_core.protocol.ledger import GpuAccount
from splitwatt_core.protocol.terms import NO_WORD, TermWord

AGENT_METRICS_SILENT_S: Final = 5.0
"""Where agents are scraped once a second; an operator whose Prometheus is slower is told so."""
AGENT_STATUS_SILENT_S: Final = 90.0
NODE_LEASE_FRESH_S: Final = 40.0
"""The kubelet renews every 10 s and Kubernetes itself gives a node 40 s."""
UNPROVEN_GRACE_S: Final = 30.0


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
    term_word: TermWord = NO_WORD
    term_oddity: str = ""
    """What it says of terms and cannot be believed, as the end of a sentence; "" while nothing is."""
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
    sample_own: bool = False
    """The agent told the sample itself."""
    agent_silent_s: float = AGENT_METRICS_SILENT_S
    """A sample older than this shows no life."""
    status_s: float = float("-inf")
    lease_s: float = float("-inf")
    unproven_since_s: float | None = None
    refreshed_s: float = float("-inf")
    excluded: bool = False
    """A person keeps it out: it is charged as if nothing held, and nothing is granted to it."""
    released: bool = False
    """A person wants its GPUs back at their default limits."""
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
        told_anew = before is None or before.uid != seen.uid or before.status != seen.status
        if told_anew:
            self.status_s = now_s
        valid = self._take_status(seen)
        if told_anew:
            self.term_word = self.term_word.said(seen.status.observed_term, now_s, ours=term)
        self.term_word = self.term_word.stamped(seen.spec.term if seen.spec is not None else 0, ours=term)
        self.term_oddity = self.term_word.oddity(ours=term)
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
        self.term_word, self.term_oddity = NO_WORD, ""
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

    def see_sample(self, power_w: float, sampled_s: float, *, gpus: int | None = None, own: bool = False) -> None:
        """Its agent's own readings, `own` where it told them itself. The same sample told again is no younger, however far its
        clock is ahead."""
        if sampled_s != self.sample_told_s:
            if sampled_s < self.sample_s:
                return
            self.sample_s = self.sample_told_s = sampled_s
        self.sample_w, self.sample_gpus, self.sample_problem, self.sample_own = power_w, gpus, "", own

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
        """Bring all charges up to date. A heartbeat from the future is one of now: another machine's clock is ahead, or ours was
        set back."""
        self.sample_s, self.lease_s = min(self.sample_s, now_s), min(self.lease_s, now_s)
        self.status_s = min(self.status_s, now_s)
        if self.unproven_since_s is not None:
            self.unproven_since_s = min(self.unproven_since_s, now_s)
        if now_s < self.refreshed_s:
            for gpu in self.gpus.values():
                gpu.set_back(self.refreshed_s - now_s, now_s)
        self.refreshed_s = now_s
        trusted = self.trusted(now_s)
        largest_w = max((gpu.default_w for gpu in self.gpus.values()), default=0)
        for gpu in self.gpus.values():
            # A GPU that cannot say what it may draw beside others that can draws as the largest of them.
            gpu.default_w = gpu.default_w if gpu.default_w > 0 else largest_w
            gpu.refresh(now_s, trusted=trusted, settle_s=settle_s)
