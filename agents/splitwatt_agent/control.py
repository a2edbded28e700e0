"""The control loop: read all GPUs, let the enforcer decide, make the record durable, call setters, read back.

Runs at the sample rate and at once when something happened (a new version of the object, a setter that returned). It never
waits for Kubernetes: versions of the NodePower arrive in a bounded inbox, and what is to be reported is left in `report`.
All state is touched on the event loop's thread alone; what may block runs in daemon threads (see `threads`).

Invariants: a setter is called only after the record it rests on is durable, or it lowers (R12); a readback that may have
begun before a setter of its GPU returned is taken again before anything is concluded from it (R13); nothing in here, and no
way out of here, raises a limit: on shutdown the limits are simply left as they are (I5).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from splitwatt_core.protocol.contract import ContractError, GpuStatus, Health, Mode, NodePower, Workload, node_power_from_wire
from splitwatt_core.protocol.enforcer import Actions, Readback, SetCap, Verdict

from splitwatt_agent import session as sessions
from splitwatt_agent.conditions import Report, View, report_of
from splitwatt_agent.nvml import Inventory, NvmlError, NvmlPort
from splitwatt_agent.sampling import Facts, Reading, read_gpu
from splitwatt_agent.session import Session
from splitwatt_agent.state_dir import StateDir, StateDirError
from splitwatt_agent.threads import Sweeper, daemon_call
from splitwatt_agent.upkeep import DurableRecord, Upkeep

log = logging.getLogger(__name__)

MAX_INBOX: Final = 64
"""Versions waiting to be taken in; the oldest are dropped, for a later one says more."""
MAX_REREADS: Final = 3
FACTS_EVERY_S: Final = 1.0
SESSION_RETRY_S: Final = 2.0
SILENT_RETRY_S: Final = 10.0
"""How often a start is repeated for the sake of a GPU that would not say who it is."""
REWOUND_S: Final = 15.0
"""How long consistent reads must be older than what was seen before that is believed."""


@dataclass(frozen=True, slots=True)
class _Seen:
    """One version of the object. `error`: why its spec cannot be understood; then `node_power` carries no spec."""

    node_power: NodePower | None
    consistent: bool
    error: str = ""


def _seen(raw: Mapping[str, Any] | None, *, consistent: bool) -> _Seen:
    if raw is None:
        return _Seen(None, consistent)
    try:
        return _Seen(sessions.without_leased_watts(node_power_from_wire(raw)), consistent)
    except ContractError as error:
        bare = {"metadata": raw.get("metadata", {})}
        return _Seen(node_power_from_wire(bare), consistent, str(error))


class Control:
    """See the module's docstring. `on_report` is called on the loop whenever `report` changed."""

    def __init__(
        self,
        *,
        port: NvmlPort,
        state: StateDir,
        node: str,
        boot_id_file: Path,
        sample_period_s: float,
    ) -> None:
        """Raises StateDirError when the record cannot be understood."""
        self._port = port
        self._state = state
        self._node = node
        self._boot_id_file = boot_id_file
        self._period_s = sample_period_s
        self._record = DurableRecord(state)
        self._upkeep = Upkeep(port, count=self._count)
        self._inbox: deque[_Seen] = deque(maxlen=MAX_INBOX)
        self._wake = asyncio.Event()
        self._sweeper: Sweeper[Reading] = Sweeper()
        self._outstanding: Counter[str] = Counter()
        self._returned: set[str] = set()
        self._checks: dict[str, int] = {}
        """Milliwatts that a setter claims to have applied, not yet compared with a readback."""
        self._facts_due_s = 0.0
        self._silent_due_s = float("inf")
        self._session_due_s = 0.0
        self._granted: dict[str, int] = {}
        self._unacked_since: dict[str, float] = {}
        self._rewound_since_s: float | None = None
        self._nvml_error = "NVML is being initialised"
        self.session: Session | None = None
        self.boot_id = ""
        self.gpus: tuple[GpuStatus, ...] = ()
        """The status lines of the last tick."""
        self.observed: NodePower | None = None
        """The version that the enforcer saw last; status writes are tied to it (R14)."""
        self.node_limit_w: int | None = None
        self.mode: Mode | None = None
        self.verdict: Verdict | None = None
        self.contract_error = ""
        self.readings: dict[str, Reading] = {}
        self.facts: dict[str, Facts] = {}
        self.read_at_s = float("-inf")
        self.ticked_s = time.monotonic()
        self.nvml_errors: Counter[tuple[str, str]] = Counter()
        self.mismatches: Counter[str] = Counter()
        self.workloads: Mapping[str, Workload] = {}
        self.workloads_error = ""
        self.report: Report | None = None
        self.on_report: Callable[[], None] = lambda: None
        self.on_resync: Callable[[], None] = lambda: None
        """Called when a consistent read of the object is needed anew."""

    # --------------------------------------------------------------------------------------------- from the API side

    def offer(self, raw: Mapping[str, Any] | None, *, consistent: bool) -> None:
        """A version of the node's NodePower as the API server gave it; None: it does not exist."""
        self._inbox.append(_seen(raw, consistent=consistent))
        self._wake.set()

    # ------------------------------------------------------------------------------------------------------ the loop

    async def run(self) -> None:
        """Until cancelled; then every limit stays as it is."""
        try:
            while True:
                begun_s = time.monotonic()
                self._wake.clear()
                if self._boot_changed() or self.session is None:
                    await self._begin_session()
                if self.session is not None:
                    await self._cycle(self.session)
                else:
                    self._take_inbox_without_gpus()
                self._publish()
                self.ticked_s = time.monotonic()
                try:
                    async with asyncio.timeout(max(0.0, begun_s + self._period_s - self.ticked_s)):
                        await self._wake.wait()
                except TimeoutError:
                    continue
        finally:
            self._sweeper.close()

    async def _cycle(self, session: Session) -> None:
        readings = await self._sweep(session)
        if any(reading.driver_gone for reading in readings.values()):
            self._end_session("the driver is gone, or another one was loaded")
            return
        self._take_inbox(session)
        now_s = time.monotonic()
        readbacks = {uuid: reading.readback for uuid, reading in readings.items()}
        for uuid in self._sweeper.stuck:
            readbacks[uuid] = Readback(None, None, Health.HUNG)
        for uuid in session.silent:
            readbacks[uuid] = Readback(None, None, Health.LOST)
        ceilings = sessions.guard_ceilings(session, now_s=now_s, node_limit_w=self.node_limit_w, readbacks=readbacks)
        actions = session.enforcer.tick(now_s, readbacks, guard_w=ceilings)
        # Taken here, for a setter that returns during the waits below makes the readback of its GPU void.
        self.gpus = session.enforcer.status(self.workloads)
        await self._perform(session, actions)
        if now_s >= self._silent_due_s:
            self._look_for_silent(session)

    async def _sweep(self, session: Session) -> dict[str, Reading]:
        """Fresh readings of all GPUs that answer."""
        now_s = time.monotonic()
        facts = now_s >= self._facts_due_s
        if facts:
            self._facts_due_s = now_s + FACTS_EVERY_S
        wanted = tuple(uuid for uuid in session.gpus if uuid not in session.silent)
        read = partial(read_gpu, self._port, facts=facts)
        readings: dict[str, Reading] = {}
        for _ in range(MAX_REREADS):
            self._returned.clear()
            swept = await self._sweeper.sweep(wanted, read)
            readings.update(swept)
            wanted = tuple(self._returned & swept.keys())
            if not wanted:
                break
        for uuid in wanted:  # setters returned faster than we can read: conclude nothing this time
            del readings[uuid]
        self._note_readings(readings)
        return readings

    def _note_readings(self, readings: dict[str, Reading]) -> None:
        self.readings = readings
        self.read_at_s = time.monotonic()
        for uuid, reading in readings.items():
            if reading.facts is not None:
                self.facts[uuid] = reading.facts
            for error in reading.errors:
                self._count(error)
            claimed_mw = self._checks.get(uuid)
            management_mw = reading.readback.management_mw
            if claimed_mw is not None and management_mw is not None:
                del self._checks[uuid]
                if management_mw > claimed_mw:
                    self.mismatches[uuid] += 1
                    log.warning("%s: the setter reported %d mW, the limit reads %d mW", uuid, claimed_mw, management_mw)

    def _take_inbox(self, session: Session) -> None:
        while self._inbox:
            seen = self._inbox.popleft()
            if seen.error:
                self.contract_error, self.observed = seen.error, seen.node_power
                continue
            verdict = session.enforcer.observe(seen.node_power, consistent=seen.consistent)
            if verdict is Verdict.OLDER_VERSION and seen.consistent:
                self._note_rewound()
            if verdict is Verdict.OLDER_VERSION or verdict is Verdict.UNSYNCED:
                self.verdict = self.verdict or verdict
                continue
            if verdict is not self.verdict:
                log.info("NodePower %s: %s", self._node, verdict.value)
            self.verdict, self.observed, self.contract_error = verdict, seen.node_power, ""
            self._rewound_since_s = None
            spec = None if seen.node_power is None else seen.node_power.spec
            if verdict is Verdict.ACCEPTED and spec is not None:
                self.node_limit_w, self.mode = spec.node_limit_w, spec.mode
                self._granted = {grant.uuid: grant.grant for grant in spec.gpus}

    def _note_rewound(self) -> None:
        """A consistent read gave a version older than one already seen. Once, that is a race between two answers; again
        and again, the store was restored from a backup. Then begin anew, as a restart of this process would."""
        now_s = time.monotonic()
        if self._rewound_since_s is None:
            self._rewound_since_s = now_s
            asyncio.get_running_loop().call_later(REWOUND_S, self.on_resync)
        elif now_s - self._rewound_since_s >= REWOUND_S:
            self._end_session("the API server's store went back in time")

    def _take_inbox_without_gpus(self) -> None:
        """Without a driver nothing is enforced, but the status that says so needs the object's newest version."""
        while self._inbox:
            self.observed = self._inbox.popleft().node_power

    async def _perform(self, session: Session, actions: Actions) -> None:
        if actions.persist is not None and await self._record.write(actions.persist):
            session.enforcer.persisted()
            self._wake.set()  # raises come with the next tick
        now_s = time.monotonic()
        for call in actions.set_caps:
            self._start_setter(session, call, now_s)
        for lock in actions.clocks:
            self._upkeep.want_clock(lock)
        self._upkeep.step(now_s)

    # ----------------------------------------------------------------------------------------------- calls that block

    def _start_setter(self, session: Session, call: SetCap, now_s: float) -> None:
        session.enforcer.setter_started(call.uuid, now_s)
        self._outstanding[call.uuid] += 1
        future = daemon_call(f"set-{call.uuid[-8:]}", partial(self._port.set_management_limit_mw, call.uuid, call.cap_mw))
        future.add_done_callback(partial(self._setter_returned, call))

    def _setter_returned(self, call: SetCap, future: asyncio.Future[None]) -> None:
        health = self._outcome(future)
        self._outstanding[call.uuid] -= 1
        self._returned.add(call.uuid)
        if self.session is not None and call.uuid in self.session.gpus:
            self.session.enforcer.setter_finished(call.uuid, time.monotonic(), health)
        if health is None:
            self._checks[call.uuid] = call.cap_mw
        self._wake.set()

    def _outcome(self, future: asyncio.Future[None]) -> Health | None:
        error = future.exception()
        if error is None:
            return None
        if isinstance(error, NvmlError):
            self._count(error)
            return error.health
        log.error("unexpected failure of an NVML call", exc_info=error)
        return Health.UNKNOWN

    # ------------------------------------------------------------------------------------------------------- sessions

    def _boot_changed(self) -> bool:
        if self.session is None or time.monotonic() < self._facts_due_s:
            return False
        try:
            boot_id = self._boot_id_file.read_text(encoding="ascii").strip()
        except OSError:
            return False  # asked again in a second; the session's own boot id stands
        if boot_id == self.boot_id:
            return False
        self._end_session("the node has booted anew")
        return True

    def _end_session(self, why: str) -> None:
        log.warning("%s: %s", self._node, why)
        self.session, self._nvml_error = None, why
        self._rewound_since_s = None
        self.readings, self.facts = {}, {}
        self._checks.clear()

    async def _begin_session(self) -> None:
        if time.monotonic() < self._session_due_s:
            return
        self._session_due_s = time.monotonic() + SESSION_RETRY_S
        try:
            boot_id = self._boot_id_file.read_text(encoding="ascii").strip()
            begin = partial(sessions.begin, self._port, self._state, boot_id=boot_id, record=self._record.current)
            session = await daemon_call("nvml-start", begin)
        except (NvmlError, StateDirError, OSError) as error:
            if isinstance(error, NvmlError):
                self._count(error)
            if str(error) != self._nvml_error:
                log.error("NVML is not usable: %s", error)
            self._nvml_error = str(error)
            return
        for uuid, count in self._outstanding.items():
            for _ in range(count if uuid in session.gpus else 0):
                session.enforcer.setter_started(uuid, time.monotonic())
        self.session, self.boot_id = session, boot_id
        self._upkeep.begin(uuid for uuid in session.gpus if uuid not in session.silent)
        self._silent_due_s = time.monotonic() + SILENT_RETRY_S if session.silent else float("inf")
        self.verdict, self.observed = None, None
        log.info("%s: %d GPUs, boot %s", self._node, len(session.gpus), boot_id)
        self.on_resync()

    def _look_for_silent(self, session: Session) -> None:
        """Ask again for GPUs that did not say who they are; only when one does, a new session begins."""
        self._silent_due_s = float("inf")
        future = daemon_call("nvml-scan", self._port.scan)

        def returned(future: asyncio.Future[Inventory]) -> None:
            self._silent_due_s = time.monotonic() + SILENT_RETRY_S
            error = future.exception()
            if isinstance(error, NvmlError):
                self._count(error)
            elif error is not None:
                log.error("unexpected failure of an NVML call", exc_info=error)
            elif self.session is session and any(
                gpu.uuid in session.silent or gpu.uuid not in session.gpus for gpu in future.result().gpus
            ):
                self._end_session("a GPU that was silent answers again")

        future.add_done_callback(returned)

    # ------------------------------------------------------------------------------------------------------ reporting

    def _publish(self) -> None:
        report = report_of(self._view())
        if report != self.report:
            self.report = report
            self.on_report()

    def _view(self) -> View:
        session = self.session
        now_s = time.monotonic()
        if session is None:
            self.gpus = ()
        granted_w: dict[str, int] = {}
        for gpu in self.gpus:
            cap_w = None if session is None else session.enforcer.granted_cap_w(gpu.uuid)
            if cap_w is not None:
                granted_w[gpu.uuid] = cap_w
            if cap_w is None or gpu.acked_grant == self._granted.get(gpu.uuid):
                self._unacked_since.pop(gpu.uuid, None)
            else:
                self._unacked_since.setdefault(gpu.uuid, now_s)
        no_session_uid = "" if self.observed is None else self.observed.uid
        return View(
            observed_uid=no_session_uid if session is None else session.enforcer.observed_uid,
            observed_term=0 if session is None else session.enforcer.observed_term,
            boot_id=self.boot_id,
            gpus=self.gpus,
            granted_w=granted_w,
            overdue_s={uuid: now_s - since_s for uuid, since_s in self._unacked_since.items()},
            persistence=self._upkeep.persistence,
            verdict=self.verdict,
            unknown_gpus=() if session is None else session.enforcer.unknown_gpus,
            mode=self.mode,
            lowered={} if session is None else session.guard.lowered,
            trouble=self._nvml_error if session is None else "",
            disk_error=self._record.error,
            contract_error=self.contract_error,
            workloads_error=self.workloads_error,
        )

    def _count(self, error: NvmlError) -> None:
        key = (error.call, error.code_name)
        if not self.nvml_errors[key]:
            log.warning("%s", error)
        self.nvml_errors[key] += 1
