"""Conditions of a status, as Kubernetes has them (metav1.Condition): one type, and one place where they are composed.

Operator and agent say what holds now; `merge` lays that over what stands in the status. Protected: `last_transition` moves
when `status` does and at no other time, whatever reason, message or generation do, so that "since when" can be believed;
and no list grows beyond what the API server takes, for it would refuse the whole status with it. `some` and `counted` say
how many objects a message names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any, Final

MAX_TYPE_CHARS: Final = 64
MAX_REASON_CHARS: Final = 128
MAX_MESSAGE_CHARS: Final = 4096
MAX_CONDITIONS: Final = 16
"""The bounds that the CustomResourceDefinitions set."""

MAX_NAMED: Final = 3
"""Objects named in one sentence; the rest are counted."""

_WORDS: Final[Mapping[bool | None, str]] = {True: "True", False: "False", None: "Unknown"}
_NUMBER: Final = re.compile(r"\d+(?:\.\d+)?")


@dataclass(frozen=True, slots=True)
class Condition:
    """One aspect of a state. `status` None is Unknown; `reason` in CamelCase; `message` for people, with the numbers.

    `last_transition` (RFC 3339) is set by `merge` and "" before, so that two equal conditions say the same thing."""

    type: str
    status: bool | None
    reason: str
    message: str
    last_transition: str = ""
    observed_generation: int | None = None


class ConditionChange(IntEnum):
    """How far two lists of conditions differ; each step is worth a write sooner than the one before."""

    NOTHING = 0
    NUMBERS = 1
    """Messages, and in these only numbers."""
    WORDS = 2
    """Messages."""
    JUDGEMENT = 3
    """A type, a status, a reason, or the generation that was judged."""


def merge(
    new: Sequence[Condition],
    previous: Iterable[Condition],
    *,
    now: str,
    generation: int | None = None,
    keep_others: bool = False,
) -> tuple[Condition, ...]:
    """`new` in its order, each since when it has its status: as in `previous`, or since `now` (RFC 3339). Of one type the
    last one counts. `generation` is put on the new ones. With `keep_others` what `new` does not speak of follows unchanged."""
    known = {c.type: c for c in previous}
    said = {c.type: c for c in new}
    rows = [_since(_bounded(c, generation), known.get(c.type), now) for c in said.values()]
    if keep_others:
        rows += [c for c in known.values() if c.type not in said]
    return tuple(rows[:MAX_CONDITIONS])


def change_of(old: Iterable[Condition], new: Iterable[Condition]) -> ConditionChange:
    """Order and times make no difference."""
    before, after = {c.type: c for c in old}, {c.type: c for c in new}
    if before.keys() != after.keys() or any(_judgement(before[kind]) != _judgement(after[kind]) for kind in before):
        return ConditionChange.JUDGEMENT
    messages = [(before[kind].message, after[kind].message) for kind in before]
    if any(_NUMBER.sub("#", was) != _NUMBER.sub("#", now) for was, now in messages):
        return ConditionChange.WORDS
    return ConditionChange.NUMBERS if any(was != now for was, now in messages) else ConditionChange.NOTHING


def condition_from_wire(row: Mapping[str, Any]) -> Condition:
    """One entry of `status.conditions`. What is missing reads as empty, a status of any other word as Unknown."""
    return Condition(
        type=row.get("type", ""),
        status={"True": True, "False": False}.get(row.get("status", "")),
        reason=row.get("reason", ""),
        message=row.get("message", ""),
        last_transition=row.get("lastTransitionTime", ""),
        observed_generation=row.get("observedGeneration"),
    )


def condition_to_wire(condition: Condition) -> dict[str, Any]:
    row: dict[str, Any] = {
        "type": condition.type,
        "status": _WORDS[condition.status],
        "reason": condition.reason,
        "message": condition.message,
        "lastTransitionTime": condition.last_transition,
    }
    if condition.observed_generation is not None:
        row["observedGeneration"] = condition.observed_generation
    return row


def _judgement(condition: Condition) -> tuple[object, ...]:
    return condition.status, condition.reason, condition.observed_generation


def _bounded(condition: Condition, generation: int | None) -> Condition:
    return replace(
        condition,
        reason=condition.reason[:MAX_REASON_CHARS],
        message=condition.message[:MAX_MESSAGE_CHARS],
        observed_generation=condition.observed_generation if generation is None else generation,
    )


def _since(condition: Condition, known: Condition | None, now: str) -> Condition:
    kept = known.last_transition if known is not None and known.status == condition.status else ""
    return replace(condition, last_transition=kept or now)


def some(names: Sequence[str], *, between: str = ", ") -> str:
    """The first of them, and how many more there are."""
    shown = between.join(names[:MAX_NAMED])
    return shown if len(names) <= MAX_NAMED else f"{shown} and {len(names) - MAX_NAMED} more"


def counted(count: int, thing: str) -> str:
    """ "1 node", "3 nodes"."""
    return f"{count} {thing}" if count == 1 else f"{count} {thing}s"
