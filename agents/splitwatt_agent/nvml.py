"""The NVML port: the few calls the agent needs, with units in their names, and the real library behind them.

A failed call is an `NvmlError` that already says what it means for the GPU (`Health`); success of a setter proves nothing
(see `core.enforcer`). The v1 power setter is used because the v2 binding of nvidia-ml-py returns success without looking at
the error code. Power is field 186 (POWER_INSTANT), whose own return code is checked, for `nvmlDeviceGetPowerUsage` is a
one-second average on H100-class parts; it is used only where a part does not know field 186.

Any call may block for ever inside the driver, so none of these methods is to be called on the event loop's thread.
GPUs are named by UUID; indices move after a reboot.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar

import pynvml
from splitwatt_core.protocol.contract import MAX_GPU_WATTS, MAX_GPUS_PER_NODE, Health
from splitwatt_core.protocol.enforcer import GpuIdentity

T = TypeVar("T")

_HEALTH: Final = {
    pynvml.NVML_ERROR_NO_PERMISSION: Health.NO_PERMISSION,
    pynvml.NVML_ERROR_GPU_IS_LOST: Health.LOST,
    pynvml.NVML_ERROR_RESET_REQUIRED: Health.LOST,
    pynvml.NVML_ERROR_GPU_NOT_FOUND: Health.LOST,
    pynvml.NVML_ERROR_NOT_FOUND: Health.LOST,
    pynvml.NVML_ERROR_NOT_SUPPORTED: Health.NOT_SUPPORTED,
    pynvml.NVML_ERROR_FUNCTION_NOT_FOUND: Health.NOT_SUPPORTED,
}
_DRIVER_GONE: Final = frozenset(
    {
        pynvml.NVML_ERROR_UNINITIALIZED,
        pynvml.NVML_ERROR_DRIVER_NOT_LOADED,
        pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH,
    }
)
"""Answers that speak of the driver, not of one GPU: it was unloaded or replaced, and NVML must be initialised anew."""


_NO_SUCH_FIELD: Final = frozenset({pynvml.NVML_ERROR_NOT_SUPPORTED, pynvml.NVML_ERROR_INVALID_ARGUMENT})
"""Answers for field 186 that will not change while the driver is loaded."""
UNKNOWN_LIMIT_MW: Final = 1_400_000
"""What a GPU may draw whose limits cannot be read at all: as much as the largest part on sale (GB300)."""
_WAY_LOST: Final = frozenset({pynvml.NVML_ERROR_UNKNOWN, pynvml.NVML_ERROR_NO_PERMISSION, pynvml.NVML_ERROR_TIMEOUT})
"""Given by all GPUs at once these speak of the driver or of this container's device files, not of so many broken GPUs."""
_MIG: Final = "MIG-"
IDENTITY_S: Final = 1.0
"""How long a start waits for a GPU to say who it is; one that hangs then must not leave its neighbours without caps."""
_DEVICE_FILE: Final = "nvidia"
_NO_SUCH_DEVICE: Final = frozenset(
    {
        pynvml.NVML_ERROR_NOT_FOUND,
        pynvml.NVML_ERROR_INVALID_ARGUMENT,
        pynvml.NVML_ERROR_NOT_SUPPORTED,
        pynvml.NVML_ERROR_FUNCTION_NOT_FOUND,
    }
)
"""Answers that a name means nothing here; one that was a MIG instance's until a moment ago too."""


class NvmlError(Exception):
    """One failed call. `driver_gone`: no GPU can be spoken to until NVML is initialised anew."""

    def __init__(self, *, call: str, code: int, said: str = "") -> None:
        """`said`: what was answered in place of the code's name."""
        self.call = call
        self.code = code
        self.health = _HEALTH.get(code, Health.UNKNOWN)
        self.driver_gone = code in _DRIVER_GONE
        name = _CODE_NAMES.get(code, str(code))
        self.code_name = name
        super().__init__(f"{call} answered {said or name}")


_CODE_NAMES: Final[dict[int, str]] = {
    value: name.removeprefix("NVML_ERROR_")
    for name, value in vars(pynvml).items()
    if name.startswith("NVML_ERROR_") and isinstance(value, int)
}


@dataclass(frozen=True, slots=True)
class Inventory:
    """What a start found. `unreadable`: indices of GPUs that are there but would not say who they are, with the error."""

    gpus: tuple[GpuIdentity, ...]
    unreadable: tuple[tuple[int, NvmlError], ...]
    beyond: int = 0
    """GPUs that the driver has above the number that one node may report."""


class NvmlPort(Protocol):
    """All methods but `start` raise NvmlError for an unknown UUID (NOT_FOUND) and for any failed call."""

    def start(self) -> Inventory:
        """Initialise NVML, anew if it was before, and find the GPUs."""

    def stop(self) -> None:
        """Give NVML back: no handle stays open, and limits stay as the driver keeps them."""

    def scan(self) -> Inventory:
        """Look again, without initialising anew: GPUs that answer only now can be used afterwards."""

    def instant_power_mw(self, uuid: str) -> int: ...

    def management_limit_mw(self, uuid: str) -> int: ...

    def enforced_limit_mw(self, uuid: str) -> int: ...

    def set_management_limit_mw(self, uuid: str, limit_mw: int) -> None: ...

    def total_energy_mj(self, uuid: str) -> int:
        """Since the driver was loaded."""

    def sm_clock_mhz(self, uuid: str) -> int: ...

    def clock_event_reasons(self, uuid: str) -> int:
        """Bit mask of nvmlClocksEventReason*."""

    def compute_processes(self, uuid: str) -> int:
        """How many processes compute on it, as far as this container may see."""

    def gpu_of(self, name: str) -> str | None:
        """The UUID of the GPU that a device file's name (`nvidia3`), a MIG instance's UUID or a PCI address means; None: of
        none, or of one that is lost, so that it does not hide its neighbours' owners."""

    def lock_sm_clock_mhz(self, uuid: str, max_mhz: int | None) -> None:
        """Lock SM clocks to at most `max_mhz`; None takes the lock away."""

    def persistence_mode(self, uuid: str) -> bool: ...

    def enable_persistence_mode(self, uuid: str) -> None: ...


_Named = tuple[Any, GpuIdentity, str | None]
"""A GPU's handle, who it is, and its device file where it says."""


class PynvmlPort:
    """`NvmlPort` on NVIDIA's own binding. Thread-safe as NVML is; only `start` must not run beside other methods."""

    def __init__(self) -> None:
        self._handles: dict[str, Any] = {}
        self._averaging: set[str] = set()
        """GPUs without field 186."""
        self._device_files: dict[str, str] = {}
        """By UUID, for as long as the driver is loaded; asked as a GPU is found, for one that hangs later cannot be asked."""
        self._hanging: dict[int, Future[_Named]] = {}
        """By index the last question for a name: while it has not returned no other is asked, so at most one hangs per GPU."""
        self._started = False

    def start(self) -> Inventory:
        self.stop()
        _call(pynvml.nvmlInit)
        self._started = True
        self._averaging.clear()
        self._device_files = {}
        return self.scan()

    def stop(self) -> None:
        self._handles = {}
        if self._started:
            self._started = False
            try:
                _call(pynvml.nvmlShutdown)
            except NvmlError as error:
                if not error.driver_gone:  # then nothing is open any more
                    raise

    def scan(self) -> Inventory:
        handles: dict[str, Any] = {}
        gpus: list[GpuIdentity] = []
        unreadable: list[tuple[int, NvmlError]] = []
        count = _call(pynvml.nvmlDeviceGetCount)
        for index in range(min(count, MAX_GPUS_PER_NODE)):
            try:
                handle, identity, device_file = self._within(IDENTITY_S, index)
            except NvmlError as error:
                if error.driver_gone:
                    raise
                unreadable.append((index, error))
                continue
            handles[identity.uuid] = handle
            gpus.append(identity)
            if device_file is not None:
                self._device_files[identity.uuid] = device_file
        codes = {error.code for _, error in unreadable}
        if unreadable and not gpus and len(codes) == 1 and codes <= _WAY_LOST:
            raise unreadable[0][1]  # not so many broken GPUs, but one lost way to all of them
        self._handles |= handles
        return Inventory(gpus=tuple(gpus), unreadable=tuple(unreadable), beyond=max(0, count - MAX_GPUS_PER_NODE))

    def _within(self, seconds: float, index: int) -> _Named:
        """Who the GPU of this index is. Raises NvmlError, also when that is not said in time, or since the last time."""
        calls = self._hanging.get(index)
        if calls is None or calls.done():
            calls = self._hanging[index] = Future()
            threading.Thread(target=_settle, args=(calls, index), name=f"nvml-name-{index}", daemon=True).start()
            wait_s = seconds
        else:
            wait_s = 0.0
        try:
            return calls.result(timeout=wait_s)
        except TimeoutError as error:
            hung = NvmlError(call="a question for its name", code=pynvml.NVML_ERROR_TIMEOUT, said=f"nothing for {seconds:g} s")
            hung.health = Health.HUNG
            raise hung from error

    def instant_power_mw(self, uuid: str) -> int:
        handle = self._handle(uuid)
        if uuid not in self._averaging:
            value = _call(pynvml.nvmlDeviceGetFieldValues, handle, (pynvml.NVML_FI_DEV_POWER_INSTANT,))[0]
            if value.nvmlReturn == pynvml.NVML_SUCCESS:
                return milliwatts("field POWER_INSTANT", value.value.uiVal)
            error = NvmlError(call="field POWER_INSTANT", code=value.nvmlReturn)
            if error.health is Health.LOST or error.driver_gone:
                raise error
            if error.code in _NO_SUCH_FIELD:
                self._averaging.add(uuid)
        return _milliwatts(pynvml.nvmlDeviceGetPowerUsage, handle)

    def management_limit_mw(self, uuid: str) -> int:
        return _milliwatts(pynvml.nvmlDeviceGetPowerManagementLimit, self._handle(uuid))

    def enforced_limit_mw(self, uuid: str) -> int:
        return _milliwatts(pynvml.nvmlDeviceGetEnforcedPowerLimit, self._handle(uuid))

    def set_management_limit_mw(self, uuid: str, limit_mw: int) -> None:
        _call(pynvml.nvmlDeviceSetPowerManagementLimit, self._handle(uuid), limit_mw)

    def total_energy_mj(self, uuid: str) -> int:
        return int(_call(pynvml.nvmlDeviceGetTotalEnergyConsumption, self._handle(uuid)))

    def sm_clock_mhz(self, uuid: str) -> int:
        return int(_call(pynvml.nvmlDeviceGetClockInfo, self._handle(uuid), pynvml.NVML_CLOCK_SM))

    def clock_event_reasons(self, uuid: str) -> int:
        return int(_call(pynvml.nvmlDeviceGetCurrentClocksEventReasons, self._handle(uuid)))

    def compute_processes(self, uuid: str) -> int:
        handle = self._handle(uuid)
        try:
            return len(_call(pynvml.nvmlDeviceGetComputeRunningProcesses_v3, handle))
        except NvmlError as error:
            if error.code != pynvml.NVML_ERROR_FUNCTION_NOT_FOUND:
                raise
        return len(_call(pynvml.nvmlDeviceGetComputeRunningProcesses_v2, handle))  # drivers before 510

    def gpu_of(self, name: str) -> str | None:
        if name.startswith(_DEVICE_FILE):
            return next((uuid for uuid, file in tuple(self._device_files.items()) if file == name), None)
        try:
            if not name.startswith(_MIG):
                return str(_call(pynvml.nvmlDeviceGetUUID, _call(pynvml.nvmlDeviceGetHandleByPciBusId, name)))
            instance = _call(pynvml.nvmlDeviceGetHandleByUUID, name)
            parent = _call(pynvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle, instance)
            return str(_call(pynvml.nvmlDeviceGetUUID, parent))
        except NvmlError as error:
            if error.code not in _NO_SUCH_DEVICE and error.health is not Health.LOST:
                raise
            return None

    def lock_sm_clock_mhz(self, uuid: str, max_mhz: int | None) -> None:
        if max_mhz is None:
            _call(pynvml.nvmlDeviceResetGpuLockedClocks, self._handle(uuid))
        else:
            _call(pynvml.nvmlDeviceSetGpuLockedClocks, self._handle(uuid), 0, max_mhz)

    def persistence_mode(self, uuid: str) -> bool:
        return bool(_call(pynvml.nvmlDeviceGetPersistenceMode, self._handle(uuid)))

    def enable_persistence_mode(self, uuid: str) -> None:
        _call(pynvml.nvmlDeviceSetPersistenceMode, self._handle(uuid), pynvml.NVML_FEATURE_ENABLED)

    def _handle(self, uuid: str) -> Any:
        handle = self._handles.get(uuid)
        if handle is None:
            raise NvmlError(call="handle", code=pynvml.NVML_ERROR_NOT_FOUND)
        return handle


def _settle(named: Future[_Named], index: int) -> None:
    try:
        handle = _call(pynvml.nvmlDeviceGetHandleByIndex, index)
        named.set_result((handle, _identity(handle), _device_file(handle)))
    except Exception as error:  # noqa: BLE001 - carried to whoever asked, not swallowed
        named.set_exception(error)


def _device_file(handle: Any) -> str | None:
    """None where a GPU does not say; its other names still find it."""
    try:
        return f"{_DEVICE_FILE}{_call(pynvml.nvmlDeviceGetMinorNumber, handle)}"
    except NvmlError as error:
        if error.driver_gone:
            raise
        return None


def _identity(handle: Any) -> GpuIdentity:
    uuid = str(_call(pynvml.nvmlDeviceGetUUID, handle))
    model = str(_call(pynvml.nvmlDeviceGetName, handle))
    try:
        min_mw, max_mw = _limit_range(handle)
        default_mw = _milliwatts(pynvml.nvmlDeviceGetPowerManagementDefaultLimit, handle)
    except NvmlError as error:
        if error.health is not Health.NOT_SUPPORTED:
            raise
        limit_mw = _uncapped_mw(handle)
        return GpuIdentity(uuid, model, min_mw=limit_mw, max_mw=limit_mw, default_mw=limit_mw, cappable=False)
    return GpuIdentity(uuid, model, min_mw=min_mw, max_mw=max_mw, default_mw=default_mw)


def _limit_range(handle: Any) -> tuple[int, int]:
    """Lowest and highest limit. A range that is none is refused: believed, a lowest limit above what was granted would be set
    in its place, and one that no status can carry would have the whole node unheard. Raises NvmlError."""
    call = "nvmlDeviceGetPowerManagementLimitConstraints"
    min_mw, max_mw = _call(pynvml.nvmlDeviceGetPowerManagementLimitConstraints, handle)
    max_mw = milliwatts(call, max_mw)
    if not 0 <= min_mw <= max_mw:
        raise NvmlError(call=call, code=pynvml.NVML_ERROR_NO_DATA, said=f"{min_mw} to {max_mw} mW, which is no range")
    return int(min_mw), max_mw


def _uncapped_mw(handle: Any) -> int:
    """The most that a GPU without power management says it may draw. Raises NvmlError when the driver is gone."""
    for ask in (pynvml.nvmlDeviceGetPowerManagementDefaultLimit, pynvml.nvmlDeviceGetEnforcedPowerLimit):
        try:
            return _milliwatts(ask, handle)
        except NvmlError as error:
            if error.driver_gone:
                raise
    return UNKNOWN_LIMIT_MW


def milliwatts(call: str, value: int) -> int:
    """A GPU's draw or limit as the driver gave it. None draws nothing or may draw nothing, and a register of all ones is no
    number: believed, a 0 would prove a GPU idle and its cap set, and all ones would have the whole status refused. Raises
    NvmlError."""
    if 0 < value <= 1000 * MAX_GPU_WATTS:
        return int(value)
    raise NvmlError(call=call, code=pynvml.NVML_ERROR_NO_DATA, said=f"{value} mW, which no GPU draws")


def _milliwatts(function: Callable[..., int], handle: Any) -> int:
    return milliwatts(function.__name__, _call(function, handle))


def _call(function: Callable[..., T], *arguments: object) -> T:
    try:
        return function(*arguments)
    except pynvml.NVMLError as error:
        raise NvmlError(call=function.__name__, code=error.value) from None
