"""Each fault, as the real pynvml meets it, and that it touches nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from splitwatt_nvml_twin.faults import NVML_ERROR_LIB_RM_VERSION_MISMATCH, Call, Fault
from splitwatt_nvml_twin.handle import Demand, NodeTwin
from splitwatt_nvml_twin.models import H100_SXM
from support.nvml_client import NvmlClient, NvmlFailed

UNINITIALIZED, NOT_SUPPORTED, NO_PERMISSION, GPU_IS_LOST, UNKNOWN = 1, 3, 4, 15, 999


@pytest.fixture
def node(tmp_path: Path) -> Iterator[NodeTwin]:
    with NodeTwin.create(tmp_path / "node", gpus=[H100_SXM] * 2, boot_id="boot-1", manual_clock=True) as twin:
        yield twin


@pytest.fixture
def client(node: NodeTwin) -> Iterator[NvmlClient]:
    with NvmlClient(node.path) as process:
        for gpu in (0, 1):
            process.set_limit(gpu, 500_000)
        yield process


def code_of(client: NvmlClient, expression: str) -> int:
    with pytest.raises(NvmlFailed) as failed:
        client.ask(expression)
    return failed.value.code


SET_300 = "n.nvmlDeviceSetPowerManagementLimit(gpu(0), 300000)"


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (Fault.no_permission(), NO_PERMISSION),
        (Fault.not_supported(), NOT_SUPPORTED),
        (Fault.returns(UNKNOWN, Call.SET_POWER_LIMIT), UNKNOWN),
    ],
)
def test_a_refusing_setter_changes_nothing_and_spares_its_neighbour(
    node: NodeTwin, client: NvmlClient, fault: Fault, code: int
) -> None:
    node.set_fault(0, fault)
    assert code_of(client, SET_300) == code
    assert client.limits(0) == (500_000, 500_000)
    client.set_limit(1, 300_000)
    assert client.limits(1) == (300_000, 300_000)
    node.clear_faults(0)
    client.set_limit(0, 300_000)
    assert client.limits(0) == (300_000, 300_000)


CALLS = {
    Call.SET_POWER_LIMIT: SET_300,
    Call.GET_POWER_LIMIT: "n.nvmlDeviceGetPowerManagementLimit(gpu(0))",
    Call.GET_ENFORCED_LIMIT: "n.nvmlDeviceGetEnforcedPowerLimit(gpu(0))",
    Call.GET_LIMIT_RANGE: "n.nvmlDeviceGetPowerManagementLimitConstraints(gpu(0))",
    Call.GET_POWER_USAGE: "n.nvmlDeviceGetPowerUsage(gpu(0))",
    Call.GET_FIELD_VALUES: "field(0, 186).nvmlReturn",
    Call.GET_ENERGY: "n.nvmlDeviceGetTotalEnergyConsumption(gpu(0))",
    Call.SET_LOCKED_CLOCKS: "n.nvmlDeviceSetGpuLockedClocks(gpu(0), 210, 1500)",
    Call.RESET_LOCKED_CLOCKS: "n.nvmlDeviceResetGpuLockedClocks(gpu(0))",
    Call.GET_CLOCKS: "n.nvmlDeviceGetCurrentClocksEventReasons(gpu(0))",
    Call.SET_PERSISTENCE: "n.nvmlDeviceSetPersistenceMode(gpu(0), 1)",
    Call.GET_PERSISTENCE: "n.nvmlDeviceGetPersistenceMode(gpu(0))",
    Call.IDENTITY: "n.nvmlDeviceGetUUID(gpu(0))",
    Call.HANDLE: "bool(gpu(0))",
}


def test_a_fault_strikes_its_own_call_alone(node: NodeTwin, client: NvmlClient) -> None:
    assert set(CALLS) | {Call.ANY, Call.FIELD_POWER_INSTANT, Call.INIT} == set(Call)
    for call, expression in CALLS.items():
        node.clear_faults(0)
        node.set_fault(0, Fault.returns(UNKNOWN, call))
        assert code_of(client, expression) == UNKNOWN
        if call is not Call.HANDLE:  # without a handle nothing else can be called
            for other, harmless in CALLS.items():
                if other is not call:
                    client.ask(harmless)


def test_initialising_can_fail_and_hang_for_the_whole_node_while_other_calls_go_on(node: NodeTwin, client: NvmlClient) -> None:
    node.set_fault(0, Fault.returns(NVML_ERROR_LIB_RM_VERSION_MISMATCH, Call.INIT))
    assert code_of(client, "n.nvmlInit()") == NVML_ERROR_LIB_RM_VERSION_MISMATCH
    client.ask("n.nvmlDeviceGetUUID(gpu(0))")
    node.set_fault(0, Fault.hang(Call.INIT))
    with NvmlClient(node.path, initialise=False) as other:
        other.begin("n.nvmlInit()")
        client.ask("n.nvmlDeviceGetPowerManagementLimit(gpu(0))")
        node.clear_faults(0)
        other.finish()
        other.ask("n.nvmlDeviceGetCount()")


def test_field_186_can_fail_alone_inside_a_call_that_succeeds(node: NodeTwin, client: NvmlClient) -> None:
    node.set_fault(0, Fault.not_supported(Call.FIELD_POWER_INSTANT))
    assert client.ask("[v.nvmlReturn for v in n.nvmlDeviceGetFieldValues(gpu(0), [186, 185])]") == [NOT_SUPPORTED, 0]


def test_a_lost_gpu_answers_nothing_and_goes_on_drawing_power(node: NodeTwin, client: NvmlClient) -> None:
    node.set_demand(0, Demand(450.0))
    node.advance_clock(5)
    node.set_fault(0, Fault.gpu_lost())
    for expression in CALLS.values():
        assert code_of(client, expression) == GPU_IS_LOST
    assert code_of(client, f"n.nvmlDeviceGetHandleByUUID({node.uuids[0]!r})") == GPU_IS_LOST
    truth = node.read(0)
    assert truth.lost
    assert (truth.management_mw, truth.power_w) == (500_000, pytest.approx(450, rel=1e-3))
    assert client.ask("n.nvmlDeviceGetCount()") == 2
    assert client.limits(1) == (500_000, 500_000)
    node.reset_gpu(0)
    assert not node.read(0).lost
    assert client.limits(0) == (700_000, 700_000)


def test_a_lying_setter_reports_success_and_does_nothing(node: NodeTwin, client: NvmlClient) -> None:
    node.set_fault(0, Fault.lying_setter())
    client.set_limit(0, 300_000)
    assert client.limits(0) == (500_000, 500_000)
    assert node.read(0).setter_calls == 2
    node.set_outside_limit(0, 250_000)  # hides the lie in the enforced limit
    client.set_limit(0, 300_000)
    assert client.limits(0) == (500_000, 250_000)
    node.set_fault(0, Fault.lying_setter(Call.SET_LOCKED_CLOCKS))
    client.ask("n.nvmlDeviceSetGpuLockedClocks(gpu(0), 210, 1500)")
    assert node.read(0).locked_max_mhz is None
    node.set_fault(0, Fault.lying_setter(Call.SET_PERSISTENCE))
    client.ask("n.nvmlDeviceSetPersistenceMode(gpu(0), 1)")
    assert client.ask("n.nvmlDeviceGetPersistenceMode(gpu(0))") == 0


def test_a_clamping_setter_applies_its_own_value(node: NodeTwin, client: NvmlClient) -> None:
    node.set_fault(0, Fault.clamping_setter(420_000))
    client.set_limit(0, 300_000)
    assert client.limits(0) == (420_000, 420_000)


def test_a_fault_can_be_counted(node: NodeTwin, client: NvmlClient) -> None:
    node.set_fault(0, Fault.no_permission(times=2))
    assert [code_of(client, SET_300) for _ in range(2)] == [NO_PERMISSION] * 2
    client.ask(SET_300)
    assert client.limits(0) == (300_000, 300_000)


def test_a_hanging_setter_blocks_nobody_and_completes_late(node: NodeTwin, client: NvmlClient) -> None:
    node.set_fault(0, Fault.hang())
    client.begin(SET_300)
    assert not client.answered(within_s=0.3)
    with NvmlClient(node.path) as other:
        assert other.limits(0) == (500_000, 500_000)
        other.set_limit(1, 250_000)  # the same library, another GPU
        node.set_demand(0, Demand(400.0))
    node.clear_faults(0)
    assert client.finish() is None
    assert client.limits(0) == (300_000, 300_000)


def test_a_hang_ends_by_itself_after_its_seconds(node: NodeTwin, client: NvmlClient) -> None:
    node.set_fault(0, Fault.hang(seconds=30, times=1))
    client.begin(SET_300)
    assert not client.answered(within_s=0.1)
    node.advance_clock(29)
    assert not client.answered(within_s=0.1)
    node.advance_clock(1.1)
    assert client.finish() is None
    assert client.limits(0) == (300_000, 300_000)
    client.set_limit(0, 350_000)  # once only


def test_other_threads_of_a_process_go_on_while_one_hangs(node: NodeTwin, client: NvmlClient) -> None:
    node.set_fault(0, Fault.hang())
    client.ask("globals().update(threading=__import__('threading'))")
    client.ask("globals().update(t=threading.Thread(target=n.nvmlDeviceSetPowerManagementLimit, args=(gpu(0), 300000)))")
    client.ask("t.start()")
    assert client.limits(0) == (500_000, 500_000)
    client.set_limit(1, 300_000)
    assert client.ask("t.is_alive()")
    node.clear_faults(0)
    client.ask("t.join()")
    assert client.limits(0) == (300_000, 300_000)


def test_a_setter_that_hung_through_a_reboot_sets_nothing(node: NodeTwin, client: NvmlClient) -> None:
    node.set_fault(0, Fault.hang())
    client.begin(SET_300)
    assert not client.answered(within_s=0.1)
    node.reboot("boot-2")
    node.clear_faults(0)
    with pytest.raises(NvmlFailed) as failed:
        client.finish()
    assert failed.value.code == UNINITIALIZED
    assert node.read(0).management_mw == 700_000


def test_a_gpu_lost_while_a_call_hangs_ends_the_call(node: NodeTwin, client: NvmlClient) -> None:
    node.set_fault(0, Fault.hang())
    client.begin(SET_300)
    assert not client.answered(within_s=0.1)
    node.set_fault(0, Fault.gpu_lost())
    node.set_fault(0, Fault.hang(seconds=1e-3))
    node.advance_clock(1)
    with pytest.raises(NvmlFailed) as failed:
        client.finish()
    assert failed.value.code == GPU_IS_LOST
    assert node.read(0).management_mw == 500_000


def test_a_reset_forgets_limits_and_locks_and_restarts_the_energy_counter(node: NodeTwin, client: NvmlClient) -> None:
    client.ask("n.nvmlDeviceSetPersistenceMode(gpu(0), 1)")
    client.ask("n.nvmlDeviceSetGpuLockedClocks(gpu(0), 210, 1500)")
    node.set_demand(0, Demand(600.0))
    node.advance_clock(10)
    energy_j = node.read(0).energy_j
    node.reset_gpu(0)
    truth = node.read(0)
    assert (truth.management_mw, truth.enforced_mw, truth.locked_max_mhz, truth.resets) == (700_000, 700_000, None, 1)
    assert truth.energy_j == energy_j  # the truth never falls
    assert client.ask("n.nvmlDeviceGetTotalEnergyConsumption(gpu(0))") == 0
    assert client.limits(0) == (700_000, 700_000)
    assert client.limits(1) == (500_000, 500_000)


def test_after_a_reboot_every_client_is_a_stranger_until_it_initialises_again(node: NodeTwin, client: NvmlClient) -> None:
    first, second = node.uuids
    client.ask("globals().update(h=gpu(0))")
    node.set_demands({0: Demand(600.0), 1: Demand(600.0)})
    node.advance_clock(5)
    node.set_outside_limit(0, 650_000)
    node.reboot("boot-2", index_order=[1, 0])
    assert node.boot_id == "boot-2"
    assert code_of(client, "n.nvmlDeviceGetPowerUsage(h)") == UNINITIALIZED
    assert code_of(client, "n.nvmlDeviceGetCount()") == UNINITIALIZED
    assert code_of(client, "n.nvmlShutdown()") == UNINITIALIZED
    node.advance_clock(5)
    assert node.read_power_w() == [pytest.approx(95, rel=1e-3)] * 2
    client.ask("n.nvmlInit()")
    assert client.ask("n.nvmlDeviceGetUUID(gpu(0))") == second  # indices move
    assert client.ask("n.nvmlDeviceGetUUID(gpu(1))") == first
    assert code_of(client, "n.nvmlDeviceGetPowerUsage(h)") == 2  # a handle of the old driver load
    assert client.limits(1) == (700_000, 650_000)  # an outside limiter outlives the driver
    assert client.limits(0) == (700_000, 700_000)
    assert client.ask("n.nvmlDeviceGetPersistenceMode(gpu(0))") == 0


@pytest.mark.parametrize("order", [[0, 0], [0], [0, 2]])
def test_a_reboot_must_place_every_gpu_once(node: NodeTwin, order: list[int]) -> None:
    with pytest.raises(ValueError, match="once"):
        node.reboot("boot-2", index_order=order)
    assert node.boot_id == "boot-1"


def test_faults_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="0 or more"):
        Fault.hang(seconds=-1)
    with pytest.raises(ValueError, match="0 or more"):
        Fault.no_permission(times=-1)
