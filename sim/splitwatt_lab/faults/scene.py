"""What a scene is: a promise, the faults that test it, and what may be seen meanwhile. Data only.

A scene goes: healthy -> faults laid (perhaps a limit cut beside them) -> `hold_s` -> faults taken away -> healthy again, and
a probe cut is obeyed. What it may cost is an `Excuse` of its faults: a window in which seconds above a limit are no breach
of the promise, with the sentence that says what covers them. Everything outside these windows is a violation.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

if TYPE_CHECKING:
    from splitwatt_lab.faults.ground import Ground

ANY: Final = "*"
API_SERVER: Final = "api"
"""What a fault touches that takes the API server away."""


@dataclass(frozen=True, slots=True)
class Excuse:
    """Seconds above a limit that no rule promises to prevent. `why` names the rule and what covers them.

    The window begins when the fault is laid. It ends `after_s` after that, or with `until_healed` after it was taken away.
    `cut_only`: only a limit that was lowered during the scene may be exceeded, and it only matters where one was.
    `budgets` empty: any.
    """

    why: str
    after_s: float
    until_healed: bool = True
    cut_only: bool = False
    budgets: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Expect:
    """A condition: kind `pb`, `np` or `ic`; the object's name, its type and status, each or ANY; one of `reasons` (none: any)."""

    kind: str
    name: str
    type: str
    status: str
    reasons: tuple[str, ...] = ()

    def __str__(self) -> str:
        kind = "" if self.type == ANY else f"{self.type}={self.status} "
        return f"{self.kind}/{self.name} {kind}{'|'.join(self.reasons)}".rstrip()


class Injector(Protocol):
    """Something that is done to the site and taken away again. Both raise LabError when they cannot be done.

    `touches` names what it lays hands on (`operator`, `api`, `agent:a1-n1`, `budget:rack-a2` ...): two faults of one pair
    never touch the same. `exits`: ends of processes that belong to it, by name, with the exit code (None: any).
    """

    @property
    def touches(self) -> frozenset[str]: ...
    @property
    def excuse(self) -> Excuse | None: ...
    @property
    def exits(self) -> Mapping[str, int | None]: ...
    def lay(self, ground: Ground, rng: random.Random) -> None: ...
    def heal(self, ground: Ground) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultBase:
    """The usual answers. `touch` is what it lays hands on."""

    touch: tuple[str, ...] = ()
    excuse: Excuse | None = None
    ends: tuple[tuple[str, int | None], ...] = ()

    @property
    def touches(self) -> frozenset[str]:
        return frozenset(self.touch)

    @property
    def exits(self) -> Mapping[str, int | None]:
        return dict(self.ends)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """`cut`: the budget whose limit is cut while the faults stand (`cut_healed`: right after they were taken away).

    `expects` must be seen between the laying and the end, `forbids` never (beside what `expectations.ALWAYS_FORBIDDEN` holds).
    `forbids_alone`: neither, but beside another fault it may well be so.
    `steady`: racks whose caps must not fall: nothing was done to them. `fast`: played by `make test`. `paired`: may be
    drawn for random pairs. `convicted`: the runner's own test, which must be found guilty. `fresh`: nothing is played on
    the site afterwards. `alone`: it takes the whole machine, so no other site plays beside it. `may_be_infeasible`: limits below
    minimum caps are part of it.
    """

    name: str
    group: str
    promise: str
    faults: tuple[Injector, ...]
    hold_s: float = 8.0
    cut: str | None = None
    cut_healed: bool = False
    expects: tuple[Expect, ...] = ()
    forbids: tuple[Expect, ...] = ()
    forbids_alone: tuple[Expect, ...] = ()
    steady: tuple[str, ...] = ()
    recovery_s: float = 40.0
    fast: bool = False
    paired: bool = True
    convicted: bool = False
    fresh: bool = False
    alone: bool = False
    may_be_infeasible: bool = False

    @property
    def touches(self) -> frozenset[str]:
        return frozenset().union(*(fault.touches for fault in self.faults))

    @property
    def excuses(self) -> tuple[Excuse, ...]:
        return tuple(fault.excuse for fault in self.faults if fault.excuse is not None)

    @property
    def exits(self) -> dict[str, int | None]:
        return {name: code for fault in self.faults for name, code in fault.exits.items()}


def pair_of(first: Scene, second: Scene) -> Scene:
    """Both scenes' faults at once. What each of them expects to be told may be hidden by the other; what both forbid holds.
    Who takes the API server away comes last, for most other faults are laid through it."""
    return Scene(
        name=f"{first.name} + {second.name}",
        group="pairs",
        promise="Both promises hold together.",
        faults=tuple(sorted((*first.faults, *second.faults), key=lambda fault: API_SERVER in fault.touches)),
        hold_s=max(first.hold_s, second.hold_s),
        cut=first.cut or second.cut,
        cut_healed=first.cut_healed or second.cut_healed,
        forbids=tuple(f for f in (*first.forbids, *second.forbids) if f not in (*first.expects, *second.expects)),
        recovery_s=first.recovery_s + second.recovery_s,
        fresh=first.fresh or second.fresh,
        may_be_infeasible=first.may_be_infeasible or second.may_be_infeasible,
    )


def draw_pairs(scenes: tuple[Scene, ...], count: int, rng: random.Random) -> list[Scene]:
    """`count` different pairs that do not lay hands on the same thing; fewer when there are no more."""
    able = [scene for scene in scenes if scene.paired]
    every = [
        (a, b)
        for k, a in enumerate(able)
        for b in able[k + 1 :]
        if not a.touches & b.touches and not (a.cut and b.cut and a.cut != b.cut)
    ]
    rng.shuffle(every)
    return [pair_of(*pair) for pair in every[:count]]


Json = dict[str, Any]
