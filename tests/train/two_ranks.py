"""One rank of a gloo job, `python two_ranks.py FOLDER RANK WORLD EPOCHS resnet|mlp [CHECKPOINT]`; tells in FOLDER/RANK.json."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from splitwatt_prune.models import ResNet, mlp
from splitwatt_prune.surgery import widths
from splitwatt_prune.training import Recipe, Run
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

RECIPE = Recipe(epochs=8, batch=32, ratio=0.8, interval=2, lr=0.05)


def main(folder: Path, rank: int, world: int, epochs: int, *, kind: str, resume: Path | None) -> None:
    torch.set_num_threads(1)
    if world > 1:
        distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
    torch.manual_seed(0)
    labels = torch.arange(256) % 4
    inputs = 0.3 * torch.randn(256, 1, 8, 8) + torch.nn.functional.one_hot(labels, 64).view(-1, 1, 8, 8).float() * 3
    torch.manual_seed(7 if world == 1 else rank)  # ranks begin with other weights: DDP makes them one
    model: nn.Module = ResNet(8, channels=1, classes=4, widths=(4, 6, 8))
    if kind == "mlp":
        model = nn.Sequential(nn.Flatten(), *mlp((64, 24, 12, 4)))
    run = Run(model, inputs, labels, RECIPE, seed=2, probe=inputs[:8], resume=resume)
    assert isinstance(run._wrapped, DistributedDataParallel) == (world > 1)
    losses, seen, wrappers = [], [], set()
    for _ in range(epochs):
        losses.append(run.epoch())
        seen.append(widths(run.model))
        wrappers.add(id(run._wrapped))
    held = {id(each) for each in run._wrapped.parameters()}
    assert held == {id(each) for each in run.model.parameters()}
    run.save(folder / "run.pt")
    assert run.lasso is not None
    found = {
        "losses": losses,
        "widths": seen,
        "changes": len(run.changes),
        "agreed": [each.ranks_agreed for each in run.changes],
        "wrappers": len(wrappers),
        "lambda": run.lasso.weight,
        "weights": float(sum(each.detach().double().sum() for each in run.model.parameters())),
        "momentum": float(sum(each["momentum_buffer"].double().sum() for each in run.optimizer.state.values())),
        "next": run.epoch(),
    }
    (folder / f"{rank}.json").write_text(json.dumps(found), encoding="utf-8")
    if world > 1:
        distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:5]), kind=sys.argv[5], resume=Path(sys.argv[6]) if sys.argv[6:] else None)
