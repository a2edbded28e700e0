"""A rack's power meter: the plant's truth, a little late and a little wrong, as a PDU's is.

Theory: `truth` samples are taken at the twin's own pace; a reading shows the newest sample that is at least `delay_s`
old, times a Gaussian error drawn once per sample (a sensor's error does not change when it is read twice). It is never
the agents' sum: it has conversion losses and non-GPU watts that move with the load.

"No data" is None, not zero: before the first sample is old enough the meter is not exposed at all.
"""

from __future__ import annotations

import random
from collections import deque
from typing import Final

MAX_SAMPLES: Final = 1_000
"""Samples kept per rack: at 10 Hz far more than the longest delay needs."""


class RackMeter:
    def __init__(self, *, rack: str, delay_s: float, noise_percent: float, seed: int) -> None:
        self.rack = rack
        self._delay_s = delay_s
        self._noise = noise_percent / 100
        self._rng = random.Random(f"{seed}/meter/{rack}")
        self._samples: deque[tuple[float, float]] = deque(maxlen=MAX_SAMPLES)

    def sample(self, true_w: float, now_s: float) -> None:
        """Takes in the truth of one moment."""
        error = max(-3.0, min(3.0, self._rng.gauss(0, 1))) * self._noise
        self._samples.append((now_s, true_w * (1 + error)))

    def read_w(self, now_s: float) -> float | None:
        """Watts as the meter shows them at `now_s`; None before it has any."""
        shown: float | None = None
        for at_s, power_w in self._samples:
            if at_s > now_s - self._delay_s:
                break
            shown = power_w
        while len(self._samples) > 1 and self._samples[1][0] <= now_s - self._delay_s:
            self._samples.popleft()
        return shown
