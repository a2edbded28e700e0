"""Tables of iteration times: how they are read, what the built-in ones hold, and the size of the reference's unit slip."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from splitwatt_core.gpus import hardware
from splitwatt_core.gpus.hardware import ModelShape
from splitwatt_sim.servers import tables
from splitwatt_sim.servers.tables import (
    DecodeModel,
    Points,
    ServerTable,
    TableError,
    Tables,
    builtin,
    lookup_s,
    read_splitwise_csv,
)
from support.some import some

HEADER = "model,hardware,prompt_size,batch_size,token_size,peak_power,prompt_time,token_time,tensor_parallel\n"
PREFILL = ((100, 1.0), (200, 3.0))
DECODE = ((1, 0.5), (4, 0.8), (8, 1.0))

PUBLISHED_TOKEN_MS = {
    ("bloom-176b", "A100"): (49.3, 53.0, 57.3, 65.4, 96.6),
    ("bloom-176b", "H100"): (36.2, 38.1, 40.6, 45.8, 63.8),
    ("llama2-70b", "A100"): (45.0, 46.5, 50.4, 53.0, 71.6),
    ("llama2-70b", "H100"): (30.6, 32.5, 34.2, 38.6, 50.2),
}
"""Measured time of one decode step at these batches, Mutinifni/splitwise-sim."""
BATCHES = (1, 8, 16, 32, 64)


def imported(text: str, *, tensor_parallel: int = 8) -> dict[tuple[str, str], ServerTable]:
    got = read_splitwise_csv((HEADER + text).splitlines(), name="perf.csv", tensor_parallel=tensor_parallel)
    return {(table.model, table.kind): table for table in got}


def test_a_table_is_linear_between_its_points_and_exact_at_them() -> None:
    got = lookup_s(DECODE, 9)
    assert [got[1], got[4], got[8]] == [0.5, 0.8, 1.0]
    assert [got[2], got[3], got[6]] == pytest.approx([0.6, 0.7, 0.9], rel=1e-12)


def test_beyond_both_ends_the_last_segment_goes_on() -> None:
    got = lookup_s(PREFILL, 301)
    assert [got[0], got[50], got[99]] == pytest.approx([-1.0, 0.0, 0.98], abs=1e-12)
    assert [got[201], got[300]] == pytest.approx([3.02, 5.0], rel=1e-12)
    assert len(got) == 301


def test_decode_is_asked_by_sequences_unless_the_slipped_model_is_wanted() -> None:
    table = ServerTable("A100", "m", PREFILL, DECODE, ((128, 0.4), (256, 0.5)))
    assert table.decode_points(DecodeModel.BATCH) == DECODE
    assert table.decode_points(DecodeModel.SPLITWISE_2023) == ((128, 0.4), (256, 0.5))


def test_a_server_without_a_slipped_table_says_which_model_to_use() -> None:
    with pytest.raises(TableError, match=r"^B200 has no table for decode model splitwise-2023; use --decode-model batch$"):
        ServerTable("B200", "m", PREFILL, DECODE).decode_points(DecodeModel.SPLITWISE_2023)


@pytest.mark.parametrize(
    ("points", "sentence"),
    [
        (((1, 0.1),), "needs at least two points with rising keys from 1, not [1]"),
        (((2, 0.1), (1, 0.2)), "needs at least two points with rising keys from 1, not [2, 1]"),
        (((1, 0.1), (1, 0.2)), "needs at least two points with rising keys from 1, not [1, 1]"),
        (((0, 0.1), (1, 0.2)), "needs at least two points with rising keys from 1, not [0, 1]"),
        (((1, 0.1), (2, 0.0)), "must hold finite times above 0 s"),
        (((1, math.nan), (2, 0.1)), "must hold finite times above 0 s"),
        (((1, 0.1), (2, math.inf)), "must hold finite times above 0 s"),
    ],
)
@pytest.mark.parametrize("column", ["prefill_s", "decode_s"])
def test_a_table_that_cannot_be_read_is_refused_by_its_name(points: Points, sentence: str, column: str) -> None:
    good = {"prefill_s": PREFILL, "decode_s": DECODE}
    with pytest.raises(TableError) as error:
        ServerTable("A100", "m", **(good | {column: points}))
    assert str(error.value) == f"table of m on A100: {column} {sentence}"


def test_an_unknown_server_or_model_is_answered_with_what_there_is() -> None:
    have = Tables(
        {"m": ModelShape("m", 1, 1, 1, 1, 2, 0), "n": ModelShape("n", 1, 1, 1, 1, 2, 0)},
        {("m", kind): ServerTable(kind, "m", PREFILL, DECODE) for kind in ("H100", "A100")},
    )
    assert have.server("m", "A100").kind == "A100"
    with pytest.raises(TableError, match=r"^there is no table of m on B200; tables of this model: A100, H100$"):
        have.server("m", "B200")
    with pytest.raises(TableError, match=r"^there is no table of n; models with tables: m$"):
        have.server("n", "A100")
    with pytest.raises(TableError, match=r"^model gpt is not known; choose one of m, n$"):
        have.shape("gpt")


def test_the_importer_takes_medians_over_equal_keys() -> None:
    rows = [
        # Two ways to 512 tokens; batches 1, 1, 1, 4.
        "m,a100-80gb,512,1,128,1.0,100,10,8",
        "m,a100-80gb,512,1,256,1.0,130,30,8",
        "m,a100-80gb,128,4,128,1.0,400,50,8",
        "m,a100-80gb,1024,1,128,1.0,200,20,8",
        # Others: a capped server, one of an unknown name, and one that another tensor parallelism measured.
        "m,h100-80gb-pcap,512,1,128,1.0,10,1,8",
        "m,h100-80gb-pcap,512,2,128,1.0,20,2,8",
        "m,mi300,1,1,128,1.0,10,1,8",
        "m,mi300,2,2,128,1.0,20,2,8",
        "m,a100-80gb,512,1,128,1.0,9999,9999,4",
    ]
    got = imported("\n".join(rows))
    assert sorted(got) == [("m", "A100"), ("m", "H100-capped"), ("m", "mi300")]
    table = got["m", "A100"]
    assert table.prefill_s == ((512, 0.130), (1024, 0.200))
    assert table.decode_s == ((1, 0.020), (4, 0.050))
    assert table.slipped_s == ((512, 0.030), (1024, 0.020))


def test_the_importer_takes_the_tensor_parallelism_asked_for() -> None:
    rows = "m,a100-80gb,512,1,1,1,10,1,8\nm,a100-80gb,512,1,1,1,20,2,4\nm,a100-80gb,512,2,1,1,40,4,4\n"
    got = imported(rows, tensor_parallel=4)
    assert got["m", "A100"].decode_s == ((1, 0.002), (2, 0.004))


def test_a_file_that_is_no_table_is_refused_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TableError, match=r"^t\.csv lacks the columns prompt_time, token_time; its first line must name"):
        read_splitwise_csv([HEADER.replace("prompt_time,token_time,", "")], name="t.csv")
    with pytest.raises(TableError, match=r"^t\.csv lacks the columns model, hardware, "):
        read_splitwise_csv([], name="t.csv")
    with pytest.raises(TableError, match=r"^perf\.csv line 3: .*'many'"):
        imported("m,a100-80gb,512,1,1,1,10,1,8\nm,a100-80gb,512,many,1,1,10,1,8\n")
    with pytest.raises(TableError, match=r"^perf\.csv line 2: "):
        imported("m,a100-80gb,512\n")
    with pytest.raises(TableError, match=r"^perf\.csv has no rows with tensor_parallel 2$"):
        imported("m,a100-80gb,512,1,1,1,10,1,8\n", tensor_parallel=2)
    with pytest.raises(TableError, match=r"table of m on A100: prefill_s needs at least two points"):
        imported("m,a100-80gb,512,1,1,1,10,1,8\n")
    monkeypatch.setattr(tables, "MAX_ROWS", 2)
    with pytest.raises(TableError, match=r"^perf\.csv has more than 2 rows; keep those of the servers that are needed$"):
        imported("m,a100-80gb,512,1,1,1,10,1,8\n" * 3)


def test_keys_and_values_of_all_heads_are_counted_as_the_reference_does_and_shared_ones_when_asked() -> None:
    bloom, llama = builtin().shape("bloom-176b"), builtin().shape("llama2-70b")
    assert bloom.kv_bytes_per_token(grouped=False) == bloom.kv_bytes_per_token(grouped=True) == 2 * 14336 * 70 * 2
    assert llama.kv_bytes_per_token(grouped=False) == 2 * 8192 * 80 * 2
    assert llama.kv_bytes_per_token(grouped=True) == 2 * 8192 * 80 * 2 // 8  # 8 of 64 heads


@pytest.mark.parametrize(("model", "kind"), PUBLISHED_TOKEN_MS)
def test_built_in_decode_times_are_the_measured_ones(model: str, kind: str) -> None:
    got_ms = 1e3 * lookup_s(builtin().server(model, kind).decode_s, 65)
    assert got_ms[list(BATCHES)] == pytest.approx(PUBLISHED_TOKEN_MS[model, kind], rel=0.03)


@pytest.mark.parametrize("model", ["bloom-176b", "llama2-70b"])
def test_a_capped_h100_prefills_slower_by_three_tenths_and_decodes_as_fast(model: str) -> None:
    full, capped = builtin().server(model, "H100"), builtin().server(model, "H100-capped")
    assert [x for x, _ in capped.prefill_s] == [x for x, _ in full.prefill_s]
    assert [s for _, s in capped.prefill_s] == pytest.approx([1.3 * s for _, s in full.prefill_s], rel=1e-9)
    assert (capped.decode_s, capped.slipped_s) == (full.decode_s, full.slipped_s)


def test_shapes_of_2023_are_the_facts_but_for_weights_as_splitwise_sim_counts_them() -> None:
    ours, facts = builtin().shape("bloom-176b"), hardware.builtin().model("bloom-176b")
    assert facts is not None
    assert replace(ours, name=facts.name, weights_bytes=facts.weights_bytes) == facts
    assert ours.weights_bytes == 329e9 and facts.weights_bytes == 352.5e9


def test_the_slip_makes_decode_of_bloom_on_a100_too_fast_by_27_percent_at_batch_32_and_51_at_64() -> None:
    table = builtin().server("bloom-176b", "A100")
    assert table.slipped_s[0][0] == 128  # fitted on prompt tokens times batch: no number of sequences is within it
    measured, asked = lookup_s(table.decode_s, 65), lookup_s(table.slipped_s, 65)
    assert round(100 * (asked[32] / measured[32] - 1)) == -27
    assert round(100 * (asked[64] / measured[64] - 1)) == -51
    assert asked[64] / asked[1] == pytest.approx(1.0, abs=0.001)  # hardly depends on the batch


def test_the_slip_on_h100_is_a_little_smaller() -> None:
    table = builtin().server("bloom-176b", "H100")
    measured, asked = lookup_s(table.decode_s, 65), lookup_s(table.slipped_s, 65)
    assert [round(100 * (asked[n] / measured[n] - 1)) for n in (32, 64)] == [-23, -44]


def test_the_largest_batch_is_the_same_measurement_in_both_tables() -> None:
    # 512 tokens of prompt times 64 sequences: in the slipped table that is the batch of 32,768.
    for (model, kind), table in some(builtin().servers.items()):
        assert table.decode_s[-1][1] == table.slipped_s[-1][1], (model, kind)
        assert (table.decode_s[-1][0], table.slipped_s[-1][0]) == (64, 32768)
