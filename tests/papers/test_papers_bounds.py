"""Compiled kernels of the papers read nothing beyond their arrays; see tests/sim/test_bounds.py."""

from __future__ import annotations

from pathlib import Path

import pytest
from splitwatt_sim.jit import COMPILED
from support import bounds_papers
from support.bounds import PROBES, checked


@pytest.mark.skipif(not COMPILED, reason="needs numba: interpreted, numpy checks every index")
def test_no_kernel_of_the_papers_reads_beyond_its_arrays(tmp_path: Path) -> None:
    assert checked("support.bounds_papers", tmp_path) == [*PROBES, bounds_papers.digest()]
