"""One scene from beginning to end on a healthy ground, and what it showed."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, field
from typing import Final

import httpx

from splitwatt_lab.errors import LabError
from splitwatt_lab.faults.expectations import ALWAYS_FORBIDDEN
from splitwatt_lab.faults.ground import Ends, Ground, log_growth
from splitwatt_lab.faults.scene import API_SERVER, Injector, Scene
from splitwatt_lab.faults.verdict import (
    MAX_BLIND_S,
    Outcome,
    Power,
    Window,
    power,
    tracebacks,
    wrong_conditions,
    wrong_exits,
)
from splitwatt_lab.judge import PERIOD_S

PROBE_W: Final = 400
PROBE_S: Final = 10.0
SETTLE_S: Final = 1.0
"""Between the laying of a fault and a cut beside it, and before a scene begins."""
KUBELET_S: Final = 5.0
"""A process that ended unbidden is started again after this long, as a kubelet would."""
PAIR_GAP_S: Final = 3.0
JUDGED_S: Final = 20.0
AGENT: Final = "agent:"
"""How scenes name the agents that they lay hands on."""
STEADY_SHARE: Final = 0.4
"""Caps of a rack to which nothing was done may fall to this share of what they had above their minimum."""
STEADY_MIN_W: Final = 500
MIN_LOOK_HZ: Final = 5.0


@dataclass(slots=True)
class Laid:
    fault: Injector
    begun_s: float
    laid_s: float
    healed_s: float = 0.0


@dataclass(slots=True)
class Play:
    """One scene under way."""

    ground: Ground
    scene: Scene
    rng: random.Random
    laid: list[Laid] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    unseen: list[str] = field(default_factory=list)
    lowered: set[str] = field(default_factory=set)
    before_w: dict[str, float] = field(default_factory=dict)
    """What all caps allowed when the scene began, by budget: a cut is measured from there, whatever a fault did to them."""
    recovery_s: float | None = None
    obeyed_s: float | None = None

    # ----------------------------------------------------------------------------------------------------------- acting

    def act(self) -> None:
        self.before_w = {name: look.capped_w for name, look in self.ground.judge.latest.items()}
        try:
            for fault in self.scene.faults:
                if self.laid and self.scene.group == "pairs":
                    time.sleep(self.rng.uniform(0.0, PAIR_GAP_S))
                laid = Laid(fault, time.time(), 0.0)
                self.laid.append(laid)
                fault.lay(self.ground, self.rng)
                laid.laid_s = time.time()
                self.lowered |= set(self.ground.cuts)
            if self.scene.cut and not self.scene.cut_healed:
                time.sleep(SETTLE_S)
                self._cut(self.scene.cut)
            self._hold()
        except (LabError, OSError, httpx.TransportError, TimeoutError) as error:
            self.problems.append(f"cannot be played: {error}")
        finally:
            self.heal()
        if self.scene.cut and self.scene.cut_healed:
            self._cut(self.scene.cut)
        try:
            self._recover()
        except (LabError, httpx.TransportError) as error:
            self.problems.append(f"cannot be looked at: {error}")
        self._probe()

    def _cut(self, budget: str) -> None:
        self.lowered.add(budget)
        away = frozenset(touch.removeprefix(AGENT) for touch in self.scene.touches if touch.startswith(AGENT))
        deaf = any(excuse.cut_only for excuse in self.scene.excuses)
        self.ground.cut(budget, from_w=self.before_w[budget], away=frozenset() if deaf else away)

    def _hold(self) -> None:
        end_s = time.monotonic() + self.scene.hold_s
        while (left_s := end_s - time.monotonic()) > 0:
            time.sleep(min(1.0, left_s))
            self.ground.see_ends()

    def heal(self) -> None:
        """The last one first: what was laid while the API server was there is taken away when it is back."""
        for left, laid in reversed(list(enumerate(self.laid))):
            try:
                laid.fault.heal(self.ground)
                laid.healed_s = time.time()
                if left and API_SERVER in laid.fault.touches:
                    self.ground.await_api()
            except (LabError, OSError, httpx.TransportError, TimeoutError, KeyError) as error:
                self.problems.append(f"cannot be healed: {error}")
            laid.healed_s = laid.healed_s or time.time()

    def _recover(self) -> None:
        """Wait for health. The ground plays the kubelet for what ended unbidden."""
        started_s, since_s = time.monotonic(), time.time()
        revived = False
        while time.monotonic() - started_s < self.scene.recovery_s:
            ailment = self.ground.ailment(since_s=since_s)
            if ailment is None:
                self.recovery_s = time.monotonic() - started_s
                return
            self.ground.see_ends()
            if self.ground.ends.ended and not revived and time.monotonic() - started_s > KUBELET_S:
                self.ground.revive()
                revived = True
            time.sleep(0.25)
        self.problems.append(f"not healthy {self.scene.recovery_s:.0f} s after the fault: {ailment}")

    def _probe(self) -> None:
        """Whether a cut is obeyed now. The rack with more room above its floor is cut; all limits are given back."""
        ground = self.ground
        try:
            ground.restore_limits()
            time.sleep(SETTLE_S)
            racks = [name for name, feed in ground.wiring.feeds.items() if feed.nodes]
            rack = max(racks, key=lambda name: ground.judge.latest[name].capped_w - ground.floor_w(name))
            limit_w = ground.cut(rack, from_w=ground.judge.latest[rack].capped_w, by_w=PROBE_W)
            self.lowered.add(rack)
            self.obeyed_s = ground.obeyed_s(rack, limit_w, within_s=PROBE_S)
            if self.obeyed_s is None:
                over_w = ground.judge.latest[rack].capped_w - limit_w
                self.problems.append(f"a cut of {rack} was not obeyed within {PROBE_S:.0f} s: caps stand {over_w:.0f} W above it")
            ground.restore_limits()
        except (LabError, OSError, httpx.TransportError) as error:
            self.problems.append(f"the limits cannot be set: {error}")

    # ---------------------------------------------------------------------------------------------------------- judging

    def windows(self) -> list[Window]:
        found = []
        last_healed_s = max((laid.healed_s for laid in self.laid), default=0.0)
        for laid in self.laid:
            excuse = laid.fault.excuse
            if excuse is None:
                continue
            # Beside another fault a surprise lasts until both are over: the agent that would end it may be the other's victim.
            healed_s = last_healed_s if self.scene.group == "pairs" else laid.healed_s
            until_healed = excuse.until_healed or self.scene.group == "pairs"
            end_s = (healed_s if until_healed else laid.laid_s or laid.healed_s) + excuse.after_s
            found.append(Window(laid.begun_s, end_s, excuse, frozenset(self.lowered)))
        return found

    def seen(self, start_s: float, end_s: float) -> Power:
        """What the judge saw; waits until it has judged to the end."""
        judge = self.ground.judge
        self.ground.until(lambda: bool(judge.samples) and judge.samples[-1].t_s >= end_s - 0.5, within_s=JUDGED_S)
        judge.check()
        # With the last look before: the first one of the scene stands for the time since then.
        looks = [look for look in judge.samples if start_s - 1.5 * PERIOD_S <= look.t_s <= end_s]
        found = power(looks, self.windows())
        length_s = end_s - start_s
        rate_hz = found.looks / len(self.ground.wiring.feeds) / length_s
        if found.blind_s > MAX_BLIND_S or rate_hz < MIN_LOOK_HZ:
            self.unseen.append(
                f"the judge looked {rate_hz:.1f} times a second and was blind for {found.blind_s:.1f} s: not proven"
            )
        for rack in self.scene.steady:
            self._steady(rack, [look.capped_w for look in looks if look.budget == rack])
        return found

    def _steady(self, rack: str, caps_w: list[float]) -> None:
        floor_w = self.ground.floor_w(rack)
        room_w = caps_w[0] - floor_w if caps_w else 0.0
        if room_w >= STEADY_MIN_W and min(caps_w) - floor_w < STEADY_SHARE * room_w:
            self.problems.append(f"caps of {rack} fell by {caps_w[0] - min(caps_w):.0f} W though nothing was done to it")


def play(ground: Ground, scene: Scene, rng: random.Random) -> Outcome:
    """Play it. Never raises for what the site does wrong; raises what ended the judge."""
    ground.judge.samples.clear()  # those of earlier scenes are judged already
    time.sleep(SETTLE_S)
    ground.ends = Ends()
    ground.observer.forget()
    acting = Play(ground, scene, rng)
    start_s = time.time()
    with log_growth(ground) as grown:
        acting.act()
    end_s = time.time()
    ground.see_ends()
    seen = acting.seen(start_s, end_s)
    said = ground.observer.said()
    forbids = (*scene.forbids, *scene.forbids_alone, *(() if scene.may_be_infeasible else ALWAYS_FORBIDDEN))
    return Outcome(
        name=scene.name,
        group=scene.group,
        promise=scene.promise,
        seconds=round(end_s - start_s, 1),
        violation_s_beyond_promise=round(seen.beyond_s, 2),
        excused_s=round(seen.excused_s, 2),
        worst_overshoot_w=round(seen.worst_w),
        worst_excused_w=round(seen.worst_excused_w),
        spike_s=round(seen.spike_s, 2),
        recovery_s=None if acting.recovery_s is None else round(acting.recovery_s, 1),
        obeyed_s=None if acting.obeyed_s is None else round(acting.obeyed_s, 2),
        where=list(seen.where),
        expected=[str(expect) for expect in scene.expects],
        excuses=[excuse.why for excuse in scene.excuses],
        wrong_conditions=wrong_conditions(said, scene.expects, forbids, looks=ground.judge.samples),
        wrong_exits=wrong_exits(ground.ends.ended, scene.exits),
        tracebacks=tracebacks(grown),
        problems=[*acting.problems, *acting.unseen],
        unseen=acting.unseen,
        said=[str(s) for s in said if s.status != "True"],
        exits=dict(ground.ends.ended),
        convicted=scene.convicted,
    )
