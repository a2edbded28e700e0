"""Emulated engines: batching, exact step times in closed form, joining and leaving between steps, eviction."""

from dataclasses import dataclass

import pytest
from splitwatt_twin.engine import COALESCE_S, IDLE, MAX_DECODE_BATCH, DecodeEngine, PrefillEngine
from splitwatt_twin.requests import ClusterKey, Request
from splitwatt_twin.stats import EngineStats, Histogram

KEY = ClusterKey("serving", "chat")


@dataclass
class LinearPace:
    """Times that are easy to add up by hand: 0.1 ms a prompt token, 10 ms a step plus 1 us a context token in all."""

    slower: float = 1.0

    def prefill_s(self, tokens: int) -> float:
        return tokens * 1e-4 * self.slower

    def decode_s(self, batch: int, context_tokens: float) -> float:
        return (0.010 + batch * context_tokens * 1e-6) * self.slower


def request(prompt: int = 100, output: int = 10, *, arrived_s: float = 0.0) -> Request:
    return Request(cluster=KEY, arrived_s=arrived_s, prompt_tokens=prompt, output_tokens=output)


def prefilled(prompt: int, output: int, *, at_s: float = 0.0) -> Request:
    made = request(prompt, output)
    made.token(at_s)
    return made


def prefill_engine() -> PrefillEngine:
    return PrefillEngine(name="p", pace=LinearPace(), stats=EngineStats())


def decode_engine(capacity: int = 100_000) -> DecodeEngine:
    return DecodeEngine(name="d", pace=LinearPace(), kv_capacity_tokens=capacity, stats=EngineStats())


def take_in(engine: DecodeEngine, made: Request, now_s: float) -> None:
    engine.commit(made)
    engine.arrive(made, now_s)


def run_dry(engine: DecodeEngine) -> list[Request]:
    done = []
    while engine.due_s != IDLE:
        done += engine.fire()
    return done


def test_a_prefill_batches_up_to_2048_tokens_first_come() -> None:
    engine = prefill_engine()
    sizes = [500, 1000, 800, 300, 900, 3000, 10]
    for size in sizes:
        engine.submit(request(size), 0.0)
    batches, ends = [], []
    while engine.due_s != IDLE:
        ends.append(engine.due_s)
        batches.append([r.prompt_tokens for r in engine.fire()])
    # The first came alone to an idle engine; a long prompt runs alone; order is kept.
    assert batches == [[500], [1000, 800], [300, 900], [3000], [10]]
    assert ends == pytest.approx([0.05, 0.23, 0.35, 0.65, 0.651])
    assert engine.pending_tokens == 0 and engine.stats.prompt_tokens == sum(sizes)


def test_an_unloaded_decode_takes_the_sum_of_its_steps() -> None:
    engine, pace = decode_engine(), LinearPace()
    take_in(engine, prefilled(1000, 50), 5.0)
    (done,) = run_dry(engine)
    assert done.finished_s is not None
    # One token came from the prefill; step i reads 1001 + i tokens of context.
    assert done.finished_s - 5.0 == pytest.approx(sum(pace.decode_s(1, 1001 + i) for i in range(49)))
    assert engine.stats.generation_tokens == 49 and engine.stats.tbt.count == 49
    assert engine.stats.tbt.total == pytest.approx(done.finished_s)  # the first gap counts from the first token, at 0


def test_a_joining_sequence_waits_for_the_end_of_the_running_step_only() -> None:
    engine = decode_engine()
    first, second = prefilled(100, 1000), prefilled(100, 3)
    take_in(engine, first, 0.0)
    step_s = LinearPace().decode_s(1, 101)
    due = engine.due_s
    assert 3 * step_s < due <= COALESCE_S
    take_in(engine, second, 2.5 * step_s)
    assert engine.due_s == pytest.approx(3 * step_s, rel=1e-3) and engine.due_s < due
    assert engine.running == 1 and engine.waiting == 1
    engine.fire()
    assert engine.running == 2 and engine.waiting == 0


def test_kv_capacity_holds_back_what_does_not_fit_until_something_ends() -> None:
    engine = decode_engine(capacity=1000)
    small, big, next_small = prefilled(300, 100), prefilled(500, 200), prefilled(200, 90)
    for made in (small, big, next_small):
        take_in(engine, made, 0.0)
    # The one behind the big one does not overtake it.
    assert (engine.running, engine.waiting) == (1, 2)
    assert engine.committed_tokens == 400 + 700 + 290
    done = run_dry(engine)
    assert done[0] is small and set(done[1:]) == {big, next_small}
    assert next_small.finished_s is not None and small.finished_s is not None
    assert next_small.finished_s > small.finished_s
    assert engine.committed_tokens == 0 and engine.kv_usage == 0


def test_a_decode_batch_is_bounded() -> None:
    engine = decode_engine(capacity=10**9)
    for _ in range(MAX_DECODE_BATCH + 5):
        take_in(engine, prefilled(10, 20), 0.0)
    engine.fire()
    assert (engine.running, engine.waiting) == (MAX_DECODE_BATCH, 5)
    assert len(run_dry(engine)) == MAX_DECODE_BATCH + 5


def test_a_slower_pace_counts_from_the_next_stretch() -> None:
    pace = LinearPace()
    engine = DecodeEngine(name="d", pace=pace, kv_capacity_tokens=10**6, stats=EngineStats())
    take_in(engine, prefilled(100, 100), 0.0)
    pace.slower = 3.0
    cut_s = engine.due_s
    engine.fire()
    assert cut_s <= COALESCE_S and engine.due_s - cut_s == pytest.approx(0.03 * 1, rel=0.05)


def test_eviction_keeps_the_tokens_of_whole_steps() -> None:
    engine = decode_engine()
    running, waiting = prefilled(100, 1000), prefilled(100_000, 5)
    take_in(engine, running, 0.0)
    take_in(engine, waiting, 0.0)  # never fits
    step_s = LinearPace().decode_s(1, 101)
    held = engine.evict(2.5 * step_s)
    assert held == [running, waiting]
    assert (running.generated, waiting.generated) == (3, 1)
    assert running.last_token_s == pytest.approx(2 * step_s, rel=1e-3)
    assert engine.due_s == IDLE and engine.committed_tokens == 0 and engine.kv_usage == 0


def test_prefill_eviction_hands_back_batch_and_queue() -> None:
    engine = prefill_engine()
    made = [request(2000), request(50), request(70)]
    for one in made:
        engine.submit(one, 0.0)
    assert engine.evict() == made
    assert engine.pending_tokens == 0 and engine.due_s == IDLE


def test_histogram_buckets_are_cumulative_and_include_their_bound() -> None:
    histogram = Histogram((0.1, 0.5))
    histogram.observe(0.1)
    histogram.observe(0.2, times=3)
    histogram.observe(9.0)
    assert histogram.cumulative() == [("0.1", 1), ("0.5", 4), ("+Inf", 5)]
    assert histogram.count == 5 and histogram.total == pytest.approx(9.7)
