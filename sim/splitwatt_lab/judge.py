"""The judge: are the budgets kept? It trusts nobody it judges.

Ten times a second it reads the simulated GPUs' own state (power, enforced limits). What hangs behind which feed it knows
from the wiring (`splitwatt_lab.wiring`); from the PowerBudgets it takes the limits alone. For each feed it adds up the
seconds in which

1. the true draw at the meter exceeds the limit in force;
2. the sum of enforced caps, counted as in I1, exceeds it;
3. the ledger's own charge exceeds it (from the operator's decision log, after the run).

*Budget violations* is the union of the first two. What an overload did to a breaker is counted beside them (theta). A
lowered limit is in force `limitGraceSeconds` after the judge saw it. A raised one is in force from the patch, which lies
somewhere since the judge's last look at the limits: so a look at the GPUs is judged once the next limits have been read,
by the higher of the two. A budget counts from the moment the operator reports it adopted, and goes on counting with its
last limit when the object is deleted.

A judge that sees nothing must not acquit: `complaints` says what of a pass went by unjudged.
"""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx
from splitwatt_core.budget.tree import LimitState, new_limit
from splitwatt_nvml_twin.handle import NodeTwin
from splitwatt_nvml_twin.plant import RackPlant
from splitwatt_truth.breaker import PESSIMISTIC_K_S, step_breaker

from splitwatt_lab.errors import LabError
from splitwatt_lab.wiring import Declared, FeedWatts, NodeLook, Wiring, declared

PERIOD_S: Final = 0.1
LIMITS_EVERY_S: Final = 0.25
MAX_GAP_S: Final = 1.0
"""A longer gap between two looks (a starved machine) is counted as unseen, and reported."""
SILENT_S: Final = 2.0
"""Without a look for longer the judge is called silent."""
SHORT_S: Final = 2.0
"""A pass may begin and end this far from the first and the last look."""
MAX_UNSEEN_SHARE: Final = 0.5
_JOIN_S: Final = 40.0
"""Longer than a request to an API server that hangs."""


@dataclass(frozen=True, slots=True)
class BudgetLook:
    """One look at one budget. Watts at the meter; `t_s` is Unix time."""

    t_s: float
    budget: str
    true_w: float
    capped_w: float
    limit_w: int
    in_force: bool

    @property
    def over_w(self) -> float:
        """By how much draw or caps exceed the limit; below 0 they keep it."""
        return max(self.true_w, self.capped_w) - self.limit_w


@dataclass(slots=True)
class Count:
    """One budget's record."""

    true_over_s: float = 0.0
    capped_over_s: float = 0.0
    either_over_s: float = 0.0
    charge_over_s: float = 0.0
    worst_true_w: float = float("-inf")
    worst_capped_w: float = float("-inf")
    judged_s: float = 0.0
    unseen_s: float = 0.0
    theta: float = 0.0
    worst_theta: float = 0.0
    """How far the true draw brought a breaker rated at the limit to its trip (1), by the pessimistic constant."""

    def add(self, sample: BudgetLook, dt_s: float) -> None:
        if not sample.in_force:
            return
        if dt_s > MAX_GAP_S:
            self.unseen_s += dt_s
            return
        true_over, capped_over = sample.true_w - sample.limit_w, sample.capped_w - sample.limit_w
        self.judged_s += dt_s
        self.worst_true_w = max(self.worst_true_w, true_over)
        self.worst_capped_w = max(self.worst_capped_w, capped_over)
        load_ratio = max(sample.true_w, 0.0) / sample.limit_w
        self.theta = step_breaker(self.theta, load_ratio=load_ratio, elapsed_s=max(dt_s, 0.0), k_s=PESSIMISTIC_K_S)
        self.worst_theta = max(self.worst_theta, self.theta)
        self.true_over_s += dt_s * (true_over > 0)
        self.capped_over_s += dt_s * (capped_over > 0)
        self.either_over_s += dt_s * (true_over > 0 or capped_over > 0)


def complaints(counts: Mapping[str, Count], budgets: Sequence[str], length_s: float) -> list[str]:
    """What of a pass of `length_s` seconds nobody judged: one sentence for each budget that was not watched throughout."""
    found = []
    for name in sorted(budgets):
        count = counts.get(name) or Count()
        seen_s = count.judged_s + count.unseen_s
        if seen_s < length_s - SHORT_S:
            found.append(f"{name}: the judge saw {seen_s:.0f} s of {length_s:.0f} s; what happened in the rest nobody knows")
        elif count.unseen_s > MAX_UNSEEN_SHARE * length_s:
            found.append(
                f"{name}: {count.unseen_s:.0f} s of {length_s:.0f} s went by between two looks: run it on a freer machine"
            )
    return found


@dataclass(frozen=True, slots=True)
class _Look:
    """Everything seen at one moment, waiting for the limits of that moment. `dt_s` by the monotonic clock."""

    t_s: float
    dt_s: float
    watts: Mapping[str, FeedWatts]


class LimitsInForce:
    """The limits in force over time, by what was read of the PowerBudgets. Pure but for its memory: times come from outside."""

    def __init__(self) -> None:
        self._now: dict[str, LimitState] = {}
        self._before: dict[str, LimitState] = {}
        self._since_s: dict[str, float] = {}

    def read(self, budgets: Sequence[Declared], *, asked_s: float, answered_s: float) -> None:
        """One reading: a raise lies before `asked_s`, a grace begins at `answered_s`."""
        self._before = dict(self._now)
        for says in budgets:
            known = self._now.get(says.name) or new_limit(says.limit_w, asked_s)
            self._now[says.name] = known.observe(says.limit_w, answered_s, says.grace_s)
            if says.adopted:
                self._since_s.setdefault(says.name, asked_s)

    def at(self, name: str, t_s: float) -> tuple[int, bool] | None:
        """Watts by which a look at `t_s`, between the last two readings, is judged, and whether they are in force yet. None:
        such a budget was never seen."""
        now = self._now.get(name)
        if now is None:
            return None
        before = self._before.get(name, now)
        since_s = self._since_s.get(name)
        limit_w = max(before.at(t_s).in_force_w, now.at(t_s).in_force_w)
        return limit_w, since_s is not None and t_s >= since_s


class Judge:
    """Looks from its own threads between `start` and `stop`. `budgets` fetches the PowerBudgets' JSON; those that no feed
    was wired for are nobody's limit and are not judged. Reading the results is safe at any time."""

    def __init__(
        self,
        *,
        twins: Mapping[str, NodeTwin],
        wiring: Wiring,
        plant: RackPlant,
        budgets: Callable[[], Sequence[Mapping[str, Any]]],
    ) -> None:
        self._twins = twins
        self.wiring = wiring
        self._plant = plant
        self._fetch = budgets
        self._limits = LimitsInForce()
        self._waiting: deque[_Look] = deque()
        self.views: dict[str, Declared] = {}
        """As each was last read; those that are gone, too."""
        self.there: frozenset[str] = frozenset()
        """What the last reading found."""
        self.counts: dict[str, Count] = {}
        self.samples: list[BudgetLook] = []
        self.latest: dict[str, BudgetLook] = {}
        self.looks: dict[str, NodeLook] = {}
        self.energy_j = 0.0
        self._last_look_s = time.monotonic()
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._failure: BaseException | None = None

    def start(self) -> None:
        self._refresh()
        for target in (self._watch_limits, self._watch_power):
            thread = threading.Thread(target=self._guarded, args=(target,), name=target.__name__, daemon=True)
            thread.start()
            self._threads.append(thread)

    def check(self) -> None:
        """Raises whatever ended a judging thread early: a blind judge must not acquit."""
        if self._failure is not None:
            raise self._failure

    def stop(self) -> None:
        """Stop looking, and judge what still waits. Raises as `check` does, LabError when a thread does not end."""
        self._stop.set()
        for thread in self._threads:
            thread.join(timeout=_JOIN_S)
            if thread.is_alive():
                raise LabError(f"the judge's thread {thread.name} does not end: this pass was not judged")
        self.check()
        if not self._refresh():
            self._judge(float("inf"))

    @property
    def silent_s(self) -> float:
        """Seconds since the last look at the GPUs."""
        return time.monotonic() - self._last_look_s

    def _guarded(self, target: Callable[[], None]) -> None:
        try:
            target()
        except BaseException as error:  # noqa: BLE001 - handed to `check`, which raises it
            self._failure = error
            self._stop.set()

    # ---------------------------------------------------------------------------------------------------------- limits

    def _watch_limits(self) -> None:
        while not self._stop.wait(LIMITS_EVERY_S):
            self._refresh()

    def _refresh(self) -> bool:
        """Read the limits and judge all looks before them. False while the API server is away, perhaps on purpose: the looks
        wait, for a limit may have been changed at its last moment."""
        asked_s = time.time()
        try:
            items = self._fetch()
        except (httpx.TransportError, LabError, ValueError):  # ValueError: half an answer
            return False
        views = [declared(obj) for obj in items if obj["metadata"]["name"] in self.wiring.feeds]
        self.views.update({view.name: view for view in views})
        self.there = frozenset(view.name for view in views)
        self._limits.read(views, asked_s=asked_s, answered_s=time.time())
        self._judge(asked_s)
        return True

    def _judge(self, until_s: float) -> None:
        while self._waiting and self._waiting[0].t_s <= until_s:
            look = self._waiting.popleft()
            for sample in self._samples(look):
                self.samples.append(sample)
                self.counts.setdefault(sample.budget, Count()).add(sample, look.dt_s)

    def _samples(self, look: _Look) -> list[BudgetLook]:
        limits = {name: self._limits.at(name, look.t_s) for name in look.watts}
        return [
            BudgetLook(look.t_s, name, watts.true_w, watts.capped_w, *limit)
            for name, watts in look.watts.items()
            if (limit := limits[name]) is not None
        ]

    # ----------------------------------------------------------------------------------------------------------- power

    def _watch_power(self) -> None:
        last_s = time.monotonic()
        energy_before = self._energy_j()
        while not self._stop.wait(PERIOD_S):
            now_s = time.monotonic()
            self._look(time.time(), now_s - last_s)
            last_s = self._last_look_s = now_s
        self.energy_j = self._energy_j() - energy_before

    def _energy_j(self) -> float:
        return sum(gpu.energy_j for twin in self._twins.values() for gpu in twin.read_all())

    def _look(self, now_s: float, dt_s: float) -> None:
        for node, twin in self._twins.items():
            gpus = twin.read_all()
            enforced = tuple(round(gpu.enforced_mw / 1000) for gpu in gpus)
            self.looks[node] = NodeLook(sum(gpu.power_w for gpu in gpus), sum(gpu.enforced_mw for gpu in gpus) / 1000.0, enforced)
        look = _Look(now_s, dt_s, self.wiring.watts(self.looks, self.views, self._plant))
        self.latest = {sample.budget: sample for sample in self._samples(look)}
        self._waiting.append(look)

    # --------------------------------------------------------------------------------------------------------- verdict

    def violations_s(self) -> float:
        """Seconds of budget violations over all budgets: true draw or enforced caps above a limit in force."""
        return sum(count.either_over_s for count in self.counts.values())

    def charge_from(self, decision_log: Path) -> list[dict[str, Any]]:
        """Read the ledger's word and fill in the third counter. Each line stands until the next of its budget."""
        rows = [json.loads(line) for line in decision_log.read_text().splitlines()] if decision_log.is_file() else []
        last: dict[str, dict[str, Any]] = {}
        for row in rows:
            before = last.get(row["budget"])
            if before is not None and before["posture"] != "Adopting" and before["charge_w"] > before["in_force_w"] + 0.5:
                self.counts.setdefault(row["budget"], Count()).charge_over_s += row["time_s"] - before["time_s"]
            last[row["budget"]] = row
        return rows
