"""What a GPU wants: its phase, its rank, and the watts that matter to it, from what runs on it and what is known of its kind.

Protected: caps and admission floors come from this one function, so that no floor is promised that the policy does not
count. All watts lie within the GPU's legal range, and cliff <= natural draw <= ceiling. A GPU without a known owner is not
a free one: only one that is proven idle is lowered as such. A pod whose cluster is gone keeps what that asked for, one of
which nothing was read yet what its GPU has; one of which only the rank is known asks for what a stranger would.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from splitwatt_core.budget.facts import PodFact
from splitwatt_core.budget.tree import BudgetSpec
from splitwatt_core.budget.workloads import Workloads, as_written
from splitwatt_core.clusters import PRIORITY_LOW
from splitwatt_core.gpus import profiles as profile_law
from splitwatt_core.gpus.profiles import Profile
from splitwatt_core.protocol.contract import Phase, PowerClass, Use
from splitwatt_core.protocol.ledger import GpuAccount


@dataclass(frozen=True, slots=True)
class GpuKind:
    """GPUs that behave alike: the same model with the same legal range of caps and the same default limit, in watts."""

    model: str
    min_w: int
    max_w: int
    default_w: int

    def __str__(self) -> str:
        return f"{self.model} {self.min_w}-{self.max_w} W"


@dataclass(frozen=True, slots=True)
class Demand:
    """`ceiling_w`: the highest cap that it may have; `natural_w`: its draw when uncapped; `cliff_w`: its floor, the cap
    below which its phase collapses. `ours`: a pod of ours holds it, so priority and ceiling are worth keeping."""

    phase: Phase
    priority: int
    ceiling_w: int
    natural_w: int
    cliff_w: int
    ours: bool = False

    @property
    def power_class(self) -> PowerClass | None:
        return PowerClass(self.priority, self.ceiling_w) if self.ours and self.ceiling_w > 0 else None


@dataclass(frozen=True, slots=True)
class Holding:
    """Who uses one GPU, as far as anybody knows. `pods`: its owners, None for one that is not ours. `use`: what the agent sees
    of it. `found_w`: the cap that it had when this use began, with a pod of which nothing was read the present one;
    `found_granted`: that cap was a grant, so it says nothing of what the GPU had before. `kept`: what its line says that the
    cluster of its pods asked for."""

    pods: tuple[PodFact | None, ...]
    use: Use
    found_w: int
    found_granted: bool = False
    kept: PowerClass | None = None


def demand_of(kind: GpuKind, holding: Holding, *, profiles: Sequence[Profile]) -> Demand:
    """The demand of one GPU. `profiles`: most specific first. A GPU that several pods share has one cap, so the strongest
    demand counts: the phase that draws most, the highest rank, floor and ceiling."""
    if not holding.pods:
        if holding.use is Use.IDLE:
            return _within(kind, Phase.UNASSIGNED, PRIORITY_LOW, natural_w=kind.min_w, cliff_w=kind.min_w)
        return _unowned(kind, holding)
    demands = [_of_one(kind, pod, holding, profiles=profiles) for pod in holding.pods]
    hungriest = max(demands, key=lambda one: (one.natural_w, one.phase is Phase.PREFILL))
    return Demand(
        hungriest.phase,
        max(one.priority for one in demands),
        max(one.ceiling_w for one in demands),
        hungriest.natural_w,
        max(one.cliff_w for one in demands),
        ours=any(one.ours for one in demands),
    )


def _of_one(kind: GpuKind, pod: PodFact | None, holding: Holding, *, profiles: Sequence[Profile]) -> Demand:
    if pod is None:
        return _stranger(kind, holding)
    if pod.unread:
        return _held(kind, pod, holding)
    if pod.phase is Phase.UNASSIGNED:
        return replace(_stranger(kind, holding), priority=pod.priority)
    if not pod.orphan:
        return replace(demand_of_pod(kind, pod, profiles=profiles), ours=True)
    if holding.kept is not None:
        known = replace(pod, priority=holding.kept.priority, power_ceiling_w=holding.kept.ceiling_w)
        return replace(demand_of_pod(kind, known, profiles=profiles), ours=True)
    return _held(kind, pod, holding)  # nobody wrote down what its cluster asked for


def _held(kind: GpuKind, pod: PodFact, holding: Holding) -> Demand:
    """It keeps what it has, and nothing is raised on a guess."""
    found_w = holding.found_w
    return _within(kind, pod.phase, pod.priority, ceiling_w=found_w, natural_w=found_w, cliff_w=found_w)


def demand_of_pod(kind: GpuKind, pod: PodFact, *, profiles: Sequence[Profile]) -> Demand:
    """The demand of a GPU that one pod of ours has to itself. A mixed pod does both phases under one cap: it ranks as prefill,
    and has the higher floor and the higher draw of the two, whatever its profile says of either."""
    if pod.mixed:
        prefill, decode = (
            demand_of_pod(kind, replace(pod, phase=phase, mixed=False), profiles=profiles)
            for phase in (Phase.PREFILL, Phase.DECODE)
        )
        natural_w, cliff_w = max(prefill.natural_w, decode.natural_w), max(prefill.cliff_w, decode.cliff_w)
        return replace(prefill, natural_w=natural_w, cliff_w=cliff_w)
    found = profile_law.lookup(profiles, kind.model, pod.phase, model=pod.model)
    if found is not None:
        natural_w, cliff_w = found.natural_w, found.cliff_w
    elif 0 < kind.min_w <= kind.max_w:
        guess = profile_law.conservative(pod.phase, min_cap_w=kind.min_w, max_cap_w=kind.max_w)
        natural_w, cliff_w = guess.natural_w, guess.cliff_w
    else:
        # An agent that cannot read the range of caps says 0, and a broken one what is no range. Nothing is known to hold here.
        natural_w = cliff_w = kind.max_w
    ceiling_w = kind.max_w if pod.power_ceiling_w is None else min(kind.max_w, pod.power_ceiling_w)
    return _within(kind, pod.phase, pod.priority, ceiling_w=ceiling_w, natural_w=natural_w, cliff_w=cliff_w)


def _stranger(kind: GpuKind, holding: Holding) -> Demand:
    """Somebody else's workload. Nothing is known of its phase, so it is asked for no less than prefill would be; what it had
    when it began it keeps, as long as everybody's floors fit, and it is not starved on a cap that an idle GPU was left with."""
    cliff_w = kind.min_w
    if 0 < kind.min_w <= kind.max_w:
        cliff_w = profile_law.conservative(Phase.PREFILL, min_cap_w=kind.min_w, max_cap_w=kind.max_w).cliff_w
    cliff_w = max(cliff_w, holding.found_w)
    return _within(kind, Phase.PREFILL, PRIORITY_LOW, natural_w=max(kind.default_w, cliff_w), cliff_w=cliff_w)


def _unowned(kind: GpuKind, holding: Holding) -> Demand:
    """Nobody is known to use it, and nothing proves that nobody does. Its cap is its floor: it gives nothing so that others may
    rise, only in a brake and where floors do not fit. Then it ranks with the lowest, for no cluster spoke for it. It asks for
    more only where its cap was a grant, left from idleness or from a cut, and it is seen at work."""
    wakes = holding.found_granted and holding.use is Use.BUSY
    ceiling_w = max(kind.default_w, holding.found_w) if wakes else holding.found_w
    return _within(
        kind, Phase.PREFILL, PRIORITY_LOW, ceiling_w=min(ceiling_w, kind.max_w), natural_w=ceiling_w, cliff_w=holding.found_w
    )


def _within(kind: GpuKind, phase: Phase, priority: int, *, natural_w: int, cliff_w: int, ceiling_w: int | None = None) -> Demand:
    """A ceiling below the minimum is the minimum; the others are held between the two."""
    high_w = max(kind.min_w, kind.max_w if ceiling_w is None else ceiling_w)
    natural_w = min(max(natural_w, kind.min_w), high_w)
    return Demand(phase, priority, high_w, natural_w, min(max(cliff_w, kind.min_w), natural_w))


class Demands:
    """`demand_of` for the GPUs of one step: a fleet has few kinds and pods, and many GPUs."""

    def __init__(self, pods: Mapping[tuple[str, str], PodFact], workloads: Workloads, profiles: Sequence[Profile]) -> None:
        self._pods, self._workloads, self._profiles = pods, workloads, profiles
        self._known: dict[tuple[object, ...], Demand] = {}

    def holders(self, account: GpuAccount, root: BudgetSpec) -> tuple[PodFact | None, ...]:
        """Pods of ours first: no label and no rule says anything of them."""
        found = []
        for owner in account.owners:
            key = (owner.namespace, owner.pod)
            fact = self._pods.get(key)
            if fact is None:
                fact = self._workloads.of(key, root=root.name, rules=root.workloads)
                if account.found_first and len(account.owners) == 1:
                    fact = as_written(fact, key, account.row)
            found.append(fact)
        return tuple(found)

    def of(self, account: GpuAccount, pods: tuple[PodFact | None, ...]) -> Demand:
        kind = (account.model, account.min_w, account.max_w, account.default_w)
        orphan = unread = False
        vague = not pods and account.use is not Use.IDLE
        for pod in pods:
            if pod is None:
                vague = True
                continue
            orphan, unread = orphan or pod.orphan, unread or pod.unread
            vague = vague or pod.orphan or pod.phase is Phase.UNASSIGNED
        found = (account.found_w, account.found_granted) if vague else (0, False)
        if unread:
            found = account.present_cap_w, account.row is not None
        kept = account.row.power_class if orphan and account.row is not None else None
        key = (*kind, *map(id, pods), account.use, *found, kept)  # the fleet keeps the pods alive, so an id is a pod's own
        demand = self._known.get(key)
        if demand is None:
            holding = Holding(pods, account.use, *found, kept)
            demand = self._known[key] = demand_of(GpuKind(*kind), holding, profiles=self._profiles)
        return demand
