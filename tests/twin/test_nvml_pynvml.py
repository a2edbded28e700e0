"""The simulated library as the real pynvml sees it, from another process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from splitwatt_nvml_twin.build import LIBRARY_NAME, ensure_library
from splitwatt_nvml_twin.handle import STATE_FILE_VARIABLE, Demand, NodeTwin, environment, gpu_uuid
from splitwatt_nvml_twin.models import A100_SXM, H100_SXM
from support.nvml_client import NvmlClient, NvmlFailed

UNINITIALIZED, INVALID_ARGUMENT, NOT_SUPPORTED, NOT_FOUND, DRIVER_NOT_LOADED = 1, 2, 3, 6, 9
FUNCTION_NOT_FOUND, VERSION_MISMATCH = 13, 25
POWER_AVERAGE, POWER_INSTANT, MIN_LIMIT, MAX_LIMIT, DEFAULT_LIMIT, CURRENT_LIMIT, ENERGY, REQUESTED_LIMIT = range(185, 193)


@pytest.fixture
def node(tmp_path: Path) -> Iterator[NodeTwin]:
    with NodeTwin.create(
        tmp_path / "node", gpus=[H100_SXM, A100_SXM], boot_id="boot-1", node_name="n1", manual_clock=True
    ) as twin:
        yield twin


@pytest.fixture
def client(node: NodeTwin) -> Iterator[NvmlClient]:
    with NvmlClient(node.path) as process:
        yield process


def test_the_library_carries_nvmls_own_name_and_nothing_else_is_found(node: NodeTwin, client: NvmlClient) -> None:
    assert client.ask("n.nvmlLib._name") == LIBRARY_NAME
    maps = Path(f"/proc/{client.process.pid}/maps").read_text()
    assert {line.split()[-1] for line in maps.splitlines() if LIBRARY_NAME in line} == {str(ensure_library() / LIBRARY_NAME)}
    dynamic = (ensure_library() / LIBRARY_NAME).read_bytes()
    assert LIBRARY_NAME.encode() + b"\0" in dynamic


def test_identity(node: NodeTwin, client: NvmlClient) -> None:
    assert client.ask("n.nvmlDeviceGetCount()") == 2
    for index, name in enumerate(["NVIDIA H100 80GB HBM3", "NVIDIA A100-SXM4-80GB"]):
        uuid = gpu_uuid("n1", index)
        assert node.uuids[index] == uuid
        assert client.ask(f"n.nvmlDeviceGetUUID(gpu({index}))") == uuid
        assert client.ask(f"n.nvmlDeviceGetIndex(n.nvmlDeviceGetHandleByUUID({uuid!r}))") == index
        assert client.ask(f"n.nvmlDeviceGetName(gpu({index}))") == name == node.product_names[index]
        bus_id = client.ask(f"n.nvmlDeviceGetPciInfo(gpu({index})).busId")
        assert client.ask(f"n.nvmlDeviceGetUUID(n.nvmlDeviceGetHandleByPciBusId({bus_id!r}))") == uuid
        assert client.ask(f"n.nvmlDeviceGetMinorNumber(gpu({index}))") == index
    assert client.ask("n.nvmlDeviceGetSerial(gpu(0)) != n.nvmlDeviceGetSerial(gpu(1))")
    assert client.ask("n.nvmlDeviceGetArchitecture(gpu(0)) == n.NVML_DEVICE_ARCH_HOPPER")
    assert client.ask("n.nvmlDeviceGetCudaComputeCapability(gpu(1))") == [8, 0]
    assert client.ask("n.nvmlDeviceGetMigMode(gpu(0))") == [0, 0]
    assert client.ask("n.nvmlDeviceGetPerformanceState(gpu(0))") == 0
    assert "splitwatt" in client.ask("n.nvmlSystemGetDriverVersion()")
    assert "splitwatt" in client.ask("n.nvmlSystemGetNVMLVersion()")
    assert client.ask("n.nvmlSystemGetCudaDriverVersion_v2()") == 13000
    for lookup in ("gpu(2)", "n.nvmlDeviceGetHandleByPciBusId('nonsense')"):
        with pytest.raises(NvmlFailed) as failed:
            client.ask(f"bool({lookup})")
        assert failed.value.code == INVALID_ARGUMENT
    with pytest.raises(NvmlFailed) as failed:
        client.ask("n.nvmlDeviceGetHandleByUUID('GPU-of-nobody')")
    assert failed.value.code == NOT_FOUND


def test_load_shows_in_utilisation_memory_and_temperature(node: NodeTwin, client: NvmlClient) -> None:
    node.set_demand(0, Demand(600, utilization_percent=73, memory_utilization_percent=40, memory_used_bytes=30 << 30))
    node.advance_clock(100)
    assert client.ask("[n.nvmlDeviceGetUtilizationRates(gpu(0)).gpu, n.nvmlDeviceGetUtilizationRates(gpu(0)).memory]") == [73, 40]
    assert client.ask("n.nvmlDeviceGetMemoryInfo(gpu(0)).used") == 30 << 30
    assert client.ask("n.nvmlDeviceGetMemoryInfo(gpu(0), version=n.nvmlMemory_v2).free") == 50 << 30
    celsius = client.ask("n.nvmlDeviceGetTemperature(gpu(0), n.NVML_TEMPERATURE_GPU)")
    assert celsius == client.ask("n.nvmlDeviceGetTemperatureV(gpu(0), n.NVML_TEMPERATURE_GPU)") > 50


def test_limits_have_a_range_and_are_read_back_by_everyone(node: NodeTwin, client: NvmlClient) -> None:
    assert client.ask("n.nvmlDeviceGetPowerManagementLimitConstraints(gpu(0))") == [200_000, 700_000]
    assert client.ask("n.nvmlDeviceGetPowerManagementDefaultLimit(gpu(1))") == 400_000
    for limit_mw in (200_000, 700_000, 450_000):
        client.set_limit(0, limit_mw)
        assert client.limits(0) == (limit_mw, limit_mw)
        assert node.read(0).management_mw == limit_mw
    for limit_mw in (199_999, 700_001, 0):
        with pytest.raises(NvmlFailed) as failed:
            client.set_limit(0, limit_mw)
        assert failed.value.code == INVALID_ARGUMENT
    assert client.limits(0) == (450_000, 450_000)
    assert client.limits(1) == (400_000, 400_000)
    with NvmlClient(node.path) as other:
        assert other.limits(0) == (450_000, 450_000)


def test_an_outside_limiter_hides_behind_the_enforced_limit(node: NodeTwin, client: NvmlClient) -> None:
    client.set_limit(0, 600_000)
    node.set_outside_limit(0, 300_000)
    assert client.limits(0) == (600_000, 300_000)
    client.set_limit(0, 250_000)
    assert client.limits(0) == (250_000, 250_000)
    node.set_outside_limit(0, None)
    client.set_limit(0, 600_000)
    assert client.limits(0) == (600_000, 600_000)


def test_pynvmls_v2_setter_says_success_whatever_the_library_answers(node: NodeTwin, client: NvmlClient) -> None:
    assert client.ask("n.nvmlDeviceSetPowerManagementLimit_v2(gpu(0), n.NVML_POWER_SCOPE_GPU, 5)") == 0
    assert client.limits(0) == (700_000, 700_000)
    assert client.ask("n.nvmlDeviceSetPowerManagementLimit_v2(gpu(0), n.NVML_POWER_SCOPE_GPU, 300000, version=7)") == 0
    assert client.limits(0) == (700_000, 700_000)
    assert client.ask("n.nvmlDeviceSetPowerManagementLimit_v2(gpu(0), n.NVML_POWER_SCOPE_GPU, 300000)") == 0
    assert client.limits(0) == (300_000, 300_000)


def test_instant_power_is_a_sample_and_usage_an_average_on_h100_but_not_on_a100(node: NodeTwin, client: NvmlClient) -> None:
    node.advance_clock(3)
    node.set_demands({0: Demand(650.0), 1: Demand(380.0)})
    node.advance_clock(0.3)
    h100_instant, a100_instant = (client.ask(f"field({gpu}, 186).value.uiVal") for gpu in (0, 1))
    assert h100_instant == pytest.approx(650_000, abs=10)
    assert a100_instant == pytest.approx(380_000, abs=10)
    h100_usage, a100_usage = (client.ask(f"n.nvmlDeviceGetPowerUsage(gpu({gpu}))") for gpu in (0, 1))
    assert 200_000 < h100_usage < 300_000
    assert a100_usage == a100_instant
    assert client.ask("field(0, 185).value.uiVal") == h100_usage
    assert client.ask("field(1, 185).nvmlReturn") == NOT_SUPPORTED  # nvml.h: "except GA100"
    node.advance_clock(1)
    assert client.ask("n.nvmlDeviceGetPowerUsage(gpu(0))") == pytest.approx(650_000, rel=0.01)


def test_each_field_carries_its_own_return_code(node: NodeTwin, client: NvmlClient) -> None:
    client.set_limit(0, 500_000)
    node.set_outside_limit(0, 450_000)
    fields = [MIN_LIMIT, MAX_LIMIT, DEFAULT_LIMIT, CURRENT_LIMIT, REQUESTED_LIMIT, 99_999]
    values = client.ask(f"[(v.nvmlReturn, v.value.uiVal) for v in n.nvmlDeviceGetFieldValues(gpu(0), {fields})]")
    assert [value for code, value in values if code == 0] == [200_000, 700_000, 700_000, 450_000, 500_000]
    assert values[-1][0] == NOT_SUPPORTED
    module_scope = "n.nvmlDeviceGetFieldValues(gpu(0), [(186, n.NVML_POWER_SCOPE_MODULE), (186, 77), (186, 0)])"
    assert client.ask(f"[v.nvmlReturn for v in {module_scope}]") == [NOT_SUPPORTED, INVALID_ARGUMENT, 0]


def test_energy_is_the_integral_of_power_in_millijoules(node: NodeTwin, client: NvmlClient) -> None:
    before_mj = client.ask("n.nvmlDeviceGetTotalEnergyConsumption(gpu(0))")
    node.set_demand(0, Demand(500.0))
    node.advance_clock(10)
    energy_mj = client.ask("n.nvmlDeviceGetTotalEnergyConsumption(gpu(0))")
    lag_j = (500 - 95) * H100_SXM.power_lag_s
    assert energy_mj - before_mj == pytest.approx((10 * 500 - lag_j) * 1000, abs=2)
    assert client.ask("field(0, 191).value.ullVal") == client.ask("field(0, 83).value.ullVal") == energy_mj


def test_a_clock_lock_acts_at_once_and_a_reset_ends_it(node: NodeTwin, client: NvmlClient) -> None:
    node.set_demand(0, Demand(700.0))
    node.advance_clock(5)
    assert client.ask("n.nvmlDeviceGetClockInfo(gpu(0), n.NVML_CLOCK_SM)") == 1980
    client.ask("n.nvmlDeviceSetGpuLockedClocks(gpu(0), 0, 1505)")
    assert client.ask("n.nvmlDeviceGetClockInfo(gpu(0), n.NVML_CLOCK_SM)") == 1500
    truth = node.read(0)
    assert (truth.locked_min_mhz, truth.locked_max_mhz) == (345, 1500)
    expected_w = 95 + 605 * (1500 / 1980) ** H100_SXM.power_exponent
    assert truth.uncapped_w == pytest.approx(expected_w)
    node.advance_clock(0.1)
    assert node.read(0).power_w == pytest.approx(expected_w, rel=0.01)
    assert client.ask("n.nvmlDeviceGetCurrentClocksEventReasons(gpu(0))") == 0
    client.ask("n.nvmlDeviceResetGpuLockedClocks(gpu(0))")
    assert client.ask("n.nvmlDeviceGetClockInfo(gpu(0), n.NVML_CLOCK_GRAPHICS)") == 1980
    for bounds in ("1500, 1000", "0, 0"):
        with pytest.raises(NvmlFailed) as failed:
            client.ask(f"n.nvmlDeviceSetGpuLockedClocks(gpu(0), {bounds})")
        assert failed.value.code == INVALID_ARGUMENT
    memory_mhz = client.ask("n.nvmlDeviceGetSupportedMemoryClocks(gpu(0))")
    clocks = client.ask(f"n.nvmlDeviceGetSupportedGraphicsClocks(gpu(0), {memory_mhz[0]})")
    assert (clocks[0], clocks[1], clocks[-1]) == (1980, 1965, 345)
    assert client.ask("n.nvmlDeviceGetClock(gpu(0), n.NVML_CLOCK_MEM, n.NVML_CLOCK_ID_CURRENT)") == memory_mhz[0]


def test_a_brake_to_the_lowest_clocks_leaves_little_more_than_idle_power(node: NodeTwin, client: NvmlClient) -> None:
    node.set_demand(1, Demand(400.0))
    client.ask("n.nvmlDeviceSetGpuLockedClocks(gpu(1), 210, 288)")
    node.advance_clock(1)
    assert A100_SXM.idle_w < node.read(1).power_w < A100_SXM.idle_w + 30


def test_event_reasons_name_the_power_cap_and_its_time_is_counted(node: NodeTwin, client: NvmlClient) -> None:
    assert client.ask("n.nvmlDeviceGetCurrentClocksEventReasons(gpu(0)) == n.nvmlClocksEventReasonGpuIdle")
    node.set_demand(0, Demand(700.0))
    node.advance_clock(1)
    assert client.ask("n.nvmlDeviceGetCurrentClocksEventReasons(gpu(0))") == 0
    client.set_limit(0, 300_000)
    node.advance_clock(2)
    assert client.ask("n.nvmlDeviceGetCurrentClocksEventReasons(gpu(0)) == n.nvmlClocksEventReasonSwPowerCap")
    assert client.ask("field(0, n.NVML_FI_DEV_PERF_POLICY_POWER).value.ullVal") == pytest.approx(2e9, rel=0.05)


def test_a_compute_process_is_there_while_something_loads_the_gpu_or_holds_its_memory(node: NodeTwin, client: NvmlClient) -> None:
    ask = "[[p.pid for p in n.nvmlDeviceGetComputeRunningProcesses(gpu(i))] for i in range(2)]"
    assert client.ask(ask) == [[], []]
    node.set_demands({0: Demand(power_w=300.0), 1: Demand(power_w=0.0, memory_used_bytes=2**30)})
    assert [len(pids) for pids in client.ask(ask)] == [1, 1]
    assert client.ask("n.nvmlDeviceGetComputeRunningProcesses(gpu(1))[0].usedGpuMemory") == 2**30
    node.set_demands({0: Demand(power_w=0.0), 1: Demand(power_w=0.0)})
    assert client.ask(ask) == [[], []]


def test_a_mig_instance_leads_to_its_gpu_and_is_no_gpu_itself(node: NodeTwin, client: NvmlClient) -> None:
    instances = node.set_mig(1, 2)
    assert len(set(instances)) == 2 and client.ask("n.nvmlDeviceGetMigMode(gpu(1))") == [1, 1]
    for uuid in instances:
        handle = f"n.nvmlDeviceGetHandleByUUID({uuid!r})"
        assert client.ask(f"n.nvmlDeviceGetUUID(n.nvmlDeviceGetDeviceHandleFromMigDeviceHandle({handle}))") == node.uuids[1]
        with pytest.raises(NvmlFailed) as failed:
            client.ask(f"n.nvmlDeviceGetPowerUsage({handle})")
        assert failed.value.code == INVALID_ARGUMENT
    node.set_mig(1, 1)
    for gone in (instances[1], "MIG-", "MIG-nothing"):
        with pytest.raises(NvmlFailed) as failed:
            client.ask(f"bool(n.nvmlDeviceGetHandleByUUID({gone!r}))")
        assert failed.value.code == NOT_FOUND
    with pytest.raises(ValueError, match="0 to 7 MIG instances"):
        node.set_mig(1, 8)


def test_every_error_code_of_nvml_has_a_text(client: NvmlClient) -> None:
    texts = client.ask("[n.nvmlErrorString(code) for code in range(31)]")
    assert len(set(texts)) == 31
    assert "Unknown Error" not in texts
    assert client.ask("n.nvmlErrorString(999)") == "Unknown Error"


def test_what_is_not_simulated_says_so(client: NvmlClient) -> None:
    with pytest.raises(NvmlFailed) as failed:
        client.ask("n.nvmlDeviceGetFanSpeed(gpu(0))")
    assert failed.value.code == FUNCTION_NOT_FOUND


def test_nothing_answers_before_init_and_after_shutdown(node: NodeTwin) -> None:
    with NvmlClient(node.path) as client:
        client.ask("globals().update(h=gpu(0))")
        client.ask("n.nvmlInit()")
        client.ask("n.nvmlShutdown()")
        assert client.ask("n.nvmlDeviceGetPowerUsage(h)") > 0  # one init is left
        client.ask("n.nvmlShutdown()")
        for call in ("n.nvmlDeviceGetPowerUsage(h)", "n.nvmlDeviceGetCount()", "n.nvmlShutdown()"):
            with pytest.raises(NvmlFailed) as failed:
                client.ask(call)
            assert failed.value.code == UNINITIALIZED


def test_a_node_without_a_driver_has_no_nvml(node: NodeTwin, tmp_path: Path) -> None:
    for path in ("", str(tmp_path / "absent"), str(tmp_path)):
        code = "import pynvml as n\ntry: n.nvmlInit()\nexcept n.NVMLError as e: print(e.value)"
        env = {**os.environ, **environment(node.path), STATE_FILE_VARIABLE: path}
        done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True, timeout=60)
        assert int(done.stdout) == DRIVER_NOT_LOADED
