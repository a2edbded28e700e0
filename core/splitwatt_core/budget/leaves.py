"""Which leaf budgets select a node by its labels: one rule for the charge of nodes and for the places of pods.

A node that two leaves select is charged to both, and takes no pods. Selectors are looked up by one of their labels, so that
a thousand nodes and a hundred racks cost a thousand looks and not a hundred thousand.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from splitwatt_core.budget.tree import BudgetSpec, Selector


class Leaves:
    """The leaves among some budgets."""

    def __init__(self, budgets: Iterable[BudgetSpec]) -> None:
        self._by_label: dict[tuple[str, str], list[tuple[str, Selector]]] = {}
        self._by_expression: list[tuple[str, Selector]] = []
        for budget in budgets:
            if budget.selector is None:
                continue
            first = min(budget.selector.match_labels.items(), default=None)
            row = (budget.name, budget.selector)
            if first is None:
                self._by_expression.append(row)
            else:
                self._by_label.setdefault(first, []).append(row)

    def selecting(self, labels: Mapping[str, str]) -> tuple[str, ...]:
        """The names of the leaves that select a node with these labels, sorted."""
        candidates = [row for label in labels.items() for row in self._by_label.get(label, ())]
        return tuple(sorted(name for name, selector in (*candidates, *self._by_expression) if selector.matches(labels)))
