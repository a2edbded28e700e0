"""Whoever has to wait for the compiler is told so before, and nobody else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("numba")

SCRIPT = """
import numpy as np
from splitwatt_sim.fleet.run import run_fleet  # declares every kernel
from splitwatt_sim.fleet.state import push
from splitwatt_sim.jit import is_cold
print(is_cold())
push(np.zeros(4), np.zeros(4, np.int32), 0, 1.0, 1)
print(is_cold())
"""


def test_it_is_cold_until_a_kernel_was_compiled_and_never_again(tmp_path: Path) -> None:
    env = {name: value for name, value in os.environ.items() if not name.startswith("NUMBA_")}
    env["XDG_CACHE_HOME"] = str(tmp_path)
    said = []
    for _ in range(2):
        ran = subprocess.run([sys.executable, "-c", SCRIPT], env=env, capture_output=True, text=True, check=True, timeout=120)
        said.append(ran.stdout.split())
    assert said == [["True", "False"], ["False", "False"]]


def test_another_packages_kernels_are_compiled_anew_when_one_that_they_call_has_changed(tmp_path: Path) -> None:
    package = tmp_path / "elsewhere"
    package.mkdir()
    (package / "__init__.py").touch()
    outer = "from splitwatt_sim.jit import jit\nfrom elsewhere.inner import one\n\n\n@jit\ndef two():\n    return 2 * one()\n"
    (package / "outer.py").write_text(outer, encoding="utf-8")
    env = {name: value for name, value in os.environ.items() if not name.startswith("NUMBA_")}
    env |= {"XDG_CACHE_HOME": str(tmp_path / "cache"), "PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    said = []
    for value in (10, 11):
        inner = f"from splitwatt_sim.jit import jit\n\n\n@jit\ndef one():\n    return {value}\n"
        (package / "inner.py").write_text(inner, encoding="utf-8")
        script = "from elsewhere.outer import two; print(two())"
        ran = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, check=True, timeout=120)
        said.append(ran.stdout.strip())
    assert said == ["20", "22"]
    kept = {path.name for path in (tmp_path / "cache" / "splitwatt" / "kernels").iterdir()}
    assert len(kept) == 2, "one folder for each state of the package"
