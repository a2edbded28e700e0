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
from splitwatt_operator.telemetry.meters import Telemetry
from splitwatt_operator.telemetry.prometheus import PrometheusClient, QueryError, QueryInvalidError, Sample
from splitwatt_operator.telemetry.queries import PART, AgentReading, agent_queries, agents_of, meter_query, reading_of
from splitwatt_operator.telemetry.selector import problem_of, problem_of_tree

PLAIN = 'rack_power_watts{rack="a1"}'
AGENT_POWER_QUERY, AGENT_TIME_QUERY = agent_queries()
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


@pytest.mark.parametrize(
    "row",
    [
        {"metric": {}, "value": [1, 10**400]},
        {"metric": {}, "value": 12},
        {"metric": {}, "value": [1.0, "12", "13"]},
        {"metric": None, "value": [1.0, "12"]},
        {"metric": {}, "histogram": [1.0, {}]},
        None,
        7,
    ],
)
async def test_a_row_of_any_other_shape_is_told_and_ends_nothing(server: Server, row: Any) -> None:
    server.answer = lambda path, query: (200, {"status": "success", "data": {"resultType": "vector", "result": [row]}})
    async with PrometheusClient(server.url, timeout_s=5.0) as prometheus:
        with pytest.raises(QueryError, match="malformed sample"):
            await prometheus.vector("up")
        assert (await Telemetry(prometheus).read([budget("a", PLAIN)])).failures == 2


async def test_labels_that_are_no_text_end_nothing(server: Server) -> None:
    server.answer = lambda path, query: (
        200, {"status": "success", "data": {"resultType": "vector", "result": [{"metric": {"node": ["x"]}, "value": [1, "2"]}]}}
    )  # fmt: skip
    async with PrometheusClient(server.url, timeout_s=5.0) as prometheus:
        assert "x" not in (await Telemetry(prometheus).read([])).agents


def test_one_question_answered_twice_is_no_reading() -> None:
    """What stands before several servers may put their answers together, one beside the other."""
    whole = [part("value", 10.0), part("count", 1.0), part("oldest", 77.0)]
    found = reading_of(MeterSpec(PLAIN), [*whole, part("value", 900.0)])
    assert isinstance(found, MeterFailure) and "answered more than once" in found.reason


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


def part(name: str, value: float) -> Sample:
    return Sample({PART: name}, value)


def test_a_reading_needs_value_count_and_age() -> None:
    whole = [part("value", 0.0), part("count", 2.0), part("oldest", 77.0)]
    plain = MeterSpec(PLAIN)
    assert reading_of(plain, whole) == MeterReading(power_w=0.0, sampled_s=77.0, series=2)
    assert isinstance(reading_of(plain, []), MeterFailure)
    for missing in range(3):
        assert isinstance(reading_of(plain, whole[:missing] + whole[missing + 1 :]), MeterFailure)


def test_series_that_hold_no_number_are_told_from_no_series() -> None:
    """Prometheus counts a NaN, and gives it an age; the sum is NaN, which no answer carries."""
    found = reading_of(MeterSpec(PLAIN), [part("count", 1.0), part("oldest", 77.0)])
    assert isinstance(found, MeterFailure) and "no number (NaN" in found.reason


@pytest.mark.parametrize(
    ("scale", "raw", "power_w"), [((1000, 1), 26.4, 26_400.0), ((1, 10), 264_000.0, 26_400.0), ((10, 1), 2640.0, 26_400.0)]
)
def test_a_meters_unit_becomes_watts_with_its_extremes(scale: tuple[int, int], raw: float, power_w: float) -> None:
    parts = [part("value", raw), part("count", 2.0), part("oldest", 7.0), part("least", raw / 4), part("most", raw / 2)]
    found = reading_of(MeterSpec(PLAIN, expected_series=2, scale=scale), parts)
    assert isinstance(found, MeterReading)
    assert found.power_w == pytest.approx(power_w)
    assert found.extremes_w == pytest.approx((power_w / 4, power_w / 2))


def test_the_age_of_a_recorded_series_is_its_sources() -> None:
    meter = MeterSpec("rack:power:sum", age_selector="pdu_power_watts")
    assert "min(timestamp(pdu_power_watts))" in meter_query(meter) and "sum(rack:power:sum)" in meter_query(meter)
    gone = reading_of(meter, [part("value", 7.0), part("count", 1.0)])
    assert isinstance(gone, MeterFailure) and "meter.ageSelector pdu_power_watts now: its source is gone" in gone.reason


def test_matchers_stand_in_every_selector() -> None:
    meter = MeterSpec(PLAIN, age_selector="raw")
    asked = [meter_query(meter, ['cluster="b"']), *agent_queries(['cluster="b"'])]
    assert 'sum(rack_power_watts{rack="a1",cluster="b"})' in asked[0]
    assert 'timestamp(raw{cluster="b"})' in asked[0]
    for query in asked:
        assert query.count('cluster="b"') == query.count("}") - query.count('{rack="a1"}')
    assert PLAIN not in asked[0]


def agent(node: str, value: float, **labels: str) -> Sample:
    return Sample({"node": node, "job": "agent", **labels}, value)


def test_of_how_many_gpus_an_agents_sum_is_comes_with_its_time() -> None:
    power = [agent("gpu-0", 400.0), agent("gpu-1", 100.0)]
    times = [agent("gpu-0", 50.0), agent("gpu-1", 50.0), agent("gpu-0", 7.0, **{PART: "count"})]
    readings, _ = agents_of(power, times, silent_s=5.0)
    assert readings == {"gpu-0": AgentReading(400.0, 50.0, 7), "gpu-1": AgentReading(100.0, 50.0, None)}


def test_two_agents_of_one_node_are_an_error_that_names_both_and_no_sum() -> None:
    power = [agent("gpu-0", 400.0, cluster="a"), agent("gpu-0", 400.0, cluster="b"), agent("gpu-1", 100.0, cluster="a")]
    times = [agent("gpu-0", 50.0, cluster="a"), agent("gpu-0", 49.0, cluster="b"), agent("gpu-1", 50.0, cluster="a")]
    readings, doubts = agents_of(power, times, silent_s=5.0)
    assert {node: reading.power_w for node, reading in readings.items()} == {"gpu-1": 100.0}
    assert doubts["gpu-0"].startswith(
        '2 agents say they are of node gpu-0: {cluster="a"} and {cluster="b"}; keep one by a matcher'
    )


def test_what_a_former_agent_left_behind_is_no_second_one() -> None:
    """Some servers show a series for minutes after its pod is gone."""
    power = [agent("gpu-0", 400.0, pod="old"), agent("gpu-0", 300.0, pod="new")]
    times = [agent("gpu-0", 40.0, pod="old"), agent("gpu-0", 50.0, pod="new")]
    readings, doubts = agents_of(power, times, silent_s=5.0)
    assert readings["gpu-0"].power_w == 300.0 and not doubts


@pytest.mark.parametrize(
    ("mark", "said"),
    [
        ({"warnings": ["store 10.0.0.7:10901: deadline exceeded"]}, "store 10.0.0.7:10901: deadline exceeded"),
        ({"isPartial": True}, "isPartial"),
        ({"infos": ["PromQL info: a hint"], "warnings": [], "isPartial": False}, ""),
        ({"warnings": None}, ""),
    ],
)
async def test_an_answer_from_part_of_the_data_is_no_sum(server: Server, mark: dict[str, Any], said: str) -> None:
    """Thanos, remote read and VictoriaMetrics' cluster answer 200 with what they could reach."""
    server.answer = lambda path, query: (200, {**parts("400", "1", "77"), **mark})
    async with PrometheusClient(server.url, timeout_s=5.0) as prometheus:
        reading = (await Telemetry(prometheus).read([budget("a", PLAIN)])).meters["a"]
    if said:
        assert isinstance(reading, MeterFailure) and "part of its data" in reading.reason and said in reading.reason
    else:
        assert isinstance(reading, MeterReading) and reading.power_w == 400.0


async def test_one_bad_meter_leaves_the_others(server: Server) -> None:
    def answer(path: str, query: str) -> tuple[int, Any]:
        if "~" in query:
            return 400, {"status": "error", "errorType": "bad_data", "error": "missing closing )"}
        if path.endswith("parse_query"):
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
    query = meter_query(MeterSpec(PLAIN))
    for asked in ("sum", "count", "min", "max"):
        assert f"{asked}({PLAIN})" in query
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
