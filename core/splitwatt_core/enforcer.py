"""The agent's half of the protocol: which caps to set, and what may be acknowledged (PROTOCOL R10-R15).

One `Enforcer` per node, fed by the agent's loop: versions of the node's own NodePower, readbacks of every GPU, and the
begin and end of every setter call. It answers with setter calls to make and with the status lines to report.

What it protects: an acknowledgement of grant g means that g was applied, that no setter call of that GPU is outstanding
(a hung one may still complete), and that the management limit *and* the enforced limit were read back at or below g's
cap. Nothing here ever raises a cap because something is missing: without a readable object the caps are held (R15), and
what was persisted may only lower (R11).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from splitwatt_core.contract import GpuStatus, Health, NodePower, Workload


@dataclass(frozen=True, slots=True)
class GpuIdentity:
    """What never changes while the driver is loaded. Milliwatts, as NVML gives them."""

    uuid: str
    model: str
    min_mw: int
    max_mw: int
    default_mw: int


@dataclass(frozen=True, slots=True)
class Readback:
    """One GPU read at one moment. None: the call failed; `health` then says how."""

    management_mw: int | None
    enforced_mw: int | None
    health: Health = Health.OK
    power_mw: int | None = None


@dataclass(frozen=True, slots=True)
class Record:
    """What is persisted before it is applied (R12): the highest term, and per GPU the highest grant with its cap in watts."""

    term: int = 0
    grants: Mapping[str, tuple[int, int]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SetCap:
    """Call nvmlDeviceSetPowerManagementLimit(cap_mw) on this GPU, in its own thread: it may hang."""

    uuid: str
    cap_mw: int


@dataclass(frozen=True, slots=True)
class LockClock:
    """Lock SM clocks to at most `max_mhz`; None resets the lock."""

    uuid: str
    max_mhz: int | None


@dataclass(frozen=True, slots=True)
class Actions:
    """`persist` (when not None) must be durable before any of the calls is made."""

    persist: Record | None = None
    set_caps: tuple[SetCap, ...] = ()
    clocks: tuple[LockClock, ...] = ()


class Verdict(StrEnum):
    """What became of an observed object; all but ACCEPTED leave every cap as it is."""

    ACCEPTED = "Accepted"
    ABSENT = "Absent"
    UNSYNCED = "Unsynced"
    OLDER_VERSION = "OlderVersion"
    WRONG_UID = "WrongUID"
    LOWER_TERM = "LowerTerm"
    NO_SPEC = "NoSpec"


class Enforcer:
    """See the module's docstring. Methods are called from one thread; `now_s` is the agent's monotonic clock."""

    def __init__(self, *, gpus: Mapping[str, GpuIdentity], record: Record) -> None:
        raise NotImplementedError

    def observe(self, node_power: NodePower | None, *, consistent: bool) -> Verdict:
        """Take in a version of the object. `consistent` says it came from a quorum read, not from a cache or a watch;
        after a start nothing counts before the first consistent one (R11). None: the object is absent (R15)."""
        raise NotImplementedError

    def tick(self, now_s: float, readbacks: Mapping[str, Readback]) -> Actions:
        """Decide this round's calls from the readbacks of all GPUs. A GPU that is missing from `readbacks` is unknown."""
        raise NotImplementedError

    def setter_started(self, uuid: str, now_s: float) -> None:
        """Call before the NVML setter is entered."""
        raise NotImplementedError

    def setter_finished(self, uuid: str, now_s: float, error: Health | None) -> None:
        """Call when it returned; `error` None means it reported success, which proves nothing yet."""
        raise NotImplementedError

    def status(self, workloads: Mapping[str, Workload]) -> tuple[GpuStatus, ...]:
        """The lines for `status.gpus`, from the last tick's readbacks."""
        raise NotImplementedError

    @property
    def observed_uid(self) -> str:
        raise NotImplementedError

    @property
    def observed_term(self) -> int:
        raise NotImplementedError

    def granted_cap_w(self, uuid: str) -> int | None:
        """The cap of the newest accepted grant, None when there is none."""
        raise NotImplementedError

    def granted_phase(self, uuid: str) -> str | None:
        """`Prefill`, `Decode` or `Unassigned`, as the grant says; None when there is no grant."""
        raise NotImplementedError
