"""Which channels belong together, read from models of several shapes; and what is refused or kept whole."""

from __future__ import annotations

import pytest
import torch
from splitwatt_prune import spaces
from splitwatt_prune.groups import of_graph
from splitwatt_prune.models import ResNet, mlp
from torch import Tensor, nn
from torch.nn import functional


def test_a_resnet_has_one_space_per_stage_and_one_inside_each_block() -> None:
    """Nine for ResNet-14: what channel union over residual paths gives (DepGraph's groups, too)."""
    free = {space.name: space for space in spaces.read(ResNet(14)).free()}
    assert len(free) == 9
    stage = free["conv1"]
    assert stage.writers == ["conv1", "blocks.0.conv2", "blocks.1.conv2"]
    assert [each.module for each in stage.readers] == [
        "blocks.0.conv1",
        "blocks.1.conv1",
        "blocks.2.conv1",
        "blocks.2.shortcut.0",
    ]
    assert stage.followers == ["bn1", "blocks.0.bn2", "blocks.1.bn2"]
    assert free["blocks.4.conv2"].readers[-1] == spaces.Reader("fc")


def test_the_models_input_and_output_are_no_groups() -> None:
    inside = {(each.module, each.axis) for each in of_graph(spaces.read(ResNet(8)))}
    assert ("conv1", 1) not in inside and ("fc", 0) not in inside and {("conv1", 0), ("fc", 1)} <= inside


class Flattened(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3, padding=1)
        self.depth = nn.Conv2d(3, 3, 3, padding=1, groups=3)
        self.fc = nn.Linear(3 * 16, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.max_pool2d(functional.relu(self.depth(self.conv(x))), 2)
        return self.fc(x.view(x.size(0), -1))


def test_a_channel_behind_a_flatten_is_a_run_of_features_and_depthwise_follows() -> None:
    (space,) = spaces.read(Flattened()).free()
    assert space.readers == [spaces.Reader("fc", 16)] and space.followers == ["depth"]


class Concatenated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.other, self.after = nn.Linear(4, 3), nn.Linear(4, 3), nn.Linear(6, 5)
        self.last = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(functional.relu(self.after(torch.cat([self.one(x), self.other(x)], 1))))


def test_what_is_not_understood_stays_whole_and_the_rest_does_not() -> None:
    graph = spaces.read(Concatenated())
    assert [space.name for space in graph.free()] == ["after"]
    assert {space.whole for space in graph.spaces if space.name in ("one", "other")} == {
        "cat is not understood, so what it reads and writes stays whole"
    }


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) if x.sum() > 0 else x


def test_a_model_that_branches_on_data_is_refused_with_a_sentence() -> None:
    with pytest.raises(TypeError, match=r"branches on data.*move the branch out of forward"):
        spaces.read(Branching())


def test_a_layer_that_is_called_twice_has_one_space_on_each_side() -> None:
    shared = nn.Linear(4, 4)
    graph = spaces.read(nn.Sequential(nn.Linear(2, 4), shared, nn.ReLU(), shared, nn.Linear(4, 2)))
    (space,) = graph.free()
    assert space.writers == ["0", "1"] and [each.module for each in space.readers] == ["1", "4"]


def test_an_mlp_has_its_hidden_layers() -> None:
    assert [space.size for space in spaces.read(mlp((8, 16, 12, 4))).free()] == [16, 12]
