"""`TelemetryFresh`: whether what a budget is measured by can be believed now, and what to do where it cannot."""

from __future__ import annotations

from splitwatt_core.budget.books import Book
from splitwatt_core.budget.tree import BudgetSpec
from splitwatt_core.conditions import Condition

KIND = "TelemetryFresh"


def telemetry_fresh(spec: BudgetSpec, book: Book, now_s: float) -> Condition:
    if spec.meter is None:
        if book.measured_w is None:
            return Condition(KIND, False, "AgentsSilent", "no meter, and not every agent gave a sample lately")
        return Condition(KIND, True, "AgentsSum", "no meter: the agents' sum is used")
    doubt = book.meter.doubt
    if doubt.contradicted:
        used = "nothing" if book.measured_w is None else f"the agents' sum with what is declared, {book.measured_w:.0f} W,"
        text = (
            f"the meter reads {doubt.meter_w:.0f} W while the GPUs behind it draw {doubt.drawn_w:.0f} W: "
            f"look at the meter, meter.selector and meter.scale; until then {used} is used instead"
        )
        return Condition(KIND, False, "Contradicted", text)
    if book.meter.refused:
        return Condition(KIND, False, "Implausible", book.meter.refused)
    if book.fresh_reading(spec, now_s) is None:
        return Condition(KIND, False, "MeterStale", f"no fresh meter reading: {book.meter.stale_reason(spec.meter, now_s)}")
    if book.correction.power_w > 0:
        text = f"the meter shows {book.correction.power_w:.0f} W more than declared: raise nonGpuWattsPerNode or fixedWatts"
        return Condition(KIND, True, "NonGpuUnderDeclared", text)
    return Condition(KIND, True, "Fresh", "the meter's samples are fresh")
