"""Lambda from the ratio, the proximal step, and the shrink budget."""

from __future__ import annotations

from typing import cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from splitwatt_prune.groups import of_graph
from splitwatt_prune.lasso import EPSILON, GroupLasso, Mode
from splitwatt_prune.models import ResNet, mlp
from splitwatt_prune.spaces import read
from support.pruned import stepped
from torch import nn
from torch.nn import functional

RATIOS = st.floats(0.01, 0.95)


@given(RATIOS, st.integers(0, 1000), st.sampled_from(["prox", "subgradient"]))
def test_lambda_makes_the_penalty_its_share_of_the_first_loss(ratio: float, seed: int, mode: Mode) -> None:
    torch.manual_seed(seed)
    model = mlp((6, 12, 4)).double()
    lasso = GroupLasso(model, ratio, mode)
    loss = functional.cross_entropy(model(torch.randn(8, 6).double()), torch.arange(8) % 4)
    penalty = lasso.penalty(loss)
    assert lasso.weight is not None
    pulled = lasso.weight * float(lasso.norm().detach())
    assert pulled / (float(loss) + pulled) == pytest.approx(ratio, abs=1e-6)
    assert float(penalty) == pytest.approx(pulled if mode == "subgradient" else 0.0)
    first = lasso.weight
    lasso.penalty(loss * 3)
    assert lasso.weight == first, "lambda is found once"


def test_g_is_the_sum_of_the_norms_of_outputs_and_inputs_written_out() -> None:
    model = ResNet(8, channels=1)
    total = 0.0
    for name, module in model.named_modules():
        if not isinstance(module, nn.Conv2d | nn.Linear):
            continue
        weight = module.weight.detach().flatten(2) if module.weight.dim() == 4 else module.weight.detach().unsqueeze(2)
        if name != "fc":
            total += sum(float((weight[k] ** 2).sum() + EPSILON) ** 0.5 for k in range(weight.shape[0]))
        if name != "conv1":
            total += sum(float((weight[:, c] ** 2).sum() + EPSILON) ** 0.5 for c in range(weight.shape[1]))
    assert float(GroupLasso(model).norm()) == pytest.approx(total, rel=1e-5)


@given(st.integers(0, 100), st.floats(0.05, 0.9), st.sampled_from([0.0, 0.5, 0.9]))
def test_the_proximal_step_shortens_each_norm_by_one_pull_and_stops_at_zero(seed: int, ratio: float, momentum: float) -> None:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 9), nn.ReLU(), nn.Linear(9, 2))
    with torch.no_grad():
        model[2].weight.zero_()  # its input channels are zero already, and stay
    optimizer = torch.optim.SGD(model.parameters(), 0.3, momentum=momentum)
    lasso = GroupLasso(model, ratio)
    lasso.penalty(2.0)
    before = model[0].weight.detach().norm(dim=1)
    lasso.step(optimizer)
    assert lasso.weight is not None
    pull = 0.3 * lasso.weight / (1 - momentum)
    assert torch.allclose(model[0].weight.detach().norm(dim=1), (before - pull).clamp(min=0), atol=1e-6)
    assert not model[2].weight.any()
    assert lasso.shrink_budget == pytest.approx(pull)


def test_a_pull_larger_than_the_norm_gives_exact_zeros() -> None:
    model = mlp((3, 4, 2))
    optimizer = torch.optim.SGD(model.parameters(), 100.0)
    lasso = GroupLasso(model, 0.9)
    lasso.penalty(100.0)
    lasso.step(optimizer)
    assert all(not groups.weight.any() for groups in of_graph(read(model)))


def test_subgradient_leaves_the_step_to_the_optimizer_and_counts_the_budget() -> None:
    model = mlp((3, 4, 2))
    optimizer = stepped(model, torch.randn(4, 3))
    lasso = GroupLasso(model, 0.5, "subgradient")
    lasso.penalty(torch.tensor(1.0)).backward()
    before = model[0].weight.detach().clone()
    lasso.step(optimizer)
    assert torch.equal(model[0].weight, before) and lasso.shrink_budget > 0
    assert model[0].weight.grad is not None and model[0].weight.grad.any()


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: GroupLasso(mlp((3, 4, 2)), 1.0), "between 0 and 1"),
        (lambda: GroupLasso(mlp((3, 4, 2)), 0.5, cast(Mode, "hard")), "'prox' or 'subgradient'"),
        (lambda: GroupLasso(nn.Sequential(nn.Linear(3, 2))), "no channel of Sequential may be cut .*the model's output"),
        (lambda: GroupLasso(mlp((3, 4, 2))).penalty(float("nan")), "positive number, not nan"),
        (lambda: GroupLasso(mlp((3, 4, 2))).step(torch.optim.SGD(mlp((3, 2)).parameters(), 0.1)), "call penalty"),
    ],
)
def test_bad_input_gets_a_sentence(make: object, sentence: str) -> None:
    assert callable(make)
    with pytest.raises(ValueError, match=sentence):
        make()
