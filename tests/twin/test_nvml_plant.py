"""The rack behind the meter: losses and non-GPU watts, never the plain sum of the GPUs."""

import pytest
from splitwatt_nvml_twin.plant import RackPlant


def test_true_watts_are_gpu_watts_with_losses_and_what_the_rest_draws() -> None:
    plant = RackPlant(loss_percent=4, base_node_w=2000, slope=0.1, fixed_w=500, node_ceiling_w=2500)
    assert plant.true_w([1000.0, 3000.0]) == pytest.approx(4000 * 1.04 + (2000 + 100) + (2000 + 300) + 500)


def test_non_gpu_watts_stay_under_what_a_budget_declares() -> None:
    plant = RackPlant()
    assert plant.non_gpu_w(0) == 2100
    assert plant.non_gpu_w(8 * 700) == pytest.approx(2548)
    assert plant.non_gpu_w(1e6) == 2760
    full = [8 * 700.0] * 4
    assert sum(full) < plant.true_w(full) < sum(full) * 1.04 + 4 * 2800 + 600


def test_a_rack_that_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="node_ceiling_w"):
        RackPlant(base_node_w=3000)
    with pytest.raises(ValueError, match="0 or more"):
        RackPlant(loss_percent=-1)
