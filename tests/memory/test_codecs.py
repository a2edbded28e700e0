"""Codecs of one entry: sizes at once are the scalar encoder's, and what is decoded is what was encoded."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from splitwatt_memory.codecs import bpc, exponent, zvc
from splitwatt_memory.codecs.bits import Bits, CodeError
from splitwatt_memory.codecs.bpc_sizes import BLOCK_ENTRIES, bpc_bits, bpc_sizes
from splitwatt_memory.entries import ENTRY_BYTES
from splitwatt_memory.values import TYPES
from support.sizes import EXAMPLES
from support.some import some

Entries = npt.NDArray[np.uint8]
ENTRIES_OF_A_KIND = 1_500


def kinds() -> dict[str, Entries]:
    """Entries of many shapes, so that each case of the code comes often."""
    rng, n = np.random.default_rng(13), ENTRIES_OF_A_KIND
    normal = rng.normal(size=(n, 32)).astype("<f4")
    found = {
        "noise": rng.integers(0, 256, (n, 128), dtype=np.uint8),
        "normal": normal,
        "sparse": np.where(rng.random((n, 32)) < 0.1, normal, np.float32(0)),
        "small": rng.integers(0, 5, (n, 32)).astype("<u4"),
        "walk": np.cumsum(rng.integers(-3, 4, (n, 32)), axis=1).astype("<i4"),
        "ramp": (rng.integers(-40_000, 40_000, (n, 1)) + np.arange(32) * rng.integers(-9, 9, (n, 1))).astype("<i4"),
        "one bit": (np.uint32(1) << rng.integers(0, 32, (n, 32)).astype("<u4")),
        "halves": rng.normal(size=(n, 64)).astype("<f2"),
    }
    return {name: np.ascontiguousarray(values).view(np.uint8).reshape(-1, ENTRY_BYTES) for name, values in found.items()}


GOLDEN = {
    "zeros": (np.zeros(32, "<u4"), 10),
    "32 x fp32 1.0": (np.ones(32, "<f4"), 40),
    "ramp 0, 4, 8": (np.arange(32, dtype="<u4") * 4, 23),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_vectors(name: str) -> None:
    values, bits = GOLDEN[name]
    entry = values.view(np.uint8)
    assert bpc.encode(entry.tobytes()).length == bits == bpc_bits(entry.reshape(1, -1))[0]


def test_noise_takes_up_to_1089_bits_and_is_then_stored_as_it_is() -> None:
    noise = kinds()["noise"]
    assert bpc_bits(noise).max() == bpc.MAX_BITS == 1089
    assert bpc_sizes(noise).max() == ENTRY_BYTES


def test_each_case_of_the_code_has_its_bits() -> None:
    """Base 0 with one plane of each case; written down by hand from the table."""
    one = np.zeros(32, "<u4")
    one[1:] = 1  # delta 0 is 1: DBX has a single one in plane 0, its lower neighbour is none
    run_of_32, base = "01" + f"{30:05b}", "000"
    assert f"{bpc.encode(one.tobytes()).value:b}".zfill(20) == base + run_of_32 + "00011" + "00000"
    two = np.zeros(32, "<u4")
    two[1], two[2:] = 1, 2  # deltas 0 and 1 are 1
    assert f"{bpc.encode(two.tobytes()).value:b}".zfill(20) == base + run_of_32 + "00010" + "00000"
    ramp = np.arange(32, dtype="<u4") * 4
    assert f"{bpc.encode(ramp.tobytes()).value:b}".zfill(23) == base + "01" + f"{28:05b}" + "00000" + "00001" + "001"


def test_sizes_at_once_are_the_scalar_encoders_and_decoding_undoes_it() -> None:
    looked = 0
    for entries in some(kinds().values()):
        bits, sizes = bpc_bits(entries), bpc_sizes(entries)
        for entry, length, size in zip(entries, bits, sizes, strict=True):
            code = bpc.encode(entry.tobytes())
            assert code.length == length
            assert size == (bpc.size_bytes(code) if entry.any() else 0)
            assert bpc.decode(code) == entry.tobytes()
            looked += 1
    assert looked >= 10_000


def test_blocks_join_without_a_seam() -> None:
    entries = np.concatenate([kinds()["walk"], kinds()["normal"]])
    assert len(entries) > BLOCK_ENTRIES
    assert (bpc_sizes(entries) == [bpc_sizes(np.ascontiguousarray(e[None]))[0] for e in entries]).all()


WORDS = st.one_of(
    st.integers(0, 2**32 - 1), st.sampled_from([0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 7, 8, 127, 128, 32767, 32768])
)  # fmt: skip


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.lists(WORDS, min_size=32, max_size=32), st.integers(0, 31), st.data())
def test_any_entry_comes_back(words: list[int], same: int, data: st.DataObject) -> None:
    words[same:] = [words[same]] * (32 - same)
    entry = np.array(words, "<u4").view(np.uint8)
    code = bpc.encode(entry.tobytes())
    assert bpc.decode(code) == entry.tobytes()
    assert bpc_bits(entry.reshape(1, -1))[0] == code.length <= bpc.MAX_BITS
    width = data.draw(st.sampled_from([1, 2, 4, 8]))
    zeros = zvc.encode(entry.tobytes(), width)
    assert zvc.decode(zeros, width) == entry.tobytes()
    assert zvc.zvc_sizes(entry.reshape(1, -1), width)[0] == (min(zeros.size_bytes, 128) if entry.any() else 0)


@pytest.mark.parametrize("name", [name for name, kind in TYPES.items() if kind.is_float])
def test_exponents_come_back_and_sizes_are_the_scalar_encoders(name: str) -> None:
    kind = TYPES[name]
    looked = 0
    for values in (kinds()["normal"][:200], kinds()["sparse"][:200], kinds()["noise"][:100]):
        code = exponent.code_of(exponent.counted(values, kind), kind)
        sizes = exponent.exponent_sizes(values, code)
        for entry, size in zip(values, sizes, strict=True):
            bits = exponent.encode(entry.tobytes(), code)
            assert bits is not None and exponent.decode(bits, code) == entry.tobytes()
            assert size == (min(bits.size_bytes, ENTRY_BYTES) if entry.any() else 0)
            looked += 1
    assert looked == 500


def test_an_exponent_code_is_as_short_as_huffmans() -> None:
    """Counts 1, 1, 2, 4: lengths 3, 3, 2, 1, by hand."""
    counts = np.zeros(16, np.int64)
    counts[[1, 5, 7, 9]] = 1, 1, 2, 4
    code = exponent.code_of(counts, TYPES["fp8_e4m3"])
    assert [code.lengths[e] for e in (1, 5, 7, 9)] == [3, 3, 2, 1]
    assert {e: f"{word:0{length}b}" for e, (word, length) in code.words.items()} == {9: "0", 7: "10", 1: "110", 5: "111"}


def test_an_entry_with_an_exponent_that_the_code_lacks_is_stored_as_it_is() -> None:
    kind = TYPES["bf16"]
    ones, twos = (np.full(64, bits, "<u2").view(np.uint8).reshape(1, -1) for bits in (0x3F80, 0x4000))
    code = exponent.code_of(exponent.counted(ones, kind), kind)
    assert exponent.encode(twos[0].tobytes(), code) is None
    assert list(exponent.exponent_sizes(np.concatenate([ones, twos]), code)) == [64 * 9 // 8, ENTRY_BYTES]


@pytest.mark.parametrize(
    ("bits", "said"),
    [
        (Bits(0, 3), "the code ends after 3 bits"),
        (Bits(0b000_01_11111 << 1, 11), "1 bits are left"),
        (Bits(0b000_001_01_11111, 13), "goes beyond the last of 33 planes"),
    ],
)
def test_a_code_that_nothing_wrote_is_refused(bits: Bits, said: str) -> None:
    with pytest.raises(CodeError, match=said):
        bpc.decode(bits)
