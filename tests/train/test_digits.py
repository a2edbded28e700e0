"""The digits, as a user runs them, and the page that is written from them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from splitwatt_prune.digits import Digits, figures, main
from splitwatt_prune.models import ResNet
from splitwatt_prune.page import BOUNDS, LOSS_PP, blocks, filled
from splitwatt_prune.shapes import shaped, shares
from splitwatt_prune.surgery import widths

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reproduce" / "prunetrain.md"
KEYS = {"accuracy_delta_pp", "inference_flops_ratio", "training_flops_ratio", "allreduce_ratio", "activation_ratio"}


@pytest.fixture
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_one_seed_keeps_every_bound(one_thread: None) -> None:
    found = figures(20)
    assert found["accuracy_dense"] > 0.97, "else there is nothing to lose"
    assert {key: found[key] for key, (_, bound) in BOUNDS.items() if found[key] > bound} == {}
    assert found["accuracy_delta_pp"] >= -LOSS_PP
    assert found["max_logit_delta"] <= 5e-3 and found["reconfigurations"] >= 3 and found["shrink_budget"] > 0.5
    shares_of_training = [each["training"] for each in found["curve"]]
    assert shares_of_training == sorted(shares_of_training, reverse=True), "demand only falls"


def test_the_command_writes_its_figures(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "digits.json"
    words = [sys.executable, "-m", "splitwatt_prune.digits", "--seed", "3", "--epochs", "1", "--json", str(file)]
    printed = subprocess.run(words, check=True, capture_output=True, text=True, env=dict(os.environ)).stdout
    found = json.loads(file.read_text(encoding="utf-8"))
    assert found.keys() >= KEYS and all(key in printed for key in KEYS)
    assert (found["seed"], found["training_flops_ratio"], found["curve"]) == (3, 1.0, [])


def test_bad_words_get_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--ratio", "1.5"])
    assert "--ratio lies between 0 and 1" in capsys.readouterr().err


def test_seeds_split_differently_and_a_fifth_is_for_the_test() -> None:
    one, other = Digits.split(1), Digits.split(2)
    assert one.test[0].shape == (359, 1, 8, 8) and len(one.train[0]) == 1438
    assert not torch.equal(one.test[1], other.test[1]) and torch.equal(one.test[1], Digits.split(1).test[1])


def dense_widths() -> Mapping[str, list[int]]:
    return widths(ResNet(14, channels=1))


def test_a_dense_resnet14_makes_a_dense_resnet32_and_half_of_it_a_quarter() -> None:
    assert set(shares(dense_widths()).values()) == {1.0}
    assert shaped(dense_widths()) == shaped(None)
    half = {name: [max(1, size // 2) for size in shape] for name, shape in dense_widths().items()}
    assert shaped(half)["inference FLOPs"] == pytest.approx(0.25, abs=0.01)
    assert shaped(half)["activation bytes"] == pytest.approx(0.5, abs=0.01)


def test_a_path_that_is_gone_costs_nothing() -> None:
    without = {name: shape for name, shape in dense_widths().items() if not name.startswith("blocks.1.")}
    kept = shares(without)
    assert [kept[f"blocks.{block}.conv1"] for block in range(5)] == [1.0, 1.0, 1.0, 0.0, 0.0]
    gone = 2 * 2 * 16 * 9 * 16 * 32 * 32  # two blocks of two convolutions
    assert shaped(without)["inference FLOPs"] == pytest.approx(1 - gone / 69_124_736)


def run_of(seed: int, **more: float) -> dict[str, Any]:
    curve = [{"epoch": 20, "widths": {name: [max(1, size // 2) for size in s] for name, s in dense_widths().items()}}]
    return {
        "seed": seed, "accuracy_dense": 0.99, "accuracy_pruned": 0.985, "accuracy_delta_pp": -0.5, "parameters_ratio": 0.3,
        "removed_paths": 1, "max_logit_delta": 1e-4, "curve": curve, **dict.fromkeys(BOUNDS, 0.4), **more,
    }  # fmt: skip


def test_the_page_says_what_was_missed() -> None:
    parts = blocks([run_of(0), run_of(1, activation_ratio=0.76, accuracy_delta_pp=-1.25)])
    assert "| activation bytes | <= 0.75 | 0.760 | **missed** |" in parts["verdicts"]
    assert "| accuracy, pp | >= -1.0 | -1.25 | **missed** |" in parts["verdicts"]
    assert parts["verdicts"].count("holds") == 4
    assert parts["curve"].count("\n| ") == 14 and "| 15 | 1.000 |" in parts["curve"] and "| 60 | 0.2" in parts["curve"]
    text = filled(PAGE.read_text(encoding="utf-8"), parts)
    assert all(part in text for part in parts.values())
    with pytest.raises(ValueError, match="block of figures 'digits' once"):
        filled("", parts)


def test_the_committed_page_has_figures_and_says_it_plainly() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert re.search(r"<!-- figures: digits -->\n\n\| seed .*\n.*\n\| 0 \|", text), "run make reproduce-prunetrain"
    for sentence in ("1 to 2 points of top-1", "trained from scratch", "Pre-training of LLMs is out of scope"):
        assert sentence in text
