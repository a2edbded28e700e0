"""What a budget that only observes would grant, told in the NodePower beside the grants.

Protected: nobody can obey it by accident. A row is no `Grant`: it has no number, so nothing about it can be acknowledged, none
of its words is a word of a grant, and no part of the agent takes one. The API server refuses such rows beside any mode but
Observe, and a row that cannot be read is left out: it must never make the grants beside it unreadable.

Rows are for people. They follow a decision by `STEP_W`, so that a policy that moves by a watt writes no object; the metrics
have every watt.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

STEP_W: Final = 10
"""A row is written anew when its cap has moved this far, or its lock at all."""


@dataclass(frozen=True, slots=True)
class WouldBe:
    """One GPU: the power limit in watts and the clock lock in MHz (None: none) that the tree's policy would ask for."""

    uuid: str
    cap_w: int
    max_clock_mhz: int | None = None


def steady(old: Sequence[WouldBe], new: Sequence[WouldBe]) -> tuple[WouldBe, ...]:
    """`new`, but with the rows of `old` where those are near enough."""
    known = {row.uuid: row for row in old}
    return tuple(kept if (kept := known.get(row.uuid)) is not None and _near(kept, row) else row for row in new)


def _near(old: WouldBe, new: WouldBe) -> bool:
    return old.max_clock_mhz == new.max_clock_mhz and abs(old.cap_w - new.cap_w) < STEP_W


def would_from_wire(rows: Any) -> tuple[WouldBe, ...]:
    """`spec.wouldBe`, as far as it can be read."""
    return tuple(found for row in (rows if isinstance(rows, list) else ()) if (found := _row(row)) is not None)


def _row(raw: Any) -> WouldBe | None:
    if not isinstance(raw, Mapping):
        return None
    uuid, cap_w, clock_mhz = raw.get("uuid"), raw.get("wouldCapWatts"), raw.get("wouldMaxClockMegahertz")
    numbers = [cap_w] if clock_mhz is None else [cap_w, clock_mhz]
    if not isinstance(uuid, str) or not all(type(number) is int for number in numbers):
        return None
    assert isinstance(cap_w, int)
    return WouldBe(uuid, cap_w, clock_mhz)


def would_to_wire(rows: Iterable[WouldBe]) -> list[dict[str, Any]]:
    return [
        {"uuid": row.uuid, "wouldCapWatts": row.cap_w}
        | ({} if row.max_clock_mhz is None else {"wouldMaxClockMegahertz": row.max_clock_mhz})
        for row in rows
    ]
