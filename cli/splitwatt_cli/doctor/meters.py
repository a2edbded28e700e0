"""Does every budget's meter answer, is its answer young, and can it be true? Pure.

The core judges single samples and refuses those that cannot be true; a person wants to know what to type instead. So where a
reading does not go with what the agents read behind it, the units that exporters are known for are tried, and the one that does
go with it is named.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from pydantic import ValidationError
from splitwatt_api import convert
from splitwatt_client import Object
from splitwatt_core.budget.meters.plausible import CONTRADICTED_SHARE, EXPLAINED_TIMES, contradicts, is_no_value
from splitwatt_core.budget.tree import BudgetSpec

from splitwatt_cli.conditions import condition
from splitwatt_cli.doctor.facts import MeterAnswer, SiteFacts
from splitwatt_cli.finding import Finding, Gravity
from splitwatt_cli.snapshot import named

UNITS: Final[Mapping[str, tuple[int, int]]] = {
    "watts": (1, 1),
    "kilowatts": (1000, 1),
    "hundredths of a kilowatt": (10, 1),
    "tenths of a kilowatt": (100, 1),
    "deciwatts": (1, 10),
    "centiwatts": (1, 100),
    "milliwatts": (1, 1000),
}
"""Watts per unit as numerator and denominator."""


def specs_of(budgets: tuple[Object, ...] | list[Object]) -> dict[str, BudgetSpec]:
    """Those that can be read; of the others the operator says in Ready what is wrong."""
    found: dict[str, BudgetSpec] = {}
    for obj in budgets:
        try:
            found[obj["metadata"]["name"]] = convert.budget_from_wire(obj)
        except (ValidationError, ValueError, KeyError):
            continue
    return found


def check(facts: SiteFacts) -> Iterator[Finding]:
    telemetry = facts.telemetry
    if telemetry.problem:
        return
    objects = named(facts.seen.budgets)
    for name, spec in sorted(specs_of(list(facts.seen.budgets)).items()):
        answer = telemetry.meters.get(name)
        if spec.meter is None or answer is None:
            continue
        subject, selector = f"PowerBudget {name}", spec.meter.selector
        if answer.problem:
            yield Finding(Gravity.BROKEN, "MeterDead", subject, f"its meter was not answered: {answer.problem}", _ask(selector))
        elif answer.series == 0 or answer.value is None or answer.age_s is None:
            text = f"its meter is dead: Prometheus has no sample of {selector} now"
            yield Finding(Gravity.BROKEN, "MeterDead", subject, text, _ask(selector))
        elif answer.age_s > spec.meter.max_age_s:
            text = f"its meter is dead: {selector} was sampled {answer.age_s:.0f} s ago, allowed are {spec.meter.max_age_s:.0f} s"
            fix = f"{_ask(selector)}   # exporter down? or scraped too seldom: raise meter.maxAgeSeconds"
            yield Finding(Gravity.BROKEN, "MeterDead", subject, text, fix)
        elif answer.series != spec.meter.expected_series:
            text = f"its meter's selector finds {answer.series} series, expected are {spec.meter.expected_series}: {selector}"
            yield Finding(Gravity.BROKEN, "MeterSeries", subject, text, f"kubectl edit pb {name}   # selector or expectedSeries")
        else:
            yield from _plausible(facts, spec, answer, objects[name])


def _plausible(facts: SiteFacts, spec: BudgetSpec, answer: MeterAnswer, obj: Object) -> Iterator[Finding]:
    assert spec.meter is not None and answer.value is not None
    subject, read_w = f"PowerBudget {spec.name}", answer.value * spec.meter.watts_per_unit
    there = behind(facts, spec)
    drawn_w, most_w = there.drawn_w, there.most_w
    low, high = contradicts(read_w, drawn_w), most_w > 0 and read_w > EXPLAINED_TIMES * most_w
    if is_no_value(answer.value, read_w, drawn_w or None):
        text = f"its meter reads {answer.value:.10g}, which devices send for 'no value'"
        yield Finding(Gravity.BROKEN, "MeterNoValue", subject, text, _ask(spec.meter.selector))
    elif low or high:
        unit = unit_of(answer.value, there)
        now = f"its meter reads {read_w:.5g} W while the GPUs behind it draw {drawn_w:.0f} W"
        if unit is not None and unit != "watts":
            numerator, denominator = UNITS[unit]
            scale = f'{{"numerator":{numerator},"denominator":{denominator}}}'
            fix = f'kubectl patch pb {spec.name} --type=merge -p \'{{"spec":{{"meter":{{"scale":{scale}}}}}}}\''
            yield Finding(Gravity.BROKEN, "MeterUnit", subject, f"{now}: it counts in {unit}", fix)
        else:
            text = f"{now}: it is another rack's meter, or its scale is wrong"
            yield Finding(
                Gravity.BROKEN, "MeterImplausible", subject, text, f"kubectl edit pb {spec.name}   # meter.selector, scale"
            )
    elif (fresh := condition(obj, "TelemetryFresh")) is not None and fresh.reason == "NonGpuUnderDeclared":
        fix = f"kubectl edit pb {spec.name}   # nonGpuWattsPerNode or fixedWatts"
        yield Finding(Gravity.WARNING, "NonGpuUnderDeclared", subject, fresh.message, fix)


@dataclass(frozen=True, slots=True)
class Behind:
    """What is behind a meter, in watts. `drawn_w`: what agents read now; `expected_w`: the same with losses and all that is
    declared beside GPUs; `most_w`: the same with every GPU at its maximum. Zero: not known."""

    drawn_w: float
    expected_w: float
    most_w: float


def behind(facts: SiteFacts, spec: BudgetSpec) -> Behind:
    specs = specs_of(list(facts.seen.budgets))
    fixed_w = sum(other.fixed_w for other in specs.values() if spec.name in (other.name, other.parent))
    drawn_w, expected_w, most_w = 0.0, float(fixed_w), float(fixed_w)
    for obj in facts.seen.node_powers:
        told: Mapping[str, Any] = obj.get("spec") or {}
        if spec.name not in (told.get("budgets") or ()):
            continue
        node_w = facts.telemetry.draw_w.get(obj["metadata"]["name"], 0.0)
        gpus_w = sum(row.get("maxCapWatts", 0) for row in (obj.get("status") or {}).get("gpus") or ())
        loss, rest_w = 1 + (told.get("overheadPercent") or 0) / 100, told.get("nonGpuWatts") or 0
        drawn_w += node_w
        expected_w += node_w * loss + rest_w
        most_w += gpus_w * loss + rest_w
    return Behind(drawn_w, expected_w, most_w)


def unit_of(value: float, there: Behind) -> str | None:
    """The one unit in which a reading goes with what GPUs draw; None: none does, or the draw is not known. Of several the one
    that comes nearest to what is expected."""
    if value <= 0 or there.drawn_w <= 0:
        return None
    most_w = EXPLAINED_TIMES * max(there.most_w, there.drawn_w)
    fits = {
        unit: abs(math.log(value * up / down / there.expected_w))
        for unit, (up, down) in UNITS.items()
        if CONTRADICTED_SHARE * there.drawn_w <= value * up / down <= most_w
    }
    return min(fits, key=lambda unit: fits[unit], default=None)


def _ask(selector: str) -> str:
    return f"promtool query instant PROMETHEUS_URL '{selector}'   # and look at the exporter's own /metrics"
