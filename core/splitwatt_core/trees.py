"""Arithmetic on a forest of budgets given as parent indices: sums go up, the tightest bound comes down.

`parent` int32[B] everywhere: index of the parent, -1 at a root; parents stand before children.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def sum_below(parent: NDArray[np.int32], leaf_sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Add each budget's sum to all its ancestors. Both arrays have shape [B]; parents stand before children."""
    total = leaf_sums.astype(np.float64, copy=True)
    for child in range(len(parent) - 1, -1, -1):
        if parent[child] >= 0:
            total[parent[child]] += total[child]
    return total


def roots_of(parent: NDArray[np.int32]) -> NDArray[np.int64]:
    """The root of each budget, int64[B]; parents stand before children."""
    root = np.arange(len(parent))
    for b in range(len(parent)):
        if parent[b] >= 0:
            root[b] = root[parent[b]]
    return root


def chain_min(parent: NDArray[np.int32], value: NDArray[np.float64]) -> NDArray[np.float64]:
    """The smallest value of each budget and its ancestors, float64[B]."""
    result = value.astype(np.float64, copy=True)
    for b in range(len(parent)):
        if parent[b] >= 0:
            result[b] = min(result[b], result[parent[b]])
    return result
