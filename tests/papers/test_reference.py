"""The reference model by scenes computed by hand, and what must hold in every run.

Tables are round: a prompt of n tokens takes n/1024 s, a step of n sequences (n + 1)/8 s. "light" requests weigh next to
nothing; of "heavy" ones a token takes 1 GiB, so that 512 tokens fill a server and a link moves 200 of them in a second.
"""

from __future__ import annotations

from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from splitwatt_core.gpus.hardware import ModelShape
from splitwatt_papers.reference import run as reference_run
from splitwatt_papers.reference.run import LINK_BYTES_PER_S, MEMORY_BYTES, StuckError, run_reference
from splitwatt_papers.reference.state import MIXED_POOL, TOKEN_POOL
from splitwatt_sim.latencies import Latencies
from splitwatt_sim.servers.designs import Design, parse_design
from splitwatt_sim.servers.tables import GIB, DecodeModel, ServerTable, Tables, builtin
from splitwatt_sim.traces.resample import generated

Row = tuple[float, int, int]  # arrival in seconds, prompt tokens, output tokens

PREFILL = ((1024, 1.0), (2048, 2.0))
DECODE = ((1, 0.25), (2, 0.375))
SLIPPED = ((128, 0.5), (256, 0.5))
SLOW_DECODE = ((1, 0.5), (2, 0.75))
TABLES = Tables(
    {
        "light": ModelShape("light", 1, 1, 1, 1, 2, 0),
        "heavy": ModelShape("heavy", 256, 2**20, 1, 1, 2, 128 * GIB),
    },
    {
        (model, kind): ServerTable(kind, model, PREFILL, decode, SLIPPED)
        for model in ("light", "heavy")
        for kind, decode in (("quick", DECODE), ("slow", SLOW_DECODE))
    },
)


def unsplit(servers: int = 1) -> Design:
    return Design("unsplit", "quick", servers, "quick")


def split(prompt: int = 1, token: int = 1, token_kind: str = "quick") -> Design:
    return Design("split", "quick", prompt, token_kind, token)


def run(design: Design, rows: list[Row], *, model: str = "light", decode: DecodeModel = DecodeModel.BATCH) -> Latencies:
    arrival_s, prompt, output = zip(*rows, strict=True)
    return run_reference(
        design,
        arrival_s=np.array(arrival_s, np.float64),
        prompt=np.array(prompt, np.int64),
        output=np.array(output, np.int64),
        tables=TABLES,
        model=model,
        decode=decode,
    )


def state_after(design: Design, rows: list[Row], *, model: str = "light") -> Any:
    """The model's state at the end of the run, with the machines that each request was given."""
    states = []

    def kept(**given: Any) -> Any:
        states.append(make(**given))
        return states[-1]

    make = reference_run.new_state
    with mock.patch.object(reference_run, "new_state", kept):
        run(design, rows, model=model)
    return states[-1]


def machines(design: Design, rows: list[Row], *, model: str = "light") -> list[tuple[int, int]]:
    """Prompt and token machine of each request; prompt machines are counted first."""
    requests = state_after(design, rows, model=model).requests
    return list(zip(requests.prompt_at.tolist(), requests.token_at.tolist(), strict=True))


def ms(*seconds: float) -> Any:
    """Milliseconds to 0.1 us: a light request's cache moves in less."""
    return pytest.approx([1e3 * s for s in seconds], rel=0, abs=1e-4)


def mixed_s(tokens: int) -> float:
    return 1.1 * tokens / 1024


def test_the_round_tables_are_what_the_scenes_count_on() -> None:
    assert TABLES.shape("heavy").kv_bytes_per_token(grouped=False) == GIB
    assert MEMORY_BYTES - 128 * GIB == 512 * GIB
    assert LINK_BYTES_PER_S == 200 * GIB


# One server, both phases.


def test_a_request_alone_yields_its_first_token_by_the_prompt_and_the_others_one_by_one() -> None:
    got = run(unsplit(), [(1.0, 512, 5)])
    assert got.ttft_ms.tolist() == [500.0]
    assert got.e2e_ms.tolist() == [500.0 + 4 * 250.0]
    assert got.tbt_ms.tolist() == [1000.0 / 5]  # by all five tokens, as published, not by the four gaps


def test_a_request_of_one_token_ends_with_its_prompt() -> None:
    got = run(unsplit(), [(1.0, 512, 1)])
    assert (got.ttft_ms.tolist(), got.e2e_ms.tolist(), got.tbt_ms.tolist()) == ([500.0], [500.0], [0.0])


def test_a_request_of_one_token_does_not_turn_back_time_when_a_prompt_waits_behind_it() -> None:
    got = run(unsplit(), [(0.0, 512, 1), (0.25, 512, 5)])
    first_end, mixed_end = 0.5, 0.5 + mixed_s(513)
    assert got.ttft_ms == ms(first_end, mixed_end - 0.25)
    assert 1e3 * first_end <= got.e2e_ms[0] <= 1e3 * mixed_end
    assert got.e2e_ms[1] == pytest.approx(1e3 * (mixed_end - 0.25 + 4 * 0.25))


def test_the_slipped_model_asks_its_own_table_with_the_number_of_sequences() -> None:
    got = run(unsplit(), [(0.0, 512, 5)], decode=DecodeModel.SPLITWISE_2023)
    assert got.e2e_ms.tolist() == [500.0 + 4 * 500.0]


def test_a_prompt_cuts_a_run_of_sequences_at_the_next_boundary_and_both_share_a_mixed_batch() -> None:
    got = run(unsplit(), [(0.0, 512, 10), (0.8, 256, 2)])
    cut = 1.0  # two whole steps after 0.5; at 0.8 the second was under way
    prompt_end = cut + mixed_s(256 + 1)
    short_end = prompt_end + 0.375  # one step of both
    long_end = short_end + 5 * 0.25  # 9 tokens, of which 2 before the cut, 1 in the mixed batch, 1 together
    assert got.ttft_ms == ms(0.5, prompt_end - 0.8)
    assert got.e2e_ms == ms(long_end, short_end - 0.8)


def test_a_prompt_that_arrives_as_the_last_sequence_ends_does_not_make_it_yield_another_token() -> None:
    got = run(unsplit(), [(0.0, 512, 5), (1.5, 512, 5)])
    assert got.ttft_ms == ms(0.5, 0.5)
    assert got.e2e_ms == ms(1.5, 1.5)


def test_a_mixed_batch_costs_a_tenth_more_than_a_prompt_of_all_its_tokens() -> None:
    got = run(unsplit(), [(0.0, 512, 20), (0.6, 512, 20), (0.7, 512, 20), (3.0, 1024, 20)])
    # 0.6 cuts at 0.75, where the prompt of 0.7 has arrived too; both run beside one sequence, the last beside three.
    pair_end = 0.75 + mixed_s(1024 + 1)
    steps = int((3.0 - pair_end) / 0.5) + 1  # of three sequences, 0.5 s each
    last_end = pair_end + steps * 0.5 + mixed_s(1024 + 3)
    assert got.ttft_ms == ms(0.5, pair_end - 0.6, pair_end - 0.7, last_end - 3.0)


def test_a_prompt_that_needs_the_whole_batch_preempts_sequences_and_they_come_back_after_it() -> None:
    got = run(unsplit(), [(0.0, 512, 5), (0.6, 2048, 2)])
    prompt_end = 0.75 + 2.0  # alone in its batch: no tenth
    pair_end = prompt_end + 0.375
    assert got.ttft_ms == ms(0.5, prompt_end - 0.6)
    assert got.e2e_ms == ms(pair_end + 2 * 0.25, pair_end - 0.6)


def test_a_prompt_larger_than_a_batch_preempts_too_for_its_own_sequence_arrives_with_it_and_finds_room() -> None:
    got = run(unsplit(), [(0.0, 512, 5), (0.6, 2049, 2)])
    prompt_end = 0.75 + 2049 / 1024
    assert got.ttft_ms == ms(0.5, prompt_end - 0.6)
    assert got.e2e_ms == ms(prompt_end + 0.375 + 2 * 0.25, prompt_end + 0.375 - 0.6)


def test_a_sequence_passed_over_four_times_goes_before_the_prompts() -> None:
    prompts = [(0.6 + 0.01 * i, 2048, 2) for i in range(5)]
    got = run(unsplit(), [(0.0, 512, 3), *prompts])
    fourth_prompt_end = 0.75 + 4 * 2.0
    all_five = fourth_prompt_end + 0.75  # its last token, with the four sequences that wait by then
    assert got.e2e_ms[:5] == ms(all_five, *(all_five - at_s for at_s, _, _ in prompts[:4]))
    assert got.ttft_ms[5] == pytest.approx(1e3 * (all_five + 2.0 - 0.64))


def test_a_batch_holds_512_tasks_and_prompts_come_before_sequences() -> None:
    got = run(unsplit(), [(0.0, 1, 2)] * 600)
    full = 1 / 1024 + 512 / 1024
    rest = full + mixed_s(512)  # 87 prompts, and sequences up to 512
    assert got.ttft_ms == ms(*[1 / 1024], *[full] * 512, *[rest] * 87)


def test_a_prompt_waits_until_its_cache_fits() -> None:
    got = run(unsplit(), [(0.0, 256, 56), (0.1, 256, 2)], model="heavy")
    first_end = 0.25 + 55 * 0.25
    assert got.e2e_ms == ms(first_end, first_end + 0.25 + 0.25 - 0.1)


def test_two_prompts_that_fill_a_server_leave_no_room_for_their_tokens_and_that_is_said() -> None:
    with pytest.raises(StuckError, match=r"^2 requests of 2 can never run on unsplit:1: shorten them or add machines$"):
        run(unsplit(), [(0.0, 256, 56), (0.1, 254, 2)], model="heavy")


@pytest.mark.parametrize("row", [(0.0, 512, 2), (0.0, 400, 114)])
@pytest.mark.parametrize("design", [unsplit(), unsplit(3), split(), split(2, 2)], ids=str)
def test_a_request_that_fits_no_server_is_said_to_be_stuck(design: Design, row: Row) -> None:
    with pytest.raises(StuckError, match="1 requests of 2 can never run"):
        run(design, [(0.0, 16, 2), (60.0, *row[1:])], model="heavy")


def test_an_unsplit_cluster_gives_a_request_to_the_server_with_the_fewest_pending_tokens() -> None:
    rows = [(0.0, 100, 9), (0.0, 50, 9), (0.01, 30, 9), (0.02, 40, 9), (5.0, 9, 9), (5.0, 9, 9)]
    # 101 against 0; 101 against 51; 101 against 82; then both are empty, and the first of equals is taken.
    assert machines(unsplit(2), rows) == [(0, 0), (1, 1), (1, 1), (1, 1), (0, 0), (1, 1)]


# Split designs.


def test_prompts_that_wait_together_run_together() -> None:
    got = run(split(), [(0.0, 1024, 2), (0.25, 256, 2), (0.5, 512, 2)])
    assert got.ttft_ms == ms(1.0, 1.75 - 0.25, 1.75 - 0.5)


@pytest.mark.parametrize(("third", "together"), [(548, True), (549, False)])
def test_prompts_beyond_2048_tokens_wait_and_so_does_whoever_is_behind_them(third: int, together: bool) -> None:
    got = run(split(), [(0.0, 1024, 2), (0.1, 1500, 2), (0.2, third, 2), (0.3, 100, 2)])
    ends = (2.0, 2.0, 2148 / 1024) if together else (1500 / 1024, 2149 / 1024, 2149 / 1024)
    assert got.ttft_ms[1:] == ms(*(1 + end - at_s for end, at_s in zip(ends, (0.1, 0.2, 0.3), strict=True)))


def test_the_first_prompt_of_a_batch_may_be_larger_than_the_batch_and_is_then_alone() -> None:
    got = run(split(), [(0.0, 512, 2), (0.1, 3072, 2), (0.2, 256, 2)])
    assert got.ttft_ms == ms(0.5, 3.5 - 0.1, 3.75 - 0.2)


def test_the_cache_moves_at_200_gib_a_second_after_the_prompt() -> None:
    got = run(split(), [(0.0, 100, 3)], model="heavy")
    assert got.ttft_ms == ms(100 / 1024)
    assert got.e2e_ms == ms(100 / 1024 + 100 / 200 + 2 * 0.25)


def test_a_prompt_machine_keeps_the_cache_until_it_has_moved_and_then_takes_the_next_prompt() -> None:
    got = run(split(1, 2), [(0.0, 400, 2), (0.1, 200, 2)], model="heavy")
    moved = 400 / 1024 + 400 / 200
    assert got.ttft_ms == ms(400 / 1024, moved + 200 / 1024 - 0.1)


def test_links_have_no_contention() -> None:
    got = run(split(2, 2), [(0.0, 100, 3), (0.0, 100, 3)], model="heavy")
    assert got.e2e_ms == ms(*[100 / 1024 + 100 / 200 + 2 * 0.25] * 2)


def test_each_phase_runs_at_the_pace_of_its_own_machine() -> None:
    got = run(split(token_kind="slow"), [(0.0, 512, 3)])
    assert got.ttft_ms == ms(0.5)
    assert got.e2e_ms == ms(0.5 + 2 * 0.5)


def test_prompts_go_by_pending_tokens_and_sequences_by_promised_memory() -> None:
    rows = [(0.0, 200, 2), (0.01, 100, 250), (0.02, 50, 2), (0.03, 50, 2)]
    # Promised: 202 and 350, so the third goes where the first went; then 254 against 350. Pending: 200, 100; 200, 150.
    assert machines(split(2, 2), rows, model="heavy") == [(0, 2), (1, 3), (1, 2), (1, 2)]


def test_pending_tokens_fall_as_a_prompt_ends_and_promised_memory_as_a_request_does() -> None:
    rows = [(0.0, 100, 100), (0.01, 200, 2), (0.11, 50, 2), (2.0, 50, 2)]
    # At 0.11 the first prompt has ended; at 2.0 the second and third request have, the first still generates.
    assert machines(split(2, 2), rows, model="heavy") == [(0, 2), (1, 3), (0, 2), (0, 3)]


@pytest.mark.parametrize(("output", "fits"), [(11, True), (12, False)])
def test_a_full_token_machine_makes_the_prompt_machine_with_least_promised_turn_mixed(output: int, fits: bool) -> None:
    rows = [(0.0, 100, 300), (0.2, 100, output)]
    # 400 of 512 are promised; a promise must stay below what there is.
    assert machines(split(2, 1), rows, model="heavy") == [(0, 2), (0, 2 if fits else 1)]


def test_a_long_prompt_queue_makes_a_token_machine_turn_mixed_and_take_the_prompt() -> None:
    rows = [(0.0, 4096, 2), (0.1, 4096, 2), (0.2, 100, 2)]
    got = run(split(), rows)
    assert machines(split(), rows) == [(0, 1), (0, 1), (1, 1)]
    assert got.ttft_ms == ms(4.0, 8.0 - 0.1, 100 / 1024)
    assert got.e2e_ms[2] == pytest.approx(1e3 * (100 / 1024 + 0.25))


def test_the_token_machine_that_turns_mixed_is_the_one_with_the_fewest_pending_tokens_not_the_least_memory() -> None:
    rows = [(0.0, 3000, 3000), (0.01, 600, 9), (0.02, 600, 9), (0.03, 3992, 2), (0.04, 100, 2)]
    # Machine 1 has one request and 6000 tokens promised, machine 2 three requests and 5212.
    assert machines(split(1, 2), rows) == [(0, 1), (0, 2), (0, 2), (0, 2), (1, 2)]


def test_a_prompt_queue_is_long_only_while_a_prompt_waits_in_it() -> None:
    assert machines(split(), [(0.0, 8192, 2), (0.2, 100, 2)]) == [(0, 1), (0, 1)]
    assert machines(split(), [(0.0, 4096, 2), (0.1, 4000, 2), (0.2, 96, 2)]) == [(0, 1)] * 3


def test_a_mixed_machine_takes_further_prompts_and_goes_home_to_the_end_of_its_pool_when_empty() -> None:
    long_queue = [(0.0, 4096, 2), (0.1, 4096, 2)]
    rows = [*long_queue, (0.2, 100, 9), (0.3, 100, 9), (20.0, 100, 2)]
    state = state_after(split(1, 2), rows)
    # The first two promise one machine each. The token machine with the fewest pending tokens, first of equals, is 1.
    assert state.requests.prompt_at.tolist() == [0, 0, 1, 1, 0]
    assert state.pool_sizes.tolist() == [1, 2, 0]
    assert state.pools[TOKEN_POOL, :2].tolist() == [2, 1]
    assert state.requests.token_at[4] == 2
    assert state.pool_sizes[MIXED_POOL] == 0


@pytest.mark.parametrize(("tokens", "cuts"), [(2048, True), (2049, False)])
def test_a_prompt_alone_preempts_sequences_if_it_fits_a_batch(tokens: int, cuts: bool) -> None:
    to_machine_2 = [(1.0, 3000, 9), (1.01, 600, 9), (1.02, 4500, 2)]
    rows = [(0.0, 256, 9000), *to_machine_2, (1.1, tokens, 2)]
    # The last prompt comes to machine 1, which has one sequence and more memory promised, and its tokens to machine 2.
    assert machines(split(1, 2), rows) == [(0, 1), (0, 2), (0, 2), (0, 2), (1, 2)]
    begins = 1.25 if cuts else 0.25 + 8999 * 0.25
    assert run(split(1, 2), rows).ttft_ms[4] == pytest.approx(1e3 * (begins + tokens / 1024 - 1.1))


def test_without_any_room_both_phases_go_where_the_fewest_tokens_are_pending() -> None:
    rows = [(0.0, 100, 300), (0.01, 200, 200), (0.02, 411, 2)]
    # The second finds the token machine full, so the prompt machine turned mixed; the third finds both full.
    assert machines(split(), rows, model="heavy") == [(0, 1), (0, 0), (1, 1)]


def test_a_hand_off_without_memory_at_the_receiver_tries_again_after_a_second() -> None:
    rows = [(0.0, 100, 300), (0.01, 200, 200)]
    # As the first prompt ends, the 412 tokens of a third request leave no room for 101 more; long before 1 s it is gone.
    got = run(split(), [*rows, (0.02, 411, 1)], model="heavy")
    assert got.e2e_ms[2] == pytest.approx(1e3 * 411 / 1024)
    assert got.e2e_ms[0] == pytest.approx(1e3 * (100 / 1024 + 1.0 + 100 / 200 + 299 * 0.25))
    fewer = run(split(), [*rows, (0.02, 410, 1)], model="heavy")
    assert fewer.e2e_ms[0] == pytest.approx(1e3 * (100 / 1024 + 100 / 200 + 299 * 0.25))


# What must hold in every run.

PROMPTS = st.integers(256, 4000)
"""Below 228 tokens a mixed batch would take less than a step of one sequence, and a request could be faster than alone."""
OUTPUTS = st.integers(1, 40)
ROWS = st.lists(st.tuples(st.integers(0, 80).map(lambda n: n / 8), PROMPTS, OUTPUTS), min_size=1, max_size=25).map(sorted)
DESIGNS = st.sampled_from([unsplit(), unsplit(2), split(), split(2, 1), split(1, 2), split(2, 2, "slow")])


@settings(max_examples=150)
@given(DESIGNS, ROWS)
@example(unsplit(), [(0.0, 512, 1), (0.25, 512, 1)])
def test_every_request_ends_its_prompt_first_and_never_faster_than_alone(design: Design, rows: list[Row]) -> None:
    got = run(design, rows)
    _, prompt, output = (np.array(column) for column in zip(*rows, strict=True))
    slack_ms = 1e-6
    assert np.isfinite(got.e2e_ms).all()
    assert (got.ttft_ms >= 1e3 * prompt / 1024 - slack_ms).all()
    assert (got.e2e_ms - got.ttft_ms >= 250.0 * (output - 1) - slack_ms).all()


@settings(max_examples=60)
@given(DESIGNS, ROWS, PROMPTS, OUTPUTS)
def test_a_request_to_an_idle_cluster_is_as_fast_as_alone_whatever_was_before(
    design: Design, rows: list[Row], prompt: int, output: int
) -> None:
    after = run(design, [*rows, (4096.0, prompt, output)])
    alone = run(design, [(0.0, prompt, output)])
    assert after.ttft_ms[-1] == pytest.approx(alone.ttft_ms[0], abs=1e-6)
    assert after.e2e_ms[-1] == pytest.approx(alone.e2e_ms[0], abs=1e-6)


@settings(max_examples=30)
@given(DESIGNS, ROWS)
def test_when_all_is_done_memory_promises_and_pools_are_as_before(design: Design, rows: list[Row]) -> None:
    state = state_after(design, rows, model="light")
    for column in (state.machines.memory, state.machines.promised, state.machines.pending_tokens):
        assert not column.any()
    assert not state.sizes.any()
    homes = [design.prompt_machines, design.token_machines, 0] if design.split else [0, design.servers, 0]
    assert state.pool_sizes.tolist() == homes


def test_equal_requests_give_equal_bits() -> None:
    arrivals = generated(requests_per_s=14.0, seconds=12.0, seed=3)
    one, other = (
        run_reference(
            parse_design("HA:2/3"), arrival_s=arrivals.arrival_s, prompt=arrivals.prompt_tokens,
            output=arrivals.output_tokens, tables=builtin(),
        )
        for _ in range(2)
    )  # fmt: skip
    assert one.ttft_ms.tobytes() == other.ttft_ms.tobytes()
    assert one.e2e_ms.tobytes() == other.e2e_ms.tobytes()
