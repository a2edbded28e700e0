"""Which layers share channels: one *space* per set of tensors whose channels must be kept or cut together.

Read from the model's own graph (`torch.fx`): a layer writes a new space, batch norms and activations follow it, and an addition
joins two. So a residual stream is one space over all layers that write or read it: the paper's channel union. What the
graph does not understand keeps its channels whole, with the reason.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import fx, nn
from torch.nn import functional
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from splitwatt_prune.stubs import Constant, Folded, Nothing

NORMS: Final = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_PASS_MODULES: Final = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.GELU, nn.SiLU, nn.Hardswish, nn.Sigmoid, nn.Tanh, nn.Identity, nn.Flatten, Nothing,
    nn.Dropout, nn.Dropout2d, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.MaxPool1d, nn.AvgPool1d,
)  # fmt: skip
_PASS_FUNCTIONS: Final = frozenset({
    functional.relu, functional.relu6, functional.leaky_relu, functional.gelu, functional.silu, functional.dropout, torch.relu,
    functional.adaptive_avg_pool2d, functional.adaptive_max_pool2d, functional.max_pool2d, functional.avg_pool2d, torch.sigmoid,
    torch.tanh,
})  # fmt: skip
_PASS_METHODS: Final = frozenset({"relu", "contiguous", "sigmoid", "tanh", "float", "relu_"})
_JOINS: Final = frozenset({operator.add, operator.iadd, torch.add, operator.mul, torch.mul})
ADDS: Final = frozenset({operator.add, torch.add})
_SHAPES: Final = frozenset({"size", "dim"})


@dataclass(frozen=True)
class Reader:
    """A layer that reads a space; each channel is `columns` of its input features (more than 1 behind a flatten)."""

    module: str
    columns: int = 1


@dataclass
class Space:
    """`size` channels. `writers` make them, `readers` take them, `followers` have a value per channel (norms, constants,
    depth-wise convolutions). `whole`: why none may be cut, or empty."""

    size: int
    writers: list[str] = field(default_factory=list)
    readers: list[Reader] = field(default_factory=list)
    followers: list[str] = field(default_factory=list)
    whole: str = ""

    @property
    def name(self) -> str:
        return (self.writers or self.followers or ["input"])[0]


@dataclass(frozen=True)
class Graph:
    """The model's operations, and every space by its number."""

    operations: fx.Graph
    modules: Mapping[str, nn.Module]
    spaces: tuple[Space, ...]

    def free(self) -> Iterator[Space]:
        """Spaces that may be cut."""
        return (space for space in self.spaces if not space.whole)


class _Proxy(fx.Proxy):
    """Tells `a += b` from `a + b`, which torch.fx takes for one."""

    def __iadd__(self, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", operator.iadd, (self, other), {})


class _Tracer(fx.Tracer):
    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, Constant | Nothing) or super().is_leaf_module(m, module_qualified_name)


def is_layer(module: nn.Module) -> bool:
    """A convolution or linear layer whose output channels depend on all of its input channels."""
    if isinstance(module, nn.Linear):
        return True
    return isinstance(module, _ConvNd) and not isinstance(module, _ConvTransposeNd) and module.groups == 1


def is_depthwise(module: nn.Module) -> bool:
    return (
        isinstance(module, _ConvNd)
        and not isinstance(module, _ConvTransposeNd)
        and module.groups == module.in_channels == module.out_channels > 1
    )


def read(model: nn.Module) -> Graph:
    """The spaces of a plain model (not of its DDP wrapper). Raises TypeError where `torch.fx` cannot follow its code."""
    try:
        operations = _Tracer().trace(model)
    except Exception as error:  # fx hands on whatever the model's code raised under tracing
        raise TypeError(
            f"the code of {type(model).__name__} branches on data, which torch.fx cannot follow ({error}): "
            "move the branch out of forward, or hand over the part of the model that has none"
        ) from error
    return _Reading(operations, dict(model.named_modules())).graph()


class _Reading:
    def __init__(self, operations: fx.Graph, modules: Mapping[str, nn.Module]) -> None:
        self._operations, self._modules = operations, modules
        self._spaces: list[Space] = []
        self._parent: list[int] = []
        self._of: dict[fx.Node, int] = {}
        self._seen: dict[str, tuple[int, int]] = {}

    def graph(self) -> Graph:
        for node in self._operations.nodes:
            self._visit(node)
        roots = sorted({self._root(at) for at in range(len(self._spaces))})
        return Graph(self._operations, self._modules, tuple(self._spaces[at] for at in roots))

    def _new(self, size: int, whole: str = "") -> int:
        self._spaces.append(Space(size, whole=whole))
        self._parent.append(len(self._parent))
        return len(self._parent) - 1

    def _root(self, at: int) -> int:
        while self._parent[at] != at:
            at = self._parent[at]
        return at

    def _space(self, at: int) -> Space:
        return self._spaces[self._root(at)]

    def _join(self, one: int, other: int) -> int:
        one, other = sorted((self._root(one), self._root(other)))
        if one == other:
            return one
        kept, gone = self._spaces[one], self._spaces[other]
        if kept.size != gone.size:
            for space in (kept, gone):
                space.whole = space.whole or f"{kept.name} and {gone.name} meet with {kept.size} and {gone.size} channels"
            return one
        kept.writers += gone.writers
        kept.readers += gone.readers
        kept.followers += gone.followers
        kept.whole = kept.whole or gone.whole
        self._parent[other] = one
        return one

    def _visit(self, node: fx.Node) -> None:
        inputs = [self._of[each] for each in node.all_input_nodes if each in self._of]
        if node.op == "placeholder":
            self._of[node] = self._new(0, "the model's input")
        elif node.op == "output":
            for at in inputs:
                self._keep_whole(at, "the model's output")
        elif node.op == "call_module" and isinstance(self._modules[str(node.target)], Folded):
            return  # a zero without channels
        elif node.op == "call_module":
            self._of[node] = self._module(str(node.target), self._modules[str(node.target)], inputs)
        elif node.op == "get_attr" or node.target in _SHAPES or node.target is getattr:
            return
        elif node.target in _JOINS and inputs:
            joined = inputs[0]
            for other in inputs[1:]:
                joined = self._join(joined, other)
            self._of[node] = joined
        elif passes(node) and len(inputs) == 1:
            self._of[node] = inputs[0]
        elif inputs:
            self._of[node] = self._unknown(str(node.name), inputs)

    def _module(self, name: str, module: nn.Module, inputs: list[int]) -> int:
        if len(inputs) != 1:
            return self._unknown(name, inputs)
        (inside,) = inputs
        if isinstance(module, _PASS_MODULES):
            return inside
        if name in self._seen:  # one module called twice: what it reads and what it writes is each one space
            before = self._seen[name]
            self._join(inside, before[0])
            return before[1]
        if isinstance(module, Constant):
            outside = self._new(module.bias.numel())
            self._space(outside).followers.append(name)
        elif isinstance(module, NORMS) or is_depthwise(module):
            outside = inside
            self._space(inside).followers.append(name)
        elif is_layer(module):
            features, made = _features(module)
            space = self._space(inside)
            space.size = space.size or features
            if features % space.size:
                return self._unknown(name, inputs)
            space.readers.append(Reader(name, features // space.size))
            outside = self._new(made)
            self._space(outside).writers.append(name)
        else:
            return self._unknown(name, inputs)
        self._seen[name] = (inside, outside)
        return outside

    def _keep_whole(self, at: int, why: str) -> None:
        space = self._space(at)
        space.whole = space.whole or why

    def _unknown(self, name: str, inputs: list[int]) -> int:
        why = f"{name} is not understood, so what it reads and writes stays whole"
        for at in inputs:
            self._keep_whole(at, why)
        return self._new(0, why)


def passes(node: fx.Node) -> bool:
    """Whether an operation leaves channels where they are: on axis 1, or each as a run of features behind it."""
    target: Any = node.target
    if target in _PASS_FUNCTIONS or target in _PASS_METHODS:
        return True
    words = node.args[1:]
    if target in {torch.flatten, "flatten"}:
        return words == (1,) or node.kwargs.get("start_dim") == 1
    if target in {"view", "reshape"}:
        return len(words) == 2 and words[1] == -1
    if target in {torch.mean, "mean"}:
        dims = words[0] if words else node.kwargs.get("dim")
        return dims in ((2, 3), [2, 3], (-2, -1), [-2, -1], (-1, -2), [-1, -2])
    return False


def _features(module: nn.Module) -> tuple[int, int]:
    """(in, out) of a layer."""
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    assert isinstance(module, _ConvNd)
    return module.in_channels, module.out_channels
