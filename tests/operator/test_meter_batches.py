"""Many meters in one query: what one of them does to the others, against a stub with every fault and the real Prometheus."""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
from collections.abc import AsyncIterator, Collection
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st
from splitwatt_core.budget.facts import MeterFailure, MeterReading
from splitwatt_core.budget.tree import BudgetSpec, MeterSpec
from splitwatt_lab import ports
from splitwatt_lab.ports import LOOPBACK
from splitwatt_lab.processes import ProcessGroup
from splitwatt_lab.prometheus import PrometheusServer
from splitwatt_lab.servers import start_server
from splitwatt_operator.telemetry import batches as law
from splitwatt_operator.telemetry.batches import ALONE_S, FAMILY_SHARE, MAX_TOGETHER, Asked, Batches
from splitwatt_operator.telemetry.endpoint import EndPoint
from splitwatt_operator.telemetry.meters import Readings, Telemetry
from splitwatt_operator.telemetry.prometheus import PrometheusClient
from splitwatt_operator.telemetry.queries import SLOT, meter_query
from support.waiting import PATIENCE_S

# ---------------------------------------------------------------------------------------------------------- who with whom

LENGTHS = st.lists(st.integers(1, 4000), max_size=120)


@given(LENGTHS, st.sampled_from(["GET", "POST"]), st.sets(st.integers(0, 119), max_size=10))
def test_everybody_is_asked_once_and_no_query_is_too_long(lengths: list[int], method: str, bad: set[int]) -> None:
    queries = [f"{k}:" + "x" * length for k, length in enumerate(lengths)]
    batches = Batches()
    for k in bad & set(range(len(queries))):
        batches.learn([Asked((queries[k],), False, 0.1, blamed=True)], alive=True, now_s=0.0)
    together = batches.together(queries, method=method, now_s=1.0)
    asked = [query for batch in together for query in batch]
    alone = batches.alone(queries)
    assert sorted([*asked, *alone]) == sorted(queries)
    assert {queries.index(query) for query in alone} == bad & set(range(len(queries)))
    room = law.MAX_GET_BYTES if method == "GET" else law.MAX_POST_BYTES
    for batch in together:
        assert len(batch) <= MAX_TOGETHER
        assert len(batch) == 1 or sum(map(len, batch)) <= room


@given(st.integers(1, 60), st.sets(st.integers(0, 59), max_size=5))
def test_the_culprits_stay_alone_and_everybody_else_comes_back(count: int, culprits: set[int]) -> None:
    queries = [f"q{k}" for k in range(count)]
    bad = {queries[k] for k in culprits if k < count}
    batches = Batches()
    for second in range(6):
        together = batches.together(queries, method="POST", now_s=second)
        rows = [Asked(batch, not bad & set(batch), 0.01, blamed=bool(bad & set(batch))) for batch in together]
        batches.learn(rows, alive=True, now_s=second)
        alone = [Asked((query,), query not in bad, 0.01, blamed=query in bad) for query in batches.alone(queries)]
        batches.learn(alone, alive=True, now_s=second)
        assert set(batches.alone(queries)) == bad
    later_s = 6 + ALONE_S
    batches.learn([Asked((query,), True, 0.01) for query in bad], alive=True, now_s=later_s)
    assert batches.alone(queries) == [], "and when they are well again, for long enough, they are like everybody else"


def test_nobody_is_suspected_while_the_server_is_away() -> None:
    batches = Batches()
    batches.learn([Asked(("a", "b"), False, 0.8, blamed=True), Asked(("c",), False, 0.8, blamed=True)], alive=False, now_s=0.0)
    assert batches.alone("abc") == []
    assert batches.together("abc", method="POST", now_s=0.0) == [("a", "b", "c")]


def test_a_joint_query_that_fails_for_none_of_its_members_was_too_long() -> None:
    queries = [f"q{k}" for k in range(MAX_TOGETHER)]
    batches = Batches()
    for second in range(2):
        together = batches.together(queries, method="POST", now_s=second)
        batches.learn([Asked(b, len(b) < 20, 0.01, blamed=len(b) >= 20) for b in together], alive=True, now_s=second)
        alone = batches.alone(queries)
        batches.learn([Asked((query,), True, 0.01) for query in alone[:-1]], alive=True, now_s=second)
        batches.learn([Asked((query,), True, 0.01) for query in alone[-1:]], alive=True, now_s=second)
        assert batches.alone(queries) == [] and (second == 0) == bool(alone)
    assert list(map(len, together)) == [12, 12, 1]


def test_after_a_slow_query_fewer_are_asked_together_for_a_while() -> None:
    queries = [f"q{k}" for k in range(MAX_TOGETHER)]
    batches = Batches()
    batches.learn([Asked(tuple(queries), True, law.SLOW_S + 0.1)], alive=True, now_s=0.0)
    assert max(map(len, batches.together(queries, method="POST", now_s=1.0))) == MAX_TOGETHER // 2
    assert batches.alone(queries) == []
    assert len(batches.together(queries, method="POST", now_s=1.0 + law.FEWER_S)) < 3
    for second in range(100):
        small = batches.together(queries, method="POST", now_s=500.0 + second)
        batches.learn([Asked(batch, True, law.SLOW_S + 0.1) for batch in small], alive=True, now_s=500.0 + second)
    assert max(map(len, small)) == law.MIN_TOGETHER


# ------------------------------------------------------------------------------------------------------------ on the wire

RACK = re.compile(r'rack="([^"]*)"')
FAMILY = re.compile(r'rack=~"([^"]*)"')
MEMBER = re.compile(rf', "{SLOT}", "(\d+)", "", ""\)')


@dataclass
class Stub:
    """Answers 1000 W for each rack that is asked about, at once, and does to a query what its worst member does to it."""

    refused: Collection[str] = ()
    slow: Collection[str] = ()
    many: Collection[str] = ()
    longest: int = 1_000_000
    partial: Collection[str] = ()
    doubled: bool = False
    away: bool = False
    plain: str = ""
    """Status with which whoever asks for a family is turned away, "": nobody is."""
    asked: list[list[str]] = field(default_factory=list)
    url: str = ""

    async def handle(self, request: web.Request) -> web.Response:
        query = str((await request.post())["query"])
        family = FAMILY.search(query)
        racks = family[1].split("|") if family else list(dict.fromkeys(RACK.findall(query)))
        if request.path.endswith("parse_query"):
            return (
                self._refusal()
                if set(racks) & set(self.refused)
                else web.json_response({"status": "success", "data": {"type": "vectorSelector"}})
            )
        if family and self.plain:
            return web.Response(status=403 if self.plain == "403" else 400, text="no such thing here")
        if self.away:
            await asyncio.sleep(30)
        if not racks:
            return self._rows([])
        self.asked.append(racks)
        if len(query) > self.longest:
            return web.Response(status=414, text="Request-URI Too Large")
        if set(racks) & set(self.refused):
            return self._refusal()
        if set(racks) & set(self.many):
            error = {"status": "error", "errorType": "execution", "error": "query processing would load too many samples"}
            return web.json_response(error, status=422)
        if set(racks) & set(self.slow):
            await asyncio.sleep(30)
        if family:
            return self._rows([{"rack": rack} for rack in racks], **self._lacking(racks))
        slots = MEMBER.findall(query) or [None]
        assert len(slots) == len(racks)
        return self._rows([{} if slot is None else {SLOT: slot} for slot in slots], **self._lacking(racks))

    def _lacking(self, racks: Collection[str]) -> dict[str, object]:
        return {"warnings": ["a store gave no answer"]} if set(racks) & set(self.partial) else {}

    @staticmethod
    def _refusal() -> web.Response:
        return web.json_response({"status": "error", "errorType": "bad_data", "error": "missing closing )"}, status=400)

    def _rows(self, members: list[dict[str, str]], **more: object) -> web.Response:
        parts: dict[str, float] = {"value": 1000.0, "count": 1, "oldest": 77.0}
        rows: list[dict[str, object]] = [
            {"metric": {**m, "splitwatt_part": p}, "value": [1, str(v)]} for m in members for p, v in parts.items()
        ]
        rows = rows * 2 if self.doubled else rows
        return web.Response(text=json.dumps({"status": "success", "data": {"resultType": "vector", "result": rows}, **more}))


@pytest.fixture
async def stub() -> AsyncIterator[Stub]:
    made = Stub()
    application = web.Application()
    application.router.add_post("/{tail:.*}", made.handle)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, LOOPBACK, 0).start()
    made.url = f"http://{LOOPBACK}:{runner.addresses[0][1]}"
    yield made
    await runner.cleanup()


def racks(count: int) -> list[BudgetSpec]:
    return [metered(f"r{k}", f'rack_power_watts{{rack="r{k}"}}') for k in range(count)]


def metered(name: str, selector: str) -> BudgetSpec:
    return BudgetSpec(name=name, uid=name, generation=1, limit_w=9000, meter=MeterSpec(selector))


def blind(readings: Readings) -> set[str]:
    return {name for name, reading in readings.meters.items() if isinstance(reading, MeterFailure)}


async def test_hundreds_of_meters_cost_a_handful_of_queries(stub: Stub) -> None:
    async with PrometheusClient(stub.url, timeout_s=5.0) as prometheus:
        readings = await Telemetry(prometheus).read([*racks(200), metered("twin", 'rack_power_watts{rack="r7"}')])
    assert not blind(readings) and len(readings.meters) == 201
    assert len(stub.asked) == 2, "of one family"
    assert sum(map(len, stub.asked)) == 200, "meters that are the same are asked once"


async def test_meters_of_no_family_cost_a_handful_of_queries_too(stub: Stub) -> None:
    apart = [metered(f"r{k}", f'power_{k}_watts{{rack="r{k}"}}') for k in range(200)]
    async with PrometheusClient(stub.url, timeout_s=5.0) as prometheus:
        readings = await Telemetry(prometheus).read(apart)
    assert not blind(readings) and len(readings.meters) == 200
    assert len(stub.asked) <= 12


async def test_a_server_that_likes_no_families_is_asked_as_ever(stub: Stub) -> None:
    """Nobody is blind for it even in the first round, and it is not tried again at once."""
    stub.plain = "400"
    async with PrometheusClient(stub.url, timeout_s=5.0) as prometheus:
        telemetry = Telemetry(prometheus)
        for _ in range(3):
            stub.asked.clear()
            assert not blind(await telemetry.read(racks(60)))
    assert len(stub.asked) == 3 and max(map(len, stub.asked)) <= MAX_TOGETHER, "joined, none alone"


@pytest.mark.parametrize("kind", ["refused", "many", "partial"])
async def test_who_fails_a_query_at_once_blinds_nobody_else_in_it(stub: Stub, kind: str) -> None:
    setattr(stub, kind, ["r3", "r40"])
    async with PrometheusClient(stub.url, timeout_s=5.0) as prometheus:
        telemetry = Telemetry(prometheus)
        for _ in range(3):
            stub.asked.clear()
            readings = await telemetry.read(racks(60))
            assert blind(readings) == {"r3", "r40"}
        assert len(stub.asked) <= 10, "the others are asked together again"
        assert set(readings.invalid) == ({"r3", "r40"} if kind == "refused" else set())


async def test_who_never_answers_blinds_its_neighbours_for_one_round_at_most(stub: Stub) -> None:
    stub.slow = ["r3"]
    async with PrometheusClient(stub.url, timeout_s=2.0) as prometheus:
        telemetry = Telemetry(prometheus)
        first = blind(await telemetry.read(racks(60)))
        assert "r3" in first and len(first) <= FAMILY_SHARE * MAX_TOGETHER
        for _ in range(2):
            begun_s = time.monotonic()
            assert blind(await telemetry.read(racks(60))) == {"r3"}
            assert time.monotonic() - begun_s < 4.0


async def test_a_proxy_that_takes_short_queries_only_is_obeyed(stub: Stub) -> None:
    stub.longest = 4000
    async with PrometheusClient(stub.url, timeout_s=5.0) as prometheus:
        telemetry = Telemetry(prometheus)
        for _ in range(4):
            stub.asked.clear()
            assert not blind(await telemetry.read(racks(60)))
    assert len(stub.asked) < 30


async def test_two_tenants_answers_are_seen_in_a_joint_query_as_well(stub: Stub) -> None:
    stub.doubled = True
    async with PrometheusClient(stub.url, timeout_s=5.0) as prometheus:
        readings = await Telemetry(prometheus).read(racks(2))
    for reading in readings.meters.values():
        assert isinstance(reading, MeterFailure) and "answered more than once" in reading.reason


async def test_a_silent_server_ends_no_round_late_and_makes_no_suspects(stub: Stub) -> None:
    stub.away = True
    async with PrometheusClient(stub.url, timeout_s=0.5) as prometheus:
        telemetry = Telemetry(prometheus)
        begun_s = time.monotonic()
        assert len(blind(await telemetry.read(racks(500)))) == 500
        assert time.monotonic() - begun_s < 3.0, "500 queries one after another would take longer"
        stub.away = False
        stub.asked.clear()
        prometheus.timeout_s = 5.0
        assert not blind(await telemetry.read(racks(500)))
        assert len(stub.asked) <= 30


# ----------------------------------------------------------------------------------------------------- the real Prometheus

NAMES = ["a1", "a2", "a1|a2", "a.1", "aa1", "a+1", "x y", "(", "[b]", "a-1", "ä", "^a1$", "a*", "{1}", "b?", "c/d", "e,f", "g=~h"]
EXPORTER = (
    f"NAMES = {NAMES!r}"
    + """
import sys
from prometheus_client import Gauge, start_http_server
rack = Gauge("rack_power_watts", "At the meter.", ["rack"])
for k in range(120):
    rack.labels(f"r{k}").set(1000 + k)
odd = Gauge("odd_watts", "Named as nobody should.", ["rack", "feed"])
for n, name in enumerate(NAMES):
    odd.labels(name, "A").set(n)
    odd.labels(name, "B").set(100 + n)
many = Gauge("everything_watts", "Too many.", ["k"])
for k in range(3000):
    many.labels(str(k)).set(1)
start_http_server(int(sys.argv[1]), addr="127.0.0.1")
__import__("time").sleep(3600)
"""
)


@pytest.mark.parametrize("method", ["POST", "GET"])
async def test_the_real_prometheus_tells_all_of_them_but_the_bad_ones(tmp_path: Path, method: str) -> None:
    bad = [
        metered("regex", 'rack_power_watts{rack=~"("}'),
        metered("many", "everything_watts"),
        metered("nobody", 'rack_power_watts{rack="zz"}'),
    ]
    odd = [metered(f"odd{n}", f'odd_watts{{rack="{name}", feed!="B"}}') for n, name in enumerate(NAMES)]
    budgets = [*racks(60), *bad, *odd, *racks(120)[60:]]
    with ProcessGroup(tmp_path / "processes") as group:
        _, port = start_server(
            group,
            "exporter",
            lambda port: [sys.executable, "-c", EXPORTER, str(port)],
            healthy=lambda port: not ports.is_free(port),
        )
        server = PrometheusServer(group, tmp_path / "prometheus", flags=["--query.max-samples=2000"])
        server.set_targets("agent", {f"{LOOPBACK}:{port}": {}})
        server.start()
        async with (
            PrometheusClient(EndPoint(server.url, method=method), timeout_s=5.0) as prometheus,
            asyncio.timeout(PATIENCE_S),
        ):
            telemetry = Telemetry(prometheus)
            readings = await telemetry.read(racks(1))
            while blind(readings):
                await asyncio.sleep(0.3)
                readings = await telemetry.read(racks(1))
            readings = await telemetry.read(budgets)
            while blind(readings) != {"regex", "many", "nobody"}:  # a busy machine answers some too late
                await asyncio.sleep(0.3)
                readings = await telemetry.read(budgets)
    for k in range(120):
        reading = readings.meters[f"r{k}"]
        assert isinstance(reading, MeterReading)
        assert (reading.power_w, reading.series, reading.extremes_w) == (1000.0 + k, 1, (1000.0 + k, 1000.0 + k))
    for n, name in enumerate(NAMES):
        reading = readings.meters[f"odd{n}"]
        assert isinstance(reading, MeterReading), name
        assert (reading.power_w, reading.series) == (float(n), 1), name
    failures = {name: str(readings.meters[name]) for name in ("regex", "many", "nobody")}
    assert "missing closing" in failures["regex"] and set(readings.invalid) == {"regex"}
    assert "too many samples" in failures["many"]
    assert "no series matches" in failures["nobody"]


def test_a_joint_query_fits_what_it_is_counted_for() -> None:
    """`SLOT_BYTES` covers what telling the members apart adds."""
    query = meter_query(MeterSpec("m"))
    for slot in (0, MAX_TOGETHER - 1):
        added = len(f' or label_replace({query}, "{SLOT}", "{slot}", "", "")') - len(query)
        assert added <= law.SLOT_BYTES
