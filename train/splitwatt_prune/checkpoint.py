"""Checkpoints that carry widths: a run that was pruned resumes in a fresh process, on as many ranks as it then has.

The file holds the shape of every layer, which paths are gone, weights, the optimizer's state by parameter name, the lasso with
its lambda, and where training stood. It is written beside the old one and renamed: a process that dies leaves a whole file.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn
from torch.optim import Optimizer

from splitwatt_prune.lasso import GroupLasso
from splitwatt_prune.stubs import Constant, Folded, Nothing
from splitwatt_prune.surgery import shape, widths

FORMAT: Final = 1


class CheckpointError(ValueError):
    """A file that does not fit the model or the optimizer; the sentence says what does not."""


def save(
    path: Path, model: nn.Module, optimizer: Optimizer, lasso: GroupLasso | None = None, extra: Mapping[str, Any] | None = None
) -> None:
    """Writes a plain model (`ranks.plain`) and what trains it; on rank 0 alone. `extra`: numbers, texts, lists and tensors."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = [
        {"names": [names[each] for each in group["params"]], **{key: value for key, value in group.items() if key != "params"}}
        for group in optimizer.param_groups
    ]
    content = {
        "format": FORMAT,
        "widths": widths(model),
        "stubs": {name: _kind(module) for name, module in model.named_modules() if isinstance(module, Constant | Nothing)},
        "model": model.state_dict(),
        "groups": groups,
        "state": {names[parameter]: dict(state) for parameter, state in optimizer.state.items()},
        "lasso": None if lasso is None else dict(lasso.state_dict()),
        "extra": dict(extra or {}),
    }
    fresh = path.with_name(f".{path.name}.new")
    with fresh.open("wb") as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)


@dataclass(frozen=True)
class Checkpoint:
    """What `load` read: the model has its widths and weights already."""

    content: Mapping[str, Any]

    @property
    def extra(self) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self.content["extra"]
        return found

    def resume(self, model: nn.Module, optimizer: Optimizer, lasso: GroupLasso | None = None) -> None:
        """Gives the optimizer (made after `load`, over this model's parameters) and the lasso what they had. Raises
        CheckpointError."""
        parameters = dict(model.named_parameters())
        groups = self.content["groups"]
        if len(groups) != len(optimizer.param_groups):
            raise CheckpointError(f"the optimizer has {len(optimizer.param_groups)} groups, and was saved with {len(groups)}")
        for group, saved in zip(optimizer.param_groups, groups, strict=True):
            group["params"] = [parameters[name] for name in saved["names"]]
            group.update({key: value for key, value in saved.items() if key != "names"})
        optimizer.state.clear()
        for name, state in self.content["state"].items():
            optimizer.state[parameters[name]] = {
                key: value.to(parameters[name].device) if isinstance(value, torch.Tensor) else value
                for key, value in state.items()
            }
        if lasso is not None:
            if self.content["lasso"] is None:
                raise CheckpointError("it was saved without a lasso, and lambda cannot be found later than at the first step")
            lasso.load_state_dict(self.content["lasso"])
            lasso.refresh(model)


def load(path: Path, model: nn.Module) -> Checkpoint:
    """Makes a freshly built dense model what was saved. Raises CheckpointError where it is another model, OSError where the file
    cannot be read."""
    device = next(model.parameters()).device
    content = torch.load(path, map_location=device, weights_only=True)
    if content.get("format") != FORMAT:
        raise CheckpointError(f"{path} has format {content.get('format')}, and this version reads {FORMAT}")
    for name, kind in content["stubs"].items():
        _submodule(model, name, path)
        model.set_submodule(name, _stub(kind, content["widths"].get(name), device))
    there = widths(model)
    for name, wanted in content["widths"].items():
        if name not in there or any(now < then for now, then in zip(there[name], wanted, strict=False)):
            raise CheckpointError(
                f"{path} has {name} with {wanted}, and the model has {there.get(name, 'no such layer')}: build the dense model"
            )
        if there[name] != wanted and name not in content["stubs"]:
            shape(model, name, wanted)
    try:
        model.load_state_dict(content["model"])
    except RuntimeError as error:
        raise CheckpointError(f"{path} is of another model: {error}") from error
    return Checkpoint(content)


def _kind(module: nn.Module) -> str:
    return type(module).__name__


def _stub(kind: str, wanted: list[int] | None, device: torch.device) -> nn.Module:
    if kind == "Constant":
        assert wanted is not None
        return Constant(torch.zeros(wanted[0], device=device), wanted[1])
    return Folded() if kind == "Folded" else Nothing()


def _submodule(model: nn.Module, name: str, path: Path) -> nn.Module:
    try:
        return model.get_submodule(name)
    except AttributeError as error:
        raise CheckpointError(f"{path} is of another model: it has {name}") from error
