"""The judge: are the budgets kept? It trusts nobody it judges.

Ten times a second it reads the simulated GPUs' own state (power, enforced limits) and the PowerBudgets that people wrote,
and adds up for each budget the seconds in which

1. the true draw at the meter exceeds the limit in force;
2. the sum of enforced caps, counted as in I1, exceeds it;
3. the ledger's own charge exceeds it (from the operator's decision log, after the run).

*Budget violations* is the union of the first two. What an overload did to a breaker is counted beside them (theta). A
lowered limit is in force `limitGraceSeconds` after the judge saw it, a raised one at once; a budget counts from the moment
the operator reports it adopted.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx
from splitwatt_core.budget.tree import LIMIT_GRACE_S, LimitState, new_limit
from splitwatt_core.names import LABEL_RACK
from splitwatt_nvml_twin.handle import NodeTwin
from splitwatt_nvml_twin.plant import RackPlant
from splitwatt_truth.breaker import PESSIMISTIC_K_S, step_breaker

from splitwatt_lab.errors import LabError

PERIOD_S: Final = 0.1
LIMITS_EVERY_S: Final = 0.25
MAX_GAP_S: Final = 1.0
"""A longer gap between two looks (a starved machine) is counted as unseen, and reported."""


@dataclass(frozen=True, slots=True)
class BudgetView:
    """What the judge knows of one PowerBudget, from the API. Leaves carry `rack`; others their children's names."""

    name: str
    parent: str | None
    rack: str | None
    limit_w: int
    grace_s: float
    overhead_percent: int
    non_gpu_w_per_node: int
    fixed_w: int
    adopted: bool
    status: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class BudgetLook:
    """One look at one budget. Watts at the meter; `t_s` is Unix time."""

    t_s: float
    budget: str
    true_w: float
    capped_w: float
    limit_w: int
    in_force: bool


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


def budget_view(obj: Mapping[str, Any]) -> BudgetView:
    """A PowerBudget as the API server returns it."""
    spec, status = obj["spec"], obj.get("status") or {}
    labels = (spec.get("nodeSelector") or {}).get("matchLabels") or {}
    return BudgetView(
        name=obj["metadata"]["name"],
        parent=spec.get("parent"),
        rack=labels.get(LABEL_RACK),
        limit_w=spec["limitWatts"],
        grace_s=float(spec.get("limitGraceSeconds", LIMIT_GRACE_S)),
        overhead_percent=spec.get("overheadPercent", 0),
        non_gpu_w_per_node=spec.get("nonGpuWattsPerNode", 0),
        fixed_w=spec.get("fixedWatts", 0),
        adopted=status.get("adoptionMilliseconds") is not None,
        status=status,
    )


@dataclass(frozen=True, slots=True)
class NodeLook:
    """One node's GPUs at one moment, watts summed over them."""

    power_w: float
    enforced_w: float
    enforced_each_w: tuple[int, ...]


class Judge:
    """Looks from its own thread between `start` and `stop`. `racks` names each node's rack; `budgets` fetches the
    PowerBudgets' JSON. Reading the results is safe at any time."""

    def __init__(
        self,
        *,
        twins: Mapping[str, NodeTwin],
        racks: Mapping[str, str],
        plant: RackPlant,
        budgets: Callable[[], Sequence[Mapping[str, Any]]],
    ) -> None:
        self._twins = twins
        self._racks = racks
        self._plant = plant
        self._fetch = budgets
        self._limits: dict[str, LimitState] = {}
        self._since_s: dict[str, float] = {}
        self.views: dict[str, BudgetView] = {}
        self.counts: dict[str, Count] = {}
        self.samples: list[BudgetLook] = []
        self.latest: dict[str, BudgetLook] = {}
        self.looks: dict[str, NodeLook] = {}
        self.energy_j = 0.0
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._failure: BaseException | None = None

    def start(self) -> None:
        self._refresh()
        for target in (self._watch_limits, self._watch_power):
            thread = threading.Thread(target=self._guarded, args=(target,), name=target.__name__, daemon=True)
            thread.start()
            self._threads.append(thread)

    def stop(self) -> None:
        """Stop looking. Raises whatever ended a judging thread early: a blind judge must not acquit."""
        self._stop.set()
        for thread in self._threads:
            thread.join(timeout=10.0)
        if self._failure is not None:
            raise self._failure

    def _guarded(self, target: Callable[[], None]) -> None:
        try:
            target()
        except BaseException as error:  # noqa: BLE001 - handed to `stop`, which raises it
            self._failure = error
            self._stop.set()

    # ---------------------------------------------------------------------------------------------------------- limits

    def _watch_limits(self) -> None:
        while not self._stop.wait(LIMITS_EVERY_S):
            self._refresh()

    def _refresh(self) -> None:
        try:
            items = self._fetch()
        except (httpx.TransportError, LabError):
            return  # the API server may be down on purpose; what was seen still holds
        now_s = time.time()
        for obj in items:
            view = budget_view(obj)
            self.views[view.name] = view
            known = self._limits.get(view.name) or new_limit(view.limit_w, now_s)
            self._limits[view.name] = known.observe(view.limit_w, now_s, view.grace_s)
            if view.adopted:
                self._since_s.setdefault(view.name, now_s)

    # ----------------------------------------------------------------------------------------------------------- power

    def _watch_power(self) -> None:
        last_s = time.time()
        energy_before = self._energy_j()
        while not self._stop.wait(PERIOD_S):
            now_s = time.time()
            self._look(now_s, now_s - last_s)
            last_s = now_s
        self.energy_j = self._energy_j() - energy_before

    def _energy_j(self) -> float:
        return sum(gpu.energy_j for twin in self._twins.values() for gpu in twin.read_all())

    def _look(self, now_s: float, dt_s: float) -> None:
        for node, twin in self._twins.items():
            gpus = twin.read_all()
            enforced = tuple(round(gpu.enforced_mw / 1000) for gpu in gpus)
            self.looks[node] = NodeLook(sum(gpu.power_w for gpu in gpus), sum(gpu.enforced_mw for gpu in gpus) / 1000.0, enforced)
        true_w, capped_w = self._sums()
        for name in list(self.views):
            limit = self._limits[name] = self._limits[name].at(now_s)
            since_s = self._since_s.get(name)
            sample = BudgetLook(now_s, name, true_w[name], capped_w[name], limit.in_force_w, since_s is not None)
            self.samples.append(sample)
            self.latest[name] = sample
            self.counts.setdefault(name, Count()).add(sample, dt_s)

    def _sums(self) -> tuple[dict[str, float], dict[str, float]]:
        """True and capped watts at each budget's meter; a parent's are its children's sum and its own fixed watts."""
        views = dict(self.views)
        true_w, capped_w = dict.fromkeys(views, 0.0), dict.fromkeys(views, 0.0)
        for view in views.values():
            own_true, own_capped = 0.0, float(view.fixed_w)
            if view.rack is not None:
                looks = [self.looks[node] for node, rack in self._racks.items() if rack == view.rack]
                own_true = self._plant.true_w([look.power_w for look in looks])
                own_capped += sum(look.enforced_w for look in looks) * (1 + view.overhead_percent / 100)
                own_capped += view.non_gpu_w_per_node * len(looks)
            above: str | None = view.name
            while above is not None and above in views:
                true_w[above] += own_true
                capped_w[above] += own_capped
                above = views[above].parent
        return true_w, capped_w

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
