"""Which answers of NVML only a new container can mend, and which labels ask the agent to step aside."""

from __future__ import annotations

from pathlib import Path

import pynvml
import pytest
from splitwatt_agent.last_resort import Patience, advice, cause, cause_in, driver_is_loaded
from splitwatt_agent.nvml import NvmlError
from splitwatt_agent.own_node import pause_in
from splitwatt_agent.sampling import GpuReading
from splitwatt_core.protocol.enforcer import Readback

MISMATCH, UNKNOWN = pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH, pynvml.NVML_ERROR_UNKNOWN
NO_LIBRARY, NOT_LOADED = pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, pynvml.NVML_ERROR_DRIVER_NOT_LOADED


@pytest.mark.parametrize(
    ("code", "once_open", "driver_loaded", "hopeless"),
    [
        (MISMATCH, False, False, True),
        (UNKNOWN, False, False, True),
        (NO_LIBRARY, False, False, False),  # made before the driver: it may come
        (NO_LIBRARY, True, False, True),
        (NO_LIBRARY, False, True, True),
        (NOT_LOADED, True, False, False),  # an upgrade under way
        (NOT_LOADED, False, True, True),
        (pynvml.NVML_ERROR_NO_PERMISSION, False, True, True),
        (pynvml.NVML_ERROR_GPU_IS_LOST, True, True, False),  # a reset helps, no container does
        (pynvml.NVML_ERROR_TIMEOUT, True, True, False),
    ],
)
def test_only_what_a_new_container_mends_is_hopeless(code: int, once_open: bool, driver_loaded: bool, hopeless: bool) -> None:
    why = cause(NvmlError(call="nvmlInit", code=code), once_open=once_open, driver_loaded=driver_loaded)
    assert bool(why) is hopeless
    assert not why or why.startswith("nvmlInit answered ")


@pytest.mark.parametrize("code", [NO_LIBRARY, NOT_LOADED, pynvml.NVML_ERROR_NO_PERMISSION])
def test_what_a_setting_mends_names_the_setting(code: int) -> None:
    said = advice(NvmlError(call="nvmlInit", code=code))
    assert "agent.runtimeClassName" in said and said.startswith(" (") and said.endswith(")")


def test_no_setting_is_named_that_would_not_help() -> None:
    assert advice(NvmlError(call="nvmlInit", code=MISMATCH)) == "" == advice(OSError("no boot id"))


def reading(code: int | None) -> GpuReading:
    if code is None:
        return GpuReading(Readback(400_000, 400_000), None)
    return GpuReading(Readback(None, None), None, (NvmlError(call="limit", code=code),))


def test_one_gpu_that_answers_is_hope() -> None:
    assert cause_in({"a": reading(UNKNOWN), "b": reading(UNKNOWN)})
    assert not cause_in({"a": reading(UNKNOWN), "b": reading(None)})
    assert not cause_in({"a": reading(UNKNOWN), "b": reading(pynvml.NVML_ERROR_GPU_IS_LOST)})
    assert not cause_in({}), "a node without GPUs has lost none"


def test_patience_counts_from_the_first_of_an_unbroken_row() -> None:
    patience = Patience().after("nvmlInit answered UNKNOWN", 10.0).after("limit answered UNKNOWN", 50.0)
    assert not patience.over(69.9, give_up_s=60.0) and patience.over(70.0, give_up_s=60.0)
    assert not patience.after("", 60.0).over(1000.0, give_up_s=60.0)
    assert not patience.after("", 60.0).after("again", 61.0).over(100.0, give_up_s=60.0)


def test_a_driver_shows_in_the_kernels_folders(tmp_path: Path) -> None:
    assert not driver_is_loaded((tmp_path / "version",))
    (tmp_path / "version").touch()
    assert driver_is_loaded((tmp_path / "other", tmp_path / "version"))


@pytest.mark.parametrize(
    ("labels", "pause"),
    [
        ({}, ""),
        ({"nvidia.com/gpu.deploy.dcgm": "true", "nvidia.com/gpu.deploy.nvsm": "false"}, ""),
        ({"nvidia.com/gpu.deploy.dcgm": "paused-for-mig-change"}, "nvidia.com/gpu.deploy.dcgm=paused-for-mig-change"),
        (
            {"nvidia.com/gpu.deploy.client": "ours_paused-for-driver-upgrade", "nvidia.com/gpu.deploy.dcgm": "true"},
            "nvidia.com/gpu.deploy.client=ours_paused-for-driver-upgrade",
        ),
        (
            {"nvidia.com/gpu.deploy.b": "paused-for-x", "nvidia.com/gpu.deploy.a": "paused-for-y"},
            "nvidia.com/gpu.deploy.a=paused-for-y",
        ),
        ({"example.com/gpu.deploy.dcgm": "paused-for-mig-change"}, ""),
    ],
)  # fmt: skip
def test_a_label_of_nvidias_operator_that_pauses_is_found_whatever_it_pauses_for(labels: dict[str, str], pause: str) -> None:
    assert pause_in(labels) == pause
