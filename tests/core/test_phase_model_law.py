"""The phase model: monotone in everything, finite everywhere, and true to the published figures it was fitted to."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from splitwatt_core.gpus import phase_model as law
from splitwatt_core.gpus.profiles import Profile, ProfileError, builtin, find
from splitwatt_core.protocol.contract import Phase

PROFILES = builtin()
A100, H100, H200, B200 = PROFILES
NO_CAP_W = 10_000

any_profile = st.sampled_from(PROFILES)
tokens = st.integers(0, 200_000)
batches = st.integers(0, 2_000)
caps = st.floats(0, 1_500)
clocks = st.floats(0, 3_000)
phases = st.sampled_from([Phase.PREFILL, Phase.DECODE])
loads = st.floats(0, 1)


def pairs(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Two values, the smaller first."""
    return st.tuples(values, values).map(sorted)


@pytest.mark.parametrize(
    ("profile", "prefill_1024_ms", "decode_64_ms"),
    [(A100, 126, 22.2), (H100, 46, 12.3), (H200, 44.5, 10.2), (B200, 28.7, 8.6)],
    ids=lambda value: value.name if isinstance(value, Profile) else str(value),
)
def test_step_times_match_the_published_table_within_the_stated_error(
    profile: Profile, prefill_1024_ms: float, decode_64_ms: float
) -> None:
    timing = profile.timing
    assert timing is not None
    rounding = 0.006
    assert law.prefill_ms(profile, 1024, NO_CAP_W) == pytest.approx(
        prefill_1024_ms, rel=timing.prefill_error_permille / 1000 + rounding
    )
    assert law.decode_ms(profile, 64, 1024, NO_CAP_W) == pytest.approx(
        decode_64_ms, rel=timing.decode_error_permille / 1000 + rounding
    )


def test_what_a_cap_costs_an_h100() -> None:
    """Splitwise: prefill x1.3 at half power, decode almost nothing; below the cliff it collapses."""
    prefill, decode = H100.phase(Phase.PREFILL), H100.phase(Phase.DECODE)
    assert prefill is not None and decode is not None
    assert law.latency_factor(prefill, 350) == pytest.approx(1.3)
    assert law.latency_factor(decode, 350) <= 1.02
    assert law.latency_factor(decode, 380) == law.latency_factor(prefill, 700) == 1.0
    assert law.latency_factor(decode, 250) > 1.8
    uncapped_ms = law.decode_ms(H100, 32, 1024, 700)
    assert law.decode_ms(H100, 32, 1024, 380) == uncapped_ms
    assert law.prefill_ms(H100, 2048, 350) == pytest.approx(1.3 * law.prefill_ms(H100, 2048, 700))


def test_a_cap_and_the_clock_it_causes_are_not_counted_twice() -> None:
    """An engine may pass the enforced cap, the present clock, or both."""
    for cap_w in (350, 450, 600):
        clocks_mhz = range(H100.min_clock_mhz, H100.max_clock_mhz + 1)
        clock_mhz = max(mhz for mhz in clocks_mhz if law.power_at_clock_w(H100, Phase.PREFILL, 1.0, mhz) <= cap_w)
        by_cap, by_clock = law.prefill_ms(H100, 1024, cap_w), law.prefill_ms(H100, 1024, NO_CAP_W, clock_mhz)
        assert by_clock == pytest.approx(by_cap, rel=0.02)
        assert law.prefill_ms(H100, 1024, cap_w, clock_mhz) == max(by_cap, by_clock)


@given(any_profile, phases, loads, pairs(clocks))
def test_a_deeper_lock_never_draws_more(profile: Profile, phase: Phase, load: float, pair: tuple[float, float]) -> None:
    slow_mhz, fast_mhz = (max(clock_mhz, 1) for clock_mhz in pair)
    slow_w, fast_w = (law.power_at_clock_w(profile, phase, load, clock_mhz) for clock_mhz in (slow_mhz, fast_mhz))
    assert profile.idle_w <= slow_w <= fast_w + 1e-6 and fast_w <= law.demand_w(profile, phase, load) + 1e-6


@given(any_profile, pairs(tokens), pairs(caps), pairs(clocks))
def test_prefill_is_monotone(
    profile: Profile, prompt: tuple[int, int], cap: tuple[float, float], clock: tuple[float, float]
) -> None:
    (few, many), (low, high), (slow, fast) = prompt, cap, clock
    slow, fast = max(slow, 1), max(fast, 1)
    assert law.prefill_ms(profile, few, high, fast) <= law.prefill_ms(profile, many, low, slow) + 1e-9
    assert law.prefill_ms(profile, few, high) <= law.prefill_ms(profile, few, high, fast)
    assert math.isfinite(law.prefill_ms(profile, many, 0, 1))


@given(any_profile, pairs(batches), pairs(st.integers(0, 100_000)), pairs(caps))
def test_decode_is_monotone(profile: Profile, batch: tuple[int, int], context: tuple[int, int], cap: tuple[float, float]) -> None:
    (few, many), (short, long), (low, high) = batch, context, cap
    assert law.decode_ms(profile, few, short, high) <= law.decode_ms(profile, many, long, low) + 1e-9
    assert math.isfinite(law.decode_ms(profile, many, long, 0, 1))


@given(any_profile, phases, loads, loads)
def test_demand_lies_between_idle_and_natural_draw_and_rises_with_load(
    profile: Profile, phase: Phase, load_a: float, load_b: float
) -> None:
    low, high = sorted((load_a, load_b))
    row = profile.phase(phase)
    assert row is not None
    assert profile.idle_w <= law.demand_w(profile, phase, low) <= law.demand_w(profile, phase, high) <= row.natural_w


@given(any_profile, tokens, tokens)
def test_loads_rise_with_work_and_end_at_one(profile: Profile, n: int, m: int) -> None:
    few, many = sorted((n, m))
    for load in (law.prefill_load, law.decode_load):
        assert 0 <= load(profile, few) <= load(profile, many) <= 1
        assert load(profile, 0) == 0 < load(profile, 1)
        assert load(profile, 100_000) == 1


def test_a_prompts_peak_power_on_an_a100() -> None:
    """Fractions of 400 W at 128, 512 and 1024 tokens."""
    for prompt, share in ((128, 0.69), (512, 0.88), (1024, 1.0)):
        draw_w = law.demand_w(A100, Phase.PREFILL, law.prefill_load(A100, prompt))
        assert draw_w == pytest.approx(share * 400, abs=1)


def test_idle_is_idle() -> None:
    assert law.demand_w(H100, Phase.UNASSIGNED, 1.0) == law.demand_w(H100, Phase.DECODE, 0.0) == H100.idle_w
    assert law.prefill_ms(H100, 0, 350) == law.decode_ms(H100, 0, 1024, 350) == 0.0
    assert law.power_at_clock_w(H100, Phase.PREFILL, 1.0, 0) == 700


def test_bad_questions_get_one_sentence() -> None:
    with pytest.raises(ValueError, match="tokens must be 0 or more"):
        law.prefill_ms(H100, -1, 700)
    with pytest.raises(ValueError, match="batch and context_tokens"):
        law.decode_ms(H100, 1, -1, 700)
    with pytest.raises(ValueError, match=r"load must lie in 0\.\.1"):
        law.demand_w(H100, Phase.DECODE, 1.1)
    with pytest.raises(ProfileError, match="has no timing"):
        law.prefill_ms(replace(H100, timing=None), 10, 700)
    with pytest.raises(ProfileError, match="does not describe phase Decode; add it"):
        law.decode_load(replace(H100, phases=H100.phases[:1]), 1)


def test_one_point_curves_are_constant() -> None:
    known = find(PROFILES, "H100-SXM")
    assert known is not None and known.timing is not None
    flat = replace(known, timing=replace(known.timing, decode_points=((1, 10.0),), kv_ms_per_mtoken=0.0))
    assert law.decode_ms(flat, 1, 1, 700) == law.decode_ms(flat, 500, 9_999, 700) == 10.0
