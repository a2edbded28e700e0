"""What one process costs: CPU time as a share of one core, and resident memory, as the kernel counts both.

CPU time is work done, whoever else uses the machine; a loaded machine still makes it somewhat dearer (shared caches and
hyperthreads), never cheaper.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Final

import psutil

from splitwatt_lab.bench_figures import Progress
from splitwatt_lab.errors import LabError

LOOK_S: Final = 1.0
MIB: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Usage:
    """`core_percent` of one core over the whole time; memory in MiB at the end and at its highest, looked at once a second."""

    core_percent: float
    rss_mib: float
    highest_rss_mib: float


def usage(pid: int, *, seconds: float, what: str, progress: Progress) -> Usage:
    """Watch a process for `seconds`. Raises LabError when it ends meanwhile: a part of a run is no figure."""
    try:
        process = psutil.Process(pid)
        begun_s, before = time.monotonic(), process.cpu_times()
        highest = 0
        while (done_s := time.monotonic() - begun_s) < seconds:
            progress.waiting(what, done_s, seconds)
            highest = max(highest, process.memory_info().rss)
            time.sleep(min(LOOK_S, seconds - done_s))
        after, rss = process.cpu_times(), process.memory_info().rss
    except psutil.NoSuchProcess as error:
        raise LabError(f"{what}: process {pid} ended while it was measured") from error
    busy_s = (after.user + after.system) - (before.user + before.system)
    return Usage(100.0 * busy_s / (time.monotonic() - begun_s), rss / MIB, max(highest, rss) / MIB)
