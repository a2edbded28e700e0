"""The brake: a word that lowers a node's GPUs at once, beside their NodePower (docs/protocol.md, R25-R30).

It carries a grant number: the last one that its operator has given out to anybody. So every grant decided after it has a higher
number, and lifts it; one that was decided before it, and arrives after it, does not. A number is all that lifts it: no lapse of
time, no reconnect, no restart of either side.

What it protects: nothing that comes by this way raises a cap or a clock. It therefore needs no ledger: charges stay what grants
made them, and a brake that is lost, late or sent twice is charged for nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from splitwatt_core.protocol.milliwatts import MW_PER_W


class Depth(StrEnum):
    """How far down. It becomes watts when the brake arrives (R27): a later grant's safe cap may be higher."""

    CLOCKS = "Clocks"
    """Caps stay: only clocks are locked."""
    SAFE = "Safe"
    MINIMUM = "Minimum"


@dataclass(frozen=True, slots=True)
class BrakeOrder:
    """What an operator asks of one node. `grant`: the last number it has given out to anybody, sent or not, of any node; one
    that has given out none uses (term, 0), which lies above all of its predecessors (R25). `uuids` empty: all GPUs."""

    grant: int
    to: Depth = Depth.SAFE
    max_clock_mhz: int | None = None
    uuids: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if self.grant <= 0:
            raise ValueError(f"a brake needs a grant number above 0, not {self.grant}")
        if self.to is Depth.CLOCKS and self.max_clock_mhz is None:
            raise ValueError("a brake to Clocks needs the megahertz that clocks are locked to")

    def names(self, uuid: str) -> bool:
        return not self.uuids or uuid in self.uuids


@dataclass(frozen=True, slots=True)
class Brake:
    """What holds one GPU. None: that of the two is not braked."""

    grant: int
    cap_w: int | None = None
    max_clock_mhz: int | None = None

    def beside(self, other: Brake | None) -> Brake:
        """Of two brakes the lower watts and clocks and the higher number stand (R26)."""
        if other is None:
            return self
        return Brake(max(self.grant, other.grant), lower(self.cap_w, other.cap_w), lower(self.max_clock_mhz, other.max_clock_mhz))

    def lifted_by(self, grant: int) -> bool:
        """Whether a grant of this number was decided after it (R26)."""
        return grant > self.grant


def lower(first: int | None, second: int | None) -> int | None:
    """Of two ceilings; None is none."""
    return second if first is None else first if second is None else min(first, second)


def arrived(order: BrakeOrder, *, safe_w: int | None, min_w: int) -> Brake:
    """The order in watts, for one GPU, as it arrives. `safe_w`: the safe cap of the highest grant taken in; None: nothing was
    ever granted, and its minimum stands for it."""
    deep_w = min_w if order.to is Depth.MINIMUM or safe_w is None else safe_w
    return Brake(order.grant, None if order.to is Depth.CLOCKS else deep_w, order.max_clock_mhz)


def brake_to_wire(brake: Brake) -> dict[str, Any]:
    wire = {"grant": brake.grant, "capWatts": brake.cap_w, "maxClockMegahertz": brake.max_clock_mhz}
    return {key: value for key, value in wire.items() if value is not None}


def brake_from_wire(raw: Any) -> Brake:
    """Raises ValueError, TypeError."""
    rows = {"grant": raw["grant"], "cap_w": raw.get("capWatts"), "max_clock_mhz": raw.get("maxClockMegahertz")}
    if any(value is not None and (type(value) is not int or value < 0) for value in rows.values()):
        raise ValueError(f"{raw} is no brake")
    return Brake(**rows)


def brake_told(raw: Any) -> Brake | None:
    """In a status. None: there is none, or none that can be understood, which no API server with our schema takes."""
    try:
        return None if raw is None else brake_from_wire(raw)
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


class BrakesInForce:
    """Those in force on one node. `told`: the durable ones, which an acknowledgement may name (R28, R30)."""

    def __init__(self, found: Mapping[str, Brake]) -> None:
        self.now: dict[str, Brake] = dict(found)
        self.told: Mapping[str, Brake] = dict(found)
        self.fresh = False
        """One came since the last tick."""

    def take(self, uuid: str, brake: Brake) -> bool:
        """Whether it changed what is in force."""
        before = self.now.get(uuid)
        self.now[uuid] = after = brake.beside(before)
        self.fresh |= after != before
        return after != before

    def lift(self, uuid: str, *, by: int) -> None:
        """A grant was taken in; the record that it goes onto has the brake no more (R28)."""
        brake = self.now.get(uuid)
        if brake is not None and brake.lifted_by(by):
            del self.now[uuid]

    def cap_w(self, uuid: str) -> int | None:
        brake = self.now.get(uuid)
        return None if brake is None else brake.cap_w

    def max_clock_mhz(self, uuid: str) -> int | None:
        brake = self.now.get(uuid)
        return None if brake is None else brake.max_clock_mhz

    def obeyed(self, uuid: str, limits_mw: Sequence[int | None], *, min_mw: int) -> bool:
        """Whether it is durable, and these limits are at or below it; None: one could not be read. A lock of clocks is not read
        back. True where none is in force: a later grant came."""
        brake = self.now.get(uuid)
        if brake is None:
            return True
        at_most_mw = None if brake.cap_w is None else max(brake.cap_w * MW_PER_W, min_mw)
        low = at_most_mw is None or all(mw is not None and mw <= at_most_mw for mw in limits_mw)
        return low and self.told.get(uuid) == brake

    def durable(self) -> None:
        self.told = dict(self.now)

    def ticked(self) -> bool:
        """Whether one came since the last tick."""
        fresh, self.fresh = self.fresh, False
        return fresh
