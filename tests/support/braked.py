"""One GPU whose agent is braked: an operator's numbers, a channel that delays and reorders, an agent that dies and comes back.

The truth that is kept here is asked of nobody: which brake must hold is computed from what arrived (docs/protocol.md, R25-R30).
"""

from __future__ import annotations

from splitwatt_core.protocol.brake import BrakeOrder, Depth
from splitwatt_core.protocol.contract import Grant, NodePower, Spec
from splitwatt_core.protocol.enforcer import Enforcer, GpuIdentity, Readback
from splitwatt_core.protocol.record import Record

GPU = GpuIdentity("g0", "H100", min_mw=100_000, max_mw=700_000, default_mw=700_000)
MIN_W, DEFAULT_W = 100, 700


class BrakedNode:
    """The process may die at any moment; the disk keeps what was written."""

    def __init__(self) -> None:
        self.limit_mw = GPU.default_mw
        self.clock_mhz: int | None = None
        self.record = Record()
        self.uid, self.version, self.now_s = "u1", 0, 0.0
        self.line: Grant | None = None
        self.log: list[str] = []
        """What was done, in order: set, write."""
        self.start(reads=True)

    def start(self, *, reads: bool) -> None:
        """A new process; `reads`: the API server answers it."""
        self.enforcer = Enforcer(gpus={"g0": GPU}, record=self.record)
        if reads:
            self.read()

    def grant(self, number: int, cap_w: int, *, safe_cap_w: int | None = None, max_clock_mhz: int | None = None) -> None:
        """It lands in the object and is read."""
        safe_w = cap_w if safe_cap_w is None else safe_cap_w
        self.line = Grant("g0", number, cap_w=cap_w, safe_cap_w=safe_w, charge_w=cap_w, max_clock_mhz=max_clock_mhz)
        self.read()

    def read(self) -> None:
        self.version += 1
        spec = None if self.line is None else Spec(1, self.uid, gpus=(self.line,))
        self.enforcer.observe(NodePower("n1", self.uid, self.version, spec), consistent=True)

    def brake(self, number: int, to: Depth = Depth.SAFE, *, max_clock_mhz: int | None = None) -> None:
        self.enforcer.brake(BrakeOrder(number, to, max_clock_mhz))

    def tick(self, *, disk: bool = True, dies: bool = False) -> None:
        """One round, in the order that `Actions` asks for. `dies`: after what comes first."""
        self.now_s += 2.0
        actions = self.enforcer.tick(self.now_s, {"g0": Readback(self.limit_mw, self.limit_mw)})
        calls = [lambda: self._perform(actions.set_caps), lambda: self._clock(actions.clocks)]
        writes = [] if actions.persist is None or not disk else [lambda: self._write(actions.persist)]
        for step in [*calls, *writes] if actions.braking else [*writes, *calls]:
            step()
            if dies:
                return

    def run(self) -> None:
        for _ in range(4):
            self.tick()

    @property
    def limit_w(self) -> int:
        return self.limit_mw // 1000

    @property
    def acked(self) -> int:
        return self.enforcer.status()[0].acked_grant

    def _write(self, record: Record | None) -> None:
        assert record is not None
        self.record = record
        self.enforcer.persisted()
        self.log.append("write")

    def _perform(self, calls: object) -> None:
        for call in calls:  # type: ignore[attr-defined]
            self.enforcer.setter_started("g0", self.now_s)
            self.limit_mw = call.cap_mw
            self.enforcer.setter_finished("g0", self.now_s, None)
            self.log.append("set")

    def _clock(self, locks: object) -> None:
        for lock in locks:  # type: ignore[attr-defined]
            self.clock_mhz = lock.max_mhz
