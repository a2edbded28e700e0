"""What people are told about budgets: conditions say the state, reasons say why, notes say what just changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from splitwatt_core.budget.books import Book
from splitwatt_core.budget.facts import BudgetReport, Note
from splitwatt_core.budget.fleet import Fleet
from splitwatt_core.budget.survey import Survey
from splitwatt_core.budget.tree import BudgetSpec, Tree
from splitwatt_core.columns import TOLERANCE_W, Posture
from splitwatt_core.conditions import Condition
from splitwatt_core.policies.signature import Decision, Reason
from splitwatt_core.protocol.contract import Health, Mode

MAX_NAMED = 3
"""Objects named in one sentence; the rest are counted."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """Everything one step knows when it reports. Arrays float64[B] in `fleet.names` order; mute bool[N]: GPUs that are not
    counted on, for their agents do not answer."""

    fleet: Fleet
    tree: Tree
    budgets: Mapping[str, BudgetSpec]
    books: Mapping[str, Book]
    surveys: tuple[Survey, ...]
    short_w: NDArray[np.float64]
    safe_over_w: Mapping[str, float]
    conflicts: Mapping[str, tuple[str, ...]]
    frozen: Mapping[str, str]
    decisions: Mapping[str, Decision]
    mute: NDArray[np.bool_]


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:MAX_NAMED])
    return shown if len(names) <= MAX_NAMED else f"{shown} and {len(names) - MAX_NAMED} more"


def report(j: Judgement, now_s: float) -> tuple[dict[str, BudgetReport], list[Note]]:
    """One report per budget, and a note for every condition that turned since the last step."""
    sick, reasons = _sick_by_leaf(j), _reasons_by_leaf(j)
    reports: dict[str, BudgetReport] = {}
    notes: list[Note] = []
    for b, name in enumerate(j.fleet.names):
        spec, book = j.budgets[name], j.books[name]
        conditions = (
            _ready(j, b, name, book),
            _within(book, j.surveys[b], observes=_observes(j, name)),
            _fresh(spec, book, now_s),
            _enforced(sick.get(name, [])),
            _feasible(j, b, name),
        )
        notes.extend(_turned(name, book, conditions))
        reports[name] = BudgetReport(
            name=name,
            limit=book.limit,
            charge_w=j.surveys[b].charged_w,
            measured_w=book.measured_w,
            posture=book.posture,
            nodes=int(j.fleet.nodes[b]),
            gpus=int(j.fleet.gpu_count[b]),
            short_w=float(j.short_w[b]),
            adoption_s=book.adoption_s,
            conditions=conditions,
            reasons=tuple(reasons.get(name, ())),
        )
    return reports, notes


def _reasons_by_leaf(j: Judgement) -> dict[str, list[Reason]]:
    """The policies' reasons by the leaf they speak of; indices in them count within the root's own tree."""
    members: dict[str, list[str]] = {}
    for name in j.fleet.names:
        members.setdefault(j.tree.root[name], []).append(name)
    found: dict[str, list[Reason]] = {}
    for root, decision in j.decisions.items():
        for reason in decision.reasons:
            found.setdefault(members[root][reason.leaf], []).append(reason)
    return found


def _observes(j: Judgement, name: str) -> bool:
    return j.budgets[j.tree.root[name]].mode is Mode.OBSERVE


def _sick_by_leaf(j: Judgement) -> dict[str, list[str]]:
    """Sentences about GPUs whose caps are not enforced, for their leaf and every budget above it."""
    found: dict[str, list[str]] = {}
    for i, account in enumerate(j.fleet.accounts):
        if account.health is Health.OK:
            continue
        text = f"{j.fleet.owner[i].name}/{account.uuid} {account.health.value}"
        for name in j.tree.chain(j.fleet.names[j.fleet.gpus.leaf[i]]):
            found.setdefault(name, []).append(text)
    return found


def _ready(j: Judgement, b: int, name: str, book: Book) -> Condition:
    if name in j.tree.fault:
        return Condition("Ready", False, "InvalidTree", j.tree.fault[name])
    clashes = [f"{node} ({' and '.join(leaves)})" for node, leaves in sorted(j.conflicts.items()) if name in leaves]
    if clashes:
        text = f"nodes selected by several budgets: {_some(clashes)}; make the nodeSelectors disjoint"
        return Condition("Ready", False, "OverlappingSelectors", text)
    if not book.adopted and not j.surveys[b].nodes:
        return Condition("Ready", False, "NoNodes", "no node is selected, here or below: label nodes or check nodeSelector")
    if not book.adopted:
        return Condition("Ready", False, "Adopting", "its nodes' GPUs are being brought under acknowledged caps")
    if _observes(j, name):
        return Condition("Ready", True, "Observing", "mode is Observe: decides and reports, grants nothing")
    frozen = next((j.frozen[up] for up in j.tree.chain(name) if up in j.frozen), None)
    if frozen is not None:
        return Condition("Ready", True, "RaisesHeld", f"limits are kept; nothing is raised: {frozen}")
    silent = _mute_nodes(j, name)
    if silent:
        text = f"limit {book.limit.spec_w} W is kept; grants to {_some(silent)} are not acknowledged: look at those agents"
        return Condition("Ready", True, "AcknowledgementsLate", text)
    return Condition("Ready", True, "Holding", f"limit {book.limit.spec_w} W is kept")


def _mute_nodes(j: Judgement, name: str) -> list[str]:
    """Nodes below the budget whose agents do not answer, in order."""
    fleet = j.fleet
    below = (i for i in np.flatnonzero(j.mute) if name in j.tree.chain(fleet.names[fleet.gpus.leaf[i]]))
    return sorted({fleet.owner[i].name for i in below})


def _within(book: Book, survey: Survey, *, observes: bool) -> Condition:
    limit_w = book.limit.in_force_w
    if not book.adopted:
        return Condition("WithinBudget", False, "Adopting", "not in force yet")
    if book.measured_w is not None and book.measured_w > limit_w:
        return Condition("WithinBudget", False, "MeasuredAboveLimit", f"measured {book.measured_w:.0f} W, limit {limit_w} W")
    if survey.charged_w > limit_w + TOLERANCE_W:
        text = f"charged {survey.charged_w:.0f} W, limit {limit_w} W: {survey.charged_w - limit_w:.0f} W over"
        text += "; mode is Observe, nothing is lowered" if observes else ", lowering"
        return Condition("WithinBudget", False, "ChargedAboveLimit", text)
    return Condition("WithinBudget", True, "Within", "charge and measurement are within the limit in force")


def _fresh(spec: BudgetSpec, book: Book, now_s: float) -> Condition:
    if spec.meter is None:
        if book.measured_w is None:
            return Condition("TelemetryFresh", False, "AgentsSilent", "no meter, and not every agent gave a sample lately")
        return Condition("TelemetryFresh", True, "AgentsSum", "no meter: the agents' sum is used")
    if book.fresh_reading(spec, now_s) is None:
        return Condition("TelemetryFresh", False, "MeterStale", f"no fresh meter reading: {book.meter_reason}")
    if book.correction.power_w > 0:
        text = f"the meter shows {book.correction.power_w:.0f} W more than declared: raise nonGpuWattsPerNode or fixedWatts"
        return Condition("TelemetryFresh", True, "NonGpuUnderDeclared", text)
    return Condition("TelemetryFresh", True, "Fresh", "the meter's samples are fresh")


def _enforced(sick: list[str]) -> Condition:
    if sick:
        return Condition("CapsEnforced", False, "GpusNotCapped", f"{len(sick)} GPUs: {_some(sick)}")
    return Condition("CapsEnforced", True, "ReadBack", "every cap was read back, management and enforced limit both")


def _feasible(j: Judgement, b: int, name: str) -> Condition:
    if name in j.safe_over_w:
        text = f"safe caps need {j.safe_over_w[name]:.0f} W more than the limit: lower policy.safeCapWatts or raise the limit"
        return Condition("Feasible", False, "SafeCapsAboveLimit", text)
    if j.short_w[b] > 0:
        text = f"minimum caps need {j.short_w[b]:.0f} W more than the limit: raise limitWatts or remove nodes"
        return Condition("Feasible", False, "MinimumCapsAboveLimit", text)
    return Condition("Feasible", True, "Feasible", "minimum caps fit the limit")


def _turned(name: str, book: Book, conditions: tuple[Condition, ...]) -> list[Note]:
    notes: list[Note] = []
    for c in conditions:
        before = book.conditions.get(c.type)
        book.conditions[c.type] = (c.status, c.reason)
        if before is None or before == (c.status, c.reason) or book.posture is Posture.ADOPTING:
            continue
        if before[1] in ("Adopting", "NoNodes"):
            continue  # the note `Adopted` says it once
        if before[0] != c.status or not c.status:
            notes.append(Note("PowerBudget", name, c.reason, c.message, warning=not c.status))
    return notes
