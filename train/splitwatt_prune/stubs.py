"""What stands where a residual path was: nothing, and at its end the constant that the path still gave."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Nothing(nn.Module):
    """In the place of a layer or norm of a path that is gone: a zero of the resolution that came in, and no copy of it."""

    def forward(self, x: Tensor) -> Tensor:
        return x.new_zeros(x[:1, :1].shape)


class Constant(nn.Module):
    """In the place of a path's last layer or norm: `bias`, one value per channel, for additions to broadcast.

    `axes`: how many axes of resolution follow the channels (2 for images, 0 behind linear layers).
    """

    def __init__(self, bias: Tensor, axes: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(bias.detach().clone())
        self.axes = axes

    def forward(self, x: Tensor) -> Tensor:
        return self.bias.view(1, -1, *(1,) * self.axes)

    def extra_repr(self) -> str:
        return f"{self.bias.numel()}, axes={self.axes}"


class Folded(Nothing):
    """In the place of a path's last module whose constant went into the shortcut's batch norm: a zero that any shape takes."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros((), dtype=x.dtype, device=x.device)
