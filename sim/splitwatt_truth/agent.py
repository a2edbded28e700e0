"""A node's agent in memory: the core's own enforcer and guard, a disk that is durable at once, and no driver.

It stands where a real one does not fit: in virtual time, for hundreds of nodes on a small machine, in a search for broken
rules. Every rule about which grants are taken, which limits are set and what is acknowledged is the core's; whoever owns one
owns the GPUs, says what they read, and decides when calls return.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from splitwatt_core.conditions import Condition
from splitwatt_core.protocol.contract import Health, NodePower, Status, Use, Workload
from splitwatt_core.protocol.enforcer import Actions, Enforcer, GpuIdentity, LockClock, ObjectVerdict, Readback, SetCap
from splitwatt_core.protocol.node_guard import NodeGuard, guard_inputs
from splitwatt_core.protocol.record import Record

MAX_TURNS: Final = 8
"""Rounds of deciding and setting until nothing is left to do; three are enough unless the enforcer is broken."""


class MemoryAgent:
    """One process after the other on one node; `record`, its disk, outlives them. With `guarded` the node guard runs in
    every round, as in production."""

    def __init__(self, gpus: Mapping[str, GpuIdentity], *, guarded: bool = False) -> None:
        self._gpus = gpus
        self._guarded = guarded
        self.record = Record()
        self.start()

    def start(self) -> None:
        """A new process: it knows its disk, and has seen nothing yet."""
        self.enforcer = Enforcer(gpus=self._gpus, record=self.record)
        self.guard = NodeGuard()
        self.observed: NodePower | None = None
        """The version that its statuses speak of."""

    def observe(self, seen: NodePower | None, *, consistent: bool) -> ObjectVerdict:
        """Take in a version of its object; None: the object is absent."""
        verdict = self.enforcer.observe(seen, consistent=consistent)
        if verdict not in (ObjectVerdict.OLDER_VERSION, ObjectVerdict.UNSYNCED):
            self.observed = seen
        return verdict

    def tick(self, now_s: float, readbacks: Mapping[str, Readback], *, guard_w: Mapping[str, int] | None = None) -> Actions:
        """One round. The calls it asks for count as begun. `guard_w` stands in for the node guard's ceilings."""
        if guard_w is None and self._guarded:
            spec = None if self.observed is None else self.observed.spec
            node_limit_w = None if spec is None else spec.node_limit_w
            guard_w = self.guard.step(now_s, node_limit_w, guard_inputs(self.enforcer, self._gpus, readbacks))
        actions = self.enforcer.tick(now_s, readbacks, guard_w=guard_w)
        if actions.persist is not None:
            self.record = actions.persist
            self.enforcer.persisted()
        for call in actions.set_caps:
            self.enforcer.setter_started(call.uuid, now_s)
        return actions

    def look(self, now_s: float, readbacks: Mapping[str, Readback]) -> Actions:
        """All that there is to call now: raises come with the round after the record is durable."""
        set_caps: list[SetCap] = []
        clocks: list[LockClock] = []
        for _ in range(MAX_TURNS):
            actions = self.tick(now_s, readbacks)
            set_caps.extend(actions.set_caps)
            clocks.extend(actions.clocks)
            if actions.persist is None:
                return Actions(None, tuple(set_caps), tuple(clocks))
        raise RuntimeError(f"the enforcer still has a record to keep after {MAX_TURNS} rounds")

    def returned(self, calls: Sequence[SetCap], now_s: float, health: Health | None = None) -> None:
        """Calls have returned; `health` None: with success."""
        for call in calls:
            self.enforcer.setter_finished(call.uuid, now_s, health)

    def settle(self, now_s: float, limits_mw: dict[str, int]) -> None:
        """On GPUs whose limit stands at once: set what is asked for in `limits_mw`, and read it back, until nothing is left."""
        for _ in range(MAX_TURNS):
            actions = self.look(now_s, {uuid: Readback(limit_mw, limit_mw) for uuid, limit_mw in limits_mw.items()})
            if not actions.set_caps:
                return
            limits_mw.update((call.uuid, call.cap_mw) for call in actions.set_caps)
            self.returned(actions.set_caps, now_s)
        raise RuntimeError(f"the enforcer still asks for calls after {MAX_TURNS} rounds")

    def status(self, boot_id: str, workloads: Mapping[str, Workload], conditions: tuple[Condition, ...] = ()) -> Status:
        """As of the last round. Here a GPU without a workload is idle, for nothing else loads one."""
        enforcer = self.enforcer
        lines = tuple(
            replace(line, workload=workloads.get(line.uuid), use=Use.BUSY if line.uuid in workloads else Use.IDLE)
            for line in enforcer.status()
        )
        return Status(enforcer.observed_uid, enforcer.observed_term, boot_id, lines, conditions)
