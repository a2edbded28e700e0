"""The protocol's world below the API server: GPUs, nodes that reboot, and agents that may be late, hang and crash."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from splitwatt_core.gpus.profiles import PhaseProfile, Profile
from splitwatt_core.protocol.contract import NO_GRANT, Phase, Status, Workload
from splitwatt_core.protocol.enforcer import Actions, GpuIdentity, Readback, SetCap
from splitwatt_truth.agent import MemoryAgent
from support.api_store import ApiStore

DEFAULT_W, MIN_W = 700, 200
MODEL: Final = "X"
LAG_S: Final = 0.45
"""Draw follows a lowered cap within this time; budgets' settle times are longer."""
PROFILE: Final = Profile(
    name=MODEL,
    product_names=(),
    idle_w=80,
    min_cap_w=MIN_W,
    default_cap_w=DEFAULT_W,
    min_clock_mhz=200,
    max_clock_mhz=2000,
    phases=(
        PhaseProfile(Phase.PREFILL, natural_w=640, cliff_w=400, latency_points=((400, 1300), (640, 1000))),
        PhaseProfile(Phase.DECODE, natural_w=450, cliff_w=250, latency_points=((250, 1100), (450, 1000))),
    ),
)


@dataclass(slots=True)
class Clock:
    """`now_s` for everybody; `count` numbers the surprises, so that reports before and after one can be told apart."""

    now_s: float = 1000.0
    count: int = 0


@dataclass(slots=True)
class Gpu:
    """The hardware. `surprised`: a reset or reboot raised its limit behind everybody's back."""

    uuid: str
    true_w: int = DEFAULT_W
    surprised: bool = False
    surprised_at: int = 0
    lies: bool = False
    refuses: bool = False
    outside_w: int | None = None
    wants_w: int = 300
    was_w: int = 0
    was_until_s: float = float("-inf")

    @property
    def enforced_w(self) -> int:
        return self.true_w if self.outside_w is None else min(self.true_w, self.outside_w)

    def set_limit(self, limit_w: int, now_s: float) -> None:
        if limit_w < self.true_w and not self.surprised:
            self.was_w, self.was_until_s = self.may_draw_w(now_s), now_s + LAG_S
        self.true_w, self.surprised = limit_w, False

    def may_draw_w(self, now_s: float) -> int:
        """The limit, or the one before it while the draw still follows."""
        return max(self.true_w, self.was_w) if now_s < self.was_until_s else self.true_w

    @property
    def draw_w(self) -> int:
        return min(self.enforced_w, self.wants_w)


@dataclass(slots=True)
class Node:
    """`rack`: where it stands. `present`: its Node object is there. `powered`: the
    machine is. `managed`: an agent runs on it, or could."""

    name: str
    rack: str
    gpus: dict[str, Gpu]
    boot: int = 0
    present: bool = True
    powered: bool = True
    managed: bool = True
    workloads: dict[str, Workload] = field(default_factory=dict)
    reports: list[tuple[int, int]] = field(default_factory=list)
    """(version of the object, world's count when its status was read from the hardware)."""

    @property
    def boot_id(self) -> str:
        return f"{self.name}-boot-{self.boot}"

    @property
    def true_w(self) -> int:
        return sum(gpu.true_w for gpu in self.gpus.values())


@dataclass(slots=True)
class Pending:
    """A status on its way, tied to the version it was written on."""

    uid: str
    version: int
    status: Status
    read_at: int


class Agent(MemoryAgent):
    """One agent process after the other on one node, whose watch, setter calls and statuses may be late, hang and get lost."""

    def __init__(self, clock: Clock, store: ApiStore, node: Node, *, guarded: bool = False) -> None:
        self.clock = clock
        self.store = store
        self.node = node
        self.hung: list[tuple[int, SetCap]] = []
        self.life = 0
        self.hang_next = False
        self.statuses: list[Pending] = []
        self.read_at = 0
        self.told: dict[str, tuple[str, str, int]] = {}
        """By GPU: of which object, boot and surprise its last word of an acknowledgement was (T4)."""
        identities = {u: GpuIdentity(u, MODEL, MIN_W * 1000, DEFAULT_W * 1000, DEFAULT_W * 1000) for u in node.gpus}
        super().__init__(identities, guarded=guarded)

    def start(self) -> None:
        """A new process, once the calls of the one before have ended: they hold the node's lock (R13)."""
        if self.hung:
            return
        self.life += 1
        super().start()
        self.seen, self.kinds = len(self.store.log), self.store.kinds
        self.alive = self.node.managed
        self.synced = self.turned = False

    def crash(self) -> None:
        """The process ends; a call that hangs in the driver does not."""
        self.alive = False

    def lose_power(self) -> None:
        self.alive = False
        self.hung.clear()

    def read(self) -> None:
        """A consistent read."""
        self.observe(self.store.objects.get(self.node.name), consistent=True)
        self.seen, self.kinds = len(self.store.log), self.store.kinds
        self.synced = True

    @property
    def behind(self) -> bool:
        """Whether its watch has something to tell."""
        return self.synced and (self.kinds != self.store.kinds or self.seen < len(self.store.log))

    def watch(self, events: int = 1000) -> None:
        if not self.synced:
            return
        if self.kinds != self.store.kinds:
            self.read()  # its watch ended with the kind
        for name, obj, _uid in self.store.log[self.seen : self.seen + events]:
            self.seen += 1
            if name == self.node.name:
                self.observe(obj, consistent=False)

    def readbacks(self) -> dict[str, Readback]:
        return {u: Readback(g.true_w * 1000, g.enforced_w * 1000, power_mw=g.draw_w * 1000) for u, g in self.node.gpus.items()}

    def turn(self, guard_w: Mapping[str, int] | None = None) -> Actions:
        """One round, with what becomes of its calls."""
        now_s = self.clock.now_s
        self.read_at = self.clock.count
        self.turned = self.synced
        actions = self.tick(now_s, self.readbacks(), guard_w=guard_w)
        for call in actions.set_caps:
            if self.hang_next:
                self.hang_next = False
                self.hung.append((self.life, call))
            else:
                self._finish(call, self.life)
        return actions

    def die_in_turn(self, *, durable: bool, called: bool) -> None:
        """A round that the process does not live to see the end of. `durable`: its record was; `called`: its setters were,
        which beside a record that is not durable may only lower."""
        before = self.record
        actions = self.tick(self.clock.now_s, self.readbacks())
        if not durable:
            self.record = before
        if called:
            for call in actions.set_caps:
                self._set(call)
        self.crash()

    def _finish(self, call: SetCap, life: int) -> None:
        self._set(call)
        if self.alive and life == self.life:
            self.returned((call,), self.clock.now_s)

    def _set(self, call: SetCap) -> None:
        gpu = self.node.gpus[call.uuid]
        if not gpu.lies:
            gpu.set_limit(call.cap_mw // 1000, self.clock.now_s)

    def complete(self, index: int = 0) -> None:
        """A hung setter call completes after all."""
        if self.hung:
            life, call = self.hung.pop(index % len(self.hung))
            self._finish(call, life)

    def send_status(self) -> bool:
        """Put a status on its way, on the version the agent knows and after a look at the hardware; whether it says news."""
        if self.observed is None or not self.enforcer.observed_uid or not self.turned:
            return False
        status = self.status(self.node.boot_id, self.node.workloads)
        self._remember(status)
        if status == self.observed.status:
            return False
        self.statuses.append(Pending(self.observed.uid, self.observed.resource_version, status, self.read_at))
        return True

    def _remember(self, status: Status) -> None:
        """T4: without a reset, a reboot or a new object no status says that nothing is acknowledged."""
        for row in status.gpus:
            if row.uuid not in self.node.gpus:
                continue  # forged: it is another node's
            surprised_at = self.node.gpus[row.uuid].surprised_at
            if surprised_at > self.read_at:
                continue  # it speaks of the time before
            here = (status.observed_uid, status.boot_id, surprised_at)
            if row.acked_grant > NO_GRANT:
                self.told[row.uuid] = here
            else:
                assert self.told.get(row.uuid) != here, f"{row.uuid}: its status says that nothing is acknowledged any more"

    def deliver_status(self, index: int = 0) -> bool:
        if not self.statuses:
            return False
        p = self.statuses.pop(index % len(self.statuses))
        written = self.store.write_status(self.node.name, p.uid, p.version, p.status)
        if written is not None:
            self.node.reports.append((written.resource_version, p.read_at))
        return written is not None

    def run(self) -> None:
        """One healthy round: read, set, read back, report."""
        if not self.alive:
            return
        if not self.synced:
            self.read()
        self.watch()
        for _ in range(3):
            self.turn()
        self.send_status()
        while self.statuses:
            self.deliver_status()
        self.watch()
