"""A budget's simulated meter: the mean of each second, late, a little wrong, and sometimes gone.

A sample is the true mean of one whole second times 1 + noise, noise normal and seeded, cut at three deviations. It can be read
`delay_s` after its second ended. In an outage there is no answer: no data, which is not zero watts (I5).
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from splitwatt_core.budget.facts import MeterFailure, MeterReading

from splitwatt_sim.power.setup import MeterSettings

CUT: Final = 3.0
KEPT_SAMPLES: Final = 64


class SimulatedMeter:
    """`number` tells the meters of one run apart: each has noise of its own. `begins_s`: when second 0 began."""

    def __init__(self, settings: MeterSettings, *, number: int, begins_s: float) -> None:
        self._settings = settings
        self._begins_s = begins_s
        self._noise = np.random.default_rng([settings.seed, number])
        self._samples_w: list[float] = []
        self._first = 0

    def sample(self, true_w: float) -> None:
        """The second after the last one is over; its true mean was this."""
        off = min(max(self._noise.standard_normal(), -CUT), CUT) * self._settings.noise_percent / 100
        self._samples_w.append(max(true_w * (1 + off), 0.0))
        if len(self._samples_w) > KEPT_SAMPLES:
            del self._samples_w[0]
            self._first += 1

    def read(self, now_s: float, *, run_s: float) -> MeterReading | MeterFailure:
        """The newest sample that can be read. `now_s`: the clock of all facts; `run_s`: seconds of the run, for outages."""
        for begins_s, ends_s in self._settings.outages:
            if begins_s <= run_s < ends_s:
                return MeterFailure(f"simulated outage until {ends_s:g} s")
        over = math.floor(now_s - self._settings.delay_s - self._begins_s + 1e-9)
        newest = min(over, self._first + len(self._samples_w)) - 1
        if newest < self._first:
            return MeterFailure("no sample yet")
        return MeterReading(self._samples_w[newest - self._first], self._begins_s + newest + 1.0, 1)
