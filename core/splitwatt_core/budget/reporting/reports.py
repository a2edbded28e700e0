"""What people are told about budgets: conditions say the state, reasons say why, notes say what just changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from splitwatt_core.budget.books import Book
from splitwatt_core.budget.facts import BudgetReport, Note, WouldCut
from splitwatt_core.budget.moment import Moment
from splitwatt_core.budget.observing import observing
from splitwatt_core.budget.raises import RaiseHolds
from splitwatt_core.budget.releasing import Releasing
from splitwatt_core.budget.reporting import feasible
from splitwatt_core.budget.reporting.findings import BudgetFindings
from splitwatt_core.budget.reporting.freshness import silent_agents, telemetry_fresh
from splitwatt_core.budget.reporting.steering import Steering
from splitwatt_core.budget.survey import Survey
from splitwatt_core.columns import TOLERANCE_W, Posture
from splitwatt_core.conditions import Condition, counted, some
from splitwatt_core.policies.signature import Decision
from splitwatt_core.protocol.contract import Mode


@dataclass(frozen=True, slots=True)
class Judgement:
    """What one step came to, to be reported. `moment` with the GPUs that nobody counts on at their charge. in_the_way_w
    float64[B]: watts that miss with all others at their minimum. aside, mute bool[N]: GPUs that are not counted on, and those
    of them whose agents do not answer. would: by budget that only observes."""

    moment: Moment
    holds: RaiseHolds
    decisions: Mapping[str, Decision]
    in_the_way_w: NDArray[np.float64]
    aside: NDArray[np.bool_]
    mute: NDArray[np.bool_]
    would: Mapping[str, WouldCut] = field(default_factory=dict)


def report(j: Judgement) -> tuple[dict[str, BudgetReport], list[Note]]:
    """One report per budget that is there, and a note for every condition that turned since the last step."""
    m = j.moment
    found, steering = BudgetFindings(m, aside=j.aside, mute=j.mute, held=j.holds.held), Steering(m)
    releasing = Releasing(m, j.holds)
    reasons, silent = found.reasons(j.decisions), silent_agents(m)
    reports: dict[str, BudgetReport] = {}
    notes: list[Note] = []
    shorts = feasible.shorts(m, in_the_way_w=j.in_the_way_w, safe_over_w=j.holds.safe_over_w)
    rows = zip(m.budgets, m.books, m.surveys, m.fleet.gpu_count.tolist(), shorts, strict=True)
    for b, (spec, book, survey, gpus, short) in enumerate(rows):
        name = spec.name
        if name in m.tree.gone:
            continue
        observes = m.root(b).mode is Mode.OBSERVE
        within = _within(book, survey, observes=observes)
        conditions = (
            _ready(found, name, book, survey, within=within, observes=observes),
            within,
            telemetry_fresh(spec, book, m.now_s, nodes=survey.nodes, silent=silent.get(name, ())),
            _enforced(found, name, survey),
            feasible.feasible(short, aside=found.aside.get(name, ())),
            *steering.conditions(name),
            *releasing.conditions(name),
            *([observing(cut)] if (cut := j.would.get(name)) is not None else ()),
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
            short_w=short.at_minimum_w,
            adoption_s=book.adoption_s,
            conditions=conditions,
            reasons=tuple(reasons.get(name, ())),
            below=found.below.get(name, ()),
            gone=tuple(found.gone.get(name, ())),
            unclaimed=found.unclaimed_names(name),
            mode=None if m.tree.root[name] in m.tree.fault else m.root(b).mode,
            would=cut,
        )
    return reports, notes


def _ready(found: BudgetFindings, name: str, book: Book, survey: Survey, *, within: Condition, observes: bool) -> Condition:
    if name in found.tree.fault:
        return Condition("Ready", False, "InvalidTree", found.tree.fault[name])
    if name in found.clashes:
        text = f"nodes selected by several budgets: {some(found.clashes[name])}; make the nodeSelectors disjoint"
        return Condition("Ready", False, "OverlappingSelectors", text)
    if name in found.gone:
        return Condition("Ready", False, "LeafGone", found.gone_text(name))
    if not book.adopted and not survey.nodes:
        return Condition("Ready", False, "NoNodes", "no node is selected, here or below: label nodes or check nodeSelector")
    if not book.adopted:
        return Condition("Ready", False, "Adopting", "its nodes' GPUs are being brought under acknowledged caps")
    if name in found.unclaimed:
        return Condition("Ready", False, "NodesUnclaimed", found.unclaimed_text(name))
    if survey.nodes and len(found.agentless.get(name, ())) == survey.nodes:
        return Condition("Ready", False, "NoAgent", found.agentless_text(name, nodes=survey.nodes))
    reason, text = _holding(found, name, book, within=within, observes=observes)
    told = (("NodesGone", found.ghosts, found.ghosts_text), ("NodesBeside", found.beside, found.beside_text))
    for worse, rows, text_of in told:
        if name in rows:
            reason, text = (worse, text_of(name)) if reason == "Holding" else (reason, f"{text}; {text_of(name)}")
    return Condition("Ready", reason != "AboveLimit", reason, text)


def _holding(found: BudgetFindings, name: str, book: Book, *, within: Condition, observes: bool) -> tuple[str, str]:
    """Reason and sentence of a budget that is in force and has nothing that a person must mend."""
    if observes:
        return "Observing", "mode is Observe: decides and reports, grants nothing"
    kept = f"limit {book.limit.spec_w} W is kept" if within.status else within.message
    held = next((found.held[up] for up in found.tree.chain(name) if up in found.held), None)
    if held is not None:
        return "RaisesHeld", f"{'limits are kept' if within.status else within.message}; nothing is raised: {held}"
    if name in found.mute:
        agents = some(sorted(found.mute[name]))
        return "AcknowledgementsLate", f"{kept}; grants to {agents} are not acknowledged: look at those agents"
    return ("Holding" if within.status else "AboveLimit"), kept


def _within(book: Book, survey: Survey, *, observes: bool) -> Condition:
    limit_w = book.limit.in_force_w
    if not book.adopted:
        return Condition("WithinBudget", False, "Adopting", "not in force yet")
    if book.measured is not None and book.measured.power_w > (held_w := book.limit_over_w(book.measured)):
        return Condition("WithinBudget", False, "MeasuredAboveLimit", f"measured {book.measured.power_w:.0f} W, limit {held_w} W")
    if survey.charged_w > limit_w + TOLERANCE_W:
        text = f"charged {survey.charged_w:.0f} W, limit {limit_w} W: {survey.charged_w - limit_w:.0f} W over"
        text += "; mode is Observe, nothing is lowered" if observes else ", lowering"
        return Condition("WithinBudget", False, "ChargedAboveLimit", text)
    return Condition("WithinBudget", True, "Within", "charge and measurement are within the limit in force")


def _enforced(found: BudgetFindings, name: str, survey: Survey) -> Condition:
    """What comes first is what lasts: without an agent, sick, late."""
    texts: list[tuple[str, str]] = []
    if found.agentless.get(name):
        texts.append(("NoAgent", found.agentless_text(name, nodes=survey.nodes)))
    if name in found.sick:
        texts.append(("GpusNotCapped", f"{counted(len(found.sick[name]), 'GPU')}: {some(found.sick[name])}"))
    if name in found.late:
        late = found.late[name]
        texts.append(("AcknowledgementsLate", f"{counted(len(late), 'GPU')} late to acknowledge the newest grant: {some(late)}"))
    if texts:
        return Condition("CapsEnforced", False, texts[0][0], "; ".join(text for _, text in texts))
    text = "every cap was read back, management and enforced limit both"
    if found.bare.get(name):
        text += f"; counted at its flat rate, without an agent: {some(found.bare[name])}"
    return Condition("CapsEnforced", True, "ReadBack", text)


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
