"""A driver that is away: lost to this container for good, not there yet, hanging, or wanted back by NVIDIA's operator."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
from splitwatt_agent.last_resort import EXIT_CODE, driver_is_loaded
from splitwatt_lab.controlplane import ControlPlane
from splitwatt_nvml_twin.faults import NVML_ERROR_LIB_RM_VERSION_MISMATCH, NVML_ERROR_UNKNOWN, Call, Fault
from support.agent_bench import AgentBench
from support.asking import HTTP
from support.waiting import PATIENCE_S, eventually

NODES = "/api/v1/nodes"


@pytest.fixture
def bench(crds: ControlPlane, tmp_path: Path) -> Iterator[AgentBench]:
    with AgentBench(crds, tmp_path) as bench:
        bench.create()
        yield bench


def probe(bench: AgentBench, path: str) -> tuple[int, str]:
    try:
        answer = HTTP.get(f"http://127.0.0.1:{bench.port}{path}", timeout=10.0)
    except httpx.TransportError:
        return 0, ""
    return answer.status_code, answer.text.strip()


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (NVML_ERROR_UNKNOWN, "has lost the GPUs' device files"),
        (NVML_ERROR_LIB_RM_VERSION_MISMATCH, "still has the library of the old one"),
    ],
)
def test_who_has_lost_the_driver_for_good_ends_with_a_sentence_and_leaves_the_caps(
    bench: AgentBench, code: int, said: str
) -> None:
    process = bench.start("--give-up-after-s", "3")
    bench.await_ack(bench.grant({0: 300, 1: 300}), (0, 1))
    bench.twin.set_fault(0, Fault.returns(code, Call.ANY))
    time.sleep(4.0)
    assert process.poll() is None, "one GPU that cannot be read is no reason to leave the other alone"
    bench.twin.set_fault(0, Fault.returns(code, Call.INIT))
    bench.twin.set_fault(1, Fault.returns(code, Call.ANY))
    assert process.wait(timeout=PATIENCE_S) == EXIT_CODE
    log = bench.log.read_text()
    assert said in log.splitlines()[-1] and "Traceback" not in log
    for gpu in (0, 1):
        bench.twin.clear_faults(gpu)
    assert bench.limits_w() == [(300, 300)] * 2


@pytest.mark.skipif(driver_is_loaded(), reason="this machine has a driver, so a container without its library is hopeless")
def test_who_waits_for_a_driver_is_healthy_and_not_ready(bench: AgentBench) -> None:
    process = bench.start("--give-up-after-s", "1", env={"LD_LIBRARY_PATH": "", "SPLITWATT_NVML_TWIN": ""})
    eventually("it says what it waits for", lambda: "LIBRARY_NOT_FOUND" in probe(bench, "/healthz")[1])
    time.sleep(3.0)
    assert process.poll() is None
    assert (probe(bench, "/healthz")[0], probe(bench, "/readyz")[0]) == (200, 503)
    assert "set agent.runtimeClassName" in probe(bench, "/readyz")[1]


def test_an_initialisation_that_hangs_is_told_and_blocks_nothing(bench: AgentBench) -> None:
    bench.twin.set_fault(0, Fault.hang(Call.INIT))
    bench.start()
    eventually(
        "the loop goes on", lambda: probe(bench, "/readyz") == (503, "waiting for the driver: a driver call has not returned")
    )
    assert probe(bench, "/healthz")[0] == 200
    eventually("so does the status", lambda: bench.condition("Ready").get("reason") == "NVMLUnavailable")
    bench.twin.clear_faults(0)
    bench.await_ack(bench.grant({0: 300, 1: 300}), (0, 1))
    assert probe(bench, "/readyz") == (200, "ok")


class OwnNode:
    """The bench's Node object, and its labels."""

    def __init__(self, bench: AgentBench) -> None:
        self._bench = bench
        self._call("POST", NODES, {"apiVersion": "v1", "kind": "Node", "metadata": {"name": bench.node}})

    def label(self, labels: Mapping[str, str | None]) -> None:
        self._call("PATCH", f"{NODES}/{self._bench.node}", {"metadata": {"labels": labels}})

    def delete(self) -> None:
        self._bench.plane.http.delete(f"{NODES}/{self._bench.node}")

    def _call(self, method: str, path: str, body: Any) -> None:
        kind = "application/merge-patch+json" if method == "PATCH" else "application/json"
        answer = self._bench.plane.http.request(method, path, json=body, headers={"Content-Type": kind})
        assert answer.is_success, answer.text


@pytest.fixture
def own_node(bench: AgentBench) -> Iterator[OwnNode]:
    node = OwnNode(bench)
    yield node
    node.delete()


PERSISTENCE_OFF = """
import pynvml as n
n.nvmlInit()
n.nvmlDeviceSetPersistenceMode(n.nvmlDeviceGetHandleByIndex(0), 0)
"""
"""The driver then drops GPU 0's limit with its last client: so who holds NVML open can be seen."""


def test_the_agent_steps_aside_while_nvidias_operator_pauses_gpu_clients(bench: AgentBench, own_node: OwnNode) -> None:
    key = "nvidia.com/gpu.deploy.device-plugin"
    own_node.label({key: "true"})
    process = bench.start()
    number = bench.grant({0: 300, 1: 300})
    bench.await_ack(number, (0, 1))
    subprocess.run([sys.executable, "-c", PERSISTENCE_OFF], check=True, env=bench.environment())
    assert bench.limits_w() == [(300, 300)] * 2, "the agent still holds the driver"
    own_node.label({key: "paused-for-driver-upgrade"})
    eventually("NVML is closed", lambda: bench.limits_w() == [(700, 700), (300, 300)])
    eventually("it says so", lambda: bench.condition("Paused").get("status") == "True")
    assert f"{key}=paused-for-driver-upgrade" in bench.condition("Paused")["message"]
    assert bench.acked(0) == 0, "what the driver does meanwhile nobody sees"
    assert (probe(bench, "/healthz")[0], probe(bench, "/readyz")[0]) == (200, 503)
    bench.twin.reboot("boot-1")  # the driver is replaced
    own_node.label({key: "true"})
    bench.await_ack(number, (0, 1))
    assert bench.limits_w() == [(300, 300)] * 2 and process.poll() is None
    assert not bench.condition("Paused")
