"""What people are told about budgets: conditions say the state, reasons say why, notes say what just changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from splitwatt_core.budget.books import Book
from splitwatt_core.budget.facts import BudgetReport, Note
from splitwatt_core.budget.freshness import silent_agents, telemetry_fresh
from splitwatt_core.budget.moment import Moment
from splitwatt_core.budget.raises import RaiseHolds
from splitwatt_core.budget.survey import Survey
from splitwatt_core.columns import TOLERANCE_W, Posture
from splitwatt_core.conditions import Condition
from splitwatt_core.policies.signature import Decision, Reason
from splitwatt_core.protocol.contract import Health, Mode

MAX_NAMED = 3
"""Objects named in one sentence; the rest are counted."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """What one step came to, to be reported. short_w float64[B]; mute bool[N]: GPUs that are not counted on, for their agents
    do not answer."""

    moment: Moment
    holds: RaiseHolds
    decisions: Mapping[str, Decision]
    short_w: NDArray[np.float64]
    mute: NDArray[np.bool_]


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:MAX_NAMED])
    return shown if len(names) <= MAX_NAMED else f"{shown} and {len(names) - MAX_NAMED} more"


def report(j: Judgement) -> tuple[dict[str, BudgetReport], list[Note]]:
    """One report per budget, and a note for every condition that turned since the last step."""
    m = j.moment
    found, silent = _Findings(j), silent_agents(m)
    reports: dict[str, BudgetReport] = {}
    notes: list[Note] = []
    rows = zip(m.budgets, m.books, m.surveys, m.fleet.gpu_count.tolist(), j.short_w.tolist(), strict=True)
    for b, (spec, book, survey, gpus, short_w) in enumerate(rows):
        name = spec.name
        observes = m.root(b).mode is Mode.OBSERVE
        conditions = (
            _ready(found, name, book, survey, observes=observes),
            _within(book, survey, observes=observes),
            telemetry_fresh(spec, book, m.now_s, silent=silent.get(name, ())),
            _enforced(found.sick.get(name, [])),
            _feasible(short_w, j.holds.safe_over_w.get(name)),
        )
        notes.extend(_turned(name, book, conditions))
        reports[name] = BudgetReport(
            name=name,
            limit=book.limit,
            charge_w=survey.charged_w,
            measured_w=book.measured_w,
            posture=book.posture,
            nodes=survey.nodes,
            gpus=gpus,
            short_w=short_w,
            adoption_s=book.adoption_s,
            conditions=conditions,
            reasons=tuple(found.reasons.get(name, ())),
        )
    return reports, notes


class _Findings:
    """What is to be said of single budgets, by their names, gathered in one pass over the fleet each.

    sick: sentences about GPUs whose caps are not enforced, for their leaf and every budget above it. mute: nodes below whose
    agents do not answer. clashes: nodes that several leaves select. reasons: the policies', by the leaf they speak of."""

    def __init__(self, j: Judgement) -> None:
        m, tree, fleet = j.moment, j.moment.tree, j.moment.fleet
        self.tree, self.held = tree, j.holds.held
        self.sick: dict[str, list[str]] = {}
        for i, account in enumerate(fleet.accounts):
            if account.health is not Health.OK:
                text = f"{fleet.owner[i].name}/{account.uuid} {account.health.value}"
                for name in tree.chain(tree.order[fleet.gpus.leaf[i]]):
                    self.sick.setdefault(name, []).append(text)
        self.mute: dict[str, set[str]] = {}
        for i in np.flatnonzero(j.mute).tolist():
            for name in tree.chain(tree.order[fleet.gpus.leaf[i]]):
                self.mute.setdefault(name, set()).add(fleet.owner[i].name)
        self.clashes: dict[str, list[str]] = {}
        for node, leaves in sorted(m.conflicts.items()):
            for leaf in leaves:
                self.clashes.setdefault(leaf, []).append(f"{node} ({' and '.join(leaves)})")
        self.reasons: dict[str, list[Reason]] = {}
        for root, decision in j.decisions.items():
            for reason in decision.reasons:  # which count leaves within the root's own tree
                self.reasons.setdefault(tree.order[tree.index[root] + reason.leaf], []).append(reason)


def _ready(found: _Findings, name: str, book: Book, survey: Survey, *, observes: bool) -> Condition:
    if name in found.tree.fault:
        return Condition("Ready", False, "InvalidTree", found.tree.fault[name])
    if name in found.clashes:
        text = f"nodes selected by several budgets: {_some(found.clashes[name])}; make the nodeSelectors disjoint"
        return Condition("Ready", False, "OverlappingSelectors", text)
    if not book.adopted and not survey.nodes:
        return Condition("Ready", False, "NoNodes", "no node is selected, here or below: label nodes or check nodeSelector")
    if not book.adopted:
        return Condition("Ready", False, "Adopting", "its nodes' GPUs are being brought under acknowledged caps")
    if observes:
        return Condition("Ready", True, "Observing", "mode is Observe: decides and reports, grants nothing")
    held = next((found.held[up] for up in found.tree.chain(name) if up in found.held), None)
    if held is not None:
        return Condition("Ready", True, "RaisesHeld", f"limits are kept; nothing is raised: {held}")
    if name in found.mute:
        agents = _some(sorted(found.mute[name]))
        text = f"limit {book.limit.spec_w} W is kept; grants to {agents} are not acknowledged: look at those agents"
        return Condition("Ready", True, "AcknowledgementsLate", text)
    return Condition("Ready", True, "Holding", f"limit {book.limit.spec_w} W is kept")


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


def _enforced(sick: list[str]) -> Condition:
    if sick:
        return Condition("CapsEnforced", False, "GpusNotCapped", f"{len(sick)} GPUs: {_some(sick)}")
    return Condition("CapsEnforced", True, "ReadBack", "every cap was read back, management and enforced limit both")


def _feasible(short_w: float, safe_over_w: float | None) -> Condition:
    if safe_over_w is not None:
        text = f"safe caps need {safe_over_w:.0f} W more than the limit: lower policy.safeCapWatts or raise the limit"
        return Condition("Feasible", False, "SafeCapsAboveLimit", text)
    if short_w > 0:
        text = f"minimum caps need {short_w:.0f} W more than the limit: raise limitWatts or remove nodes"
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
