"""Faults of rack meters, laid on what the twin shows to Prometheus: see `splitwatt_twin.meter_faults` for the words."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from splitwatt_lab.faults.ground import Ground
from splitwatt_lab.faults.scene import FaultBase


@dataclass(frozen=True, slots=True, kw_only=True)
class MeterBroken(FaultBase):
    """The meter of `rack` shows something else until healed."""

    rack: str
    shows: Mapping[str, Any]

    def lay(self, ground: Ground, rng: random.Random) -> None:
        _write(ground, _read(ground) | {self.rack: dict(self.shows)})

    def heal(self, ground: Ground) -> None:
        _write(ground, {rack: fault for rack, fault in _read(ground).items() if rack != self.rack})


def _read(ground: Ground) -> dict[str, Any]:
    path = ground.site.meter_faults
    faults: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return faults


def _write(ground: Ground, faults: Mapping[str, Any]) -> None:
    """Whole or not at all, for the twin may read at any moment."""
    path = ground.site.meter_faults
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps(faults))
    fresh.rename(path)
