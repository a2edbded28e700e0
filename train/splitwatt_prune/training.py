"""A training loop that uses all of it, small enough to read: what the digits, the tests and the page run.

Batches of an epoch depend on seed and epoch alone, so that a resumed run sees what an unbroken one would have seen. On several
ranks each takes its share of every batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from splitwatt_prune import checkpoint, ranks
from splitwatt_prune.batches import MiniBatch
from splitwatt_prune.cost import Totals, measure
from splitwatt_prune.lasso import GroupLasso, Mode
from splitwatt_prune.reconfigure import THRESHOLD, Change, Reconfigurer

DECAY: Final = 0.1


@dataclass(frozen=True)
class Recipe:
    """SGD with momentum; the learning rate falls to a tenth after half of the epochs and again after three quarters, as in the
    paper's. `ratio` 0: dense, without a penalty."""

    epochs: int = 60
    batch: int = 32
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    ratio: float = 0.2
    mode: Mode = "prox"
    interval: int = 5
    threshold: float = THRESHOLD
    grow_batch: bool = False

    def lr_at(self, epoch: int) -> float:
        """Of epoch 1 … `epochs`."""
        passed = (epoch > self.epochs // 2) + (epoch > self.epochs * 3 // 4)
        return self.lr * DECAY**passed

    def dense(self) -> Recipe:
        return replace(self, ratio=0.0)


class Run:
    """One training run of a freshly built dense model. `inputs` [n, ...], `labels` [n]; `probe`: inputs by which reconfigurations
    are measured. `resume`: a checkpoint of such a run, of as many ranks or others; the global batch stays as it was."""

    def __init__(
        self,
        model: nn.Module,
        inputs: Tensor,
        labels: Tensor,
        recipe: Recipe,
        *,
        seed: int,
        probe: Tensor,
        resume: Path | None = None,
    ) -> None:
        if recipe.batch > len(inputs):
            raise ValueError(f"{len(inputs)} samples make no batch of {recipe.batch}: take a smaller batch or more samples")
        self.recipe, self.seed = recipe, seed
        self._inputs, self._labels = inputs, labels
        self.model = model
        self.totals = Totals(measure(model, probe))
        self.mini_batch = MiniBatch.of(self.totals.dense, recipe.batch, most=len(inputs))
        loaded = None if resume is None else checkpoint.load(resume, model)
        self.optimizer = torch.optim.SGD(
            model.parameters(), recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay
        )
        self.lasso = GroupLasso(model, recipe.ratio, recipe.mode) if recipe.ratio else None
        self.reconfigurer = Reconfigurer(model, self.optimizer, probe, threshold=recipe.threshold, interval=recipe.interval)
        self.changes: list[Change] = []
        self.last_epoch = 0
        if loaded is not None:
            loaded.resume(model, self.optimizer, self.lasso)
            self._continue(loaded.extra)
        self._wrapped = self._wrap(model)

    def train(self, on_epoch: Callable[[Run], None] | None = None) -> None:
        """Every epoch that is left."""
        while self.last_epoch < self.recipe.epochs:
            self.epoch()
            if on_epoch is not None:
                on_epoch(self)

    def epoch(self) -> float:
        """The next epoch, and a reconfiguration behind it when it is time; the mean cross-entropy of this rank."""
        self.last_epoch += 1
        lr = self.recipe.lr_at(self.last_epoch) * self.mini_batch.lr_factor
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self._wrapped.train()
        total = steps = samples = 0.0
        for index in self._batches():
            mine = index[self._rank() :: ranks.world()]
            total += self._step(self._inputs[mine], self._labels[mine])
            steps, samples = steps + 1, samples + len(index)
        self.totals.add(self.reconfigurer.cost, samples=int(samples), steps=int(steps))
        if self.lasso is not None:
            self._reconfigure()
        return total / steps

    @torch.no_grad()
    def accuracy(self, inputs: Tensor, labels: Tensor) -> float:
        self.model.eval()
        return float((self.model(inputs).argmax(dim=1) == labels).float().mean())

    def _step(self, inputs: Tensor, labels: Tensor) -> float:
        self.optimizer.zero_grad(set_to_none=True)
        loss = functional.cross_entropy(self._wrapped(inputs), labels)
        value = float(loss.detach())
        if self.lasso is None:
            loss.backward()
            self.optimizer.step()
            return value
        if self.lasso.weight is None:
            self.lasso.fix(ranks.mean(value))
        (loss + self.lasso.penalty(loss)).backward()
        self.optimizer.step()
        self.lasso.step(self.optimizer)
        return value

    def _batches(self) -> tuple[Tensor, ...]:
        """Of equal size; samples left over wait for another epoch."""
        generator = torch.Generator().manual_seed(1_000_003 * self.seed + self.last_epoch)
        order = torch.randperm(len(self._inputs), generator=generator)
        size = self.mini_batch.size
        return order[: len(order) // size * size].split(size)

    def _reconfigure(self) -> None:
        change = self.reconfigurer.maybe(self.last_epoch)
        if change is None:
            return
        assert self.lasso is not None
        self.changes.append(change)
        self.lasso.refresh(self.model)
        if self.recipe.grow_batch:
            self.mini_batch = self.mini_batch.refilled(change.after)
        self._wrapped = self._wrap(self.model)

    def _wrap(self, model: nn.Module) -> nn.Module:
        return DistributedDataParallel(model) if ranks.world() > 1 else model

    def _rank(self) -> int:
        return torch.distributed.get_rank() if ranks.world() > 1 else 0

    def save(self, path: Path) -> None:
        """A checkpoint by rank 0, at the end of an epoch; other ranks write nothing."""
        if self._rank() == 0:
            checkpoint.save(path, self.model, self.optimizer, self.lasso, self._state())

    def _state(self) -> dict[str, Any]:
        totals = {each.name: getattr(self.totals, each.name) for each in fields(self.totals) if each.name != "dense"}
        return {
            "epoch": self.last_epoch,
            "generation": self.reconfigurer.generation,
            "batch": self.mini_batch.size,
            "lr_factor": self.mini_batch.lr_factor,
            "totals": totals,
        }

    def _continue(self, state: Mapping[str, Any]) -> None:
        self.last_epoch = state["epoch"]
        self.reconfigurer.generation = state["generation"]
        self.mini_batch = replace(self.mini_batch, size=state["batch"], lr_factor=state["lr_factor"])
        for name, value in state["totals"].items():
            setattr(self.totals, name, value)
