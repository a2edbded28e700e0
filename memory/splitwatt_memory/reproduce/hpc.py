"""Small programs like those of high-performance computing, and ten snapshots of what each holds in memory.

Stand-ins, not the paper's SpecAccel and FastForward programs: the same kinds of data (fields that begin empty, index arrays,
constants, floats that look like noise), each computed here in a second or less.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Snapshot = Mapping[str, Array]
SNAPSHOTS: Final = 10
"""As many as the paper profiles over a run."""


def poisson() -> Iterator[Snapshot]:
    """Jacobi steps on a grid of 384 x 384 doubles, from one point of charge: a field that spreads slowly."""
    u, charge = np.zeros((384, 384)), np.zeros((384, 384))
    charge[192, 192] = 1.0
    for _ in range(SNAPSHOTS):
        for _ in range(8):
            u[1:-1, 1:-1] = (u[:-2, 1:-1] + u[2:, 1:-1] + u[1:-1, :-2] + u[1:-1, 2:] + charge[1:-1, 1:-1]) / 4
        yield {"potential": u.copy(), "charge": charge, "boundary": np.pad(np.zeros((382, 382), np.int32), 1, constant_values=1)}


def waves() -> Iterator[Snapshot]:
    """A pulse in a layered ground of 512 x 512 singles: zero at first, filled at the end, as the paper says of 355.seismic."""
    now, before = np.zeros((512, 512), np.float32), np.zeros((512, 512), np.float32)
    speed = np.repeat(np.linspace(0.1, 0.4, 16, dtype=np.float32), 32)[:, None] * np.ones((1, 512), np.float32)
    now[250:262, 250:262] = 1.0
    for _ in range(SNAPSHOTS):
        for _ in range(60):
            around = np.roll(now, 1, 0) + np.roll(now, -1, 0) + np.roll(now, 1, 1) + np.roll(now, -1, 1) - 4 * now
            now, before = 2 * now - before + speed * around, now
            now[np.abs(now) < 1e-20] = 0.0  # as GPUs flush what is tiny
        yield {"pressure": now.copy(), "pressure before": before.copy(), "ground": speed}


def conjugate_gradients() -> Iterator[Snapshot]:
    """A sparse matrix of nine diagonals in CSR, and the vectors that solve it, as HPCG does."""
    side = 192
    rows = side * side
    steps = np.array([-side - 1, -side, -side + 1, -1, 0, 1, side - 1, side, side + 1])
    columns = (np.arange(rows)[:, None] + steps) % rows
    values = np.where(steps == 0, 8.001, -1.0) * np.ones((rows, 1))
    x, wanted = np.zeros(rows), np.sin(np.arange(rows) / 7.0)
    residual = wanted.copy()
    direction = residual.copy()
    for _ in range(SNAPSHOTS):
        for _ in range(3):
            product = (values * direction[columns]).sum(1)
            length = residual @ residual / (direction @ product)
            x, fresh = x + length * direction, residual - length * product
            direction, residual = fresh + fresh @ fresh / (residual @ residual) * direction, fresh
        yield {
            "columns": columns.astype(np.int32), "row starts": (9 * np.arange(rows)).astype(np.int32), "values": values,
            "x": x, "residual": residual, "direction": direction,
        }  # fmt: skip


def particles() -> Iterator[Snapshot]:
    """Molecules in a box: positions and velocities like noise, lists of cells and neighbours sorted."""
    rng = np.random.default_rng(11)
    count = 32_768
    place, velocity = rng.random((count, 3), np.float32), rng.normal(0, 1e-3, (count, 3)).astype(np.float32)
    for _ in range(SNAPSHOTS):
        place = (place + velocity) % np.float32(1)
        cell = (place * 16).astype(np.int32) @ np.array([256, 16, 1], np.int32)
        order = np.argsort(cell, kind="stable").astype(np.int32)
        near = np.zeros((count, 16), np.int32)
        found = rng.integers(4, 14, count)
        for column in range(16):
            near[:, column] = np.where(column < found, np.arange(count) + column, 0)
        starts = np.searchsorted(cell[order], np.arange(4096)).astype(np.int32)
        yield {"positions": place, "velocities": velocity, "order": order, "neighbours": near, "cells": starts}


def lattice() -> Iterator[Snapshot]:
    """A fluid on a lattice of 192 x 192, nine doubles each, at rest but for a small stir."""
    weights = np.array([4 / 9] + [1 / 9] * 4 + [1 / 36] * 4)
    moves = ((0, 0), (1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, -1), (1, -1), (-1, 1))
    field = weights[:, None, None] * np.ones((9, 192, 192))
    field[1, 90:100, 90:100] += 0.01
    for _ in range(SNAPSHOTS):
        for _ in range(4):
            field = np.stack([np.roll(part, move, (0, 1)) for part, move in zip(field, moves, strict=True)])
            mass = field.sum(0)
            flow = [sum(move[axis] * part for part, move in zip(field, moves, strict=True)) for axis in (0, 1)]
            rest = np.stack([w * (mass + 3 * (m[0] * flow[0] + m[1] * flow[1])) for w, m in zip(weights, moves, strict=True)])
            field += (rest - field) / 0.9
        yield {"distributions": field.copy(), "mass": mass, "walls": np.zeros((192, 192), np.int32)}


PROGRAMS: Final[Mapping[str, Callable[[], Iterator[Snapshot]]]] = {
    "Poisson, doubles": poisson,
    "waves, singles": waves,
    "conjugate gradients": conjugate_gradients,
    "particles": particles,
    "lattice fluid": lattice,
}
