"""What a GPU wants: within its legal range whatever runs on it, and the same for its cap and for its admission floor."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from splitwatt_core.budget.demand import Demand, GpuKind, Holding, demand_of
from splitwatt_core.budget.facts import PodFact
from splitwatt_core.clusters import PRIORITY_LOW
from splitwatt_core.gpus.profiles import builtin
from splitwatt_core.protocol.contract import Phase, PowerClass, Use
from support.machines import MODEL, PROFILE
from support.world import MIN_W

KIND = GpuKind(MODEL, MIN_W, 700, 650)
NEW = GpuKind("of next year", MIN_W, 700, 650)


def pod(phase: Phase = Phase.PREFILL, *, ceiling_w: int | None = None) -> PodFact:
    return PodFact("ns", "pod", phase, 5, power_ceiling_w=ceiling_w)


def demand(kind: GpuKind, *of: PodFact | None, use: Use = Use.BUSY, found_w: int = 200, found_granted: bool = False) -> Demand:
    return demand_of(kind, Holding(of, use, found_w, found_granted), profiles=(PROFILE,))


def test_proven_idle_wants_its_minimum_and_nothing_less_than_a_proof_does() -> None:
    assert demand(KIND, use=Use.IDLE, found_w=500) == Demand(Phase.UNASSIGNED, 0, 700, natural_w=200, cliff_w=200)
    for use in (Use.BUSY, Use.UNKNOWN):
        assert demand(KIND, use=use, found_w=500) == Demand(Phase.PREFILL, 0, 500, natural_w=500, cliff_w=500), "held"


def test_work_of_nobody_known_on_a_gpu_that_was_idle_may_rise_and_is_never_below_what_it_found() -> None:
    assert demand(KIND, use=Use.BUSY, found_granted=True) == Demand(Phase.PREFILL, 0, 650, natural_w=650, cliff_w=200)
    assert demand(KIND, use=Use.UNKNOWN, found_granted=True) == Demand(Phase.PREFILL, 0, 200, natural_w=200, cliff_w=200)


def test_a_stranger_keeps_what_it_had_and_is_not_starved_on_an_idle_gpus_cap() -> None:
    assert demand(KIND, None, found_w=600) == Demand(Phase.PREFILL, 0, 700, natural_w=650, cliff_w=600)
    assert demand(KIND, None, found_w=200) == Demand(Phase.PREFILL, 0, 700, natural_w=650, cliff_w=350)


def test_of_pods_that_share_a_gpu_the_strongest_demand_counts() -> None:
    low = PodFact("ns", "low", Phase.PREFILL, 1, power_ceiling_w=500)
    high = PodFact("ns", "high", Phase.DECODE, 9)
    assert (
        demand(KIND, low, high) == demand(KIND, high, low) == Demand(Phase.PREFILL, 9, 700, natural_w=500, cliff_w=400, ours=True)
    )
    assert demand(KIND, high, None, found_w=600) == Demand(Phase.PREFILL, 9, 700, natural_w=650, cliff_w=600, ours=True)


def test_ours_wants_what_the_profile_says_of_its_phase() -> None:
    assert demand(KIND, pod()) == Demand(Phase.PREFILL, 5, 700, natural_w=640, cliff_w=400, ours=True)
    assert demand(KIND, pod(Phase.DECODE)) == Demand(Phase.DECODE, 5, 700, natural_w=450, cliff_w=250, ours=True)
    assert demand(NEW, pod()) == Demand(Phase.PREFILL, 5, 700, natural_w=700, cliff_w=350, ours=True), (
        "of an unknown model half is assumed"
    )


def test_a_pod_whose_cluster_is_gone_keeps_what_its_gpus_line_says() -> None:
    orphan = PodFact("ns", "pod", Phase.PREFILL, PRIORITY_LOW, orphan=True)
    kept = demand_of(KIND, Holding((orphan,), Use.BUSY, 450, kept=PowerClass(7, 500)), profiles=(PROFILE,))
    assert kept == Demand(Phase.PREFILL, 7, 500, natural_w=500, cliff_w=400, ours=True)
    assert kept.power_class == PowerClass(7, 500), "and so does the next successor"


def test_a_pod_of_which_nothing_was_written_down_keeps_what_it_has() -> None:
    orphan = PodFact("ns", "pod", Phase.PREFILL, PRIORITY_LOW, orphan=True)
    kept = demand(KIND, orphan, found_w=450, found_granted=True)
    assert kept == Demand(Phase.PREFILL, PRIORITY_LOW, 450, natural_w=450, cliff_w=450)
    assert kept.power_class is None


def test_a_ceiling_bounds_all_of_it_and_one_below_the_minimum_is_the_minimum() -> None:
    assert demand(KIND, pod(ceiling_w=500)) == Demand(Phase.PREFILL, 5, 500, natural_w=500, cliff_w=400, ours=True)
    assert demand(KIND, pod(ceiling_w=300)) == Demand(Phase.PREFILL, 5, 300, natural_w=300, cliff_w=300, ours=True)
    assert demand(KIND, pod(ceiling_w=100)) == Demand(Phase.PREFILL, 5, 200, natural_w=200, cliff_w=200, ours=True)


def test_of_a_gpu_whose_range_nobody_could_read_nothing_is_assumed() -> None:
    for max_w in (0, 1, 700):
        unread = GpuKind("of next year", 0, max_w, max_w)
        assert demand(unread, pod()) == Demand(Phase.PREFILL, 5, max_w, natural_w=max_w, cliff_w=max_w, ours=True)


def test_a_range_that_is_none_is_no_reason_to_stop() -> None:
    """A broken agent reports a minimum above the maximum, or no maximum at all."""
    for max_w in (0, 199):
        broken = GpuKind("of next year", 200, max_w, 700)
        assert demand(broken, pod()) == Demand(Phase.PREFILL, 5, 200, natural_w=200, cliff_w=200, ours=True)


@given(
    kind=st.builds(
        lambda model, low_w, more_w, share: GpuKind(model, low_w, low_w + more_w, low_w + more_w * share // 100),
        st.sampled_from([MODEL, *(profile.name for profile in builtin()), "of next year"]),
        st.integers(0, 1000),
        st.integers(0, 1000),
        st.integers(0, 100),
    ),
    phase=st.sampled_from([Phase.PREFILL, Phase.DECODE]),
    ceiling_w=st.none() | st.integers(1, 2000),
    owners=st.lists(st.booleans(), max_size=3),
    seen=st.tuples(st.sampled_from(Use), st.integers(0, 2000), st.booleans()),
)
def test_demands_lie_in_order_within_the_legal_range(
    kind: GpuKind, phase: Phase, ceiling_w: int | None, owners: list[bool], seen: tuple[Use, int, bool]
) -> None:
    of = tuple(pod(phase, ceiling_w=ceiling_w) if ours else None for ours in owners)
    wants = demand_of(kind, Holding(of, *seen), profiles=(PROFILE, *builtin()))
    assert kind.min_w <= wants.cliff_w <= wants.natural_w <= wants.ceiling_w <= kind.max_w
    if of and None not in of and ceiling_w is not None:
        assert wants.ceiling_w <= max(kind.min_w, ceiling_w)
