"""Whatever comes and goes, no request and no token is lost or made up."""

import math

from hypothesis import given
from hypothesis import strategies as st
from splitwatt_twin.arrivals import Arrival
from splitwatt_twin.cluster import KvLink
from splitwatt_twin.engine import DecodeEngine, PrefillEngine
from splitwatt_twin.fleet import EngineFleet
from splitwatt_twin.mixed import MixedEngine
from splitwatt_twin.requests import ClusterKey, Request
from splitwatt_twin.stats import EngineStats

KEY = ClusterKey("serving", "chat")
CAPACITY = 4_000


class Pace:
    def prefill_s(self, tokens: int) -> float:
        return 0.002 + tokens * 1e-4

    def decode_s(self, batch: int, context_tokens: float) -> float:
        return 0.008 + batch * 2e-4 + batch * context_tokens * 1e-7


REQUESTS = st.lists(st.tuples(st.floats(0, 0.2), st.integers(1, 3000), st.integers(1, 80)), min_size=1, max_size=60)
# (seconds until it, role, what): a replica is added, or the oldest one of the role is lost.
CHANGES = st.lists(
    st.tuples(st.floats(0, 0.5), st.sampled_from(["prefill", "decode", "mixed"]), st.sampled_from(["add", "lose"])), max_size=15
)
BEGIN = st.sampled_from([("prefill", "decode"), ("mixed",), ("prefill", "decode", "mixed")])


@given(REQUESTS, CHANGES, BEGIN)
def test_requests_and_tokens_are_conserved(
    requests: list[tuple[float, int, int]], changes: list[tuple[float, str, str]], begin: tuple[str, ...]
) -> None:
    done: list[Request] = []
    fleet = EngineFleet(now_s=0.0, finished=done.append, touched=lambda _: None)
    link = KvLink(bytes_per_token=327_680, gbit_per_s=400, remainder_s=0.005)
    engines: dict[str, list[PrefillEngine | DecodeEngine | MixedEngine]] = {"prefill": [], "decode": [], "mixed": []}
    every: list[PrefillEngine | DecodeEngine | MixedEngine] = []

    def add(role: str) -> None:
        name = f"{role}-{len(every)}"
        stats = EngineStats()
        prefill = PrefillEngine(name=name, pace=Pace(), stats=stats)
        decode = DecodeEngine(name=name, pace=Pace(), kv_capacity_tokens=CAPACITY, stats=stats)
        kinds: dict[str, PrefillEngine | DecodeEngine | MixedEngine]
        kinds = {"prefill": prefill, "decode": decode, "mixed": MixedEngine(prefill, decode)}
        engine = kinds[role]
        engines[role].append(engine)
        every.append(engine)
        fleet.add(KEY, engine, link=link)

    at_s, rows = 0.0, []
    for gap, prompt, output in requests:
        at_s += gap
        rows.append(Arrival(at_s, prompt, output))
    for role in begin:
        add(role)
    fleet.start_load(KEY, iter(rows), origin_s=0.0)
    now_s = 0.0
    for gap, role, what in changes:
        now_s += gap
        assert fleet.run_until(now_s)
        if what == "add":
            add(role)
        elif engines[role]:
            fleet.remove(engines[role].pop(0))
        for engine in (*engines["decode"], *engines["mixed"]):
            decode = engine.decode if isinstance(engine, MixedEngine) else engine
            assert isinstance(decode, DecodeEngine)
            assert decode._reserved_tokens <= CAPACITY and 0 <= decode.kv_usage <= 1
    for role in ("prefill", "decode"):
        if not engines[role]:
            add(role)
    while fleet.next_s != math.inf:
        fleet.run_until(fleet.next_s)

    counts = fleet.clusters[KEY].counts
    assert counts.arrived == len(rows)
    assert counts.finished == len(done) == len(rows) and sum(counts.dropped.values()) == 0
    assert fleet.clusters[KEY].in_system == 0
    assert sorted((r.arrived_s, r.prompt_tokens, r.output_tokens) for r in done) == sorted(
        (r.at_s, r.prompt_tokens, r.output_tokens) for r in rows
    )
    assert all(r.generated == r.output_tokens for r in done)
    assert sum(e.stats.generation_tokens for e in every) == sum(r.output_tokens for r in done)
    assert sum(e.stats.successes for e in every) == len(done)
    for r in done:
        assert r.first_token_s is not None and r.finished_s is not None
        assert r.arrived_s < r.first_token_s <= r.finished_s
    for engine in every:
        assert engine.running == engine.waiting == 0
        decode_of = engine.decode if isinstance(engine, MixedEngine) else engine
        if isinstance(decode_of, DecodeEngine) and (engine in engines["decode"] or engine in engines["mixed"]):
            assert decode_of.committed_tokens == 0 and decode_of._context_tokens == 0
