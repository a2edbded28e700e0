"""Kernels of the fleet engine give the same bits interpreted and compiled, and read nothing beyond their arrays.

Interpreted, every index is checked from the end on. A negative one counts from the end, compiled as in Python; only the
specification that runs beside the fleet engine would show it.
"""

from __future__ import annotations

import pytest
from splitwatt_sim.jit import COMPILED
from support import bounds_fleets
from support.bounds import PROBES, checked


@pytest.mark.skipif(not COMPILED, reason="needs numba to compare with")
def test_checked_at_every_index_the_fleet_engine_gives_the_same_bits_as_compiled() -> None:
    assert checked("support.bounds_fleets") == [*PROBES, bounds_fleets.digest()]


def test_the_fleets_of_the_workload_go_to_the_edges() -> None:
    runs = bounds_fleets.fleets()
    assert any(run.restarted for run in runs) and any(run.flips for run in runs)
    assert any(len(run.unfinished) for run in runs)
