"""The agent's half of the protocol: which caps to set, and what may be acknowledged (docs/protocol.md, R10-R15 and R36).

One `Enforcer` per node, fed by the agent's loop: versions of the node's own NodePower, readbacks of every GPU, and the
begin and end of every setter call. It answers with setter calls to make and with the status lines to report.

What it protects: an acknowledgement of grant g means that g was applied, that no setter call of that GPU is outstanding
(a hung one may still complete), and that the management limit *and* the enforced limit were read back at or below g's
cap. Nothing here ever raises a cap because something is missing: without a readable object the caps are held (R15), and
what was persisted may only lower (R11).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from splitwatt_core.protocol.brake import Brake, BrakeOrder, BrakesInForce, arrived, lower
from splitwatt_core.protocol.contest import Contest, ContestWatch
from splitwatt_core.protocol.contract import NO_GRANT, GpuStatus, Grant, Health, NodePower
from splitwatt_core.protocol.milliwatts import MW_PER_W, watts_up
from splitwatt_core.protocol.record import Record, Taken

RETRY_S: Final = 1.0
"""Wait between two setter calls that should have had the same effect."""
HUNG_S: Final = 2.0
"""A setter call that has not returned for this long is called hung; a lower cap is then set beside it."""
MAX_OUTSTANDING: Final = 4
"""Setter calls of one GPU that may hang at once; beyond it we only wait."""


@dataclass(frozen=True, slots=True)
class GpuIdentity:
    """What never changes while the driver is loaded. Milliwatts, as NVML gives them. Not `cappable`: the part has no power
    management, and all three are the most that it may draw."""

    uuid: str
    model: str
    min_mw: int
    max_mw: int
    default_mw: int
    cappable: bool = True


@dataclass(frozen=True, slots=True)
class Readback:
    """One GPU read at one moment. None: the call failed; `health` then says how."""

    management_mw: int | None
    enforced_mw: int | None
    health: Health = Health.OK
    power_mw: int | None = None


@dataclass(frozen=True, slots=True)
class SetCap:
    """Call nvmlDeviceSetPowerManagementLimit(cap_mw) on this GPU, in its own thread: it may hang."""

    uuid: str
    cap_mw: int


@dataclass(frozen=True, slots=True)
class LockClock:
    """Lock SM clocks to at most `max_mhz`; None resets the lock."""

    uuid: str
    max_mhz: int | None


@dataclass(frozen=True, slots=True)
class Actions:
    """First make `persist` durable (when not None) and say so by `Enforcer.persisted`, then make the calls. Calls beside a
    record only lower: they are right even where the disk refuses. Raises come with the next tick after `persisted`, so
    tick again at once."""

    persist: Record | None = None
    set_caps: tuple[SetCap, ...] = ()
    clocks: tuple[LockClock, ...] = ()
    braking: bool = False
    """A brake is among them: make the calls before the record is durable (R28)."""


class ObjectVerdict(StrEnum):
    """What became of an observed object; all but ACCEPTED leave every cap as it is."""

    ACCEPTED = "Accepted"
    ABSENT = "Absent"
    UNSYNCED = "Unsynced"
    OLDER_VERSION = "OlderVersion"
    WRONG_UID = "WrongUID"
    LOWER_TERM = "LowerTerm"
    NO_SPEC = "NoSpec"


NEVER_CALLED: Final = (NO_GRANT, 0)
NOTHING_TOLD: Final = -1
"""In place of a clock lock: this life of the agent has asked the driver for none yet."""


@dataclass(slots=True)
class _Gpu:
    identity: GpuIdentity
    target: Grant | None = None
    set_ok: int = NO_GRANT
    """The grant for which a setter call last reported success."""
    acked: int = NO_GRANT
    starts: list[float] = field(default_factory=list)
    """When the calls began that have not returned, oldest first. One that returns is taken for the newest: hung calls are
    old, and calling one hung too early only lets a lower cap be set beside it."""
    inherited: int = 0
    """How many of these were begun before this enforcer asked for any: an earlier driver load's, perhaps a raise."""
    started_s: float = float("-inf")
    called: tuple[int, int] = NEVER_CALLED
    """Grant and milliwatts of the last setter call."""
    explained_mw: int = 0
    """The highest limit that the acknowledged grant, or a call of ours for a newer one, may have left."""
    setter_health: Health | None = None
    ineffective: bool = False
    recorded: int = NO_GRANT
    """The newest grant that an earlier life of the agent took in."""
    former: Taken | None = None
    """What that life left behind, until it is judged by a readback what of it is still acknowledged (R36)."""
    newer_cap_w: int = 0
    """The highest cap taken in by this life before that."""
    clock_mhz: int | None = NOTHING_TOLD
    """The lock last asked of the driver; None: none."""
    readback: Readback = field(default_factory=lambda: Readback(None, None, Health.UNKNOWN))
    hung: bool = False
    contest: ContestWatch = field(default_factory=ContestWatch)


def _tells_of_clocks(first: Grant, recorded: int) -> bool:
    """Whether the first grant after a start of the agent needs a call. The driver may still keep a lock that was taken away
    while no agent ran, or whose reset never came through; where nothing was ever granted, clocks are left alone."""
    return first.max_clock_mhz is not None or recorded != NO_GRANT


class Enforcer:
    """See the module's docstring. Methods are called from one thread; `now_s` is the agent's monotonic clock."""

    def __init__(self, *, gpus: Mapping[str, GpuIdentity], record: Record) -> None:
        self._gpus = {uuid: _Gpu(identity) for uuid, identity in gpus.items()}
        for uuid, taken in record.grants.items():
            if uuid in self._gpus:
                self._gpus[uuid].recorded, self._gpus[uuid].former = taken.grant, taken
        self._term = record.term
        self._high: dict[str, Taken] = dict(record.grants)
        self._dirty = False
        self._only_lower = False
        self._synced = False
        self._held = True
        self._uid = ""
        self._version = 0
        self._observed_term = 0
        self._unknown: tuple[str, ...] = ()
        self._brakes = BrakesInForce(record.brakes)

    # ------------------------------------------------------------------------------------------------ what it is told

    def observe(self, node_power: NodePower | None, *, consistent: bool) -> ObjectVerdict:
        """Take in a version of the object. `consistent` says it came from a quorum read, not from a cache or a watch;
        after a start nothing counts before the first consistent one (R11). None: the object is absent (R15)."""
        if not self._synced and not consistent:
            return ObjectVerdict.UNSYNCED
        self._synced = True
        if node_power is None:
            self._held = True
            return ObjectVerdict.ABSENT
        if node_power.resource_version < self._version:
            return ObjectVerdict.OLDER_VERSION
        self._version = node_power.resource_version
        if node_power.uid != self._uid:
            self._uid = node_power.uid
            self._observed_term = 0
            for gpu in self._gpus.values():
                gpu.set_ok = NO_GRANT
                if gpu.former is None or gpu.former.uid != self._uid:
                    gpu.former = None
                    self._acked(gpu, NO_GRANT, 0)
        self._held = True
        spec = node_power.spec
        if spec is None:
            return ObjectVerdict.NO_SPEC
        if spec.for_uid != node_power.uid:
            return ObjectVerdict.WRONG_UID
        if spec.term < self._term:
            self._observed_term = self._term  # so that the operator learns which term it has to exceed (R2)
            for gpu in self._gpus.values():
                gpu.former = None  # the store went back: what was acknowledged is none of its history
            return ObjectVerdict.LOWER_TERM
        self._held = False
        self._observed_term = spec.term
        if spec.term > self._term:
            self._term, self._dirty = spec.term, True
        self._unknown = tuple(row.uuid for row in spec.gpus if row.uuid not in self._gpus)
        named = {row.uuid: row for row in spec.gpus}
        for uuid, gpu in self._gpus.items():
            row = named.get(uuid)
            if row is None:
                gpu.target = None
                continue
            high = self._high.get(uuid, Taken())
            if row.grant < high.grant:
                gpu.former = None  # as above
                continue  # R12: lower than something already taken in
            if (row.grant == high.grant and row.cap_w != high.cap_w) or row.grant <= NO_GRANT:
                continue  # a number that was used before, for another cap, or none
            if row.grant > high.grant:
                if gpu.former is not None and high.acked_grant == NO_GRANT:
                    high = high.acknowledged(high.grant, high.cap_w)  # not judged yet: the next life may still read it back
                self._high[uuid] = high.followed_by(row, uid=self._uid)
                gpu.newer_cap_w = max(gpu.newer_cap_w, row.cap_w)
                self._dirty = True
                self._brakes.lift(uuid, by=row.grant)
            gpu.target = row
        return ObjectVerdict.ACCEPTED

    def brake(self, order: BrakeOrder) -> tuple[str, ...]:
        """Take in a brake (R25-R28): tick at once. Answers with the GPUs that it holds from now on, or held already; the others
        were granted something since it was decided, or are not known here."""
        held = []
        for uuid, gpu in self._gpus.items():
            high = self._high.get(uuid)
            if not order.names(uuid) or (high is not None and high.grant > order.grant):
                continue
            safe_w = None if high is None else min(high.safe_cap_w, high.cap_w)
            came = arrived(order, safe_w=safe_w, min_w=watts_up(gpu.identity.min_mw))
            self._dirty |= self._brakes.take(uuid, came)
            held.append(uuid)
        return tuple(held)

    def persisted(self) -> None:
        """The record of the last `Actions.persist` is durable."""
        self._dirty = False
        self._brakes.durable()

    def obeys(self, uuid: str) -> bool:
        """Whether a brake of this GPU is durable, and both limits were read back at or below it. True where none holds it."""
        gpu = self._gpus[uuid]
        limits = (gpu.readback.management_mw, gpu.readback.enforced_mw)
        return self._brakes.obeyed(uuid, limits, min_mw=gpu.identity.min_mw)

    @property
    def brakes(self) -> Mapping[str, Brake]:
        """Those in force that are durable, by GPU."""
        return self._brakes.told

    def setter_started(self, uuid: str, now_s: float) -> None:
        """Call before the NVML setter is entered."""
        gpu = self._gpus[uuid]
        gpu.starts.append(now_s)
        gpu.started_s = now_s
        if gpu.called == NEVER_CALLED:
            gpu.inherited += 1

    def setter_finished(self, uuid: str, now_s: float, error: Health | None) -> None:
        """Call when it returned; `error` None means it reported success, which proves nothing yet."""
        gpu = self._gpus[uuid]
        assert gpu.starts, f"{uuid}: a setter call ended that never began"
        gpu.starts.pop()
        gpu.inherited = min(gpu.inherited, len(gpu.starts))
        gpu.setter_health = error
        if error is None:
            gpu.set_ok = gpu.called[0]
        # What was read before or during the call says nothing about the time after it.
        gpu.readback = Readback(None, None, gpu.readback.health, gpu.readback.power_mw)

    # ---------------------------------------------------------------------------------------------------- what it says

    def tick(
        self,
        now_s: float,
        readbacks: Mapping[str, Readback],
        *,
        guard_w: Mapping[str, int] | None = None,
        only_lower: bool = False,
    ) -> Actions:
        """Decide this round's calls from the readbacks of all GPUs. A GPU that is missing from `readbacks` is unknown.

        Every readback must have begun after the last `setter_finished` of its GPU. `guard_w` holds the node guard's
        ceilings in watts; they only ever lower. `only_lower`: whoever calls has a reason of its own to raise nothing now.
        """
        self._only_lower = only_lower
        set_caps: list[SetCap] = []
        clocks: list[LockClock] = []
        for uuid, gpu in self._gpus.items():
            gpu.readback = readbacks.get(uuid, Readback(None, None, Health.UNKNOWN))
            gpu.hung = bool(gpu.starts) and now_s - gpu.starts[0] >= HUNG_S
            gpu.contest.see(now_s, gpu.readback.management_mw, calling=bool(gpu.starts))
            self._acknowledge(gpu)
            cap_mw = self._wanted_mw(uuid, gpu, None if guard_w is None else guard_w.get(uuid))
            if cap_mw is not None and self._may_call(gpu, cap_mw, now_s):
                gpu.called = (gpu.target.grant if gpu.target else NO_GRANT, cap_mw)
                gpu.contest.called(cap_mw)
                if gpu.called[0] > gpu.acked:
                    gpu.explained_mw = max(gpu.explained_mw, cap_mw)
                set_caps.append(SetCap(uuid, cap_mw))
            clocks += self._clocks(uuid, gpu)
        persist = Record(self._term, dict(self._high), dict(self._brakes.now)) if self._dirty else None
        return Actions(persist=persist, set_caps=tuple(set_caps), clocks=tuple(clocks), braking=self._brakes.ticked())

    def _clocks(self, uuid: str, gpu: _Gpu) -> tuple[LockClock, ...]:
        """The call that is due, if one is. Without a grant that counts only a brake asks for any."""
        braked_mhz = self._brakes.max_clock_mhz(uuid)
        granted = gpu.target if not self._held else None
        if granted is None:
            told_mhz = None if gpu.clock_mhz == NOTHING_TOLD else gpu.clock_mhz
            wanted_mhz = lower(told_mhz, braked_mhz)
            asks = braked_mhz is not None
        else:
            wanted_mhz = lower(granted.max_clock_mhz, braked_mhz)
            asks = braked_mhz is not None or gpu.clock_mhz != NOTHING_TOLD or _tells_of_clocks(granted, gpu.recorded)
        if (granted is None and not asks) or not self._may_clock(gpu, wanted_mhz):
            return ()
        gpu.clock_mhz = wanted_mhz
        return (LockClock(uuid, wanted_mhz),) if asks else ()

    def _may_clock(self, gpu: _Gpu, wanted_mhz: int | None) -> bool:
        """Whether the lock changes now. One that lets clocks rise waits for the record, as a raise of the cap does (R12)."""
        if wanted_mhz == gpu.clock_mhz:
            return False
        told_mhz = gpu.clock_mhz
        deepens = wanted_mhz is not None and (told_mhz in (None, NOTHING_TOLD) or wanted_mhz < told_mhz)
        return deepens or not (self._dirty or self._only_lower)

    def _wanted_mw(self, uuid: str, gpu: _Gpu, guard_w: int | None) -> int | None:
        """The limit this GPU should have, None to leave it alone."""
        now_mw = gpu.readback.management_mw
        if now_mw is None or not gpu.identity.cappable:
            return None
        recorded = self._high.get(uuid)
        cap_w = gpu.target.cap_w if gpu.target is not None else (recorded.cap_w if recorded else None)
        braked_w = self._brakes.cap_w(uuid)
        cap_w = lower(cap_w, braked_w)
        if cap_w is None:
            return None
        if guard_w is not None:
            cap_w = min(cap_w, guard_w)
        cap_mw = min(max(cap_w * MW_PER_W, gpu.identity.min_mw), gpu.identity.max_mw)
        if cap_mw == now_mw:
            # While braked a grant is acknowledged as ever (R29), and a call of ours is what may be acknowledged.
            owed = braked_w is not None and gpu.target is not None and not self._held and gpu.set_ok != gpu.target.grant
            return cap_mw if owed else None
        if cap_mw > now_mw and (gpu.target is None or self._held or self._dirty or self._only_lower):
            return None  # only a present, accepted and persisted grant may raise
        return cap_mw

    @staticmethod
    def _may_call(gpu: _Gpu, cap_mw: int, now_s: float) -> bool:
        lowers = gpu.readback.management_mw is not None and cap_mw < gpu.readback.management_mw
        if gpu.starts and not (lowers and gpu.hung and len(gpu.starts) < MAX_OUTSTANDING):
            return False
        repeats = gpu.called == (gpu.target.grant if gpu.target else NO_GRANT, cap_mw)
        gpu.ineffective = repeats and lowers
        return not repeats or now_s - gpu.started_s >= RETRY_S

    def _acknowledge(self, gpu: _Gpu) -> None:
        back = gpu.readback
        if back.management_mw is None or back.enforced_mw is None:
            return  # nothing new is known: what was acknowledged stands
        limit_mw = max(back.management_mw, back.enforced_mw)
        # Calls of this life only lower until then: it has no grant yet to raise by.
        if gpu.former is not None and self._uid and not gpu.inherited:
            acked, since_cap_w = gpu.former.still_acked(limit_mw)
            gpu.former = None
            self._acked(gpu, acked, max(since_cap_w, gpu.newer_cap_w))
            gpu.explained_mw = since_cap_w * MW_PER_W
        # Calls of ours for newer grants explain a limit up to their caps: the operator counts those grants as well, and what
        # was acknowledged before stands.
        if gpu.acked > NO_GRANT and limit_mw > gpu.explained_mw:
            self._acked(gpu, NO_GRANT, 0)  # a reset, or somebody else's setter: no longer true
        target = gpu.target
        if target is None or self._held or self._dirty or gpu.starts:
            return
        if limit_mw > target.cap_w * MW_PER_W:
            return
        gpu.ineffective = False
        # Below the cap without a call of ours would acknowledge a raise that is still to come (scene 1).
        if gpu.set_ok == target.grant or back.management_mw == min(target.cap_w * MW_PER_W, gpu.identity.max_mw):
            self._acked(gpu, target.grant, target.cap_w)
            gpu.explained_mw = target.cap_w * MW_PER_W
            gpu.setter_health = None  # the limit stands: a call that failed took effect all the same, or another hand set it

    def _acked(self, gpu: _Gpu, grant: int, since_cap_w: int) -> None:
        uuid = gpu.identity.uuid
        gpu.acked = grant
        if uuid in self._high:
            self._high[uuid] = self._high[uuid].acknowledged(grant, since_cap_w)

    def status(self) -> tuple[GpuStatus, ...]:
        """The lines for `status.gpus`, from the last tick's readbacks. Who uses a GPU is for the caller to add."""
        return tuple(
            GpuStatus(
                uuid=uuid,
                acked_grant=gpu.acked,
                management_w=None if gpu.readback.management_mw is None else watts_up(gpu.readback.management_mw),
                enforced_w=None if gpu.readback.enforced_mw is None else watts_up(gpu.readback.enforced_mw),
                min_w=watts_up(gpu.identity.min_mw),
                max_w=gpu.identity.max_mw // MW_PER_W,
                default_w=watts_up(gpu.identity.default_mw),
                model=gpu.identity.model,
                health=self.health(uuid),
                brake=self._brakes.told.get(uuid),
            )
            for uuid, gpu in self._gpus.items()
        )

    def health(self, uuid: str) -> Health:
        gpu = self._gpus[uuid]
        if gpu.readback.health is not Health.OK:
            return gpu.readback.health
        if not gpu.identity.cappable:
            return Health.NOT_SUPPORTED
        if gpu.hung:
            return Health.HUNG
        if gpu.setter_health is not None:
            return gpu.setter_health
        return Health.CAP_NOT_ENFORCED if gpu.ineffective else Health.OK

    @property
    def observed_uid(self) -> str:
        return self._uid

    @property
    def observed_term(self) -> int:
        return self._observed_term

    @property
    def contests(self) -> dict[str, Contest]:
        """GPUs whose limit somebody else sets again and again."""
        return {uuid: contest for uuid, gpu in self._gpus.items() if (contest := gpu.contest.contest) is not None}

    @property
    def unknown_gpus(self) -> tuple[str, ...]:
        """UUIDs that the spec grants to but this node does not have."""
        return self._unknown

    def granted_cap_w(self, uuid: str) -> int | None:
        """The cap of the newest accepted grant, None when there is none."""
        target = self._gpus[uuid].target
        return target.cap_w if target is not None else None

    def granted_phase(self, uuid: str) -> str | None:
        """`Prefill`, `Decode` or `Unassigned`, as the grant says; None when there is no grant."""
        target = self._gpus[uuid].target
        return target.phase.value if target is not None else None
