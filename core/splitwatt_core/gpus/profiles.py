"""What a GPU model does under a power cap, per phase, read into frozen data.

`profiles.json` beside this module gives every number with its source and grade; limits, clocks and idle draw of the product
come from `hardware`. Which profile stands before which is said by `in_force`, whose answer `find` and `lookup` take.

Protects: a profile can never promise what is not there. A GPU model that no profile knows is assumed to want its whole
legal range (`conservative`), so nothing is freed on a guess. Standard library only; nothing is read but those two files.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any, Final

from splitwatt_core.gpus import hardware
from splitwatt_core.gpus.graded import FactError, Numbers
from splitwatt_core.gpus.hardware import HardwareFacts
from splitwatt_core.protocol.contract import Phase

MAX_POINTS: Final = 16
"""Points per curve; the API has the same bound."""

IntPoints = tuple[tuple[int, int], ...]
MsPoints = tuple[tuple[int, float], ...]


class ProfileError(FactError):
    """A profile that contradicts itself; the message names the profile, the field and what to change."""


@dataclass(frozen=True, slots=True)
class PhaseProfile:
    """One phase of one GPU model.

    `natural_w`: draw when uncapped and saturated. `cliff_w`: the cap below which the phase collapses. `latency_points`:
    (cap in watts, step time in permille of uncapped), caps rising; 1000 at and above `natural_w`. `load_points`: (tokens
    for prefill, sequences for decode; permille of the way from idle to natural draw). `clock_sensitivity_permille`: how
    much of a slower SM clock reaches step time (1000 = all of it). `model`: the served model this holds for, "" for any.
    """

    phase: Phase
    natural_w: int
    cliff_w: int
    latency_points: IntPoints
    load_points: IntPoints = ((1, 1000),)
    clock_sensitivity_permille: int = 1000
    model: str = ""

    def __post_init__(self) -> None:
        where = f"profile of phase {self.phase.value}"
        if not 0 < self.cliff_w <= self.natural_w:
            raise ProfileError(
                f"{where}: cliff of {self.cliff_w} W and natural draw of {self.natural_w} W must satisfy 0 < cliff <= natural"
            )
        _check_curve(self.latency_points, f"{where}: latency points", falling=True)
        _check_curve(self.load_points, f"{where}: load points", falling=False)
        if self.latency_points[-1][1] != 1000:
            raise ProfileError(f"{where}: the highest cap of the latency points must have 1000 permille, the uncapped time")
        if self.latency_points[-1][0] > self.natural_w:
            raise ProfileError(f"{where}: latency points end above the natural draw, where a cap costs nothing; drop those")
        if self.load_points[-1][1] > 1000:
            raise ProfileError(f"{where}: load points end above 1000 permille; raise the natural draw instead")


@dataclass(frozen=True, slots=True)
class Timing:
    """Step times of one served model on one tensor-parallel group of this GPU, uncapped: fits of published tables.

    `prefill_points`: (prompt tokens, ms). `decode_points`: (batch, ms without KV reads). `kv_ms_per_mtoken`: ms per step
    for each million tokens of KV cache read, batch * context. The errors are the largest ones of the fit.
    """

    model: str
    tensor_parallel: int
    prefill_points: MsPoints
    decode_points: MsPoints
    kv_ms_per_mtoken: float
    prefill_error_permille: int = 0
    decode_error_permille: int = 0

    def __post_init__(self) -> None:
        _check_curve(self.prefill_points, f"timing of {self.model}: prefill points", falling=False)
        _check_curve(self.decode_points, f"timing of {self.model}: decode points", falling=False)
        if self.kv_ms_per_mtoken < 0:
            raise ProfileError(f"timing of {self.model}: kv_ms_per_mtoken must be 0 or more, not {self.kv_ms_per_mtoken}")


@dataclass(frozen=True, slots=True)
class Profile:
    """One GPU model. `product_names`: NVML names that mean it. `timing` None: unknown.

    Watts above idle go with clock^`clock_exponent` down to `voltage_floor` of the top clock, and with the clock itself below.
    `sources`: path of each number -> "grade: source".
    """

    name: str
    product_names: tuple[str, ...]
    idle_w: int
    min_cap_w: int
    default_cap_w: int
    min_clock_mhz: int
    max_clock_mhz: int
    phases: tuple[PhaseProfile, ...]
    clock_exponent_permille: int = 3000
    voltage_floor_permille: int = 769
    timing: Timing | None = None
    sources: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 < self.min_cap_w <= self.default_cap_w:
            raise ProfileError(f"profile {self.name}: caps must satisfy 0 < minimum <= default")
        if not 0 < self.min_clock_mhz <= self.max_clock_mhz:
            raise ProfileError(f"profile {self.name}: clocks must satisfy 0 < minimum <= maximum")
        if self.clock_exponent_permille < 1000 or not 0 < self.voltage_floor_permille <= 1000:
            raise ProfileError(f"profile {self.name}: clock exponent must be at least 1000, voltage floor in 1..1000 permille")
        for phase in self.phases:
            if self.idle_w >= phase.natural_w:
                raise ProfileError(f"profile {self.name}: idle draw must be below the natural draw of {phase.phase.value}")

    @property
    def clock_exponent(self) -> float:
        return self.clock_exponent_permille / 1000

    @property
    def voltage_floor(self) -> float:
        """A share of the top clock."""
        return self.voltage_floor_permille / 1000

    def phase(self, phase: Phase, *, model: str = "") -> PhaseProfile | None:
        """This GPU's profile of a phase while it serves `model`; one for any model where none names it."""
        anything = None
        for row in self.phases:
            if row.phase is phase:
                if model and row.model == model:
                    return row
                if not row.model and anything is None:
                    anything = row
        return anything

    def matches(self, gpu_model: str) -> bool:
        return hardware.called(gpu_model, (self.name, *self.product_names))


def _check_curve(points: Sequence[tuple[int, float]], where: str, *, falling: bool) -> None:
    if not 1 <= len(points) <= MAX_POINTS:
        raise ProfileError(f"{where}: give 1 to {MAX_POINTS} points, not {len(points)}")
    for (x, y), (next_x, next_y) in itertools.pairwise(points):
        if next_x <= x:
            raise ProfileError(f"{where}: {next_x} follows {x}; sort them by rising first value, each once")
        if (next_y > y) if falling else (next_y < y):
            way = "rise" if falling else "fall"
            raise ProfileError(f"{where}: values must not {way}, but {next_y} follows {y}")
    if points[0][0] < 0 or min(y for _, y in points) <= 0:
        raise ProfileError(f"{where}: values must be above 0")


def parse(text: str, facts: HardwareFacts) -> tuple[Profile, ...]:
    """Read the form of profiles.json; each profile is of the product of that name in `facts`. Raises ProfileError naming what
    is missing or wrong."""
    try:
        return tuple(_profile(row, facts) for row in json.loads(text)["profiles"])
    except KeyError as error:
        raise ProfileError(f"profiles: {error.args[0]} is missing") from error
    except ProfileError:
        raise
    except FactError as error:
        raise ProfileError(f"profiles: {error}") from error
    except (TypeError, AttributeError, ValueError) as error:
        raise ProfileError(f"profiles: not in the form of profiles.json: {error}") from error


_OF_PRODUCT: Final = ("product_names", "idle_w", "min_cap_w", "default_cap_w", "min_clock_mhz", "max_clock_mhz")


def _profile(raw: Mapping[str, Any], facts: HardwareFacts) -> Profile:
    name: str = raw["name"]
    product = facts.product(name)
    if product is None:
        raise ProfileError(f"profile {name}: hardware.json has no product of that name; add it there")
    unknown = [key for key in _OF_PRODUCT if getattr(product, key) is None]
    if unknown:
        raise ProfileError(f"profile {name}: hardware.json does not say {', '.join(unknown)}; add it there")
    sources = {key: product.sources[key] for key in _OF_PRODUCT}
    numbers = Numbers(raw, "", sources)
    timing = raw.get("timing")
    return Profile(
        name=name,
        **{key: getattr(product, key) for key in _OF_PRODUCT},
        clock_exponent_permille=numbers.take("clock_exponent_permille"),
        voltage_floor_permille=numbers.take("voltage_floor_permille"),
        phases=tuple(_phase(Phase(phase), row, sources) for phase, row in raw["phases"].items()),
        timing=None if timing is None else _timing(timing, sources),
        sources=sources,
    )


def _phase(phase: Phase, raw: Mapping[str, Any], sources: dict[str, str]) -> PhaseProfile:
    numbers = Numbers(raw, f"phases.{phase.value}.", sources)
    return PhaseProfile(
        phase=phase,
        natural_w=numbers.take("natural_w"),
        cliff_w=numbers.take("cliff_w"),
        latency_points=numbers.points("latency_points"),
        load_points=numbers.points("load_points"),
        clock_sensitivity_permille=numbers.take("clock_sensitivity_permille"),
    )


def _timing(raw: Mapping[str, Any], sources: dict[str, str]) -> Timing:
    numbers = Numbers(raw, "timing.", sources)
    return Timing(
        model=raw["model"],
        tensor_parallel=raw["tensor_parallel"],
        prefill_points=numbers.points("prefill_points"),
        decode_points=numbers.points("decode_points"),
        kv_ms_per_mtoken=numbers.take("kv_ms_per_mtoken"),
        prefill_error_permille=raw["prefill_error_permille"],
        decode_error_permille=raw["decode_error_permille"],
    )


@cache
def builtin() -> tuple[Profile, ...]:
    """The profiles shipped with the product, parsed once: A100, H100, H200, B200."""
    text = files("splitwatt_core.gpus").joinpath("profiles.json").read_text(encoding="utf-8")
    return parse(text, hardware.builtin())


@dataclass(frozen=True, slots=True)
class Offered:
    """A PowerProfile of the Kubernetes cluster. `shipped`: it came with the chart, as a copy of a built-in one."""

    profile: Profile
    shipped: bool = False


def in_force(offered: Iterable[Offered]) -> tuple[Profile, ...]:
    """The profiles to look in, in order of precedence: what a person made before what was shipped, and the built-in ones for
    what neither knows; by name within each, so that the order in which objects arrive decides nothing."""
    ordered = sorted(offered, key=lambda offer: (offer.shipped, offer.profile.name))
    return (*(offer.profile for offer in ordered), *builtin())


def find(profiles: Sequence[Profile], gpu_model: str) -> Profile | None:
    """The first profile whose name or product names match `gpu_model`, an NVML product name; None when unknown."""
    return next((profile for profile in profiles if profile.matches(gpu_model)), None)


def lookup(profiles: Sequence[Profile], gpu_model: str, phase: Phase, *, model: str = "") -> PhaseProfile | None:
    """The phase of a GPU model while it serves `model`; None when no profile knows it. Earlier profiles win, but one that
    names the served model wins over one for any model."""
    anything = None
    for profile in profiles:
        if profile.matches(gpu_model) and (found := profile.phase(phase, model=model)) is not None:
            if model and found.model == model:
                return found
            anything = anything or found
    return anything


def conservative(phase: Phase, *, min_cap_w: int, max_cap_w: int) -> PhaseProfile:
    """What to assume of an unknown GPU model from its legal range of caps alone. Raises ProfileError on an empty range.

    Natural draw: the maximum cap, so that no watts are called free on a guess. Cliff: half of it, within the range; not the
    maximum, or an unknown GPU could never be admitted beside others, and not the minimum, or it would be starved first:
    every known model still works at about half its maximum (H100 prefill x1.3, decode about x1). Latency: x1.3 there, and
    in proportion to the cap below.
    """
    half_w = max(min_cap_w, max_cap_w // 2)
    points = [(max_cap_w, 1000)]
    if half_w < max_cap_w:
        points.insert(0, (half_w, 1300))
    if 0 < min_cap_w < half_w:
        points.insert(0, (min_cap_w, 1300 * half_w // min_cap_w))
    return PhaseProfile(phase=phase, natural_w=max_cap_w, cliff_w=half_w, latency_points=tuple(points))
