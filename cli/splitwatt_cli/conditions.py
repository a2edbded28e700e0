"""What conditions of our kinds mean for a person on call: how bad, and what to look at next. Pure.

A condition is judged by its type, and where a type says two things by its reason. What a later release adds and nobody judged
here counts as a warning while it is False: something unknown that does not hold is worth a line, and never a page.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from splitwatt_core.conditions import Condition, condition_from_wire

from splitwatt_cli.finding import Finding, Gravity

Object = Mapping[str, Any]

NEWS: Final = frozenset({"Paused", "Observing", "ForeignLimit", "RollingOut", "ScaledElsewhere"})
"""Types that are there to be told while they are True."""
BROKEN_WHEN_FALSE: Final = frozenset({"Ready", "WithinBudget", "Feasible", "SLOAttained"})
NOTES: Final = frozenset(
    {"Adopting", "Observing", "Paused", "NodesExcluded", "Frozen", "NoNodes", "AgentsSum", "RollingOut", "Releasing"}
)
"""Reasons that say what somebody asked for, or what passes by itself."""
NOTES_OBSERVED: Final = frozenset({"ChargedAboveLimit"})
"""Reasons that are no more than that while a tree observes: charges are what GPUs may draw uncapped, and a limit worth having
is below them from the first minute. What a meter reads above the limit is as bad as ever."""
TRUE_AND_YET: Final = frozenset(
    {
        "NodesGone", "NodesBeside", "RaisesHeld", "AcknowledgementsLate", "UndeclaredInTheWay", "ChargesInTheWay",
        "NonGpuUnderDeclared", "Guarding", "WorkloadsStale", "UnknownDevices", "SetByAnother", "ServingInterrupted",
    }
)  # fmt: skip
"""Reasons of conditions that hold, and of which a person should hear all the same."""
SHORT_NAMES: Final = {"PowerBudget": "budget", "NodePower": "node", "InferenceCluster": "ic"}


def conditions_of(obj: Object) -> list[Condition]:
    return [condition_from_wire(row) for row in (obj.get("status") or {}).get("conditions") or ()]


def condition(obj: Object, kind: str) -> Condition | None:
    return next((c for c in conditions_of(obj) if c.type == kind), None)


def observes(obj: Object) -> bool:
    """Of a budget: its tree is in mode Observe."""
    return any(row.type == "Observing" and row.status is True for row in conditions_of(obj))


def severity_of(row: Condition, *, observed: bool = False) -> Gravity | None:
    """None: as it should be, or nothing is known. `observed`: the object is a budget whose tree observes."""
    if row.status is None:
        return None
    if row.status is (row.type not in NEWS):
        return Gravity.WARNING if row.reason in TRUE_AND_YET else None
    if row.reason in NOTES or (observed and row.reason in NOTES_OBSERVED):
        return Gravity.NOTE
    if row.type in NEWS:
        return Gravity.WARNING if row.reason in TRUE_AND_YET else Gravity.NOTE
    return Gravity.BROKEN if row.type in BROKEN_WHEN_FALSE else Gravity.WARNING


def judged(obj: Object) -> list[tuple[Gravity, Condition]]:
    """What is not as it should be, or is news, worst first; of equally bad ones a limit that nothing can keep: the rest follows
    from it."""
    observed = observes(obj)
    found = [(s, row) for row in conditions_of(obj) if (s := severity_of(row, observed=observed)) is not None]
    return sorted(found, key=lambda pair: (pair[0].rank, pair[1].type != "Feasible"))


def name_of(obj: Object) -> str:
    """ "rack-a1", or "serving/chat" where names belong to namespaces."""
    meta = obj["metadata"]
    return f"{meta['namespace']}/{meta['name']}" if meta.get("namespace") else str(meta["name"])


def explain_command(kind: str, obj: Object) -> str:
    meta = obj["metadata"]
    within = f" -n {meta['namespace']}" if meta.get("namespace") else ""
    return f"splitwatt explain {SHORT_NAMES[kind]} {meta['name']}{within}"


def troubles(kind: str, objects: Sequence[Object]) -> Iterator[Finding]:
    """One finding per cause and object; words that a former condition of the same object said are not said again."""
    for obj in objects:
        said: list[str] = []
        for severity, row in judged(obj):
            if any(row.message in words or words in row.message for words in said):
                continue
            said.append(row.message)
            yield Finding(
                severity, row.reason, f"{kind} {name_of(obj)}", row.message, explain_command(kind, obj), row.last_transition
            )
