"""API object <-> core dataclass: the one place where wire names meet the core's.

Objects come from the API server, which has judged them and filled in the defaults; a newer schema may know fields that
this reader does not, so unknown fields are dropped here (`lenient`), while a file a person wrote is parsed strictly.
Invariant: what is unknown stays unknown (None), it never becomes zero (I5); times are Unix seconds in the core and
RFC 3339 with microseconds on the wire, so that a limit's grace survives a restart exactly. A status is never worth its spec:
what cannot be read of it, written by another release or another hand, counts as never written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from pydantic import ValidationError
from splitwatt_core.budget.facts import BudgetReport
from splitwatt_core.budget.raises import MAX_UNCLAIMED
from splitwatt_core.budget.tree import BelowState, BudgetSpec, Elastic, LimitState, MeterSpec, Requirement, Selector, WorkloadRule
from splitwatt_core.conditions import Condition, condition_from_wire, condition_to_wire, merge
from splitwatt_core.names import ANNOTATION_NODES_CONFIRMED
from splitwatt_core.policies.signature import Unassigned
from splitwatt_core.protocol.contract import Mode

from splitwatt_api.base import MAX_TOLD, LabelSelector
from splitwatt_api.convert_cluster import cluster_from_wire, cluster_to_core, priority_to_core
from splitwatt_api.convert_profile import profile_from_wire, profile_to_api
from splitwatt_api.power_budget import (
    MAX_BELOW,
    MAX_GONE,
    Meter,
    PolicyType,
    PostureName,
    PowerBudget,
    PowerBudgetStatus,
    posture_name,
)
from splitwatt_api.workload_rules import WorkloadEntry, WorkloadSelector

__all__ = [
    "budget_from_wire", "budget_status", "budget_to_core", "cluster_from_wire", "cluster_to_core", "conditions",
    "profile_from_wire", "profile_to_api", "rfc3339", "selector_to_core", "unix_s",
]  # fmt: skip


def unix_s(timestamp: str) -> float:
    """RFC 3339 to Unix seconds. Raises ValueError for a time without a zone."""
    moment = datetime.fromisoformat(timestamp)
    if moment.tzinfo is None:
        raise ValueError(f"{timestamp!r} has no time zone: end it with Z")
    return moment.timestamp()


MAX_TIME_S: Final = unix_s("9999-12-31T00:00:00Z")
"""The last time that can still be written down whatever rounding adds."""


def rfc3339(time_s: float) -> str:
    """Unix seconds to RFC 3339 in UTC with microseconds."""
    return datetime.fromtimestamp(time_s, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


# -------------------------------------------------------------------------------------------------------- PowerBudget


def budget_from_wire(raw: Mapping[str, Any]) -> BudgetSpec:
    """A PowerBudget as the API server gives it. Raises pydantic.ValidationError for what is wrong with its spec."""
    try:
        budget = PowerBudget.from_wire(raw, lenient=True)
    except ValidationError as error:
        budget = PowerBudget.from_wire({**raw, "status": _readable(raw.get("status"), error)}, lenient=True)
    return budget_to_core(budget)


def _readable(status: Any, error: ValidationError) -> Mapping[str, Any] | None:
    """A status without the fields that `error` found wrong: a limit must not wait for somebody who mends them."""
    if not isinstance(status, Mapping):
        return None
    wrong = {str(row["loc"][1]) for row in error.errors() if row["loc"][0] == "status" and len(row["loc"]) > 1}
    return {field: value for field, value in status.items() if field not in wrong}


def budget_to_core(budget: PowerBudget) -> BudgetSpec:
    spec, policy = budget.spec, budget.spec.policy
    return BudgetSpec(
        name=budget.metadata.name,
        uid=budget.metadata.uid,
        generation=budget.metadata.generation,
        limit_w=spec.limit_watts,
        parent=spec.parent,
        mode=spec.mode or _mode_unsaid(budget),
        policy=(policy.type if policy else PolicyType.PHASE_AWARE).value,
        unassigned=policy.unassigned_gpus if policy else Unassigned.MINIMUM,
        safe_cap_w=policy.safe_cap_watts if policy else None,
        reserve_w=spec.reserve_watts,
        selector=None if spec.node_selector is None else selector_to_core(spec.node_selector),
        non_gpu_w_per_node=spec.non_gpu_watts_per_node or 0,
        unmanaged_w_per_node=spec.unmanaged_watts_per_node or 0,
        fixed_w=spec.fixed_watts,
        overhead_percent=spec.overhead_percent,
        meter=None if spec.meter is None else _meter(spec.meter),
        limit_grace_s=float(spec.limit_grace_seconds),
        settle_ms=spec.settle_milliseconds,
        limit_state=limit_state(budget.status),
        adopted=_adopted(budget.status),
        below=_below(budget.status),
        contract_uid=(budget.status.node_power_definition_uid or "") if budget.status is not None else "",
        confirmed_uid=budget.metadata.annotations.get(ANNOTATION_NODES_CONFIRMED, ""),
        frozen=spec.frozen,
        workloads=tuple(map(_workload, spec.workloads)),
        elastic=None if (grows := spec.elastic) is None else Elastic(grows.max_nodes, grows.gpus_per_node, grows.node_labels),
    )


def _mode_unsaid(budget: PowerBudget) -> Mode:
    """Of a budget that names no mode. A new one observes; one that holds its limit does not let go because a field is missing,
    nor because an earlier release, whose status says no mode, took Strict for what was meant. Below a root the word counts only
    while the root is missing: then its own limit is held."""
    status = budget.status
    if budget.spec.parent is not None:
        return Mode.STRICT
    if status is None or status.limit_in_force_watts is None:
        return Mode.OBSERVE
    return Mode.STRICT if status.mode in (None, Mode.STRICT) else Mode.OBSERVE


def _workload(entry: WorkloadEntry) -> WorkloadRule:
    pods, namespaces = entry.pod_selector, entry.namespace_selector
    return WorkloadRule(
        pods=None if pods is None else selector_to_core(pods),
        namespaces=None if namespaces is None else selector_to_core(namespaces),
        phase=entry.phase,
        priority=None if entry.priority is None else priority_to_core(entry.priority),
        model=entry.model or "",
    )


def selector_to_core(selector: LabelSelector | WorkloadSelector) -> Selector:
    return Selector(
        match_labels=dict(selector.match_labels),
        match_expressions=tuple(Requirement(r.key, r.operator, tuple(r.values)) for r in selector.match_expressions),
    )


def _meter(meter: Meter) -> MeterSpec:
    return MeterSpec(
        selector=meter.selector,
        aggregate=meter.aggregate.value,
        expected_series=meter.expected_series,
        max_age_s=float(meter.max_age_seconds),
        age_selector=meter.age_selector,
        scale=(meter.scale.numerator, meter.scale.denominator),
    )


def limit_state(status: PowerBudgetStatus | None) -> LimitState | None:
    """What a predecessor persisted; None when there is none, or with a time that no clock shows. The limit it saw last is the
    last one that waits, or else the one in force: `LimitState.observe` compares the present spec with it."""
    if status is None or status.limit_in_force_watts is None or status.limit_in_force_since is None:
        return None
    try:
        since_s = unix_s(status.limit_in_force_since)
        pending = tuple((p.watts, unix_s(p.in_force_at)) for p in status.pending_limits)
    except ValueError:
        return None
    if not all(0.0 <= time_s < MAX_TIME_S for time_s in (since_s, *(at_s for _, at_s in pending))):
        return None
    seen_w = pending[-1][0] if pending else status.limit_in_force_watts
    return LimitState(spec_w=seen_w, in_force_w=status.limit_in_force_watts, since_s=since_s, pending=pending)


def _adopted(status: PowerBudgetStatus | None) -> bool:
    return status is not None and status.posture not in (None, PostureName.ADOPTING)


def _below(status: PowerBudgetStatus | None) -> tuple[BelowState, ...]:
    rows = () if status is None else status.below
    return tuple(BelowState(row.name, row.limit_watts, row.fixed_watts) for row in rows)


def budget_status(report: BudgetReport, *, generation: int, previous: Mapping[str, Any] | None, now_s: float) -> dict[str, Any]:
    """The whole `status` to apply. `previous` is the status as last read or written: a condition whose status did not
    change keeps its time, and an adoption that a predecessor measured is not forgotten. Watts are rounded to whole
    ones, the charge up and the limits as they are."""
    adoption_ms = (previous or {}).get("adoptionMilliseconds")
    if report.adoption_s is not None:
        adoption_ms = round(report.adoption_s * 1000)
    status = PowerBudgetStatus.model_validate(
        {
            "observed_generation": generation,
            "limit_in_force_watts": report.limit.in_force_w,
            "limit_in_force_since": rfc3339(report.limit.since_s),
            "pending_limits": [{"watts": limit_w, "in_force_at": rfc3339(at_s)} for limit_w, at_s in report.limit.pending],
            "charge_watts": _up(report.charge_w),
            "measured_watts": None if report.measured_w is None else min(MAX_TOLD, max(0, round(report.measured_w))),
            "short_watts": _up(report.short_w) or None,
            "mode": report.mode,
            "posture": posture_name(report.posture),
            "nodes": report.nodes,
            "gpus": report.gpus,
            "adoption_milliseconds": adoption_ms,
            "below": [
                {"name": row.name, "limit_watts": row.limit_w, "fixed_watts": row.fixed_w}
                for row in sorted(report.below, key=lambda row: row.name)[:MAX_BELOW]
            ],
            "gone_budgets": [
                {"name": row.name, "nodes": len(row.nodes), "charge_watts": _up(row.charge_w)} for row in report.gone[:MAX_GONE]
            ],
            "nodePowerDefinitionUID": report.contract_uid or None,
            "unclaimed_nodes": report.unclaimed[:MAX_UNCLAIMED],
            "conditions": conditions(report.conditions, generation=generation, previous=previous or {}, now_s=now_s),
        }
    )
    return status.to_wire()


def _up(power_w: float) -> int:
    """To whole watts, never below the true value but for rounding noise."""
    return min(MAX_TOLD, max(0, -int(-(power_w - 1e-6) // 1)))


def conditions(
    new: Sequence[Condition],
    *,
    generation: int,
    previous: Mapping[str, Any],
    now_s: float,
    keep_others: bool = False,
) -> list[dict[str, Any]]:
    """`status.conditions` by the core's `merge`, over those of the status `previous`."""
    known = [condition_from_wire(row) for row in previous.get("conditions") or ()]
    merged = merge(new, known, now=rfc3339(now_s), generation=generation, keep_others=keep_others)
    return [condition_to_wire(condition) for condition in merged]
