"""A ResNet32 for CIFAR with the widths that a pruned ResNet-14 ended with, as shares, and what the formulas say it costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Final

import torch
from torch import Tensor

from splitwatt_prune import spaces
from splitwatt_prune.cost import Cost, measure
from splitwatt_prune.models import ResNet
from splitwatt_prune.stubs import Folded, Nothing
from splitwatt_prune.surgery import Surgeon

BLOCKS_THERE: Final = 5
"""Blocks of each stage of ResNet32."""
BLOCKS_HERE: Final = 2
DENSE: Final = (16, 32, 64)
IMAGE: Final = (1, 3, 32, 32)


def shares(widths: Mapping[str, Sequence[int]]) -> Mapping[str, float]:
    """Of ResNet32's spaces, by their names, from the widths of a ResNet-14: each block takes the share of the block at the same
    place in its stage, and 0 where that path is gone."""
    found: dict[str, float] = {}
    for stage, dense in enumerate(DENSE):
        first = BLOCKS_THERE * stage
        stream = "conv1" if stage == 0 else f"blocks.{BLOCKS_HERE * stage}.shortcut.0"
        name = "conv1" if stage == 0 else f"blocks.{first}.conv2"
        found[name] = widths[stream][0] / dense
        for block in range(BLOCKS_THERE):
            twin = f"blocks.{BLOCKS_HERE * stage + block * BLOCKS_HERE // BLOCKS_THERE}.conv1"
            found[f"blocks.{first + block}.conv1"] = widths[twin][0] / dense if twin in widths else 0.0
    return found


@cache
def _dense() -> Cost:
    return measure(ResNet(32), torch.zeros(IMAGE))


def shaped(widths: Mapping[str, Sequence[int]] | None) -> Mapping[str, float]:
    """Shares of the dense ResNet32's cost, by name; of 1 each while nothing was cut (`None`)."""
    cost, dense = _dense() if widths is None else _cost(tuple(sorted(shares(widths).items()))), _dense()
    return {
        "training FLOPs": cost.training_flops / dense.training_flops,
        "inference FLOPs": cost.inference_flops / dense.inference_flops,
        "batch norm accesses": cost.norm_elements / dense.norm_elements,
        "activation bytes": cost.activation_elements / dense.activation_elements,
        "all-reduce bytes": cost.parameters / dense.parameters,
    }


@cache
def _cost(kept: tuple[tuple[str, float], ...]) -> Cost:
    model = ResNet(32)
    by_name = dict(kept)
    graph = spaces.read(model)
    rows: dict[str, Tensor] = {}
    columns: dict[str, Tensor] = {}
    gone: set[str] = set()
    for space in graph.free():
        size = round(by_name[space.name] * space.size)
        if size == 0:
            gone.add(space.name.rpartition(".")[0])
            continue
        index = torch.arange(size)
        rows |= dict.fromkeys((*space.writers, *space.followers), index)
        columns |= {each.module: index for each in space.readers}
    surgeon = Surgeon(model, None)
    for name in rows.keys() | columns.keys():
        surgeon.slice(name, rows=rows.get(name), columns=columns.get(name))
    for block in gone:
        for name in ("conv1", "bn1", "conv2"):
            surgeon.put(f"{block}.{name}", Nothing())
        surgeon.put(f"{block}.bn2", Folded())
    return measure(model, torch.zeros(IMAGE))
