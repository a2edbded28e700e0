"""What kube-scheduler asks of a node for a pod: labels, node affinity, taints. The same rules, so that no pod is sent into a
leaf whose nodes the scheduler would then refuse it.

Sources: Kubernetes' `component-helpers/scheduling/corev1` (nodeaffinity, helpers). What is read here is what the scheduler
filters by and a Node alone answers; affinity between pods, spread, volumes and CPU or memory are left to it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from splitwatt_core.budget.facts import Taint
from splitwatt_core.budget.tree import Requirement, Selector

REPELLING: Final = ("NoSchedule", "NoExecute")
"""Effects that keep a pod away which does not tolerate them."""
NODE_NAME_FIELD: Final = "metadata.name"
_INTEGER: Final = re.compile(r"[+-]?[0-9]{1,18}")
"""What Go's ParseInt reads, and Python's int reads more: 1_000 is a label's value and no number."""


@dataclass(frozen=True, slots=True)
class Toleration:
    """One toleration of a pod. An empty `effect` is any; an empty `key` with Exists is any taint at all."""

    key: str = ""
    operator: str = "Equal"
    value: str = ""
    effect: str = ""

    def tolerates(self, taint: Taint) -> bool:
        """An operator that is not known (Lt, Gt of newer versions) tolerates nothing."""
        if self.effect not in ("", taint.effect) or self.key not in ("", taint.key):
            return False
        if self.operator == "Exists":
            return True
        return self.operator in ("", "Equal") and self.key == taint.key and self.value == taint.value


@dataclass(frozen=True, slots=True)
class NodeTerm:
    """One term of a pod's required node affinity: all of it holds. `fields`: requirements on metadata.name. As Kubernetes has
    it, a term without any requirement matches no node."""

    expressions: tuple[Requirement, ...] = ()
    fields: tuple[Requirement, ...] = ()

    def matches(self, name: str, labels: Mapping[str, str]) -> bool:
        if not self.expressions and not self.fields:
            return False
        named = {NODE_NAME_FIELD: name}
        return all(_holds(r, labels) for r in self.expressions) and all(_holds(r, named) for r in self.fields)


@dataclass(frozen=True, slots=True)
class NodeRules:
    """All that a pod asks of a node: its labels match `selector` and, when there are `terms`, at least one of these; and
    `tolerations` meet each of its taints that repels."""

    selector: Selector = field(default_factory=Selector)
    terms: tuple[NodeTerm, ...] = ()
    tolerations: tuple[Toleration, ...] = ()

    def matches(self, name: str, labels: Mapping[str, str]) -> bool:
        return self.selector.matches(labels) and (not self.terms or any(term.matches(name, labels) for term in self.terms))

    def untolerated(self, taints: Iterable[Taint]) -> Taint | None:
        """The first taint that keeps the pod away."""
        repelling = (taint for taint in taints if taint.effect in REPELLING)
        return next((t for t in repelling if not any(own.tolerates(t) for own in self.tolerations)), None)


def _holds(requirement: Requirement, labels: Mapping[str, str]) -> bool:
    if requirement.operator not in ("Gt", "Lt"):
        return requirement.matches(labels)
    numbers = (labels.get(requirement.key, ""), *requirement.values)
    if len(numbers) != 2 or not all(map(_INTEGER.fullmatch, numbers)):
        return False  # absent, or no number: Kubernetes matches neither
    has, bound = map(int, numbers)
    return has > bound if requirement.operator == "Gt" else has < bound
