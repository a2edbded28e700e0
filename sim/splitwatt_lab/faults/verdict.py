"""What a scene proved: pure functions over what was seen.

Guilty are: seconds above a limit outside every excuse, a part of the scene that the judge did not see, a condition that
was expected and never said or said though forbidden, a traceback, a process that ended unbidden, a site that did not
become healthy again, a probe cut that was not obeyed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from typing import Any, Final

from splitwatt_lab.faults.observer import Said
from splitwatt_lab.faults.scene import Excuse, Expect, Json
from splitwatt_lab.judge import MAX_GAP_S, BudgetLook

TOLERANCE_W: Final = 1.0
"""Grants are whole watts, and so are limits; a sum of them is not."""
MAX_BLIND_S: Final = 3.0
"""A scene may hold gaps of the judge up to this, all together: the machine is shared."""
SPIKE_S: Final = 0.45
"""A cap acts late (docs/safety.md, "What is not protected"): so long the draw may stand above caps that keep the limit."""
RENEWED_S: Final = 7.0
"""A leader renews its Lease several times within this."""
TOLD_WITHIN_S: Final = 8.0
"""What a meter showed may be believed for 5 s, and takes a moment to be read, decided on and told."""
METER_ERROR_SHARE: Final = 0.02
"""A PDU is good to that (docs/facts.md, meters)."""
TRACEBACK: Final = re.compile(
    r"^Traceback \(most recent call last\)|^Task exception was never retrieved|^fatal error: ", re.MULTILINE
)


@dataclass(frozen=True, slots=True)
class Window:
    """One excuse with its times (Unix seconds). `cut`: the budgets whose limit was lowered in the scene."""

    start_s: float
    end_s: float
    excuse: Excuse
    cut: frozenset[str] = frozenset()

    def covers(self, look: BudgetLook) -> bool:
        if not self.start_s <= look.t_s <= self.end_s:
            return False
        if self.excuse.cut_only and look.budget not in self.cut:
            return False
        return not self.excuse.budgets or look.budget in self.excuse.budgets


@dataclass(frozen=True, slots=True)
class Power:
    """Seconds over all budgets in which draw or caps stood above a limit in force; `worst_w` is the highest overshoot
    beyond the promise, `worst_excused_w` the highest within an excuse. `blind_s`: longer gaps between looks, in all.
    `where`: when each overshoot beyond the promise began, and of which budget."""

    beyond_s: float
    excused_s: float
    spike_s: float
    worst_w: float
    worst_excused_w: float
    blind_s: float
    looks: int
    where: tuple[str, ...] = ()


def spikes(looks: Sequence[BudgetLook]) -> set[int]:
    """Which looks (by position) saw a spike: the draw alone above the limit, all caps within it, for less than SPIKE_S."""
    found: set[int] = set()
    runs: dict[str, list[int]] = {}
    for at, look in enumerate(looks):
        draw_alone = look.true_w - look.limit_w > TOLERANCE_W >= look.capped_w - look.limit_w
        run = runs.setdefault(look.budget, [])
        if draw_alone:
            run.append(at)
        elif run:
            if look.t_s - looks[run[0]].t_s < SPIKE_S and look.over_w <= TOLERANCE_W:
                found.update(run)
            run.clear()
    return found


def power(looks: Sequence[BudgetLook], windows: Sequence[Window]) -> Power:
    """`looks` of one scene in the order of their times; each stands for the time since the one before of its budget."""
    last: dict[str, float] = {}
    beyond_s = excused_s = blind_s = spike_s = 0.0
    worst_w = worst_excused_w = 0.0
    count = 0
    over: set[str] = set()
    where: list[str] = []
    spiking = spikes(looks)
    for at, look in enumerate(looks):
        dt_s = look.t_s - last.get(look.budget, look.t_s)
        last[look.budget] = look.t_s
        count += 1
        if dt_s > MAX_GAP_S:
            blind_s += dt_s
            continue
        if not look.in_force or look.over_w <= TOLERANCE_W:
            over.discard(look.budget)
            continue
        if at in spiking:
            spike_s += max(dt_s, 0.0)
        elif any(window.covers(look) for window in windows):
            excused_s += max(dt_s, 0.0)
            worst_excused_w = max(worst_excused_w, look.over_w)
        else:
            beyond_s += max(dt_s, 0.0)
            worst_w = max(worst_w, look.over_w)
            if look.budget not in over:
                over.add(look.budget)
                what = "draw" if look.true_w > look.capped_w else "caps"
                where.append(
                    f"{look.budget} from {look.t_s - looks[0].t_s:.1f} s on: {what} {look.over_w:+.0f} W of {look.limit_w} W"
                )
    return Power(beyond_s, excused_s, spike_s, worst_w, worst_excused_w, blind_s, count, tuple(where))


def wrong_conditions(
    said: Sequence[Said], expects: Sequence[Expect], forbids: Sequence[Expect], *, looks: Sequence[BudgetLook] = ()
) -> list[str]:
    """A sentence for each condition that was not said though expected, or said though forbidden. What the judge saw as well
    (`looks`) is the truth, and may always be said."""
    missing = [f"never said: {expect}" for expect in expects if not any(s.meets(expect) for s in said)]
    wrong = [f"said though forbidden: {s}" for s in said if any(s.meets(f) for f in forbids) and not truly_above(s, looks)]
    return [*missing, *wrong]


def truly_above(said: Said, looks: Iterable[BudgetLook]) -> bool:
    """Whether it says that a meter reads above the limit, and shortly before the draw did stand there."""
    return said.reason == "MeasuredAboveLimit" and any(
        look.budget == said.name
        and said.t_s - TOLD_WITHIN_S <= look.t_s <= said.t_s
        and look.true_w > (1.0 - METER_ERROR_SHARE) * look.limit_w
        for look in looks
    )


def unhealthy(
    objects: Mapping[str, Mapping[str, Json]], *, budgets: Iterable[str], nodes: Iterable[str], clusters: Iterable[str]
) -> str | None:
    """Why the site is not healthy, None when it is: all budgets Ready and Normal, every grant acknowledged, all served."""
    for name in budgets:
        obj = objects["pb"].get(name)
        if obj is None:
            return f"{name} is not there"
        status = obj.get("status") or {}
        for condition in status.get("conditions") or ():
            if condition["status"] != "True":
                return f"{name} {condition['type']}={condition['status']} {condition['reason']}: {condition['message']}"
        if status.get("observedGeneration") != obj["metadata"]["generation"]:
            return f"{name}: its last change was not seen"
        if status.get("posture") != "Normal":
            return f"{name} is in posture {status.get('posture')}"
    for name in nodes:
        obj = objects["np"].get(name)
        if obj is None:
            return f"NodePower {name} is not there"
        if sentence := _node_unhealthy(obj):
            return f"{name} {sentence}"
    for name in clusters:
        obj = objects["ic"].get(name) or {}
        ready = {c["type"] for c in (obj.get("status") or {}).get("conditions") or () if c["status"] == "True"}
        if missing := {"PrefillReady", "DecodeReady"} - ready:
            return f"InferenceCluster {name} is not {min(missing)}"
    return None


def ungoverned(leases: Iterable[Json], now_s: float) -> str | None:
    """Why no operator is in charge, None when one is: somebody holds a Lease and renewed it lately. Unix time."""
    for lease in leases:
        holder, renewed = lease["spec"].get("holderIdentity"), lease["spec"].get("renewTime")
        if holder and renewed and now_s - datetime.fromisoformat(renewed).timestamp() < RENEWED_S:
            return None
    return "no operator holds the Lease"


def _node_unhealthy(obj: Json) -> str | None:
    spec, status = obj.get("spec") or {}, obj.get("status") or {}
    for condition in status.get("conditions") or ():
        if condition["type"] in ("Ready", "CapsEnforced") and condition["status"] != "True":
            return f"{condition['type']}={condition['status']} {condition['reason']}: {condition['message']}"
    if status.get("observedUID") != obj["metadata"]["uid"] or status.get("observedTerm") != spec.get("term"):
        return "has not seen its present object and term"
    if leaving := spec.get("leavingBudgets"):
        return f"still counts in {', '.join(leaving)}, which it leaves"
    acked = {gpu["uuid"]: gpu.get("ackedGrant") for gpu in status.get("gpus") or ()}
    late = [gpu["uuid"] for gpu in spec.get("gpus") or () if acked.get(gpu["uuid"]) != gpu.get("grant")]
    return f"has {len(late)} grants not acknowledged" if late or not acked else None


def tracebacks(logs: Mapping[str, str]) -> list[str]:
    """Exceptions that nobody handled, by process, with their last line: bare ones, and those that we log as errors. What
    kopf says of its own watches, which are started again, is none."""
    found = []
    for process, text in sorted(logs.items()):
        for match in TRACEBACK.finditer(text):
            rest = text[match.start() :].splitlines()[1:]
            ending = next((line for line in rest if line and not line[0].isspace()), match.group())
            found.append(f"{process}: {ending[:300]}")
        for line in text.splitlines():
            if '"exception": "' in line and (said := _logged_exception(line)):
                found.append(f"{process}: {said}")
    return found


def _logged_exception(line: str) -> str | None:
    """The message and the exception of a line of our own log, None where it is no error of ours."""
    try:
        entry = json.loads(line)
    except ValueError:
        return None  # half a line: the process was killed while it wrote
    if entry.get("level") not in ("error", "critical") or not str(entry.get("logger", "")).startswith("splitwatt"):
        return None
    names = [row for row in entry["exception"].splitlines() if row and not row[0].isspace()]
    return f"{entry.get('message')}: {names[-1] if names else ''}"[:300]


def wrong_exits(ended: Mapping[str, int], allowed: Mapping[str, int | None]) -> list[str]:
    """Processes that ended, or ended with another code than the scene says. `ended` holds those that ended at any time."""
    return [
        f"{name} ended with code {code}" + (f", not {allowed[name]}" if name in allowed else "")
        for name, code in sorted(ended.items())
        if name not in allowed or (allowed[name] is not None and allowed[name] != code)
    ]


@dataclass(slots=True)
class Outcome:
    """Everything one scene showed. `recovery_s`, `obeyed_s` None: not within its time. `unseen`: of `problems`, that the judge
    was blind for too long."""

    name: str
    group: str
    promise: str
    seconds: float
    violation_s_beyond_promise: float
    excused_s: float
    worst_overshoot_w: float
    worst_excused_w: float
    spike_s: float
    recovery_s: float | None
    obeyed_s: float | None
    where: list[str] = field(default_factory=list)
    excuses: list[str] = field(default_factory=list)
    expected: list[str] = field(default_factory=list)
    wrong_conditions: list[str] = field(default_factory=list)
    wrong_exits: list[str] = field(default_factory=list)
    tracebacks: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    exits: dict[str, int] = field(default_factory=dict)
    unseen: list[str] = field(default_factory=list)
    convicted: bool = False

    @property
    def unproven(self) -> bool:
        """Nothing is wrong with it but that the judge saw too little: the machine was starved."""
        return bool(self.unseen) and not replace(self, problems=[p for p in self.problems if p not in self.unseen]).guilty

    @property
    def guilty(self) -> bool:
        return bool(
            self.violation_s_beyond_promise or self.wrong_conditions or self.wrong_exits or self.tracebacks or self.problems
        )

    @property
    def passed(self) -> bool:
        """The runner's own test passes when its violation was found."""
        return self.violation_s_beyond_promise > 0 if self.convicted else not self.guilty

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "passed": self.passed}
