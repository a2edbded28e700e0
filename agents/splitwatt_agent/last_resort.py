"""When only a new container can bring the driver back: the process then ends with a sentence, and the kubelet makes one.

A container keeps the driver's library and device files that it was born with. After a driver upgrade the library no longer
fits the kernel module; after a `systemctl daemon-reload` some runtimes lose the right to the device files; and who was
started before the driver was installed never sees it. Nothing inside the container mends that, so after `GIVE_UP_S` of
nothing else the process ends. Waiting for a driver that is not there, or is being replaced, is no such case.

What it protects: a fault that lasts is never retried for ever behind a healthy face; and ending costs no watt, for limits
stay in the driver.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pynvml

from splitwatt_agent.nvml import NvmlError
from splitwatt_agent.sampling import GpuReading

GIVE_UP_S: Final = 60.0
EXIT_CODE: Final = 3

_ADVICE: Final[Mapping[int, str]] = {
    pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: "the driver was replaced, and this container still has the library of the old one",
    pynvml.NVML_ERROR_UNKNOWN: "this container has lost the GPUs' device files, as after a daemon-reload of systemd",
    pynvml.NVML_ERROR_NO_PERMISSION: "this container may not use the GPUs' device files any more",
    pynvml.NVML_ERROR_LIBRARY_NOT_FOUND: "a driver is loaded, and this container was made without its library",
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED: "a driver is loaded, and this container was made without its device files",
}
_TO_SET: Final[Mapping[int, str]] = {
    pynvml.NVML_ERROR_LIBRARY_NOT_FOUND: "this container has no libnvidia-ml.so.1: set agent.runtimeClassName to the "
    "RuntimeClass of NVIDIA's container runtime (most often nvidia), or agent.driverLibraryDir to the host's folder that has "
    "the file, or install the driver",
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED: "the library is here and no driver answers: install or load it, or give this container "
    "its device files by agent.runtimeClassName or agent.privileged",
    pynvml.NVML_ERROR_NO_PERMISSION: "this container may not open the GPUs' device files: set agent.runtimeClassName to the "
    "RuntimeClass of NVIDIA's container runtime (most often nvidia), or agent.privileged",
}
"""By what a start answered: which value of the chart gives the container what it lacks."""
_AT_ONCE: Final = frozenset({pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH, pynvml.NVML_ERROR_UNKNOWN})
"""Codes that need no witness; the others speak of a driver that may just not be there yet."""
DRIVER_SIGNS: Final = (Path("/proc/driver/nvidia/version"), Path("/dev/nvidiactl"))


class DeviceAccessLostError(Exception):
    """One sentence that says what happened and what to do."""


@dataclass(frozen=True, slots=True)
class Patience:
    """Since when (monotonic seconds) nothing but `why` was met; "" while there is hope."""

    why: str = ""
    since_s: float = 0.0

    def after(self, why: str, now_s: float) -> Patience:
        """The causes may change their words while the wait goes on."""
        return Patience(why, self.since_s if self.why else now_s)

    def over(self, now_s: float, *, give_up_s: float) -> bool:
        return bool(self.why) and now_s - self.since_s >= give_up_s


def driver_is_loaded(signs: Iterable[Path] = DRIVER_SIGNS) -> bool:
    """Whether the kernel shows a driver; the folder of processes is the host's own, in a container too."""
    return any(sign.exists() for sign in signs)


def cause(error: NvmlError, *, once_open: bool, driver_loaded: bool) -> str:
    """Why a new container is needed after this answer, "" where it would not help. `once_open`: this process had the driver
    before."""
    advice = _ADVICE.get(error.code)
    if advice is None:
        return ""
    vanished = error.code == pynvml.NVML_ERROR_LIBRARY_NOT_FOUND and once_open
    if error.code not in _AT_ONCE and not driver_loaded and not vanished:
        return ""
    return f"{error}: {advice}"


def advice(error: BaseException) -> str:
    """What to set after a start that failed so, to follow the error's own words; "" where no setting helps."""
    found = _TO_SET.get(error.code) if isinstance(error, NvmlError) else None
    return f" ({found})" if found else ""


def cause_in(readings: Mapping[str, GpuReading]) -> str:
    """The same of GPUs that were open before: "" unless no limit of any of them could be read, all for one such reason."""
    failed = [reading.errors[0] for reading in readings.values() if reading.errors and reading.readback.management_mw is None]
    if not readings or len(failed) < len(readings) or len({error.code for error in failed}) > 1:
        return ""
    return cause(failed[0], once_open=True, driver_loaded=True)


def farewell(why: str, *, waited_s: float) -> str:
    return (
        f"for {waited_s:.0f} s no GPU could be read ({why}). A new container can see them again, so this agent ends and the "
        "kubelet starts another; limits stay as the driver has them. If that one ends the same way, look whether the container "
        "runtime gives it the GPUs (agent.runtimeClassName) and whether nvidia-smi works on the node"
    )
