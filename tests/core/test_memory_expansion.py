"""More memory for decode: the worked numbers, and what holds for every rank and load."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from splitwatt_core.memory.decode import (
    BANDWIDTH_SHARE,
    DecodeLoad,
    Link,
    MemoryPlanError,
    Rank,
    best_offload_bytes,
    fullest_step,
    prefix_times_s,
    requests_that_fit,
    step_of,
    with_kv,
    with_weights,
)
from splitwatt_core.memory.expansion import (
    CODED_WEIGHTS_SHARE,
    LOSSLESS_KV_RATIO,
    MIN_GAIN,
    MemoryOption,
    MemoryWay,
    Terms,
    Verdict,
    cpu_offload_refusal,
    gpus_needed,
    gpus_within,
    layers_to_offload,
    options,
    recommended,
)
from support.sizes import EXAMPLES

H100 = Rank(memory_bytes=80e9, memory_bytes_per_s=3.35e12, link_bytes_per_s=55e9, flops_per_s=989e12, tdp_w=700)
GH200 = Rank(memory_bytes=96e9, memory_bytes_per_s=4.0e12, link_bytes_per_s=377e9, flops_per_s=989e12, tdp_w=900)
LLAMA_8B = DecodeLoad(weights_bytes=16.06e9, kv_bytes_per_token=131_072, layers=32, parameters=8.03e9, context_tokens=2048)
LLAMA_70B_OF_4 = DecodeLoad(
    weights_bytes=141.1e9 / 4, kv_bytes_per_token=81_920, layers=80, parameters=70.55e9 / 4, context_tokens=2048
)


def by_way(rank: Rank, load: DecodeLoad = LLAMA_8B, **terms: object) -> dict[MemoryWay, MemoryOption]:
    return {one.way: one for one in options(rank, load, Terms(cap_w=450, **terms))}  # type: ignore[arg-type]


def test_h100_base_and_fp8_kv() -> None:
    base = fullest_step(H100, LLAMA_8B)
    assert (base.requests, round(base.step_s * 1e3, 1), round(base.tokens_per_s)) == (203, 26.3, 7711)
    fp8 = by_way(H100, lossy_kv=True)[MemoryWay.FP8_KV]
    assert (fp8.best.requests, round(fp8.best.tokens_per_s), round(fp8.gain, 3)) == (406, 15_422, 1.0)
    assert fp8.verdict is Verdict.TAKE
    assert by_way(H100)[MemoryWay.FP8_KV].verdict is Verdict.NEEDS_CONSENT


@pytest.mark.parametrize(
    ("rank", "offloaded", "link", "expected"),
    [
        (H100, 1e9, Link.AHEAD, (206, 7_847, 0.018)),
        (H100, 1e9, Link.SERIAL, (206, 4_636, -0.40)),
        (H100, 4e9, Link.AHEAD, (218, 2_998, -0.61)),
        (GH200, 8e9, Link.AHEAD, (287, 10_792, 0.115)),
        (GH200, 12e9, Link.AHEAD, (302, 9_488, -0.02)),
        (GH200, 8e9, Link.SERIAL, (287, 6_002, -0.38)),
    ],
)
def test_offloaded_weights(rank: Rank, offloaded: float, link: Link, expected: tuple[int, int, float]) -> None:
    requests, tokens_per_s, gain = expected
    step = fullest_step(rank, LLAMA_8B, offloaded_bytes=offloaded, link=link)
    assert (step.requests, round(step.tokens_per_s)) == (requests, tokens_per_s)
    assert step.tokens_per_s / fullest_step(rank, LLAMA_8B).tokens_per_s - 1 == pytest.approx(gain, abs=0.005)


def test_gh200_has_an_optimum_and_pcie_says_no() -> None:
    base = fullest_step(GH200, LLAMA_8B)
    assert (base.requests, round(base.step_s * 1e3, 1), round(base.tokens_per_s)) == (258, 26.7, 9_677)
    assert 7e9 <= best_offload_bytes(GH200, LLAMA_8B) <= 10.5e9
    ahead = by_way(GH200)[MemoryWay.PREFETCH]
    assert ahead.verdict is Verdict.TAKE and 0.09 <= ahead.gain <= 0.14
    assert ahead.worst.tokens_per_s < base.tokens_per_s < ahead.best.tokens_per_s
    little = by_way(H100)[MemoryWay.PREFETCH]
    assert little.verdict is Verdict.GAIN_TOO_SMALL and 0 < little.gain < MIN_GAIN


def test_coded_weights_and_caches_are_said_and_not_recommended() -> None:
    coded = fullest_step(H100, with_weights(LLAMA_8B, CODED_WEIGHTS_SHARE))
    assert (coded.requests, round(coded.tokens_per_s)) == (222, 8_445)
    kv = fullest_step(H100, with_kv(LLAMA_8B, LOSSLESS_KV_RATIO))
    assert (kv.requests, round(kv.tokens_per_s)) == (270, 10_276)
    found = by_way(H100)
    assert {found[way].verdict for way in (MemoryWay.CODED_WEIGHTS, MemoryWay.CODED_KV)} == {Verdict.NO_ENGINE}
    assert by_way(H100, LLAMA_70B_OF_4)[MemoryWay.CODED_WEIGHTS].gain == pytest.approx(0.32, abs=0.005)
    assert recommended(list(found.values())).way is MemoryWay.NONE


def test_a_prefix_is_reloaded_13_times_faster_than_computed() -> None:
    reload_s, compute_s = prefix_times_s(H100, LLAMA_8B, 4096)
    assert (round(reload_s * 1e3, 1), round(compute_s * 1e3)) == (9.8, 133)
    assert compute_s / reload_s == pytest.approx(13.6, abs=0.05)
    assert by_way(H100)[MemoryWay.HOST_KV].verdict is Verdict.REUSE_ONLY


H200 = Rank(memory_bytes=141e9, memory_bytes_per_s=4.8e12, link_bytes_per_s=55e9, flops_per_s=989e12, tdp_w=700)
STALE = DecodeLoad(
    weights_bytes=510e9 / 8, layers=61, parameters=20e9, context_tokens=4096, max_requests=64,
    kv_bytes_per_token=(26.3e-3 * BANDWIDTH_SHARE * 4.8e12 - 510e9 / 8) / 64 / 4096,
)  # fmt: skip
"""vLLM issue 57771: 510 GB on 8 GPUs, 64 requests, a step of 26.3 ms; the KV cache is what that step leaves for it."""


def test_a_stale_cpu_offload_is_refused_with_the_factor_it_had() -> None:
    """35 GB of each GPU's weights stayed on the host: 2434 tokens/s became 120, 20 times fewer."""
    assert fullest_step(H200, STALE).step_s == pytest.approx(26.3e-3)
    refused = cpu_offload_refusal(H200, STALE, 35e9, links=(55e9, 63e9))
    assert refused is not None and refused.reason == "WeightsFit"
    assert 18 <= refused.factor[0] < refused.factor[1] <= 26
    assert "22 to 25 times as long" in refused.message
    assert cpu_offload_refusal(H200, STALE, 0, links=(55e9, 63e9)) is None
    too_large = replace(STALE, weights_bytes=200e9)
    assert cpu_offload_refusal(H200, too_large, 80e9, links=(55e9, 63e9)) is None


def test_energy_of_a_token_and_gpus_under_a_budget() -> None:
    found = by_way(H100, lossy_kv=True)
    assert found[MemoryWay.NONE].joules_per_token == pytest.approx((0.0584, 0.0584), abs=1e-4)
    assert found[MemoryWay.FP8_KV].joules_per_token == pytest.approx((0.0292, 0.0292), abs=1e-4)
    assert gpus_within(10_000, 450) == 22
    assert (gpus_needed(100_000, found[MemoryWay.NONE]), gpus_needed(100_000, found[MemoryWay.FP8_KV])) == (13, 7)


def test_a_pool_that_waits_for_its_link_gives_watts() -> None:
    slow = replace(GH200, link_bytes_per_s=1e9)
    step = fullest_step(slow, LLAMA_8B, offloaded_bytes=8e9)
    assert step.bound == "link"
    assert not any(one.gives_watts for one in options(GH200, LLAMA_8B, Terms(cap_w=900)))


def test_layers_go_in_equal_groups() -> None:
    assert layers_to_offload(32, 0.436e9, 9.03e9) == (2, 16)
    assert layers_to_offload(32, 0.436e9, 1.3e9) == (11, 2)
    assert layers_to_offload(32, 0.436e9, 0.4e9) == (0, 0)


def test_experts_that_no_request_touches_are_not_read() -> None:
    experts = replace(LLAMA_8B, experts=64, experts_per_token=2)
    assert experts.touched(1) == 1 / 32 and experts.touched(400) > 0.99
    assert step_of(H100, experts, 1).step_s < step_of(H100, LLAMA_8B, 1).step_s


def test_what_cannot_be_planned_is_said() -> None:
    with pytest.raises(MemoryPlanError, match="not one request of 2048 tokens fits"):
        options(H100, replace(LLAMA_8B, weights_bytes=80e9), Terms(cap_w=700))
    with pytest.raises(MemoryPlanError, match="not one request"):
        options(H100, replace(LLAMA_8B, step_limit_s=0.001), Terms(cap_w=700))
    with pytest.raises(MemoryPlanError, match="cannot be offloaded"):
        step_of(H100, LLAMA_8B, 1, offloaded_bytes=20e9)
    with pytest.raises(MemoryPlanError, match="tdp_w must be a number above 0"):
        replace(H100, tdp_w=0)
    with pytest.raises(MemoryPlanError, match="context_tokens must be"):
        replace(LLAMA_8B, context_tokens=0)
    with pytest.raises(MemoryPlanError, match="experts per token"):
        replace(LLAMA_8B, experts_per_token=2)
    with pytest.raises(MemoryPlanError, match="never speeds up"):
        Terms(cap_w=700, slower=0.9)
    with pytest.raises(MemoryPlanError, match="more than 0 W"):
        gpus_within(1000, 0)


LOADS = st.builds(
    DecodeLoad,
    weights_bytes=st.floats(1e9, 60e9), kv_bytes_per_token=st.floats(1e4, 1e6), layers=st.integers(8, 100),
    parameters=st.floats(1e9, 80e9), context_tokens=st.integers(128, 32_768),
    step_limit_s=st.none() | st.floats(0.01, 0.2), max_requests=st.none() | st.integers(1, 512),
)  # fmt: skip
RANKS = st.builds(
    Rank,
    memory_bytes=st.floats(40e9, 200e9), memory_bytes_per_s=st.floats(1e12, 8e12), link_bytes_per_s=st.floats(10e9, 900e9),
    flops_per_s=st.floats(2e14, 2e15), tdp_w=st.floats(300, 1200),
)  # fmt: skip


@settings(max_examples=EXAMPLES, deadline=None)
@given(RANKS, LOADS, st.floats(1.0, 2.0), st.floats(100, 1000))
def test_what_holds_for_every_rank_and_load(rank: Rank, load: DecodeLoad, slower: float, cap_w: float) -> None:
    assume(fullest_step(rank, load, slower=slower).requests > 0)
    found = options(rank, load, Terms(cap_w=cap_w, slower=slower, lossy_kv=True))
    assert [one.way for one in found] == list(MemoryWay)
    base = found[0]
    for one in found:
        assert one.worst.tokens_per_s <= one.best.tokens_per_s
        low, high = one.joules_per_token
        assert 0 < low <= high or one.best.requests == 0
        if load.step_limit_s is not None:
            assert one.best.requests == 0 or one.best.step_s <= load.step_limit_s * (1 + 1e-12)
        if one.verdict is Verdict.TAKE:
            assert one.gain >= MIN_GAIN
    assert recommended(found).best.tokens_per_s >= base.best.tokens_per_s
    faster = fullest_step(rank, load)
    assert faster.tokens_per_s >= base.best.tokens_per_s * (1 - 1e-12)
    assert requests_that_fit(rank, load, load.weights_bytes) >= requests_that_fit(rank, load)
