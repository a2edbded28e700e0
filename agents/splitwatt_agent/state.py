"""What the control loop knows, one frozen value a tick, and the pure steps from one value to the next.

The loop carries the value through a tick and puts it up at the end; what reports, serves metrics or answers health checks
reads what was put up last, and nobody writes to it. So acknowledgements, and the version of the object that they were made
on (R14), are always of the same tick.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from splitwatt_core.protocol.contract import ContractError, Mode, NodePower, node_power_from_wire
from splitwatt_core.protocol.enforcer import ObjectVerdict

from splitwatt_agent.conditions import ControlView, Report, report_of
from splitwatt_agent.owners import Owners
from splitwatt_agent.sampling import Facts, GpuReading
from splitwatt_agent.session import NO_SESSION, Standing, without_grants, without_leased_watts

REWOUND_S: Final = 15.0
"""How long consistent reads must be older than what was seen before that is believed."""
INITIALISING: Final = "NVML is being initialised"
STORE_WENT_BACK: Final = "the API server's store went back in time"


@dataclass(frozen=True, slots=True)
class SeenVersion:
    """One version of the object; None: it does not exist. `error`: why its spec cannot be understood; then `node_power`
    carries no spec."""

    node_power: NodePower | None
    consistent: bool
    error: str = ""


@dataclass(frozen=True, slots=True)
class ControlState:
    """`trouble`: why there is no driver to speak to; "" exactly while a session runs, or while NVML is closed because of the
    label `paused_by`. Seconds are monotonic."""

    ticked_s: float
    observing: bool = False
    trouble: str = INITIALISING
    paused_by: str = ""
    boot_id: str = ""
    standing: Standing = NO_SESSION
    observed: NodePower | None = None
    """The version that the enforcer saw last; status writes are tied to it."""
    verdict: ObjectVerdict | None = None
    contract_error: str = ""
    node_limit_w: int | None = None
    mode: Mode | None = None
    newest: Mapping[str, int] = field(default_factory=dict)
    """Grant numbers of the spec that was accepted last, by GPU."""
    unacked_since_s: Mapping[str, float] = field(default_factory=dict)
    rewound_since_s: float | None = None
    """When a consistent read first gave a version older than one already seen; None: none has."""
    readings: Mapping[str, GpuReading] = field(default_factory=dict)
    facts: Mapping[str, Facts] = field(default_factory=dict)
    read_at_s: float = float("-inf")
    owners: Owners = field(default_factory=Owners)
    persistence: Mapping[str, str] = field(default_factory=dict)
    disk_error: str = ""
    nvml_errors: Mapping[tuple[str, str], int] = field(default_factory=dict)
    """Failed calls since the start, by call and code."""
    mismatches: Mapping[str, int] = field(default_factory=dict)
    """By GPU: setter calls that reported success and left a higher limit."""
    report: Report | None = None


def seen(raw: Mapping[str, Any] | None, *, consistent: bool, observing: bool = False) -> SeenVersion:
    """A version as the API server gave it. A spec that cannot be understood is told, not raised."""
    if raw is None:
        return SeenVersion(None, consistent)
    try:
        used = without_leased_watts(node_power_from_wire(raw))
        return SeenVersion(without_grants(used) if observing else used, consistent)
    except ContractError as error:
        bare = {"metadata": raw.get("metadata", {})}
        return SeenVersion(node_power_from_wire(bare), consistent, str(error))


def session_began(state: ControlState, *, boot_id: str) -> ControlState:
    """The new enforcer has seen nothing yet (R11)."""
    return replace(state, boot_id=boot_id, trouble="", verdict=None, observed=None)


def session_ended(state: ControlState, why: str) -> ControlState:
    """What was read belongs to a driver load that is over."""
    return replace(state, trouble=why, standing=NO_SESSION, readings={}, facts={}, rewound_since_s=None)


def with_readings(state: ControlState, readings: Mapping[str, GpuReading], now_s: float) -> ControlState:
    """Facts are asked for now and then; the last ones stand."""
    fresh = {uuid: reading.facts for uuid, reading in readings.items() if reading.facts is not None}
    return replace(state, readings=readings, facts={**state.facts, **fresh}, read_at_s=now_s)


def taken_in(state: ControlState, version: SeenVersion, verdict: ObjectVerdict, now_s: float) -> ControlState:
    """After the enforcer judged a version that can be understood.

    A consistent read that is older than what was seen is, once, a race between two answers; again and again, the store was
    restored from a backup, and the session ends as a restart of the process would end it."""
    if verdict is ObjectVerdict.OLDER_VERSION and version.consistent:
        if state.rewound_since_s is None:
            state = replace(state, rewound_since_s=now_s)
        elif now_s - state.rewound_since_s >= REWOUND_S:
            state = session_ended(state, STORE_WENT_BACK)
    if verdict in (ObjectVerdict.OLDER_VERSION, ObjectVerdict.UNSYNCED):
        return replace(state, verdict=state.verdict or verdict)
    state = replace(state, verdict=verdict, observed=version.node_power, contract_error="", rewound_since_s=None)
    spec = None if version.node_power is None else version.node_power.spec
    if verdict is not ObjectVerdict.ACCEPTED or spec is None:
        return state
    newest = {grant.uuid: grant.grant for grant in spec.gpus}
    return replace(state, node_limit_w=spec.node_limit_w, mode=spec.mode, newest=newest)


def closed(state: ControlState, now_s: float) -> ControlState:
    """The tick is over: since when each newest grant waits for its acknowledgement, and the report on it all."""
    waiting = dict(state.unacked_since_s)
    for gpu in state.standing.gpus:
        if gpu.uuid not in state.standing.granted or gpu.acked_grant == state.newest.get(gpu.uuid):
            waiting.pop(gpu.uuid, None)
        else:
            waiting.setdefault(gpu.uuid, now_s)
    state = replace(state, unacked_since_s=waiting)
    return replace(state, report=report_of(view_of(state, now_s)), ticked_s=now_s)


def view_of(state: ControlState, now_s: float) -> ControlView:
    standing = state.standing
    bare_uid = "" if state.observed is None else state.observed.uid
    return ControlView(
        observed_uid=bare_uid if standing is NO_SESSION else standing.observed_uid,
        observed_term=standing.observed_term,
        boot_id=state.boot_id,
        gpus=standing.gpus,
        granted_w={uuid: grant.cap_w for uuid, grant in standing.granted.items()},
        overdue_s={uuid: now_s - since_s for uuid, since_s in state.unacked_since_s.items()},
        persistence=state.persistence,
        verdict=state.verdict,
        unknown_gpus=standing.unknown_gpus,
        mode=state.mode,
        lowered=standing.lowered,
        trouble=state.trouble,
        paused_by=state.paused_by,
        observing=state.observing,
        contests=standing.contests,
        beyond=standing.beyond,
        disk_error=state.disk_error,
        contract_error=state.contract_error,
        owners_error=state.owners.error,
        unresolved=state.owners.unresolved,
    )
