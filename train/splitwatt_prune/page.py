"""Writes the figures of docs/reproduce/prunetrain.md: `python -m splitwatt_prune.page`.

Trains the digits, dense and pruned, on one seed after the other, and puts the shares of channels that stayed into a model of
ResNet32's shape on CIFAR, whose cost the formulas then tell. Runs are kept in `--runs`; one that is there with this recipe is not
run again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch

from splitwatt_prune.digits import RECIPE, figures
from splitwatt_prune.shapes import shaped

COMMAND: Final = "python -m splitwatt_prune.page"
SEEDS: Final = 12
BOUNDS: Final[Mapping[str, tuple[str, float]]] = {
    "inference_flops_ratio": ("inference FLOPs", 0.50),
    "training_flops_ratio": ("training FLOPs", 0.75),
    "allreduce_ratio": ("all-reduce bytes", 0.70),
    "activation_ratio": ("activation bytes", 0.75),
}
LOSS_PP: Final = 1.0
AUTHORS: Final = (
    ("CIFAR10", "ResNet32", "53 %", "66 %", "91.8"), ("CIFAR10", "ResNet50", "50 %", "70 %", "93.1"),
    ("CIFAR100", "ResNet32", "32 %", "46 %", "69.5"), ("CIFAR100", "ResNet50", "53 %", "69 %", "72.4"),
    ("ImageNet", "ResNet50", "37 %", "53 %", "74.4 (74.6)"), ("ImageNet", "ResNet50", "29 %", "43 %", "74.7 (75.2)"),
)  # fmt: skip
"""Their README's table: set, model, training and inference FLOPs removed, top-1 in % (after fine-tuning)."""


def runs(seeds: int, folder: Path) -> list[Mapping[str, Any]]:
    """The figures of seeds 0 … seeds-1, from files where they are of this recipe."""
    found: list[Mapping[str, Any]] = []
    folder.mkdir(parents=True, exist_ok=True)
    for seed in range(seeds):
        file = folder / f"seed-{seed}.json"
        kept = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        if (kept.get("seed"), kept.get("ratio"), kept.get("epochs")) != (seed, RECIPE.ratio, RECIPE.epochs):
            sys.stderr.write(f"training seed {seed}\n")
            kept = dict(figures(seed))
            file.write_text(json.dumps(kept), encoding="utf-8")
        found.append(kept)
    return found


def blocks(found: Sequence[Mapping[str, Any]]) -> Mapping[str, str]:
    """What stands between each pair of marks of the page."""
    return {
        "digits": digits_table(found),
        "verdicts": verdicts(found),
        "curve": curve_table(found),
        "sum": summary(found),
        "authors": _markdown(["set", "model", "training FLOPs removed", "inference FLOPs removed", "top-1, %"], AUTHORS),
    }


def filled(text: str, parts: Mapping[str, str]) -> str:
    """The page, each block `<!-- figures: name --> … <!-- end -->` written anew. Raises ValueError unless each is there once."""
    for name, part in parts.items():
        begin, end = f"<!-- figures: {name} -->", "<!-- end -->"
        before, found, rest = text.partition(begin)
        _, closed, after = rest.partition(end)
        if not (found and closed) or begin in after:
            raise ValueError(f"the page must have the block of figures {name!r} once, and its end")
        text = f"{before}{begin}\n\n{part}\n\n{end}{after}"
    return text


def digits_table(found: Sequence[Mapping[str, Any]]) -> str:
    head = ["seed", "dense", "pruned", "change, pp", *(name for name, _ in BOUNDS.values()), "parameters", "paths gone",
            "largest logit change"]  # fmt: skip
    rows = [
        [str(each["seed"]), f"{each['accuracy_dense']:.4f}", f"{each['accuracy_pruned']:.4f}",
         f"{each['accuracy_delta_pp']:+.2f}", *(f"{each[key]:.3f}" for key in BOUNDS), f"{each['parameters_ratio']:.3f}",
         str(each["removed_paths"]), f"{each['max_logit_delta']:.1e}"]
        for each in found
    ]  # fmt: skip
    return _markdown(head, rows)


def verdicts(found: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        [name, f"<= {bound}", f"{max(each[key] for each in found):.3f}", _holds(max(each[key] for each in found) <= bound)]
        for key, (name, bound) in BOUNDS.items()
    ]
    worst = min(each["accuracy_delta_pp"] for each in found)
    rows.append(["accuracy, pp", f">= -{LOSS_PP}", f"{worst:+.2f}", _holds(worst >= -LOSS_PP)])
    logits = max(each["max_logit_delta"] for each in found)
    rows.append(["logits at a reconfiguration without a removed path", "<= 5e-3", f"{logits:.1e}", _holds(logits <= 5e-3)])
    return _markdown(["of all seeds", "wanted", "worst", "verdict"], rows)


def curve_table(found: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for epoch in range(0, RECIPE.epochs + 1, RECIPE.interval):
        costs = [shaped(_widths(each, epoch)) for each in found]
        rows.append([str(epoch), *(f"{statistics.fmean(cost[key] for cost in costs):.3f}" for key in costs[0])])
    return _markdown(["after epoch", *shaped(None)], rows)


def summary(found: Sequence[Mapping[str, Any]]) -> str:
    training = [
        statistics.fmean(shaped(_widths(each, epoch))["training FLOPs"] for epoch in range(RECIPE.epochs)) for each in found
    ]
    inference = [shaped(_widths(each, RECIPE.epochs))["inference FLOPs"] for each in found]
    return (
        f"Over the whole run that removes {100 - 100 * statistics.fmean(training):.0f} % of the training FLOPs and "
        f"{100 - 100 * statistics.fmean(inference):.0f} % of the inference FLOPs."
    )


def _widths(run: Mapping[str, Any], epoch: int) -> Mapping[str, Sequence[int]] | None:
    """After the epoch's reconfiguration; None while dense."""
    passed = [each["widths"] for each in run["curve"] if each["epoch"] <= epoch]
    return passed[-1] if passed else None


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), *rows))


def _holds(yes: bool) -> str:
    return "holds" if yes else "**missed**"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog=COMMAND, description="PruneTrain's page.")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="seeds 0 and up, 1 to 100 (%(default)s)")
    parser.add_argument("--runs", type=Path, default=Path("out/prunetrain"), help="folder of what was trained (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("docs/reproduce"), help="folder of prunetrain.md (%(default)s)")
    options = parser.parse_args(arguments)
    if not 1 <= options.seeds <= 100:
        parser.error("--seeds must lie in 1..100")
    page = options.out / "prunetrain.md"
    if not page.is_file():
        parser.error(f"{page} is not there; its text is kept in the page itself, only figures are written")
    torch.set_num_threads(1)
    found = runs(options.seeds, options.runs)
    page.write_text(filled(page.read_text(encoding="utf-8"), blocks(found)), encoding="utf-8")
    sys.stdout.write(f"{verdicts(found)}\nwritten: {page}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
