"""Meters: what Prometheus says, and the three ways in which it may say nothing. A real HTTP server answers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from aiohttp import web
from splitwatt_core.budget.keeper import MeterFailure, MeterReading
from splitwatt_core.budget.tree import BudgetSpec, MeterSpec
from splitwatt_operator.telemetry.meters import AGENT_POWER_QUERY, AGENT_TIME_QUERY, PART, Telemetry, meter_query, reading_of
from splitwatt_operator.telemetry.prometheus import PrometheusClient, QueryError, QueryInvalidError, Sample
from splitwatt_operator.telemetry.selector import problem_of, problem_of_tree

PLAIN = 'rack_power_watts{rack="a1"}'
Answer = Callable[[str, str], tuple[int, Any]]


def budget(name: str, selector: str) -> BudgetSpec:
    return BudgetSpec(name=name, uid=name, generation=1, limit_w=1000, meter=MeterSpec(selector=selector))


def vector(*rows: tuple[dict[str, str], str]) -> dict[str, Any]:
    result = [{"metric": labels, "value": [1.0, value]} for labels, value in rows]
    return {"status": "success", "data": {"resultType": "vector", "result": result}}


def parts(watts: str, count: str, oldest: str) -> dict[str, Any]:
    return vector(({PART: "value"}, watts), ({PART: "count"}, count), ({PART: "oldest"}, oldest))


class Server:
    """Answers as `answer(path, query)` says, and remembers what was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []
        self.answer: Answer = lambda path, query: (404, "404 page not found")
        self.delay_s = 0.0
        self.url = ""

    async def handle(self, request: web.Request) -> web.Response:
        query = str((await request.post())["query"])
        self.asked.append((request.path, query))
        await asyncio.sleep(self.delay_s)
        status, body = self.answer(request.path, query)
        text = body if isinstance(body, str) else json.dumps(body)
        return web.Response(status=status, text=text)


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    server = Server()
    application = web.Application()
    application.router.add_post("/{tail:.*}", server.handle)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    server.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield server
    await runner.cleanup()


async def test_a_vector_is_read_and_nan_is_no_data(server: Server) -> None:
    server.answer = lambda path, query: (200, vector(({"a": "1"}, "12.5"), ({"a": "2"}, "NaN"), ({"a": "3"}, "+Inf")))
    async with PrometheusClient(server.url + "/") as prometheus:
        assert await prometheus.vector("up") == [Sample({"a": "1"}, 12.5)]


async def test_no_answer_and_refusal_are_different_failures(server: Server) -> None:
    async with PrometheusClient(server.url, timeout_s=0.3) as prometheus:
        server.answer = lambda path, query: (400, {"status": "error", "errorType": "bad_data", "error": "parse error: x"})
        with pytest.raises(QueryInvalidError, match="parse error"):
            await prometheus.vector("(")
        server.answer = lambda path, query: (503, {"status": "error", "errorType": "unavailable", "error": "starting"})
        with pytest.raises(QueryError, match="starting") as failed:
            await prometheus.vector("up")
        assert not isinstance(failed.value, QueryInvalidError)
        server.answer = lambda path, query: (502, "<html>bad gateway</html>")
        with pytest.raises(QueryError, match="502"):
            await prometheus.vector("up")
        server.answer = lambda path, query: (200, {"status": "success", "data": {"resultType": "vector", "result": [{}]}})
        with pytest.raises(QueryError, match="malformed"):
            await prometheus.vector("up")
        server.delay_s = 5.0
        with pytest.raises(QueryError, match="timed out"):
            await prometheus.vector("up")
    async with PrometheusClient("http://127.0.0.1:1") as nobody:
        with pytest.raises(QueryError, match="no answer"):
            await nobody.vector("up")


def test_a_reading_needs_all_three_parts() -> None:
    whole = [Sample({PART: "value"}, 0.0), Sample({PART: "count"}, 2.0), Sample({PART: "oldest"}, 77.0)]
    assert reading_of(whole) == MeterReading(power_w=0.0, sampled_s=77.0, series=2)
    assert isinstance(reading_of([]), MeterFailure)
    for missing in range(3):
        assert isinstance(reading_of(whole[:missing] + whole[missing + 1 :]), MeterFailure)


async def test_one_bad_meter_leaves_the_others(server: Server) -> None:
    def answer(path: str, query: str) -> tuple[int, Any]:
        if path.endswith("parse_query"):
            if "~" in query:
                return 400, {"status": "error", "errorType": "bad_data", "error": "missing closing )"}
            return 200, {"status": "success", "data": {"type": "vectorSelector", "offset": 0}}
        if query == AGENT_POWER_QUERY:
            return 200, vector(({"node": "n1"}, "700"), ({"node": "n2"}, "1"))
        if query == AGENT_TIME_QUERY:
            return 200, vector(({"node": "n1"}, "55.5"))
        return (200, parts("900", "1", "66")) if "a1" in query else (200, vector())

    server.answer = answer
    async with PrometheusClient(server.url) as prometheus:
        telemetry = Telemetry(prometheus)
        budgets = [
            budget("good", PLAIN),
            budget("gone", 'rack_power_watts{rack="zz"}'),
            budget("regex", 'rack_power_watts{rack=~"("}'),
            budget("summed", "sum(rack_power_watts)"),
            BudgetSpec(name="unmetered", uid="u", generation=1, limit_w=1),
        ]
        readings = await telemetry.read(budgets)
        assert readings.meters["good"] == MeterReading(900.0, 66.0, 1)
        gone, regex = readings.meters["gone"], readings.meters["regex"]
        assert isinstance(gone, MeterFailure) and "no series" in gone.reason
        assert isinstance(regex, MeterFailure) and "missing closing" in regex.reason
        assert set(readings.meters) == {"good", "gone", "regex", "summed"}
        assert set(readings.invalid) == {"regex", "summed"}
        # A node whose sample has no time is not fed: its age could not be judged.
        assert {node: (r.power_w, r.sampled_s) for node, r in readings.agents.items()} == {"n1": (700.0, 55.5)}
        server.asked.clear()
        await telemetry.read(budgets)
        assert not [query for path, query in server.asked if path.endswith("parse_query")], "judged once is enough"
        assert not [query for _, query in server.asked if "sum(sum(" in query], "a bad selector is never sent"


async def test_a_server_that_cannot_parse_still_measures(server: Server) -> None:
    server.answer = lambda path, query: (404, "404") if "parse" in path else (200, parts("900", "1", "66"))
    async with PrometheusClient(server.url) as prometheus:
        readings = await Telemetry(prometheus).read([budget("good", PLAIN)])
    assert readings.meters["good"] == MeterReading(900.0, 66.0, 1)
    assert not readings.invalid


async def test_a_silent_prometheus_is_a_failure_of_every_meter_and_of_no_budget(server: Server) -> None:
    async with PrometheusClient("http://127.0.0.1:1") as prometheus:
        readings = await Telemetry(prometheus).read([budget("a", PLAIN), budget("b", PLAIN)])
    assert {name: type(reading) for name, reading in readings.meters.items()} == {"a": MeterFailure, "b": MeterFailure}
    assert not readings.invalid
    assert not readings.agents
    assert readings.failures == 3


def test_the_meter_query_asks_for_value_count_and_age_at_once() -> None:
    query = meter_query(PLAIN, "Sum")
    assert f"sum({PLAIN})" in query
    assert f"count({PLAIN})" in query
    assert f"min(timestamp({PLAIN}))" in query


@pytest.mark.parametrize(
    ("selector", "word"),
    [
        ("sum(rack_power_watts)", "sum()"),
        ("sum by (rack) (rack_power_watts)", "sum()"),
        ("rate(rack_energy_joules_total[1m])", "rate()"),
        ("rack_power_watts[5m]", "range"),
        ("rack_power_watts offset 5m", "shifts time"),
        ("rack_power_watts @ 5", "shifts time"),
        ("rack_power_watts + 1", "plain series selector"),
        ("", "plain series selector"),
    ],
)
def test_anything_but_a_plain_selector_is_refused_with_advice(selector: str, word: str) -> None:
    problem = problem_of(selector)
    assert problem is not None
    assert word in problem
    assert "write a plain series selector" in problem


def test_plain_selectors_pass() -> None:
    for selector in ("rack_power_watts", PLAIN, 'a{b=~"x(y|z)",c!="[5m] offset sum("}'):
        assert problem_of(selector) is None
    assert problem_of_tree(PLAIN, {"type": "vectorSelector", "offset": 0}) is None
    assert problem_of_tree(PLAIN, {"type": "vectorSelector", "offset": 60000}) is not None
    assert problem_of_tree(PLAIN, {"type": "aggregation"}) is not None
