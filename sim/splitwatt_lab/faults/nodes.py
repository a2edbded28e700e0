"""Faults of nodes and GPUs: reboots, resets, setters that refuse, lie, clamp or hang, and another hand on the same GPU."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from dataclasses import dataclass

from splitwatt_nvml_twin.faults import Fault as GpuFault
from splitwatt_nvml_twin.handle import environment

from splitwatt_lab import nodes as lab_nodes
from splitwatt_lab.faults.ground import Ground
from splitwatt_lab.faults.processes import kill, start
from splitwatt_lab.faults.scene import FaultBase


@dataclass(frozen=True, slots=True, kw_only=True)
class Rebooted(FaultBase):
    """The machine boots anew: GPUs at their default limits. Its agent is dead until healed; with `quick` it is back at once."""

    node: str
    quick: bool = False
    reorder: bool = False

    def lay(self, ground: Ground, rng: random.Random) -> None:
        kill(ground, f"agent-{self.node}")
        twin = ground.site.twins[self.node]
        order = list(range(twin.gpu_count))
        if self.reorder:
            rng.shuffle(order)
        boot_id = lab_nodes.new_boot_id()
        twin.reboot(boot_id, index_order=order)
        ground.site.boot_file(self.node).write_text(boot_id + "\n")
        lab_nodes.reboot(ground.plane, self.node, boot_id)
        if self.quick:
            start(ground, f"agent-{self.node}")

    def heal(self, ground: Ground) -> None:
        start(ground, f"agent-{self.node}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reset(FaultBase):
    """These GPUs are reset, all of the node's where none is named. With `agent_dead` nobody notices until healed."""

    node: str
    gpus: tuple[int, ...] = ()
    agent_dead: bool = False

    def lay(self, ground: Ground, rng: random.Random) -> None:
        if self.agent_dead:
            kill(ground, f"agent-{self.node}")
        twin = ground.site.twins[self.node]
        for gpu in self.gpus or range(twin.gpu_count):
            twin.reset_gpu(gpu)

    def heal(self, ground: Ground) -> None:
        if self.agent_dead:
            start(ground, f"agent-{self.node}")


@dataclass(frozen=True, slots=True, kw_only=True)
class DriverReloaded(FaultBase):
    """The driver is loaded anew under a living agent: GPUs at their defaults, handles void; indices may be reordered."""

    node: str
    reorder: bool = False

    def lay(self, ground: Ground, rng: random.Random) -> None:
        twin = ground.site.twins[self.node]
        order = list(range(twin.gpu_count))
        if self.reorder:
            while order == sorted(order):
                rng.shuffle(order)
        twin.reboot(twin.boot_id, index_order=order)

    def heal(self, ground: Ground) -> None:
        return


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuBroken(FaultBase):
    """`fault` lies on these GPUs of a node until healed."""

    node: str
    fault: Callable[[], GpuFault]
    gpus: tuple[int, ...] = (0,)

    def lay(self, ground: Ground, rng: random.Random) -> None:
        for gpu in self.gpus:
            ground.site.twins[self.node].set_fault(gpu, self.fault())

    def heal(self, ground: Ground) -> None:
        for gpu in self.gpus:
            ground.site.twins[self.node].clear_faults(gpu)


@dataclass(frozen=True, slots=True, kw_only=True)
class OutsideLimiter(FaultBase):
    """A limiter beside the driver holds a GPU at `watts`, and lets go when healed."""

    node: str
    watts: int
    gpu: int = 0

    def lay(self, ground: Ground, rng: random.Random) -> None:
        ground.site.twins[self.node].set_outside_limit(self.gpu, self.watts * 1000)

    def heal(self, ground: Ground) -> None:
        ground.site.twins[self.node].set_outside_limit(self.gpu, None)


@dataclass(frozen=True, slots=True, kw_only=True)
class SecondWriter(FaultBase):
    """Another program on the node sets the limit of a GPU again and again (`splitwatt_lab.faults.writer`)."""

    node: str
    watts: int
    gpu: int = 0

    def lay(self, ground: Ground, rng: random.Random) -> None:
        twin = ground.site.twins[self.node]
        command = [sys.executable, "-m", "splitwatt_lab.faults.writer", f"--uuid={twin.uuids[self.gpu]}", f"--watts={self.watts}"]
        ground.extra["writer"] = ground.plane.group.start("writer", command, env=environment(twin.path))
        ground.ends.down.add("writer")

    def heal(self, ground: Ground) -> None:
        ground.extra.pop("writer").kill()


@dataclass(frozen=True, slots=True, kw_only=True)
class CapsRaisedByHand(FaultBase):
    """The planted fault: agents are stopped and GPUs put back to their default limits, which no promise covers."""

    node: str

    def lay(self, ground: Ground, rng: random.Random) -> None:
        kill(ground, f"agent-{self.node}")
        twin = ground.site.twins[self.node]
        for gpu in range(twin.gpu_count):
            twin.reset_gpu(gpu)

    def heal(self, ground: Ground) -> None:
        start(ground, f"agent-{self.node}")
