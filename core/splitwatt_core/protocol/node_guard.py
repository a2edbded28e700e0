"""The agent's guard of its node's own allotment: neighbours make up for a GPU that cannot be held.

Theory. The operator shares watts out by caps and hears of a failure seconds later. The node can act at once: of each GPU
count the most it may draw,

    worst = its effective cap, or, once it was seen above that cap for `hold_s`, the higher of its two limits as read back,
            and never less than its floor: what it draws whatever its cap;

if the worst cases of all GPUs sum to more than the node's allotment, or the node *measures* above it for `excess_s` although
they do not, the other GPUs' ceilings are lowered, each by the same share of what it has above its minimum. A measured
excess is added to what must be made up, again after each further `excess_s`, until the node is below its allotment or
everybody stands at the minimum.

A ceiling falls at once. It rises only after `dwell_s` without need, by `release_w_per_s`, up to the grant and never above.

Protects: the effective cap never exceeds the grant, and nothing is raised because something is missing: without an
allotment the last one counts, an unreadable limit counts as last read (as the maximum cap if never read), an unreadable
draw as the worst case, and the dwell runs only while everything was read. All watts here are GPU watts, without losses;
the allotment is expected to cover the granted caps, or the guard lowers those that it covers not.
Standard library only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from splitwatt_core.protocol.contract import MAX_GPUS_PER_NODE
from splitwatt_core.protocol.enforcer import Enforcer, GpuIdentity, Readback
from splitwatt_core.protocol.milliwatts import MW_PER_W, watts_up

MAX_TICK_S: Final = 2.0
"""A longer pause between two steps is time in which nobody watched."""


@dataclass(frozen=True, slots=True)
class GuardInput:
    """One GPU this tick. `cap_w`: the granted cap, None without a grant (then it is counted but not steered). Readings
    None: could not be read. `min_w`, `max_w`: legal range of caps. `floor_w`: what no cap takes from it, 0 when its caps hold."""

    cap_w: int | None
    min_w: int
    max_w: int
    management_mw: int | None
    enforced_mw: int | None
    power_mw: int | None
    floor_w: int = 0

    @property
    def lowest_w(self) -> int:
        """The lowest cap that takes anything from it."""
        return max(self.min_w, min(self.floor_w, self.max_w))


def guard_inputs(
    enforcer: Enforcer,
    gpus: Mapping[str, GpuIdentity],
    readbacks: Mapping[str, Readback],
    *,
    floor_w: Mapping[str, int] = MappingProxyType({}),
) -> dict[str, GuardInput]:
    """What the guard looks at in a tick: what is granted, and what was read. A GPU without a readback is unread. `floor_w`:
    floors learnt, by GPU."""
    unread = Readback(None, None)
    return {
        uuid: GuardInput(
            cap_w=enforcer.granted_cap_w(uuid),
            min_w=watts_up(gpu.min_mw),
            max_w=gpu.max_mw // MW_PER_W,
            management_mw=readbacks.get(uuid, unread).management_mw,
            enforced_mw=readbacks.get(uuid, unread).enforced_mw,
            power_mw=readbacks.get(uuid, unread).power_mw,
            floor_w=floor_w.get(uuid, 0),
        )
        for uuid, gpu in gpus.items()
    }


@dataclass(frozen=True, slots=True)
class GuardSettings:
    """`hold_s`: a limit above its cap for longer than this cannot be held; longer than a setter call with its readback takes,
    or every raise would look like a fault. `excess_s`: how long measured power must stay above the allotment before the guard
    acts; longer than draw lags a cap, shorter than a breaker. `dwell_s`: quiet time before a release; longer trades
    throughput for fewer swings. `release_w_per_s`: watts per second that one GPU's ceiling rises, and that a learnt excess
    is forgotten. `margin_percent`: how far below the allotment the draw must be before an excess is forgotten.
    `tolerance_percent`: how far above it the draw counts as an excess; a GPU holds its cap on average only, and samples of
    one that runs into its cap stray above it."""

    hold_s: float = 1.0
    excess_s: float = 1.0
    dwell_s: float = 10.0
    release_w_per_s: float = 10.0
    margin_percent: float = 2.0
    tolerance_percent: float = 5.0


@dataclass(slots=True)
class _Gpu:
    """What the guard remembers of one GPU. `ceiling_w` None: not lowered. `above_since_s` None: held at its cap."""

    asked_w: int | None = None
    ceiling_w: float | None = None
    above_since_s: float | None = None
    limit_mw: int | None = None
    worst_w: float = 0.0
    power_w: float = 0.0


class NodeGuard:
    """See the module's docstring. One per node; `step` is called once per tick from one thread."""

    def __init__(self, settings: GuardSettings | None = None) -> None:
        self._settings = settings or GuardSettings()
        self._gpus: dict[str, _Gpu] = {}
        self._limit_w: int | None = None
        self._excess_since_s: float | None = None
        self._needless_since_s: float | None = None
        self._calm_since_s: float | None = None
        self._excess_w = 0.0
        self._planned_w = 0.0
        self._last_s: float | None = None
        self._unheld: frozenset[str] = frozenset()
        """GPUs that stand above their cap for longer than `hold_s`."""

    @property
    def lowered(self) -> Mapping[str, int]:
        """Ceilings in force, in watts, of the GPUs that make up for something."""
        return {uuid: int(gpu.ceiling_w) for uuid, gpu in self._gpus.items() if gpu.ceiling_w is not None}

    def step(self, now_s: float, node_limit_w: int | None, gpus: Mapping[str, GuardInput]) -> Mapping[str, int]:
        """Effective cap in watts of every GPU that has a grant, never above the grant.

        `now_s`: the agent's monotonic clock. `node_limit_w`: the node's allotment, None: unknown, the last one counts.
        A GPU that was there and is missing from `gpus` counts as last seen. Raises ValueError on more GPUs than a node has.
        """
        elapsed_s = 0.0 if self._last_s is None else max(now_s - self._last_s, 0.0)
        self._last_s = now_s
        if elapsed_s > MAX_TICK_S:
            # Nobody watched: such time releases nothing.
            elapsed_s, self._needless_since_s, self._calm_since_s = 0.0, None, None
        if node_limit_w is not None:
            self._limit_w = node_limit_w
        if len(self._gpus.keys() | gpus.keys()) > MAX_GPUS_PER_NODE:
            raise ValueError(f"more than {MAX_GPUS_PER_NODE} GPUs seen on one node; restart the agent after changing GPUs")
        for uuid, given in gpus.items():
            self._look(self._gpus.setdefault(uuid, _Gpu()), given, now_s)
        self._unheld = frozenset(uuid for uuid, gpu in self._gpus.items() if self._is_unheld(gpu, now_s))
        if self._limit_w is not None:
            self._steer(now_s, elapsed_s, self._limit_w, gpus)
        caps = {}
        for uuid, given in gpus.items():
            gpu = self._gpus[uuid]
            if given.cap_w is not None:
                ceiling_w = given.cap_w if gpu.ceiling_w is None else int(gpu.ceiling_w)
                gpu.asked_w = caps[uuid] = min(given.cap_w, max(ceiling_w, given.min_w))
        return caps

    def _look(self, gpu: _Gpu, given: GuardInput, now_s: float) -> None:
        limits_mw = [limit for limit in (given.management_mw, given.enforced_mw) if limit is not None]
        if len(limits_mw) == 2:
            gpu.limit_mw = max(limits_mw)
        elif limits_mw:
            gpu.limit_mw = max(*limits_mw, gpu.limit_mw or 0)
        elif gpu.limit_mw is None:
            gpu.limit_mw = given.max_w * MW_PER_W
        if given.cap_w is None:
            gpu.asked_w = None
        asked_w = gpu.asked_w if gpu.asked_w is not None else given.cap_w
        above = asked_w is not None and gpu.limit_mw > asked_w * MW_PER_W
        if not above:
            gpu.above_since_s = None
        elif gpu.above_since_s is None:
            gpu.above_since_s = now_s
        limit_w = watts_up(gpu.limit_mw)
        if given.cap_w is None:
            gpu.worst_w = limit_w
        elif self._is_unheld(gpu, now_s):
            gpu.worst_w = max(limit_w, self._wanted_w(gpu, given))
        else:
            gpu.worst_w = self._wanted_w(gpu, given)
        gpu.worst_w = max(gpu.worst_w, given.floor_w)
        gpu.power_w = gpu.worst_w if given.power_mw is None else given.power_mw / MW_PER_W

    def _wanted_w(self, gpu: _Gpu, given: GuardInput) -> float:
        assert given.cap_w is not None
        return given.cap_w if gpu.ceiling_w is None else min(given.cap_w, max(gpu.ceiling_w, given.min_w))

    def _is_unheld(self, gpu: _Gpu, now_s: float) -> bool:
        return self._for(gpu.above_since_s, now_s, self._settings.hold_s)

    def _steer(self, now_s: float, elapsed_s: float, limit_w: int, gpus: Mapping[str, GuardInput]) -> None:
        """Lower ceilings at once to what is needed, release them slowly."""
        able = {uuid: given for uuid, given in gpus.items() if given.cap_w is not None and uuid not in self._unheld}
        # What is drawn below the floor cannot be made up by anybody's cap, its own least of all.
        granted_w = {uuid: max(given.cap_w, given.floor_w) for uuid, given in able.items() if given.cap_w is not None}
        room_w = {uuid: max(granted_w[uuid] - able[uuid].lowest_w, 0) for uuid in granted_w}
        total_room_w = sum(room_w.values())
        fixed_w = sum(gpu.worst_w for uuid, gpu in self._gpus.items() if uuid not in able)
        planned_w = fixed_w + sum(granted_w.values()) - limit_w
        complete = gpus.keys() >= self._gpus.keys() and all(
            None not in (given.management_mw, given.enforced_mw, given.power_mw) for given in gpus.values()
        )
        self._watch_draw(now_s, elapsed_s, limit_w, planned_w, complete=complete)
        self._excess_w = min(self._excess_w, max(total_room_w - planned_w, 0.0))
        need_w = planned_w + self._excess_w
        share = min(need_w / total_room_w, 1.0) if need_w > 0 and total_room_w > 0 else 0.0
        targets_w = {uuid: grant_w - share * room_w[uuid] for uuid, grant_w in granted_w.items()}

        needless = any(
            (ceiling_w := self._gpus[uuid].ceiling_w) is not None and (need_w <= 0 or ceiling_w < target_w)
            for uuid, target_w in targets_w.items()
        )
        if not (needless and complete and self._excess_since_s is None):
            self._needless_since_s = None
        elif self._needless_since_s is None:
            self._needless_since_s = now_s
        may_rise = self._for(self._needless_since_s, now_s, self._settings.dwell_s)
        for uuid, target_w in targets_w.items():
            gpu = self._gpus[uuid]
            if gpu.ceiling_w is None:
                gpu.ceiling_w = target_w if need_w > 0 else None
            elif need_w > 0 and target_w < gpu.ceiling_w:
                gpu.ceiling_w = target_w
            elif may_rise:
                gpu.ceiling_w += self._settings.release_w_per_s * elapsed_s
                if gpu.ceiling_w >= target_w:
                    gpu.ceiling_w = target_w if need_w > 0 else None

    def _watch_draw(self, now_s: float, elapsed_s: float, limit_w: int, planned_w: float, *, complete: bool) -> None:
        """Learn from the measured draw how much more than the worst cases has to be made up; forget it slowly."""
        settings = self._settings
        draw_w = sum(gpu.power_w for gpu in self._gpus.values())
        newly_planned = planned_w > max(self._planned_w, 0.0)
        self._planned_w = planned_w
        tolerance = settings.tolerance_percent / 100 if self._excess_w == 0 else 0.0  # what has begun is brought to its end
        over = draw_w > limit_w * (1 + tolerance)
        if over and (self._excess_since_s is None or newly_planned):
            # What the plan has just begun to make up must not be made up twice: give the draw time to follow.
            self._excess_since_s = now_s
        elif over and self._for(self._excess_since_s, now_s, settings.excess_s):
            self._excess_w += draw_w - limit_w
            self._excess_since_s = now_s
        elif not over:
            self._excess_since_s = None
        if not complete or draw_w >= limit_w * (1 - settings.margin_percent / 100):
            self._calm_since_s = None
        elif self._calm_since_s is None:
            self._calm_since_s = now_s
        elif self._for(self._calm_since_s, now_s, settings.dwell_s):
            self._excess_w = max(self._excess_w - settings.release_w_per_s * elapsed_s, 0.0)

    @staticmethod
    def _for(since_s: float | None, now_s: float, at_least_s: float) -> bool:
        return since_s is not None and now_s - since_s >= at_least_s
