"""Parameters made smaller, with all that belongs to them: a new Parameter in the module, in the optimizer's groups and its state.

`parameter.data = smaller` would be shorter, and breaks: autograd remembers the old shape of what was saved for backward.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.optim import Optimizer

from splitwatt_prune.spaces import NORMS, is_depthwise
from splitwatt_prune.stubs import Constant

Index: TypeAlias = Tensor | None
"""Channels to keep, in order; None: all."""


class Surgeon:
    """Changes modules of `model` in place. `optimizer`: None where there is none (a checkpoint is being restored)."""

    def __init__(self, model: nn.Module, optimizer: Optimizer | None) -> None:
        self._model, self._optimizer = model, optimizer

    def slice(self, name: str, *, rows: Index, columns: Index) -> None:
        """Cuts one module to the output channels `rows` and the input features `columns`."""
        module = self._model.get_submodule(name)

        def cut(tensor: Tensor) -> Tensor:
            if rows is not None:
                tensor = tensor.index_select(0, rows)
            return tensor.index_select(1, columns) if columns is not None and tensor.dim() > 1 else tensor

        for key, parameter in list(module.named_parameters(recurse=False)):
            self.replace(module, key, parameter, cut)
        for key, buffer in list(module.named_buffers(recurse=False)):
            if buffer.dim() and rows is not None:
                setattr(module, key, buffer.index_select(0, rows))
        resize(module)

    def replace(self, module: nn.Module, key: str, old: nn.Parameter, cut: Callable[[Tensor], Tensor]) -> None:
        """A new parameter in the place of an old one; state of the old one's shape is cut like it."""
        new = nn.Parameter(cut(old.detach()).clone(), requires_grad=old.requires_grad)
        setattr(module, key, new)
        self.exchange(old, new, cut)

    def exchange(self, old: nn.Parameter, new: nn.Parameter, cut: Callable[[Tensor], Tensor]) -> None:
        """In the optimizer alone."""
        if self._optimizer is None:
            return
        for group in self._optimizer.param_groups:
            group["params"] = [new if each is old else each for each in group["params"]]
        state = self._optimizer.state.pop(old, None)
        if state is not None:
            self._optimizer.state[new] = {
                name: cut(value).clone() if isinstance(value, Tensor) and value.shape == old.shape else value
                for name, value in state.items()
            }

    def put(self, name: str, module: nn.Module, *, state_of: nn.Parameter | None = None) -> None:
        """Another module in the place of one, whose parameters leave the optimizer. Those of the new one join the group of the
        old one's, the first with the state of `state_of`."""
        gone = self._model.get_submodule(name)
        if self._optimizer is not None:
            leaving = {id(parameter) for parameter in gone.parameters()}
            heirs = list(module.parameters())
            state = self._optimizer.state.get(state_of) if state_of is not None else None
            for parameter in gone.parameters():
                self._optimizer.state.pop(parameter, None)
            for group in self._optimizer.param_groups:
                stay = [each for each in group["params"] if id(each) not in leaving]
                if len(stay) < len(group["params"]):
                    stay, heirs = stay + heirs, []
                group["params"] = stay
            if state is not None:
                self._optimizer.state[next(module.parameters())] = state
        module.train(gone.training)
        self._model.set_submodule(name, module)


def resize(module: nn.Module) -> None:
    """Makes a module's own numbers say what its tensors are."""
    if isinstance(module, NORMS):
        module.num_features = _length(module)
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif is_depthwise(module):
        module.groups = module.in_channels = module.out_channels = module.weight.shape[0]
    elif isinstance(module, _ConvNd):
        module.out_channels, module.in_channels = module.weight.shape[0], module.weight.shape[1] * module.groups


def _length(norm: nn.Module) -> int:
    for tensor in (norm.weight, norm.running_mean):
        if tensor is not None:
            return int(tensor.shape[0])
    return int(norm.num_features)


def widths(model: nn.Module) -> dict[str, list[int]]:
    """Shape of the weight (or bias) of every module that channels go through, by its name."""
    found: dict[str, list[int]] = {}
    for name, module in model.named_modules():
        if isinstance(module, _ConvNd | nn.Linear):
            found[name] = list(module.weight.shape)
        elif isinstance(module, NORMS):
            found[name] = [_length(module)]
        elif isinstance(module, Constant):
            found[name] = [module.bias.numel(), module.axes]
    return found


@torch.no_grad()
def shape(model: nn.Module, name: str, wanted: list[int]) -> None:
    """Makes one module's tensors as small as `wanted` says; what is in them is the first channels' and will be overwritten."""
    device = next(model.parameters()).device
    rows = torch.arange(wanted[0], device=device)
    columns = torch.arange(wanted[1], device=device) if len(wanted) > 1 else None
    Surgeon(model, None).slice(name, rows=rows, columns=columns)
