"""Power admission: which pods may leave their gate, and in which leaf budget.

**Reservation.** A pod's GPUs must never be capped below their floor (the cliff of its phase), so its leaf and every budget
above it have to find

    reservation = GPUs x max(0, floor - idle floor) x loss factor            (the dearest matching node of the leaf counts)

meter watts: the floor room counts an unused GPU at its idle floor already. It takes all *running* pods at their
floors too, so a higher class shrinks lower ones to their floors simply by being admitted; nobody is evicted here. A pod
past its gate whose GPUs it does not count yet stays reserved (assume), so the same watts are never promised twice.

**Order.** Gangs are served by priority, then pairs before extra replicas, then the role that lags most, then age. A
cluster's first prefill and decode pod are one gang: both are admitted, or neither, so that half-admitted clusters cannot
wait for each other; further replicas of the two, each a gang of its own, follow when both roles stand. A mixed replica serves by
itself: it is a gang of its own, which waits for no pair and which no pair waits for. A replica over several nodes is all pods of
its group (`admission.replicas`): they leave their gates together, or none does.

**No overtaking.** A gang that has to wait, but would fit if others left, keeps back the nodes it could use and the budgets that
are short for it: nobody behind it in the order gets these, or small gangs would starve it for ever. A gang that could not
fit even into empty leaves keeps nothing back. For a moment a replica that is still to be created keeps its place as well
(`admission.unborn`): a cluster that grows stays in its ratio, whichever of its pods are seen first.

Invariant: no plan makes any binding budget's floor room, less all reservations below it, negative or more negative.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Final

from splitwatt_core.admission.replicas import Replica, replicas_of
from splitwatt_core.admission.room import Choice, House, KeptBack, Room
from splitwatt_core.admission.shortage import refusal
from splitwatt_core.admission.snapshot import (
    Admission,
    AdmissionPlan,
    AdmissionSnapshot,
    AdmissionVerdict,
    BlockedPod,
    ClusterWant,
    HeldPod,
    PodNeed,
)
from splitwatt_core.admission.unborn import Births
from splitwatt_core.clusters import PAIR, ClusterName, Role
from splitwatt_core.conditions import some

PAIR_LAG: Final = 0.0
"""A missing role lags more than any role that has a replica."""


@dataclass(frozen=True, slots=True)
class _Gang:
    """Pods that are admitted together. `lag`: the share of its role's replicas that are admitted already. `unborn`: they are
    still to be created, and look like those that are there."""

    want: ClusterWant
    lag: float
    pods: tuple[PodNeed, ...]
    unborn: bool = False

    @property
    def order(self) -> tuple[object, ...]:
        first = self.pods[0]
        return (-self.want.priority, self.lag, first.created_s, self.want.cluster, first.role, first.pod)


@dataclass(frozen=True, slots=True)
class _ToCome:
    """Of one cluster: the role whose replicas are still to be created, and what is taken for them."""

    role: Role
    choices: list[Choice] = field(default_factory=list)


# ----------------------------------------------------------------------------------------------------------------- plan


def plan_admission(snapshot: AdmissionSnapshot, *, now_s: float = inf) -> AdmissionPlan:
    """Decide once. Pure: equal snapshots and times give equal plans. `now_s`: Unix seconds, as of `PodNeed.created_s`; whoever
    waits is to be looked at again within a second or so. Without it nobody is kept a place who is not there. Cost: clusters x
    nodes of the leaves they may use, once for each kind of pod that waits; leaves squared only for a pair that fits one by
    one but not together."""
    house = House(snapshot)
    room, empty = Room.now(house, snapshot.held), Room.empty(house, snapshot.held)
    kept = KeptBack()
    standing = _standing(snapshot)
    admissions: list[Admission] = []
    verdicts: dict[ClusterName, AdmissionVerdict] = {}
    gangs, unborn = _gangs(snapshot, standing, now_s)
    hopeless: set[tuple[ClusterName, object]] = set()
    to_come: dict[ClusterName, _ToCome] = {}
    for gang in gangs:
        cluster = gang.want.cluster
        paired = gang.pods[0].role in PAIR
        if paired and gang.lag > PAIR_LAG and not _pair_of(gang.want) <= standing.get(cluster, set()):
            continue  # its first pair waits; that verdict stands
        alike = (cluster, (gang.unborn, house.offer_to(gang.pods[0]).key))
        if alike in hopeless:
            continue  # room only shrinks: what did not fit for its sibling does not fit now
        placed = room.place(gang.pods, kept)
        if gang.unborn:
            to_come.setdefault(cluster, _ToCome(gang.pods[0].role)).choices.extend(placed or ())
        if placed is None:
            if cluster not in verdicts and not gang.unborn:
                verdicts[cluster] = _refusal(snapshot, room, kept, gang.pods, to_come.get(cluster))
            if empty.could_place(gang.pods):
                _keep_back(gang, room, kept)
            if len(gang.pods) == 1:
                hopeless.add(alike)
            continue
        for choice in () if gang.unborn else placed:
            standing.setdefault(cluster, set()).add(choice.need.role)
            selector = house.budgets[choice.leaf].selector
            assert selector is not None, f"leaf {choice.leaf} has nodes but no selector"
            wish = choice.node if choice.node in house.nodes else ""
            admissions.append(Admission(choice.need, choice.leaf, selector, choice.reservation_w, wish))
    blocked: dict[ClusterName | None, list[BlockedPod]] = {}
    for pod in snapshot.blocked:
        blocked.setdefault(pod.need.cluster, []).append(pod)
    verdicts = unborn | verdicts  # what is short is the news, where another role's first pod is still to be created
    for want in snapshot.clusters:
        if want.cluster not in verdicts:
            behind = blocked.get(want.cluster, [])
            verdicts[want.cluster] = _behind_others(behind) if behind else _all_admitted(want)
    return AdmissionPlan(tuple(admissions), {**verdicts, **snapshot.refused})


def _pair_of(want: ClusterWant) -> set[Role]:
    return {role for role in PAIR if want.replicas.get(role, 0) > 0}


def _standing(snapshot: AdmissionSnapshot) -> dict[ClusterName, set[Role]]:
    """The roles of each cluster that have a pod past its gate which is to stay."""
    standing: dict[ClusterName, set[Role]] = {}
    for held in snapshot.held:
        if not held.terminating and held.need.cluster is not None:
            standing.setdefault(held.need.cluster, set()).add(held.need.role)
    return standing


def _gangs(
    snapshot: AdmissionSnapshot, standing: Mapping[ClusterName, set[Role]], now_s: float
) -> tuple[list[_Gang], dict[ClusterName, AdmissionVerdict]]:
    """What is to be admitted, in order, and the clusters that wait for their own pods to be created."""
    waiting: dict[tuple[ClusterName | None, Role], list[PodNeed]] = {}
    for need in sorted(snapshot.waiting, key=lambda n: (n.created_s, n.pod)):
        waiting.setdefault((need.cluster, need.role), []).append(need)
    held: dict[tuple[ClusterName | None, Role], list[HeldPod]] = {}
    for pod in snapshot.held:
        held.setdefault((pod.need.cluster, pod.need.role), []).append(pod)
    gangs: list[_Gang] = []
    verdicts: dict[ClusterName, AdmissionVerdict] = {}
    births = Births(snapshot)
    for want in snapshot.clusters:
        found = {
            role: replicas_of(
                waiting.get((want.cluster, role), ()), held.get((want.cluster, role), ()), nodes=want.nodes_of(role)
            )
            for role in Role
        }
        gangs += [_Gang(want, PAIR_LAG, rest) for role in Role for rest in found[role].rests]
        missing = sorted(_pair_of(want) - standing.get(want.cluster, set()), key=PAIR.index)
        queues = {role: list(found[role].whole) for role in Role}
        alone = {Role.MIXED} if want.replicas.get(Role.MIXED, 0) > 0 else set()
        unborn = [role for role in (*missing, *alone - standing.get(want.cluster, set())) if not queues[role]]
        if unborn:
            behind = [b for b in snapshot.blocked if b.need.cluster == want.cluster and b.need.role in unborn]
            verdicts[want.cluster] = _behind_others(behind) if behind else _unborn(unborn)
        if any(role in PAIR for role in unborn):
            queues = {role: queue for role, queue in queues.items() if role not in PAIR}
        elif missing:
            gangs.append(_Gang(want, PAIR_LAG, tuple(need for role in missing for need in queues[role].pop(0))))
        lags: dict[Role, list[tuple[float, Replica]]] = {}
        for role, queue in queues.items():
            admitted = found[role].past + (1 if role in missing else 0)
            replicas = want.replicas.get(role, 0)
            numbered = enumerate(queue[: max(0, replicas - admitted)], start=admitted)
            lags[role] = [(ordinal / replicas, replica) for ordinal, replica in numbered]
            gangs += [_Gang(want, lag, replica) for lag, replica in lags[role]]
        known = {role: found[role].past + len(found[role].whole) for role in Role}
        gangs += [_Gang(want, lag, pods, unborn=True) for lag, pods in births.ahead_of(want, known, lags, now_s)]
    return sorted(gangs, key=lambda gang: gang.order), verdicts


def _refusal(snapshot: AdmissionSnapshot, room: Room, kept: KeptBack, pods: Replica, to_come: _ToCome | None) -> AdmissionVerdict:
    """`to_come`: of its own cluster, None without any."""
    if to_come is None:
        return refusal(snapshot, room, kept, pods)
    room.give_back(to_come.choices)
    verdict = _overtakes(pods[0].role, to_come.role) if room.could_place(pods) else refusal(snapshot, room, kept, pods)
    for choice in to_come.choices:
        room.take(choice)
    return verdict


def _keep_back(gang: _Gang, room: Room, kept: KeptBack) -> None:
    """Keep what the waiting gang needs from everyone behind it."""
    house, cluster = room.house, gang.want.cluster
    dearest_w = sum(
        max((house.reservation_w(need, leaf, need.gpus) for leaf in house.usable(need)), default=0.0) for need in gang.pods
    )
    for need in gang.pods:
        for coming in house.growing(need):
            kept.nodes.setdefault(coming.name, cluster)
        for leaf, nodes in house.usable(need).items():
            for node in nodes:
                kept.nodes.setdefault(node.name, cluster)
            for budget in house.chain(leaf):
                if budget.binding and room.left_w[budget.name] < dearest_w:
                    kept.budgets.setdefault(budget.name, cluster)


# ------------------------------------------------------------------------------------------------------------ sentences


def _all_admitted(want: ClusterWant) -> AdmissionVerdict:
    counts = " and ".join(f"{want.replicas[role]} {role.value}" for role in Role if role in want.replicas)
    return AdmissionVerdict(True, "Admitted", f"The floors of {counts} replicas are reserved.")


def _unborn(roles: Sequence[Role]) -> AdmissionVerdict:
    names = " and ".join(role.value for role in roles)
    return AdmissionVerdict(False, "WaitingForPods", f"Waits for the first {names} pod to be created.")


def _overtakes(role: Role, other: Role) -> AdmissionVerdict:
    told = f"Waits a moment for the next {other.value} pod to be created, whose watts or GPUs {role.value} would take."
    return AdmissionVerdict(False, "WaitingForPods", told)


def _behind_others(pods: Sequence[BlockedPod]) -> AdmissionVerdict:
    gates = sorted({gate for pod in pods for gate in pod.gates})
    return AdmissionVerdict(
        False,
        "WaitingForOtherGates",
        f"{some(sorted(pod.need.pod.name for pod in pods))} {'waits' if len(pods) == 1 else 'wait'} behind {some(gates)}, which "
        "is decided before power: no watt is reserved until whoever set it takes it off (Kueue: when the queue has quota).",
    )
