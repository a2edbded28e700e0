"""What a GPU wants: its phase, its rank, and the watts that matter to it, from what runs on it and what is known of its kind.

Protected: caps and admission floors come from this one function, so that no floor is promised that the policy does not
count. All watts lie within the GPU's legal range, and cliff <= natural draw <= ceiling.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from splitwatt_core.budget.facts import PodFact
from splitwatt_core.clusters import PRIORITY_LOW
from splitwatt_core.gpus import profiles as profile_law
from splitwatt_core.gpus.profiles import Profile
from splitwatt_core.protocol.contract import Phase


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
    below which its phase collapses."""

    phase: Phase
    priority: int
    ceiling_w: int
    natural_w: int
    cliff_w: int


def demand_of(kind: GpuKind, *, busy: bool, pod: PodFact | None, profiles: Sequence[Profile]) -> Demand:
    """The demand of one GPU. `busy`: something runs on it; `pod`: what, where it is ours. `profiles`: most specific first."""
    if not busy:
        return _within(kind, Phase.UNASSIGNED, PRIORITY_LOW, natural_w=kind.min_w, cliff_w=kind.min_w)
    if pod is None:
        # Somebody else's workload: nothing is known of its phase, so it is asked for no less than prefill would be.
        return _within(kind, Phase.PREFILL, PRIORITY_LOW, natural_w=kind.default_w, cliff_w=kind.min_w)
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


def _within(kind: GpuKind, phase: Phase, priority: int, *, natural_w: int, cliff_w: int, ceiling_w: int | None = None) -> Demand:
    """A ceiling below the minimum is the minimum; the others are held between the two."""
    high_w = max(kind.min_w, kind.max_w if ceiling_w is None else ceiling_w)
    natural_w = min(max(natural_w, kind.min_w), high_w)
    return Demand(phase, priority, high_w, natural_w, min(max(cliff_w, kind.min_w), natural_w))
