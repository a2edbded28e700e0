"""Meters that lie: what a rack's series shows instead of its reading, changed while the twin runs.

A JSON file names the racks whose meters are broken; it is read at every scrape, and no file means that all are sound:

    {"a1": {"show": "NaN"}, "a2": {"scale": 0.1}}

`show`: this value, whatever is drawn (a number, or NaN, +Inf, -Inf as text). `rack`: the reading of another rack.
`scale`: the reading times this (0.1 for a meter that counts in units of 10 W). `late_s`: with a timestamp so many seconds
old. `twice`: a second series of the same rack beside it. `hold`: the reading at the moment the fault began, for ever.
`gone`: no series at all.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from splitwatt_core.names import L_RACK

log = logging.getLogger(__name__)

_KEYS: Final = frozenset({"show", "rack", "scale", "late_s", "twice", "hold", "gone"})


@dataclass(frozen=True, slots=True)
class MeterSeries:
    """One sample to expose. `at_s` None: of now, as most meters' are."""

    labels: Mapping[str, str]
    power_w: float
    at_s: float | None = None


@dataclass(slots=True)
class MeterFaults:
    """`path` None: never a fault. What was held stays held until its fault is taken away."""

    path: Path | None
    _held: dict[str, float] = field(default_factory=dict)
    _told: str = ""

    def shown(self, readings: Mapping[str, float], now_s: float) -> list[MeterSeries]:
        """The series of all racks: `readings` in watts by rack, as sound meters would show them at `now_s` (Unix time)."""
        faults = self._read()
        for rack in [rack for rack in self._held if "hold" not in faults.get(rack, {})]:
            del self._held[rack]
        return [series for rack in readings for series in self._series(rack, readings, faults.get(rack, {}), now_s)]

    def _series(self, rack: str, readings: Mapping[str, float], fault: Mapping[str, Any], now_s: float) -> list[MeterSeries]:
        if fault.get("gone"):
            return []
        power_w = readings.get(fault.get("rack", rack), 0.0) * float(fault.get("scale", 1.0))
        if fault.get("hold"):
            power_w = self._held.setdefault(rack, power_w)
        if "show" in fault:
            power_w = float(fault["show"])
        at_s = now_s - float(fault["late_s"]) if "late_s" in fault else None
        first = MeterSeries({L_RACK: rack}, power_w, at_s)
        return [first, MeterSeries({L_RACK: rack, "outlet": "2"}, power_w, at_s)] if fault.get("twice") else [first]

    def _read(self) -> Mapping[str, Mapping[str, Any]]:
        """The faults in the file. One that cannot be read is no fault, and is said once: scraping must go on."""
        if self.path is None:
            return {}
        try:
            raw = json.loads(self.path.read_text(encoding="utf-8"))
            for rack, fault in raw.items():
                if unknown := set(fault) - _KEYS:
                    raise ValueError(f"{rack}: unknown key {min(unknown)}; known are {', '.join(sorted(_KEYS))}")
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, AttributeError, TypeError) as error:
            if str(error) != self._told:
                self._told = str(error)
                log.error("%s holds no faults of meters that can be read (%s); all meters are shown sound", self.path, error)
            return {}
        faults: Mapping[str, Mapping[str, Any]] = raw
        return faults
