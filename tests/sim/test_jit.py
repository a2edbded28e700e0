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
