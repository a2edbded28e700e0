"""The fleet engine against its plain specification, by scenes computed by hand, and what must hold in every run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from splitwatt_sim.fleet import run as fleet
from splitwatt_sim.fleet.kernel import COMPLETE, run_until
from splitwatt_sim.fleet.plain import run_plain
from splitwatt_sim.fleet.run import FleetError, FleetRun, run_fleet
from splitwatt_sim.fleet.state import (
    DECODE,
    DONE,
    MAX_BATCH_SEQUENCES,
    MAX_BATCH_TOKENS,
    MIXED,
    PREFILL,
    FleetArrays,
    Pool,
    ServerKind,
)
from splitwatt_sim.traces.arrivals import Arrivals
from support.fleet_scenes import (
    EXACT,
    HAND_OFFS,
    ROUND,
    ROWS,
    SEED_ROWS,
    SHAPES,
    SPARE,
    UNEVEN,
    Row,
    arrivals,
    felt,
    fitted,
    pools_of,
    started,
)


def unsplit(servers: int = 1, kind: ServerKind = ROUND) -> list[Pool]:
    return [Pool(MIXED, kind, servers)]


def split(prompt: int = 1, decode: int = 1, *, mixed: int = 0, kind: ServerKind = ROUND) -> list[Pool]:
    """Machines count from the prompt machines over the mixed ones to the decode machines."""
    return [Pool(PREFILL, kind, prompt), Pool(DECODE, kind, decode), *([Pool(MIXED, kind, mixed)] if mixed else [])]


def run(pools: list[Pool], rows: list[Row], *, seconds: int = 0) -> FleetRun:
    return run_fleet(pools, arrivals(rows), seconds=seconds)


def state_after(pools: list[Pool], rows: list[Row], *, seconds: int = 0) -> FleetArrays:
    state = started(pools, rows, seconds=seconds)
    assert run_until(state, np.inf) == COMPLETE
    return state


def decoded_at(pools: list[Pool], rows: list[Row]) -> list[int]:
    machines: list[int] = state_after(pools, rows).requests.decode_at.tolist()
    return machines


def s(column: Any) -> list[float]:
    """Milliseconds as seconds; a scene's times are multiples of 1/1024 s."""
    seconds: list[float] = (np.round(column / 1e3 * 2**30) / 2**30).tolist()
    return seconds


# One machine, both phases.


def test_a_request_alone_takes_its_prompt_and_a_step_per_further_token() -> None:
    got = run(unsplit(), [(1.0, 512, 5)])
    assert s(got.latencies.ttft_ms) == [0.5]
    assert s(got.latencies.e2e_ms) == [0.5 + 4 * 0.25]
    assert got.latencies.tbt_ms.tolist() == [1000.0 / 5]  # by all five tokens, as published, not by the four gaps
    assert (got.ends_s, got.output_tokens, got.busy) == (2.5, 5, {"mixed": 1.5 / 2.5})
    assert got.energy_j == {"mixed": 1.0 * 100 + 0.5 * 1000 + 1.0 * 500}


def test_a_step_lasts_longer_with_every_token_of_context() -> None:
    got = run(unsplit(kind=replace(ROUND, kv_s=1 / 1024)), [(0.0, 512, 5)])
    contexts = [512 + token for token in (1, 2, 3, 4)]
    assert s(got.latencies.e2e_ms) == [0.5 + 4 * 0.25 + sum(contexts) / 1024]


def test_a_run_with_growing_context_ends_at_the_first_boundary_after_a_guest_has_come() -> None:
    got = run(split(2, kind=replace(ROUND, kv_s=1 / 1024)), [(0.0, 512, 40), (1.0, 1024, 2)])
    boundary, context = 0.5, 513
    while boundary < 2.0:
        boundary, context = boundary + 0.25 + context / 1024, context + 1
    together = boundary + 0.375 + (context + 1025) / 1024
    assert s(got.latencies.e2e_ms[1:]) == [together - 1.0]


def test_a_prompt_waits_for_the_boundary_and_shares_its_iteration_with_the_sequences_for_a_tenth_more() -> None:
    got = run(unsplit(kind=EXACT), [(0.0, 255, 9), (1.0, 1000, 2)])
    prompt_s, mixed_s = 10 * 256 / 2**14, 11 * 1024 / 2**14
    boundary = prompt_s + 4 * 0.25
    assert s(got.latencies.ttft_ms) == [prompt_s, boundary + mixed_s - 1.0]
    # The first has 1 + 4 + 1 tokens by then; one step together, two alone.
    assert s(got.latencies.e2e_ms) == [boundary + mixed_s + 0.375 + 2 * 0.25, boundary + mixed_s + 0.375 - 1.0]


def test_a_prompt_that_comes_in_the_moment_of_a_boundary_is_let_in_there() -> None:
    got = run(unsplit(), [(0.0, 512, 3), (1.0, 512, 1)])
    assert s(got.latencies.ttft_ms) == [0.5, 0.5]


def test_a_mixed_machine_cuts_a_prompt_longer_than_a_batch_and_the_next_one_shares_its_rest() -> None:
    got = run(unsplit(), [(0.0, 3000, 1), (0.5, 100, 1)])
    assert s(got.latencies.ttft_ms) == [3100 / 1024, 3100 / 1024 - 0.5]


def test_the_sequences_of_a_mixed_iteration_take_their_place_in_the_batch() -> None:
    got = run(unsplit(), [(0.0, 512, 9), (0.5, 2048, 1)])
    # 2047 tokens beside one sequence, then one token beside it.
    expected = 0.5 + 1.1 * 2048 / 1024 + 1.1 * 2 / 1024
    assert got.latencies.ttft_ms[1] == pytest.approx(1e3 * (expected - 0.5), rel=1e-12)


def test_a_batch_holds_512_sequences_and_the_others_wait_for_one_to_finish() -> None:
    got = run(unsplit(), [(0.0, 1, 2)] * 600)
    prompts = (1 + 1.1 * 600) / 1024  # the first starts alone, and its second token comes with the prompts of the others
    full = prompts + 513 / 8
    ends = [prompts, *[full] * 512, *[full + 88 / 8] * 87]
    assert got.latencies.e2e_ms.tolist() == pytest.approx([1e3 * end for end in ends], rel=1e-12)


# Split fleets.


def test_a_sequence_joins_at_the_boundary_after_its_cache_has_come() -> None:
    got = run(split(2), [(0.0, 512, 4), (0.125, 512, 3)])
    assert s(got.latencies.ttft_ms) == [0.5, 0.5]
    assert s(got.latencies.e2e_ms) == [0.75 + 2 * 0.375, 0.75 + 2 * 0.375 - 0.125]


def test_a_prompt_machine_takes_whole_prompts_and_the_first_of_any_length() -> None:
    got = run(split(), [(0.0, 4096, 1), (0.5, 1500, 1), (0.5, 500, 1), (0.5, 49, 1)])
    assert s(got.latencies.ttft_ms) == [4.0, 3.5 + 2000 / 1024, 3.5 + 2000 / 1024, 3.5 + 2049 / 1024]


def test_a_link_moves_one_cache_after_the_other_and_every_prompt_machine_has_its_own() -> None:
    serial = replace(ROUND, hand_off_s_per_token=1 / 512, hand_off_fixed_s=0.125)
    rows = [(0.0, 512, 2), (0.0, 512, 2)]
    first = 0.5 + 1.125 + 0.25
    assert s(run(split(1, 2, kind=serial), rows).latencies.e2e_ms) == [first, 0.5 + 2 * 1.125 + 0.25]
    assert s(run(split(2, 2, kind=serial), rows).latencies.e2e_ms) == [first, first]


def test_of_a_long_prompt_only_the_fixed_part_of_its_hand_off_is_left() -> None:
    overlapped = replace(ROUND, hand_off_s_per_token=1 / 512, hand_off_fixed_s=0.125, overlap_from_tokens=512.0)
    pools = split(2, 2, kind=overlapped)
    got = run(pools, [(0.0, 512, 2), (0.0, 511, 2)])
    assert s(got.latencies.e2e_ms) == [0.5 + 0.125 + 0.25, 511 / 1024 + 511 / 512 + 0.125 + 0.25]


def test_a_request_of_one_token_ends_with_its_prompt_whatever_link_and_memory_do() -> None:
    narrow = replace(ROUND, kv_room=600, hand_off_s_per_token=1.0)
    for pools in (split(2, kind=narrow), unsplit(2, kind=narrow)):
        state = state_after(pools, [(0.0, 512, 80), (0.0, 512, 1), (0.6, 512, 1)])
        assert (state.requests.done_s[1:] == state.requests.prompt_end_s[1:]).all()
        assert not state.promised.any()


def test_a_sequence_without_memory_waits_for_one_to_finish_and_nobody_passes_it() -> None:
    got = run(split(2, kind=replace(ROUND, kv_room=1000)), [(0.0, 512, 9), (0.0, 512, 9), (0.125, 128, 2)])
    freed = 0.5 + 8 * 0.25
    assert s(got.latencies.ttft_ms) == [0.5, 0.5, 0.5]
    assert s(got.latencies.e2e_ms) == [freed, freed + 0.375 + 7 * 0.25, freed + 0.375 - 0.125]


def test_a_prompt_goes_to_the_shortest_queue_and_its_sequence_to_the_least_promised_memory() -> None:
    rows = [(0.0, 1000, 2), (0.0, 500, 300), (0.25, 100, 2), (0.25, 100, 2)]
    got = run(split(2, 2), rows)
    assert s(got.latencies.ttft_ms) == [1000 / 1024, 500 / 1024, 700 / 1024 - 0.25, 700 / 1024 - 0.25]
    # Promised: 1002, 800; then 902 and 1002.
    assert decoded_at(split(2, 2), rows) == [2, 3, 3, 3]


def test_the_mixed_pool_takes_a_request_from_a_long_queue_if_its_own_is_the_shorter_one() -> None:
    rows = [(0.0, 4096, 2), (0.1, 4096, 2), (0.2, 1, 2), (0.3, 9000, 2), (0.4, 9000, 2)]
    # 8192 are no long queue, 8193 are one; then 8193 wait there and 2 (one token, one sequence) in the mixed pool.
    assert decoded_at(split(1, 1, mixed=1), rows) == [2, 2, 1, 1, 2]


def test_the_mixed_pool_takes_a_request_without_room_only_while_a_prompt_queue_is_the_longer_one() -> None:
    rows = [(0.0, 512, 488), (0.25, 100, 2), (8.0, 100, 2)]
    assert decoded_at(split(1, 1, mixed=1, kind=replace(ROUND, kv_room=1000)), rows) == [2, 1, 2]
    assert decoded_at(split(1, 1, mixed=1, kind=replace(ROUND, kv_room=1102)), rows) == [2, 2, 2]


def test_a_fleet_without_decode_machines_serves_all_in_its_mixed_pool() -> None:
    pools = [Pool(PREFILL, ROUND, 1), Pool(MIXED, ROUND, 2)]
    assert decoded_at(pools, [(0.0, 512, 2), (0.0, 512, 2), (0.1, 1, 2)]) == [1, 2, 1]


# The same as the specification.


@given(ROWS, SHAPES, SPARE, st.sampled_from([0.0, 1 / 4096]), HAND_OFFS)
@example(SEED_ROWS, (1, 1, 1), 0, 1 / 4096, (1 / 1024, 0.0, np.inf, 0.0))
def test_in_exact_numbers_it_gives_the_very_times_and_energy_of_the_specification(
    rows: list[Row], shape: tuple[int, int, int], spare: int, kv_s: float, hand_off: tuple[float, float, float, float]
) -> None:
    pools = pools_of(shape, fitted(EXACT, rows, spare=spare, kv_s=kv_s, hand_off=hand_off))
    got, want = run(pools, rows), run_plain(pools, arrivals(rows))
    for name, column in felt(want.latencies).items():
        assert felt(got.latencies)[name].tolist() == column.tolist(), name
    assert (got.energy_j, got.ends_s) == (want.energy_j, want.ends_s)


@given(ROWS, SHAPES, SPARE, st.sampled_from([0.0, 1.7e-6]), HAND_OFFS)
@example(SEED_ROWS, (1, 1, 1), 0, 1.7e-6, (1 / 1024, 0.0, np.inf, 0.0))
def test_in_any_numbers_it_agrees_with_the_specification(
    rows: list[Row], shape: tuple[int, int, int], spare: int, kv_s: float, hand_off: tuple[float, float, float, float]
) -> None:
    pools = pools_of(shape, fitted(UNEVEN, rows, spare=spare, kv_s=kv_s, hand_off=hand_off))
    rows = [(0.731 * at_s, prompt, output) for at_s, prompt, output in rows]
    got, want = run(pools, rows), run_plain(pools, arrivals(rows))
    for name, column in felt(want.latencies).items():
        assert felt(got.latencies)[name] == pytest.approx(column, rel=1e-9, abs=1e-9), name
    assert got.energy_j == pytest.approx(want.energy_j, rel=1e-9)


# What must hold in every run.


@given(ROWS, SHAPES, SPARE)
def test_every_request_ends_its_tokens_are_counted_once_and_nothing_is_left_behind(
    rows: list[Row], shape: tuple[int, int, int], spare: int
) -> None:
    state = state_after(pools_of(shape, fitted(UNEVEN, rows, spare=spare, kv_s=0.0, hand_off=(0.0, 0.1, 0.0, 0.0))), rows)
    assert state.counters[DONE] == len(rows)
    assert (state.requests.prompt_end_s > state.requests.arrival_s).all()
    assert (state.requests.done_s >= state.requests.prompt_end_s).all()
    machines = state.machines  # a batch's context is what it was let in with and one token per sequence and step
    for column in (
        state.pending,
        state.promised,
        state.requests.left,
        machines.batch,
        machines.context,
        machines.kv_used,
    ):
        assert not column.any()
    assert not machines.coming.any()
    assert np.isinf(state.next_s).all()


@given(ROWS, SHAPES)
def test_the_recorded_power_adds_up_to_the_energy_and_stays_within_the_tables(
    rows: list[Row], shape: tuple[int, int, int]
) -> None:
    pools = pools_of(shape, UNEVEN)
    got = run(pools, rows)
    seconds = int(got.ends_s) + 1
    recorded = run(pools, rows, seconds=seconds)
    assert recorded.energy_j == got.energy_j
    assert recorded.power_w.sum() == pytest.approx(sum(got.energy_j.values()), rel=1e-6)
    assert recorded.power_w.max() <= max(UNEVEN.prefill_w.max(), UNEVEN.decode_w.max()) + 1e-9
    assert recorded.power_w[:, : seconds - 1].min(initial=np.inf) >= UNEVEN.idle_w - 1e-9


def test_each_second_holds_the_mean_of_what_was_drawn_in_it() -> None:
    got = run(split(), [(1.5, 1024, 5)], seconds=5)
    # Prompt machine: idle, from 1.5 to 2.5 a prompt. Decode machine: from 2.5 to 3.5 a sequence. The run ends there.
    assert got.power_w.tolist() == [[100, 550, 550, 50, 0], [100, 100, 300, 250, 0]]


@given(ROWS, SHAPES, SPARE, st.lists(st.integers(0, 112).map(lambda n: n / 14), min_size=1, max_size=4).map(sorted))
def test_a_run_in_parts_is_the_run_at_once(
    rows: list[Row], shape: tuple[int, int, int], spare: int, stops_s: list[float]
) -> None:
    pools = pools_of(shape, fitted(EXACT, rows, spare=spare, kv_s=1 / 4096, hand_off=(1 / 1024, 0.0, np.inf, 0.0)))
    whole, parts = state_after(pools, rows, seconds=20), started(pools, rows, seconds=20)
    for stop_s in stops_s:
        if stop_s >= whole.requests.done_s.max():
            break  # from then on machines would draw their idle power, which the whole run no longer counts
        assert run_until(parts, stop_s) == COMPLETE
        assert (parts.next_s >= stop_s).all()
    assert run_until(parts, np.inf) == COMPLETE
    for name in ("prompt_end_s", "done_s"):
        assert getattr(parts.requests, name).tolist() == getattr(whole.requests, name).tolist()
    assert parts.machines.energy_j == pytest.approx(whole.machines.energy_j, rel=1e-12)
    assert parts.machines.busy_s == pytest.approx(whole.machines.busy_s, rel=1e-12)
    assert parts.power_w == pytest.approx(whole.power_w, rel=1e-9)


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_tables_changed_between_two_calls_count_from_the_next_boundary_on(factor: float) -> None:
    state = started(split(2), [(0.0, 512, 11), (1.3, 512, 2)], seconds=9)
    assert run_until(state, 1.1) == COMPLETE
    state.decode_s[:] *= factor
    state.decode_w[:] *= factor
    assert run_until(state, np.inf) == COMPLETE
    steps = 0.25 * factor  # two steps by 1.0, and the third, under way then, keeps its quarter of a second
    joined = 1.25 + steps * np.ceil((1.8 - 1.25) / steps)
    alone = round((joined - 1.25) / steps)
    assert state.requests.done_s[1] == joined + 0.375 * factor
    assert state.requests.done_s[0] == joined + 0.375 * factor + (10 - 3 - alone - 1) * steps
    drawn_j = 0.5 * 100 + 0.75 * 500 + (state.requests.done_s[0] - 1.25) * 500 * factor
    assert state.machines.energy_j[2] == drawn_j


# What cannot be served is said in one sentence.


def test_a_request_larger_than_the_memory_of_its_machines_is_refused() -> None:
    small = replace(ROUND, name="small", kv_room=600)
    with pytest.raises(FleetError) as refused:
        run([Pool(PREFILL, small, 1), Pool(DECODE, small, 1)], [(0.0, 512, 88), (0.0, 512, 89)])
    assert str(refused.value) == (
        "a request of 601 tokens does not fit the 600 tokens of KV cache of small: leave it out, or use servers with more memory"
    )
    # A prompt machine keeps no sequence.
    assert run([Pool(PREFILL, small, 1), Pool(DECODE, ROUND, 1)], [(0.0, 512, 89)]).output_tokens == 89


def test_a_run_begins_again_with_more_room_for_those_who_wait_and_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    pools, rows = split(2, kind=replace(ROUND, kv_room=600)), [(i / 8, 512, 20) for i in range(12)]
    want = run(pools, rows)
    monkeypatch.setattr(fleet, "COMING", 1)
    got = run(pools, rows)
    assert got.latencies.e2e_ms.tolist() == want.latencies.e2e_ms.tolist()
    assert got.energy_j == want.energy_j
    monkeypatch.setattr(fleet, "MAX_COMING", 4)
    with pytest.raises(FleetError) as refused:
        run(pools, rows)
    assert str(refused.value) == "over 4 sequences wait for one decode machine: lower the rate or add machines"


@pytest.mark.parametrize("roles", [(PREFILL,), (DECODE,), (PREFILL, PREFILL)])
def test_a_fleet_that_lacks_a_phase_is_refused(roles: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"^a fleet needs prefill and decode machines, or mixed ones$"):
        run([Pool(role, ROUND, 1) for role in roles], [(0.0, 512, 2)])


def test_tables_that_end_before_the_longest_prompt_are_refused() -> None:
    short = replace(ROUND, name="short", prefill_s=ROUND.prefill_s[:4000])
    with pytest.raises(FleetError, match=r"^the tables of short end before the longest prompt; build them for this list$"):
        run(split(kind=short), [(0.0, 4000 - MAX_BATCH_TOKENS - MAX_BATCH_SEQUENCES, 2)])
    assert run(split(kind=short), [(0.0, 4000 - MAX_BATCH_TOKENS - MAX_BATCH_SEQUENCES - 1, 2)]).output_tokens == 2


def test_an_empty_list_is_refused() -> None:
    none = Arrivals(np.zeros(0), np.zeros(0, np.int64), np.zeros(0, np.int64), "none")
    with pytest.raises(FleetError, match="the list holds no request"):
        run_fleet(split(), none)
