"""The demo as a user plays it, in the shape that a user gets, and what its report says.

It runs by itself (`make test-demo`): beside other tests it would show how busy the machine is.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path


def test_a_sound_operator_keeps_every_budget(tmp_path: Path) -> None:
    splitwatt = Path(sys.executable).with_name("splitwatt")
    command = [str(splitwatt), "demo", "--headless", "--minutes", "1", "--out", str(tmp_path)]
    played = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    assert played.returncode == 0, played.stdout + played.stderr
    assert "budget violations: 0.0 s" in played.stdout
    report = json.loads((tmp_path / "report.json").read_text())["passes"][0]
    assert report["budget_violations_s"] == 0.0
    budgets = report["budgets"]
    assert isinstance(budgets, dict) and set(budgets) == {"row-a", "rack-a1", "rack-a2"}
    assert all(count["judged_s"] > 20 for count in budgets.values())
    assert all(count["charge_over_s"] == 0 for count in budgets.values())
    assert report["patch_to_enforced_s"] is not None, "the cut bit: a cap had to fall"
    assert report["clusters"], "requests were served"
