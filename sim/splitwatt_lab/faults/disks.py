"""Faults of the disk under an agent's record: full, read-only, torn. Each agent has a small file system of its own."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Final

from splitwatt_lab.faults.ground import Ground
from splitwatt_lab.faults.mounts import remount
from splitwatt_lab.faults.processes import kill, start
from splitwatt_lab.faults.scene import FaultBase

_FILLER: Final = "filler"
_BLOCK: Final = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskFull(FaultBase):
    """No space is left for the agent's record. `empty`: it dies, its folder is emptied first, and it starts on that."""

    node: str
    empty: bool = False

    def lay(self, ground: Ground, rng: random.Random) -> None:
        disk = ground.site.disk(self.node)
        if self.empty:
            kill(ground, f"agent-{self.node}")
            for file in disk.iterdir():
                file.unlink()
        with (disk / _FILLER).open("wb", buffering=0) as filler:
            try:
                while True:
                    filler.write(bytes(_BLOCK))
            except OSError:
                pass  # full, as was asked
        if self.empty:
            start(ground, f"agent-{self.node}")

    def heal(self, ground: Ground) -> None:
        (ground.site.disk(self.node) / _FILLER).unlink(missing_ok=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskReadOnly(FaultBase):
    node: str

    def lay(self, ground: Ground, rng: random.Random) -> None:
        self._remount(ground, "ro")

    def heal(self, ground: Ground) -> None:
        self._remount(ground, "rw")

    def _remount(self, ground: Ground, how: str) -> None:
        """Read-only takes that no file is open for writing; the lock that an agent holds is, so such an agent starts anew."""
        disk = ground.site.disk(self.node)
        agent = f"agent-{self.node}"
        kill(ground, agent)
        remount(disk, how)
        start(ground, agent)


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordTorn(FaultBase):
    """The agent dies, its record is cut in the middle, and it is started on that. Healed: a person deletes the record."""

    node: str
    keep_share: float = 0.5

    def lay(self, ground: Ground, rng: random.Random) -> None:
        kill(ground, f"agent-{self.node}")
        for file in ground.site.state_dir(self.node).glob("*.json"):
            data = file.read_bytes()
            file.write_bytes(data[: round(len(data) * self.keep_share)])
        ground.ends.down.discard(f"agent-{self.node}")
        ground.site.agents[self.node].start()

    def heal(self, ground: Ground) -> None:
        kill(ground, f"agent-{self.node}")
        for file in ground.site.state_dir(self.node).glob("*.json"):
            file.unlink()
        start(ground, f"agent-{self.node}")
