"""What ranks of one job owe each other at a reconfiguration: the same channels, told by rank 0 and checked by a hash.

DistributedDataParallel keeps weights equal, so ranks would find the same channels; rank 0's word makes sure, and a difference is
said. The wrapper is made anew afterwards: its buckets hold the old parameters.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel


class RanksDifferError(RuntimeError):
    """Ranks of one job hold models of different widths; training on would add gradients of different channels."""


def world() -> int:
    return distributed.get_world_size() if _is_up() else 1


def plain(model: nn.Module) -> nn.Module:
    """The model itself, without the wrappers of DDP and torch.compile."""
    while True:
        inner = model.module if isinstance(model, DistributedDataParallel) else getattr(model, "_orig_mod", None)
        if inner is None:
            return model
        model = inner


def from_rank_0(decision: dict[str, Any]) -> tuple[dict[str, Any], bool]:
    """Rank 0's decision (JSON values), and whether every rank had come to the same."""
    if world() == 1:
        return decision, True
    told: list[Any] = [decision]
    distributed.broadcast_object_list(told, src=0)
    hashes: list[Any] = [None] * world()
    distributed.all_gather_object(hashes, digest(decision))
    return told[0], len(set(hashes)) == 1


def check_equal(widths: dict[str, list[int]]) -> None:
    """Raises RanksDifferError on every rank unless all of them have these widths."""
    if world() == 1:
        return
    hashes: list[Any] = [None] * world()
    distributed.all_gather_object(hashes, digest(widths))
    if len(set(hashes)) > 1:
        raise RanksDifferError(f"ranks have different widths after a reconfiguration ({hashes}): resume from the last checkpoint")


def mean(value: float) -> float:
    """Over all ranks: the first loss, from which each of them finds the same lambda."""
    if world() == 1:
        return value
    total = torch.tensor([value], dtype=torch.float64)
    if distributed.get_backend() == "nccl":
        total = total.cuda()
    distributed.all_reduce(total)
    return float(total) / world()


def rewrapped(wrapper: nn.Module, **options: Any) -> nn.Module:
    """A DDP wrapper anew, so that buckets are built of the new parameters, and rank 0's parameters and buffers are everyone's.
    `options` are what the first one was made with. A plain model is returned as it is."""
    if not isinstance(wrapper, DistributedDataParallel):
        return wrapper
    return DistributedDataParallel(wrapper.module, **options)


def digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def _is_up() -> bool:
    return distributed.is_available() and distributed.is_initialized()
