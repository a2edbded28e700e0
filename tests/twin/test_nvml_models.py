"""The simulated GPUs are the products that everybody reads of, but where truth is said to differ."""

from __future__ import annotations

import pytest
from splitwatt_core.gpus import hardware
from splitwatt_core.gpus.profiles import builtin, find
from splitwatt_nvml_twin.models import BUILT_IN, TRUTH_OFFSETS, GpuModel


@pytest.mark.parametrize("model", BUILT_IN.values(), ids=BUILT_IN)
def test_a_simulated_gpu_is_its_product_with_the_stated_offsets_and_no_others(model: GpuModel) -> None:
    product = hardware.builtin().product(model.name)
    believed = find(builtin(), model.name)
    assert product is not None and believed is not None
    assert (model.min_limit_mw, model.default_limit_mw, model.max_limit_mw) == (
        product.min_cap_w * 1000,
        product.default_cap_w * 1000,
        product.max_cap_w * 1000,
    )
    assert (model.min_clock_mhz, model.max_clock_mhz) == (product.min_clock_mhz, product.max_clock_mhz)
    assert (model.name, model.memory_bytes) == (product.product_names[0], product.memory_bytes)
    off = TRUTH_OFFSETS[believed.name]
    assert model.idle_w - believed.idle_w == pytest.approx(off.idle_w)
    assert model.power_exponent - believed.clock_exponent_permille / 1000 == pytest.approx(off.power_exponent)
    assert model.voltage_floor - believed.voltage_floor_permille / 1000 == pytest.approx(off.voltage_floor)


def test_truth_leaves_the_laws_belief_for_every_gpu_and_says_why() -> None:
    assert set(TRUTH_OFFSETS) == {profile.name for profile in builtin()}
    for off in TRUTH_OFFSETS.values():
        assert off.power_exponent and off.voltage_floor and len(off.why) > 20


def test_the_truth_is_what_was_published() -> None:
    """Half power slows an H100's prefill 1.3 times; 1305 of 1410 MHz give back a fifth of an A100's watts above idle."""
    h100, a100 = BUILT_IN["H100-SXM"], BUILT_IN["A100-SXM"]
    assert (350 - h100.idle_w) / (700 - h100.idle_w) == pytest.approx(1.3**-h100.power_exponent, rel=0.005)
    assert (1305 / 1410) ** a100.power_exponent == pytest.approx(0.8, abs=0.005)
