"""What every policy promises for every forest of budgets, and what each of ours promises beyond that.

The fairness tests state the bottleneck condition of max-min fairness, which is equivalent to it: whoever could still want
more lies below a full budget in which nobody who may be asked to give has more than it.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from splitwatt_core.columns import GpuColumns, PhaseCode, Posture
from splitwatt_core.policies.pacing import Pace
from splitwatt_core.policies.phase_aware import PhaseAware
from splitwatt_core.policies.signature import Policy, PowerSnapshot, Unassigned, cap_sums_w, check_decision
from splitwatt_core.policies.uniform import Uniform
from support.forests import snapshots

POLICIES: dict[str, Policy] = {
    "Uniform": Uniform(),
    "PhaseAware": PhaseAware(),
    "PhaseAware-plain": PhaseAware(raise_deadband_w=0, margin_percent=0),
    "PhaseAware-paced": PhaseAware(pace=Pace()),
}
PLAIN = PhaseAware(raise_deadband_w=0)


def ancestors(snapshot: PowerSnapshot, leaf: int) -> list[int]:
    chain = [leaf]
    while snapshot.budgets.parent[chain[-1]] >= 0:
        chain.append(int(snapshot.budgets.parent[chain[-1]]))
    return chain


def above(snapshot: PowerSnapshot, gpu: int) -> set[int]:
    """All budgets that touch any member of this GPU's group."""
    members = np.flatnonzero(snapshot.gpus.group == snapshot.gpus.group[gpu])
    return {b for m in members for b in ancestors(snapshot, int(snapshot.gpus.leaf[m]))}


def below(snapshot: PowerSnapshot, budget: int) -> list[int]:
    return [i for i, leaf in enumerate(snapshot.gpus.leaf) if budget in ancestors(snapshot, int(leaf))]


def is_full(snapshot: PowerSnapshot, cap_w: np.ndarray, budget: int) -> bool:
    """Less is left than rounding every cap below it down to a whole watt can leave."""
    left_w = snapshot.budgets.allowance_w[budget] - cap_sums_w(snapshot, cap_w)[budget]
    return bool(left_w < snapshot.gpus.loss_factor[below(snapshot, budget)].sum() + 1e-6)


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
@given(snapshot=snapshots())
def test_post_condition_legal_range_groups_and_shortage(policy: Policy, snapshot: PowerSnapshot) -> None:
    decision = policy.decide(snapshot, 0.0)
    check_decision(snapshot, decision)
    gpus = snapshot.gpus
    assert decision.cap_w.dtype == np.int32 and decision.max_clock_mhz.shape == decision.cap_w.shape
    for group in np.unique(gpus.group):
        assert len(set(decision.cap_w[gpus.group == group].tolist())) == 1
    missing = cap_sums_w(snapshot, gpus.min_w.astype(np.int32)) - snapshot.budgets.allowance_w
    assert decision.short_w == pytest.approx(np.maximum(missing, 0.0), abs=1e-6)
    for b in np.flatnonzero(decision.short_w > 0):
        for i in below(snapshot, int(b)):
            assert decision.cap_w[i] == gpus.min_w[i]
    for i in range(len(gpus.leaf)):
        if any(snapshot.budgets.posture[b] == Posture.BRAKE for b in above(snapshot, i)):
            assert decision.cap_w[i] == gpus.min_w[i]
    assert sum(reason.gpus for reason in decision.reasons) == len(gpus.leaf)
    kinds = [(reason.leaf, reason.phase, reason.priority) for reason in decision.reasons]
    assert len(kinds) == len(set(kinds)) and all(reason.text for reason in decision.reasons)


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
@given(snapshot=snapshots(), order=st.randoms(use_true_random=False))
def test_order_of_gpus_does_not_matter(policy: Policy, snapshot: PowerSnapshot, order: object) -> None:
    size = len(snapshot.gpus.leaf)
    shuffled = list(range(size))
    order.shuffle(shuffled)  # type: ignore[attr-defined]
    relabel = list(range(size))
    order.shuffle(relabel)  # type: ignore[attr-defined]
    gpus = snapshot.gpus
    names = ("leaf", "phase", "priority", "loss_factor", "min_w", "max_w", "natural_w", "cliff_w", "cap_w")
    moved = GpuColumns(
        **{name: getattr(gpus, name)[shuffled] for name in names},
        group=np.array(relabel, dtype=np.int32)[gpus.group[shuffled]] if size else gpus.group,
    )
    first = policy.decide(snapshot, 0.0)
    second = policy.decide(replace(snapshot, gpus=moved), 1.0)
    spans = any(len(set(gpus.leaf[gpus.group == g].tolist())) > 1 for g in np.unique(gpus.group))
    assert np.max(np.abs(first.cap_w[shuffled] - second.cap_w), initial=0) <= (1 if spans else 0)


@given(snapshot=snapshots(calm=True))
def test_uniform_is_max_min_fair_in_watts(snapshot: PowerSnapshot) -> None:
    cap_w = Uniform().decide(snapshot, 0.0).cap_w
    gpus = snapshot.gpus
    for i in range(len(gpus.leaf)):
        top_w = gpus.max_w[gpus.group == gpus.group[i]].min()
        if cap_w[i] < top_w:
            assert any(
                is_full(snapshot, cap_w, b)
                and all(cap_w[j] <= cap_w[i] + 1 or cap_w[j] == gpus.min_w[j] for j in below(snapshot, b))
                for b in above(snapshot, i)
            )


@given(snapshot=snapshots(calm=True, spanning=False))
def test_uniform_is_equal_below_one_leaf(snapshot: PowerSnapshot) -> None:
    cap_w = Uniform().decide(snapshot, 0.0).cap_w
    gpus = snapshot.gpus
    for leaf in np.unique(gpus.leaf):
        here = gpus.leaf == leaf
        between = here & (cap_w > gpus.min_w) & (cap_w < gpus.max_w)
        levels = set(cap_w[between].tolist())
        assert len(levels) <= 1
        for level in levels:
            assert bool(np.all(gpus.min_w[here & (cap_w == gpus.min_w)] >= level))
            assert bool(np.all(gpus.max_w[here & (cap_w == gpus.max_w)] <= level))


def stage_of(snapshot: PowerSnapshot, gpu: int, *, floor: bool) -> tuple[int, int, int]:
    """The stage that lifts a GPU, as a sort key: smaller is served earlier."""
    gpus = snapshot.gpus
    prefill = gpus.phase[gpu] == PhaseCode.PREFILL
    return (0, -int(gpus.priority[gpu]), 0) if floor else (1, -int(gpus.priority[gpu]), 0 if prefill else 1)


def has_from_stage(snapshot: PowerSnapshot, cap_w: np.ndarray, gpu: int, *, floor: bool) -> bool:
    """Whether this GPU got anything in its floor stage, or anything above its cliff."""
    gpus = snapshot.gpus
    start = gpus.min_w[gpu] if floor else max(gpus.cliff_w[gpu], gpus.min_w[gpu])
    return bool(cap_w[gpu] > start)


@given(snapshot=snapshots(calm=True))
def test_phase_aware_serves_in_its_stated_order(snapshot: PowerSnapshot) -> None:
    """Whoever is below its natural draw lies below a full budget where no later stage got anything: this is priority
    dominance, decode giving before prefill, cliffs kept while all cliffs fit, and no margin or held cap while anybody
    at work is short; and within its own stage nobody came further."""
    cap_w = PLAIN.decide(snapshot, 0.0).cap_w
    gpus = snapshot.gpus
    works = gpus.phase != PhaseCode.UNASSIGNED
    for i in np.flatnonzero(works & (cap_w < gpus.natural_w)):
        floor = bool(cap_w[i] < gpus.cliff_w[i])
        mine = stage_of(snapshot, int(i), floor=floor)
        way = gpus.cliff_w[i] - gpus.min_w[i] if floor else gpus.natural_w[i] - gpus.cliff_w[i]
        mine_w = cap_w[i] - (gpus.min_w[i] if floor else gpus.cliff_w[i])

        def fair(j: int, *, mine: tuple[int, int, int] = mine, share: float = (mine_w + 1) / way) -> bool:
            if not works[j]:
                return bool(cap_w[j] == gpus.min_w[j])
            if cap_w[j] > gpus.natural_w[j]:
                return False
            for floor_j in (True, False):
                if not has_from_stage(snapshot, cap_w, j, floor=floor_j):
                    continue
                theirs = stage_of(snapshot, j, floor=floor_j)
                if theirs > mine:
                    return False
                if theirs == mine:
                    lo = gpus.min_w[j] if floor_j else gpus.cliff_w[j]
                    hi = gpus.cliff_w[j] if floor_j else gpus.natural_w[j]
                    if min(cap_w[j], hi) - lo > (share + 1e-9) * (hi - lo):
                        return False
            return True

        assert any(is_full(snapshot, cap_w, b) and all(fair(j) for j in below(snapshot, b)) for b in above(snapshot, int(i)))


@given(snapshot=snapshots(calm=True, one=True), more=st.integers(0, 2000))
def test_nobody_loses_when_an_allowance_grows_and_small_changes_stay_small(snapshot: PowerSnapshot, more: int) -> None:
    budgets = snapshot.budgets
    grown = replace(snapshot, budgets=replace(budgets, allowance_w=budgets.allowance_w + more))
    for policy in POLICIES.values():
        before, after = policy.decide(snapshot, 0.0).cap_w, policy.decide(grown, 0.0).cap_w
        assert bool(np.all(after >= before))
    before, after = PLAIN.decide(snapshot, 0.0).cap_w, PLAIN.decide(grown, 0.0).cap_w
    moved_w = float((snapshot.gpus.loss_factor * (after - before)).sum())
    assert moved_w <= more + snapshot.gpus.loss_factor.sum() + 1e-6


@given(snapshot=snapshots(calm=True, spanning=False), more=st.integers(0, 2000))
def test_nobody_loses_when_the_root_grows(snapshot: PowerSnapshot, more: int) -> None:
    budgets = snapshot.budgets
    grown = replace(snapshot, budgets=replace(budgets, allowance_w=budgets.allowance_w + np.where(budgets.parent < 0, more, 0)))
    for policy in POLICIES.values():
        assert bool(np.all(policy.decide(grown, 0.0).cap_w >= policy.decide(snapshot, 0.0).cap_w))


@given(snapshot=snapshots())
def test_deciding_again_from_the_decision_changes_nothing(snapshot: PowerSnapshot) -> None:
    """A target once granted is a fixed point, also with the deadband; held caps only of GPUs without a workload."""
    first = PhaseAware().decide(snapshot, 0.0).cap_w
    again = replace(snapshot, gpus=replace(snapshot.gpus, cap_w=first.astype(np.float64)))
    second = PhaseAware().decide(again, 1.0).cap_w
    works = snapshot.gpus.phase != PhaseCode.UNASSIGNED
    if snapshot.unassigned is Unassigned.MINIMUM:
        assert np.array_equal(first, second)
    else:
        assert bool(np.all(second[works] >= first[works]))
