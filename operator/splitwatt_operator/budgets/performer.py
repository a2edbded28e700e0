"""Performs a keeper's plan against the API server, and tells the keeper what became of every part of it.

Every spec goes through the pen (R2) and carries the uid and resourceVersion of the object it was decided on (R1). Outcomes
are three, never two: written, not written, unknown (R6). Sends run concurrently under one bound; the keeper asks for no
second one about the same object before it was told of the first.

A refusal says that what the write was decided on is not what stands: the object is read afresh, past all watches, before
the keeper is told. A write that only lowers goes out again at once where nothing but the status changed (`rebased`). Whoever
is refused again and again waits longer each time (`refusals`).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from typing import Any, Final

from splitwatt_client.errors import ApiError, OutcomeUnknown, Rejected
from splitwatt_client.reading import Reader
from splitwatt_client.resources import CUSTOM_RESOURCE_DEFINITIONS, NODE_POWERS, NODES, POWER_BUDGETS
from splitwatt_core.budget.claims import Claim
from splitwatt_core.budget.facts import NodeFact
from splitwatt_core.budget.keeper import Keeper, Outcome, Plan, SpecWrite, Unknown, Written
from splitwatt_core.budget.keeper import Rejected as NotWritten
from splitwatt_core.budget.writer import rebased
from splitwatt_core.names import ANNOTATION_RELEASE, API_GROUP, GROUP_VERSION
from splitwatt_core.protocol.contract import ContractError, NodePower, node_power_from_wire, node_power_to_apply
from splitwatt_shell.supervise import end_all

from splitwatt_operator.budgets.refusals import Refusals
from splitwatt_operator.cluster import read
from splitwatt_operator.pen import NotSent, Pen, Stored

log = logging.getLogger(__name__)

MAX_CONCURRENT_SENDS: Final = 32
MAX_CONCURRENT_READS: Final = 32
MAX_REBASED: Final = 8
"""So often in a row a lowered cap is written anew on the newest version, before it is decided anew after a pause."""
CREATE_RETRY_S: Final = 5.0
"""Pause after a NodePower could not be created or read."""


class Performer:
    """`done` is called after each outcome, to decide again at once."""

    def __init__(self, reader: Reader, pen: Pen, keeper: Keeper, *, done: Callable[[], None]) -> None:
        self._reader = reader
        self._pen = pen.lane(MAX_CONCURRENT_SENDS)
        self._keeper = keeper
        self._done = done
        self._reads = asyncio.Semaphore(MAX_CONCURRENT_READS)
        self._verifying: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._failed: BaseException | None = None
        self._refusals = Refusals()

    def problem(self) -> str | None:
        """One sentence while no cap can be moved."""
        return self._refusals.problem(time.monotonic())

    def start(self, plan: Plan) -> None:
        """Begin everything in `plan`; returns at once. Raises what an earlier part died of, if one did."""
        if self._failed is not None:
            raise self._failed
        for write in plan.writes:
            self._spawn(self._write(write))
        for name in plan.create:
            self._spawn(self._create(name))
        for name in plan.verify:
            if name not in self._verifying:
                self._verifying.add(name)
                self._spawn(self._verify(name))
        for node_power in plan.release:
            if node_power.name not in self._verifying:
                self._verifying.add(node_power.name)
                self._spawn(self._release(node_power))
        for row in plan.replaced:
            if row.node_power.name not in self._verifying:
                self._verifying.add(row.node_power.name)
                self._spawn(self._release(row.node_power, heir=row.heir))
        for node_power in plan.take_back:
            if node_power.name not in self._verifying:
                self._verifying.add(node_power.name)
                self._spawn(self._take_back(node_power))
        for claim in plan.confirm:
            if claim.node not in self._verifying:
                self._verifying.add(claim.node)
                self._spawn(self._confirm(claim))

    async def stop(self) -> None:
        """Give up what is under way: as unknown as a time-out, and charged all the same by whoever comes next (R4)."""
        await end_all(set(self._tasks))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failed = error
        self._done()

    async def _write(self, write: SpecWrite) -> None:
        outcome = await self._send(write)
        self._keeper.on_outcome(write, outcome, time.time())

    async def _send(self, write: SpecWrite, *, again: int = MAX_REBASED) -> Outcome:
        about = {"node": write.name, "term": write.spec.term}
        match await self._pen.apply(node_power_to_apply(write.name, write.uid, write.resource_version, write.spec)):
            case Stored(answer):
                self._refusals.stored(write.name)
                try:
                    return Written(node_power_from_wire(answer))
                except ContractError as error:
                    log.error("the API server answered with an unreadable NodePower: %s", error, extra=about)
                    return Unknown(str(error))
            case NotSent() as unsent:
                return NotWritten(str(unsent))
            case Rejected() as refusal:
                log.info("grant refused: %s", refusal, extra=about)
                found = await self._read_afresh(write)
                newer = rebased(write, found) if refusal.conflict and found is not None and again else None
                if newer is not None:
                    return await self._send(newer, again=again - 1)
                await asyncio.sleep(self._refusals.refused(write.name, str(refusal), time.monotonic()))
                return NotWritten(str(refusal))
            case OutcomeUnknown() as error:
                log.warning("grant of unknown outcome: %s", error, extra=about)
                await asyncio.sleep(self._refusals.unanswered(write.name))
                return Unknown(str(error))

    async def _read_afresh(self, write: SpecWrite) -> NodePower | None:
        """What stands instead of the object that was written for. A failed read says nothing; an absent object is created
        anew, and its charge stays (R8)."""
        try:
            async with self._reads:
                found = await self._reader.get(NODE_POWERS, write.name)
            if found is None:
                self._keeper.on_node_power_gone(write.name, time.time(), write.uid)
                return None
            fresh = node_power_from_wire(found)
            self._keeper.on_node_power(fresh, time.time())
        except (ApiError, ContractError) as error:
            log.warning("not read afresh after a refusal: %s", error, extra={"node": write.name})
            return None
        return fresh

    async def _create(self, name: str) -> None:
        """Without spec (R3): the grants come later, tied to this object's uid."""
        node_power: NodePower | None = None
        try:
            node_power = await self._create_or_read(name)
        except (ApiError, ContractError) as error:
            log.warning("NodePower not created: %s", error, extra={"node": name})
        if node_power is None:
            await asyncio.sleep(CREATE_RETRY_S)  # the keeper asks again as soon as it is told
        self._keeper.on_created(name, node_power, time.time())

    async def see_contract(self) -> None:
        """Tell the keeper under which definition NodePowers are served now (R35). Raises ApiError."""
        uid = await self._contract_uid()
        if uid:
            self._keeper.on_contract_crd(uid)

    async def _contract_uid(self) -> str:
        """Of the definition of NodePower, by a fresh read; "" where there is none or it is being deleted. Raises ApiError."""
        found = await self._reader.get(CUSTOM_RESOURCE_DEFINITIONS, f"{NODE_POWERS.plural}.{API_GROUP}")
        if found is None or found["metadata"].get("deletionTimestamp"):
            return ""
        uid: str = found["metadata"]["uid"]
        return uid

    async def _create_or_read(self, name: str) -> NodePower | None:
        manifest = {"apiVersion": GROUP_VERSION, "kind": "NodePower", "metadata": {"name": name}}
        match await self._pen.create(manifest):
            case Stored(answer):
                self._refusals.stored(name)
                try:
                    await self.see_contract()
                except ApiError as error:  # it counts as seen under the former definition, which proves less
                    log.warning("cannot read the definition of NodePower: %s", error, extra={"node": name})
                return node_power_from_wire(answer)
            case NotSent():
                return None
            case Rejected(conflict=True):
                found = await self._reader.get(NODE_POWERS, name)
                return None if found is None else node_power_from_wire(found)
            case Rejected() as refusal:
                self._refusals.refused(name, str(refusal), time.monotonic())
                raise refusal
            case OutcomeUnknown() as error:
                raise error

    async def _release(self, node_power: NodePower, *, heir: NodeFact | None = None) -> None:
        """A person released it by name (R33), or its machine runs as another Node, `heir`: delete this very object, if fresh
        reads find no Node of its name, and that one as it was."""
        about = {"node": node_power.name}
        try:
            async with self._reads:
                node = await self._reader.get(NODES, node_power.name)
                other = None if heir is None else await self._reader.get(NODES, heir.name)
            if node is not None:
                log.info("not released, its Node is there", extra=about)
                return
            if heir is not None and (other is None or not _same_boot(read.node(other), heir)):
                log.info("not released, its machine is not found again", extra=about)
                return
            sent = await self._pen.delete(NODE_POWERS, node_power.name, uid=node_power.uid)
            if isinstance(sent, Rejected | OutcomeUnknown):
                log.warning("NodePower not released: %s", sent, extra=about)
        except ApiError as error:
            log.warning("cannot verify that a node is gone: %s", error, extra=about)
        finally:
            self._verifying.discard(node_power.name)

    async def _take_back(self, node_power: NodePower) -> None:
        """A leaf selects the node, so the release that a person said is void: remove it from this very object, if a fresh read
        finds the Node. Else its deletion is on its way here, and the word stands."""
        about = {"node": node_power.name}
        try:
            async with self._reads:
                node = await self._reader.get(NODES, node_power.name)
            if node is None:
                return
            match await self._pen.patch(NODE_POWERS, node_power.name, _without_release(node_power)):
                case Stored(answer):
                    self._keeper.on_node_power(node_power_from_wire(answer), time.time())
                case Rejected() | OutcomeUnknown() as problem:
                    log.warning("void release not taken back: %s", problem, extra=about)
        except (ApiError, ContractError) as error:
            log.warning("void release not taken back: %s", error, extra=about)
        finally:
            self._verifying.discard(node_power.name)

    async def _confirm(self, claim: Claim) -> None:
        """Fresh reads of the Node and of the budgets on its new way (R32). What differs is told by the watches."""
        try:
            async with self._reads:
                node = await self._reader.get(NODES, claim.node)
                budgets = [await self._reader.get(POWER_BUDGETS, name) for name, *_ in claim.budgets]
        except ApiError as error:
            log.warning("cannot read where a node belongs now: %s", error, extra={"node": claim.node})
            return
        finally:
            self._verifying.discard(claim.node)
        found = tuple(("", "", 0) if b is None else _identity(b["metadata"]) for b in budgets)
        if node is not None and (node["metadata"].get("labels") or {}) == claim.labels and found == claim.budgets:
            self._keeper.on_claim_confirmed(claim)

    async def _verify(self, name: str) -> None:
        """Fresh reads of both objects (R8): only two definite absences release the charge."""
        try:
            async with self._reads:
                node_power = await self._reader.get(NODE_POWERS, name)
                node = await self._reader.get(NODES, name)
                contract_uid = await self._contract_uid()
        except ApiError as error:
            log.warning("cannot verify that a node is gone: %s", error, extra={"node": name})
            return
        finally:
            self._verifying.discard(name)
        if node is None and node_power is None:
            self._keeper.on_absence_verified(name, time.time(), contract_uid)
        elif node_power is not None:
            try:
                self._keeper.on_node_power(node_power_from_wire(node_power), time.time())
            except ContractError as error:
                log.warning("unreadable NodePower: %s", error, extra={"node": name})


def _same_boot(found: NodeFact, heir: NodeFact) -> bool:
    return found.ready and (found.provider_id, found.boot_id) == (heir.provider_id, heir.boot_id)


def _without_release(node_power: NodePower) -> list[dict[str, str]]:
    """A JSON patch."""
    return [
        {"op": "test", "path": "/metadata/uid", "value": node_power.uid},
        {"op": "remove", "path": f"/metadata/annotations/{ANNOTATION_RELEASE.replace('/', '~1')}"},
    ]


def _identity(metadata: dict[str, Any]) -> tuple[str, str, int]:
    """Name, uid and generation."""
    return metadata["name"], metadata["uid"], metadata["generation"]
