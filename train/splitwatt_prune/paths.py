"""Residual paths that died: found, valued and taken out.

Once one layer of a path is all zero, the path adds the same constant everywhere, whatever goes in. Authors and paper remove the
whole path; the constant (its last batch norm's bias, in effect) would vanish with it, and move the logits. Here it is kept: in
the shortcut's batch norm where the addition takes it straight from one, else as one bias per channel.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd
from torch.optim import Optimizer

from splitwatt_prune.spaces import ADDS, NORMS, Graph, is_layer, passes
from splitwatt_prune.stubs import Constant, Folded, Nothing
from splitwatt_prune.surgery import Surgeon


@dataclass(frozen=True)
class DeadPath:
    """`modules`: layers and norms of the path in the order of the graph; the last one becomes the constant. `axes`: axes of
    resolution. `shortcut`: a batch norm whose output is the addition's other operand and nothing else's, or empty."""

    modules: tuple[str, ...]
    constant: Tensor
    axes: int
    shortcut: str


@torch.no_grad()
def dead_path(graph: Graph, layer: str) -> DeadPath | str:
    """The path of a layer whose weights are all dead, or a sentence that says why it stays."""
    nodes = [each for each in graph.operations.nodes if each.op == "call_module" and each.target == layer]
    if len(nodes) != 1:
        return f"{layer} is called {len(nodes)} times"
    tail = [nodes[0]]
    while True:
        users = list(tail[-1].users)
        if len(users) != 1:
            return f"{tail[-1].name} goes to {len(users)} places"
        if users[0].target in ADDS and len(users[0].all_input_nodes) == 2:
            break
        if users[0].target is operator.iadd:
            return f"{users[0].name} adds in place, which needs the whole tensor: write `a = a + b` in forward"
        if not _is_plain(graph, users[0]):
            return f"{layer} is on no residual path: {users[0].name} follows"
        tail.append(users[0])
    (other,) = [each for each in users[0].all_input_nodes if each is not tail[-1]]
    path = _closure(tail)
    if other in path:
        return f"both operands of {users[0].name} come from {layer}"
    if _is_constant(graph, other):
        return f"{layer} is on the last path into {users[0].name} that depends on the input"
    ours = [each for each in graph.operations.nodes if each in path and _is_ours(graph, each)]
    constant = _value(graph, [each for each in tail if tail.index(each) <= tail.index(ours[-1])])
    if isinstance(constant, str):
        return constant
    module = graph.modules[layer]
    axes = len(module.kernel_size) if isinstance(module, _ConvNd) else 0
    straight = ours[-1] is tail[-1] and len(other.users) == 1 and other.op == "call_module"
    norm = graph.modules.get(str(other.target)) if straight else None
    shortcut = str(other.target) if isinstance(norm, NORMS) and norm.bias is not None else ""
    return DeadPath(tuple(str(each.target) for each in ours), constant, axes, shortcut)


def remove(model: nn.Module, path: DeadPath, optimizer: Optimizer | None) -> None:
    """Takes the path out of the model and the optimizer; the function it computed in evaluation stays."""
    surgeon = Surgeon(model, optimizer)
    *before, last = path.modules
    for name in before:
        surgeon.put(name, Nothing())
    if path.shortcut:
        with torch.no_grad():
            model.get_submodule(path.shortcut).bias.add_(path.constant)
        surgeon.put(last, Folded())
        return
    # What pulls the constant is what pulled the bias: its momentum goes on.
    bias = model.get_submodule(last).bias
    surgeon.put(last, Constant(path.constant, path.axes), state_of=bias)


def _is_constant(graph: Graph, node: fx.Node) -> bool:
    """Whether a node's output depends on no input of the model any more, but for its resolution."""
    if node.op == "call_module" and isinstance(graph.modules[str(node.target)], Constant | Nothing):
        return True
    return bool(node.all_input_nodes) and all(_is_constant(graph, each) for each in node.all_input_nodes)


def _is_ours(graph: Graph, node: fx.Node) -> bool:
    """A node whose module has weights that go with the path."""
    return node.op == "call_module" and any(True for _ in graph.modules[str(node.target)].parameters())


def _is_plain(graph: Graph, node: fx.Node) -> bool:
    """A node that a constant goes through: layers, norms, activations."""
    if len(node.all_input_nodes) != 1:
        return False
    if node.op == "call_module":
        module = graph.modules[str(node.target)]
        return is_layer(module) or isinstance(module, (*NORMS, nn.Identity, nn.ReLU, nn.ReLU6, nn.GELU, nn.SiLU, nn.Dropout))
    return node.op in ("call_function", "call_method") and passes(node)


def _closure(tail: list[fx.Node]) -> set[fx.Node]:
    """The tail and all before it that nothing else uses."""
    path, ahead = set(tail), list(tail)
    while ahead:
        for each in ahead.pop().all_input_nodes:
            if each not in path and each.op != "placeholder" and all(user in path for user in each.users):
                path.add(each)
                ahead.append(each)
    return path


def _value(graph: Graph, tail: list[fx.Node]) -> Tensor | str:
    """The constant [channels] at the end of the tail in evaluation, its first layer giving zeros (and its own bias)."""
    first = graph.modules[str(tail[0].target)]
    value = first.weight.new_zeros(first.weight.shape[0]) if first.bias is None else first.bias.detach().clone()
    for node in tail[1:]:
        module = graph.modules.get(str(node.target)) if node.op == "call_module" else None
        if isinstance(module, NORMS):
            shaped = value.view(1, -1, *(1,) * (0 if isinstance(module, nn.BatchNorm1d) else 2))
            if module.running_mean is None:
                return f"{node.target} keeps no running statistics, so its constant is not known"
            value = nn.functional.batch_norm(
                shaped, module.running_mean, module.running_var, module.weight, module.bias, False, 0.0, module.eps
            ).flatten()
        elif module is not None and is_layer(module):
            if isinstance(module, _ConvNd) and any(each != 0 for each in module.padding) and bool((value != 0).any()):
                return f"{node.target} pads, so what it makes of a constant differs at the border"
            weight = module.weight.flatten(2).sum(dim=2) if isinstance(module, _ConvNd) else module.weight
            value = weight @ value + (0 if module.bias is None else module.bias)
        elif module is not None:
            value = value if isinstance(module, nn.Dropout) else module(value)
        else:
            value = _applied(node, value)
    return value


def _applied(node: fx.Node, value: Tensor) -> Tensor:
    """A function of the tail on a constant: activations apply, pools and dropout leave it."""
    name = getattr(node.target, "__name__", str(node.target))
    if "pool" in name or "dropout" in name or name == "mean":
        return value
    if node.op == "call_method":
        return getattr(value, str(node.target))()
    apply: Any = node.target
    result: Tensor = apply(value)
    return result
