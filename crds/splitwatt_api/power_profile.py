"""`PowerProfile` (pp): what a GPU model does under a cap while it runs a phase of a model.

Policies take from here where a cap is free (above the natural draw) and where it ruins a phase (below the cliff). Every
number names its source and how far it may be trusted; a profile of your own, measured on your GPUs, beats a shipped one.
Step times in milliseconds are the simulator's business: they stand in the core's data file, and those of a user's own server in
an annotation that the planner reads and no policy does.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final, Literal

from pydantic import ConfigDict, Field
from splitwatt_core.gpus.profiles import MAX_POINTS

from splitwatt_api.base import CelRule, GpuWatts, Megahertz, ObjectMeta, Wire, kubernetes

MAX_PHASES: Final = 32
MAX_SOURCES: Final = 64


class ProfilePhase(StrEnum):
    PREFILL = "Prefill"
    DECODE = "Decode"


class Grade(StrEnum):
    """How far a number may be trusted."""

    PAPER = "Paper"
    DATA = "Data"
    MEASURED = "Measured"
    VENDOR = "Vendor"
    UNCONFIRMED = "Unconfirmed"


class LatencyPoint(Wire):
    """One point of the latency curve."""

    cap_watts: GpuWatts = Field(description="Power cap, in watts.")
    factor_permille: int = Field(
        ge=1000, le=1_000_000, strict=True, description="Step time under that cap, in thousandths of the uncapped one."
    )


class LoadPoint(Wire):
    """One point of the load curve."""

    amount: int = Field(
        ge=0, le=10_000_000, strict=True, description="Tokens of a prefill batch, or sequences of a decode batch."
    )
    load_permille: int = Field(
        ge=1, le=1000, strict=True, description="How far that pushes the draw from idle to natural, in thousandths."
    )


class PhaseCurve(Wire):
    """One phase on this GPU model."""

    phase: ProfilePhase = Field(description="Prefill or Decode.")
    model: str = Field(default="", max_length=253, description="The served model this holds for; empty: any.")
    natural_draw_watts: GpuWatts = Field(description="What one GPU draws uncapped and saturated, in watts.")
    cliff_watts: GpuWatts = Field(description="The cap below which the phase collapses, in watts.")
    latency_curve: list[LatencyPoint] = Field(
        min_length=1,
        max_length=MAX_POINTS,
        description="Step time by cap, caps rising; between points it is interpolated.",
        json_schema_extra=kubernetes(list_type="atomic"),
    )
    load_curve: list[LoadPoint] = Field(
        default_factory=list,
        max_length=MAX_POINTS,
        description="Draw by batch, amounts rising; empty: any work draws the natural watts.",
        json_schema_extra=kubernetes(list_type="atomic"),
    )
    clock_sensitivity_permille: int = Field(
        default=1000,
        ge=0,
        le=1000,
        strict=True,
        description="How much of a slower SM clock reaches the step time, in thousandths.",
    )

    model_config = ConfigDict(
        json_schema_extra=kubernetes(
            CelRule(
                "self.cliffWatts <= self.naturalDrawWatts",
                "cliffWatts must be at most naturalDrawWatts: a cap above the natural draw costs nothing",
            ),
            CelRule(
                "self.latencyCurve.map(p, p.capWatts).isSorted() && "
                "self.latencyCurve.all(p, self.latencyCurve.exists_one(q, q.capWatts == p.capWatts))",
                "latencyCurve must list its points by rising capWatts, each once",
            ),
            CelRule(
                "self.latencyCurve.map(p, -p.factorPermille).isSorted()",
                "latencyCurve's factorPermille must not rise with the cap: more watts never make a step slower",
            ),
            CelRule(
                "self.latencyCurve[size(self.latencyCurve) - 1].factorPermille == 1000 && "
                "self.latencyCurve[size(self.latencyCurve) - 1].capWatts <= self.naturalDrawWatts",
                "latencyCurve must end with factorPermille 1000, the uncapped time, at or below naturalDrawWatts",
            ),
            CelRule(
                "!has(self.loadCurve) || (self.loadCurve.map(p, p.amount).isSorted() && "
                "self.loadCurve.all(p, self.loadCurve.exists_one(q, q.amount == p.amount)) && "
                "self.loadCurve.map(p, p.loadPermille).isSorted())",
                "loadCurve must list its points by rising amount, each once, and loadPermille must not fall",
            ),
        )
    )


class NumberSource(Wire):
    """Where a number comes from."""

    field: str = Field(min_length=1, max_length=128, description="The field it speaks of, for example idleWatts.")
    grade: Grade = Field(description="Paper, Data, Measured, Vendor or Unconfirmed.")
    source: str = Field(min_length=1, max_length=1024, description="Title, link or measurement.")


class PowerProfileSpec(Wire):
    """One GPU model's numbers."""

    product_names: list[str] = Field(
        min_length=1,
        max_length=16,
        description="NVML product names that mean this GPU model.",
        json_schema_extra={"items": {"type": "string", "minLength": 1, "maxLength": 128}, **kubernetes(list_type="set")},
    )
    idle_watts: GpuWatts = Field(description="What one GPU draws without work, in watts.")
    min_cap_watts: GpuWatts = Field(description="The lowest power limit it takes, in watts.")
    default_cap_watts: GpuWatts = Field(description="Its power limit after a reboot, in watts.")
    min_clock_megahertz: Megahertz = Field(description="The lowest SM clock, in MHz.")
    max_clock_megahertz: Megahertz = Field(description="The highest SM clock, in MHz.")
    clock_exponent_permille: int = Field(
        default=3000,
        ge=1000,
        le=10_000,
        strict=True,
        description="Watts above idle go with the clock to this power, in thousandths.",
    )
    voltage_floor_permille: int = Field(
        default=769,
        ge=1,
        le=1000,
        strict=True,
        description="Below this part of the top clock, in thousandths, watts fall with the clock alone.",
    )
    phases: list[PhaseCurve] = Field(
        min_length=1,
        max_length=MAX_PHASES,
        description="Its phases, one entry per phase and served model.",
        json_schema_extra=kubernetes(list_type="map", list_map_keys=["phase", "model"]),
    )
    sources: list[NumberSource] = Field(
        default_factory=list,
        max_length=MAX_SOURCES,
        description="Where each number comes from.",
        json_schema_extra=kubernetes(list_type="map", list_map_keys=["field"]),
    )

    model_config = ConfigDict(
        json_schema_extra=kubernetes(
            CelRule("self.minCapWatts <= self.defaultCapWatts", "minCapWatts must be at most defaultCapWatts"),
            CelRule(
                "self.minClockMegahertz <= self.maxClockMegahertz",
                "minClockMegahertz must be at most maxClockMegahertz",
            ),
            CelRule(
                "self.phases.all(p, self.idleWatts < p.naturalDrawWatts)",
                "idleWatts must be below the naturalDrawWatts of every phase",
            ),
        )
    )


class PowerProfile(Wire):
    """What a GPU model does under a power cap while it runs a phase of a model."""

    api_version: Literal["splitwatt.io/v1alpha1"] = "splitwatt.io/v1alpha1"
    kind: Literal["PowerProfile"] = "PowerProfile"
    metadata: ObjectMeta
    spec: PowerProfileSpec = Field(description="The GPU model's numbers.")
