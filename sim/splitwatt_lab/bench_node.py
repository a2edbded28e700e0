"""One stand-in node of the benchmarks: an agent in memory, over GPUs whose limits stand at once.

It answers an operator as an agent does, by the core's own rules. It leaves out the driver, the record on disk, the watch
and the five samples a second, so that one process stands for a whole fleet; nothing measured on it is a figure of the agent.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Final

from splitwatt_core.conditions import Condition
from splitwatt_core.protocol.contract import GpuStatus, NodePower, Status
from splitwatt_core.protocol.enforcer import GpuIdentity, ObjectVerdict
from splitwatt_nvml_twin.handle import gpu_uuid
from splitwatt_nvml_twin.models import H100_SXM, GpuModel
from splitwatt_truth.agent import MemoryAgent

DRAW_PERIOD_S: Final = 120.0
DRAW_PHASES: Final = 16
"""GPUs swing between idle and full draw, in as many steps out of phase, so that meters move as a fleet's do."""


@dataclass(slots=True)
class StandInNode:
    """Not thread-safe. `limit_mw` is the truth about each GPU."""

    name: str
    boot_id: str
    gpus: int = 8
    model: GpuModel = H100_SXM
    limit_mw: dict[str, int] = field(init=False)
    _agent: MemoryAgent = field(init=False)

    def __post_init__(self) -> None:
        model = self.model
        identities = {
            uuid: GpuIdentity(uuid, model.name, model.min_limit_mw, model.max_limit_mw, model.default_limit_mw)
            for uuid in (gpu_uuid(self.name, index) for index in range(self.gpus))
        }
        self.limit_mw = dict.fromkeys(identities, model.default_limit_mw)
        self._agent = MemoryAgent(identities)
        self._agent.settle(0.0, self.limit_mw)

    @property
    def observed(self) -> NodePower | None:
        return self._agent.observed

    def see(self, seen: NodePower | None, now_s: float, *, consistent: bool) -> None:
        """Take in a version of the node's object, and set every limit that it asks for. `now_s`: a monotonic clock."""
        if self._agent.observe(seen, consistent=consistent) not in (ObjectVerdict.OLDER_VERSION, ObjectVerdict.UNSYNCED):
            self._agent.settle(now_s, self.limit_mw)

    def lines(self) -> tuple[GpuStatus, ...]:
        """What `status.gpus` should say now."""
        return self._agent.enforcer.status()

    def status(self, *, said_at: str = "") -> Status:
        """The whole status, of the size and with the conditions that an agent writes. `said_at`: RFC 3339; it makes a sign
        of life a new version even where nothing else changed."""
        enforcer = self._agent.enforcer
        granted = sum(enforcer.granted_cap_w(uuid) is not None for uuid in self.limit_mw)
        ready = f"{self.gpus} GPUs are read, {granted} grants of term {enforcer.observed_term} are in force."
        conditions = (
            Condition("Ready", True, "Enforcing", f"{ready} Said at {said_at}.", said_at),
            Condition("CapsEnforced", True, "ReadBack", f"All {granted} granted caps were read back.", said_at),
        )
        return self._agent.status(self.boot_id, {}, conditions)

    def draw_w(self, now_s: float) -> dict[str, float]:
        """Watts of each GPU: a demand that swings, held by its limit."""
        idle_w, full_w = self.model.idle_w, self.model.default_limit_mw / 1000
        start = sum(self.name.encode()) % DRAW_PHASES  # neighbours differ, every run is the same
        draws = {}
        for index, (uuid, limit_mw) in enumerate(self.limit_mw.items()):
            turn = now_s / DRAW_PERIOD_S + (start + index) / DRAW_PHASES
            wanted_w = idle_w + (full_w - idle_w) * (0.5 - 0.5 * math.cos(2 * math.pi * turn))
            draws[uuid] = min(wanted_w, limit_mw / 1000)
        return draws
