"""What an agent's own readings prove of a GPU: whether anybody uses it, and what no cap can take from it.

*Use.* Nobody tells the agent of every workload: device plugins, claims and runtime classes each name GPUs in their own way,
or not at all. So "no owner known" says nothing, and idleness needs a proof of its own: the draw near the product's idle draw
and no compute process, both for `IDLE_AFTER_S` without a break. One reading of another kind ends it at once, for a cap that
stands too high for a second costs less than one that strangles work. A process list alone proves nothing (a container may
not see other containers' processes), nor does a low draw alone (a model that waits for requests).

*Floor.* Some GPUs draw more than their cap: the idle draw of a B200 stands above its lowest cap, and memory that is kept busy
goes on while a cap slows the cores. What a GPU draws in the mean of `FLOOR_WINDOW_S` is its floor where it stays above the
limit all that time, and the limit has stood for much longer than a cap needs to act and a reading may be late. The floor is
the highest of those means, and is forgotten slowly while the GPU shows under such a limit that it draws less. Under higher
limits it cannot show.

Protected: what could not be read proves neither idleness nor that a floor is gone. Milliwatts at this border, as NVML gives
them; standard library only.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from splitwatt_core.protocol.contract import Use
from splitwatt_core.protocol.milliwatts import MW_PER_W, watts_up

IDLE_AFTER_S: Final = 3.0
"""Longer than a training step or the gap between two requests; short beside the time in which pods come and go."""
IDLE_MARGIN_PERCENT: Final = 25
IDLE_MARGIN_MW: Final = 15_000
"""Idle parts of one product differ (docs/facts.md, NVML)."""

FLOOR_WINDOW_S: Final = 3.0
FLOOR_SETTLED_S: Final = 9.0
"""From a change of the limit to the beginning of such a window. Readings of a node that is short of processor time may be a
second or two late: the end of a fall was taken for a floor, by 3 W of 200, on all GPUs of the node at once."""
FLOOR_TOLERANCE_PERCENT: Final = 1
"""A cap holds in the mean: what strays above it by less than this is the cap at work."""
FLOOR_FORGET_MW_PER_S: Final = 200
FLOOR_FORGET_SHARE_PER_S: Final = 1 / 60
"""Of what it lies above the present draw, per second."""
MAX_GAP_S: Final = 2.0
"""A longer pause between two readings is time in which nobody watched: windows begin anew."""
MAX_SAMPLES: Final = 256
"""Of `FLOOR_SETTLED_S + FLOOR_WINDOW_S`, read 20 times a second."""


@dataclass(frozen=True, slots=True)
class Glance:
    """One GPU at one moment. `power_mw`, `limit_mw` (the lower of its two limits, which is in force): None when unread.
    `processes`: compute processes, None where the driver does not tell."""

    power_mw: int | None
    limit_mw: int | None
    processes: int | None


@dataclass(frozen=True, slots=True)
class Bounds:
    """What is known of one GPU beforehand. `idle_below_mw`: see the function of that name. `min_mw`: its lowest cap."""

    idle_below_mw: int
    min_mw: int


@dataclass(slots=True)
class _Gpu:
    bounds: Bounds
    quiet_since_s: float | None = None
    limit_mw: int | None = None
    samples: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=MAX_SAMPLES))
    floor_mw: int = 0
    use: Use = Use.UNKNOWN
    last_s: float | None = None


def idle_below_mw(*, idle_w: int | None, min_mw: int) -> int:
    """Below which draw a GPU may be idle. `idle_w`: its product's idle draw, None for an unknown product: then only a draw
    below the lowest cap counts, from which that cap takes nothing."""
    if idle_w is None:
        return min_mw
    return idle_w * MW_PER_W * (100 + IDLE_MARGIN_PERCENT) // 100 + IDLE_MARGIN_MW


class Evidence:
    """One per driver load. `see` is called once a tick; `now_s` is the agent's monotonic clock."""

    def __init__(self, gpus: Mapping[str, Bounds]) -> None:
        self._gpus = {uuid: _Gpu(bounds) for uuid, bounds in gpus.items()}

    def see(self, now_s: float, glances: Mapping[str, Glance]) -> None:
        """Take in this tick's readings. A GPU that is missing was not read."""
        for uuid, gpu in self._gpus.items():
            glance = glances.get(uuid, Glance(None, None, None))
            if gpu.last_s is not None and not 0.0 <= now_s - gpu.last_s <= MAX_GAP_S:
                gpu.quiet_since_s = None
                gpu.samples.clear()
            gpu.last_s = now_s
            _judge_use(gpu, glance, now_s)
            _learn_floor(gpu, glance, now_s)

    def use(self, uuid: str) -> Use:
        return self._gpus[uuid].use

    def floor_w(self, uuid: str) -> int:
        """Whole watts, upwards; 0 while its caps hold."""
        return watts_up(self._gpus[uuid].floor_mw)


def _judge_use(gpu: _Gpu, glance: Glance, now_s: float) -> None:
    if glance.processes or (glance.power_mw is not None and glance.power_mw >= gpu.bounds.idle_below_mw):
        gpu.use, gpu.quiet_since_s = Use.BUSY, None
    elif glance.power_mw is None or glance.processes is None:
        gpu.use, gpu.quiet_since_s = Use.UNKNOWN, None
    elif gpu.quiet_since_s is None:
        gpu.quiet_since_s = now_s
        gpu.use = Use.UNKNOWN
    elif now_s - gpu.quiet_since_s >= IDLE_AFTER_S:
        gpu.use = Use.IDLE


def _learn_floor(gpu: _Gpu, glance: Glance, now_s: float) -> None:
    if glance.limit_mw is None or glance.power_mw is None or glance.limit_mw != gpu.limit_mw:
        gpu.limit_mw = glance.limit_mw
        gpu.samples.clear()
        return
    before_s = gpu.samples[-1][0] if gpu.samples else now_s
    gpu.samples.append((now_s, glance.power_mw))
    span_s = FLOOR_SETTLED_S + FLOOR_WINDOW_S
    while gpu.samples[0][0] < now_s - span_s:
        gpu.samples.popleft()
    if now_s - gpu.samples[0][0] < span_s - MAX_GAP_S / 2:
        return
    window = [power_mw for at_s, power_mw in gpu.samples if at_s >= now_s - FLOOR_WINDOW_S]
    mean_mw = sum(window) // len(window)
    if min(window) * 100 > glance.limit_mw * (100 + FLOOR_TOLERANCE_PERCENT):
        gpu.floor_mw = max(gpu.floor_mw, mean_mw)
    if mean_mw < gpu.floor_mw and glance.limit_mw <= watts_up(gpu.floor_mw) * MW_PER_W:
        per_s = FLOOR_FORGET_MW_PER_S + FLOOR_FORGET_SHARE_PER_S * (gpu.floor_mw - mean_mw)
        gpu.floor_mw = max(mean_mw, gpu.floor_mw - round(per_s * (now_s - before_s)))
        if gpu.floor_mw <= gpu.bounds.min_mw:
            gpu.floor_mw = 0
