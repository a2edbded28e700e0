"""Faults of processes: killed, stopped for a while, replaced, cut off from the API server, with a clock that is wrong."""

from __future__ import annotations

import random
import signal
from dataclasses import dataclass
from typing import Final

from splitwatt_lab.components import Component
from splitwatt_lab.errors import LabError
from splitwatt_lab.faults.ground import Ground
from splitwatt_lab.faults.scene import FaultBase

CONTROL_PLANE: Final = frozenset(Component)
_END_S: Final = 60.0


def agents(ground: Ground, node: str) -> list[str]:
    """`node`, or every node where it is empty."""
    return [node] if node else list(ground.nodes)


def kill(ground: Ground, name: str) -> None:
    """SIGKILL, and nobody is surprised."""
    ground.ends.down.add(name)
    ground.processes()[name].kill()


def start(ground: Ground, name: str) -> None:
    if not ground.processes()[name].running:
        if name.startswith("agent-"):
            ground.site.start_agent(name.removeprefix("agent-"))
        elif name == "operator":
            ground.site.start_operator()
        elif name == "prometheus":
            ground.site.prometheus.start()
        elif name in CONTROL_PLANE:
            ground.plane.start(name)
        else:
            raise LabError(f"there is no way to start {name} again")
    ground.ends.down.discard(name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Killed(FaultBase):
    """kill -9 of these processes, started again when healed."""

    names: tuple[str, ...]

    def lay(self, ground: Ground, rng: random.Random) -> None:
        for name in self.names:
            kill(ground, name)

    def heal(self, ground: Ground) -> None:
        for name in self.names:
            start(ground, name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stopped(FaultBase):
    """SIGSTOP, SIGCONT when healed."""

    names: tuple[str, ...]

    def lay(self, ground: Ground, rng: random.Random) -> None:
        for name in self.names:
            ground.processes()[name].send(signal.SIGSTOP)

    def heal(self, ground: Ground) -> None:
        for name in self.names:
            ground.processes()[name].send(signal.SIGCONT)


@dataclass(frozen=True, slots=True, kw_only=True)
class RolledOut(FaultBase):
    """SIGTERM and a new start, one after the other as a DaemonSet does it; `together`: all are away until healed."""

    names: tuple[str, ...]
    together: bool = False

    def lay(self, ground: Ground, rng: random.Random) -> None:
        ground.ends.down.update(self.names)
        for name in self.names:
            ground.processes()[name].send(signal.SIGTERM)
            if not self.together:
                self._end(ground, name)
                start(ground, name)

    @staticmethod
    def _end(ground: Ground, name: str) -> None:
        code = ground.processes()[name].wait(_END_S)
        if code != 0:
            ground.ends.ended[name] = code

    def heal(self, ground: Ground) -> None:
        for name in self.names if self.together else ():
            self._end(ground, name)
            start(ground, name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Standby(FaultBase):
    """A second operator waits beside the first while `fault` is laid on that one; afterwards there is one again."""

    fault: Killed | Stopped
    leader_ends: bool = False
    """After it was let go on, the former leader finds a higher term and ends."""

    def lay(self, ground: Ground, rng: random.Random) -> None:
        ground.extra["standby"], _ = ground.site.start_another_operator("standby")
        self.fault.lay(ground, rng)

    def heal(self, ground: Ground) -> None:
        leader, standby = ground.processes()["operator"], ground.processes()["standby"]
        ended = True
        if self.leader_ends:
            self.fault.heal(ground)
            ended = ground.until(lambda: not leader.running, within_s=_END_S) is not None
            ground.see_ends()
        code = standby.stop(_END_S)
        del ground.extra["standby"]
        if code != 0:
            ground.ends.ended["standby"] = code
        start(ground, "operator")
        if not ended:
            raise LabError("the former leader goes on after it was let go on")


@dataclass(frozen=True, slots=True, kw_only=True)
class Partitioned(FaultBase):
    """These processes reach the API server no more, nor its answers them; nothing is closed."""

    names: tuple[str, ...]

    def lay(self, ground: Ground, rng: random.Random) -> None:
        assert ground.site.relays is not None
        for name in self.names:
            ground.site.relays.hold(name)

    def heal(self, ground: Ground) -> None:
        assert ground.site.relays is not None
        for name in self.names:
            ground.site.relays.let_go(name)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClockStepped(FaultBase):
    """The wall clock of these processes is set forward or back."""

    names: tuple[str, ...]
    step_s: float

    def lay(self, ground: Ground, rng: random.Random) -> None:
        for name in self.names:
            ground.site.clocks.step(name, self.step_s)

    def heal(self, ground: Ground) -> None:
        for name in self.names:
            ground.site.clocks.step(name, 0.0)
