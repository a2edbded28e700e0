"""Kernels of the papers give the same bits interpreted and compiled, and read nothing beyond their arrays; see
tests/sim/test_bounds.py."""

from __future__ import annotations

import pytest
from splitwatt_sim.jit import COMPILED
from support import bounds_papers
from support.bounds import PROBES, checked


@pytest.mark.skipif(not COMPILED, reason="needs numba to compare with")
def test_checked_at_every_index_the_kernels_of_the_papers_give_the_same_bits_as_compiled() -> None:
    assert checked("support.bounds_papers") == [*PROBES, bounds_papers.digest()]


def test_the_rows_of_the_workload_go_to_the_edges() -> None:
    calm, crowded = (run for _, run, _ in bounds_papers.ladders())
    assert len(set(calm.in_force.tolist())) > 20, "most rungs"
    assert crowded.brakes > 10
