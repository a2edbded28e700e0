"""Reconfigurations keep the function, cut weights, norms and optimizer state together, and take dead paths out whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from splitwatt_prune import spaces
from splitwatt_prune.groups import alive
from splitwatt_prune.lasso import GroupLasso
from splitwatt_prune.models import Block, ResNet, mlp
from splitwatt_prune.reconfigure import THRESHOLD, Reconfigurer
from splitwatt_prune.stubs import Constant, Folded, Nothing
from support.pruned import emptied, logits, step, stepped
from torch import Tensor, nn
from torch.nn import functional

IMAGES = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(5))


def resnet(seed: int = 0, depth: int = 8) -> ResNet:
    torch.manual_seed(seed)
    return ResNet(depth, channels=1, widths=(4, 6, 8))


def is_whole(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """The optimizer has the model's parameters, each once, with state of their shapes."""
    held = [each for group in optimizer.param_groups for each in group["params"]]
    assert sorted(map(id, held)) == sorted(map(id, model.parameters()))
    assert {id(each) for each in optimizer.state} <= {id(each) for each in held}
    for parameter, state in optimizer.state.items():
        assert all(value.shape in (parameter.shape, ()) for value in state.values() if isinstance(value, Tensor))


@settings(max_examples=25)
@given(st.integers(0, 1000), st.sampled_from(["sgd", "adam"]), st.data())
def test_any_channels_below_the_threshold_go_and_logits_stay(seed: int, kind: str, data: st.DataObject) -> None:
    model = resnet(seed)
    optimizer = stepped(model, IMAGES, kind=kind)
    free = {space.name: space.size for space in spaces.read(model).free()}
    gone = {name: sorted(data.draw(st.sets(st.integers(0, size - 1), max_size=size - 1))) for name, size in free.items()}
    emptied(model, gone, value=0.5 * THRESHOLD)
    wanted = {name: size - len(gone[name]) for name, size in free.items()}
    before = logits(model, IMAGES)
    change = Reconfigurer(model, optimizer, IMAGES).now(3)
    assert {space.name: space.size for space in spaces.read(model).free()} == wanted
    if not any(gone.values()):
        assert change is None
        return
    assert change is not None and change.cut_channels == sum(map(len, gone.values())) and not change.removed_paths
    assert change.max_logit_delta is not None and change.max_logit_delta <= 5e-3
    assert (logits(model, IMAGES) - before).abs().max() <= 5e-3
    assert change.after.training_flops < change.before.training_flops and change.flops_ratio < 1
    is_whole(model, optimizer)
    step(model, optimizer, IMAGES)


def test_weights_norms_and_momentum_are_cut_by_the_same_channels() -> None:
    model = resnet()
    optimizer = stepped(model, IMAGES)
    emptied(model, {"blocks.0.conv1": [1]})
    inner, rest = model.blocks[0], [0, 2, 3]
    before = {name: value.clone() for name, value in inner.state_dict().items()}
    momentum = {name: optimizer.state[p]["momentum_buffer"].clone() for name, p in inner.named_parameters()}
    assert Reconfigurer(model, optimizer, IMAGES).now() is not None
    assert torch.equal(inner.conv1.weight, before["conv1.weight"][rest])
    assert torch.equal(inner.conv2.weight, before["conv2.weight"][:, rest])
    for name in ("bn1.weight", "bn1.bias", "bn1.running_mean", "bn1.running_var"):
        assert torch.equal(inner.state_dict()[name], before[name][rest])
    kept = {name: optimizer.state[p]["momentum_buffer"] for name, p in inner.named_parameters()}
    assert torch.equal(kept["conv1.weight"], momentum["conv1.weight"][rest])
    assert torch.equal(kept["conv2.weight"], momentum["conv2.weight"][:, rest])
    assert torch.equal(kept["bn1.bias"], momentum["bn1.bias"][rest])
    assert (inner.conv1.out_channels, inner.bn1.num_features, inner.conv2.in_channels) == (3, 3, 3)


def test_a_channel_that_one_side_still_uses_stays() -> None:
    """Union: a producer's dead row is kept for its consumer, and the other way round."""
    model = resnet()
    graph = spaces.read(model)
    space = next(each for each in graph.free() if each.name == "blocks.0.conv1")
    with torch.no_grad():
        model.blocks[0].conv1.weight[0].zero_()
        model.blocks[0].conv2.weight[:, 1].zero_()
    assert alive(graph, space, THRESHOLD).all()
    assert Reconfigurer(model, None, IMAGES).now() is None


@given(st.floats(1e-6, 1e-2), st.booleans())
def test_the_threshold_is_on_the_largest_absolute_weight(value: float, negative: bool) -> None:
    model = mlp((3, 4, 2))
    graph = spaces.read(model)
    (space,) = graph.free()
    emptied(model, {"0": [2]})
    with torch.no_grad():
        model[0].weight[2, 1] = -value if negative else value
    assert bool(alive(graph, space, THRESHOLD)[2]) == bool(model[0].weight[2, 1].abs() >= THRESHOLD)


def dead(model: ResNet, block: int) -> None:
    with torch.no_grad():
        model.blocks[block].conv1.weight.zero_()
        model.blocks[block].conv2.weight.zero_()


def test_a_dead_path_leaves_its_constant_behind_as_a_bias() -> None:
    model = resnet(depth=14)
    optimizer = stepped(model, IMAGES)
    dead(model, 1)
    norm, before = model.blocks[1].bn2, logits(model, IMAGES)
    momentum = optimizer.state[norm.bias]["momentum_buffer"].clone()
    change = Reconfigurer(model, optimizer, IMAGES).now()
    assert change is not None and change.removed_paths == (
        tuple(f"blocks.1.{name}" for name in ("conv1", "bn1", "conv2", "bn2")),
    )
    assert change.max_logit_delta is not None and change.max_logit_delta <= 1e-5
    stub = model.blocks[1].bn2
    assert isinstance(stub, Constant) and isinstance(model.blocks[1].conv1, Nothing) and stub.bias.abs().max() > 1e-3
    assert torch.allclose(logits(model, IMAGES), before, atol=1e-5)
    assert torch.equal(optimizer.state[stub.bias]["momentum_buffer"], momentum)
    is_whole(model, optimizer)
    step(model, optimizer, IMAGES)
    GroupLasso(model)


def test_beside_a_shortcut_with_a_norm_the_constant_is_folded_into_it() -> None:
    model = resnet()
    optimizer = stepped(model, IMAGES)
    dead(model, 1)
    before = logits(model, IMAGES)
    change = Reconfigurer(model, optimizer, IMAGES).now()
    assert change is not None and len(change.removed_paths) == 1 and isinstance(model.blocks[1].bn2, Folded)
    assert torch.allclose(logits(model, IMAGES), before, atol=1e-5)
    is_whole(model, optimizer)
    step(model, optimizer, IMAGES)


def test_of_two_dead_operands_one_stays() -> None:
    model = resnet()
    dead(model, 1)
    with torch.no_grad():
        model.blocks[1].shortcut[0].weight.zero_()
    change = Reconfigurer(model, None, IMAGES).now()
    assert change is not None and len(change.removed_paths) == 1
    assert logits(model, IMAGES).shape == (len(IMAGES), 10)


def test_a_channel_of_a_constant_is_cut_with_its_stream() -> None:
    model = resnet(depth=14)
    optimizer = stepped(model, IMAGES)
    dead(model, 1)
    reconfigurer = Reconfigurer(model, optimizer, IMAGES)
    assert reconfigurer.now() is not None
    emptied(model, {"conv1": [2]})
    before = logits(model, IMAGES)
    change = reconfigurer.now()
    assert change is not None and change.generation == 2 and change.cut_channels == 1
    assert model.blocks[1].bn2.bias.shape == (3,)
    assert torch.allclose(logits(model, IMAGES), before, atol=1e-5)
    is_whole(model, optimizer)


def test_where_no_shortcut_is_the_strongest_channel_stays_and_the_reason_is_told() -> None:
    model = mlp((3, 4, 2))
    emptied(model, {"0": [0, 1, 2, 3]})
    with torch.no_grad():
        model[0].weight[2, 1] = 0.9 * THRESHOLD
    change = Reconfigurer(model, None, torch.randn(3, 3)).now()
    assert change is not None and model[0].weight.shape == (1, 3) and model[0].weight[0, 1].item() == pytest.approx(9e-5)
    assert change.kept_alive == {"0": "2 is on no residual path: output follows"}


class InPlace(Block):
    def forward(self, x: Tensor) -> Tensor:
        path = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        path += self.shortcut(x)
        return functional.relu(path)


def test_an_addition_in_place_keeps_its_path_and_says_why() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 1), InPlace(4, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    with torch.no_grad():
        model[1].conv1.weight.zero_()
        model[1].conv2.weight.zero_()
    change = Reconfigurer(model, None, IMAGES).now()
    assert change is not None and not change.removed_paths
    assert "write `a = a + b` in forward" in change.kept_alive["1.conv1"]
    logits(model, IMAGES)


def test_gating_is_refused_with_its_reason() -> None:
    with pytest.raises(NotImplementedError, match=r"more memory traffic.*union"):
        Reconfigurer(resnet(), None, IMAGES, residual="gating")


@pytest.mark.parametrize("words", [{"threshold": 0.0}, {"interval": 0}, {"residual": "both"}])
def test_bad_options_get_a_sentence(words: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"not (0|1|'both')"):
        Reconfigurer(resnet(), None, IMAGES, **words)


def test_it_is_time_every_interval() -> None:
    reconfigurer = Reconfigurer(resnet(), None, IMAGES, interval=5)
    asked: list[int] = []
    reconfigurer.now = asked.append  # type: ignore[method-assign, assignment]
    for epoch in range(12):
        reconfigurer.maybe(epoch)
    assert asked == [5, 10]


def test_a_depthwise_model_and_one_with_a_flatten_keep_their_function() -> None:
    make: Callable[[], nn.Module] = lambda: nn.Sequential(  # noqa: E731
        nn.Conv2d(1, 5, 3, padding=1), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 5, 3, padding=1, groups=5), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(5 * 16, 7), nn.ReLU(), nn.Linear(7, 3),
    )  # fmt: skip
    model = make()
    optimizer = stepped(model, IMAGES)
    emptied(model, {"0": [0, 3], "6": [1]})
    before = logits(model, IMAGES)
    change = Reconfigurer(model, optimizer, IMAGES).now()
    assert change is not None and model[3].groups == 3 and model[6].weight.shape == (6, 48)
    assert torch.allclose(logits(model, IMAGES), before, atol=1e-5)
    is_whole(model, optimizer)
    step(model, optimizer, IMAGES)
