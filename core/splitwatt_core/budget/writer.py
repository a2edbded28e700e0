"""Composing NodePower specs: the stamp of a new term, and grants (docs/protocol.md, R1, R3, R4, R6).

A line is kept as it stands while nothing about it changes. A new cap or a move to another rack makes a new grant with this
round's number, which carries the charge of this moment for a successor (R4); a phase, a power class or a clock lock is told
under the grant that stands.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from splitwatt_core.budget.claims import DROPPED, Placement
from splitwatt_core.budget.facts import SpecWrite
from splitwatt_core.budget.tree import BudgetSpec
from splitwatt_core.protocol.contract import NO_GRANT, Grant, Health, Mode, NodePower, Phase, PowerClass, Spec
from splitwatt_core.protocol.ledger import GpuAccount
from splitwatt_core.protocol.would import WouldBe, steady


@dataclass(frozen=True, slots=True)
class Wish:
    """What one GPU's line should say. `clock_mhz` 0: no lock. `cap_w` 0: nothing can be granted yet. `would`: what Observe only
    tells."""

    account: GpuAccount
    cap_w: int
    clock_mhz: int
    phase: Phase
    power_class: PowerClass | None = None
    would: WouldBe | None = None


def stamp(p: Placement, *, term: int, root: BudgetSpec) -> Spec:
    """The present term on the object, and nothing else new (R3). Lines written for another object must not come to life."""
    assert p.node.object is not None
    old = p.node.object.spec
    kept = old if old is not None and old.for_uid == p.node.object.uid else None
    return Spec(
        term=term,
        for_uid=p.node.object.uid,
        mode=root.mode,
        node_limit_w=kept.node_limit_w if kept is not None else None,
        budgets=p.names,
        leaving=p.leaving,
        overhead_percent=p.rates.overhead_percent,
        non_gpu_w=p.rates.non_gpu_w,
        unmanaged_w=p.rates.unmanaged_w,
        gpus=kept.gpus if kept is not None else (),
    )


def compose(p: Placement, wishes: Iterable[Wish], *, term: int, number: int, root: BudgetSpec, moves: dict[str, int]) -> Spec:
    """The spec that says all wishes. `number` is this round's grant number. Marks in `moves` which grant follows a move, once
    every line has one."""
    assert p.node.object is not None
    old = p.node.object.spec
    held = frozenset(old.gpus) if old is not None else frozenset()
    begun = [former for former, since in moves.items() if since == NO_GRANT and former not in p.unread]
    moved = bool(begun)
    grants = []
    would: list[WouldBe] = []
    limit_w = 0
    for wish in wishes:
        row = wish.account.row
        if root.mode is Mode.OBSERVE or wish.cap_w <= 0:
            if row is not None and row in held:
                grants.append(row)  # Observe grants nothing, and takes nothing back
            if root.mode is Mode.OBSERVE and wish.would is not None:
                would.append(wish.would)
            limit_w += wish.account.charge_w
            continue
        grants.append(_line(wish, held, number=number, safe_cap_w=root.safe_cap_w, moved=moved))
        # What a sick GPU may draw is charged already, and its rack's neighbours pay for it: the guard need not cut again.
        allowed_w = max(wish.cap_w, wish.account.floor_w)
        limit_w += allowed_w if wish.account.health is Health.OK else max(allowed_w, wish.account.charge_w)
    if all(
        grant.grant == number for grant in grants
    ):  # where nothing can be granted yet a line keeps its number, and proves nothing
        moves.update(dict.fromkeys(begun, number))
    return Spec(
        term=term,
        for_uid=p.node.object.uid,
        mode=root.mode,
        node_limit_w=limit_w if grants and root.mode is not Mode.OBSERVE else None,
        budgets=tuple(name for name in p.names if moves.get(name) != DROPPED),
        leaving=tuple(name for name in p.leaving if moves.get(name) != DROPPED),
        overhead_percent=p.rates.overhead_percent,
        non_gpu_w=p.rates.non_gpu_w,
        unmanaged_w=p.rates.unmanaged_w,
        gpus=tuple(grants),
        would=steady(old.would if old is not None else (), would),
    )


def lowers(write: SpecWrite) -> bool:
    """Whether some GPU is told to go below what it was granted: such a write is sent before the others."""
    granted_w = _granted_w(write)
    return any(grant.cap_w < granted_w.get(grant.uuid, 0) for grant in write.spec.gpus)


def rebased(write: SpecWrite, found: NodePower) -> SpecWrite | None:
    """The same write on the version that a fresh read found, or None where it has to be decided anew (R1).

    An agent tells its status all the time, and each time a write that is on its way is refused. One that lowers and raises
    nothing, for the budgets that counted the node before, is right whatever the status says now, so it need not lose that
    race: only the spec must still be the one that it was decided on. Nor may it take a line away: a GPU that was gone then may
    be listed now, and its line is all that a successor has of a cap that its agent may still set (R4). And where no newer
    version stands it was refused for something else.
    """
    before, after = write.over, write.spec
    same = (found.name, found.uid, found.spec) == (write.name, write.uid, before)
    if not same or before is None or not lowers(write) or found.resource_version <= write.resource_version:
        return None
    if (before.term, before.mode, before.budgets, before.leaving) != (after.term, after.mode, after.budgets, after.leaving):
        return None
    granted_w = _granted_w(write)
    if {grant.uuid for grant in after.gpus} != granted_w.keys() or any(g.cap_w > granted_w[g.uuid] for g in after.gpus):
        return None
    return replace(write, resource_version=found.resource_version)


def _granted_w(write: SpecWrite) -> dict[str, int]:
    return {grant.uuid: grant.cap_w for grant in write.over.gpus} if write.over is not None else {}


def _line(wish: Wish, held: frozenset[Grant], *, number: int, safe_cap_w: int | None, moved: bool) -> Grant:
    account = wish.account
    safe_w = wish.cap_w if safe_cap_w is None else min(wish.cap_w, max(safe_cap_w, account.min_w))
    clock = wish.clock_mhz or None
    row = account.row
    says = (wish.cap_w, safe_w)
    # Whoever acknowledges what nobody knows of, after a restore of the store, has its word again with a number above that.
    outrun = row is not None and row.grant < account.unknown_ack < number
    # Nobody but a later grant lifts a brake, so whoever is in charge says the same caps again (R30).
    braked = row is not None and row.grant <= account.braked < number
    if row is not None and row in held and not (moved or outrun or braked) and says == (row.cap_w, row.safe_cap_w):
        # A lock counts in no sum. As a new grant it would carry today's charge along, and owe an acknowledgement.
        return replace(row, phase=wish.phase, max_clock_mhz=clock, power_class=wish.power_class)
    return Grant(
        uuid=account.uuid,
        grant=number,
        cap_w=wish.cap_w,
        safe_cap_w=safe_w,
        charge_w=max(account.charge_w, wish.cap_w),
        max_clock_mhz=clock,
        phase=wish.phase,
        power_class=wish.power_class,
    )
