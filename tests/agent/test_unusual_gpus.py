"""GPUs that cannot be capped, limits that another program sets, and an agent that only looks."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from splitwatt_lab.controlplane import ControlPlane
from splitwatt_nvml_twin.faults import NVML_ERROR_NOT_SUPPORTED, NVML_ERROR_UNKNOWN, Call, Fault
from support.agent_bench import AgentBench
from support.waiting import eventually

PERSISTENCE_OFF = """
import pynvml as n
n.nvmlInit()
n.nvmlDeviceSetPersistenceMode(n.nvmlDeviceGetHandleByIndex(0), 0)
"""

OFTEN = (
    "import sys, splitwatt_agent.upkeep as u; u.PERSISTENCE_EVERY_S = 0.5; u.PERSISTENCE_HUNG_S = 1.0; "
    "from splitwatt_agent.__main__ import main; sys.exit(main())"
)
"""The agent, which looks at persistence mode oftener."""

SET_700 = """
import sys, pynvml as n
n.nvmlInit()
n.nvmlDeviceSetPowerManagementLimit(n.nvmlDeviceGetHandleByUUID(sys.argv[1]), 700000)
"""


@pytest.fixture
def bench(crds: ControlPlane, tmp_path: Path) -> Iterator[AgentBench]:
    with AgentBench(crds, tmp_path, gpus=3) as bench:
        bench.create()
        yield bench


def without_power_management(bench: AgentBench, gpu: int) -> None:
    for call in (
        Call.GET_LIMIT_RANGE,
        Call.GET_POWER_LIMIT,
        Call.SET_POWER_LIMIT,
        Call.GET_POWER_USAGE,
        Call.FIELD_POWER_INSTANT,
    ):
        bench.twin.set_fault(gpu, Fault.not_supported(call))


def test_a_gpu_without_power_management_is_named_and_charged_and_its_neighbours_are_governed(bench: AgentBench) -> None:
    without_power_management(bench, 1)
    bench.start()
    bench.await_ack(bench.grant({0: 300, 1: 300, 2: 300}), (0, 2))
    line = bench.line(1)
    assert (line["health"], line["ackedGrant"], line["defaultCapWatts"], line["model"][:6]) == ("NotSupported", 0, 700, "NVIDIA")
    said = bench.condition("CapsEnforced")
    assert said["reason"] == "NotSupported" and bench.twin.uuids[1] in said["message"]
    assert "drain" not in said["message"] and "unreadable" not in said["message"]


def test_a_node_of_such_gpus_says_that_power_management_is_not_supported(bench: AgentBench) -> None:
    for gpu in range(3):
        without_power_management(bench, gpu)
        bench.twin.set_fault(gpu, Fault.not_supported(Call.GET_ENFORCED_LIMIT))
    bench.start()
    eventually("it is said", lambda: bench.condition("Ready").get("reason") == "NotSupported")
    assert "Power management is not supported on NVIDIA H100" in bench.condition("Ready")["message"]
    assert bench.line(0)["defaultCapWatts"] == 1400, "nothing says what it may draw, so it is charged as the largest part"


@pytest.mark.parametrize("code", [NVML_ERROR_NOT_SUPPORTED, NVML_ERROR_UNKNOWN, 2, 21])
def test_a_gpu_whose_power_cannot_be_read_is_governed_all_the_same(bench: AgentBench, code: int) -> None:
    bench.twin.set_fault(0, Fault.returns(code, Call.FIELD_POWER_INSTANT))
    bench.twin.set_fault(1, Fault.returns(code, Call.GET_FIELD_VALUES))
    bench.twin.set_fault(2, Fault.returns(code, Call.GET_POWER_USAGE))
    bench.start()
    bench.await_ack(bench.grant({0: 300, 1: 300, 2: 300}), (0, 1, 2))
    assert [bench.line(gpu)["health"] for gpu in range(3)] == ["OK"] * 3
    assert bench.gpu_metric("splitwatt_gpu_power_watts", 0) is not None, "the averaged reading stands in"


def test_a_fight_about_a_limit_is_won_and_told(bench: AgentBench) -> None:
    bench.start()
    bench.await_ack(bench.grant({0: 400, 1: 400, 2: 400}), (0, 1, 2))
    for _ in range(3):
        subprocess.run([sys.executable, "-c", SET_700, bench.twin.uuids[1]], check=True, env=bench.environment())
        eventually("it is put back", lambda: bench.limits_w()[1] == (400, 400))
        time.sleep(0.5)
    eventually("it is told", lambda: bench.condition("ForeignLimit").get("status") == "True")
    message = bench.condition("ForeignLimit")["message"]
    assert f"set {bench.twin.uuids[1]} to 700 W, at least 3 times" in message and bench.twin.uuids[0] not in message


def test_persistence_mode_that_another_program_turns_off_is_turned_on_again_or_told(bench: AgentBench) -> None:
    bench.start(program=(sys.executable, "-c", OFTEN))
    bench.await_ack(bench.grant({0: 300, 1: 300, 2: 300}), (0, 1, 2))
    eventually("it is on", lambda: all(truth.persistence for truth in bench.twin.read_all()))
    subprocess.run([sys.executable, "-c", PERSISTENCE_OFF], env=bench.environment(), check=True)
    eventually("it is on again", lambda: bench.twin.read(0).persistence)
    bench.twin.set_fault(1, Fault.hang(Call.GET_PERSISTENCE))
    said = eventually("it is told", lambda: (c := bench.condition("CapsEnforced"))["reason"] == "PersistenceModeOff" and c)
    assert f"{bench.twin.uuids[1]} would forget its limit" in said["message"] and "does not answer" in said["message"]
    bench.twin.clear_faults(1)
    eventually("it is well again", lambda: bench.condition("CapsEnforced")["status"] == "True")


def test_who_observes_sets_nothing_and_acknowledges_nothing(bench: AgentBench) -> None:
    process = bench.start()
    bench.await_ack(bench.grant({0: 400, 1: 400, 2: 400}, max_clock_mhz=1410), (0, 1, 2))
    bench.end(process, signal.SIGKILL)
    subprocess.run([sys.executable, "-c", SET_700, bench.twin.uuids[0]], check=True, env=bench.environment())
    bench.twin.reset_gpu(1)
    before = [(t.setter_calls, t.persistence, t.locked_max_mhz) for t in bench.twin.read_all()]
    record = (bench.state_dir / "record.json").read_text()
    bench.start("--observe")
    bench.grant({0: 300, 1: 700, 2: 400}, max_clock_mhz=1200, node_limit_w=1000)
    eventually("it says so", lambda: bench.condition("Observing").get("status") == "True")
    eventually("it reads", lambda: bench.gpu_metric("splitwatt_gpu_power_watts", 1) is not None)
    time.sleep(2.0)
    assert bench.limits_w() == [(700, 700), (700, 700), (400, 400)]
    assert [(t.setter_calls, t.persistence, t.locked_max_mhz) for t in bench.twin.read_all()] == before
    assert [bench.acked(gpu) for gpu in range(3)] == [0, 0, 0]
    assert bench.condition("CapsEnforced")["status"] == "False"
    assert (bench.state_dir / "record.json").read_text() == record
