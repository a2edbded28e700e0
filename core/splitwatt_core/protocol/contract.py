"""`NodePower`: the contract between the operator and one node's agent, as frozen data and as JSON.

The operator alone writes `spec`, the agent alone writes `status`. Watts are whole numbers here, as in the API; milliwatts
exist only at the NVML border. Parsing is strict about types and lenient about unknown fields and about words that only tell
of a GPU, so that old and new releases read each other while one replaces the other. Standard library only: the agent
imports this module.

Grant numbers order all grants of one GPU for all time (docs/protocol.md, R6): `grant = term * GRANTS_PER_TERM + round`, so a
number is never used twice, not even for a new object of the same name, and a later term's grants outrank all earlier ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, TypeVar

from splitwatt_core.conditions import Condition, condition_from_wire, condition_to_wire
from splitwatt_core.names import ANNOTATION_RELEASE, GROUP_VERSION
from splitwatt_core.protocol.brake import Brake, brake_to_wire, brake_told
from splitwatt_core.protocol.endpoint import StreamEndpoint, endpoint_from_wire, endpoint_to_wire
from splitwatt_core.protocol.would import WouldBe, would_from_wire, would_to_wire

GRANTS_PER_TERM: Final = 10**9
"""Rounds one operator start may decide; at one a second that is 31 years."""
MAX_TERM: Final = 2**53 // GRANTS_PER_TERM - 1
"""Terms stay below this so that every grant number is exact in a JSON double."""
MAX_GRANT: Final = (MAX_TERM + 1) * GRANTS_PER_TERM - 1
MAX_BUDGETS_PER_NODE: Final = 64
"""A node is charged to its leaf and all above it and, while it moves, to former ones: four ways of the greatest depth."""
MAX_GPUS_PER_NODE: Final = 64
"""What NVML itself can list on one machine; passed-through switches and virtual machines show more than the 16 of one box
(docs/facts.md, NVML)."""
MAX_OWNERS_PER_GPU: Final = 48
"""Pods named per GPU: seven MIG instances, or the most clients that one GPU serves at once by MPS (docs/facts.md, NVML)."""
MAX_UNRESOLVED: Final = 16
MAX_UNRESOLVED_CHARS: Final = 512
"""Devices named that could not be traced to a GPU; the rest are counted in the agent's condition."""
MAX_GPU_WATTS: Final = 10_000
"""Of one GPU: seven of the largest on sale. What is said to draw or to be allowed more is no number of watts."""
MIN_PRIORITY: Final = -1000
MAX_PRIORITY: Final = 1000
NO_GRANT: Final = 0
UNREADABLE_PREFIX: Final = "unreadable-index-"
"""Before the index of a GPU that never said who it is: what stands in its status for a UUID."""
RELEASE_ALL: Final = "all"
"""In `NodePower.release`: from every budget; no budget can have this name and be released alone."""
SIGN_OF_LIFE_S: Final = 60.0
"""An agent that lives writes its status this often even where nothing changed."""


class ContractError(ValueError):
    """A NodePower that does not say what the contract asks; the message names the field."""


class Mode(StrEnum):
    OBSERVE = "Observe"
    STRICT = "Strict"
    OVERSUBSCRIBED = "Oversubscribed"
    RELEASE = "Release"
    """Of a PowerBudget alone: to agents its grants are Strict's."""


class Phase(StrEnum):
    """What a GPU's workload does, which decides what a cap costs it."""

    UNASSIGNED = "Unassigned"
    PREFILL = "Prefill"
    DECODE = "Decode"


class Health(StrEnum):
    OK = "OK"
    NO_PERMISSION = "NoPermission"
    LOST = "Lost"
    NOT_SUPPORTED = "NotSupported"
    CAP_NOT_ENFORCED = "CapNotEnforced"
    HUNG = "Hung"
    UNKNOWN = "Unknown"


class Use(StrEnum):
    """What the agent itself sees of a GPU's use, whoever owns it. Nothing but IDLE says that nobody does."""

    IDLE = "Idle"
    BUSY = "Busy"
    UNKNOWN = "Unknown"


@dataclass(frozen=True, slots=True)
class PowerClass:
    """How the pods of a GPU rank, and the highest cap that it may have: what their cluster asked for."""

    priority: int
    ceiling_w: int


@dataclass(frozen=True, slots=True)
class Grant:
    """One GPU's line in `spec.gpus`.

    `charge_w` is max(charge so far, cap): what a successor must count while the grant is unacknowledged (R4). `power_class`: what
    a successor caps those pods by that finds their cluster gone; None while no pod of ours holds the GPU.
    """

    uuid: str
    grant: int
    cap_w: int
    safe_cap_w: int
    charge_w: int
    max_clock_mhz: int | None = None
    phase: Phase = Phase.UNASSIGNED
    power_class: PowerClass | None = None


@dataclass(frozen=True, slots=True)
class Spec:
    """The operator's word. `budgets` names every budget that the node is charged to, way by way: its leaf and all above it, in
    order, then every other leaf or way up that still counts it (R31); `leaving` are those of them that it leaves once grants made
    for its present way are acknowledged (R9, R32). `overhead_percent`, `non_gpu_w`, `unmanaged_w`: what those leaves declare of
    one node, for when they are gone; None where nobody wrote it. `would`: told and never obeyed (`would`)."""

    term: int
    for_uid: str
    mode: Mode = Mode.STRICT
    lease_name: str = ""
    node_limit_w: int | None = None
    budgets: tuple[str, ...] = ()
    leaving: tuple[str, ...] = ()
    overhead_percent: int | None = None
    non_gpu_w: int | None = None
    unmanaged_w: int | None = None
    gpus: tuple[Grant, ...] = ()
    would: tuple[WouldBe, ...] = ()


@dataclass(frozen=True, slots=True)
class Workload:
    namespace: str
    pod: str


@dataclass(frozen=True, slots=True)
class GpuStatus:
    """One GPU's line in `status.gpus`: what the agent read back.

    `management_w` is None when it could not be read (a lost GPU); the ledger then keeps what it last knew. `workload`: the pod
    that holds it; `workloads`: all of them, the same one first, where several share it. `use`: what draw and processes show,
    Unknown from an agent that does not tell. `floor_w`: what it draws whatever its cap; 0: its caps hold.
    `brake`: what holds it below its grant (R30), once that is durable.
    """

    uuid: str
    acked_grant: int = NO_GRANT
    management_w: int | None = None
    enforced_w: int | None = None
    min_w: int = 0
    max_w: int = 0
    default_w: int = 0
    model: str = ""
    health: Health = Health.OK
    workload: Workload | None = None
    workloads: tuple[Workload, ...] = ()
    use: Use = Use.UNKNOWN
    floor_w: int = 0
    brake: Brake | None = None

    @property
    def owners(self) -> tuple[Workload, ...]:
        """All pods that hold it."""
        return self.workloads or (() if self.workload is None else (self.workload,))


@dataclass(frozen=True, slots=True)
class Status:
    """The agent's word. Void unless `observed_uid` is the uid of the object it stands in. `unresolved`: devices that kubelet
    gave to pods and that the agent cannot trace to a GPU, each with its pod, in words. `stream`: where it listens itself."""

    observed_uid: str = ""
    observed_term: int = 0
    boot_id: str = ""
    gpus: tuple[GpuStatus, ...] = ()
    conditions: tuple[Condition, ...] = ()
    unresolved: tuple[str, ...] = ()
    stream: StreamEndpoint | None = None


@dataclass(frozen=True, slots=True)
class NodePower:
    """One observed version of the object. `release`: budgets that a person releases the node from, by name, or RELEASE_ALL
    (R33)."""

    name: str
    uid: str
    resource_version: int
    spec: Spec | None = None
    status: Status = field(default_factory=Status)
    release: frozenset[str] = frozenset()


# ---------------------------------------------------------------------------------------------------------- wire form


_Word = TypeVar("_Word", bound=StrEnum)


def _get(raw: Mapping[str, Any], key: str, kind: type, where: str, default: Any) -> Any:
    value = raw.get(key, default)
    if value is default:
        return default
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ContractError(f"{where}.{key} must be {kind.__name__}, not {value!r}")
    return value


def _choice(raw: Mapping[str, Any], key: str, kind: type[_Word], where: str, default: _Word, *, told: bool = False) -> _Word:
    """`told`: it says something of a GPU and asks for nothing, so a word of a newer release reads as `default`."""
    word = _get(raw, key, str, where, default)
    try:
        return kind(word)
    except ValueError as error:
        if told:
            return default
        raise ContractError(f"{where}.{key} must be one of {', '.join(kind)}, not {word!r}") from error


def _list(raw: Mapping[str, Any], key: str, kind: type, where: str) -> Sequence[Any]:
    rows: Sequence[Any] = _get(raw, key, list, where, [])
    for i, row in enumerate(rows):
        if not isinstance(row, kind):
            raise ContractError(f"{where}.{key}[{i}] must be {kind.__name__}, not {row!r}")
    return rows


def _gpu_rows(raw: Mapping[str, Any], where: str) -> Sequence[Mapping[str, Any]]:
    rows = _list(raw, "gpus", dict, where)
    if len(rows) > MAX_GPUS_PER_NODE:
        raise ContractError(f"{where}.gpus has {len(rows)} entries; a node has at most {MAX_GPUS_PER_NODE} GPUs")
    for i, row in enumerate(rows):
        if not row.get("uuid"):
            raise ContractError(f"{where}.gpus[{i}].uuid is missing")
    return rows


def _grant_from(raw: Mapping[str, Any], where: str) -> Grant:
    cap_w = _get(raw, "capWatts", int, where, 0)
    if cap_w <= 0:
        raise ContractError(f"{where}.capWatts must be above 0, not {cap_w}")
    return Grant(
        uuid=_get(raw, "uuid", str, where, ""),
        grant=_get(raw, "grant", int, where, NO_GRANT),
        cap_w=cap_w,
        safe_cap_w=_get(raw, "safeCapWatts", int, where, cap_w),
        charge_w=_get(raw, "chargeWatts", int, where, cap_w),
        max_clock_mhz=_get(raw, "maxClockMegahertz", int, where, None),
        phase=_choice(raw, "phase", Phase, where, Phase.UNASSIGNED, told=True),
        power_class=_power_class_from(raw, where),
    )


def _power_class_from(raw: Mapping[str, Any], where: str) -> PowerClass | None:
    priority, ceiling_w = _get(raw, "priority", int, where, None), _get(raw, "ceilingWatts", int, where, None)
    if priority is None or ceiling_w is None:
        return None
    if not MIN_PRIORITY <= priority <= MAX_PRIORITY:
        raise ContractError(f"{where}.priority must be from {MIN_PRIORITY} to {MAX_PRIORITY}, not {priority}")
    return PowerClass(priority, ceiling_w)


def spec_from_wire(raw: Mapping[str, Any]) -> Spec:
    """Parse `spec`. Raises ContractError naming the field that is wrong."""
    return Spec(
        term=_get(raw, "term", int, "spec", 0),
        for_uid=_get(raw, "forUID", str, "spec", ""),
        mode=_choice(raw, "mode", Mode, "spec", Mode.STRICT),
        lease_name=_get(raw, "leaseName", str, "spec", ""),
        node_limit_w=_get(raw, "nodeLimitWatts", int, "spec", None),
        budgets=tuple(_list(raw, "budgets", str, "spec")),
        leaving=tuple(_list(raw, "leavingBudgets", str, "spec")),
        overhead_percent=_get(raw, "overheadPercent", int, "spec", None),
        non_gpu_w=_get(raw, "nonGpuWatts", int, "spec", None),
        unmanaged_w=_get(raw, "unmanagedWatts", int, "spec", None),
        gpus=tuple(_grant_from(row, f"spec.gpus[{i}]") for i, row in enumerate(_gpu_rows(raw, "spec"))),
        would=would_from_wire(raw.get("wouldBe")),
    )


def spec_to_wire(spec: Spec) -> dict[str, Any]:
    """The `spec` to apply. Lists are whole: an absent GPU is withdrawn, which by R15 holds its cap."""
    wire: dict[str, Any] = {
        "term": spec.term,
        "forUID": spec.for_uid,
        "mode": spec.mode.value,
        "budgets": list(spec.budgets),
        "leavingBudgets": list(spec.leaving),
        "gpus": [
            {
                "uuid": g.uuid,
                "grant": g.grant,
                "capWatts": g.cap_w,
                "safeCapWatts": g.safe_cap_w,
                "chargeWatts": g.charge_w,
                "phase": g.phase.value,
                **({} if g.max_clock_mhz is None else {"maxClockMegahertz": g.max_clock_mhz}),
                **({} if (c := g.power_class) is None else {"priority": c.priority, "ceilingWatts": c.ceiling_w}),
            }
            for g in spec.gpus
        ],
    }
    if spec.lease_name:
        wire["leaseName"] = spec.lease_name
    if spec.would:
        wire["wouldBe"] = would_to_wire(spec.would)
    declared = {
        "nodeLimitWatts": spec.node_limit_w,
        "overheadPercent": spec.overhead_percent,
        "nonGpuWatts": spec.non_gpu_w,
        "unmanagedWatts": spec.unmanaged_w,
    }
    return wire | {name: watts for name, watts in declared.items() if watts is not None}


def _workload_from(raw: Mapping[str, Any], where: str) -> Workload:
    return Workload(_get(raw, "namespace", str, where, ""), _get(raw, "pod", str, where, ""))


def _gpu_status_from(raw: Mapping[str, Any], where: str) -> GpuStatus:
    workload = _get(raw, "workload", dict, where, None)
    return GpuStatus(
        uuid=_get(raw, "uuid", str, where, ""),
        acked_grant=_get(raw, "ackedGrant", int, where, NO_GRANT),
        management_w=_get(raw, "managementCapWatts", int, where, None),
        enforced_w=_get(raw, "enforcedCapWatts", int, where, None),
        min_w=_get(raw, "minCapWatts", int, where, 0),
        max_w=_get(raw, "maxCapWatts", int, where, 0),
        default_w=_get(raw, "defaultCapWatts", int, where, 0),
        model=_get(raw, "model", str, where, ""),
        health=_choice(raw, "health", Health, where, Health.UNKNOWN, told=True),
        workload=None if workload is None else _workload_from(workload, f"{where}.workload"),
        workloads=tuple(
            _workload_from(row, f"{where}.workloads[{i}]") for i, row in enumerate(_list(raw, "workloads", dict, where))
        ),
        use=_choice(raw, "use", Use, where, Use.UNKNOWN, told=True),
        floor_w=_get(raw, "floorWatts", int, where, 0),
        brake=brake_told(raw.get("brake")),
    )


def status_from_wire(raw: Mapping[str, Any]) -> Status:
    """Parse `status`. Raises ContractError naming the field that is wrong."""
    return Status(
        observed_uid=_get(raw, "observedUID", str, "status", ""),
        observed_term=_get(raw, "observedTerm", int, "status", 0),
        boot_id=_get(raw, "bootID", str, "status", ""),
        gpus=tuple(_gpu_status_from(row, f"status.gpus[{i}]") for i, row in enumerate(_gpu_rows(raw, "status"))),
        conditions=tuple(condition_from_wire(row) for row in _list(raw, "conditions", dict, "status")),
        unresolved=tuple(_list(raw, "unresolvedDevices", str, "status")),
        stream=endpoint_from_wire(raw.get("stream")),
    )


def _summary(gpus: Sequence[GpuStatus]) -> dict[str, int]:
    """Numbers for people and columns, never read back. The sum is absent while one limit is unreadable: a smaller sum
    would look like fewer watts."""
    enforced_w = [g.enforced_w for g in gpus if g.enforced_w is not None]
    summary = {"gpuCount": len(gpus), "healthyGpuCount": sum(g.health is Health.OK for g in gpus)}
    if len(enforced_w) == len(gpus):
        summary["enforcedCapWattsTotal"] = sum(enforced_w)
    return summary


def status_to_wire(status: Status) -> dict[str, Any]:
    def pod(workload: Workload) -> dict[str, str]:
        return {"namespace": workload.namespace, "pod": workload.pod}

    def gpu(g: GpuStatus) -> dict[str, Any]:
        row: dict[str, Any] = {
            "uuid": g.uuid,
            "ackedGrant": g.acked_grant,
            "minCapWatts": g.min_w,
            "maxCapWatts": g.max_w,
            "defaultCapWatts": g.default_w,
            "model": g.model,
            "health": g.health.value,
            "use": g.use.value,
        }
        if g.management_w is not None:
            row["managementCapWatts"] = g.management_w
        if g.enforced_w is not None:
            row["enforcedCapWatts"] = g.enforced_w
        if g.workload is not None:
            row["workload"] = pod(g.workload)
        if len(g.workloads) > 1:
            row["workloads"] = [pod(workload) for workload in g.workloads[:MAX_OWNERS_PER_GPU]]
        if g.floor_w:
            row["floorWatts"] = g.floor_w
        row |= {} if g.brake is None else {"brake": brake_to_wire(g.brake)}
        return row

    unresolved = [text[:MAX_UNRESOLVED_CHARS] for text in status.unresolved[:MAX_UNRESOLVED]]
    return {
        "observedUID": status.observed_uid,
        "observedTerm": status.observed_term,
        "bootID": status.boot_id,
        **_summary(status.gpus),
        **({"unresolvedDevices": unresolved} if unresolved else {}),
        **({} if status.stream is None else {"stream": endpoint_to_wire(status.stream)}),
        "gpus": [gpu(g) for g in status.gpus],
        "conditions": [condition_to_wire(c) for c in status.conditions],
    }


def node_power_from_wire(raw: Mapping[str, Any]) -> NodePower:
    """Parse a whole object as the API server returns it. Raises ContractError.

    `resourceVersion` is compared as a number; Kubernetes guarantees that order for one resource since 1.35.
    """
    meta = raw.get("metadata", {})
    for key in ("name", "uid", "resourceVersion"):
        if not _get(meta, key, str, "metadata", ""):
            raise ContractError(f"metadata.{key} is missing")
    try:
        resource_version = int(meta["resourceVersion"])
    except ValueError as error:
        raise ContractError(f"metadata.resourceVersion must be a number, not {meta['resourceVersion']!r}") from error
    spec = _get(raw, "spec", dict, "NodePower", None)
    return NodePower(
        name=meta["name"],
        uid=meta["uid"],
        resource_version=resource_version,
        spec=spec_from_wire(spec) if spec else None,
        status=status_from_wire(_get(raw, "status", dict, "NodePower", {})),
        release=_release_from(_get(meta, "annotations", dict, "metadata", {})),
    )


def _release_from(annotations: Mapping[str, Any]) -> frozenset[str]:
    said = _get(annotations, ANNOTATION_RELEASE, str, "metadata.annotations", "")
    return frozenset(name for name in (part.strip() for part in said.split(",")) if name)


def node_power_to_apply(name: str, uid: str, resource_version: int, spec: Spec) -> dict[str, Any]:
    """The server-side apply body of one spec write, tied to the version it was decided on (R1)."""
    return {
        "apiVersion": GROUP_VERSION,
        "kind": "NodePower",
        "metadata": {"name": name, "uid": uid, "resourceVersion": str(resource_version)},
        "spec": spec_to_wire(spec),
    }
