"""Whether a KV cache moved: passed by exact arithmetic alone, and every other way named. Numbers measured on vLLM 0.32."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from splitwatt_core.serving.kv_proof import Circumstances, KvCounters, KvReason, KvVerdict, Looks, block_bytes, judge

PROMPT, BLOCK = 700, 128
BYTES = 786_432
"""6 blocks in each of 2 layers of 64 KiB."""
SAME = Circumstances({"p": "0.32.0", "d": "0.32.0"}, side_channel_port=5600)
BEFORE = KvCounters(
    external_tokens=50, computed_tokens=9, cached_tokens=3, moved_bytes=1 << 20, failed=1, block_tokens=BLOCK
)  # fmt: skip


def look(*, external: int = 0, computed: int = 0, cached: int = 0, moved: int = 0, failed: int = 0) -> Looks:
    after = replace(
        BEFORE, external_tokens=50 + external, computed_tokens=9 + computed, cached_tokens=3 + cached,
        moved_bytes=(1 << 20) + moved, failed=1 + failed,
    )  # fmt: skip
    return Looks(BEFORE, after)


GOOD = look(external=PROMPT, moved=BYTES)
IDLE = look()


def verdict(
    *looks: Looks, status: int = 200, known: int | None = None, around: Circumstances = SAME, prompt: int = PROMPT
) -> KvVerdict:
    named = {f"d{i}": each for i, each in enumerate(looks)}
    return judge(named, status=status, prompt_tokens=prompt, known_block_bytes=known, around=around)


def test_whole_blocks_of_the_whole_prompt_are_the_proof() -> None:
    found = verdict(IDLE, GOOD)
    assert (found.verified, found.reason) == (True, KvReason.VERIFIED)
    assert found.block_bytes == block_bytes(layers=2, layer_block_bytes=64 << 10) == BYTES // 6
    assert found.message == "700 prompt tokens came to decode engine d1 by transfer, in 786432 bytes: 6 blocks of 131072."
    assert verdict(GOOD, known=BYTES // 6).verified is True


def test_bytes_that_are_no_blocks_are_none() -> None:
    for moved in (BYTES - 1, BYTES + 4096, 1):
        assert verdict(look(external=PROMPT, moved=moved)).reason is KvReason.WRONG_BYTES
    found = verdict(GOOD, known=2 * BYTES // 6)
    assert (found.verified, found.reason) == (False, KvReason.WRONG_BYTES)
    assert "786432 bytes were transferred" in found.message and "6 blocks of 262144 bytes" in found.message


def test_prefill_without_a_connector_answers_well_and_moves_nothing() -> None:
    found = verdict(look(computed=PROMPT), around=replace(SAME, unconnected=["p"], closed=["p"]))
    assert (found.verified, found.reason) == (False, KvReason.NO_CONNECTOR), "its side channel is closed for that alone"
    assert found.message.startswith("Prefill engine p shows no counter of a KV connector: it runs without one.")
    assert "computed all 700 prompt tokens itself" in found.message
    unsaid = verdict(look(computed=PROMPT), around=replace(SAME, closed=["q"]))
    assert unsaid.reason is KvReason.NOTHING_MOVED and "The router hands nothing on" in unsaid.message


def test_decode_without_a_connector_shows_no_counter() -> None:
    bare = KvCounters(block_tokens=BLOCK)
    found = verdict(Looks(bare, replace(bare, computed_tokens=PROMPT)))
    assert (found.verified, found.reason) == (False, KvReason.NO_CONNECTOR)


@pytest.mark.parametrize(
    ("looks", "status", "reason"),
    [
        (look(computed=PROMPT, failed=1), 200, KvReason.RECOMPUTED),
        (look(failed=1), 500, KvReason.FAILED),
        (look(failed=1), 0, KvReason.FAILED),
        (look(), 500, KvReason.REFUSED),
        (look(), 0, KvReason.REFUSED),
        (look(external=640, computed=60, moved=BYTES), 200, KvReason.RECOMPUTED),
    ],
)
def test_what_failed_is_said_and_why_where_it_is_known(looks: Looks, status: int, reason: KvReason) -> None:
    prompt = PROMPT if status == 200 else 0  # only a good answer says how many there were
    found = verdict(looks, status=status, prompt=prompt)
    assert (found.verified, found.reason) == (False, reason)
    closed = verdict(looks, status=status, prompt=prompt, around=replace(SAME, closed=["p"]))
    assert (closed.verified, closed.reason) == (False, KvReason.SIDE_CHANNEL)
    assert closed.message == f"Nobody listens at side channel port 5600 of prefill engine p. {found.message}"
    apart = verdict(looks, status=status, prompt=prompt, around=Circumstances({"p": "0.32.0", "d": "0.33.0"}))
    assert (apart.verified, apart.reason) == (False, KvReason.VERSIONS)
    assert "versions 0.32.0 and 0.33.0" in apart.message


def test_a_proof_stands_whatever_the_circumstances() -> None:
    assert verdict(GOOD, around=Circumstances({"p": "1", "d": "2"}, closed=["q"])).verified is True


def test_requests_of_others_leave_it_open() -> None:
    assert verdict(look(external=PROMPT + 10, moved=BYTES)).verified is None
    assert verdict(GOOD, GOOD).verified is None, "which of them was ours"
    assert verdict(look(external=PROMPT - 10, moved=BYTES)).reason is KvReason.NOT_COUNTED
    assert verdict(GOOD, look(external=10_000, moved=5)).verified is True, "another engine's requests are not in the way"
    assert verdict(GOOD, look(external=10, failed=1)).verified is False, "a failed transfer is one, whoever asked"


def test_nothing_that_moves_at_all_is_no_question_of_whose_it_was() -> None:
    found = verdict(look(computed=PROMPT + 10), look(computed=300))
    assert (found.verified, found.reason) == (False, KvReason.NOTHING_MOVED)
    assert found.message.startswith("1010 prompt tokens, the probe's among them")


def test_a_restart_and_a_missing_size_leave_it_open() -> None:
    assert verdict(Looks(BEFORE, KvCounters(external_tokens=PROMPT, moved_bytes=BYTES, failed=0))).reason is KvReason.RESTARTED
    unsaid = Looks(BEFORE, replace(GOOD.after, block_tokens=None))
    assert verdict(unsaid).verified is None


@given(
    external=st.sampled_from([0, 128, 640, 699, 700, 701]),
    computed=st.sampled_from([0, 1, 60, 700]),
    cached=st.sampled_from([0, 60]),
    moved=st.one_of(st.sampled_from([0, BYTES, BYTES - 1, 2 * BYTES]), st.integers(0, 10 * BYTES)),
    failed=st.integers(0, 3),
    status=st.sampled_from([0, 200, 500, 503]),
    known=st.sampled_from([None, BYTES // 6, 1000]),
)
def test_nothing_but_the_arithmetic_passes(
    *, external: int, computed: int, cached: int, moved: int, failed: int, status: int, known: int | None
) -> None:
    found = verdict(
        look(external=external, computed=computed, cached=cached, moved=moved, failed=failed), status=status, known=known
    )
    exact = external == PROMPT and not computed and not cached and moved > 0 and moved % 6 == 0
    right = exact and known in (None, moved // 6) and not failed and status == 200
    assert (found.verified is True) == right
    assert found.message and (found.verified is not True or found.block_bytes == moved // 6)
