"""One stand-in node of the benchmarks: the core's real `Enforcer` over GPUs that live in memory.

What it keeps of a real agent: every rule about which grants are taken, which limits are set and what is acknowledged, for
that is the core's code. What it leaves out: the driver (a limit that is set stands at once), the record on disk, the watch
and the five samples a second. So it answers an operator as an agent does, at a cost that lets one process stand for a
whole fleet; nothing measured on it is a figure of the agent.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Final

from splitwatt_core.conditions import Condition
from splitwatt_core.protocol.contract import GpuStatus, NodePower, Status
from splitwatt_core.protocol.enforcer import Enforcer, GpuIdentity, Readback, Record, Verdict
from splitwatt_nvml_twin.handle import gpu_uuid
from splitwatt_nvml_twin.models import H100_SXM, GpuModel

MAX_TURNS: Final = 8
"""Rounds of deciding and setting until nothing is left to do; two are enough unless the enforcer is broken."""
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
    observed: NodePower | None = None
    limit_mw: dict[str, int] = field(init=False)
    _enforcer: Enforcer = field(init=False)
    _identities: dict[str, GpuIdentity] = field(init=False)

    def __post_init__(self) -> None:
        model = self.model
        self._identities = {
            uuid: GpuIdentity(uuid, model.name, model.min_limit_mw, model.max_limit_mw, model.default_limit_mw)
            for uuid in (gpu_uuid(self.name, index) for index in range(self.gpus))
        }
        self.limit_mw = dict.fromkeys(self._identities, model.default_limit_mw)
        self._enforcer = Enforcer(gpus=self._identities, record=Record())
        self._settle(0.0)

    def see(self, seen: NodePower | None, now_s: float, *, consistent: bool) -> None:
        """Take in a version of the node's object, and set every limit that it asks for. `now_s`: a monotonic clock."""
        verdict = self._enforcer.observe(seen, consistent=consistent)
        if verdict in (Verdict.OLDER_VERSION, Verdict.UNSYNCED):
            return
        self.observed = seen
        self._settle(now_s)

    def _settle(self, now_s: float) -> None:
        for _ in range(MAX_TURNS):
            readbacks = {uuid: Readback(limit_mw, limit_mw) for uuid, limit_mw in self.limit_mw.items()}
            actions = self._enforcer.tick(now_s, readbacks)
            if actions.persist is not None:
                self._enforcer.persisted()
            for call in actions.set_caps:
                self._enforcer.setter_started(call.uuid, now_s)
                self.limit_mw[call.uuid] = call.cap_mw
                self._enforcer.setter_finished(call.uuid, now_s, None)
            if actions.persist is None and not actions.set_caps:
                return
        raise RuntimeError(f"the enforcer of {self.name} still asks for calls after {MAX_TURNS} rounds")

    def lines(self) -> tuple[GpuStatus, ...]:
        """What `status.gpus` should say now."""
        return self._enforcer.status({})

    def status(self, *, said_at: str = "") -> Status:
        """The whole status, of the size and with the conditions that an agent writes. `said_at`: RFC 3339; it makes a sign
        of life a new version even where nothing else changed."""
        lines = self.lines()
        granted = sum(self._enforcer.granted_cap_w(uuid) is not None for uuid in self._identities)
        ready = f"{len(lines)} GPUs are read, {granted} grants of term {self._enforcer.observed_term} are in force."
        return Status(
            observed_uid=self._enforcer.observed_uid,
            observed_term=self._enforcer.observed_term,
            boot_id=self.boot_id,
            gpus=lines,
            conditions=(
                Condition("Ready", True, "Enforcing", f"{ready} Said at {said_at}.", said_at),
                Condition("CapsEnforced", True, "ReadBack", f"All {granted} granted caps were read back.", said_at),
            ),
        )

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
