"""The agent on a simulated node and the real API server: caps applied, read back, acknowledged, and nothing else believed."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from splitwatt_core import names
from splitwatt_core.protocol.contract import Mode
from splitwatt_lab.controlplane import ControlPlane
from splitwatt_nvml_twin.faults import Call, Fault
from splitwatt_nvml_twin.handle import Demand
from support.agent_bench import AgentBench
from support.waiting import eventually


@pytest.fixture
def bench(crds: ControlPlane, tmp_path: Path) -> Iterator[AgentBench]:
    with AgentBench(crds, tmp_path) as bench:
        yield bench


def test_caps_are_applied_read_back_and_acknowledged(bench: AgentBench) -> None:
    created = bench.create()
    bench.start()
    number = bench.grant({0: 400, 1: 300})
    bench.await_ack(number, (0, 1))
    assert bench.limits_w() == [(400, 400), (300, 300)]
    status = bench.object()["status"]
    assert status["observedUID"] == created["metadata"]["uid"]
    assert status["observedTerm"] == 1
    assert status["bootID"] == "boot-1"
    assert status["gpuCount"] == status["healthyGpuCount"] == 2
    assert status["enforcedCapWattsTotal"] == 700
    line = bench.line(0)
    assert (line["minCapWatts"], line["maxCapWatts"], line["defaultCapWatts"]) == (200, 700, 700)
    assert line["model"] == bench.twin.product_names[0]
    eventually("caps are called enforced", lambda: bench.condition("CapsEnforced").get("status") == "True")
    assert bench.condition("Ready")["status"] == "True"
    assert all(truth.persistence for truth in bench.twin.read_all())


def test_each_of_many_grants_is_acknowledged_by_its_own_number(bench: AgentBench) -> None:
    bench.create()
    bench.start()
    for cap_w in (500, 260, 640, 260):
        number = bench.grant({0: cap_w, 1: cap_w})
        bench.await_ack(number, (0, 1))
        assert bench.limits_w() == [(cap_w, cap_w)] * 2


def test_metrics_say_what_the_gpus_do(bench: AgentBench) -> None:
    bench.create()
    bench.start()
    bench.twin.set_demands({0: Demand(650.0), 1: Demand(0.0)})
    bench.await_ack(bench.grant({0: 400, 1: 300}), (0, 1))
    eventually("power settles at the cap", lambda: abs((bench.gpu_metric(names.M_GPU_POWER_WATTS, 0) or 0) - 400) < 15)
    assert bench.gpu_metric(names.M_GPU_ENFORCED_CAP_WATTS, 0) == 400
    assert bench.gpu_metric(names.M_GPU_MANAGEMENT_CAP_WATTS, 1) == 300
    assert bench.gpu_metric(names.M_GPU_GRANTED_CAP_WATTS, 1) == 300
    assert bench.gpu_metric(names.M_GPU_HEALTHY, 0) == 1
    assert bench.gpu_metric(names.M_GPU_UNACKED_SECONDS, 0) == 0, "it was read back"
    assert bench.gpu_metric(names.M_GPU_FLOOR_WATTS, 1) == 0
    enforced = (("condition", "CapsEnforced"), ("node", bench.node))
    eventually("the agent's conditions are told", lambda: bench.metrics()[names.M_AGENT_CONDITION].get(enforced) == 1)
    eventually("energy is counted", lambda: (bench.gpu_metric(names.M_GPU_ENERGY_JOULES, 0) or 0) > 0)
    eventually("capped clocks are seen", lambda: bench.gpu_metric(names.M_GPU_POWER_CAPPED, 0) == 1)
    labels = next(iter(bench.metrics()[names.M_GPU_POWER_WATTS]))
    assert dict(labels) | {"gpu": ""} == {"node": bench.node, "gpu": "", "role": "Decode"}


def test_a_setter_that_does_nothing_is_noticed(bench: AgentBench) -> None:
    bench.create()
    bench.twin.set_fault(0, Fault.lying_setter())
    bench.start()
    number = bench.grant({0: 400, 1: 300})
    bench.await_ack(number, (1,))
    eventually("the lie is told", lambda: bench.line(0).get("health") == "CapNotEnforced")
    assert bench.acked(0) == 0
    assert bench.line(0)["managementCapWatts"] == 700
    eventually("the wait is told", lambda: (bench.gpu_metric(names.M_GPU_UNACKED_SECONDS, 0) or 0) > 0.2)
    assert bench.gpu_metric(names.M_GPU_UNACKED_SECONDS, 1) == 0
    condition: Any = eventually("a condition", lambda: (c := bench.condition("CapsEnforced")).get("status") == "False" and c)
    assert condition["reason"] == "CapNotEnforced"
    assert bench.twin.uuids[0] in condition["message"]
    assert "granted 400 W, management limit 700 W" in condition["message"]
    eventually("it is counted", lambda: (bench.gpu_metric(names.M_GPU_CAP_MISMATCH, 0) or 0) >= 1)
    bench.twin.clear_faults(0)
    bench.await_ack(number, (0,))
    eventually("all is well again", lambda: bench.condition("CapsEnforced").get("status") == "True")


def test_a_setter_that_does_nothing_is_noticed_behind_an_outside_limiter(bench: AgentBench) -> None:
    bench.create()
    bench.twin.set_outside_limit(0, 250_000)
    bench.twin.set_fault(0, Fault.lying_setter())
    bench.start()
    number = bench.grant({0: 400, 1: 300})
    bench.await_ack(number, (1,))
    eventually("the lie is told", lambda: bench.line(0).get("health") == "CapNotEnforced")
    assert bench.line(0)["enforcedCapWatts"] == 250, "the enforced limit alone looks fine"
    assert bench.acked(0) == 0


def test_an_outside_limiter_alone_does_not_stop_an_acknowledgement(bench: AgentBench) -> None:
    bench.create()
    bench.twin.set_outside_limit(0, 250_000)
    bench.start()
    bench.await_ack(bench.grant({0: 400, 1: 300}), (0, 1))
    assert bench.line(0)["managementCapWatts"] == 400
    assert bench.line(0)["enforcedCapWatts"] == 250


@pytest.mark.parametrize(
    ("fault", "health", "reason", "limit_known"),
    [
        (Fault.no_permission(), "NoPermission", "NoPermission", True),
        (Fault.gpu_lost(), "Lost", "GPULost", False),
        (Fault.not_supported(), "NotSupported", "NotSupported", True),
    ],
    ids=["no-permission", "gpu-lost", "not-supported"],
)
def test_a_sick_gpu_is_reported_and_its_neighbour_goes_on(
    bench: AgentBench, fault: Fault, health: str, reason: str, limit_known: bool
) -> None:
    bench.create()
    bench.start()
    first = bench.grant({0: 500, 1: 500})
    bench.await_ack(first, (0, 1))
    bench.twin.set_fault(0, fault)
    second = bench.grant({0: 400, 1: 300})
    bench.await_ack(second, (1,))
    eventually("its health is told", lambda: bench.line(0).get("health") == health)
    line = bench.line(0)
    assert line["ackedGrant"] == first, "what was acknowledged stands, the new grant does not"
    assert line.get("managementCapWatts") == (500 if limit_known else None)
    eventually("a condition", lambda: bench.condition("CapsEnforced").get("reason") == reason)
    eventually("a metric", lambda: bench.gpu_metric(names.M_GPU_HEALTHY, 0) == 0)
    assert bench.gpu_metric(names.M_GPU_HEALTHY, 1) == 1
    if not limit_known:
        assert bench.gpu_metric(names.M_GPU_POWER_WATTS, 0) is None, "no data is not a zero"
    errors = bench.metrics()[names.M_AGENT_NVML_ERRORS]
    assert sum(errors.values()) > 0
    third = bench.grant({0: 400, 1: 260})
    bench.await_ack(third, (1,))
    bench.twin.clear_faults(0)
    bench.await_ack(third, (0,))


def test_a_hung_setter_is_not_acknowledged_and_blocks_nobody(bench: AgentBench) -> None:
    bench.create()
    bench.start()
    bench.await_ack(bench.grant({0: 300, 1: 300}), (0, 1))
    bench.twin.set_fault(0, Fault.hang())
    raised = bench.grant({0: 600, 1: 500})
    bench.await_ack(raised, (1,))
    eventually("the call is called hung", lambda: bench.line(0).get("health") == "Hung")
    # The hanging call may still complete: lowering beside it must not be acknowledged although the limit is low already.
    lowered = bench.grant({0: 300, 1: 400})
    bench.await_ack(lowered, (1,))
    time.sleep(1.0)
    assert bench.acked(0) not in (raised, lowered)
    assert bench.limits_w()[0] == (300, 300)
    bench.twin.clear_faults(0)
    bench.await_ack(lowered, (0,))
    assert bench.limits_w()[0] == (300, 300), "the late call was put right before anything was acknowledged"


def test_a_read_that_hangs_keeps_only_its_own_gpu_back(bench: AgentBench) -> None:
    bench.create()
    bench.start()
    bench.await_ack(bench.grant({0: 500, 1: 500}), (0, 1))
    bench.twin.set_fault(0, Fault.hang(Call.GET_POWER_LIMIT))
    eventually("the read is called hung", lambda: bench.line(0).get("health") == "Hung")
    number = bench.grant({0: 400, 1: 300})
    bench.await_ack(number, (1,))
    assert bench.acked(0) != number
    bench.twin.clear_faults(0)
    bench.await_ack(number, (0,))


def test_limits_lost_by_a_reset_are_no_longer_acknowledged_and_put_right(bench: AgentBench) -> None:
    bench.create()
    bench.start()
    number = bench.grant({0: 300, 1: 300})
    bench.await_ack(number, (0, 1))
    bench.twin.set_fault(0, Fault.no_permission())
    bench.twin.reset_gpu(0)  # takes the faults along
    bench.twin.set_fault(0, Fault.no_permission())
    if bench.limits_w()[0][0] > 300:
        eventually("the acknowledgement is taken back", lambda: bench.acked(0) == 0)
        assert bench.line(0)["managementCapWatts"] == 700
    bench.twin.clear_faults(0)
    bench.await_ack(number, (0,))
    assert bench.limits_w()[0] == (300, 300)


def test_in_oversubscribed_mode_only_safe_caps_are_used(bench: AgentBench) -> None:
    bench.create()
    bench.start()
    bench.await_ack(bench.grant({0: 600, 1: 500}, mode=Mode.OVERSUBSCRIBED, safe_w=350), (0, 1))
    assert bench.limits_w() == [(350, 350)] * 2
    eventually("it says so", lambda: bench.condition("LeaseHeld").get("status") == "False")


def test_clocks_are_locked_and_unlocked_as_granted(bench: AgentBench) -> None:
    bench.create()
    bench.start()
    bench.await_ack(bench.grant({0: 500}, max_clock_mhz=1200), (0,))
    eventually("the lock", lambda: (bench.twin.read(0).locked_max_mhz or 9999) <= 1200)
    bench.await_ack(bench.grant({0: 500}), (0,))
    eventually("no lock", lambda: bench.twin.read(0).locked_max_mhz is None)


def test_the_node_guard_makes_up_for_a_gpu_that_cannot_be_held(bench: AgentBench) -> None:
    bench.create()
    bench.twin.set_fault(0, Fault.lying_setter())
    bench.start()
    bench.grant({0: 400, 1: 400}, node_limit_w=950)
    eventually("the neighbour makes room", lambda: bench.limits_w() == [(700, 700), (250, 250)])
    bench.twin.clear_faults(0)
    eventually("and gets its grant back", lambda: bench.limits_w() == [(400, 400), (400, 400)], within_s=120.0)


def test_unknown_gpus_and_unreadable_specs_are_named(bench: AgentBench) -> None:
    bench.create()
    bench.start()
    bench.await_ack(bench.grant({0: 400}), (0,))
    spec = json.loads(json.dumps(bench.object()["spec"]))
    spec["gpus"].append(spec["gpus"][0] | {"uuid": "GPU-of-another-node"})
    bench.apply_spec(spec)
    condition: Any = eventually("it is named", lambda: (c := bench.condition("Ready")).get("reason") == "UnknownGPUs" and c)
    assert "GPU-of-another-node" in condition["message"]
