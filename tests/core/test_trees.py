"""Sums and bounds over forests of any shape, held against walking from each budget to its root."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from splitwatt_core.trees import NO_BUDGET, Forest, forest_of

WATTS = st.floats(0, 1e6, allow_nan=False)


@st.composite
def forests(draw: st.DrawFn) -> tuple[Forest, list[list[int]]]:
    """Up to twelve budgets, with the way up of each, itself first."""
    parents = [draw(st.integers(NO_BUDGET, b - 1)) for b in range(draw(st.integers(0, 12)))]
    ways: list[list[int]] = []
    for b, parent in enumerate(parents):
        ways.append([b] if parent == NO_BUDGET else [b, *ways[parent]])
    return forest_of(np.array(parents, dtype=np.int32)), ways


def column(data: st.DataObject, size: int) -> np.ndarray:
    return np.array(data.draw(st.lists(WATTS, min_size=size, max_size=size)), dtype=np.float64)


def flags(data: st.DataObject, size: int) -> np.ndarray:
    return np.array(data.draw(st.lists(st.booleans(), min_size=size, max_size=size)), dtype=np.bool_)


@given(forests(), st.data())
def test_sums_and_bounds_are_those_of_the_ways_up(made: tuple[Forest, list[list[int]]], data: st.DataObject) -> None:
    forest, ways = made
    own = column(data, forest.size)
    below = [[c for c, way in enumerate(ways) if b in way] for b in range(forest.size)]
    assert np.allclose(forest.sum_up(own), [own[rows].sum() for rows in below])
    assert forest.min_up(own).tolist() == [own[rows].min() for rows in below]
    assert forest.min_down(own).tolist() == [own[way].min() for way in ways]
    whole = own.astype(np.int64)
    assert forest.max_up(whole).tolist() == [whole[rows].max() for rows in below]
    assert forest.max_down(whole).tolist() == [whole[way].max() for way in ways]
    assert forest.root_of.tolist() == [way[-1] for way in ways]
    flagged = flags(data, forest.size)
    assert forest.nearest(flagged).tolist() == [next((b for b in way if flagged[b]), NO_BUDGET) for way in ways]


@given(forests(), st.data())
def test_a_sum_adds_the_last_child_first_so_that_equal_watts_give_equal_doubles(
    made: tuple[Forest, list[list[int]]], data: st.DataObject
) -> None:
    forest, _ = made
    own = column(data, forest.size)
    total = own.copy()
    for child in range(forest.size - 1, -1, -1):
        if forest.parent[child] != NO_BUDGET:
            total[forest.parent[child]] += total[child]
    assert forest.sum_up(own).tolist() == total.tolist()


@given(forests(), st.data())
def test_what_depends_on_children_is_that_of_the_children_first(
    made: tuple[Forest, list[list[int]]], data: st.DataObject
) -> None:
    forest, _ = made
    own, decides = column(data, forest.size), flags(data, forest.size)
    speaks = flags(data, forest.size) | ~decides
    larger, speaking = forest.own_or_children(own), forest.all_up(speaks, decides=decides)
    for b in range(forest.size):
        children = np.flatnonzero(forest.parent == b)
        assert np.isclose(larger[b], max(own[b], larger[children].sum()))
        assert speaking[b] == (speaks[b] if decides[b] else speaking[children].all())


def test_a_shape_is_laid_out_once() -> None:
    parent = np.array([NO_BUDGET, 0, 0], dtype=np.int32)
    assert forest_of(parent) is forest_of(parent.copy())


@pytest.mark.parametrize("parent", [[0], [NO_BUDGET, 2, 0], [NO_BUDGET, 1], [-2]])
def test_a_budget_that_does_not_stand_after_its_parent_is_refused(parent: list[int]) -> None:
    with pytest.raises(ValueError, match="budgets must stand after their parents"):
        Forest(np.array(parent, dtype=np.int32))
