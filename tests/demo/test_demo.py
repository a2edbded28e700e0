"""The demo as a user plays it, in the shape that a user gets, and what its report says.

It runs by itself (`make test-demo`): beside other tests it would show how busy the machine is.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

from splitwatt_lab.toolbuild import Console, ensure_tools


def test_a_sound_operator_keeps_every_budget(tmp_path: Path) -> None:
    splitwatt = Path(sys.executable).with_name("splitwatt")
    command = [str(splitwatt), "demo", "--headless", "--minutes", "1", "--out", str(tmp_path)]
    played = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    assert played.returncode == 0, played.stdout + played.stderr
    assert "budget violations: 0.0 s" in played.stdout
    assert re.search(r"splitwatt dashboards --prometheus http://127\.0\.0\.1:\d+$", played.stdout, re.MULTILINE)
    report = json.loads((tmp_path / "report.json").read_text())["passes"][0]
    assert report["budget_violations_s"] == 0.0
    budgets = report["budgets"]
    assert isinstance(budgets, dict) and set(budgets) == {"row-a", "rack-a1", "rack-a2"}
    assert all(count["judged_s"] > 20 for count in budgets.values())
    assert all(count["charge_over_s"] == 0 for count in budgets.values())
    assert report["patch_to_enforced_s"] is not None, "the cut bit: a cap had to fall"
    assert report["clusters"], "requests were served"


def test_a_readers_hands_are_told_and_break_neither_the_demo_nor_a_budget(tmp_path: Path) -> None:
    """Before the demo cuts a rack somebody lowers one and deletes the other, below which nobody new may start then."""
    splitwatt = Path(sys.executable).with_name("splitwatt")
    command = [str(splitwatt), "demo", "--headless", "--minutes", "1", "--out", str(tmp_path)]
    kubectl = [str(ensure_tools(Console())["kubectl"]), f"--kubeconfig={tmp_path / 'logs-PhaseAware' / 'admin.kubeconfig'}"]

    def types(*words: str) -> str:
        return subprocess.run([*kubectl, *words], capture_output=True, text=True, timeout=60, check=True).stdout

    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as demo:
        assert demo.stdout is not None
        said = []
        for line in demo.stdout:
            said.append(line)
            if "load begins to rise" in line:
                types("patch", "pb", "rack-a2", "--type=merge", "-p", '{"spec": {"limitWatts": 20000}}')
                types("delete", "pb", "rack-a1", "--wait=false")
    text = "".join(said)
    # Where the second cluster found no room in what is left, that is said: the run shows nothing of it.
    assert demo.returncode == (2 if "batch/summarize never ran" in text else 0), text
    assert "rack-a2: limit set from 26000 W to 20000 W by somebody" in text
    assert "rack-a1: deleted by somebody; its nodes count on, and its last limit is judged" in text
    assert "rack-a1: is gone, so nothing is cut" in text or "rack-a2: stands at 20000 W already, so nothing is cut" in text
    assert "budget violations: 0.0 s" in text
    report = json.loads((tmp_path / "report.json").read_text())["passes"][0]
    assert all(count["judged_s"] > 20 for count in report["budgets"].values())
