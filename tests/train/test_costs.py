"""The cost model equals the authors' formulas, counted by hand on ResNet32 for CIFAR."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from splitwatt_prune.batches import MiniBatch
from splitwatt_prune.cost import STATES, WORD_BYTES, Totals, measure
from splitwatt_prune.models import ResNet, mlp
from torch import nn


def conv(channels: int, out: int, kernel: int, inside: int, outside: int) -> tuple[int, int]:
    """(inference, training) of a square convolution, as the formulas are printed."""
    pad = kernel // 2
    c, k, rs, pq = channels, out, kernel * kernel, outside * outside
    return c * rs * k * pq, 2 * c * rs * k * pq + (inside + pad) ** 2 * k * rs * c


def test_resnet32_costs_what_a_hand_counts() -> None:
    layers = [conv(3, 16, 3, 32, 32)] + 10 * [conv(16, 16, 3, 32, 32)]
    layers += [conv(16, 32, 3, 32, 16), conv(16, 32, 1, 32, 16)] + 9 * [conv(32, 32, 3, 16, 16)]
    layers += [conv(32, 64, 3, 16, 8), conv(32, 64, 1, 16, 8)] + 9 * [conv(64, 64, 3, 8, 8)]
    cost = measure(ResNet(32), torch.zeros(1, 3, 32, 32))
    assert cost.inference_flops == sum(each[0] for each in layers) + 640 == 69_124_736
    assert cost.training_flops == sum(each[1] for each in layers) + 3 * 640
    maps = 11 * 16 * 32**2 + 11 * 32 * 16**2 + 11 * 64 * 8**2  # of convolutions: 31 and two shortcuts
    assert cost.norm_elements == 8 * maps
    assert cost.activation_elements == 2 * maps + 10
    weights = 3 * 9 * 16 + 10 * 16 * 9 * 16 + 16 * 9 * 32 + 16 * 32 + 9 * 32 * 9 * 32 + 32 * 9 * 64 + 32 * 64 + 9 * 64 * 9 * 64
    outputs = 11 * 16 + 11 * 32 + 11 * 64
    assert cost.model_words == weights + outputs + 640 + 10
    assert cost.parameters == weights + 2 * outputs + 650
    assert cost.static_bytes == STATES * WORD_BYTES * cost.parameters
    assert cost.memory_bytes(32) == cost.static_bytes + 32 * cost.activation_bytes
    assert (cost.allreduce_bytes(1), cost.allreduce_bytes(4)) == (0, 1.5 * 4 * cost.parameters)


def test_measuring_leaves_the_model_as_it_was() -> None:
    model = ResNet(8, channels=1).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    measure(model, torch.randn(2, 1, 8, 8))
    assert model.training and all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def test_totals_are_shares_of_the_dense_run() -> None:
    dense, half = (measure(mlp(sizes), torch.zeros(1, 8)) for sizes in ((8, 16, 4), (8, 8, 4)))
    totals = Totals(dense)
    with pytest.raises(ValueError, match="nothing was trained yet"):
        totals.ratios()
    totals.add(dense, samples=100, steps=10)
    assert totals.ratios()["training_flops_ratio"] == totals.ratios()["allreduce_ratio"] == 1
    totals.add(half, samples=100, steps=10)
    assert totals.ratios()["training_flops_ratio"] == pytest.approx(0.75)
    assert totals.ratios(dense_steps=40)["allreduce_ratio"] == pytest.approx(totals.ratios()["allreduce_ratio"] / 2)


@given(st.integers(1, 512), st.integers(1, 64), st.integers(1, 64))
def test_a_refilled_batch_fits_never_shrinks_and_takes_the_rate_with_it(size: int, wide: int, narrow: int) -> None:
    dense, pruned = (measure(nn.Sequential(*mlp((8, width, 4))), torch.zeros(1, 8)) for width in (64, min(wide, narrow)))
    first = MiniBatch.of(dense, size)
    after = first.refilled(pruned)
    assert after.size >= size and pruned.memory_bytes(after.size) <= dense.memory_bytes(size)
    assert pruned.memory_bytes(after.size + 2 * first.multiple) > dense.memory_bytes(size)
    assert after.lr_factor == pytest.approx(after.size / size)
    assert MiniBatch.of(dense, size, most=size).refilled(pruned).size == size


def test_a_batch_has_a_sample() -> None:
    with pytest.raises(ValueError, match="one sample or more"):
        MiniBatch.of(measure(mlp((8, 4)), torch.zeros(1, 8)), 0)
