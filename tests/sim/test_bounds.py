"""Compiled kernels read nothing beyond their arrays: the same work, compiled with numba's checks of every index.

Without them such a read gives a number, and nothing tells. The checks see indices from the end on. A negative one counts
from the end, compiled as in Python; only the specification that runs beside the fleet engine would show it.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from splitwatt_sim.jit import COMPILED
from support import bounds_fleets
from support.bounds import PROBES, checked


@pytest.mark.skipif(not COMPILED, reason="needs numba: interpreted, numpy checks every index")
def test_no_kernel_of_the_fleet_engine_reads_beyond_its_arrays(tmp_path: Path) -> None:
    assert checked("support.bounds_fleets", tmp_path) == [*PROBES, bounds_fleets.digest()]


def test_the_fleets_of_the_workload_go_to_the_edges() -> None:
    runs = bounds_fleets.fleets()
    assert any(run.restarted for run in runs) and any(run.flips for run in runs)
    assert any(len(run.unfinished) for run in runs)
