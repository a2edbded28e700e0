"""Router and agenda: shortest queue, hand-off, waiting, losing replicas, and lateness that changes no result."""

import math
from collections.abc import Iterable

import pytest
from splitwatt_twin.arrivals import Arrival
from splitwatt_twin.cluster import MAX_IN_SYSTEM, Cluster, Drop, KvLink
from splitwatt_twin.engine import DecodeEngine, PrefillEngine
from splitwatt_twin.fleet import Engine, EngineFleet
from splitwatt_twin.mixed import MixedEngine
from splitwatt_twin.requests import ClusterKey, Request
from splitwatt_twin.stats import EngineStats

KEY = ClusterKey("serving", "chat")
LINK = KvLink(bytes_per_token=327_680, gbit_per_s=400, remainder_s=0.005)


class SteadyPace:
    def prefill_s(self, tokens: int) -> float:
        return tokens * 1e-4

    def decode_s(self, batch: int, context_tokens: float) -> float:
        return 0.01


class Lab:
    """A fleet with its finished requests and touched engines in lists."""

    def __init__(self, *, prefills: int = 1, decodes: int = 1, capacity: int = 100_000) -> None:
        self.done: list[Request] = []
        self.touched: list[Engine] = []
        self.fleet = EngineFleet(now_s=0.0, finished=self.done.append, touched=self.touched.append)
        self.p = [self.prefill(f"p{i}") for i in range(prefills)]
        self.d = [self.decode(f"d{i}", capacity) for i in range(decodes)]

    def prefill(self, name: str) -> PrefillEngine:
        engine = PrefillEngine(name=name, pace=SteadyPace(), stats=EngineStats())
        self.fleet.add(KEY, engine, link=LINK)
        return engine

    def decode(self, name: str, capacity: int = 100_000) -> DecodeEngine:
        engine = DecodeEngine(name=name, pace=SteadyPace(), kv_capacity_tokens=capacity, stats=EngineStats())
        self.fleet.add(KEY, engine, link=LINK)
        return engine

    def mixed(self, name: str, capacity: int = 100_000) -> MixedEngine:
        stats = EngineStats()
        prefill = PrefillEngine(name=name, pace=SteadyPace(), stats=stats)
        engine = MixedEngine(prefill, DecodeEngine(name=name, pace=SteadyPace(), kv_capacity_tokens=capacity, stats=stats))
        self.fleet.add(KEY, engine, link=LINK)
        return engine

    def load(self, rows: Iterable[tuple[float, int, int]]) -> None:
        self.fleet.start_load(KEY, (Arrival(*row) for row in rows), origin_s=0.0)

    def finish(self) -> None:
        while self.fleet.next_s != math.inf:
            self.fleet.run_until(self.fleet.next_s)

    @property
    def cluster(self) -> Cluster:
        return self.fleet.cluster(KEY)


def test_one_request_takes_prefill_hand_off_and_decode() -> None:
    lab = Lab()
    lab.load([(1.0, 1000, 11)])
    lab.finish()
    (request,) = lab.done
    assert request.ttft_s == pytest.approx(0.1)
    assert request.e2e_s == pytest.approx(0.1 + 0.005 + 10 * 0.01)
    assert request.tbt_s == pytest.approx((0.005 + 0.1) / 10)
    assert (request.prefill_pod, request.decode_pod) == ("p0", "d0")
    assert lab.cluster.counts.finished == 1 and lab.cluster.in_system == 0


def test_a_short_prompt_sends_its_cache_afterwards_a_long_one_overlaps() -> None:
    assert LINK.handoff_s(100) == pytest.approx(100 * 327_680 * 8 / 400e9)
    assert LINK.handoff_s(512) == pytest.approx(0.00336, rel=0.01)
    assert LINK.handoff_s(513) == LINK.handoff_s(8000) == 0.005


def test_one_token_ends_at_the_prefill() -> None:
    lab = Lab()
    lab.load([(0.0, 1000, 1)])
    lab.finish()
    assert lab.done[0].tbt_s is None and lab.done[0].e2e_s == pytest.approx(0.1)
    assert lab.d[0].stats.generation_tokens == 0


def test_requests_join_the_shortest_prefill_queue_by_tokens() -> None:
    lab = Lab(prefills=2)
    lab.load([(0.0, 2000, 2), (0.01, 300, 2), (0.02, 300, 2), (0.03, 300, 2)])
    lab.finish()
    by_pod = {(r.prompt_tokens, round(r.arrived_s, 2)): r.prefill_pod for r in lab.done}
    assert by_pod == {(2000, 0.0): "p0", (300, 0.01): "p1", (300, 0.02): "p1", (300, 0.03): "p1"}


def test_decode_goes_where_the_least_of_the_cache_is_promised() -> None:
    lab = Lab(decodes=2)
    lab.load([(0.0, 3000, 500), (0.5, 100, 500), (0.6, 100, 500)])
    lab.finish()
    assert [r.decode_pod for r in sorted(lab.done, key=lambda r: r.arrived_s)] == ["d0", "d1", "d1"]


def test_requests_wait_until_both_roles_are_ready() -> None:
    lab = Lab(decodes=0)
    lab.load([(0.0, 1000, 5), (0.1, 1000, 5)])
    lab.fleet.run_until(10.0)
    assert len(lab.cluster.waiting) == 2 and not lab.done
    lab.decode("d0")
    lab.finish()
    assert [r.ttft_s for r in lab.done] == pytest.approx([10.1, 10.1])  # the second one shares no batch: it came later
    assert lab.cluster.counts.finished == 2


def test_the_waiting_room_is_bounded_and_says_what_it_dropped() -> None:
    lab = Lab(decodes=0)
    lab.load((i * 1e-4, 10, 5) for i in range(MAX_IN_SYSTEM + 7))
    lab.finish()
    assert lab.cluster.counts.dropped[Drop.QUEUE_FULL] == 7
    assert len(lab.cluster.waiting) == MAX_IN_SYSTEM


def test_a_request_longer_than_any_cache_is_dropped_by_name() -> None:
    lab = Lab(capacity=1000)
    lab.load([(0.0, 900, 200), (0.1, 500, 100)])
    lab.finish()
    assert lab.cluster.counts.dropped[Drop.TOO_LONG] == 1 and len(lab.done) == 1 and lab.cluster.in_system == 0


def test_a_lost_decode_replica_costs_a_second_prefill_over_what_was_generated() -> None:
    lab = Lab(decodes=2)
    lab.load([(0.0, 1000, 100)])
    lab.fleet.run_until(0.5)
    victim = next(d for d in lab.d if d.running)
    lab.fleet.remove(victim)
    (moved,) = lab.p[0]._batch
    assert 30 < moved.generated < 45 and moved.requeues == 1
    lab.finish()
    (request,) = lab.done
    assert request.ttft_s == pytest.approx(0.1) and request.generated == 100
    assert lab.p[0].stats.prompt_tokens > 2000 and lab.p[0].stats.ttft.count == 1
    assert request.e2e_s > 0.1 + 0.005 + 0.99 + 0.1


def test_a_lost_prefill_replica_loses_nothing() -> None:
    lab = Lab(prefills=2)
    lab.load([(0.001 * i, 2000, 3) for i in range(6)])
    lab.fleet.run_until(0.3)
    lab.fleet.remove(lab.p[0])
    lab.finish()
    assert len(lab.done) == 6 and lab.cluster.counts.requeued > 0


def test_a_replica_lost_during_the_hand_off_is_replaced() -> None:
    lab = Lab(decodes=2)
    lab.load([(0.0, 1000, 5)])
    lab.fleet.run_until(0.101)
    lab.fleet.remove(lab.d[0])
    lab.finish()
    assert lab.done[0].decode_pod == "d1" and lab.done[0].requeues == 0


def test_losing_the_last_replica_keeps_requests_waiting_in_order() -> None:
    lab = Lab()
    lab.load([(0.01 * i, 500, 50) for i in range(5)])
    lab.fleet.run_until(0.15)
    lab.fleet.remove(lab.p[0])
    lab.fleet.remove(lab.d[0])
    waiting = [r.arrived_s for r in lab.cluster.waiting]
    assert waiting == sorted(waiting)
    lab.fleet.run_until(1.0)  # hand-offs that were on their way end, and find nobody
    assert len(lab.cluster.waiting) + len(lab.cluster.waiting_decode) == 5
    lab.prefill("p9"), lab.decode("d9")
    lab.finish()
    assert len(lab.done) == 5 and lab.cluster.in_system == 0


def test_a_mixed_replica_reads_writes_and_hands_nothing_on() -> None:
    lab = Lab(prefills=0, decodes=0)
    mixed = lab.mixed("m0")
    lab.load([(1.0, 1000, 11), (1.0, 1000, 1)])
    lab.finish()
    one, other = sorted(lab.done, key=lambda r: r.output_tokens)
    assert (other.ttft_s, one.ttft_s) == (pytest.approx(0.1), pytest.approx(0.2))
    assert other.e2e_s == pytest.approx(0.1 + 10 * 0.01), "its KV cache is where it was computed"
    assert (other.prefill_pod, other.decode_pod, one.decode_pod) == ("m0", "m0", "")
    assert (mixed.stats.generation_tokens, mixed.stats.successes, mixed.pending) == (12, 2, 0)


def test_a_mixed_replica_takes_what_two_pools_have_no_room_for_while_its_own_queue_is_the_shorter_one() -> None:
    lab = Lab()
    lab.mixed("m0")
    lab.load([(0.0, 4000, 2), (0.0, 4192, 2), (0.0, 1, 2), (0.0, 9000, 2), (0.0, 1, 2)])
    lab.finish()
    placed = {request.prompt_tokens: request.prefill_pod for request in lab.done}
    assert placed[4000] == placed[4192] == "p0", "8192 are no long queue"
    assert placed[9000] == "m0" and sorted(r.prefill_pod for r in lab.done if r.prompt_tokens == 1) == ["m0", "p0"]
    full = Lab(capacity=1000)
    full.mixed("m0")
    full.load([(0.0, 600, 2), (0.0, 600, 2)])
    full.fleet.run_until(0.0)
    full.finish()
    assert {request.decode_pod for request in full.done} == {"d0"}, "nothing is promised before the prompt is read"


def test_a_lost_mixed_replica_loses_nothing_and_serves_while_half_a_pair_is_missing() -> None:
    lab = Lab(decodes=0)
    first, second = lab.mixed("m0"), lab.mixed("m1")
    lab.load([(0.0, 1000, 200), (0.0, 1000, 200)])
    lab.fleet.run_until(1.0)
    assert first.decode.running == second.decode.running == 1, "without a decode replica there is no pair"
    lab.fleet.remove(first)
    lab.finish()
    assert [request.generated for request in lab.done] == [200, 200] and lab.cluster.counts.requeued == 1
    assert {request.decode_pod for request in lab.done} == {"m1"}


def test_an_abandoned_cluster_drops_what_waits() -> None:
    lab = Lab(prefills=0)
    lab.load([(0.0, 10, 5), (1e9, 10, 5)])
    lab.fleet.run_until(1.0)
    lab.fleet.stop_load(KEY)
    lab.fleet.remove(lab.d[0])
    lab.cluster.abandon()
    lab.finish()
    assert lab.cluster.counts.dropped[Drop.CLUSTER_GONE] == 1 and lab.cluster.in_system == 0
    assert lab.cluster.counts.arrived == 1, "nothing arrives after the load was stopped"


def test_lateness_changes_no_result() -> None:
    rows = [(0.03 * i, 200 + 37 * i % 900, 5 + i % 40) for i in range(200)]
    results = []
    for step_s in (0.003, 1.7, 1000.0):
        lab = Lab(prefills=2, decodes=2)
        lab.load(rows)
        now_s = 0.0
        while len(lab.done) < len(rows):
            now_s += step_s
            while not lab.fleet.run_until(now_s):
                pass
        results.append([(r.arrived_s, r.first_token_s, r.finished_s, r.prefill_pod, r.decode_pod) for r in lab.done])
    assert results[0] == results[1] == results[2]


def test_every_kv_cache_that_is_handed_over_is_counted_where_it_comes() -> None:
    lab = Lab(prefills=2, decodes=2)
    lab.load([(0.1 * i, 1000 + i, 5) for i in range(20)])
    lab.finish()
    moved = sum(d.stats.kv_bytes.count for d in lab.d)
    assert moved == 20 and sum(d.stats.kv_tokens for d in lab.d) == sum(1001 + i for i in range(20))  # with the first token
    assert sum(d.stats.kv_bytes.total for d in lab.d) == LINK.bytes_per_token * sum(d.stats.kv_tokens for d in lab.d)
    assert all(p.stats.kv_tokens == 0 for p in lab.p)


def test_a_mixed_replica_moves_no_kv_cache() -> None:
    lab = Lab(prefills=0, decodes=0)
    alone = lab.mixed("m0")
    lab.load([(0.1, 1000, 5)])
    lab.finish()
    assert len(lab.done) == 1 and alone.stats.kv_bytes.count == 0


def test_a_kv_cache_on_its_way_is_shown_at_the_engine_that_waits_for_it() -> None:
    lab = Lab()
    lab.load([(0.0, 1000, 5)])
    lab.fleet.run_until(0.1001)  # read after 0.1 s, and 5 ms on the way
    cluster = lab.fleet.clusters[KEY]
    assert cluster.coming(lab.d[0]) == 1 and lab.d[0].waiting == 0
    lab.fleet.run_until(0.11)
    assert cluster.coming(lab.d[0]) == 0
