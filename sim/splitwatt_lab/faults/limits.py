"""Limits that change faster than anybody could follow."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass

from splitwatt_lab.faults.ground import Ground
from splitwatt_lab.faults.scene import FaultBase


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitsInFlurry(FaultBase):
    """`count` random limits on these budgets, one every `every_s`; all of them can be met."""

    budgets: tuple[str, ...]
    count: int = 60
    every_s: float = 0.2

    def lay(self, ground: Ground, rng: random.Random) -> None:
        for name in self.budgets:
            ground.cuts.setdefault(name, ground.limit_w(name))
        for _ in range(self.count):
            name = rng.choice(self.budgets)
            ground.set_limit(name, rng.randint(ground.floor_w(name) + 100, ground.cuts[name]))
            time.sleep(self.every_s)

    def heal(self, ground: Ground) -> None:
        ground.restore_limits()
