"""One driver load: its GPUs, its enforcer and guard. A new boot, or a driver that was reloaded, begins a new session.

What it protects: an acknowledgement never outlives the driver load it was read back in (docs/protocol.md, R14). The new session's
enforcer starts from the durable record, which may only lower, and takes in nothing before a consistent read (R11).

A GPU that was seen in this boot and will not answer now is kept in the list, as lost: dropping it would take its charge
off the books while it may well draw power. One that never said who it is stands in under its index, with the largest
default limit of its siblings, or the largest of any part where no sibling said so either.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Final

from splitwatt_core.gpus import hardware
from splitwatt_core.protocol.contest import Contest
from splitwatt_core.protocol.contract import MAX_GPUS_PER_NODE, UNREADABLE_PREFIX, GpuStatus, Health, Mode, NodePower, Workload
from splitwatt_core.protocol.enforcer import Enforcer, GpuIdentity, Readback
from splitwatt_core.protocol.evidence import Bounds, Evidence, Glance, idle_below_mw
from splitwatt_core.protocol.node_guard import NodeGuard
from splitwatt_core.protocol.record import Record

from splitwatt_agent.durable import KeptInventory
from splitwatt_agent.nvml import UNKNOWN_LIMIT_MW, Inventory, NvmlPort
from splitwatt_agent.sampling import Facts, GpuReading


@dataclass(frozen=True, slots=True)
class Granted:
    """The newest accepted grant of one GPU. `phase`: `Prefill`, `Decode` or `Unassigned`."""

    cap_w: int
    phase: str


@dataclass(frozen=True, slots=True)
class Standing:
    """What enforcer and guard say after a tick. `lowered`: ceilings that the guard has in force, in watts."""

    observed_uid: str = ""
    observed_term: int = 0
    gpus: tuple[GpuStatus, ...] = ()
    granted: Mapping[str, Granted] = field(default_factory=dict)
    unknown_gpus: tuple[str, ...] = ()
    lowered: Mapping[str, int] = field(default_factory=dict)
    contests: Mapping[str, Contest] = field(default_factory=dict)
    beyond: int = 0


NO_SESSION: Final = Standing()
_NEVER_HEARD: Final = GpuIdentity(
    "", "", min_mw=UNKNOWN_LIMIT_MW, max_mw=UNKNOWN_LIMIT_MW, default_mw=UNKNOWN_LIMIT_MW, cappable=False
)
"""Stands in for a GPU that is there where none of the node's has ever said who it is: it may draw power all the same."""


@dataclass(frozen=True, slots=True)
class Session:
    boot_id: str
    gpus: Mapping[str, GpuIdentity]
    lost: Mapping[str, Health]
    """GPUs in `gpus` that this start could not speak to, and how they failed."""
    enforcer: Enforcer
    guard: NodeGuard
    evidence: Evidence
    beyond: int = 0
    """GPUs that the node has above the number that it may report: nobody governs them."""

    @property
    def named(self) -> tuple[GpuIdentity, ...]:
        """Those that have said who they are, now or earlier in this boot."""
        return tuple(gpu for uuid, gpu in self.gpus.items() if not uuid.startswith(UNREADABLE_PREFIX))

    def see(self, now_s: float, readbacks: Mapping[str, Readback], facts: Mapping[str, Facts]) -> None:
        """Take this tick's readings for evidence of use and of floors. `facts`: the last ones known, by GPU."""
        unasked = Facts()
        self.evidence.see(
            now_s,
            {
                uuid: Glance(back.power_mw, back.enforced_mw, facts.get(uuid, unasked).processes)
                for uuid, back in readbacks.items()
            },
        )

    def floors(self) -> dict[str, int]:
        """Watts by GPU, of those that draw more than their cap."""
        return {uuid: floor_w for uuid in self.gpus if (floor_w := self.evidence.floor_w(uuid))}

    def standing(self, owners: Mapping[str, tuple[Workload, ...]]) -> Standing:
        """After a tick, before anything is waited for: a setter that returns makes the readback of its GPU void."""
        enforcer = self.enforcer
        granted = {}
        for uuid in self.gpus:
            cap_w, phase = enforcer.granted_cap_w(uuid), enforcer.granted_phase(uuid)
            if cap_w is not None and phase is not None:
                granted[uuid] = Granted(cap_w, phase)
        return Standing(
            observed_uid=enforcer.observed_uid,
            observed_term=enforcer.observed_term,
            gpus=tuple(self._with_use(line, owners.get(line.uuid, ())) for line in enforcer.status()),
            granted=granted,
            unknown_gpus=enforcer.unknown_gpus,
            lowered=self.guard.lowered,
            contests=enforcer.contests,
            beyond=self.beyond,
        )

    def _with_use(self, line: GpuStatus, owners: tuple[Workload, ...]) -> GpuStatus:
        return replace(
            line,
            workload=owners[0] if owners else None,
            workloads=owners if len(owners) > 1 else (),
            use=self.evidence.use(line.uuid),
            floor_w=self.evidence.floor_w(line.uuid),
        )

    def readbacks(self, readings: Mapping[str, GpuReading], stuck: frozenset[str]) -> dict[str, Readback]:
        """By GPU; `stuck` are those whose read has not returned."""
        readbacks = {uuid: reading.readback for uuid, reading in readings.items()}
        readbacks |= dict.fromkeys(stuck, Readback(None, None, Health.HUNG))
        readbacks |= {uuid: Readback(None, None, health) for uuid, health in self.lost.items()}
        return readbacks

    def answers(self, found: Inventory) -> bool:
        """Whether a scan found a GPU that this session takes for lost, or does not know."""
        return any(gpu.uuid in self.lost or gpu.uuid not in self.gpus for gpu in found.gpus)


def begin(port: NvmlPort, inventory: KeptInventory, *, boot_id: str, record: Record) -> Session:
    """Initialise NVML and take stock; blocks. Raises NvmlError. What was found is kept by whoever adopts the session: a disk
    that refuses it is no reason to leave GPUs uncapped."""
    found = port.start()
    gpus, lost = take_stock(found, inventory.known(boot_id))
    evidence = Evidence({uuid: _bounds(gpu) for uuid, gpu in gpus.items()})
    return Session(boot_id, gpus, lost, Enforcer(gpus=gpus, record=record), NodeGuard(), evidence, beyond=found.beyond)


def _bounds(gpu: GpuIdentity) -> Bounds:
    product = hardware.builtin().product(gpu.model)
    idle_w = None if product is None else product.idle_w
    return Bounds(idle_below_mw(idle_w=idle_w, min_mw=gpu.min_mw), gpu.min_mw)


def take_stock(found: Inventory, known: tuple[GpuIdentity, ...]) -> tuple[dict[str, GpuIdentity], dict[str, Health]]:
    """All GPUs to report by UUID, and which of them did not answer, and how. Of more than a status can name those that
    answer come first, then those seen last: some drivers give new UUIDs at each load. The operator keeps what it charges for
    the others."""
    gpus = {gpu.uuid: gpu for gpu in found.gpus}
    missing = [gpu for gpu in known if gpu.uuid not in gpus]
    nameless = found.unreadable[len(missing) :]  # the missing ones are among the unreadable
    gpus.update((gpu.uuid, gpu) for gpu in missing)
    lost = dict.fromkeys((gpu.uuid for gpu in missing), Health.LOST)
    like = max(gpus.values(), key=lambda gpu: gpu.default_mw, default=_NEVER_HEARD)
    for index, error in nameless:
        uuid = f"{UNREADABLE_PREFIX}{index}"
        gpus[uuid] = replace(like, uuid=uuid)
        lost[uuid] = error.health
    gpus = dict(islice(gpus.items(), MAX_GPUS_PER_NODE))
    return gpus, {uuid: health for uuid, health in lost.items() if uuid in gpus}


def without_leased_watts(seen: NodePower) -> NodePower:
    """What of a NodePower this agent may use. It follows no Lease, so in Oversubscribed mode only safe caps count (I4):
    a cap above its safe cap would have to fall by itself when the Lease lapses."""
    spec = seen.spec
    if spec is None or spec.mode is not Mode.OVERSUBSCRIBED:
        return seen
    gpus = tuple(replace(grant, cap_w=min(grant.cap_w, grant.safe_cap_w)) for grant in spec.gpus)
    return replace(seen, spec=replace(spec, gpus=gpus))


def without_grants(seen: NodePower) -> NodePower:
    """What of a NodePower an agent uses that only observes: so that there is nothing it could set or acknowledge."""
    return seen if seen.spec is None else replace(seen, spec=replace(seen.spec, gpus=(), node_limit_w=None))
