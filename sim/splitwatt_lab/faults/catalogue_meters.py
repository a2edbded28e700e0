"""Scenes of rack meters: what a PDU, its exporter and its series do in the field."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from splitwatt_lab.faults import expectations as say
from splitwatt_lab.faults.meters import MeterBroken
from splitwatt_lab.faults.scene import Expect, Scene

RACK: Final = "a2"
LEAF: Final = f"rack-{RACK}"


def _scene(
    name: str,
    shows: Mapping[str, Any],
    promise: str,
    expects: tuple[Expect, ...],
    *,
    hold_s: float = 10,
    credible: bool = False,
) -> Scene:
    """A broken meter on one rack while the other is cut: it must neither stop the cut, nor brake, nor let anybody rise.
    `credible`: what it shows could be true. Beside a fault that lowers its own rack's limit, or raises the other's draw, it
    may show more than that limit, and its rack and all above may say so."""
    return Scene(
        name=f"meter-{name}", group="meters", hold_s=hold_s, cut=say.CUT, promise=promise, expects=expects,
        forbids=say.braked(say.CUT) if credible else say.BRAKED, forbids_alone=say.BRAKED,
        recovery_s=60, faults=(MeterBroken(rack=RACK, shows=shows, touch=(f"meter:{RACK}",)),),
    )  # fmt: skip


CONTRADICTED: Final = (say.meter_says(LEAF, "Contradicted"),)
IMPLAUSIBLE: Final = (say.meter_says(LEAF, "Implausible"),)
STALE: Final = (say.meter_says(LEAF, "MeterStale"),)
NO_DATA: Final = (say.stale(LEAF),)

METERS: Final = (
    _scene("reads-0", {"show": 0}, "0 W contradicts what the agents' own GPUs draw, and lets go of nothing.", CONTRADICTED),
    _scene("reads-nan", {"show": "NaN"}, "NaN is no data: nothing is raised.", NO_DATA),
    _scene("reads-infinity", {"show": "+Inf"}, "Neither is +Inf: nobody brakes.", NO_DATA),
    _scene("reads-less-than-nothing", {"show": -500}, "Nor is a negative reading.", NO_DATA),
    _scene(
        "stuck",
        {"hold": True},
        "A meter that never moves cannot be told from a steady load; the ledger holds.",
        (),
        credible=True,
    ),
    _scene("shows-the-other-rack", {"rack": "a1"}, "Another rack's watts harm nobody: the ledger holds.", (), credible=True),
    _scene("reads-65535", {"show": 65_535}, "A value that no sum of GPUs can reach is refused, and nobody brakes.", IMPLAUSIBLE),
    _scene("reads-4294967295", {"show": 4_294_967_295}, "The same for the largest of all; nobody ends.", IMPLAUSIBLE),
    _scene("in-units-of-10-w", {"scale": 0.1}, "A wrong unit contradicts the agents.", CONTRADICTED),
    _scene("in-kilowatts", {"scale": 0.001}, "The same in kilowatts.", CONTRADICTED),
    _scene("in-milliwatts", {"scale": 1000}, "The same in milliwatts.", IMPLAUSIBLE),
    _scene("late-by-20-s", {"late_s": 20}, "Old samples are stale, whatever they say.", STALE, hold_s=15),
    _scene("seen-twice", {"twice": True}, "Two series where one is expected are an error, not a sum.", NO_DATA),
    _scene("gone", {"gone": True}, "No series is no data.", NO_DATA),
)
