"""What a driver may answer, and what of it cannot be so. The simulated one only gives what is true, so answers are put in the
binding's place."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pynvml
import pytest
from splitwatt_agent import nvml
from splitwatt_agent.nvml import NvmlError, PynvmlPort
from splitwatt_core.protocol.contract import Health


def test_nvml_errors_say_what_they_mean() -> None:
    def of(code: int) -> NvmlError:
        return NvmlError(call="c", code=code)

    assert of(pynvml.NVML_ERROR_GPU_IS_LOST).health is Health.LOST
    assert of(pynvml.NVML_ERROR_NOT_SUPPORTED).health is Health.NOT_SUPPORTED
    assert of(pynvml.NVML_ERROR_UNKNOWN).health is Health.UNKNOWN
    assert of(pynvml.NVML_ERROR_DRIVER_NOT_LOADED).driver_gone
    assert not of(pynvml.NVML_ERROR_GPU_IS_LOST).driver_gone
    assert str(of(pynvml.NVML_ERROR_TIMEOUT)) == "c answered TIMEOUT"


@pytest.mark.parametrize("answer", [0, 10_000_001, 2**31 - 1, 2**32 - 1])
@pytest.mark.parametrize(
    ("function", "ask"),
    [
        ("nvmlDeviceGetPowerUsage", PynvmlPort.instant_power_mw),
        ("nvmlDeviceGetPowerManagementLimit", PynvmlPort.management_limit_mw),
        ("nvmlDeviceGetEnforcedPowerLimit", PynvmlPort.enforced_limit_mw),
    ],
)
def test_watts_that_no_gpu_has_are_not_read(
    monkeypatch: pytest.MonkeyPatch, function: str, ask: Callable[[PynvmlPort, str], int], answer: int
) -> None:
    """The simulated driver only gives true numbers, so these are put in the binding's place."""
    port = PynvmlPort()
    port._handles, port._averaging = {"g0": object()}, {"g0"}
    said = {"watts": 300_000}
    stands_in = lambda handle: said["watts"]  # noqa: E731
    stands_in.__name__ = function
    monkeypatch.setattr(pynvml, function, stands_in)
    assert ask(port, "g0") == 300_000
    said["watts"] = answer
    with pytest.raises(NvmlError, match=f"{function} answered {answer} mW, which no GPU draws") as told:
        ask(port, "g0")
    assert not told.value.driver_gone and told.value.health is Health.UNKNOWN


@pytest.mark.parametrize("limits", [(0xFFFFFFFF, 700_000), (700_001, 700_000), (-1, 700_000), (200_000, 0xFFFFFFFF), (0, 0)])
def test_a_range_of_limits_that_is_none_makes_no_gpu(monkeypatch: pytest.MonkeyPatch, limits: tuple[int, int]) -> None:
    """Believed, the lowest limit would be set where less was granted, and no status could carry it."""
    answers = {
        "nvmlDeviceGetUUID": "GPU-a",
        "nvmlDeviceGetName": "NVIDIA H100",
        "nvmlDeviceGetPowerManagementLimitConstraints": (200_000, 700_000),
        "nvmlDeviceGetPowerManagementDefaultLimit": 700_000,
    }
    for function in tuple(answers):
        stands_in = partial(lambda function, handle: answers[function], function)
        stands_in.__name__ = function  # type: ignore[attr-defined]
        monkeypatch.setattr(pynvml, function, stands_in)
    assert nvml._identity(object()).min_mw == 200_000
    answers["nvmlDeviceGetPowerManagementLimitConstraints"] = limits
    with pytest.raises(NvmlError, match="nvmlDeviceGetPowerManagementLimitConstraints answered"):
        nvml._identity(object())


@pytest.mark.parametrize(("code", "one_way"), [(pynvml.NVML_ERROR_NO_PERMISSION, True), (pynvml.NVML_ERROR_GPU_IS_LOST, False)])
def test_what_keeps_all_gpus_away_at_once_is_no_node_without_gpus(
    monkeypatch: pytest.MonkeyPatch, code: int, one_way: bool
) -> None:
    def refuses(index: int) -> object:
        raise pynvml.NVMLError(code)

    refuses.__name__ = "nvmlDeviceGetHandleByIndex"
    two = lambda: 2  # noqa: E731
    monkeypatch.setattr(pynvml, "nvmlDeviceGetCount", two)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByIndex", refuses)
    if one_way:
        with pytest.raises(NvmlError, match="answered NO_PERMISSION"):
            PynvmlPort().scan()
    else:
        assert [index for index, _ in PynvmlPort().scan().unreadable] == [0, 1]
