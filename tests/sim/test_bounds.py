"""Compiled kernels read nothing beyond their arrays: the same work, compiled with numba's checks of every index.

Without them such a read gives a number, and nothing tells. The checks see indices from the end on. A negative one counts
from the end, compiled as in Python; only the specification that runs beside the fleet engine would show it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from splitwatt_sim.jit import COMPILED
from support import bounds_workload

WORKLOAD = Path(bounds_workload.__file__)


@pytest.mark.skipif(not COMPILED, reason="needs numba: interpreted, numpy checks every index")
def test_no_kernel_reads_beyond_its_arrays(tmp_path: Path) -> None:
    # Half the time goes without optimising, which changes no bit.
    checks = {"NUMBA_BOUNDSCHECK": "1", "NUMBA_OPT": "0", "NUMBA_DISABLE_JIT": "0", "NUMBA_CACHE_DIR": str(tmp_path)}
    checked = subprocess.run(
        [sys.executable, str(WORKLOAD)], env=os.environ | checks, capture_output=True, text=True, timeout=400, check=False
    )
    assert checked.returncode == 0, checked.stderr
    probes = ["jit is checked", "lean is checked", "record is checked", "row is checked"]
    assert checked.stdout.splitlines() == [*probes, bounds_workload.digest()]


def test_the_fleets_of_the_workload_go_to_the_edges() -> None:
    runs = bounds_workload.fleets()
    assert any(run.restarted for run in runs) and any(run.flips for run in runs)
    assert any(len(run.unfinished) for run in runs)
