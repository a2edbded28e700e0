"""Two real ranks over gloo prune alike, and one goes on from what two left."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from splitwatt_prune import ranks
from splitwatt_prune.ranks import RanksDifferError
from torch import distributed, nn

RANK = Path(__file__).with_name("two_ranks.py")
TIMEOUT_S = 500.0


def played(folder: Path, world: int, epochs: int, kind: str, *more: Path) -> list[dict[str, Any]]:
    folder.mkdir()
    words = [
        [sys.executable, str(RANK), str(folder), str(rank), str(world), str(epochs), kind, *map(str, more)]
        for rank in range(world)
    ]
    processes = [subprocess.Popen(each, stderr=subprocess.PIPE, text=True) for each in words]
    try:
        ends = [(each.communicate(timeout=TIMEOUT_S)[1], each.returncode) for each in processes]
    finally:
        for each in processes:
            each.kill()
    assert [code for _, code in ends] == [0] * world, "\n".join(text[-2000:] for text, _ in ends)
    return [json.loads((folder / f"{rank}.json").read_text(encoding="utf-8")) for rank in range(world)]


def test_two_ranks_have_the_same_widths_weights_and_lambda(tmp_path: Path) -> None:
    one, other = played(tmp_path / "two", 2, 4, "resnet")
    assert one["changes"] == other["changes"] > 0, "else nothing was cut"
    assert one["widths"] == other["widths"] and len({json.dumps(each) for each in one["widths"]}) > 1
    assert one["agreed"] == other["agreed"] == [True] * one["changes"]
    assert one["wrappers"] == 1 + one["changes"], "the wrapper is made anew after each"
    assert (one["lambda"], one["weights"], one["momentum"]) == (other["lambda"], other["weights"], other["momentum"])


def test_one_goes_on_from_what_two_left_with_their_loss(tmp_path: Path) -> None:
    """Without batch norms, whose statistics are of each rank's own samples: those of half a batch are others."""
    one, other = played(tmp_path / "two", 2, 2, "mlp")
    assert one["changes"] == other["changes"] > 0, "else nothing was cut"
    (alone,) = played(tmp_path / "one", 1, 0, "mlp", tmp_path / "two" / "run.pt")
    assert alone["next"] == pytest.approx((one["next"] + other["next"]) / 2, rel=0.02)


def test_ranks_that_differ_are_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    def gathered(into: list[str], mine: str) -> None:
        into[:] = [mine, "another"]

    monkeypatch.setattr(ranks, "world", lambda: 2)
    monkeypatch.setattr(distributed, "all_gather_object", gathered)
    with pytest.raises(RanksDifferError, match="resume from the last checkpoint"):
        ranks.check_equal({"conv1": [4]})


def test_alone_a_rank_decides_for_itself() -> None:
    model = nn.Linear(2, 2)
    assert ranks.from_rank_0({"1": [0]}) == ({"1": [0]}, True) and ranks.mean(2.5) == 2.5
    assert ranks.plain(model) is model is ranks.rewrapped(model)
