"""Which leaves claim a node: as if each selector were asked, at the cost of one look per label."""

from __future__ import annotations

from collections.abc import ItemsView

from hypothesis import given
from hypothesis import strategies as st
from splitwatt_core.budget.leaves import Leaves
from splitwatt_core.budget.tree import BudgetSpec, Requirement, Selector

KEYS, VALUES = st.sampled_from("xyz"), st.sampled_from("12")
LABELS = st.dictionaries(KEYS, VALUES, max_size=3)
ROWS = st.builds(Requirement, KEYS, st.sampled_from(["In", "NotIn"]), st.lists(VALUES, min_size=1, max_size=2).map(tuple))
SELECTORS = st.builds(Selector, LABELS, st.lists(ROWS, max_size=2).map(tuple))


@given(st.lists(st.none() | SELECTORS, max_size=6), LABELS)
def test_leaves_are_found_as_if_every_selector_were_asked(selectors: list[Selector | None], labels: dict[str, str]) -> None:
    budgets = [BudgetSpec(f"b{i}", "u", 1, 1000, selector=selector) for i, selector in enumerate(selectors)]
    asked = tuple(b.name for b in budgets if b.selector is not None and b.selector.matches(labels))
    assert Leaves(budgets).selecting(labels) == asked


def test_a_leaf_that_cannot_match_is_not_even_asked() -> None:
    class Counted(dict[str, str]):
        asked = 0

        def items(self) -> ItemsView[str, str]:  # type: ignore[override]
            Counted.asked += 1
            return super().items()

    budgets = [BudgetSpec(f"b{i}", "u", 1, 1000, selector=Selector(Counted(rack=f"r{i}"))) for i in range(100)]
    leaves = Leaves(budgets)
    Counted.asked = 0
    assert leaves.selecting({"rack": "r7", "zone": "z"}) == ("b7",)
    assert Counted.asked == 1, "a thousand nodes below a hundred racks ask a thousand selectors, not a hundred thousand"
