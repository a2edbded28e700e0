"""Faults that can be laid on a call of one simulated GPU, until cleared or for a number of calls."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import IntEnum


class Call(IntEnum):
    """Which NVML calls a fault sits on. Mirrors `enum twin_call`; a fault on one call goes before one on ANY."""

    ANY = 0
    SET_POWER_LIMIT = 1
    GET_POWER_LIMIT = 2
    GET_ENFORCED_LIMIT = 3
    GET_LIMIT_RANGE = 4
    GET_POWER_USAGE = 5
    GET_FIELD_VALUES = 6
    FIELD_POWER_INSTANT = 7  # field 186 alone: the call succeeds and the field carries the error
    GET_ENERGY = 8
    SET_LOCKED_CLOCKS = 9
    RESET_LOCKED_CLOCKS = 10
    GET_CLOCKS = 11
    SET_PERSISTENCE = 12
    GET_PERSISTENCE = 13
    IDENTITY = 14
    HANDLE = 15
    INIT = 16  # nvmlInit of the whole node: lay it on GPU 0


class FaultKind(IntEnum):
    """Mirrors `enum twin_fault_kind`."""

    RETURN = 1
    LIE = 2
    CLAMP = 3
    HANG = 4


NVML_ERROR_NOT_SUPPORTED = 3
NVML_ERROR_NO_PERMISSION = 4
NVML_ERROR_GPU_IS_LOST = 15
NVML_ERROR_LIB_RM_VERSION_MISMATCH = 18
NVML_ERROR_UNKNOWN = 999


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Use the named constructors. `times` 0: until cleared; `hang_s` 0: the call hangs until the fault is cleared."""

    kind: FaultKind
    call: Call
    code: int = 0
    value_mw: int = 0
    hang_s: float = 0.0
    times: int = 0

    def __post_init__(self) -> None:
        if self.times < 0 or not math.isfinite(self.hang_s) or self.hang_s < 0 or self.value_mw < 0 or self.code < 0:
            raise ValueError("a fault's times, hang_s, value_mw and code must be 0 or more")

    @classmethod
    def returns(cls, code: int, call: Call, *, times: int = 0) -> Fault:
        """The call returns this NVML error and does nothing."""
        return cls(kind=FaultKind.RETURN, call=call, code=code, times=times)

    @classmethod
    def no_permission(cls, call: Call = Call.SET_POWER_LIMIT, *, times: int = 0) -> Fault:
        return cls.returns(NVML_ERROR_NO_PERMISSION, call, times=times)

    @classmethod
    def not_supported(cls, call: Call = Call.SET_POWER_LIMIT, *, times: int = 0) -> Fault:
        return cls.returns(NVML_ERROR_NOT_SUPPORTED, call, times=times)

    @classmethod
    def gpu_lost(cls) -> Fault:
        """Every call of the GPU, lookups by index or UUID too, returns GPU_IS_LOST, until cleared, a reset or a reboot.

        The hardware behind it keeps its limits and its load: what cannot be reached still draws power.
        """
        return cls.returns(NVML_ERROR_GPU_IS_LOST, Call.ANY)

    @classmethod
    def lying_setter(cls, call: Call = Call.SET_POWER_LIMIT, *, times: int = 0) -> Fault:
        """The setter reports success and does nothing."""
        return cls(kind=FaultKind.LIE, call=call, times=times)

    @classmethod
    def clamping_setter(cls, value_mw: int, *, times: int = 0) -> Fault:
        """The power setter applies `value_mw` instead of what was asked, and reports success."""
        return cls(kind=FaultKind.CLAMP, call=Call.SET_POWER_LIMIT, value_mw=value_mw, times=times)

    @classmethod
    def hang(cls, call: Call = Call.SET_POWER_LIMIT, *, seconds: float = 0.0, times: int = 0) -> Fault:
        """The call blocks, then completes as asked, on the state it then finds. It holds no lock while it hangs."""
        return cls(kind=FaultKind.HANG, call=call, hang_s=seconds, times=times)
