"""What a GPU model does under a power cap, per phase: the one data file, read into frozen data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from splitwatt_core.contract import Phase


@dataclass(frozen=True, slots=True)
class PhaseProfile:
    """One phase of one GPU model.

    `natural_w`: draw when uncapped and saturated. `cliff_w`: the cap below which the phase collapses. `latency_points`:
    (cap_w, latency permille) by rising cap; 1000 at and above `natural_w`. `load_points`: (tokens for prefill, sequences
    for decode; permille of the way from idle to natural draw). `clock_sensitivity_permille`: how much of a slower SM clock
    reaches latency (1000 = all of it). `model`: the served model this holds for, "" for any.
    """

    phase: Phase
    natural_w: int
    cliff_w: int
    latency_points: tuple[tuple[int, int], ...]
    load_points: tuple[tuple[int, int], ...] = ((1, 1000),)
    clock_sensitivity_permille: int = 1000
    model: str = ""


@dataclass(frozen=True, slots=True)
class Timing:
    """Step times of one served model on one tensor-parallel group of this GPU, uncapped. Fitted, see profiles.json.

    `prefill_points`: (prompt tokens, ms). `decode_points`: (batch, ms without KV reads). `kv_ms_per_mtoken`: ms per step
    for each million tokens of KV cache read, batch * context.
    """

    model: str
    tensor_parallel: int
    prefill_points: tuple[tuple[int, float], ...]
    decode_points: tuple[tuple[int, float], ...]
    kv_ms_per_mtoken: float


@dataclass(frozen=True, slots=True)
class Profile:
    """One GPU model. `product_names`: NVML names that mean it. `timing` None: unknown."""

    name: str
    product_names: tuple[str, ...]
    idle_w: int
    min_cap_w: int
    default_cap_w: int
    min_clock_mhz: int
    max_clock_mhz: int
    phases: tuple[PhaseProfile, ...]
    timing: Timing | None = None
    sources: Mapping[str, str] = field(default_factory=dict)


def builtin() -> tuple[Profile, ...]:
    """The profiles shipped with the product, parsed once."""
    raise NotImplementedError


def find(profiles: Sequence[Profile], gpu_model: str) -> Profile | None:
    """The first profile whose name or product names match `gpu_model`, an NVML product name; None when unknown."""
    raise NotImplementedError


def lookup(profiles: Sequence[Profile], gpu_model: str, phase: Phase, *, model: str = "") -> PhaseProfile | None:
    """The phase of a GPU model while it serves `model`; None when no profile knows it. Earlier profiles win."""
    raise NotImplementedError


def conservative(phase: Phase, *, min_cap_w: int, max_cap_w: int) -> PhaseProfile:
    """What to assume of an unknown GPU model from its legal range of caps alone."""
    raise NotImplementedError
