"""The Python handle of one node's simulated GPUs: workload sets demand, a judge reads the truth, a laboratory breaks things.

Theory: nothing is kept here. Every call goes to the same C code and the same shared file that NVML's callers use, so
there is one locking and one physics. Reading never takes the lock, and setting the demand of a whole node is one call.
"""

from __future__ import annotations

import ctypes as c
import errno
import math
import os
import threading
import uuid as uuids
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from splitwatt_nvml_twin import native
from splitwatt_nvml_twin.build import ensure_library
from splitwatt_nvml_twin.faults import Fault
from splitwatt_nvml_twin.models import GpuModel

STATE_FILE_VARIABLE: Final = "SPLITWATT_NVML_TWIN"
MAX_GPUS: Final = 64
MAX_MIG: Final = 7
MAX_DEMAND_W: Final = 10_000.0
_UUID_NAMESPACE: Final = uuids.UUID("5d0c7a58-6f0e-4f52-9a0b-0f5c1b7f3a11")


@dataclass(frozen=True, slots=True)
class Demand:
    """What a workload wants of one GPU: watts when nothing caps it, at `sm_clock_mhz` (None: the top clock)."""

    power_w: float
    sm_clock_mhz: int | None = None
    utilization_percent: float = 100.0
    memory_utilization_percent: float = 0.0
    memory_used_bytes: int = 0


@dataclass(frozen=True, slots=True)
class GpuTruth:
    """One GPU as it really is at `at_s` (CLOCK_MONOTONIC, or the hand-moved clock).

    `uncapped_w` is the power wanted under the present clock lock; `sample_w` and `average_w` are what the sensor shows;
    `energy_j` counts from the creation of the node and never falls; `locked_*_mhz` None: not locked.
    """

    power_w: float
    management_mw: int
    enforced_mw: int
    sm_clock_mhz: int
    locked_max_mhz: int | None
    energy_j: float
    temperature_c: float
    throttle_reasons: int
    lost: bool
    at_s: float
    demand_w: float
    uncapped_w: float
    utilization_percent: float
    sample_w: float
    average_w: float
    capped_s: float
    outside_mw: int | None
    locked_min_mhz: int | None
    persistence: bool
    resets: int
    setter_calls: int


def environment(path: Path | str) -> dict[str, str]:
    """Environment variables for a process that shall find the simulated NVML, on the node of this state file."""
    folders = [str(ensure_library()), *filter(None, os.environ.get("LD_LIBRARY_PATH", "").split(":"))]
    return {"LD_LIBRARY_PATH": ":".join(dict.fromkeys(folders)), STATE_FILE_VARIABLE: str(Path(path).resolve())}


def gpu_uuid(node_name: str, index: int) -> str:
    """The UUID of a node's simulated GPU, the same in every run."""
    return f"GPU-{uuids.uuid5(_UUID_NAMESPACE, f'{node_name}/{index}')}"


def _model_record(model: GpuModel, uuid: str) -> native.Model:
    record = native.Model()
    for name, _ in native.Model._fields_[2:]:  # type: ignore[misc]
        if not name.startswith("compute_"):
            setattr(record, name, getattr(model, name))
    record.name, record.uuid = model.name.encode(), uuid.encode()
    record.compute_major, record.compute_minor = model.compute_capability
    return record


def _truth(record: native.TruthRecord) -> GpuTruth:
    return GpuTruth(
        power_w=record.power_w,
        management_mw=record.management_mw,
        enforced_mw=record.enforced_mw,
        sm_clock_mhz=record.sm_clock_mhz,
        locked_max_mhz=record.locked_max_mhz or None,
        energy_j=record.energy_j,
        temperature_c=record.temperature_c,
        throttle_reasons=record.reasons,
        lost=bool(record.lost),
        at_s=record.at_ns * 1e-9,
        demand_w=record.demand_w,
        uncapped_w=record.uncapped_w,
        utilization_percent=record.utilization,
        sample_w=record.sample_w,
        average_w=record.average_w,
        capped_s=record.capped_s,
        outside_mw=record.outside_mw or None,
        locked_min_mhz=record.locked_min_mhz if record.locked_max_mhz else None,
        persistence=bool(record.persistence),
        resets=record.resets,
        setter_calls=record.setter_calls,
    )


class NodeTwin:
    """One node's simulated GPUs. GPUs are numbered by slot; NVML's index is the same until a reboot reorders it.

    Safe to use from several threads and processes. After `close` every call raises ValueError.
    """

    def __init__(self, path: Path, node: int) -> None:
        """Use `create` or `open`."""
        self.path: Final = path
        self._lib = native.library()
        self._node: int | None = node
        self._buffers = threading.local()
        self.gpu_count: Final[int] = self._lib.splitwatt_twin_count(node)
        models = [self._model(i) for i in range(self.gpu_count)]
        self.uuids: Final[tuple[str, ...]] = tuple(model.uuid.decode() for model in models)
        self.product_names: Final[tuple[str, ...]] = tuple(model.name.decode() for model in models)
        self.memory_bytes: Final[tuple[float, ...]] = tuple(model.memory_bytes for model in models)

    @classmethod
    def create(
        cls,
        path: Path | str,
        *,
        gpus: Sequence[GpuModel],
        boot_id: str,
        node_name: str | None = None,
        manual_clock: bool = False,
    ) -> NodeTwin:
        """Make the state file and open it. GPU UUIDs follow from `node_name` (default: the file's full path).

        With `manual_clock` time stands still but for `advance_clock`: for tests and virtual time.
        Raises FileExistsError when `path` exists (another process may be living on it), ValueError on bad input.
        """
        path = Path(path).resolve()
        if not 1 <= len(gpus) <= MAX_GPUS:
            raise ValueError(f"a node has 1 to {MAX_GPUS} GPUs, not {len(gpus)}")
        if not 0 < len(boot_id.encode()) < native.TEXT:
            raise ValueError(f"a boot id must have 1 to {native.TEXT - 1} bytes")
        seed = node_name if node_name is not None else str(path)
        records = (native.Model * len(gpus))(*(_model_record(m, gpu_uuid(seed, i)) for i, m in enumerate(gpus)))
        start_ns = 1_000_000_000 if manual_clock else -1
        code = native.library().splitwatt_twin_create(os.fsencode(path), records, len(gpus), boot_id.encode(), start_ns)
        if code == errno.EEXIST:
            raise FileExistsError(code, "a node's state file exists already; open it, or remove it first", str(path))
        if code:
            raise OSError(code, os.strerror(code), str(path))
        return cls.open(path)

    @classmethod
    def open(cls, path: Path | str) -> NodeTwin:
        """Open an existing state file. Raises OSError with one sentence that says what is wrong with it."""
        path = Path(path).resolve()
        error = c.create_string_buffer(512)
        node = native.library().splitwatt_twin_open(os.fsencode(path), error, len(error))
        if not node:
            raise OSError(error.value.decode(errors="replace"))
        return cls(path, node)

    def close(self) -> None:
        """Let go of the state file. No other thread may be inside a call of this object."""
        if self._node is not None:
            node, self._node = self._node, None
            self._lib.splitwatt_twin_close(node)

    def __enter__(self) -> NodeTwin:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def _open_node(self) -> int:
        if self._node is None:
            raise ValueError(f"the handle of {self.path} is closed")
        return self._node

    def _check(self, code: int, what: str) -> None:
        if code == errno.EINVAL:
            raise ValueError(f"{what}: out of range for a node with {self.gpu_count} GPUs")
        if code:
            raise OSError(code, f"{what}: {os.strerror(code)}", str(self.path))

    def _slot(self, gpu: int) -> int:
        if not 0 <= gpu < self.gpu_count:
            raise ValueError(f"GPU {gpu} does not exist: the node has GPUs 0 to {self.gpu_count - 1}")
        return gpu

    def _model(self, gpu: int) -> native.Model:
        record = native.Model()
        self._check(self._lib.splitwatt_twin_model(self._open_node, gpu, c.byref(record)), "model")
        return record

    @property
    def boot_id(self) -> str:
        text = c.create_string_buffer(native.TEXT)
        self._lib.splitwatt_twin_boot_id(self._open_node, text, native.TEXT)
        return text.value.decode()

    @property
    def now_s(self) -> float:
        """The node's clock: CLOCK_MONOTONIC, or the hand-moved one."""
        return float(self._lib.splitwatt_twin_now_ns(self._open_node)) * 1e-9

    def advance_clock(self, seconds: float) -> None:
        """Move the clock of a node made with `manual_clock`."""
        if not math.isfinite(seconds) or seconds < 0:
            raise ValueError("time moves forward: give 0 seconds or more")
        if self._lib.splitwatt_twin_advance_clock(self._open_node, round(seconds * 1e9)):
            raise ValueError("this node runs on the real clock: create it with manual_clock=True")

    def set_demand(self, gpu: int, demand: Demand) -> None:
        """What the workload of one GPU wants from now on. Below idle draw means idle."""
        self.set_demands({gpu: demand})

    def set_demands(self, demands: Mapping[int, Demand]) -> None:
        """The same for several GPUs at one moment, under one lock."""
        records = (native.DemandRecord * len(demands))()
        for record, (gpu, demand) in zip(records, demands.items(), strict=True):
            if not 0 <= demand.power_w <= MAX_DEMAND_W:
                raise ValueError(f"GPU {gpu}: a demand must lie between 0 and {MAX_DEMAND_W:.0f} W, not {demand.power_w}")
            if not (0 <= demand.utilization_percent <= 100 and 0 <= demand.memory_utilization_percent <= 100):
                raise ValueError(f"GPU {gpu}: utilisation is a percentage between 0 and 100")
            if demand.memory_used_bytes < 0 or (demand.sm_clock_mhz is not None and demand.sm_clock_mhz <= 0):
                raise ValueError(f"GPU {gpu}: memory and clock wanted must be positive")
            record.gpu = self._slot(gpu)
            record.sm_clock_mhz = demand.sm_clock_mhz or 0
            record.power_w = demand.power_w
            record.utilization = demand.utilization_percent
            record.memory_utilization = demand.memory_utilization_percent
            record.memory_used_bytes = demand.memory_used_bytes
        self._check(self._lib.splitwatt_twin_set_demands(self._open_node, records, len(demands)), "set_demands")

    def _read(self, first: int, count: int) -> c.Array[native.TruthRecord]:
        records: c.Array[native.TruthRecord] | None = getattr(self._buffers, "records", None)
        if records is None:
            records = self._buffers.records = (native.TruthRecord * MAX_GPUS)()
        self._check(self._lib.splitwatt_twin_read(self._open_node, first, count, records), "read")
        return records

    def read(self, gpu: int) -> GpuTruth:
        """The truth about one GPU, now. Takes no lock."""
        return _truth(self._read(self._slot(gpu), 1)[0])

    def read_all(self) -> list[GpuTruth]:
        """The truth about every GPU at one moment, by slot. Takes no lock."""
        records = self._read(0, self.gpu_count)
        return [_truth(records[i]) for i in range(self.gpu_count)]

    def read_power_w(self) -> list[float]:
        """True watts of every GPU at one moment: the cheap form for meters and judges."""
        records = self._read(0, self.gpu_count)
        return [records[i].power_w for i in range(self.gpu_count)]

    def read_enforced_mw(self) -> list[int]:
        """Enforced limits of every GPU at one moment: the cheap form for whoever looks many times a second."""
        records = self._read(0, self.gpu_count)
        return [records[i].enforced_mw for i in range(self.gpu_count)]

    def set_fault(self, gpu: int, fault: Fault) -> None:
        """Lay a fault on one call of a GPU; it replaces the fault that lay there."""
        record = native.FaultRecord(
            call=fault.call,
            kind=fault.kind,
            code=fault.code,
            value_mw=fault.value_mw,
            times=fault.times,
            hang_s=fault.hang_s,
        )
        self._check(self._lib.splitwatt_twin_set_fault(self._open_node, self._slot(gpu), c.byref(record)), "set_fault")

    def clear_faults(self, gpu: int) -> None:
        """Take all faults off a GPU. A call that hangs on one completes."""
        self._check(self._lib.splitwatt_twin_clear_faults(self._open_node, self._slot(gpu)), "clear_faults")

    def set_outside_limit(self, gpu: int, limit_mw: int | None) -> None:
        """Another limiter beside the driver (out of band): enforced = min(management, this). None: it lets go."""
        if limit_mw is not None and not 0 < limit_mw < 1 << 31:
            raise ValueError("an outside limit must be a positive number of milliwatts, or None")
        code = self._lib.splitwatt_twin_set_outside_limit(self._open_node, self._slot(gpu), limit_mw or 0)
        self._check(code, "set_outside_limit")

    def set_floor(self, gpu: int, power_w: float) -> None:
        """What the present load draws whatever its cap, as far as it wants that much (memory-bound work: a cap slows the
        cores alone). 0: nothing but the idle draw. Gone with a reboot."""
        if not 0 <= power_w <= MAX_DEMAND_W:
            raise ValueError(f"a floor must lie between 0 and {MAX_DEMAND_W:.0f} W, not {power_w}")
        self._check(self._lib.splitwatt_twin_set_floor(self._open_node, self._slot(gpu), round(power_w * 1000)), "set_floor")

    def set_mig(self, gpu: int, instances: int) -> tuple[str, ...]:
        """Cut a GPU into so many MIG instances, 0: into none; the UUIDs by which NVML then finds them."""
        if not 0 <= instances <= MAX_MIG:
            raise ValueError(f"a GPU has 0 to {MAX_MIG} MIG instances, not {instances}")
        self._check(self._lib.splitwatt_twin_set_mig(self._open_node, self._slot(gpu), instances), "set_mig")
        return tuple(f"MIG-{number}{self.uuids[gpu][5:]}" for number in range(instances))

    def reset_gpu(self, gpu: int) -> None:
        """A GPU reset: limits and clock locks back to their defaults, NVML's energy counter to zero, a lost GPU back."""
        self._check(self._lib.splitwatt_twin_reset_gpu(self._open_node, self._slot(gpu)), "reset_gpu")

    def reboot(self, new_boot_id: str, *, index_order: Sequence[int] | None = None) -> None:
        """A reboot or driver load: every GPU reset, idle, persistence mode off; NVML clients must initialise again.

        `index_order[i]` is the slot that NVML's index i shows afterwards (default: as created).
        """
        order = list(range(self.gpu_count)) if index_order is None else list(index_order)
        if sorted(order) != list(range(self.gpu_count)):
            raise ValueError(f"index_order must hold each of 0 to {self.gpu_count - 1} once")
        if not 0 < len(new_boot_id.encode()) < native.TEXT:
            raise ValueError(f"a boot id must have 1 to {native.TEXT - 1} bytes")
        array = (c.c_uint32 * self.gpu_count)(*order)
        self._check(self._lib.splitwatt_twin_reboot(self._open_node, new_boot_id.encode(), array), "reboot")

    def signal_inside(self, gpu: int, signal_number: int) -> None:
        """Send this very process a signal while it holds the node's lock in the middle of a change (SIGKILL, SIGSTOP).

        Shows that the others go on: readers at once, writers as soon as the process is dead or continued.
        """
        code = self._lib.splitwatt_twin_signal_inside(self._open_node, self._slot(gpu), signal_number)
        self._check(code, "signal_inside")
