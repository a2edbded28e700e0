"""PruneTrain on scikit-learn's digits, dense and pruned: `python -m splitwatt_prune.digits --seed N --json FILE`.

1 797 images of 8x8, a fifth kept for the test by seed; ResNet-14 of 16/32/64 channels, one thread. Ratios are of the whole run
against a dense one of as many epochs, but for inference, which is of the model at the end.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
from sklearn.datasets import load_digits
from torch import Tensor

from splitwatt_prune.models import ResNet
from splitwatt_prune.training import Recipe, Run

RECIPE: Final = Recipe(ratio=0.5)
DEPTH: Final = 14
TEST_SHARE: Final = 0.2
PROBE: Final = 64


@dataclass(frozen=True)
class Digits:
    """Inputs [n, 1, 8, 8] from 0 to 1, labels [n]."""

    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]

    @classmethod
    def split(cls, seed: int) -> Digits:
        """A fifth for the test, drawn by seed."""
        data = load_digits()
        inputs = torch.tensor(data.images, dtype=torch.float32).unsqueeze(1) / 16
        labels = torch.tensor(data.target)
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
        cut = int(len(labels) * TEST_SHARE)
        test, train = order[:cut], order[cut:]
        return cls((inputs[train], labels[train]), (inputs[test], labels[test]))


def trained(data: Digits, recipe: Recipe, seed: int) -> Run:
    """One run from the seed's own first weights."""
    torch.manual_seed(seed)
    run = Run(ResNet(DEPTH, channels=1), *data.train, recipe, seed=seed, probe=data.test[0][:PROBE])
    run.train()
    return run


def figures(seed: int, recipe: Recipe = RECIPE) -> Mapping[str, Any]:
    """Both runs of one seed. Ratios from 0 to 1; `accuracy_delta_pp` is pruned minus dense, in percentage points."""
    data = Digits.split(seed)
    started = time.monotonic()
    dense = trained(data, recipe.dense(), seed)
    between = time.monotonic()
    pruned = trained(data, recipe, seed)
    assert pruned.lasso is not None and pruned.lasso.weight is not None
    accuracies = dense.accuracy(*data.test), pruned.accuracy(*data.test)
    before, after = pruned.totals.dense, pruned.reconfigurer.cost
    exact = [each.max_logit_delta for each in pruned.changes if not each.removed_paths and each.max_logit_delta is not None]
    return {
        "seed": seed,
        "ratio": recipe.ratio,
        "epochs": recipe.epochs,
        "accuracy_dense": accuracies[0],
        "accuracy_pruned": accuracies[1],
        "accuracy_delta_pp": 100 * (accuracies[1] - accuracies[0]),
        "inference_flops_ratio": after.inference_flops / before.inference_flops,
        **pruned.totals.ratios(),
        "parameters_ratio": after.parameters / before.parameters,
        "reconfigurations": len(pruned.changes),
        "removed_paths": sum(len(each.removed_paths) for each in pruned.changes),
        "max_logit_delta": max(exact, default=0.0),
        "max_logit_delta_with_path": max((each.max_logit_delta or 0.0 for each in pruned.changes), default=0.0),
        "lambda": pruned.lasso.weight,
        "shrink_budget": pruned.lasso.shrink_budget,
        "curve": [
            {"epoch": each.epoch, "training": each.after.training_flops / before.training_flops, "widths": each.widths}
            for each in pruned.changes
        ],
        "seconds_dense": between - started,
        "seconds_pruned": time.monotonic() - between,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m splitwatt_prune.digits", description="PruneTrain on scikit-learn's digits.")
    parser.add_argument("--seed", type=int, default=0, help="of split, first weights and batches (%(default)s)")
    parser.add_argument("--ratio", type=float, default=RECIPE.ratio, help="penalty's share of the first loss (%(default)s)")
    parser.add_argument("--epochs", type=int, default=RECIPE.epochs, help="(%(default)s)")
    parser.add_argument("--json", type=Path, help="file for the figures")
    options = parser.parse_args(arguments)
    if not 0 < options.ratio < 1 or options.epochs < 1 or options.seed < 0:
        parser.error("--ratio lies between 0 and 1, --epochs is 1 or more, --seed is 0 or more")
    torch.set_num_threads(1)
    found = figures(options.seed, replace(RECIPE, ratio=options.ratio, epochs=options.epochs))
    text = json.dumps(found, indent=2)
    sys.stdout.write("".join(f"{name:28} {value:.6g}\n" for name, value in found.items() if not isinstance(value, list)))
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(f"{text}\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
