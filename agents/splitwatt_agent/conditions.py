"""What the agent reports, as pure functions of what it knows: GPU lines and conditions, each with sentences for people.

`Report` leaves out times, so that two equal reports mean that nothing is worth a write. Conditions say the state, reasons
say why: `Ready` (the agent can do its work) and `CapsEnforced` (every grant holds, or which GPU's does not and why); while
they hold `Paused`, `Observing` and `ForeignLimit`; and in Oversubscribed mode `LeaseHeld`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from splitwatt_core.conditions import MAX_MESSAGE_CHARS, Condition, merge, some
from splitwatt_core.protocol.contest import WINDOW_S, Contest
from splitwatt_core.protocol.contract import GpuStatus, Health, Mode, Status
from splitwatt_core.protocol.enforcer import ObjectVerdict

UNACKED_GRACE_S: Final = 2.0
"""A grant may take this long to be applied before CapsEnforced speaks of it."""

READY: Final = "Ready"
CAPS_ENFORCED: Final = "CapsEnforced"
LEASE_HELD: Final = "LeaseHeld"
PAUSED: Final = "Paused"
OBSERVING: Final = "Observing"
FOREIGN_LIMIT: Final = "ForeignLimit"


@dataclass(frozen=True, slots=True)
class ControlView:
    """What the control loop knows after one tick. Watts; `overdue_s` per GPU whose newest grant is not acknowledged."""

    observed_uid: str
    observed_term: int
    boot_id: str
    gpus: tuple[GpuStatus, ...]
    granted_w: Mapping[str, int]
    overdue_s: Mapping[str, float]
    persistence: Mapping[str, str]
    """Per GPU: "" when persistence mode is on, else why not."""
    verdict: ObjectVerdict | None
    unknown_gpus: tuple[str, ...]
    mode: Mode | None
    lowered: Mapping[str, int]
    """Ceilings that the node guard has lowered, in watts."""
    trouble: str
    """Why there is no driver to speak to; "" when there is one."""
    disk_error: str
    contract_error: str
    owners_error: str
    unresolved: tuple[str, ...]
    """Devices that pods hold and that no GPU here is known by."""
    paused_by: str = ""
    """The node's label that asks GPU clients to step aside."""
    observing: bool = False
    contests: Mapping[str, Contest] = field(default_factory=dict)
    beyond: int = 0
    """GPUs above the number that a node may report."""


@dataclass(frozen=True, slots=True)
class Report:
    """The status to write, without times."""

    observed_uid: str
    observed_term: int
    boot_id: str
    gpus: tuple[GpuStatus, ...]
    conditions: tuple[Condition, ...]
    unresolved: tuple[str, ...] = ()

    def urgent_part(self) -> tuple[Any, ...]:
        """What the operator's ledger waits for; a change of it is written without delay. Limits need not be in it: one
        that rises above its acknowledged cap takes the acknowledgement with it."""
        lines = tuple((gpu.uuid, gpu.acked_grant, gpu.health) for gpu in self.gpus)
        return (self.observed_uid, self.observed_term, self.boot_id, lines)


_ASIDE: Final = "NVML is closed, limits stay as the driver has them, and every GPU is charged its default limit meanwhile"
_OBSERVES: Final = "it sets no limit, clock or mode and acknowledges nothing, so every GPU is charged its default limit"


def report_of(view: ControlView) -> Report:
    conditions = [_ready(view), _caps_enforced(view)]
    if view.mode is Mode.OVERSUBSCRIBED:
        conditions.append(
            Condition(LEASE_HELD, False, "LeaseNotFollowed", "This agent follows no Lease, so it applies safe caps only.")
        )
    if view.paused_by:
        conditions.append(_paused(view))
    if view.contests:
        conditions.append(_foreign_limit(view))
    if view.observing:
        conditions.append(Condition(OBSERVING, True, "Asked", f"This agent runs with --observe: {_OBSERVES}."))
    return Report(view.observed_uid, view.observed_term, view.boot_id, view.gpus, tuple(conditions), view.unresolved)


def status_to_write(report: Report, *, written_at: str, previous: Iterable[Condition]) -> Status:
    """The status as it is to stand, after `previous`. `written_at` (RFC 3339) is said in Ready's message, so that a sign of
    life is a new version even where nothing else changed."""
    said = f" Said at {written_at}."
    conditions = [
        replace(c, message=c.message[: MAX_MESSAGE_CHARS - len(said)] + said) if c.type == READY else c for c in report.conditions
    ]
    return Status(
        observed_uid=report.observed_uid,
        observed_term=report.observed_term,
        boot_id=report.boot_id,
        gpus=report.gpus,
        conditions=merge(conditions, previous, now=written_at),
        unresolved=report.unresolved,
    )


def _ready(view: ControlView) -> Condition:
    def no(reason: str, message: str) -> Condition:
        return Condition(READY, False, reason, message)

    if view.paused_by:
        return no("Paused", f"Stepped aside for the node's label {view.paused_by}{': ' if view.trouble else ''}{view.trouble}.")
    if view.trouble:
        return no("NVMLUnavailable", f"No GPU can be read: {view.trouble}; limits stay as the driver has them.")
    if view.contract_error:
        return no("InvalidSpec", f"The spec cannot be understood: {view.contract_error}; caps are held.")
    if view.disk_error:
        return no("StateNotDurable", f"The state directory refuses writes: {view.disk_error}; caps are only lowered.")
    if view.verdict is ObjectVerdict.WRONG_UID:
        return no("WrongUID", "The spec was written for another object (restored or recreated); caps are held.")
    if view.verdict is ObjectVerdict.LOWER_TERM:
        return no("LowerTerm", "The spec is of an older term than one already seen on this node; caps are held.")
    if view.unknown_gpus:
        return no("UnknownGPUs", f"The spec grants to GPUs this node does not have: {', '.join(view.unknown_gpus)}.")
    if view.verdict is None or view.verdict is ObjectVerdict.UNSYNCED:
        return no("NotSynced", "The object has not been read since this agent started; caps are held.")
    if not view.gpus:
        return no("NoGPUs", "NVML finds no GPU on this node.")
    if all(gpu.health is Health.NOT_SUPPORTED for gpu in view.gpus):
        models = ", ".join(sorted({gpu.model for gpu in view.gpus}))
        return no("NotSupported", f"Power management is not supported on {models}: no GPU here can be capped, each is charged.")
    if view.beyond:
        return no(
            "TooManyGPUs", f"{view.beyond} more GPUs than the {len(view.gpus)} of this status are neither capped nor charged."
        )
    if view.verdict is ObjectVerdict.NO_SPEC or not view.granted_w:
        return Condition(READY, True, "NoGrants", f"{len(view.gpus)} GPUs are read; nothing is granted yet.")
    message = f"{len(view.gpus)} GPUs are read, {len(view.granted_w)} grants of term {view.observed_term} are in force."
    if view.lowered:
        low = ", ".join(sorted(view.lowered))
        return Condition(READY, True, "Guarding", f"{message} The node guard holds these below their grants: {low}.")
    if view.owners_error:
        return Condition(READY, True, "WorkloadsStale", f"{message} Workloads are those last known: {view.owners_error}.")
    if view.unresolved:
        devices = some(view.unresolved, between="; ")
        text = f"{message} Pods hold devices that no GPU here is known by: {devices}. Their GPUs count as of unknown owner."
        return Condition(READY, True, "UnknownDevices", text)
    return Condition(READY, True, "Enforcing", message)


def _paused(view: ControlView) -> Condition:
    asks = f"The node's label {view.paused_by} asks for it"
    if view.trouble:
        return Condition(PAUSED, False, "Closing", f"{asks}, and NVML is not closed yet: {view.trouble}.")
    return Condition(PAUSED, True, "LabelAsks", f"{asks}: {_ASIDE}.")


def _foreign_limit(view: ControlView) -> Condition:
    fights = [
        f"another program set {uuid} to {contest.limit_w} W, at least {contest.times} times in {WINDOW_S:.0f} s"
        for uuid, contest in view.contests.items()
    ]
    message = (
        f"{'; '.join(fights)}: each time it was put back. Find it (nvidia-smi -pl, a tuning job, another agent) and stop it."
    )
    return Condition(FOREIGN_LIMIT, True, "SetByAnother", message)


_TROUBLES: Final[Mapping[Health, tuple[str, str]]] = {
    Health.LOST: ("GPULost", "is lost to the driver; drain the node and reset the GPU"),
    Health.HUNG: ("CallHung", "does not answer: a driver call has not returned, so nothing is acknowledged meanwhile"),
    Health.NO_PERMISSION: ("NoPermission", "refuses a new limit; the agent needs root or CAP_SYS_ADMIN"),
    Health.CAP_NOT_ENFORCED: (
        "CapNotEnforced",
        "took its limit and reads back a higher one: the driver ignored the call, or a reset or another program undid it",
    ),
    Health.NOT_SUPPORTED: (
        "NotSupported",
        "does not support power limits: it is charged the most it may draw, and its neighbours are governed",
    ),
    Health.UNKNOWN: ("Unreadable", "could not be read"),
}


_REFUSED: Final = (
    "SetterFailed",
    "answers a new limit with an error: the agent's log and its metric of failed NVML calls name it",
)
"""Of a GPU whose limits are read all the same."""
_CLOSED: Final = ("NoPermission", "may not be read by this agent; it needs root or CAP_SYS_ADMIN, and the GPU's device file")


def _caps_enforced(view: ControlView) -> Condition:
    """The reason is the first trouble found, in the order of the GPUs; the message has a sentence for each GPU."""
    if view.observing:
        return Condition(CAPS_ENFORCED, False, OBSERVING, "No cap is set: this agent only observes.")
    troubles: list[tuple[str, str]] = []
    for gpu in view.gpus:
        trouble = _trouble_of(view, gpu)
        if trouble is not None:
            troubles.append((trouble[0], f"{gpu.uuid} {trouble[1]}{_limits(view, gpu)}."))
    if troubles:
        message = " ".join(sentence for _, sentence in troubles)
        return Condition(CAPS_ENFORCED, False, troubles[0][0], message)
    if view.paused_by:
        return Condition(CAPS_ENFORCED, False, "Paused", "No limit is read back while the agent steps aside.")
    if view.trouble:
        return Condition(CAPS_ENFORCED, False, "NVMLUnavailable", "No limit can be read back.")
    if not view.granted_w:
        return Condition(CAPS_ENFORCED, True, "NoGrants", "Nothing is granted, so nothing has to be enforced.")
    return Condition(CAPS_ENFORCED, True, "ReadBack", f"All {len(view.granted_w)} granted caps were read back.")


def _trouble_of(view: ControlView, gpu: GpuStatus) -> tuple[str, str] | None:
    readable = gpu.management_w is not None
    if gpu.health is Health.UNKNOWN and readable:
        return _REFUSED
    if gpu.health is Health.NO_PERMISSION and not readable:
        return _CLOSED
    known = _TROUBLES.get(gpu.health)
    if known is not None:
        return known
    if view.overdue_s.get(gpu.uuid, 0.0) > UNACKED_GRACE_S:
        return "NotAcknowledged", "has not taken its newest grant"
    why_not_persistent = view.persistence.get(gpu.uuid, "")
    if why_not_persistent:
        return "PersistenceModeOff", f"would forget its limit with its last client: {why_not_persistent}"
    return None


def _limits(view: ControlView, gpu: GpuStatus) -> str:
    cap_w = view.granted_w.get(gpu.uuid)
    if cap_w is None or gpu.management_w is None:
        return ""
    enforced = "unreadable" if gpu.enforced_w is None else f"{gpu.enforced_w} W"
    return f" (granted {cap_w} W, management limit {gpu.management_w} W, enforced {enforced})"
