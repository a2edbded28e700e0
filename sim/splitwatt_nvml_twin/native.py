"""The C library's own functions through ctypes: structs that mirror csrc/twin.h and csrc/handle.c, checked at load.

Protects: a struct that drifted from its C twin is refused by `splitwatt_twin_abi`, never misread.
"""

from __future__ import annotations

import ctypes as c
from functools import cache
from typing import Final

from splitwatt_nvml_twin.build import LIBRARY_NAME, BuildError, ensure_library

LAYOUT: Final = 4
TEXT: Final = 96


class Model(c.Structure):
    _fields_ = [
        ("name", c.c_char * TEXT),
        ("uuid", c.c_char * TEXT),
        *[
            (name, c.c_double)
            for name in (
                *("idle_w", "power_exponent", "voltage_floor", "power_lag_s", "cap_reaction_s", "cap_release_s"),
                *("thermal_lag_s", "ambient_c", "kelvin_per_watt", "memory_bytes"),
            )
        ],
        *[
            (name, c.c_uint32)
            for name in (
                *("min_limit_mw", "max_limit_mw", "default_limit_mw", "min_clock_mhz", "max_clock_mhz", "idle_clock_mhz"),
                *("clock_step_mhz", "memory_clock_mhz", "sensor_step_mw", "averaged_usage", "architecture"),
                *("compute_major", "compute_minor", "pci_device_id", "pci_subsystem_id", "boot_persistence"),
            )
        ],
    ]


class FaultRecord(c.Structure):
    _fields_ = [
        *[(name, c.c_uint32) for name in ("call", "kind", "code", "value_mw", "times", "serial")],
        ("hang_s", c.c_double),
    ]


class DemandRecord(c.Structure):
    _fields_ = [
        ("gpu", c.c_uint32),
        ("sm_clock_mhz", c.c_uint32),
        *[(name, c.c_double) for name in ("power_w", "utilization", "memory_utilization", "memory_used_bytes")],
    ]


class TruthRecord(c.Structure):
    _fields_ = [
        ("at_ns", c.c_int64),
        ("reasons", c.c_uint64),
        *[
            (name, c.c_double)
            for name in (
                *("power_w", "uncapped_w", "energy_j", "temperature_c", "capped_s", "demand_w", "utilization"),
                *("sample_w", "average_w"),
            )
        ],
        *[
            (name, c.c_uint32)
            for name in (
                *("management_mw", "enforced_mw", "outside_mw", "sm_clock_mhz", "locked_min_mhz", "locked_max_mhz"),
                *("persistence", "lost", "resets", "setter_calls"),
            )
        ],
    ]


def _abi() -> int:
    sizes = (c.sizeof(Model), c.sizeof(FaultRecord), c.sizeof(DemandRecord), c.sizeof(TruthRecord))
    return LAYOUT << 56 | sizes[0] << 40 | sizes[1] << 28 | sizes[2] << 16 | sizes[3]


def _mounted() -> c.CDLL | None:
    """What a container's runtime mounted, as NVML is found: a pod has no compiler. None: NVIDIA's own library, or none at all."""
    try:
        lib = c.CDLL(LIBRARY_NAME, use_errno=False)
    except OSError:
        return None
    return lib if hasattr(lib, "splitwatt_twin_abi") else None


@cache
def library() -> c.CDLL:
    """The library with its functions' signatures: the one that the loader finds, else the compiled one. Raises BuildError."""
    lib = _mounted() or c.CDLL(str(ensure_library() / LIBRARY_NAME), use_errno=False)
    lib.splitwatt_twin_abi.restype = c.c_uint64
    if lib.splitwatt_twin_abi() != _abi():
        raise BuildError(f"{lib._name} and native.py disagree about a struct: they are of different versions")
    node, slot = c.c_void_p, c.c_uint32
    signatures: dict[str, tuple[object, list[object]]] = {
        "create": (c.c_int, [c.c_char_p, c.POINTER(Model), c.c_uint32, c.c_char_p, c.c_int64]),
        "open": (c.c_void_p, [c.c_char_p, c.c_char_p, c.c_uint32]),
        "close": (None, [node]),
        "count": (c.c_uint32, [node]),
        "model": (c.c_int, [node, slot, c.POINTER(Model)]),
        "boot_id": (c.c_int, [node, c.c_char_p, c.c_uint32]),
        "now_ns": (c.c_int64, [node]),
        "advance_clock": (c.c_int, [node, c.c_int64]),
        "set_demands": (c.c_int, [node, c.POINTER(DemandRecord), c.c_uint32]),
        "read": (c.c_int, [node, c.c_uint32, c.c_uint32, c.POINTER(TruthRecord)]),
        "set_fault": (c.c_int, [node, slot, c.POINTER(FaultRecord)]),
        "clear_faults": (c.c_int, [node, slot]),
        "set_outside_limit": (c.c_int, [node, slot, c.c_uint32]),
        "set_floor": (c.c_int, [node, slot, c.c_uint32]),
        "set_mig": (c.c_int, [node, slot, c.c_uint32]),
        "signal_inside": (c.c_int, [node, slot, c.c_int]),
        "reset_gpu": (c.c_int, [node, slot]),
        "reboot": (c.c_int, [node, c.c_char_p, c.POINTER(c.c_uint32)]),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(lib, f"splitwatt_twin_{name}")
        function.restype = result
        function.argtypes = arguments
    return lib
