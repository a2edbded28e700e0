"""The process around the loops: parts that end together, a canary, options, logs, the port."""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path
from typing import Any

import httpx
import pytest
from splitwatt_operator.budgets.decision_log import DecisionLog, LogFileError
from splitwatt_operator.cluster.canary import BlindError, Canary
from splitwatt_operator.cluster.facts import pod_fact, sentence_of
from splitwatt_operator.cluster.store import Key, Kind, Store
from splitwatt_operator.http import ListenError, parse_address, serve
from splitwatt_operator.logs import JsonFormatter
from splitwatt_operator.metrics import Metrics
from splitwatt_operator.options import parse
from splitwatt_operator.supervise import first_to_end

LEASE = Key("splitwatt-system", "splitwatt-operator")


def lease(version: int, holder: str) -> dict[str, Any]:
    meta = {"name": LEASE.name, "namespace": LEASE.namespace, "resourceVersion": str(version)}
    return {"metadata": meta, "spec": {"holderIdentity": holder}}


async def test_the_first_part_to_end_ends_all() -> None:
    ended: list[str] = []

    async def forever() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("forever")

    async def soon() -> None:
        await asyncio.sleep(0)

    assert await first_to_end(forever=forever(), soon=soon()) == "soon"
    assert ended == ["forever"]


async def test_a_part_that_fails_is_not_swallowed_and_its_neighbours_end() -> None:
    ended: list[str] = []

    async def forever() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("forever")

    async def fails() -> None:
        raise LookupError("a bug")

    with pytest.raises(LookupError, match="a bug"):
        await first_to_end(forever=forever(), fails=fails())
    assert ended == ["forever"]


async def test_cancelling_the_whole_cancels_the_parts() -> None:
    ended: list[str] = []

    async def forever() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("forever")

    task = asyncio.create_task(first_to_end(a=forever(), b=forever()))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended == ["forever", "forever"]


async def test_watches_that_no_longer_deliver_end_the_process() -> None:
    store = Store()
    canary = Canary(store, Metrics(), lease=LEASE, identity="me", held=lambda now_s: True, silence_s=0.5)
    with pytest.raises(BlindError, match="blind"):
        await asyncio.wait_for(canary.run(), 10.0)


async def test_renewals_that_come_back_keep_it_alive_and_another_holders_do_not() -> None:
    store = Store()
    canary = Canary(store, Metrics(), lease=LEASE, identity="me", held=lambda now_s: True, silence_s=2.5)
    task = asyncio.create_task(canary.run())
    for version in range(1, 10):
        store.apply(Kind.LEASE, lease(version, "me"))
        await asyncio.sleep(0.5)
        assert canary.problem() is None
    with pytest.raises(BlindError):
        for version in range(10, 100):
            store.apply(Kind.LEASE, lease(version, "another"))
            done, _ = await asyncio.wait([task], timeout=0.2)
            if done:
                task.result()


async def test_while_renewals_fail_nothing_is_concluded() -> None:
    canary = Canary(Store(), Metrics(), lease=LEASE, identity="me", held=lambda now_s: False, silence_s=0.1)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(canary.run(), 2.5)
    assert canary.problem() is None


async def test_a_taken_port_is_one_sentence() -> None:
    metrics = Metrics()
    server = await asyncio.start_server(lambda r, w: None, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    with pytest.raises(ListenError, match=r"choose another --listen"):
        async with serve(f"127.0.0.1:{port}", metrics, lambda: None):
            pass
    server.close()
    for wrong in ("9400", ":9400", "host:", "host:99999", "host:x"):
        with pytest.raises(ListenError, match="HOST:PORT"):
            parse_address(wrong)
    assert parse_address("[::1]:80") == ("::1", 80)


async def test_health_and_metrics_are_served() -> None:
    metrics = Metrics()
    metrics.count_write("NodePower")
    problem: list[str | None] = [None]
    server = await asyncio.start_server(lambda r, w: None, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    async with serve(f"127.0.0.1:{port}", metrics, lambda: problem[0]), httpx.AsyncClient() as http:
        assert (await http.get(f"http://127.0.0.1:{port}/healthz")).status_code == 200
        problem[0] = "no budget decision for 12 s"
        answer = await http.get(f"http://127.0.0.1:{port}/healthz")
        assert (answer.status_code, answer.text) == (503, "no budget decision for 12 s\n")
        text = (await http.get(f"http://127.0.0.1:{port}/metrics")).text
        assert 'splitwatt_api_writes_total{kind="NodePower"} 1.0' in text


def test_a_wrong_command_line_says_what_to_change(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["--prometheus-url", "prometheus:9090"]):
        with pytest.raises(SystemExit) as ended:
            parse(arguments)
        assert ended.value.code == 2
        assert "--prometheus-url" in capsys.readouterr().err
    options = parse(["--prometheus-url", "http://p:9090"])
    assert options.namespace == "splitwatt-system"
    assert options.kubeconfig is None


def test_a_decision_log_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(LogFileError, match="name another file"):
        DecisionLog(tmp_path / "no" / "such" / "folder")
    DecisionLog(None).write({}, 0.0)


def test_log_lines_are_json_with_their_fields() -> None:
    record = logging.makeLogRecord({"name": "x", "levelname": "INFO", "msg": "held %d W", "args": (5,), "budget": "a1"})
    line = json.loads(JsonFormatter().format(record))
    assert line["message"] == "held 5 W"
    assert line["budget"] == "a1"
    assert line["level"] == "info"


def test_a_pod_without_its_cluster_keeps_its_phase_and_ranks_lowest() -> None:
    def pod(role: str) -> dict[str, Any]:
        return {"metadata": {"namespace": "s", "name": "p", "labels": {"splitwatt.io/role": role}}}

    fact = pod_fact(pod("decode"), None)
    assert fact is not None
    assert (fact.phase, fact.priority) == ("Decode", 0)
    assert pod_fact(pod("router"), None) is None


def test_errors_become_one_line() -> None:
    assert sentence_of(KeyError("bootID")) == "'bootID' is missing"
    assert sentence_of(ValueError("two\n  lines")) == "two lines"
