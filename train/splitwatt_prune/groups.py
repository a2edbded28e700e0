"""The groups of group lasso: every channel of every layer that writes or reads a space which may be cut.

A group is a slice of a weight: one output channel (all that makes it) or one input channel (all that takes it), as in the paper.
Left out are the model's input, its output and depth-wise convolutions: nothing could be cut there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from splitwatt_prune.spaces import Graph, Space


@dataclass(frozen=True)
class Groups:
    """All groups of one weight along one axis: `axis` 0 for output channels, 1 for input channels of `columns` each."""

    module: str
    weight: Tensor
    axis: int
    columns: int = 1

    def view(self) -> Tensor:
        """[channels, everything else], sharing memory where torch can."""
        if self.axis == 0:
            return self.weight.flatten(1)
        rows = self.weight.shape[0]
        return self.weight.reshape(rows, -1, self.columns * self.weight[0, 0].numel()).transpose(0, 1).flatten(1)

    def broadcast(self, factors: Tensor) -> Tensor:
        """One factor per channel [channels], in a shape that multiplies the weight."""
        if self.axis == 0:
            return factors.view(-1, *(1,) * (self.weight.dim() - 1))
        return factors.repeat_interleave(self.columns).view(1, -1, *(1,) * (self.weight.dim() - 2))

    def largest(self) -> Tensor:
        """max |w| of each channel [channels]; 0 where nothing is left on the other axis."""
        flat = self.view()
        return flat.abs().amax(dim=1) if flat.shape[1] else flat.new_zeros(flat.shape[0])


def of_space(graph: Graph, space: Space) -> Sequence[Groups]:
    made = [Groups(name, graph.modules[name].weight, 0) for name in space.writers]
    return made + [Groups(each.module, graph.modules[each.module].weight, 1, each.columns) for each in space.readers]


def of_graph(graph: Graph) -> Sequence[Groups]:
    return [groups for space in graph.free() for groups in of_space(graph, space)]


@torch.no_grad()
def alive(graph: Graph, space: Space, threshold: float) -> Tensor:
    """[channels]: whether any layer that makes or takes a channel has |w| >= threshold for it (producer or consumer: union)."""
    return torch.stack([groups.largest() >= threshold for groups in of_space(graph, space)]).any(dim=0)


@torch.no_grad()
def strength(graph: Graph, space: Space) -> Tensor:
    """[channels]: the largest |w| of each, over all layers."""
    return torch.stack([groups.largest() for groups in of_space(graph, space)]).amax(dim=0)
