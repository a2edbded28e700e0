"""The control loop: read all GPUs, let the enforcer decide, make the record durable, call setters, read back.

Runs at the sample rate and at once when something happened (a new version of the object, a setter that returned). It never
waits for Kubernetes: versions of the NodePower arrive in a bounded inbox, and what there is to report is put up in `state`,
which is frozen. What others have to tell comes in by a method and waits for the next tick; nobody writes to the loop.
All of it lives on the event loop's thread alone; what may block runs in daemon threads (see `threads`).

Invariants: a setter is called only after the record it rests on is durable, or it lowers (R12); nothing in here, and no
way out of here, raises a limit: on shutdown the limits are simply left as they are (I5).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, Protocol

from splitwatt_core.protocol.brake import BrakeOrder
from splitwatt_core.protocol.contract import Health
from splitwatt_core.protocol.enforcer import Actions
from splitwatt_core.protocol.node_guard import guard_inputs
from splitwatt_core.protocol.record import Record
from splitwatt_shell.waiting import woken

from splitwatt_agent import last_resort
from splitwatt_agent import state as states
from splitwatt_agent.durable import DurableRecord, KeptInventory
from splitwatt_agent.hardware import Hardware
from splitwatt_agent.last_resort import DeviceAccessLostError, Patience
from splitwatt_agent.nvml import Inventory, NvmlError, NvmlPort
from splitwatt_agent.opening import Opening
from splitwatt_agent.owners import Owners
from splitwatt_agent.session import Session
from splitwatt_agent.state import REWOUND_S, ControlState, SeenVersion
from splitwatt_agent.state_dir import StateDir
from splitwatt_agent.threads import daemon_call
from splitwatt_agent.upkeep import Upkeep

log = logging.getLogger(__name__)

MAX_INBOX: Final = 64
"""Versions waiting to be taken in; the oldest are dropped, for a later one says more."""
LOST_RETRY_S: Final = 10.0
"""How often a start is repeated for the sake of a GPU that would not say who it is."""


class Listener(Protocol):
    """Who reports what the loop finds; called on the loop, must not block."""

    def report_changed(self) -> None: ...

    def read_anew(self) -> None:
        """A consistent read of the object is needed."""


class Control:
    """See the module's docstring."""

    def __init__(
        self,
        *,
        port: NvmlPort,
        state_dir: StateDir,
        node: str,
        boot_id_file: Path,
        sample_period_s: float,
        give_up_s: float = last_resort.GIVE_UP_S,
        observe: bool = False,
    ) -> None:
        """`observe`: read and report, and never set anything. Raises StateDirError when the record cannot be understood."""
        self._port = port
        self._node = node
        self._boot_id_file = boot_id_file
        self._period_s = sample_period_s
        self._record = DurableRecord(state_dir)
        self._inventory = KeptInventory(state_dir)
        self._hardware = Hardware(port, on_return=self._setter_returned)
        self._upkeep = Upkeep(port, count=self._hardware.count)
        self._opening = Opening(port, self._inventory, read_boot_id=self._read_boot_id, count=self._hardware.count)
        self._session: Session | None = None
        self._give_up_s = give_up_s
        self._patience = Patience()
        self._paused_by = ""
        self._lost_due_s = float("inf")
        self._answering: Session | None = None
        """The session in which a GPU that was lost, or was not there, has been found."""
        self._inbox: deque[SeenVersion] = deque(maxlen=MAX_INBOX)
        self._owners = Owners()
        self._wake = asyncio.Event()
        self._orders: list[tuple[BrakeOrder, asyncio.Future[tuple[str, ...]]]] = []
        """Brakes that came since the last tick, and who waits for them to be durable."""
        self._braked: list[tuple[BrakeOrder, tuple[str, ...], asyncio.Future[tuple[str, ...]]]] = []
        """Those that a tick has taken in, and that are not in force yet."""
        self._ended = asyncio.Event()
        """Of a tick: set, and another one put in its place."""
        self._state = ControlState(ticked_s=time.monotonic(), observing=observe)

    @property
    def state(self) -> ControlState:
        """As of the end of the last tick."""
        return self._state

    # ------------------------------------------------------------------------------------------------ what it is told

    def offer(self, raw: Mapping[str, Any] | None, *, consistent: bool) -> None:
        """A version of the node's NodePower as the API server gave it; None: it does not exist."""
        self._inbox.append(states.seen(raw, consistent=consistent, observing=self._state.observing))
        self._wake.set()

    @property
    def gpus(self) -> tuple[str, ...]:
        """UUIDs of the present session's GPUs; empty without one."""
        return () if self._session is None else tuple(self._session.gpus)

    def hear_owners(self, owners: Owners) -> None:
        """As kubelet says."""
        self._owners = owners

    def miss_owners(self, why: str) -> None:
        """Kubelet did not answer: what it said last stands."""
        self._owners = replace(self._owners, error=why)

    def hear_pause(self, label: str) -> None:
        """`key=value` of the label on this node that asks GPU clients to step aside; "" when none does."""
        self._paused_by = label
        self._wake.set()

    def hear_brake(self, order: BrakeOrder) -> asyncio.Future[tuple[str, ...]]:
        """A brake (R25). The answer comes when it is durable and was read back: the GPUs that it holds, none where all was
        granted anew since, or where this agent only observes."""
        heard: asyncio.Future[tuple[str, ...]] = asyncio.get_running_loop().create_future()
        self._orders.append((order, heard))
        self._wake.set()
        return heard

    async def ticked(self, *, within_s: float) -> None:
        """Returns when another tick has ended, or after `within_s`."""
        await woken(self._ended, within_s=within_s)

    def _setter_returned(self, uuid: str, health: Health | None) -> None:
        if self._session is not None and uuid in self._session.gpus:
            self._session.enforcer.setter_finished(uuid, time.monotonic(), health)
        self._wake.set()

    # ------------------------------------------------------------------------------------------------------ the loop

    async def run(self, listener: Listener) -> None:
        """Until cancelled; then every limit stays as it is. Raises DeviceAccessLostError where only a new container helps."""
        try:
            while True:
                begun_s = time.monotonic()
                self._wake.clear()
                before = self._state
                self._state = await self._tick(before, listener)
                ended, self._ended = self._ended, asyncio.Event()
                ended.set()
                if self._state.report != before.report:
                    listener.report_changed()
                self._lose_patience(self._state)
                await woken(self._wake, within_s=begun_s + self._period_s - self._state.ticked_s)
        finally:
            self._hardware.close()

    async def _tick(self, state: ControlState, listener: Listener) -> ControlState:
        state = replace(state, owners=self._owners)
        if self._session is not None and (why := self._why_over(self._session)):
            state = self._end_session(state, why)
        if self._paused_by != state.paused_by:
            state = self._turn(state, self._paused_by)
        if state.paused_by:
            state = replace(state, trouble="" if await self._opening.close() else self._opening.trouble)
        elif self._session is None:
            state = await self._begin_session(state, listener)
        if self._session is None:
            state = self._take_inbox_without_gpus(state)
        else:
            state = await self._cycle(state, self._session, listener)
        state = replace(
            state,
            persistence=dict(self._upkeep.persistence),
            disk_error=self._disk_error,
            nvml_errors=dict(self._hardware.errors),
            mismatches=dict(self._hardware.mismatches),
        )
        return states.closed(state, time.monotonic())

    async def _cycle(self, state: ControlState, session: Session, listener: Listener) -> ControlState:
        readings = await self._hardware.read(session)
        state = states.with_readings(state, readings, time.monotonic())
        if any(reading.driver_gone for reading in readings.values()):
            return self._end_session(state, "the driver is gone, or another one was loaded")
        state = self._take_inbox(state, session, listener)
        if state.trouble:
            return self._end_session(state, state.trouble)
        self._take_orders(state, session)
        now_s = time.monotonic()
        readbacks = session.readbacks(readings, self._hardware.stuck)
        ceilings = session.guard.step(
            now_s, state.node_limit_w, guard_inputs(session.enforcer, session.gpus, readbacks, floor_w=session.floors())
        )
        self._inventory.step(now_s)
        actions = session.enforcer.tick(now_s, readbacks, guard_w=ceilings, only_lower=bool(self._disk_error))
        self._answer_brakes(session)
        session.see(now_s, readbacks, state.facts)
        state = replace(state, standing=session.standing(state.owners.by_gpu))
        if not state.observing:
            await self._perform(session, actions)
        if now_s >= self._lost_due_s:
            self._look_for_lost(session)
        return state

    def _take_inbox(self, state: ControlState, session: Session, listener: Listener) -> ControlState:
        while self._inbox:
            version = self._inbox.popleft()
            if version.error:
                state = replace(state, contract_error=version.error, observed=version.node_power)
                continue
            verdict = session.enforcer.observe(version.node_power, consistent=version.consistent)
            before, state = state, states.taken_in(state, version, verdict, time.monotonic())
            if state.verdict is not before.verdict:
                log.info("NodePower %s: %s", self._node, verdict.value)
            if before.rewound_since_s is None and state.rewound_since_s is not None:
                asyncio.get_running_loop().call_later(REWOUND_S, listener.read_anew)
        return state

    def _take_orders(self, state: ControlState, session: Session) -> None:
        orders, self._orders = self._orders, []
        for order, heard in orders:
            if state.observing:
                heard.set_result(())
            else:
                self._braked.append((order, session.enforcer.brake(order), heard))

    def _answer_brakes(self, session: Session) -> None:
        """Of those that are in force, as this tick read it."""
        braked, self._braked = self._braked, []
        for order, held, heard in braked:
            if heard.done():
                continue  # nobody waits any more
            if all(session.enforcer.obeys(uuid) for uuid in held):
                heard.set_result(held)
            else:
                self._braked.append((order, held, heard))

    def _take_inbox_without_gpus(self, state: ControlState) -> ControlState:
        """Without a driver nothing is enforced, but the status that says so needs the object's newest version."""
        while self._inbox:
            state = replace(state, observed=self._inbox.popleft().node_power)
        return state

    @property
    def _disk_error(self) -> str:
        return self._record.error or self._inventory.error

    async def _perform(self, session: Session, actions: Actions) -> None:
        if actions.braking:  # what is called beside a record only lowers, and a brake does not wait for a disk (R28)
            self._call(session, actions)
        if actions.persist is not None:
            if await self._record.write(actions.persist):
                session.enforcer.persisted()
                self._wake.set()  # raises come with the next tick
        elif self._record.error:
            await self._record.write(self._record.current)  # nothing new to keep: the disk is tried with what lies there
        if not actions.braking:
            self._call(session, actions)

    def _call(self, session: Session, actions: Actions) -> None:
        now_s = time.monotonic()
        for call in actions.set_caps:
            self._hardware.set_cap(session, call, now_s)
        for lock in actions.clocks:
            self._upkeep.want_clock(lock)
        self._upkeep.step(now_s)

    # ------------------------------------------------------------------------------------------------------- sessions

    def _why_over(self, session: Session) -> str:
        """Why another session must begin, "" when this one stands."""
        if self._answering is session:
            return "a GPU that did not answer is there, or another driver"
        if not self._hardware.facts_due:
            return ""
        try:
            boot_id = self._read_boot_id()
        except OSError:
            return ""  # asked again in a second; the session's own boot id stands
        return "" if boot_id == session.boot_id else "the node has booted anew"

    def _read_boot_id(self) -> str:
        return self._boot_id_file.read_text(encoding="ascii").strip()

    def _end_session(self, state: ControlState, why: str) -> ControlState:
        log.warning("%s: %s", self._node, why)
        self._forget_session()
        return states.session_ended(state, why)

    def _forget_session(self) -> None:
        """Brakes that were not in force yet wait for the next one."""
        self._session = None
        self._orders[:0] = [(order, heard) for order, _, heard in self._braked]
        self._braked = []

    def _turn(self, state: ControlState, paused_by: str) -> ControlState:
        """The node's labels ask us to step aside, or no longer do."""
        if paused_by:
            log.warning("%s: stepping aside, for %s", self._node, paused_by)
            self._forget_session()
            state = states.session_ended(state, "")
        else:
            log.info("%s: %s is gone, the driver is used again", self._node, state.paused_by)
        return replace(state, paused_by=paused_by, trouble=states.INITIALISING)

    async def _begin_session(self, state: ControlState, listener: Listener) -> ControlState:
        """Raises nothing: without NVML the state says why, and it is tried again."""
        record = Record() if state.observing else self._record.current
        session = await self._opening.open(record, time.monotonic())
        if session is None:
            return replace(state, trouble=self._opening.trouble or state.trouble)
        self._hardware.adopt(session)
        self._inventory.keep(session.boot_id, session.named)
        self._session = session
        self._upkeep.begin(() if state.observing else (uuid for uuid in session.gpus if uuid not in session.lost))
        looks_again = session.lost or not session.gpus
        self._lost_due_s = time.monotonic() + LOST_RETRY_S if looks_again else float("inf")
        log.info("%s: %d GPUs, boot %s", self._node, len(session.gpus), session.boot_id)
        listener.read_anew()
        return states.session_began(state, boot_id=session.boot_id)

    def _lose_patience(self, state: ControlState) -> None:
        lost_now = self._opening.hopeless if self._session is None else last_resort.cause_in(state.readings)
        why = "" if state.paused_by else lost_now
        now_s = time.monotonic()
        self._patience = self._patience.after(why, now_s)
        if self._patience.over(now_s, give_up_s=self._give_up_s):
            raise DeviceAccessLostError(last_resort.farewell(why, waited_s=self._give_up_s))

    def _look_for_lost(self, session: Session) -> None:
        """Ask again for GPUs that did not say who they are, or for any where there was none. A new session begins only when
        one does, or when the driver is gone: where no GPU is read, no reading tells that."""
        self._lost_due_s = float("inf")
        future = daemon_call("nvml-scan", self._port.scan)

        def returned(future: asyncio.Future[Inventory]) -> None:
            self._lost_due_s = time.monotonic() + LOST_RETRY_S
            error = future.exception()
            if isinstance(error, NvmlError):
                self._hardware.count(error)
                self._answering = session if error.driver_gone else self._answering
            elif error is not None:
                log.error("unexpected failure of an NVML call", exc_info=error)
            elif session.answers(future.result()):
                self._answering = session

        future.add_done_callback(returned)
