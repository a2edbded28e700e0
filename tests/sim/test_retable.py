"""A machine's kind changes while it runs: what is left of its iteration takes the new kind's time, and nothing is lost.

The round kind: a prompt of n tokens takes n/1024 s and draws 1000 W, a step of b sequences (b + 1)/8 s and 500 W.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from splitwatt_sim.fleet.kernel import COMPLETE, run_until
from splitwatt_sim.fleet.retable import retable
from splitwatt_sim.fleet.state import DECODE, DONE, MAX_BATCH_SEQUENCES, MIXED, PREFILL, FleetArrays, Pool, ServerKind, new_fleet

Row = tuple[float, int, int]
SIZE = 6_000
ROUND = ServerKind(
    name="round",
    prefill_s=np.arange(SIZE) / 1024,
    prefill_w=np.full(SIZE, 1000.0),
    decode_s=(np.arange(MAX_BATCH_SEQUENCES + 1) + 1) / 8,
    decode_w=np.full(MAX_BATCH_SEQUENCES + 1, 500.0),
    kv_s=1 / 65536,
    idle_w=100.0,
    kv_room=2**20,
    hand_off_s_per_token=0.0,
    hand_off_fixed_s=0.0,
    overlap_from_tokens=float("inf"),
)


def scaled(slower: float, watts: float) -> ServerKind:
    return replace(
        ROUND,
        prefill_s=ROUND.prefill_s * slower,
        prefill_w=ROUND.prefill_w * watts,
        decode_s=ROUND.decode_s * slower,
        decode_w=ROUND.decode_w * watts,
        kv_s=ROUND.kv_s * slower,
    )


KINDS = (ROUND, scaled(2.0, 0.5), scaled(0.5, 1.5))
SLOWER, FASTER = 1, 2


def fleet(roles: dict[int, int], rows: list[Row], kinds: tuple[ServerKind, ...] = KINDS, seconds: int = 400) -> FleetArrays:
    """All machines of the first kind; the others are there to change to."""
    arrival_s, prompt, output = zip(*rows, strict=True)
    made = new_fleet(
        [Pool(role, kinds[0], count) for role, count in roles.items()],
        arrival_s=np.array(arrival_s, np.float64),
        prompt=np.array(prompt),
        output=np.array(output),
        seconds=seconds,
    )
    made.machines.kind[:] = 0
    hand_off = [(k.hand_off_s_per_token, k.hand_off_fixed_s, k.overlap_from_tokens, k.hand_off_latency_s) for k in kinds]
    return made._replace(
        prefill_s=np.array([k.prefill_s for k in kinds]),
        prefill_w=np.array([k.prefill_w for k in kinds]),
        decode_s=np.array([k.decode_s for k in kinds]),
        decode_w=np.array([k.decode_w for k in kinds]),
        kv_s=np.array([k.kv_s for k in kinds]),
        idle_w=np.array([k.idle_w for k in kinds]),
        kv_room=np.array([k.kv_room for k in kinds], np.int64),
        hand_off=np.array(hand_off),
    )


@pytest.mark.parametrize(("kind", "ends_s", "drawn_j"), [(SLOWER, 1.5, 500 + 500), (FASTER, 0.75, 500 + 375)])
def test_the_rest_of_a_prompt_takes_the_new_time_at_the_new_draw(kind: int, ends_s: float, drawn_j: float) -> None:
    f = fleet({MIXED: 1}, [(0.0, 1024, 1)])
    assert run_until(f, 0.5) == COMPLETE
    retable(f, 0, kind, 0.5)
    assert run_until(f, np.inf) == COMPLETE
    assert f.requests.done_s.tolist() == [ends_s]
    assert f.machines.energy_j.tolist() == [drawn_j]
    assert f.machines.busy_s.tolist() == [ends_s]


def test_the_rest_of_a_step_takes_the_new_time_and_those_after_it_all_of_it() -> None:
    flat = tuple(replace(kind, kv_s=0.0) for kind in KINDS)
    f = fleet({MIXED: 1}, [(0.0, 512, 5)], flat)
    assert run_until(f, 0.875) == COMPLETE  # half of the second of four steps of 0.25 s
    retable(f, 0, SLOWER, 0.875)
    assert run_until(f, 0.9) == COMPLETE
    assert run_until(f, np.inf) == COMPLETE
    assert f.requests.done_s.tolist() == [pytest.approx(0.875 + 0.5 * 0.5 + 2 * 0.5)]
    assert f.machines.energy_j[0] == pytest.approx(500 + 0.375 * 500 + 1.25 * 250)
    assert f.machines.busy_s[0] == pytest.approx(2.125)


def test_a_step_that_became_shorter_than_what_had_passed_of_it_counts_once() -> None:
    """The step of 0.25 s is at 0.2 s when steps take 0.125 s: a later look must not find it over already."""
    flat = tuple(replace(kind, kv_s=0.0) for kind in KINDS)
    f = fleet({MIXED: 1}, [(0.0, 512, 3)], flat)
    assert run_until(f, 0.7) == COMPLETE
    retable(f, 0, FASTER, 0.7)
    for look_s in (0.701, 0.71, 0.72):
        assert run_until(f, look_s) == COMPLETE
    assert run_until(f, np.inf) == COMPLETE
    assert f.requests.done_s.tolist() == [pytest.approx(0.7 + 0.2 * 0.125 + 0.125)]
    assert not f.machines.context.any()


def test_an_idle_machine_draws_the_new_idle_power() -> None:
    f = fleet({MIXED: 1}, [(2.0, 512, 1)], (ROUND, replace(ROUND, idle_w=60.0)))
    assert run_until(f, 1.0) == COMPLETE
    retable(f, 0, 1, 1.0)
    assert run_until(f, 2.0) == COMPLETE
    assert f.machines.energy_j[0] == 160.0


def test_a_machine_that_is_switched_off_stays_so() -> None:
    f = fleet({MIXED: 1}, [(2.0, 512, 1)])
    f.machines.draw_w[0] = 0.0
    assert run_until(f, 1.0) == COMPLETE
    retable(f, 0, SLOWER, 1.0)
    assert (f.machines.draw_w[0], f.machines.kind[0]) == (0.0, SLOWER)


def test_a_kind_changes_only_where_the_run_has_come_to() -> None:
    f = fleet({MIXED: 1}, [(0.0, 512, 9)])
    assert run_until(f, 0.6) == COMPLETE
    with pytest.raises(AssertionError, match="in the moment that the run has reached"):
        retable(f, 0, SLOWER, 0.7)


ROWS = st.lists(st.tuples(st.floats(0.0, 8.0), st.integers(1, 3000), st.integers(1, 40)), min_size=1, max_size=20).map(sorted)
CHANGES = st.lists(st.tuples(st.floats(0.01, 12.0), st.integers(0, 2), st.integers(0, 2)), max_size=12).map(sorted)
SHAPES = st.sampled_from([{MIXED: 3}, {PREFILL: 1, DECODE: 2}, {PREFILL: 1, MIXED: 1, DECODE: 1}])


@given(ROWS, CHANGES, SHAPES)
def test_whenever_kinds_change_every_request_ends_once_and_energy_is_the_integral_of_the_draw(
    rows: list[Row], changes: list[tuple[float, int, int]], shape: dict[int, int]
) -> None:
    f = fleet(shape, rows)
    for at_s, machine, kind in changes:
        assert run_until(f, at_s) == COMPLETE
        retable(f, machine, kind, at_s)
        assert (f.next_s >= at_s).all()
        table_w = (f.idle_w[kind], f.prefill_w[kind].max(), f.decode_w[kind].max())
        assert f.machines.draw_w[machine] in table_w
    assert run_until(f, np.inf) == COMPLETE
    assert f.counters[DONE] == len(rows) and not np.isnan(f.requests.done_s).any()
    for left in (f.pending, f.promised, f.requests.left, f.machines.batch, f.machines.context, f.machines.kv_used):
        assert not left.any()
    assert f.machines.energy_j.sum() == pytest.approx(f.power_w.sum(), rel=1e-9)
    assert (f.machines.busy_s <= max(f.requests.done_s.max(), 12.0) + 1e-6).all()


@given(ROWS, CHANGES, SHAPES)
def test_a_change_to_the_same_kind_changes_nothing(
    rows: list[Row], changes: list[tuple[float, int, int]], shape: dict[int, int]
) -> None:
    whole, parts = fleet(shape, rows), fleet(shape, rows)
    assert run_until(whole, np.inf) == COMPLETE
    for at_s, machine, _ in changes:
        if at_s < whole.requests.done_s.max():
            assert run_until(parts, at_s) == COMPLETE
            retable(parts, machine, 0, at_s)
    assert run_until(parts, np.inf) == COMPLETE
    assert parts.requests.done_s == pytest.approx(whole.requests.done_s, rel=1e-9)
    assert parts.machines.energy_j == pytest.approx(whole.machines.energy_j, rel=1e-9)
