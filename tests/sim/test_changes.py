"""Machines that fail, come back and change their role: scenes computed by hand with the round tables."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from splitwatt_sim.fleet import run as fleet
from splitwatt_sim.fleet.changes import play_until
from splitwatt_sim.fleet.kernel import COMPLETE
from splitwatt_sim.fleet.run import FleetError, FleetRun, run_fleet
from splitwatt_sim.fleet.state import DECODE, MIXED, PREFILL, Change, Failure, Flip, Pool, machine_numbers
from support.fleet_scenes import ROUND, Row, arrivals, started

INF = float("inf")
SLOW_LINK = replace(ROUND, hand_off_fixed_s=0.5)


def split(prompt: int = 1, decode: int = 1, kind: fleet.ServerKind = ROUND) -> list[Pool]:
    """Pool 0 prefills, pool 1 decodes; machines count in that order."""
    return [Pool(PREFILL, kind, prompt), Pool(DECODE, kind, decode)]


def run(pools: list[Pool], rows: list[Row], *changes: Change, seconds: int = 0) -> FleetRun:
    return run_fleet(pools, arrivals(rows), seconds=seconds, changes=changes)


def decoded_at(pools: list[Pool], rows: list[Row], *changes: Change) -> list[int]:
    state = started(pools, rows, changes=changes)
    assert play_until(state, np.inf) == COMPLETE
    return [int(m) for m in state.requests.decode_at]


def s(column: np.ndarray) -> list[float]:
    """Milliseconds as seconds; a scene's times are multiples of 1/1024 s."""
    return [float(x) for x in np.round(column / 1e3 * 2**30) / 2**30]


@pytest.mark.parametrize(("fails_s", "steps"), [(1.125, 2), (1.0, 2), (0.999, 1)])
def test_a_sequence_begins_again_with_what_it_had_generated_and_keeps_its_first_token(fails_s: float, steps: int) -> None:
    fails_s = round(fails_s * 1024) / 1024
    got = run(split(1, 2), [(0.0, 512, 9)], Failure(1, 0, fails_s))
    made = 1 + steps  # an iteration that ends in the moment of the failure counts
    assert s(got.latencies.ttft_ms) == [0.5]
    assert s(got.latencies.e2e_ms) == [fails_s + (512 + made) / 1024 + (9 - made - 1) * 0.25]
    assert (got.restarted, got.output_tokens, got.unfinished.tolist()) == (1, 9, [])
    # Idle for its prompt, then a sequence until it failed, then nothing; the other idle but for the end.
    end_s = s(got.latencies.e2e_ms)[0]
    rest_s = (9 - made - 1) * 0.25
    assert got.energy_j["decode"] == 0.5 * 100 + (fails_s - 0.5) * 500 + (end_s - rest_s) * 100 + rest_s * 500


def test_the_queue_of_a_prompt_machine_is_placed_anew_in_the_order_of_arrival() -> None:
    rows = [(0.0, 1024, 1), (0.0, 1024, 1), (0.25, 512, 1)]
    got = run(split(2), rows, Failure(0, 0, 0.5))
    assert s(got.latencies.ttft_ms) == [2.5, 1.0, 2.25]
    assert got.restarted == 0, "no cache was lost"
    assert got.busy == {"prefill": (0.5 + 2.5) / 2 / 2.5, "decode": 0.0}


def test_a_cache_that_has_not_left_its_machine_is_lost_with_it_and_one_that_has_come_is_not() -> None:
    rows = [(0.0, 512, 3)]
    lost = run(split(2, 1, SLOW_LINK), rows, Failure(0, 0, 0.75))
    assert s(lost.latencies.e2e_ms) == [0.75 + 513 / 1024 + 0.5 + 0.25]
    come = run(split(2, 1, SLOW_LINK), rows, Failure(0, 0, 1.0))
    assert s(come.latencies.e2e_ms) == [1.0 + 2 * 0.25]
    assert (lost.restarted, come.restarted) == (1, 0)


def test_a_cache_that_comes_in_the_moment_of_the_failure_waits_for_its_boundary_and_is_not_lost() -> None:
    got = run(split(2, 1, SLOW_LINK), [(0.0, 512, 9), (0.125, 512, 3)], Failure(0, 1, 1.125))
    joined_s = 1.25  # the first decodes from 1.0 on
    assert s(got.latencies.e2e_ms) == [joined_s + 2 * 0.375 + 5 * 0.25, joined_s + 2 * 0.375 - 0.125]
    assert got.restarted == 0


def test_the_link_of_a_machine_that_is_back_is_free() -> None:
    slow = replace(ROUND, hand_off_fixed_s=4.0)
    got = run(split(1, 1, slow), [(0.0, 512, 3)], Failure(0, 0, 0.75, 1.0))
    assert s(got.latencies.e2e_ms) == [1.0 + 513 / 1024 + 4.0 + 0.25]


def test_a_cache_on_its_way_to_a_machine_that_fails_is_lost() -> None:
    got = run(split(1, 2, SLOW_LINK), [(0.0, 512, 3)], Failure(1, 0, 0.75))
    # The link is busy until 1.0 with what nobody takes, which is over when the second prompt is.
    assert s(got.latencies.e2e_ms) == [0.75 + 513 / 1024 + 0.5 + 0.25]
    assert got.restarted == 1


def test_a_queued_prompt_keeps_its_place_and_gets_another_decode_machine() -> None:
    got = run(split(1, 2), [(0.0, 1024, 3)], Failure(1, 0, 0.5))
    assert s(got.latencies.e2e_ms) == [1.0 + 2 * 0.25] and got.restarted == 0
    assert decoded_at(split(1, 2), [(0.0, 1024, 3)], Failure(1, 0, 0.5)) == [2]
    both = [*split(1, 1), Pool(MIXED, ROUND, 1)]
    assert decoded_at(both, [(0.0, 1024, 3)], Failure(1, 0, 0.5)) == [1], "a mixed one where no decode machine is left"


def test_requests_wait_for_a_machine_that_comes_back() -> None:
    rows = [(0.0, 512, 3), (1.0, 512, 2)]
    got = run(split(), rows, Failure(1, 0, 0.25, 4.0))
    ends = 4.0 + (513 + 512) / 1024
    assert s(got.latencies.ttft_ms) == [0.5, ends - 1.0], "the first had its token before nobody took its cache"
    assert s(got.latencies.e2e_ms) == [ends + 0.375, ends + 0.375 - 1.0]
    assert (got.restarted, got.unfinished.tolist()) == (1, [])


def test_requests_that_no_machine_takes_any_more_are_left_unfinished() -> None:
    rows = [(0.0, 512, 1), (0.0, 512, 3), (1.0, 512, 2)]
    got = run(split(), rows, Failure(1, 0, 0.25))
    assert got.unfinished.tolist() == [1, 2] and len(got.latencies.e2e_ms) == 1
    assert s(got.latencies.e2e_ms) == [0.5], "its one token needs no decode machine"
    assert got.ends_s == 1.0 and got.output_tokens == 1
    assert got.energy_j == {"prefill": 1000.0, "decode": 25.0}  # the second prompt ends at 1.0
    assert got.finished(arrivals(rows)).output_tokens.tolist() == [1]


def test_a_machine_that_changes_its_role_drains_sends_its_last_cache_and_switches() -> None:
    rows = [(0.0, 1024, 9), (0.5, 512, 2), (2.4375, 64, 2), (2.5, 64, 2), (2.5625, 64, 2)]
    flip = Flip(0, 0, 0.25, DECODE, 1.0)
    # Empty at 1.0, its cache has left at 1.5, open at 2.5: after the arrivals of that moment.
    assert decoded_at(split(2, 1, SLOW_LINK), rows, flip) == [2, 2, 2, 2, 0]
    got = run(split(2, 1, SLOW_LINK), rows, flip)
    assert s(got.latencies.ttft_ms)[:2] == [1.0, 0.5] and got.flips == 1
    assert got.restarted == 0


def test_a_decode_machine_that_changes_its_role_lets_its_sequences_run_out() -> None:
    rows = [(0.0, 512, 9), (1.0, 512, 2)]
    got = run(split(1, 2), rows, Flip(1, 0, 0.75, PREFILL, 0.5))
    assert s(got.latencies.e2e_ms) == [0.5 + 8 * 0.25, 0.5 + 0.25]
    assert decoded_at(split(1, 2), rows, Flip(1, 0, 0.75, PREFILL, 0.5)) == [1, 2]
    assert got.flips == 0, "it was empty with the last token of the run and had no time to switch"


def test_waiting_requests_are_served_by_a_machine_in_its_new_role() -> None:
    got = run(split(1, 2), [(0.0, 512, 2)], Failure(0, 0, 0.25), Flip(1, 1, 1.0, PREFILL, 2.0))
    assert s(got.latencies.ttft_ms) == [3.5] and s(got.latencies.e2e_ms) == [3.75]
    decoding_j, switched_j = 3.5 * 100 + 0.25 * 500, 3.0 * 100 + 0.5 * 1000 + 0.25 * 100
    assert got.energy_j == {"prefill": 0.25 * 1000, "decode": decoding_j + switched_j}  # by the role it began with


@pytest.mark.parametrize(
    ("changes", "opens_s", "flips"),
    [
        ((Failure(0, 0, 1.0, 3.0), Flip(0, 0, 2.0, MIXED, 9.0)), 3.0, 1),  # down when it should change
        ((Flip(0, 0, 0.25, MIXED, 9.0), Failure(0, 0, 0.375, 3.0)), 3.0, 1),  # fails while it drains
        ((Flip(0, 0, 0.75, MIXED, 9.0), Failure(0, 0, 1.0, 3.0)), 3.0, 1),  # fails while it switches
        ((Failure(0, 0, 1.0, 3.0), Failure(0, 0, 2.0, 4.0)), 4.0, 0),
        ((Failure(0, 0, 1.0, 3.0), Failure(0, 0, 2.0, 2.5)), 3.0, 0),
        ((Flip(0, 0, 0.75, DECODE, 1.0), Flip(0, 0, 1.0, MIXED, 5.0)), 1.75, 1),  # it had begun to switch
        ((Flip(0, 0, 0.25, DECODE, 9.0), Flip(0, 0, 0.375, MIXED, 1.0)), 1.5, 1),  # it still drained
    ],
)
def test_changes_may_come_upon_each_other(changes: tuple[Change, ...], opens_s: float, flips: int) -> None:
    # What arrives while the only prompt machine is away waits for it; the first request keeps it busy until 0.5, or begins
    # again before the second.
    got = run(split(), [(0.0, 512, 1), (1.25, 512, 2)], *changes)
    lost = isinstance(changes[1], Failure) and changes[1].at_s < 0.5
    assert s(got.latencies.ttft_ms[1:]) == [opens_s + (1.0 if lost else 0.5) - 1.25]
    assert got.flips == flips


def test_power_is_zero_while_a_machine_is_down() -> None:
    got = run(split(1, 2), [(0.0, 1024, 30)], Failure(1, 1, 2.5, 4.0), seconds=6)
    assert got.power_w[2].tolist() == [100, 100, 50, 0, 100, 100]


def test_machines_count_by_role_and_pools_as_they_are_given() -> None:
    pools = [Pool(DECODE, ROUND, 2), Pool(PREFILL, ROUND, 3), Pool(DECODE, ROUND, 1), Pool(PREFILL, ROUND, 1)]
    assert machine_numbers(pools) == [4, 0, 6, 3]
    got = run(pools, [(0.0, 512, 2)], Failure(2, 0, 0.0), seconds=1)
    assert not got.power_w[6].any() and got.power_w[:6].all()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (Failure(2, 0, 1.0), "a failure names pool 2, and pools count from 0 to 1"),
        (Flip(0, 2, 1.0, DECODE, 1.0), "a flip names server 2 of pool 0, whose servers count from 0 to 1"),
        (Failure(0, 0, -1.0), "a failure must come at a time from 0 s, not at -1 s"),
        (Failure(0, 0, INF), "a failure must come at a time from 0 s, not at inf s"),
        (Failure(0, 0, 5.0, 5.0), "a machine that fails at 5 s must be back later, not at 5 s"),
        (Flip(0, 0, 1.0, DECODE, -1.0), "a flip needs a role and a time to switch from 0 s, not -1 s"),
        (Flip(0, 0, 1.0, DECODE, INF), "a flip needs a role and a time to switch from 0 s, not inf s"),
    ],
)
def test_a_wrong_change_is_refused(change: Change, says: str) -> None:
    with pytest.raises(FleetError) as refused:
        run(split(2), [(0.0, 512, 2)], change)
    assert str(refused.value) == says


def test_too_many_changes_are_refused() -> None:
    with pytest.raises(FleetError, match="1001 failures and flips are more than the 1000 of one run; leave some out"):
        run(split(2), [(0.0, 512, 2)], *[Failure(0, 0, 1.0)] * 1001)


def test_what_may_begin_again_needs_tables_and_memory_for_it() -> None:
    short = replace(ROUND, name="short", prefill_s=ROUND.prefill_s[:4000])
    rows = [(0.0, 1400, 40)]  # 4000 rows hold a prompt of 1439 tokens, which is the most that a restart has
    assert run(split(kind=short), rows, Failure(1, 0, 0.5, 1.0)).output_tokens == 40
    with pytest.raises(FleetError, match="the tables of short end before the longest prompt"):
        run(split(kind=short), [(0.0, 1400, 41)], Failure(1, 0, 0.5, 1.0))
    small = replace(ROUND, name="small", kv_room=600)
    pools = [Pool(PREFILL, small, 2), Pool(DECODE, ROUND, 1)]
    assert run(pools, [(0.0, 512, 100)], Flip(0, 0, 1.0, PREFILL, 1.0)).output_tokens == 100
    with pytest.raises(FleetError, match="a request of 612 tokens does not fit the 600 tokens of KV cache of small"):
        run(pools, [(0.0, 512, 100)], Flip(0, 0, 1.0, DECODE, 1.0))
