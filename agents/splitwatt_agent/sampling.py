"""Reading one GPU: limits and power at every sweep, slower facts now and then. Pure use of the port; runs off the loop.

A reading says what it could not learn: limits that could not be read are None with the reason in `health`, and every failed
call is named in `errors`. A GPU whose power alone is unreadable is not unhealthy: its caps can still be proven.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from splitwatt_core.protocol.contract import Health
from splitwatt_core.protocol.enforcer import Readback

from splitwatt_agent.nvml import NvmlError, NvmlPort

POWER_CAPPED: Final = 0x4
"""nvmlClocksEventReasonSwPowerCap: the power limit holds the clocks down right now."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What changes slowly or matters less. None: could not be read."""

    energy_mj: int | None = None
    sm_clock_mhz: int | None = None
    power_capped: bool | None = None
    processes: int | None = None
    """Compute processes that the driver sees on it."""


@dataclass(frozen=True, slots=True)
class GpuReading:
    """One GPU at one moment. `facts` None: not asked for in this sweep."""

    readback: Readback
    facts: Facts | None
    errors: tuple[NvmlError, ...] = ()

    @property
    def driver_gone(self) -> bool:
        return any(error.driver_gone for error in self.errors)


def read_gpu(port: NvmlPort, uuid: str, *, facts: bool) -> GpuReading:
    """Never raises NvmlError."""
    errors: list[NvmlError] = []
    health = Health.OK
    management_mw = enforced_mw = power_mw = None
    try:
        management_mw = port.management_limit_mw(uuid)
        enforced_mw = port.enforced_limit_mw(uuid)
    except NvmlError as error:
        errors.append(error)
        health = error.health
    if health is not Health.LOST:
        try:
            power_mw = port.instant_power_mw(uuid)
        except NvmlError as error:
            _note(errors, error)
            health = error.health if error.health is Health.LOST else health
    readback = Readback(management_mw=management_mw, enforced_mw=enforced_mw, health=health, power_mw=power_mw)
    wanted = facts and health is not Health.LOST
    return GpuReading(readback, _facts(port, uuid, errors) if wanted else None, tuple(errors))


def _facts(port: NvmlPort, uuid: str, errors: list[NvmlError]) -> Facts:
    energy_mj = sm_clock_mhz = reasons = processes = None
    try:
        energy_mj = port.total_energy_mj(uuid)
    except NvmlError as error:
        _note(errors, error)
    try:
        sm_clock_mhz = port.sm_clock_mhz(uuid)
    except NvmlError as error:
        _note(errors, error)
    try:
        reasons = port.clock_event_reasons(uuid)
    except NvmlError as error:
        _note(errors, error)
    try:
        processes = port.compute_processes(uuid)
    except NvmlError as error:
        _note(errors, error)
    return Facts(energy_mj, sm_clock_mhz, None if reasons is None else bool(reasons & POWER_CAPPED), processes)


def _note(errors: list[NvmlError], error: NvmlError) -> None:
    """What a part does not have is no error of the moment; it just stays None."""
    if error.health is not Health.NOT_SUPPORTED:
        errors.append(error)
