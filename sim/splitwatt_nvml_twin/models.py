"""What the simulated GPUs are: limits, clocks, idle draw and time constants of each built-in model, with their sources.

Sources: [L] power limits and idle draw as Splitwise's and POLCA's authors published them (splitwise-sim's hardware table;
arXiv:2311.18677, arXiv:2308.12908) and, for B200, published operator measurements; [V] vendor data sheets and nvml.h;
[A] an assumption of ours, chosen and named here because no published figure was found.

Clock and power. Above the voltage floor dynamic power goes as clock^e. e follows from two published pairs: an H100's prefill
slows 1.3 times at half power (arXiv:2311.18677), so with 95 W idle (255/605) = (1/1.3)^e, e = 3.29; an A100 locked to 1305 of
1410 MHz gives back up to 20 % of its power (arXiv:2308.12908), e = 2.9. Others take their predecessor's [A].
The voltage floor is half of the top clock [A].

Time. A cap's ceiling follows with 80 ms, so a full cut is settled to below 1 % within 0.4 s, while a spike shorter than
that passes (POLCA reports exactly this, without figures [A]); an unused ceiling opens with 1 s [A]; power follows its
target with 15 ms [A].
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

_GIB: Final = 1 << 30
MAX_TEXT: Final = 95
_ARCH_AMPERE: Final = 7
_ARCH_HOPPER: Final = 9
_ARCH_BLACKWELL: Final = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuModel:
    """One kind of GPU. Milliwatts and megahertz as NVML has them; raises ValueError on values that cannot be simulated."""

    name: str
    idle_w: float
    min_limit_mw: int
    max_limit_mw: int
    default_limit_mw: int
    min_clock_mhz: int
    max_clock_mhz: int
    idle_clock_mhz: int
    memory_clock_mhz: int
    memory_bytes: int
    architecture: int
    compute_capability: tuple[int, int]
    pci_device_id: int
    averaged_usage: bool
    power_exponent: float
    voltage_floor: float = 0.5
    power_lag_s: float = 0.015
    cap_reaction_s: float = 0.080
    cap_release_s: float = 1.0
    thermal_lag_s: float = 20.0
    ambient_c: float = 28.0
    kelvin_per_watt: float = 0.06
    clock_step_mhz: int = 15
    sensor_step_mw: int = 10
    pci_subsystem_id: int = 0
    boot_persistence: bool = False

    def __post_init__(self) -> None:
        if not 0 < len(self.name.encode()) <= MAX_TEXT:
            raise ValueError(f"a GPU model's name must have 1 to {MAX_TEXT} bytes")
        if not 0 < self.min_limit_mw <= self.default_limit_mw <= self.max_limit_mw < 1 << 31:
            raise ValueError(f"{self.name}: power limits must satisfy 0 < min <= default <= max")
        if not 0 < self.min_clock_mhz <= self.idle_clock_mhz <= self.max_clock_mhz or self.clock_step_mhz < 1:
            raise ValueError(f"{self.name}: clocks must satisfy 0 < min <= idle <= max, with a step of at least 1 MHz")
        times = (self.power_lag_s, self.cap_reaction_s, self.cap_release_s, self.thermal_lag_s)
        if not all(math.isfinite(t) and 1e-4 <= t <= 1e4 for t in times):
            raise ValueError(f"{self.name}: time constants must lie between 0.1 ms and 10000 s")
        if min(self.cap_reaction_s, self.cap_release_s) < 1.5 * self.power_lag_s:
            raise ValueError(f"{self.name}: cap_reaction_s and cap_release_s must be at least 1.5 times power_lag_s")
        if not 0 <= self.idle_w <= self.min_limit_mw / 1000:
            raise ValueError(f"{self.name}: idle_w must lie between 0 and the smallest power limit")
        if not 1 <= self.power_exponent <= 6 or not 0 < self.voltage_floor < 1 or self.sensor_step_mw < 1:
            raise ValueError(f"{self.name}: power_exponent 1..6, voltage_floor inside 0..1, sensor_step_mw at least 1")


H100_SXM: Final = GpuModel(
    name="NVIDIA H100 80GB HBM3",
    idle_w=95.0,  # [L] 73-122
    min_limit_mw=200_000,  # [L]
    max_limit_mw=700_000,
    default_limit_mw=700_000,
    min_clock_mhz=210,  # [V] clocks
    max_clock_mhz=1980,
    idle_clock_mhz=345,
    memory_clock_mhz=2619,
    memory_bytes=80 * _GIB,
    architecture=_ARCH_HOPPER,
    compute_capability=(9, 0),
    pci_device_id=0x233010DE,
    averaged_usage=True,
    power_exponent=3.29,
)

A100_SXM: Final = GpuModel(
    name="NVIDIA A100-SXM4-80GB",
    idle_w=70.0,  # [L] 63-80
    min_limit_mw=100_000,  # [L]
    max_limit_mw=400_000,
    default_limit_mw=400_000,
    min_clock_mhz=210,  # [V] clocks
    max_clock_mhz=1410,
    idle_clock_mhz=210,
    memory_clock_mhz=1593,
    memory_bytes=80 * _GIB,
    architecture=_ARCH_AMPERE,
    compute_capability=(8, 0),
    pci_device_id=0x20B210DE,
    averaged_usage=False,  # [V] nvml.h: instantaneous on GA100
    power_exponent=2.9,
)

H200_SXM: Final = GpuModel(
    name="NVIDIA H200",
    idle_w=95.0,  # [A] as H100
    min_limit_mw=200_000,  # [L]
    max_limit_mw=700_000,
    default_limit_mw=700_000,
    min_clock_mhz=345,  # [V] clocks
    max_clock_mhz=1980,
    idle_clock_mhz=345,
    memory_clock_mhz=3201,
    memory_bytes=141 * _GIB,
    architecture=_ARCH_HOPPER,
    compute_capability=(9, 0),
    pci_device_id=0x233510DE,
    averaged_usage=True,
    power_exponent=3.29,  # [A] as H100
)

B200: Final = GpuModel(
    name="NVIDIA B200",
    idle_w=140.0,  # [A] H100's idle in proportion to the default limit
    min_limit_mw=400_000,  # [L]
    max_limit_mw=1_000_000,
    default_limit_mw=1_000_000,
    min_clock_mhz=120,  # [A] clocks
    max_clock_mhz=1965,
    idle_clock_mhz=120,
    memory_clock_mhz=3996,
    memory_bytes=180 * _GIB,
    architecture=_ARCH_BLACKWELL,
    compute_capability=(10, 0),
    pci_device_id=0x290110DE,
    averaged_usage=True,
    power_exponent=3.29,  # [A] as H100
)

BUILT_IN: Final[dict[str, GpuModel]] = {"H100-SXM": H100_SXM, "A100-SXM": A100_SXM, "H200-SXM": H200_SXM, "B200": B200}
