"""The process around the loops: parts that end together, a canary, options, logs, the port."""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path
from typing import Any

import pytest
from splitwatt_operator.budgets.decision_log import DecisionLog, LogFileError
from splitwatt_operator.cluster.canary import BlindError, Canary
from splitwatt_operator.cluster.store import Key, Kind, Store
from splitwatt_operator.logs import JsonFormatter
from splitwatt_operator.metrics import Metrics
from splitwatt_operator.options import parse

LEASE = Key("splitwatt-system", "splitwatt-operator")


def lease(version: int, holder: str) -> dict[str, Any]:
    meta = {"name": LEASE.name, "namespace": LEASE.namespace, "resourceVersion": str(version)}
    return {"metadata": meta, "spec": {"holderIdentity": holder}}


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


def test_a_wrong_command_line_says_what_to_change(capsys: pytest.CaptureFixture[str]) -> None:
    url = ["--prometheus-url", "http://p:9090"]
    wrong = {
        "--prometheus-url": [[], ["--prometheus-url", "prometheus:9090"]],
        "names no host": [["--prometheus-url", "http://"], ["--prometheus-url", "http://:9090"]],
        "is no URL": [["--prometheus-url", "http://[::1:9090"], ["--prometheus-url", "http://p:port"]],
        "is no image": [[*url, "--engine-image", ""], [*url, "--engine-image", "a b"]],
        "--listen must be HOST:PORT": [[*url, "--listen", "9400"]],
    }
    for said, lines in wrong.items():
        for arguments in lines:
            with pytest.raises(SystemExit) as ended:
                parse(arguments)
            assert ended.value.code == 2
            assert said in capsys.readouterr().err
    options = parse(["--prometheus-url", "http://p:9090"])
    assert options.namespace == "splitwatt-system"
    assert options.kubeconfig is None
    assert parse([*url, "--engine-image", "registry.example/e:1"]).context.emulated_image == "registry.example/e:1"


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
