"""Why is the cap of this GPU what it is? The rules of the policies, read backwards from what NodePower and budgets show. Pure.

Statuses of budgets may be `STATUS_SHARE` of the limit behind (the operator writes moving numbers seldom), so a budget whose
room is smaller than that counts as full. What cannot be told from the outside is said as that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from splitwatt_core.conditions import some
from splitwatt_core.names import LABEL_EXCLUDED, LABEL_MODE

Object = Mapping[str, Any]

STATUS_SHARE: Final = 0.02
LEAST_ROOM_W: Final = 100.0
RELEASE: Final = "Release"


@dataclass(frozen=True, slots=True)
class GpuCaps:
    """One GPU as its NodePower has it. Watts; None: not granted, or it could not be read. `would_w`: what Strict would
    grant, told in mode Observe alone."""

    uuid: str
    model: str
    cap_w: int | None
    enforced_w: int | None
    charge_w: int | None
    min_w: int
    max_w: int
    default_w: int
    floor_w: int
    phase: str
    ceiling_w: int | None
    clock_mhz: int | None
    acked: bool
    health: str
    use: str
    pods: tuple[str, ...]
    would_w: int | None = None


@dataclass(frozen=True, slots=True)
class BudgetLevel:
    """One budget on the way from a leaf up. `aim_w`: what decisions aim at."""

    name: str
    aim_w: int
    reserve_w: int
    charge_w: int | None
    posture: str
    frozen: bool

    @property
    def room_w(self) -> float | None:
        return None if self.charge_w is None else self.aim_w - self.reserve_w - self.charge_w

    @property
    def full(self) -> bool:
        return self.room_w is not None and self.room_w < max(LEAST_ROOM_W, STATUS_SHARE * self.aim_w)


@dataclass(frozen=True, slots=True)
class NodeGround:
    """Where the node stands. `levels`: its leaf first. `mode`: the node's own, else its root's. `unassigned`: its root's.
    `excluded`: by a person's label."""

    node: str
    levels: Sequence[BudgetLevel]
    mode: str = "Strict"
    unassigned: str = "Minimum"
    excluded: bool = False
    agent: bool = True


@dataclass(frozen=True, slots=True)
class Why:
    """`code`: one word for scripts. `change`: what would have to change for another cap, "" where nothing is wanted."""

    code: str
    text: str
    change: str = ""


def gpus_of(node_power: Object) -> list[GpuCaps]:
    spec, status = node_power.get("spec") or {}, node_power.get("status") or {}
    grants = {row["uuid"]: row for row in spec.get("gpus") or ()}
    reports = {row["uuid"]: row for row in status.get("gpus") or ()}
    would = {row["uuid"]: row.get("wouldCapWatts") for row in spec.get("wouldBe") or ()}
    uuids = dict.fromkeys((*reports, *grants))
    return [_gpu(uuid, grants.get(uuid) or {}, reports.get(uuid) or {}, would.get(uuid)) for uuid in uuids]


def _gpu(uuid: str, grant: Object, report: Object, would_w: int | None) -> GpuCaps:
    holders = report.get("workloads") or ([report["workload"]] if report.get("workload") else [])
    return GpuCaps(
        uuid=uuid,
        model=report.get("model", ""),
        cap_w=grant.get("capWatts"),
        enforced_w=report.get("enforcedCapWatts"),
        charge_w=grant.get("chargeWatts"),
        min_w=report.get("minCapWatts", 0),
        max_w=report.get("maxCapWatts", 0),
        default_w=report.get("defaultCapWatts", 0),
        floor_w=report.get("floorWatts", 0),
        phase=grant.get("phase", "Unassigned"),
        ceiling_w=grant.get("ceilingWatts"),
        clock_mhz=grant.get("maxClockMegahertz"),
        acked=bool(grant) and report.get("ackedGrant") == grant.get("grant"),
        health=report.get("health", "Unknown"),
        use=report.get("use", "Unknown"),
        pods=tuple(f"{row['namespace']}/{row['pod']}" for row in holders),
        would_w=would_w,
    )


def level_of(budget: Object) -> BudgetLevel:
    spec, status = budget["spec"], budget.get("status") or {}
    return BudgetLevel(
        name=budget["metadata"]["name"],
        aim_w=min(spec["limitWatts"], status.get("limitInForceWatts") or spec["limitWatts"]),
        reserve_w=spec.get("reserveWatts", 0),
        charge_w=status.get("chargeWatts"),
        posture=str(status.get("posture") or ""),
        frozen=bool(spec.get("frozen")),
    )


def ground_of(node_power: Object, budgets: Mapping[str, Object], node: Object | None) -> NodeGround:
    spec = node_power.get("spec") or {}
    way: list[Object] = []
    name = next(iter(spec.get("budgets") or ()), "")
    while name in budgets and len(way) < len(budgets):
        way.append(budgets[name])
        name = budgets[name]["spec"].get("parent") or ""
    root = way[-1]["spec"] if way else {}
    told = (way[-1].get("status") or {}).get("mode") if way else None
    labels = ((node or {}).get("metadata") or {}).get("labels") or {}
    return NodeGround(
        node=node_power["metadata"]["name"],
        levels=tuple(map(level_of, way)),
        mode=RELEASE if labels.get(LABEL_MODE) == RELEASE else root.get("mode") or told or spec.get("mode") or "Strict",
        unassigned=(root.get("policy") or {}).get("unassignedGpus") or "Minimum",
        excluded=labels.get(LABEL_EXCLUDED, "").lower() == "true",
        agent=bool((node_power.get("status") or {}).get("gpus")),
    )


def why_cap(gpu: GpuCaps, ground: NodeGround) -> Why:
    """The first rule that explains it."""
    if ground.excluded:
        label = f"{LABEL_EXCLUDED}=true"
        return Why(
            "Excluded",
            f"the node's label {label} keeps it out: no cap is granted, and {gpu.default_w} W are charged",
            f"kubectl label node {ground.node} {LABEL_EXCLUDED}-",
        )
    if not ground.levels:
        return Why("NoBudget", "no budget counts this node: its limits stay as they are", "splitwatt doctor")
    leaf = ground.levels[0].name
    if gpu.health != "OK":
        text = f"its agent says {gpu.health}: what it may draw at most is charged until it obeys"
        return Why("Sick", text, f"kubectl get np {ground.node} -o yaml   # conditions say what is wrong with it")
    if ground.mode == "Observe":
        return _why_observed(gpu, ground)
    if gpu.cap_w is None:
        return Why("NotGranted", "nothing has been granted to it yet", f"splitwatt explain budget {leaf}")
    frozen = [level.name for level in ground.levels if level.frozen]
    if frozen:
        text = f"{some(frozen)} is frozen: no cap below it moves"
        return Why("Frozen", text, _patch(frozen[0], '{"spec":{"frozen":false}}'))
    if not gpu.acked:
        enforced = "unknown" if gpu.enforced_w is None else f"{gpu.enforced_w} W"
        text = f"{gpu.cap_w} W are granted and not acknowledged yet, enforced are {enforced}; {gpu.charge_w} W are charged"
        return Why(
            "NotAcknowledged", text, f"splitwatt explain node {ground.node}   # again: it takes seconds, or the agent is late"
        )
    if ground.mode == RELEASE:
        return _why_released(gpu, gpu.cap_w, ground)
    return _why_granted(gpu, gpu.cap_w, ground)


def _why_observed(gpu: GpuCaps, ground: NodeGround) -> Why:
    root = ground.levels[-1].name
    if gpu.cap_w is not None and gpu.default_w and gpu.cap_w < gpu.default_w:
        text = f"mode is Observe: {gpu.cap_w} W are left from an earlier mode, and nothing is taken back"
        return Why("LeftLow", text, _patch(root, f'{{"spec":{{"mode":"{RELEASE}"}}}}'))
    would = "" if gpu.would_w is None else f"; Strict would grant it {gpu.would_w} W"
    text = f"mode is Observe: nothing is granted, and the limit that it has is charged{would}"
    return Why("Observe", text, _patch(root, '{"spec":{"mode":"Strict"}}'))


def _why_released(gpu: GpuCaps, cap_w: int, ground: NodeGround) -> Why:
    if cap_w >= gpu.default_w and gpu.clock_mhz is None:
        return Why("Released", f"mode is Release: it has its default limit of {gpu.default_w} W back")
    text = f"mode is Release: its default limit of {gpu.default_w} W follows as its budgets have room"
    return Why("Releasing", text, f"splitwatt explain budget {ground.levels[-1].name}   # CapsReleased says what it waits for")


def _why_granted(gpu: GpuCaps, cap_w: int, ground: NodeGround) -> Why:
    braking = [level.name for level in ground.levels if level.posture == "Brake"]
    if cap_w <= gpu.min_w and braking:
        return Why("Brake", f"{some(braking)} brakes: every GPU is at its lowest cap", f"splitwatt explain budget {braking[0]}")
    if gpu.phase == "Unassigned" and not gpu.pods and cap_w <= gpu.min_w and ground.unassigned == "Minimum":
        return Why("Idle", "no pod holds it, and policy.unassignedGpus is Minimum: its lowest cap")
    if gpu.phase == "Unassigned" and cap_w > gpu.min_w and not gpu.pods:
        return Why("Held", "no pod is known to hold it, and its cap is held as it was", "splitwatt doctor   # OwnersKnown")
    if gpu.ceiling_w is not None and cap_w >= gpu.ceiling_w:
        return Why("Ceiling", f"{gpu.ceiling_w} W is the highest cap that its role asks for (powerCeilingWatts)")
    if gpu.max_w and cap_w >= gpu.max_w:
        return Why("Maximum", "as high as the product goes: nothing holds it back")
    full = [level for level in ground.levels if level.full]
    tight = min(full, key=lambda level: level.room_w or 0.0, default=None)
    pressed = [level for level in ground.levels if level.posture in ("Trim", "Shed")]
    if pressed:
        text = f"{pressed[0].name} is in {pressed[0].posture}: its meter was above its limit, and nothing is raised meanwhile"
        return Why("Pressed", text, f"splitwatt explain budget {pressed[0].name}")
    if tight is not None:
        lowest = ", at its lowest cap" if gpu.min_w and cap_w <= gpu.min_w else ""
        kept = f" with {tight.reserve_w} W kept in reserve" if tight.reserve_w else ""
        text = f"{tight.name} is full{lowest}: {tight.charge_w} W are charged of {tight.aim_w} W{kept}"
        return Why(
            "BudgetFull",
            text,
            _patch(tight.name, '{"spec":{"limitWatts":N}}') + "   # or take load away, or lower others' priority",
        )
    if gpu.min_w and cap_w <= gpu.min_w:
        return Why("Minimum", "its lowest cap; its budgets have room, so its policy gives it no more", "")
    return Why("Enough", f"its policy wants no more for {gpu.phase}: its budgets have room")


def _patch(budget: str, patch: str) -> str:
    return f"kubectl patch pb {budget} --type=merge -p '{patch}'"
