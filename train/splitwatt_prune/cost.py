"""What a model costs, by the formulas of PruneTrain's authors (`calc_cost.py`), per sample or per step.

    training of a convolution   2*C*R*S*K*P*Q + (H+pad)*(W+pad)*K*R*S*C    forward and weight gradient, then input gradient
    training of a linear layer  3*C*K
    inference                   C*R*S*K*P*Q
    accesses of a batch norm    8*K*P*Q elements                           three forward, five backward
    model size                  (R*S*C*K + K) words

One multiply-add counts as one, as theirs does; every ratio is the same either way. All-reduce moves 2*(p-1)/p of the parameters
per step and worker (a ring). On the accelerator stay weight, gradient and momentum of every parameter, and for each sample what
layers and norms put out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from splitwatt_prune.spaces import NORMS

WORD_BYTES: Final = 4
STATES: Final = 3
"""Words kept per parameter: weight, gradient, momentum of SGD."""


@dataclass(frozen=True)
class LayerCost:
    """Multiply-adds per sample of one layer."""

    inference: int
    training: int


@dataclass(frozen=True)
class Cost:
    """Of one sample: multiply-adds, elements put out (kept for backward), elements that norms access. Of the model: words."""

    inference_flops: int
    training_flops: int
    activation_elements: int
    norm_elements: int
    model_words: int
    parameters: int
    layers: Mapping[str, LayerCost] = field(default_factory=dict, compare=False, repr=False)

    @property
    def activation_bytes(self) -> int:
        return WORD_BYTES * self.activation_elements

    @property
    def norm_access_bytes(self) -> int:
        return WORD_BYTES * self.norm_elements

    @property
    def model_bytes(self) -> int:
        return WORD_BYTES * self.model_words

    @property
    def static_bytes(self) -> int:
        return WORD_BYTES * STATES * self.parameters

    def memory_bytes(self, batch: int) -> int:
        """On one accelerator that trains `batch` samples a step."""
        return self.static_bytes + batch * self.activation_bytes

    def allreduce_bytes(self, workers: int) -> float:
        """That each worker sends per step."""
        return 2.0 * (workers - 1) / workers * WORD_BYTES * self.parameters


@torch.no_grad()
def measure(model: nn.Module, sample: Tensor) -> Cost:
    """The cost of a plain model on inputs of `sample`'s shape [n, ...]; runs it once in evaluation. `model` stays as it is."""
    shapes: dict[str, tuple[torch.Size, torch.Size]] = {}
    hooks = []
    for name, module in model.named_modules():
        if isinstance(module, (_ConvNd, nn.Linear, *NORMS)):

            def hook(_: nn.Module, inputs: Any, output: Any, name: str = name) -> None:
                shapes[name] = inputs[0].shape, output.shape

            hooks.append(module.register_forward_hook(hook))
    training = model.training
    model.eval()
    try:
        model(sample[:1])
    finally:
        model.train(training)
        for each in hooks:
            each.remove()
    layers: dict[str, LayerCost] = {}
    elements = norms = words = 0
    for name, (inside, outside) in shapes.items():
        module = model.get_submodule(name)
        elements += outside[1:].numel()
        if isinstance(module, NORMS):
            norms += 8 * outside[1:].numel()
            continue
        layers[name] = _layer(module, inside, outside)
        words += module.weight.numel() + module.weight.shape[0]
    return Cost(
        inference_flops=sum(each.inference for each in layers.values()),
        training_flops=sum(each.training for each in layers.values()),
        activation_elements=elements,
        norm_elements=norms,
        model_words=words,
        parameters=sum(each.numel() for each in model.parameters() if each.requires_grad),
        layers=layers,
    )


def _layer(module: nn.Module, inside: torch.Size, outside: torch.Size) -> LayerCost:
    weights = module.weight.numel()
    if isinstance(module, nn.Linear):
        runs = outside[1:-1].numel()
        return LayerCost(weights * runs, 3 * weights * runs)
    assert isinstance(module, _ConvNd)
    padding = [0] * len(module.kernel_size) if isinstance(module.padding, str) else module.padding
    back = 1
    for size, pad in zip(inside[2:], padding, strict=True):
        back *= size + pad
    forward = weights * outside[2:].numel()
    return LayerCost(forward, 2 * forward + weights * back)


@dataclass
class Totals:
    """What a run has spent, sample by sample and step by step, beside what the dense model would have."""

    dense: Cost
    training_flops: float = 0.0
    allreduce: float = 0.0
    activations: float = 0.0
    norm_elements: float = 0.0
    samples: int = 0
    steps: int = 0

    def add(self, cost: Cost, *, samples: int, steps: int) -> None:
        self.training_flops += samples * cost.training_flops
        self.activations += samples * cost.activation_elements
        self.norm_elements += samples * cost.norm_elements
        self.allreduce += steps * cost.parameters
        self.samples += samples
        self.steps += steps

    def ratios(self, *, dense_steps: int | None = None) -> Mapping[str, float]:
        """Share of the dense run's, for as many samples. `dense_steps`: steps of the dense run, where batches grew."""
        if not self.samples:
            raise ValueError("nothing was trained yet: add(cost, samples=, steps=) comes first")
        steps = self.steps if dense_steps is None else dense_steps
        return {
            "training_flops_ratio": self.training_flops / (self.samples * self.dense.training_flops),
            "allreduce_ratio": self.allreduce / (steps * self.dense.parameters),
            "activation_ratio": self.activations / (self.samples * self.dense.activation_elements),
            "norm_access_ratio": self.norm_elements / max(1, self.samples * self.dense.norm_elements),
        }
