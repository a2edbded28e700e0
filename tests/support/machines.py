"""The protocol's world below the API server: GPUs, nodes that reboot, and agents around the core's real enforcer and guard."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from splitwatt_core.protocol.contract import NodePower, Status, Workload
from splitwatt_core.protocol.enforcer import Actions, Enforcer, GpuIdentity, Readback, Record
from splitwatt_core.protocol.node_guard import GuardInput, NodeGuard
from support.api_store import Store

DEFAULT_W, MIN_W = 700, 200
MODEL: Final = "X"
LAG_S: Final = 0.45
"""Draw follows a lowered cap within this time; budgets' settle times are longer."""


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
    """`present`: its Node object is there. `powered`: the machine is. `managed`: an agent runs on it, or could."""

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


class Agent:
    """One agent process after the other on one node. The disk (`record`) outlives them. With `guarded` the node guard runs
    in every tick, as in production."""

    def __init__(self, clock: Clock, store: Store, node: Node, *, guarded: bool = False) -> None:
        self.clock = clock
        self.store = store
        self.node = node
        self.guarded = guarded
        self.record = Record()
        self.hung: list[tuple[str, int]] = []
        self.hang_next = False
        self.statuses: list[Pending] = []
        self.read_at = 0
        self.start()
        self.alive = node.managed

    def start(self) -> None:
        identities = {u: GpuIdentity(u, MODEL, MIN_W * 1000, DEFAULT_W * 1000, DEFAULT_W * 1000) for u in self.node.gpus}
        self.enforcer = Enforcer(gpus=identities, record=self.record)
        self.guard = NodeGuard()
        self.seen = len(self.store.log)
        self.version: NodePower | None = None
        self.alive = self.node.managed
        self.synced = False

    def crash(self) -> None:
        self.alive = False
        self.hung.clear()

    def read(self) -> None:
        """A consistent read."""
        self.version = self.store.objects.get(self.node.name)
        self.enforcer.observe(self.version, consistent=True)
        self.seen = len(self.store.log)
        self.synced = True

    def watch(self, events: int = 1000) -> None:
        if not self.synced:
            return
        for name, obj, _uid in self.store.log[self.seen : self.seen + events]:
            self.seen += 1
            if name == self.node.name:
                self.version = obj
                self.enforcer.observe(obj, consistent=False)

    def readbacks(self) -> dict[str, Readback]:
        return {u: Readback(g.true_w * 1000, g.enforced_w * 1000, power_mw=g.draw_w * 1000) for u, g in self.node.gpus.items()}

    def tick(self, guard_w: Mapping[str, int] | None = None) -> Actions:
        """One round; `guard_w` stands in for the node guard's ceilings."""
        now_s = self.clock.now_s
        self.read_at = self.clock.count
        readbacks = self.readbacks()
        if guard_w is None and self.guarded:
            guard_w = self._guard(readbacks)
        actions = self.enforcer.tick(now_s, readbacks, guard_w=guard_w)
        if actions.persist is not None:
            self.record = actions.persist
            self.enforcer.persisted()
        for call in actions.set_caps:
            self.enforcer.setter_started(call.uuid, now_s)
            if self.hang_next:
                self.hang_next = False
                self.hung.append((call.uuid, call.cap_mw))
            else:
                self.set(call.uuid, call.cap_mw)
                self.enforcer.setter_finished(call.uuid, now_s, None)
        return actions

    def _guard(self, readbacks: Mapping[str, Readback]) -> Mapping[str, int]:
        spec = self.version.spec if self.version is not None else None
        return self.guard.step(
            self.clock.now_s,
            spec.node_limit_w if spec is not None else None,
            {
                uuid: GuardInput(
                    cap_w=self.enforcer.granted_cap_w(uuid),
                    min_w=MIN_W,
                    max_w=DEFAULT_W,
                    management_mw=back.management_mw,
                    enforced_mw=back.enforced_mw,
                    power_mw=back.power_mw,
                )
                for uuid, back in readbacks.items()
            },
        )

    def set(self, uuid: str, cap_mw: int) -> None:
        gpu = self.node.gpus[uuid]
        if not gpu.lies:
            gpu.set_limit(cap_mw // 1000, self.clock.now_s)

    def complete(self, index: int = 0) -> None:
        """A hung setter call completes after all."""
        if self.hung:
            uuid, cap_mw = self.hung.pop(index % len(self.hung))
            self.set(uuid, cap_mw)
            self.enforcer.setter_finished(uuid, self.clock.now_s, None)

    def send_status(self) -> None:
        """Put a status on its way, on the version the agent knows."""
        if self.version is None or not self.enforcer.observed_uid:
            return
        status = Status(
            observed_uid=self.enforcer.observed_uid,
            observed_term=self.enforcer.observed_term,
            boot_id=self.node.boot_id,
            gpus=self.enforcer.status(self.node.workloads),
        )
        if status != self.version.status:
            self.statuses.append(Pending(self.version.uid, self.version.resource_version, status, self.read_at))

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
            self.tick()
        self.send_status()
        while self.statuses:
            self.deliver_status()
        self.watch()
