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
    if book.fresh_reading(spec, now_s) is None:
        return Condition(KIND, False, "MeterStale", f"no fresh meter reading: {book.meter_reason}")
    if book.correction.power_w > 0:
        text = f"the meter shows {book.correction.power_w:.0f} W more than declared: raise nonGpuWattsPerNode or fixedWatts"
        return Condition(KIND, True, "NonGpuUnderDeclared", text)
    return Condition(KIND, True, "Fresh", "the meter's samples are fresh")
