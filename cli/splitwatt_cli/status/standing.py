"""How everything stands, from one snapshot: what is wrong, worst first, and the numbers of budgets, nodes and clusters. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from splitwatt_core.conditions import counted, some

from splitwatt_cli.conditions import Object, condition, conditions_of, judged, name_of, troubles
from splitwatt_cli.finding import Finding, Gravity, worst_first
from splitwatt_cli.snapshot import SiteSnapshot, named, unix_s

LEASE_S: Final = 15.0
"""A Lease that says nothing of its own length."""
ROLES: Final = ("prefill", "decode", "mixed")
OF_OBSERVE: Final = frozenset({"Observing", "WithinBudget"})
"""Conditions whose notes say no more than Ready, whose reason is Observing."""


@dataclass(frozen=True, slots=True)
class OperatorStanding:
    """`renewed_s`: seconds since the Lease was renewed, by this machine's clock; None where there is none."""

    holder: str
    term: int
    renewed_s: float | None
    active: bool

    def wire(self) -> dict[str, Any]:
        told = {"active": self.active, "holder": self.holder, "term": self.term}
        return told if self.renewed_s is None else {**told, "renewedSecondsAgo": round(self.renewed_s, 1)}


@dataclass(frozen=True, slots=True)
class BudgetRow:
    """Watts at the meter; None where the status does not say. `depth`: 0 at a root."""

    name: str
    parent: str
    depth: int
    limit_w: int
    in_force_w: int | None
    charge_w: int | None
    measured_w: int | None
    posture: str
    nodes: int
    gpus: int
    ready: str

    def wire(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "parent": self.parent or None,
            "limitWatts": self.limit_w,
            "limitInForceWatts": self.in_force_w,
            "chargeWatts": self.charge_w,
            "measuredWatts": self.measured_w,
            "posture": self.posture or None,
            "nodes": self.nodes,
            "gpus": self.gpus,
            "ready": self.ready,
        }


@dataclass(frozen=True, slots=True)
class NodeRow:
    name: str
    leaf: str
    gpus: int
    healthy: int
    caps_w: int | None
    ready: str

    def wire(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "budget": self.leaf or None,
            "gpus": self.gpus,
            "healthyGpus": self.healthy,
            "enforcedCapWatts": self.caps_w,
            "ready": self.ready,
        }


@dataclass(frozen=True, slots=True)
class ClusterRow:
    """`roles`: by role (ready, past the power gate, wanted). Milliseconds; None: nobody measures, or nothing was asked for."""

    name: str
    roles: Mapping[str, tuple[int, int, int]]
    ttft_ms: int | None
    ttft_limit_ms: int | None
    tbt_ms: int | None
    tbt_limit_ms: int | None
    ready: str

    def wire(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "roles": {
                role: {"readyReplicas": r, "admittedReplicas": a, "wantedReplicas": w} for role, (r, a, w) in self.roles.items()
            },
            "ttftP99Milliseconds": self.ttft_ms,
            "ttftP99LimitMilliseconds": self.ttft_limit_ms,
            "tbtP99Milliseconds": self.tbt_ms,
            "tbtP99LimitMilliseconds": self.tbt_limit_ms,
            "ready": self.ready,
        }


@dataclass(frozen=True, slots=True)
class SiteStanding:
    findings: Sequence[Finding]
    operator: OperatorStanding
    budgets: Sequence[BudgetRow]
    nodes: Sequence[NodeRow]
    clusters: Sequence[ClusterRow]

    def wire(self) -> dict[str, Any]:
        return {
            "healthy": not any(f.severity is Gravity.BROKEN for f in self.findings),
            "findings": [finding.wire() for finding in self.findings],
            "operator": self.operator.wire(),
            "budgets": [row.wire() for row in self.budgets],
            "nodes": [row.wire() for row in self.nodes],
            "clusters": [row.wire() for row in self.clusters],
        }


def standing_of(seen: SiteSnapshot, *, namespace: str | None = None) -> SiteStanding:
    """`namespace`: of the InferenceClusters to show, None: all."""
    clusters = [obj for obj in seen.clusters if namespace in (None, obj["metadata"]["namespace"])]
    operator = operator_of(seen)
    findings = [
        *_unread(seen),
        *_operator_findings(seen, operator),
        *_folded(troubles("PowerBudget", seen.budgets), seen.budgets),
        *troubles("InferenceCluster", clusters),
        *_silent_nodes(seen),
        *troubles("NodePower", seen.node_powers),
    ]
    return SiteStanding(
        findings=worst_first(findings),
        operator=operator,
        budgets=budget_rows(seen.budgets),
        nodes=[_node_row(obj) for obj in sorted(seen.node_powers, key=name_of)],
        clusters=[_cluster_row(obj) for obj in sorted(clusters, key=name_of)],
    )


def operator_of(seen: SiteSnapshot) -> OperatorStanding:
    spec = (seen.lease or {}).get("spec") or {}
    renewed_at_s = unix_s(spec.get("renewTime"))
    renewed_s = None if renewed_at_s is None else seen.now_s - renewed_at_s
    holder = spec.get("holderIdentity") or ""
    # Not by a short Lease alone: the renewal is the operator's clock, and now is ours.
    allowed_s = 2.0 * max(LEASE_S, float(spec.get("leaseDurationSeconds") or LEASE_S))
    active = bool(holder) and renewed_s is not None and renewed_s <= allowed_s
    return OperatorStanding(holder, int(spec.get("leaseTransitions") or 0), renewed_s, active)


def _unread(seen: SiteSnapshot) -> Iterator[Finding]:
    for plural, why in seen.unread.items():
        yield Finding(Gravity.WARNING, "Unread", "", f"{plural} could not be read: {why}", f"kubectl auth can-i list {plural} -A")


def _operator_findings(seen: SiteSnapshot, operator: OperatorStanding) -> Iterator[Finding]:
    if operator.active or "leases" in seen.unread:
        return
    since = "never was" if operator.renewed_s is None else f"last was {operator.renewed_s:.0f} s ago"
    text = f"no operator is active, or {since}: caps stay as they are, no limit that is changed is followed, no pod is admitted"
    fix = f"kubectl -n {seen.namespace} get deploy,pods -l app.kubernetes.io/component=operator"
    yield Finding(Gravity.BROKEN, "NobodyReigns", "operator", text, fix)


def _folded(found: Iterable[Finding], budgets: Sequence[Object]) -> list[Finding]:
    """Without what a budget only repeats of one below it."""
    parents = {obj["metadata"]["name"]: obj["spec"].get("parent", "") for obj in budgets}
    rows = list(found)
    below: set[tuple[str, str]] = set()
    for row in rows:
        name = parents.get(row.subject.removeprefix("PowerBudget "), "")
        passed: set[str] = set()
        while name and name not in passed:
            passed.add(name)
            below.add((f"PowerBudget {name}", row.check))
            name = parents.get(name, "")
    own = {"MeasuredAboveLimit", "ChargedAboveLimit", "AboveLimit", "MinimumCapsAboveLimit", "MeterStale", "Contradicted"}
    return [row for row in rows if row.check in own or (row.subject, row.check) not in below]


def _silent_nodes(seen: SiteSnapshot) -> Iterator[Finding]:
    """Nodes of which no agent ever spoke: they are charged their flat rate, and nothing is capped."""
    silent = sorted(name_of(obj) for obj in seen.node_powers if not conditions_of(obj))
    if silent:
        text = f"no agent has ever answered on {counted(len(silent), 'node')}: {some(silent)}"
        yield Finding(Gravity.BROKEN, "NoAgent", "nodes", text, "splitwatt doctor")


def budget_rows(budgets: Sequence[Object]) -> list[BudgetRow]:
    """Trees from their roots down, by name; what names a parent that is not there, or a circle, stands as a root."""
    known = named(budgets)
    children: dict[str, list[str]] = {}
    for name in sorted(known):
        children.setdefault(str(known[name]["spec"].get("parent") or ""), []).append(name)
    rows: list[BudgetRow] = []
    placed: set[str] = set()

    def place(name: str, depth: int) -> None:
        if name in placed:
            return
        placed.add(name)
        rows.append(_budget_row(known[name], depth))
        for child in children.get(name, ()):
            place(child, depth + 1)

    roots = [name for parent, names in sorted(children.items()) if parent not in known for name in names]
    for name in (*roots, *sorted(known)):
        place(name, 0)
    return rows


def _budget_row(obj: Object, depth: int) -> BudgetRow:
    spec, status = obj["spec"], obj.get("status") or {}
    return BudgetRow(
        name=obj["metadata"]["name"],
        parent=str(spec.get("parent") or ""),
        depth=depth,
        limit_w=spec["limitWatts"],
        in_force_w=status.get("limitInForceWatts"),
        charge_w=status.get("chargeWatts"),
        measured_w=status.get("measuredWatts"),
        posture=str(status.get("posture") or ""),
        nodes=status.get("nodes", 0),
        gpus=status.get("gpus", 0),
        ready=_ready_word(obj),
    )


def _node_row(obj: Object) -> NodeRow:
    status = obj.get("status") or {}
    budgets = (obj.get("spec") or {}).get("budgets") or [""]
    return NodeRow(
        name=obj["metadata"]["name"],
        leaf=budgets[0],
        gpus=status.get("gpuCount", 0),
        healthy=status.get("healthyGpuCount", 0),
        caps_w=status.get("enforcedCapWattsTotal"),
        ready=_ready_word(obj),
    )


def _cluster_row(obj: Object) -> ClusterRow:
    spec, status = obj["spec"], obj.get("status") or {}
    roles: dict[str, tuple[int, int, int]] = {}
    for role in ROLES:
        if role in spec:
            told = status.get(role) or {}
            wanted = told.get("wantedReplicas", (spec[role] or {}).get("replicas", 0))
            roles[role] = (told.get("readyReplicas", 0), told.get("admittedReplicas", 0), wanted)
    slo = spec.get("slo") or {}
    return ClusterRow(
        name=name_of(obj),
        roles=roles,
        ttft_ms=status.get("ttftP99Milliseconds"),
        ttft_limit_ms=slo.get("ttftP99Milliseconds"),
        tbt_ms=status.get("tbtP99Milliseconds"),
        tbt_limit_ms=slo.get("tbtP99Milliseconds"),
        ready=_ready_word(obj),
    )


def _ready_word(obj: Object) -> str:
    """The reason of Ready, or what else is wrong with it: the worst condition's. What is only news says less than Ready does."""
    ready = condition(obj, "Ready")
    bad = [(severity.rank, c.reason) for severity, c in judged(obj) if severity is not Gravity.NOTE or c.type not in OF_OBSERVE]
    if bad:
        return min(bad)[1]
    return "" if ready is None else ready.reason
