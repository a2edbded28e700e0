"""Two families that tests and pages train: CIFAR's ResNet of 6n+2 layers, and a plain MLP. Any other model can be given, too."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional


class Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut, which is a 1x1 convolution where width or resolution change."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outside)
        self.shortcut = nn.Sequential()
        if stride != 1 or inside != outside:
            self.shortcut = nn.Sequential(nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside))

    def forward(self, x: Tensor) -> Tensor:
        path = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        return functional.relu(path + self.shortcut(x))


class ResNet(nn.Module):
    """He et al.'s ResNet for small images. Raises ValueError unless `depth` is 6n+2."""

    def __init__(self, depth: int, *, classes: int = 10, channels: int = 3, widths: Sequence[int] = (16, 32, 64)) -> None:
        super().__init__()
        blocks, rest = divmod(depth - 2, 6)
        if rest or blocks < 1:
            raise ValueError(f"a ResNet for small images has 6n+2 layers (8, 14, 20, 32, …), not {depth}")
        self.conv1 = nn.Conv2d(channels, widths[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        stages, inside = [], widths[0]
        for at, width in enumerate(widths):
            for block in range(blocks):
                stages.append(Block(inside, width, 2 if at and not block else 1))
                inside = width
        self.blocks = nn.Sequential(*stages)
        self.fc = nn.Linear(inside, classes)
        # The first weights are PyTorch's own. He's are more than twice as large: lambda comes out smaller, and what a short run
        # can shrink (the shrink budget) does not reach most norms, so channels die too late to save much.

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(functional.relu(self.bn1(self.conv1(x))))
        return self.fc(functional.adaptive_avg_pool2d(x, 1).flatten(1))


def mlp(sizes: Sequence[int]) -> nn.Sequential:
    """Linear layers of these sizes with ReLU between."""
    layers: list[nn.Module] = []
    for inside, outside in pairwise(sizes):
        layers += [nn.Linear(inside, outside), nn.ReLU()]
    return nn.Sequential(*layers[:-1])
