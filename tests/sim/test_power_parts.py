"""The simulated site's parts, each alone: meter, GPUs and agent, the API server's versions, the engine in parts, the judge."""

from __future__ import annotations

import numpy as np
import pytest
from splitwatt_core.budget.facts import BudgetReport, MeterFailure, MeterReading
from splitwatt_core.budget.tree import BudgetSpec, LimitState, Selector
from splitwatt_core.columns import Posture
from splitwatt_core.protocol.contract import Grant, NodePower, Phase, Spec, Status
from splitwatt_core.protocol.enforcer import Actions
from splitwatt_sim.fleet.run import FleetError, run_fleet
from splitwatt_sim.fleet.state import DECODE, MIXED, PREFILL, Pool
from splitwatt_sim.plan.options import MODEL_2026, profile_for, server_kind
from splitwatt_sim.power import engine as engine_room
from splitwatt_sim.power.engine import CrowdedError, PowerEngine
from splitwatt_sim.power.judge import Lines, PowerJudge
from splitwatt_sim.power.meter import KEPT_SAMPLES, SimulatedMeter
from splitwatt_sim.power.plant import SimulatedNode
from splitwatt_sim.power.run import LEAF_LABEL, run_power
from splitwatt_sim.power.setup import MeterSettings, PowerSetup, Server
from splitwatt_sim.traces.arrivals import Arrivals
from splitwatt_sim.traces.resample import generated
from splitwatt_truth.agent import MemoryAgent

H100 = profile_for(MODEL_2026, "H100")


def server(name: str = "s0", role: int = MIXED, leaf: str = "rack") -> Server:
    return Server(name, 0, leaf, role, "H100", H100, 100)


# The meter.


def test_a_sample_can_be_read_when_its_delay_is_over_and_says_when_it_was_taken() -> None:
    meter = SimulatedMeter(MeterSettings(delay_s=1.5, noise_percent=0.0), number=0, begins_s=10.0)
    for watts in (100.0, 200.0, 300.0):
        meter.sample(watts)
    assert isinstance(meter.read(12.4, run_s=2.4), MeterFailure)
    assert meter.read(12.5, run_s=2.5) == MeterReading(100.0, 11.0, 1)
    assert meter.read(13.5, run_s=3.5) == MeterReading(200.0, 12.0, 1)
    assert meter.read(99.0, run_s=89.0) == MeterReading(300.0, 13.0, 1), "the newest there is"


def test_noise_is_seeded_relative_and_each_meters_own() -> None:
    def readings(seed: int, number: int, watts: float) -> list[float]:
        meter = SimulatedMeter(MeterSettings(delay_s=0.0, noise_percent=1.0, seed=seed), number=number, begins_s=0.0)
        got = []
        for second in range(2000):
            meter.sample(watts)
            reading = meter.read(second + 1.0, run_s=0.0)
            assert isinstance(reading, MeterReading)
            got.append(reading.power_w)
        return got

    first = readings(1, 0, 1000.0)
    assert first == readings(1, 0, 1000.0)
    assert first != readings(2, 0, 1000.0) and first != readings(1, 1, 1000.0)
    assert np.mean(first) == pytest.approx(1000.0, abs=1.0) and np.std(first) == pytest.approx(10.0, rel=0.1)
    assert max(np.abs(np.array(first) - 1000.0)) <= 30.0 + 1e-9
    assert np.array(readings(1, 0, 2000.0)) == pytest.approx(2 * np.array(first))


def test_an_outage_gives_no_answer_and_that_is_not_zero_watts() -> None:
    meter = SimulatedMeter(MeterSettings(delay_s=0.0, noise_percent=0.0, outages=((5.0, 8.0),)), number=0, begins_s=0.0)
    meter.sample(100.0)
    answers = [meter.read(50.0, run_s=run_s) for run_s in (4.9, 5.0, 7.9, 8.0)]
    assert [isinstance(answer, MeterReading) for answer in answers] == [True, False, False, True]
    assert answers[1] == MeterFailure("simulated outage until 8 s")


def test_a_meter_keeps_a_bounded_past() -> None:
    meter = SimulatedMeter(MeterSettings(delay_s=0.0, noise_percent=0.0), number=0, begins_s=0.0)
    for second in range(3 * KEPT_SAMPLES):
        meter.sample(float(second))
    assert meter.read(3.0 * KEPT_SAMPLES, run_s=0.0) == MeterReading(3.0 * KEPT_SAMPLES - 1, 3.0 * KEPT_SAMPLES, 1)
    assert isinstance(meter.read(5.0, run_s=0.0), MeterFailure), "what is gone is no data"


# GPUs and their agent.


def granted(node: SimulatedNode, grant: int, cap_w: int, clock_mhz: int | None = None) -> NodePower:
    rows = tuple(Grant(uuid, grant, cap_w, cap_w, 700, clock_mhz, Phase.PREFILL) for uuid in node.gpus)
    return NodePower(node.server.name, "uid", grant, Spec(term=1, for_uid="uid", gpus=rows), Status())


def told(node: SimulatedNode, agent: MemoryAgent, version: NodePower, now_s: float) -> Actions:
    agent.observe(version, consistent=True)
    return agent.look(now_s, node.readbacks())


def lines(node: SimulatedNode, agent: MemoryAgent) -> set[tuple[int, int | None]]:
    """Acknowledged grants and management limits."""
    return {(row.acked_grant, row.management_w) for row in agent.status(node.boot_id, node.workloads).gpus}


def test_a_grant_is_acknowledged_when_its_limit_was_read_back_and_not_before() -> None:
    node = SimulatedNode(server())
    agent = node.agent()
    calls = told(node, agent, granted(node, 10**9 + 1, 450), 5.0)
    assert {call.cap_mw for call in calls.set_caps} == {450_000} and len(calls.set_caps) == 8
    assert lines(node, agent) == {(0, 700)}
    assert node.cap() == (700, 0), "the call is under way"
    node.perform(calls)
    agent.returned(calls.set_caps, 5.3)
    assert not agent.look(5.3, node.readbacks()).set_caps
    assert lines(node, agent) == {(10**9 + 1, 450)}
    assert node.cap() == (450, 0) and node.management_w == 8 * 450
    workload = agent.status(node.boot_id, node.workloads).gpus[0].workload
    assert workload is not None and workload.pod == node.server.name


def test_a_grant_that_comes_while_a_call_is_under_way_waits_for_it() -> None:
    node = SimulatedNode(server())
    agent = node.agent()
    first = told(node, agent, granted(node, 10**9 + 1, 450), 5.0)
    assert not told(node, agent, granted(node, 10**9 + 2, 300), 5.1).set_caps
    node.perform(first)
    agent.returned(first.set_caps, 5.3)
    second = agent.look(5.3, node.readbacks())
    assert {call.cap_mw for call in second.set_caps} == {300_000}
    assert lines(node, agent) == {(0, 450)}, "450 W are above the newest grant's cap"


def test_a_clock_lock_is_set_and_let_go_and_the_lowest_one_sets_the_pace() -> None:
    node = SimulatedNode(server())
    agent = node.agent()
    calls = told(node, agent, granted(node, 10**9 + 1, 700, 1200), 5.0)
    node.perform(calls)
    assert node.cap() == (700, 1200)
    agent.returned(calls.set_caps, 5.3)
    agent.look(5.3, node.readbacks())
    calls = told(node, agent, granted(node, 10**9 + 2, 700), 6.0)
    node.perform(calls)
    assert node.cap() == (700, 0)


# The engine.

SPLIT = [server("p", PREFILL), server("d", DECODE)]
LIST = generated(requests_per_s=4.0, seconds=20.0, seed=2)
LONGEST = int(LIST.prompt_tokens.max())


def engine(caps: list[tuple[int, int]], arrivals: Arrivals = LIST, *, coming: int = 1024) -> PowerEngine:
    return PowerEngine(MODEL_2026, SPLIT, caps, arrivals, coming=coming)


def test_with_caps_that_stand_it_is_the_plain_run() -> None:
    kinds = [server_kind(MODEL_2026, "H100", cap_w, longest_prompt=LONGEST) for cap_w in (500, 340)]
    want = run_fleet([Pool(PREFILL, kinds[0], 1), Pool(DECODE, kinds[1], 1)], LIST, seconds=40)
    got = engine([(500, 0), (340, 0)])
    second = 0
    while not got.finished:
        second += 1
        got.advance(float(second))
    result = got.result(second)
    for name, column in want.latencies.columns().items():
        assert result.latencies.columns()[name] == pytest.approx(column, rel=1e-9), name
    whole = int(want.ends_s)
    assert result.power_w[:, :whole] == pytest.approx(want.power_w[:, :whole], rel=1e-9)
    assert sum(result.energy_j.values()) == pytest.approx(result.power_w.sum(), rel=1e-9)


@pytest.mark.parametrize(("cap_w", "clock_mhz"), [(300, 0), (700, 1200)])
def test_a_cap_or_a_clock_lock_slows_and_saves_from_its_moment_on(cap_w: int, clock_mhz: int) -> None:
    free, capped = engine([(700, 0), (700, 0)]), engine([(700, 0), (700, 0)])
    for run in (free, capped):
        run.advance(8.0)
    capped.set_cap(0, cap_w, clock_mhz)
    for run in (free, capped):
        run.advance(16.0)
    kind = server_kind(MODEL_2026, "H100", cap_w, clock_mhz, longest_prompt=LONGEST)
    same = [np.array_equal(free.second_w(second), capped.second_w(second)) for second in range(16)]
    assert all(same[:8]) and not all(same[8:])
    assert max(capped.second_w(s)[0] for s in range(8, 16)) <= kind.prefill_w.max() < 700 * 8 + 2800
    busy = [run.fleet.machines.busy_s[0] for run in (free, capped)]
    assert busy[1] > busy[0]


def test_tables_grow_for_new_caps_and_at_their_bound_rows_that_nobody_uses_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_room, "MAX_KINDS", 12)
    run = engine([(700, 0), (700, 0)])
    caps = list(range(660, 340, -10))
    for second, cap_w in enumerate(caps, 1):
        run.advance(second * 0.5)
        run.set_cap(0, cap_w, 0)
        row = int(run.fleet.machines.kind[0])
        assert run.fleet.prefill_w[row].max() == pytest.approx(8 * cap_w + 2800)
        assert run.fleet.prefill_w[int(run.fleet.machines.kind[1])].max() == pytest.approx(8 * 700 + 2800)
    assert len(run.fleet.kv_s) <= 16
    run.set_cap(0, 700, 0)
    assert run.fleet.prefill_w[int(run.fleet.machines.kind[0])].max() == pytest.approx(8 * 700 + 2800)


def test_a_run_that_records_longer_than_was_guessed_goes_on() -> None:
    run = engine([(700, 0), (700, 0)])
    guessed = run.fleet.power_w.shape[1]
    for second in range(1, guessed + 40):
        run.advance(float(second))
    assert run.second_w(guessed + 38).sum() == pytest.approx(2 * (8 * H100.idle_w + 2800))


def test_a_run_that_does_not_end_is_given_up_with_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    run = engine([(200, 0), (200, 0)])
    monkeypatch.setattr(engine_room, "MAX_RECORDED", 60)
    with pytest.raises(FleetError, match=r"^after \d+ s of the run requests still wait: lower the rate, or raise limits or"):
        for second in range(1, 200):
            run.advance(float(second))


def test_too_little_room_for_hand_offs_begins_again_and_is_the_same() -> None:
    many = generated(requests_per_s=40.0, seconds=6.0, seed=1)
    tight = [(700, 0), (200, 0)]
    with pytest.raises(CrowdedError):
        run = engine(tight, many, coming=1)
        for second in range(1, 60):
            run.advance(float(second))


# The judge.

ROW = BudgetSpec("row", "row", 1, 20_000, fixed_w=100)
RACKS = [
    BudgetSpec(
        name, name, 1, 12_000, parent="row", selector=Selector({LEAF_LABEL: name}), non_gpu_w_per_node=2_000,
        overhead_percent=10, fixed_w=fixed_w,
    )
    for name, fixed_w in (("a", 10), ("b", 20))
]  # fmt: skip
PLACED = [server("x", PREFILL, "a"), server("y", MIXED, "b"), server("z", DECODE, "b")]
WATTS = np.array([1000.0, 2000.0, 3000.0])


def report(name: str, limit_w: int) -> BudgetReport:
    return BudgetReport(name, LimitState(limit_w, limit_w, 0.0), 0.0, None, Posture.NORMAL, 1, 8, 0.0, None, ())


def test_sums_are_those_of_the_budgets_and_truth_is_that_of_the_servers() -> None:
    lines = Lines([ROW, *RACKS], PLACED)
    assert lines.names == ("row", "a", "b")
    a_w, b_w = 1.1 * 1000 + 2000 + 10, 1.1 * 5000 + 4000 + 20
    assert lines.declared_w(WATTS).tolist() == pytest.approx([a_w + b_w + 100, a_w, b_w])
    a_w, b_w = 1.04 * 1000 + 2800 + 10, 1.04 * 5000 + 5600 + 20
    assert lines.true_w(WATTS + 2800).tolist() == pytest.approx([a_w + b_w + 100, a_w, b_w])


def test_a_second_counts_if_any_moment_of_it_was_above_and_a_draw_if_its_mean_was() -> None:
    judge = PowerJudge(Lines([ROW], [server("x", MIXED, "row")]))
    judge.limits({"row": report("row", 5_000)})

    def look(now_s: float, watts: float) -> None:
        judge.look(now_s, charges_w=np.array([watts + 100.0]), management_w=np.array([watts]))

    judge.start()
    look(0.0, 4_000.0)
    look(0.4, 4_950.0)  # with 100 W fixed 50 above, the charge 150 above
    look(0.6, 4_850.0)
    judge.end_second(1.0, servers_w=np.array([5_000.0]), management_w=np.array([4_800.0]))
    look(1.0, 4_800.0)
    judge.limits({"row": report("row", 4_000)})
    look(1.5, 3_800.0)
    judge.end_second(2.0, servers_w=np.array([4_300.0]), management_w=np.array([3_800.0]))
    look(2.0, 3_800.0)
    judge.end_second(3.0, servers_w=np.array([4_300.0]), management_w=np.array([3_800.0]))
    got = judge.series(k_s=214.0, pessimistic_k_s=20.0)
    assert got.caps_over.tolist() == [[True, False, False]]
    assert got.charge_over.tolist() == [[True, False, False]]
    assert got.limit_w.tolist() == [[5_000.0, 4_500.0, 4_000.0]]
    drawn_w = [5_000 + 0.04 * 2_200 + 100, 4_300 + 0.04 * 1_500 + 100, 4_300 + 0.04 * 1_500 + 100]
    assert got.power_w.tolist() == [pytest.approx(drawn_w)]
    assert got.power_over.tolist() == [[True, False, True]]
    heated = [((w / limit) ** 2 - 1) / 20 for w, limit in zip(drawn_w, (5_000, 4_500, 4_000), strict=True)]
    assert got.pessimistic_theta[0, 0] == pytest.approx(heated[0])
    assert got.pessimistic_theta[0, 1] == pytest.approx(heated[0] * np.exp(-1 / 10))
    assert got.pessimistic_theta[0, 2] == pytest.approx(heated[0] * np.exp(-1 / 10) + heated[2])
    assert got.theta[0, 0] == pytest.approx(heated[0] * 20 / 214)


def test_latency_so_long_that_nothing_is_in_force_in_time_is_refused() -> None:
    budget = BudgetSpec("rack", "rack", 1, 7_000, selector=Selector({LEAF_LABEL: "rack"}), non_gpu_w_per_node=2_800)
    setup = PowerSetup(MODEL_2026, (budget,), (server(),), latency_s=31.0)
    with pytest.raises(FleetError, match=r"^budgets rack were not in force after 30 s without load: lower latencySeconds$"):
        run_power(setup, LIST)
