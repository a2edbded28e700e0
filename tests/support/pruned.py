"""Models in which channels were emptied by hand, with an optimizer that has a state for every parameter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from splitwatt_prune import spaces
from splitwatt_prune.groups import of_space
from torch import Tensor, nn
from torch.nn import functional


def stepped(model: nn.Module, inputs: Tensor, *, lr: float = 0.01, kind: str = "sgd") -> torch.optim.Optimizer:
    """An optimizer after two steps on noise; norms have statistics that are not their first ones."""
    if kind == "sgd":
        optimizer: torch.optim.Optimizer = torch.optim.SGD(model.parameters(), lr, momentum=0.9, weight_decay=5e-4)
    else:
        optimizer = torch.optim.AdamW(model.parameters(), lr)
    for _ in range(2):
        step(model, optimizer, inputs)
    return optimizer


def step(model: nn.Module, optimizer: torch.optim.Optimizer, inputs: Tensor) -> float:
    model.train()
    optimizer.zero_grad()
    outputs = model(inputs)
    labels = torch.arange(len(inputs)) % outputs.shape[1]
    loss = functional.cross_entropy(outputs, labels)
    loss.backward()
    optimizer.step()
    return float(loss.detach())


@torch.no_grad()
def emptied(model: nn.Module, channels: Mapping[str, Sequence[int]], *, value: float = 0.0) -> None:
    """Sets every weight that makes or takes these channels, by the space's name, to `value`."""
    graph = spaces.read(model)
    for space in graph.spaces:
        for groups in of_space(graph, space):
            for channel in channels.get(space.name, ()):
                index = torch.zeros(space.size, dtype=torch.bool)
                index[channel] = True
                mask = groups.broadcast(index.float()).bool().expand_as(groups.weight)
                groups.weight.masked_fill_(mask, value)


@torch.no_grad()
def logits(model: nn.Module, inputs: Tensor) -> Tensor:
    model.eval()
    found: Tensor = model(inputs)
    return found
