"""Simulated GPUs of one node: setter calls that take time, and draw that lags.

Theory. A grant that the agent reads becomes a setter call per GPU, all at once, each in its own thread as in the real agent;
`latency_s` later the management limit stands in the GPU and can be read back. What the GPU draws, and how fast it is,
follows its limit DRAW_LAG_S after that. The replica is as fast as its slowest GPU, so the server's cap is the least of them.

Protected: a cap counts only by readback (I6), for the enforcer sees nothing else; the lag is shorter than the time for which
the ledger keeps a lowered cap's charge (I2).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from splitwatt_core.gpus.phase_model import UNLOCKED_MHZ
from splitwatt_core.protocol.contract import Workload
from splitwatt_core.protocol.enforcer import Actions, GpuIdentity, Readback
from splitwatt_truth.agent import MemoryAgent

from splitwatt_sim.power.setup import Server
from splitwatt_sim.servers.kinds import GPUS

DRAW_LAG_S: Final = 0.4
"""A full cut is settled within half a second, as in the simulated NVML library; ledgers wait 0.5 s after the readback."""
NAMESPACE: Final = "simulated"


@dataclass(slots=True)
class SimulatedGpu:
    """`management_w` as the driver reports it; nothing else limits it, so it is enforced too. `clock_mhz` 0: no lock."""

    identity: GpuIdentity
    management_w: int
    clock_mhz: int = UNLOCKED_MHZ


@dataclass(slots=True)
class SimulatedNode:
    """See the module's docstring. GPUs come up with their default limit."""

    server: Server
    gpus: dict[str, SimulatedGpu] = field(default_factory=dict)

    def __post_init__(self) -> None:
        profile = self.server.profile
        low_mw, top_mw = profile.min_cap_w * 1000, profile.default_cap_w * 1000
        for i in range(GPUS):
            uuid = f"GPU-{self.server.name}-{i}"
            identity = GpuIdentity(uuid, profile.name, low_mw, top_mw, top_mw)
            self.gpus[uuid] = SimulatedGpu(identity, profile.default_cap_w)

    @property
    def boot_id(self) -> str:
        return f"{self.server.name}-boot"

    @property
    def management_w(self) -> int:
        """Of all its GPUs."""
        return sum(gpu.management_w for gpu in self.gpus.values())

    def cap(self) -> tuple[int, int]:
        """Watts per GPU and clock lock in MHz (0: none) that set the replica's pace."""
        locks = [gpu.clock_mhz for gpu in self.gpus.values() if gpu.clock_mhz != UNLOCKED_MHZ]
        return min(gpu.management_w for gpu in self.gpus.values()), min(locks, default=UNLOCKED_MHZ)

    def perform(self, calls: Actions) -> None:
        """The driver does what it was asked, within the GPU's range."""
        for call in calls.set_caps:
            gpu = self.gpus[call.uuid]
            assert gpu.identity.min_mw <= call.cap_mw <= gpu.identity.max_mw, "the enforcer asks within the legal range"
            gpu.management_w = call.cap_mw // 1000
        for lock in calls.clocks:
            self.gpus[lock.uuid].clock_mhz = lock.max_mhz or UNLOCKED_MHZ

    def agent(self) -> MemoryAgent:
        """A healthy one for these GPUs."""
        return MemoryAgent({uuid: gpu.identity for uuid, gpu in self.gpus.items()})

    @property
    def workloads(self) -> dict[str, Workload]:
        """One replica on all GPUs, under the server's name."""
        return dict.fromkeys(self.gpus, Workload(NAMESPACE, self.server.name))

    def readbacks(self) -> dict[str, Readback]:
        return {u: Readback(gpu.management_w * 1000, gpu.management_w * 1000) for u, gpu in self.gpus.items()}
