"""PowerProfile <-> core `Profile`, and the shipped profiles as objects.

The core's data file holds more than the API says (step times for the simulator); what crosses here is what a policy
needs. A profile read from the cluster therefore has no `timing`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from splitwatt_core.gpus.profiles import PhaseProfile, Profile
from splitwatt_core.names import LABEL_MANAGED_BY, MANAGED_BY
from splitwatt_core.protocol.contract import Phase

from splitwatt_api.base import ObjectMeta
from splitwatt_api.power_profile import (
    Grade,
    LatencyPoint,
    LoadPoint,
    NumberSource,
    PhaseCurve,
    PowerProfile,
    PowerProfileSpec,
    ProfilePhase,
)

GRADES: Final = {
    "P": Grade.PAPER,
    "D": Grade.DATA,
    "M": Grade.MEASURED,
    "V": Grade.VENDOR,
    "U": Grade.UNCONFIRMED,
}
_GRADED: Final = re.compile(r"^([PDMVU]):\s*(.+)$", re.DOTALL)
_LETTERS: Final = {grade: letter for letter, grade in GRADES.items()}
_WIRE_FIELDS: Final = {
    "product_names": "productNames",
    "idle_w": "idleWatts",
    "min_cap_w": "minCapWatts",
    "default_cap_w": "defaultCapWatts",
    "min_clock_mhz": "minClockMegahertz",
    "max_clock_mhz": "maxClockMegahertz",
    "clock_exponent_permille": "clockExponentPermille",
    "voltage_floor_permille": "voltageFloorPermille",
    "natural_w": "naturalDrawWatts",
    "cliff_w": "cliffWatts",
    "latency_points": "latencyCurve",
    "load_points": "loadCurve",
    "clock_sensitivity_permille": "clockSensitivityPermille",
}
_CORE_FIELDS: Final = {wire: core for core, wire in _WIRE_FIELDS.items()}


def profile_from_wire(raw: Mapping[str, Any]) -> Profile:
    """A PowerProfile as the API server gives it. Raises pydantic.ValidationError, or core's ProfileError."""
    return profile_to_core(PowerProfile.from_wire(raw, lenient=True))


def profile_to_core(profile: PowerProfile) -> Profile:
    spec = profile.spec
    return Profile(
        name=profile.metadata.name,
        product_names=tuple(spec.product_names),
        idle_w=spec.idle_watts,
        min_cap_w=spec.min_cap_watts,
        default_cap_w=spec.default_cap_watts,
        min_clock_mhz=spec.min_clock_megahertz,
        max_clock_mhz=spec.max_clock_megahertz,
        clock_exponent_permille=spec.clock_exponent_permille,
        voltage_floor_permille=spec.voltage_floor_permille,
        phases=tuple(_phase_to_core(row) for row in spec.phases),
        sources={_renamed(s.field, _CORE_FIELDS): f"{_LETTERS[s.grade]}: {s.source}" for s in spec.sources},
    )


def _phase_to_core(row: PhaseCurve) -> PhaseProfile:
    return PhaseProfile(
        phase=Phase(row.phase.value),
        natural_w=row.natural_draw_watts,
        cliff_w=row.cliff_watts,
        latency_points=tuple((p.cap_watts, p.factor_permille) for p in row.latency_curve),
        load_points=tuple((p.amount, p.load_permille) for p in row.load_curve) or ((1, 1000),),
        clock_sensitivity_permille=row.clock_sensitivity_permille,
        model=row.model,
    )


def profile_to_api(profile: Profile) -> PowerProfile:
    """The object for a core profile. Its name is the core's in lower case, as Kubernetes wants it."""
    return PowerProfile(
        metadata=ObjectMeta(name=profile.name.lower(), labels={LABEL_MANAGED_BY: MANAGED_BY}),
        spec=PowerProfileSpec(
            product_names=list(profile.product_names),
            idle_watts=profile.idle_w,
            min_cap_watts=profile.min_cap_w,
            default_cap_watts=profile.default_cap_w,
            min_clock_megahertz=profile.min_clock_mhz,
            max_clock_megahertz=profile.max_clock_mhz,
            clock_exponent_permille=profile.clock_exponent_permille,
            voltage_floor_permille=profile.voltage_floor_permille,
            phases=[_phase_to_api(row) for row in profile.phases],
            sources=[_source(path, text) for path, text in profile.sources.items() if not path.startswith("timing.")],
        ),
    )


def _phase_to_api(row: PhaseProfile) -> PhaseCurve:
    return PhaseCurve(
        phase=ProfilePhase(row.phase.value),
        model=row.model,
        natural_draw_watts=row.natural_w,
        cliff_watts=row.cliff_w,
        latency_curve=[LatencyPoint(cap_watts=w, factor_permille=permille) for w, permille in row.latency_points],
        load_curve=[LoadPoint(amount=amount, load_permille=permille) for amount, permille in row.load_points],
        clock_sensitivity_permille=row.clock_sensitivity_permille,
    )


def _source(path: str, text: str) -> NumberSource:
    """`text` is "grade: source" in the core. Raises ValueError otherwise: no number without a grade."""
    graded = _GRADED.match(text)
    if graded is None:
        raise ValueError(f"source of {path} must begin with a grade, one of {', '.join(GRADES)}, not {text!r}")
    return NumberSource(
        field=_renamed(path, _WIRE_FIELDS), grade=GRADES[graded.group(1)], source=" ".join(graded.group(2).split())
    )


def _renamed(path: str, names: Mapping[str, str]) -> str:
    """The last part of a dotted path, in the other language."""
    head, dot, last = path.rpartition(".")
    return f"{head}{dot}{names.get(last, last)}"
