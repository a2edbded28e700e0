"""The agents' own connections, on real processes: samples without Prometheus, and a brake where no grant arrives."""

from __future__ import annotations

import asyncio
import queue
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from support.flaky_proxy import FlakyProxy, flaky
from support.peers import Caller

UNIFORM = {"type": "Uniform", "unassignedGpus": "Hold"}
MIN_W = 200.0
LIMIT_W = 8000


@pytest.fixture
def listening(datacenter: Any) -> Any:
    datacenter.streams = True
    datacenter.plane.kubectl("create", "serviceaccount", "splitwatt-operator", "-n", datacenter.namespace)
    return datacenter


def test_without_prometheus_the_agents_say_themselves_what_they_draw(listening: Any) -> None:
    listening.add_gpu_nodes("n1", "n2")
    listening.load(300.0)
    budget = listening.budget("leaf", limitWatts=12_000, policy=UNIFORM, limitGraceSeconds=1)
    operator = listening.active_operator(prometheus_url="http://127.0.0.1:9")
    fresh = listening.await_condition(budget, "TelemetryFresh", "True")
    assert fresh["reason"] == "AgentsSum"

    def right() -> bool:
        return abs(listening.status(budget)["measuredWatts"] - (8 * 300 * 1.04 + 4000)) < 100

    listening.eventually("what they draw", right)
    listening.await_condition(budget, "Ready", "True")
    assert operator.metric("splitwatt_agent_streams") == 2
    # One that falls silent is missed, and its watts are charged and not guessed.
    agent = listening.group[f"agent-{next(iter(listening.twins))}"]
    agent.send(signal.SIGSTOP)
    try:
        listening.await_condition(budget, "TelemetryFresh", "False")
        assert operator.metric("splitwatt_agent_streams") == 1
    finally:
        agent.send(signal.SIGCONT)
    listening.await_condition(budget, "TelemetryFresh", "True")
    assert operator.metric("splitwatt_agent_streams") == 2


@contextmanager
def agents_behind_a_proxy(listening: Any, folder: Path) -> Iterator[FlakyProxy]:
    """Their only way to the API server, run by a thread of its own."""
    ready: queue.SimpleQueue[tuple[FlakyProxy, asyncio.AbstractEventLoop, asyncio.Event]] = queue.SimpleQueue()

    async def serve() -> None:
        async with flaky(listening.plane, folder) as (proxy, kubeconfig):
            listening.agent_kubeconfig = lambda node: kubeconfig
            ending = asyncio.Event()
            ready.put((proxy, asyncio.get_running_loop(), ending))
            await ending.wait()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    proxy, loop, ending = ready.get(timeout=30.0)
    try:
        yield proxy
    finally:
        loop.call_soon_threadsafe(ending.set)
        thread.join()


def test_a_brake_reaches_every_gpu_whose_agent_hears_no_grant(listening: Any, tmp_path: Path) -> None:
    with agents_behind_a_proxy(listening, tmp_path) as proxy:
        twins = listening.add_gpu_nodes("n1", "n2")
        listening.load(650.0)
        meter, rack = listening.meter.watts, listening.rack
        meter[rack] = 7000.0
        selector = f'rack_power_watts{{rack="{rack}"}}'
        budget = listening.budget("leaf", limitWatts=LIMIT_W, policy=UNIFORM, limitGraceSeconds=1, meter={"selector": selector})
        operator = listening.active_operator()
        listening.await_condition(budget, "Ready", "True")
        listening.eventually("each GPU's share", lambda: min(listening.caps_w()) > 400.0)
        listening.eventually("both streams", lambda: operator.metric("splitwatt_agent_streams") == 2)
        before = {node: listening.node_power(node)["spec"] for node in listening.twins}

        proxy.answers = False
        meter[rack] = 1.15 * LIMIT_W
        listening.eventually("every GPU at its minimum", lambda: set(listening.caps_w()) == {MIN_W})
        assert all(gpu.enforced_mw == MIN_W * 1000 for twin in twins for gpu in twin.read_all())
        listening.eventually("both said so", lambda: operator.metric("splitwatt_brakes_total", outcome="Held") == 2)
        meter[rack] = 6000.0
        listening.eventually("it is over", lambda: operator.decisions(budget)[-1]["posture"] == "Normal")
        assert set(listening.caps_w()) == {MIN_W}, "a lower reading lifted it"

        # Grants have higher numbers than the brake, lift it, and caps rise as after any brake.
        proxy.answers = True
        proxy.cut()
        listening.eventually("caps rise again", lambda: min(listening.caps_w()) > 400.0)
        for node, spec in before.items():
            found = listening.node_power(node)
            assert all(row["grant"] > max(old["grant"] for old in spec["gpus"]) for row in found["spec"]["gpus"])
            assert not any("brake" in row for row in found["status"]["gpus"])
        assert "Traceback" not in operator.text


def test_whoever_comes_next_lifts_a_brake_that_nobody_wants_any_more(listening: Any) -> None:
    """R30: the operator that braked is dead, and its successor finds every line as it wishes."""
    [twin] = listening.add_gpu_nodes("n1")
    listening.load(300.0)
    budget = listening.budget("leaf", limitWatts=LIMIT_W, policy=UNIFORM, limitGraceSeconds=1)
    first = listening.active_operator()
    listening.await_condition(budget, "Ready", "True")
    listening.eventually("all of it", lambda: set(listening.caps_w()) == {700.0})
    [node] = listening.twins
    first.process.send(signal.SIGKILL)
    number = max(row["grant"] for row in listening.node_power(node)["spec"]["gpus"])
    caller = Caller(listening, node)
    assert len(caller.brake(number + 1, to="Minimum").json()["held"]) == len(twin.read_all())
    assert set(listening.caps_w()) == {MIN_W}
    listening.vacate()
    listening.active_operator()
    listening.eventually("the same caps, said again", lambda: set(listening.caps_w()) == {700.0})
    assert not any("brake" in row for row in listening.node_power(node)["status"]["gpus"])
