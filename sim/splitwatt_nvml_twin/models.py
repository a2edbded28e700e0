"""What the simulated GPUs truly are: the facts that everybody reads, and by how much the truth differs from the law's belief.

Limits, clocks, idle draw and memory are those of the core's `hardware.json`; exponent and voltage floor those of its power
profiles. `TRUTH_OFFSETS` is the one place where the simulated truth leaves them, so that a test on these GPUs is no mere
confirmation. What only NVML tells of a product (PCI ids, memory clocks, architecture) stands here, from nvidia-smi queries of
real machines in NVIDIA/k8s-test-infra where there is one and from data sheets and nvml.h else [V].

Clock and power. Above the voltage floor dynamic power goes as clock^e, and below it as the clock.

Time, each an assumption of ours [A], for no figure was found. A cap's ceiling follows with 80 ms, so a full cut is settled to
below 1 % within 0.4 s, while a spike shorter than that passes (POLCA reports exactly this, without figures); an unused ceiling
opens with 1 s; power follows its target with 15 ms.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

from splitwatt_core.gpus import hardware, profiles

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
    voltage_floor: float
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
        if not 0 <= self.idle_w < self.default_limit_mw / 1000:
            raise ValueError(f"{self.name}: idle_w must lie between 0 and the default power limit")
        if not 1 <= self.power_exponent <= 6 or not 0 < self.voltage_floor < 1 or self.sensor_step_mw < 1:
            raise ValueError(f"{self.name}: power_exponent 1..6, voltage_floor inside 0..1, sensor_step_mw at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Offset:
    """What the simulated truth adds to the law's belief, and why: watts, exponent and share of the top clock."""

    idle_w: float = 0.0
    power_exponent: float = 0.0
    voltage_floor: float = 0.0
    why: str


_FLOOR_WHY: Final = (
    "the law takes power to fall with the clock alone below 1/1.3 of the top one, the lowest published point; here voltage "
    "falls on down to half of it, so a deep lock saves more than the law counts on"
)
TRUTH_OFFSETS: Final[dict[str, Offset]] = {
    "H100-SXM": Offset(
        idle_w=26.0,
        power_exponent=0.207,
        voltage_floor=-0.269,
        why="the law's 69 W are read without a process; splitwise-sim has 73-122 W, and 95 W is near the middle. From there an "
        f"exponent of 3.29 makes prefill 1.3 times slower at half power, as Splitwise measured (arXiv:2311.18677). {_FLOOR_WHY}",
    ),
    "H200-SXM": Offset(idle_w=26.0, power_exponent=0.207, voltage_floor=-0.269, why="as H100, which has the same compute die"),
    "A100-SXM-80GB": Offset(
        power_exponent=-0.651,
        voltage_floor=-0.269,
        why="the law's exponent takes H100's slowdown at half power over to A100; here it is 2.9, from POLCA (arXiv:2308.12908): "
        f"1305 of 1410 MHz give back up to 20 %, taken as of the watts above idle. {_FLOOR_WHY}",
    ),
    "B200": Offset(
        idle_w=5.0,
        power_exponent=-1.249,
        voltage_floor=-0.269,
        why="half of eight idle B200 stand above their lowest cap of 200 W, at 202 to 206 W, and no cap can lower them. H100's "
        f"exponent of 3.29, for none of B200 is published. {_FLOOR_WHY}",
    ),
}
"""By the names of the power profiles. Each product leaves the law's belief somewhere, so that a rule which holds only for the
law's own numbers fails on these GPUs."""


def _model(name: str, **only_nvml: Any) -> GpuModel:
    """The true GPU of a power profile of that name."""
    facts, believed, off = hardware.builtin().product(name), profiles.find(profiles.builtin(), name), TRUTH_OFFSETS[name]
    assert facts is not None and believed is not None and facts.memory_bytes is not None
    return GpuModel(
        name=facts.product_names[0],
        idle_w=believed.idle_w + off.idle_w,
        min_limit_mw=facts.min_cap_w * 1000,
        max_limit_mw=facts.max_cap_w * 1000,
        default_limit_mw=facts.default_cap_w * 1000,
        min_clock_mhz=believed.min_clock_mhz,
        max_clock_mhz=believed.max_clock_mhz,
        idle_clock_mhz=believed.min_clock_mhz,
        memory_bytes=facts.memory_bytes,
        power_exponent=believed.clock_exponent + off.power_exponent,
        voltage_floor=believed.voltage_floor + off.voltage_floor,
        **only_nvml,
    )


H100_SXM: Final = _model(
    "H100-SXM",
    memory_clock_mhz=2619,
    architecture=_ARCH_HOPPER,
    compute_capability=(9, 0),
    pci_device_id=0x233010DE,
    averaged_usage=True,
)
A100_SXM: Final = _model(
    "A100-SXM-80GB",
    memory_clock_mhz=1593,  # [V]
    architecture=_ARCH_AMPERE,
    compute_capability=(8, 0),
    pci_device_id=0x20B210DE,  # [V]
    averaged_usage=False,  # [V] nvml.h: instantaneous on GA100
)
H200_SXM: Final = _model(
    "H200-SXM",
    memory_clock_mhz=3201,  # [V]
    architecture=_ARCH_HOPPER,
    compute_capability=(9, 0),
    pci_device_id=0x233510DE,  # [V]
    averaged_usage=True,
)
B200: Final = _model(
    "B200",
    memory_clock_mhz=3996,
    architecture=_ARCH_BLACKWELL,
    compute_capability=(10, 0),
    pci_device_id=0x290110DE,
    averaged_usage=True,
)

BUILT_IN: Final[dict[str, GpuModel]] = {"H100-SXM": H100_SXM, "A100-SXM": A100_SXM, "H200-SXM": H200_SXM, "B200": B200}
