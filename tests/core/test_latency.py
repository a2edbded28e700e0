"""What is certain of a user's TTFT when the engines' histograms are all that is known."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from splitwatt_core.clusters import Role
from splitwatt_core.serving.latency import LEVELS, SHARES, Ttft, attained, said, ttft_of

BOTH = (Role.PREFILL, Role.DECODE)
MS = st.integers(0, 4000)


def quantile(values: list[int], level: float) -> float:
    """Seconds: the least value that `level` of them do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(round(level * len(ordered), 9)) - 1)] / 1000


def seen(values: list[int]) -> dict[float, float]:
    return {level: quantile(values, level) for level in LEVELS}


@st.composite
def requests(draw: st.DrawFn) -> tuple[list[int], list[int]]:
    """Milliseconds at prefill and at decode of each request: a few slow ones at either, who may or may not be the same."""
    count = draw(st.sampled_from([100, 250, 1000]))
    parts = []
    for _ in BOTH:
        slow, begins = draw(st.integers(0, count // 40)), draw(st.integers(0, count - 1))
        usual, long = draw(MS), draw(MS)
        parts.append([usual + long * ((r - begins) % count < slow) for r in range(count)])
    return parts[0], parts[1]


@given(requests())
def test_the_whole_lies_between_the_bounds_whatever_its_parts_have_to_do_with_each_other(
    both: tuple[list[int], list[int]],
) -> None:
    prefill, decode = both
    whole_ms = round(1000 * quantile([p + d for p, d in zip(prefill, decode, strict=True)], 0.99))
    got = ttft_of({Role.PREFILL: seen(prefill), Role.DECODE: seen(decode)}, handed_on=True)
    assert got is not None and got.at == BOTH
    assert got.least_ms <= whole_ms <= got.most_ms


@given(requests(), st.lists(MS, min_size=1, max_size=400))
def test_what_mixed_engines_answered_is_within_the_bounds_too(both: tuple[list[int], list[int]], alone: list[int]) -> None:
    prefill, decode = both
    whole_ms = round(1000 * quantile([*(p + d for p, d in zip(prefill, decode, strict=True)), *alone], 0.99))
    got = ttft_of({Role.PREFILL: seen(prefill), Role.DECODE: seen(decode), Role.MIXED: seen(alone)}, handed_on=True)
    assert got is not None and got.at == (*BOTH, Role.MIXED)
    assert got.least_ms <= whole_ms <= got.most_ms
    unsplit = ttft_of({Role.MIXED: seen(alone)}, handed_on=True)
    alone_ms = round(1000 * quantile(alone, 0.99))
    assert unsplit == Ttft(alone_ms, alone_ms, (Role.MIXED,)) and "at mixed engines" in said(1, unsplit)
    assert ttft_of({Role.PREFILL: seen(prefill), Role.MIXED: seen(alone)}, handed_on=True) is None, "decode's part is missing"


@given(requests(), st.lists(st.booleans(), min_size=100, max_size=100))
def test_where_decode_reads_some_prompts_itself_prefills_part_is_no_lower_bound(
    both: tuple[list[int], list[int]], read_by_prefill: list[bool]
) -> None:
    prefill, decode = both
    came = [read_by_prefill[at % 100] for at in range(len(decode))]
    if not any(came):
        return
    whole = [p * c + d for p, d, c in zip(prefill, decode, came, strict=True)]
    at_prefill = [p for p, c in zip(prefill, came, strict=True) if c]
    got = ttft_of({Role.PREFILL: seen(at_prefill), Role.DECODE: seen(decode)}, handed_on=False)
    assert got is not None and got.least_ms <= round(1000 * quantile(whole, 0.99)) <= got.most_ms


def test_the_sum_of_two_99th_percentiles_would_be_no_bound() -> None:
    prefill = [1000 * (r < 9) for r in range(1000)]
    decode = [1000 * (r >= 991) for r in range(1000)]
    assert quantile(prefill, 0.99) == quantile(decode, 0.99) == 0.0
    assert quantile([p + d for p, d in zip(prefill, decode, strict=True)], 0.99) == 1.0
    assert ttft_of({Role.PREFILL: seen(prefill), Role.DECODE: seen(decode)}, handed_on=True) == Ttft(0, 1000, BOTH)


def test_every_share_leaves_one_percent() -> None:
    for prefill, decode in SHARES:
        assert (1 - prefill) + (1 - decode) == pytest.approx(0.01)


@given(MS, MS)
def test_what_every_request_waits_at_decode_is_in_it(prefill_ms: int, decode_ms: int) -> None:
    """A KV link of 2 s cannot hide behind a quick prefill."""
    parts = {Role.PREFILL: seen([prefill_ms]), Role.DECODE: seen([decode_ms])}
    got = ttft_of(parts, handed_on=True)
    assert got is not None and got.least_ms == max(prefill_ms, decode_ms) and got.most_ms == prefill_ms + decode_ms
    for limit_ms in (1, prefill_ms, decode_ms, prefill_ms + decode_ms, 8001):
        kept = attained(limit_ms, got)
        assert kept in ((True,) if prefill_ms + decode_ms <= limit_ms else (False, None))
        assert (kept is False) == (decode_ms > limit_ms or prefill_ms > limit_ms)
        assert f" of {limit_ms} ms (" in said(limit_ms, got)


def test_a_part_that_is_missing_is_never_taken_for_no_time() -> None:
    some, partial = seen([10]), {0.99: 0.01}
    for parts in (
        {},
        {Role.PREFILL: some},
        {Role.PREFILL: partial, Role.DECODE: some},
        {Role.PREFILL: some, Role.DECODE: partial},
    ):
        for handed_on in (True, False):
            assert ttft_of(parts, handed_on=handed_on) is None
    assert ttft_of({Role.DECODE: some}, handed_on=True) is None, "prefill is not scraped"
    assert ttft_of({Role.DECODE: some}, handed_on=False) == Ttft(10, 10, (Role.DECODE,))
    assert attained(5, None) is None and "unknown" in said(5, None)


def test_slow_prompts_of_a_few_are_not_slow_for_one_in_a_hundred() -> None:
    """Eight of the 500 that prefill read were slow, of 1000 requests in all."""
    got = ttft_of({Role.PREFILL: seen([10] * 492 + [2000] * 8), Role.DECODE: seen([20] * 1000)}, handed_on=False)
    assert got is not None and got.least_ms == 20
