"""Arithmetic on a forest of budgets: sums go up, the tightest bound comes down. The one place that walks its levels.

`parent` int32[B] everywhere: index of the parent, NO_BUDGET at a root; parents stand before children. Columns of a forest
have shape [B]. One array operation per level, so that 80 000 GPUs below a site and 500 roots side by side are both cheap.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from splitwatt_core.columns import BoolArray, FloatArray, IntArray

NO_BUDGET: Final = -1
FORESTS_KEPT: Final = 2048
"""Shapes kept between decisions; beyond it the least used are laid out anew."""


class Forest:
    """Budgets by depth. Immutable; `forest_of` gives the one of a shape. root_of int64[B]: the root of each budget."""

    def __init__(self, parent: NDArray[np.int32]) -> None:
        """Raises ValueError if a budget does not stand after its parent."""
        index = np.arange(len(parent))
        if bool(np.any(parent >= index)) or bool(np.any(parent < NO_BUDGET)):
            raise ValueError("budgets must stand after their parents: sort them so that every parent index is smaller")
        self.size = len(parent)
        self.parent = parent
        depth = np.zeros(self.size, dtype=np.int64)
        child = np.flatnonzero(parent >= 0)
        while len(child):
            deeper = depth.copy()
            deeper[child] = depth[parent[child]] + 1
            if np.array_equal(deeper, depth):
                break
            depth = deeper
        # Of each level the children last to first: in this order a sum adds them, so that equal watts give equal doubles.
        below_root = [np.flatnonzero(depth == d)[::-1] for d in range(1, int(depth.max(initial=0)) + 1)]
        self._down = [(children, parent[children].astype(np.int64)) for children in below_root]
        self._up = self._down[::-1]
        self.root_of: IntArray = self.nearest(parent < 0)

    def sum_up(self, own: FloatArray) -> FloatArray:
        """Each budget's own and that of all below it."""
        total = own.astype(np.float64)
        for children, parents in self._up:
            np.add.at(total, parents, total[children])
        return total

    def own_or_children(self, own: FloatArray) -> FloatArray:
        """The larger of each budget's own and the sum of what this gives of its children."""
        larger = own.astype(np.float64)
        for children, parents in self._up:
            below = np.zeros(self.size)
            np.add.at(below, parents, larger[children])
            larger[parents] = np.maximum(larger[parents], below[parents])
        return larger

    def all_up(self, own: BoolArray, *, decides: BoolArray) -> BoolArray:
        """Whether all speak: each budget that `decides` for itself, of the others itself and all its children."""
        speaks = own.copy()
        for children, parents in self._up:
            doubtful = parents[~speaks[children]]
            speaks[doubtful] &= decides[doubtful]
        return speaks

    def min_up(self, own: FloatArray) -> FloatArray:
        least = own.copy()
        for children, parents in self._up:
            np.minimum.at(least, parents, least[children])
        return least

    def max_up(self, own: IntArray) -> IntArray:
        most = own.copy()
        for children, parents in self._up:
            np.maximum.at(most, parents, most[children])
        return most

    def min_down(self, own: FloatArray) -> FloatArray:
        """The smallest of each budget and its ancestors."""
        least = own.astype(np.float64)
        for children, parents in self._down:
            least[children] = np.minimum(least[children], least[parents])
        return least

    def max_down(self, own: IntArray) -> IntArray:
        most = own.copy()
        for children, parents in self._down:
            most[children] = np.maximum(most[children], most[parents])
        return most

    def nearest(self, flagged: BoolArray) -> IntArray:
        """Of each budget: itself if flagged, else its nearest flagged ancestor, else NO_BUDGET."""
        found = np.where(flagged, np.arange(self.size), NO_BUDGET)
        for children, parents in self._down:
            found[children] = np.where(found[children] == NO_BUDGET, found[parents], found[children])
        return found


@lru_cache(maxsize=FORESTS_KEPT)
def _laid_out(parent: bytes) -> Forest:
    return Forest(np.frombuffer(parent, dtype=np.int32))


def forest_of(parent: NDArray[np.int32]) -> Forest:
    """The forest of this shape, laid out once. Raises ValueError as `Forest` does."""
    return _laid_out(np.ascontiguousarray(parent, dtype=np.int32).tobytes())
