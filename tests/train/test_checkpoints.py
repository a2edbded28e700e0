"""A pruned run goes on from its checkpoint in a fresh model as if nothing had happened."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from splitwatt_prune import checkpoint
from splitwatt_prune.checkpoint import CheckpointError
from splitwatt_prune.lasso import GroupLasso
from splitwatt_prune.models import ResNet, mlp
from splitwatt_prune.stubs import Constant
from splitwatt_prune.surgery import widths
from splitwatt_prune.training import Recipe, Run

RECIPE = Recipe(epochs=6, batch=16, ratio=0.9, interval=2, lr=0.2)


def run(resume: Path | None = None, recipe: Recipe = RECIPE) -> Run:
    torch.manual_seed(3)
    data = torch.randn(96, 1, 8, 8), torch.arange(96) % 4
    model = ResNet(14, channels=1, classes=4, widths=(4, 5, 6))
    return Run(model, *data, recipe, seed=1, probe=data[0][:8], resume=resume)


def test_a_resumed_run_has_the_losses_of_the_unbroken_one_to_the_last_bit(tmp_path: Path) -> None:
    unbroken = run()
    for _ in range(4):
        unbroken.epoch()
    assert unbroken.changes, "else nothing was pruned before the checkpoint"
    unbroken.save(tmp_path / "run.pt")
    resumed = run(tmp_path / "run.pt")
    assert widths(resumed.model) == widths(unbroken.model) and resumed.last_epoch == 4
    assert resumed.reconfigurer.generation == unbroken.reconfigurer.generation > 0
    assert resumed.reconfigurer.cost == unbroken.reconfigurer.cost != resumed.totals.dense
    losses = [unbroken.epoch() for _ in range(2)]
    assert all(map(math.isfinite, losses)) and [resumed.epoch() for _ in range(2)] == losses
    assert resumed.totals == unbroken.totals and resumed.mini_batch == unbroken.mini_batch
    assert resumed.lasso is not None and unbroken.lasso is not None
    assert resumed.lasso.state_dict() == unbroken.lasso.state_dict()
    pairs = zip(resumed.model.parameters(), unbroken.model.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_a_batch_that_grew_is_still_that_large(tmp_path: Path) -> None:
    grown = run(recipe=replace(RECIPE, grow_batch=True))
    grown.mini_batch = replace(grown.mini_batch, size=48, lr_factor=3.0)
    grown.save(tmp_path / "run.pt")
    resumed = run(tmp_path / "run.pt")
    assert (resumed.mini_batch.size, resumed.mini_batch.lr_factor) == (48, 3.0)
    assert [len(each) for each in resumed._batches()] == [48, 48]


def test_removed_paths_travel_too(tmp_path: Path) -> None:
    before = run()
    before.epoch()
    for block in (1, 3):
        with torch.no_grad():
            before.model.blocks[block].conv1.weight.zero_()
            before.model.blocks[block].conv2.weight.zero_()
    change = before.reconfigurer.now()
    assert change is not None and len(change.removed_paths) >= 2 and before.lasso is not None
    before.lasso.refresh(before.model)
    before.save(tmp_path / "run.pt")
    after = run(tmp_path / "run.pt")
    assert isinstance(after.model.blocks[1].bn2, Constant)
    assert after.epoch() == before.epoch()


def test_a_checkpoint_is_whole_or_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = run()
    there.save(tmp_path / "run.pt")
    before = (tmp_path / "run.pt").read_bytes()

    def dies(content: object, file: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(torch, "save", dies)
    with pytest.raises(OSError, match="no space left"):
        there.save(tmp_path / "run.pt")
    assert (tmp_path / "run.pt").read_bytes() == before


def test_another_model_optimizer_or_lasso_is_refused_with_a_sentence(tmp_path: Path) -> None:
    file = tmp_path / "run.pt"
    model = mlp((4, 6, 2))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    checkpoint.save(file, model, optimizer)
    with pytest.raises(CheckpointError, match=r"has 0 with \[6, 4\], and the model has \[5, 4\]: build the dense model"):
        checkpoint.load(file, mlp((4, 5, 2)))
    with pytest.raises(CheckpointError, match="is of another model"):
        checkpoint.load(file, mlp((4, 6, 2, 2)))
    fresh = mlp((4, 6, 2))
    loaded = checkpoint.load(file, fresh)
    two = torch.optim.SGD([{"params": [each]} for each in fresh.parameters()], 0.1)
    with pytest.raises(CheckpointError, match="4 groups, and was saved with 1"):
        loaded.resume(fresh, two)
    with pytest.raises(CheckpointError, match="without a lasso"):
        loaded.resume(fresh, torch.optim.SGD(fresh.parameters(), 0.1), GroupLasso(fresh))
