"""What `top` shows of one moment: numbers of Prometheus where it answers, of the statuses where it does not. Pure.

Statuses may be some seconds old (the operator writes moving numbers seldom); a number of Prometheus stands before them, and the
head says which of the two is shown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from splitwatt_core import names

from splitwatt_cli.explain.why import gpus_of
from splitwatt_cli.snapshot import SiteSnapshot
from splitwatt_cli.status.standing import OperatorStanding, budget_rows, operator_of

MAX_EVENTS: Final = 8
BUDGET_METRICS: Final = {
    "in_force": names.M_BUDGET_LIMIT_IN_FORCE_WATTS,
    "charge": names.M_BUDGET_CHARGE_WATTS,
    "draw": names.M_BUDGET_MEASURED_WATTS,
    "caps": names.M_BUDGET_CAP_WATTS,
}


@dataclass(frozen=True, slots=True)
class Samples:
    """What Prometheus told: watts by metric (a key of BUDGET_METRICS) and budget; draw by role."""

    budgets: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    roles_w: Mapping[str, float] = field(default_factory=dict)
    problem: str = ""


@dataclass(frozen=True, slots=True)
class TopBudget:
    name: str
    depth: int
    limit_w: float
    in_force_w: float | None
    caps_w: float | None
    charge_w: float | None
    draw_w: float | None
    posture: str

    @property
    def share(self) -> float | None:
        """Draw of the limit in force."""
        return None if self.draw_w is None or not self.in_force_w else self.draw_w / self.in_force_w


@dataclass(frozen=True, slots=True)
class TopRole:
    role: str
    gpus: int
    cap_w: float
    draw_w: float | None


@dataclass(frozen=True, slots=True)
class TopMoment:
    operator: OperatorStanding
    budgets: Sequence[TopBudget]
    roles: Sequence[TopRole]
    events: Sequence[str]
    source: str

    def wire(self) -> dict[str, Any]:
        return {
            "source": self.source,
            "operator": self.operator.wire(),
            "budgets": [
                {
                    "name": b.name, "limitWatts": b.limit_w, "limitInForceWatts": b.in_force_w, "capWatts": b.caps_w,
                    "chargeWatts": b.charge_w, "drawWatts": b.draw_w, "posture": b.posture or None,
                }
                for b in self.budgets
            ],
            "roles": [{"role": r.role, "gpus": r.gpus, "capWatts": r.cap_w, "drawWatts": r.draw_w} for r in self.roles],
            "events": list(self.events),
        }  # fmt: skip


def moment_of(seen: SiteSnapshot, samples: Samples) -> TopMoment:
    caps = _cap_sums(seen)
    budgets = []
    for row in budget_rows(seen.budgets):
        told = samples.budgets.get(row.name, {})
        budgets.append(
            TopBudget(
                row.name, row.depth, row.limit_w, told.get("in_force", row.in_force_w), told.get("caps", caps.get(row.name)),
                told.get("charge", row.charge_w), told.get("draw", row.measured_w), row.posture,
            )
        )  # fmt: skip
    counts: dict[str, list[int]] = {}
    for obj in seen.node_powers:
        for gpu in gpus_of(obj):
            counts.setdefault(gpu.phase, []).append(gpu.cap_w if gpu.cap_w is not None else gpu.default_w)
    roles = [TopRole(phase, len(w), float(sum(w)), samples.roles_w.get(phase)) for phase, w in sorted(counts.items())]
    events = [_happening(event) for event in reversed(seen.events)]
    source = "Prometheus" if samples.budgets else "statuses, up to 10 s old"
    return TopMoment(operator_of(seen), budgets, roles, events[:MAX_EVENTS], source)


def _happening(event: Mapping[str, Any]) -> str:
    about = (event.get("regarding") or {}).get("name", "")
    return f"{str(event.get('eventTime') or '')[11:19]}  {about}: {event.get('reason', '')} {event.get('note', '')}"


def _cap_sums(seen: SiteSnapshot) -> dict[str, float]:
    """Granted caps with losses, as the operator's metric has them: a budget on two ways counts a node once."""
    sums: dict[str, float] = {}
    for obj in seen.node_powers:
        spec = obj.get("spec") or {}
        cap_w = sum(row["capWatts"] for row in spec.get("gpus") or ()) * (100 + (spec.get("overheadPercent") or 0)) / 100
        for budget in set(spec.get("budgets") or ()):
            sums[budget] = sums.get(budget, 0.0) + cap_w
    return sums
