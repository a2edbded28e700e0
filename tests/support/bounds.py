"""Compiled kernels check no index: a read beyond an array's end gives a number, and nothing tells. Interpreted, numpy checks.

So a workload runs twice, interpreted in a process of its own and compiled, and must give the same bits: where both compute the
same, both read the same places. numba's own checks of compiled code would cost a minute of compiling, and see no more.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from splitwatt_sim.jit import COMPILED, inlined, jit, lean

PROBES = ["compiled: False", "jit is checked", "lean is checked", "record is checked", "row is checked"]
"""What `report` says first where indices are checked."""
RECORDS = np.zeros(4, [("x", "f8")]).view(np.recarray)


@jit
def peek(array: Any, i: int) -> float:
    return float(array[i])


@lean
def peek_lean(array: Any, i: int) -> float:
    return float(array[i])


@inlined
def _inner(records: Any, i: int) -> float:
    return float(records[i].x)


@lean
def peek_record(records: Any, i: int) -> float:
    return _inner(records, i)


@lean
def poke_row(array: Any, i: int, j: int) -> None:
    array[i][j] = 1.0


def probe() -> None:
    """A read or write one beyond the end, in every way in which kernels are declared."""
    four = np.zeros(4)
    for name, peep in (
        ("jit", lambda: peek(four, 4)),
        ("lean", lambda: peek_lean(four, 4)),
        ("record", lambda: peek_record(RECORDS, 4)),
        ("row", lambda: poke_row(np.zeros((2, 2)), 1, 2)),
    ):
        try:
            peep()
        except IndexError:
            sys.stdout.write(f"{name} is checked\n")


def report(digest: Callable[[], str]) -> None:
    """What the process of a workload prints."""
    sys.stdout.write(f"compiled: {COMPILED}\n")
    probe()
    sys.stdout.write(digest() + "\n")


def checked(workload: str) -> list[str]:
    """What `report` says in a process where every index is checked. `workload`: its module."""
    tests = Path(__file__).resolve().parents[1]
    ran = subprocess.run(
        [sys.executable, "-m", workload], env=os.environ | {"NUMBA_DISABLE_JIT": "1"}, cwd=tests, capture_output=True, text=True,
        timeout=400, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.splitlines()
