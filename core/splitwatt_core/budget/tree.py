"""PowerBudgets as frozen data: selectors, the tree, and the limit in force.

A raised limit is in force at once; a lowered one after a grace period that starts when a fenced operator first saw it
(I1, R9). Decisions aim at the lower of the two from the first moment; only the judgement waits.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np

from splitwatt_core.policies.signature import Unassigned
from splitwatt_core.protocol.contract import Mode, Phase
from splitwatt_core.trees import NO_BUDGET, Forest, forest_of

MAX_LIMIT_W: Final = 1_000_000_000
"""The highest limit, one gigawatt: above any site, low enough that sums of many budgets stay exact."""
MAX_PENDING_LIMITS: Final = 16
"""Lowered limits that wait for their grace; beyond it the two newest are merged to the earlier date."""
LIMIT_GRACE_S: Final = 5
SETTLE_MS: Final = 500
METER_MAX_AGE_S: Final = 5
"""What a PowerBudget that does not say otherwise has: the API's defaults."""
MAX_DEPTH: Final = 16
"""Levels of budgets: region, site, hall, row, rack and room to spare."""


@dataclass(frozen=True, slots=True)
class Requirement:
    """One matchExpressions entry; operator is In, NotIn, Exists or DoesNotExist."""

    key: str
    operator: str
    values: tuple[str, ...] = ()

    def matches(self, labels: Mapping[str, str]) -> bool:
        match self.operator:
            case "In":
                return labels.get(self.key) in self.values
            case "NotIn":
                return labels.get(self.key) not in self.values
            case "Exists":
                return self.key in labels
            case "DoesNotExist":
                return self.key not in labels
        raise ValueError(f"selector operator must be In, NotIn, Exists or DoesNotExist, not {self.operator!r}")


@dataclass(frozen=True, slots=True)
class Selector:
    """A Kubernetes label selector: all labels and all requirements hold. The empty one matches every node."""

    match_labels: Mapping[str, str] = field(default_factory=dict)
    match_expressions: tuple[Requirement, ...] = ()

    def matches(self, labels: Mapping[str, str]) -> bool:
        return all(labels.get(k) == v for k, v in self.match_labels.items()) and all(
            requirement.matches(labels) for requirement in self.match_expressions
        )


@dataclass(frozen=True, slots=True)
class MeterSpec:
    """`age_selector`: the series whose sample times are the age, None for those of `selector`. `scale`: watts per unit of the
    meter, as numerator and denominator."""

    selector: str
    aggregate: str = "Sum"
    expected_series: int = 1
    max_age_s: float = METER_MAX_AGE_S
    age_selector: str | None = None
    scale: tuple[int, int] = (1, 1)

    @property
    def watts_per_unit(self) -> float:
        return self.scale[0] / self.scale[1]


@dataclass(frozen=True, slots=True)
class Elastic:
    """A leaf that an autoscaler may add nodes to: `max_nodes` with those that are there, `gpus` on each, and the `labels` of a
    node to come besides those that the leaf selects by."""

    max_nodes: int
    gpus: int
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class WorkloadRule:
    """What a root says of pods that are of no InferenceCluster: of those in `namespaces` that `pods` selects, None: all. What it
    leaves out (None, "") the pods' own labels say, if anything does."""

    pods: Selector | None = None
    namespaces: Selector | None = None
    phase: Phase | None = None
    priority: int | None = None
    model: str = ""


@dataclass(frozen=True, slots=True)
class LimitState:
    """`pending`: lowered limits that wait for their grace, each with the Unix time at which it comes into force."""

    spec_w: int
    in_force_w: int
    since_s: float
    pending: tuple[tuple[int, float], ...] = ()

    @property
    def aim_w(self) -> int:
        """What decisions aim at."""
        return min(self.spec_w, self.in_force_w)

    def observe(self, spec_w: int, now_s: float, grace_s: float) -> LimitState:
        """An active operator sees `spec_w` in the spec at `now_s`."""
        state = self.at(now_s)
        if spec_w >= state.in_force_w:
            return replace(
                state,
                spec_w=spec_w,
                in_force_w=spec_w,
                since_s=now_s if spec_w > state.in_force_w else state.since_s,
                pending=(),
            )
        # A limit lowered and then raised part of the way: the higher value takes over the earlier date, for the owner
        # asked for at most that much since then. No date is further off than the grace: who says so, had another clock.
        due = min([now_s + grace_s, *(at_s for limit_w, at_s in state.pending if limit_w <= spec_w)])
        pending = [(limit_w, at_s) for limit_w, at_s in state.pending if limit_w > spec_w and at_s < due]
        pending.append((spec_w, due))
        if len(pending) > MAX_PENDING_LIMITS:
            (_, early), (low_w, _) = pending[-2:]
            pending[-2:] = [(low_w, early)]
        return replace(state, spec_w=spec_w, pending=tuple(pending))

    def at(self, now_s: float) -> LimitState:
        """The state at a later time: pending limits whose grace is over are in force."""
        state = self
        for limit_w, at_s in sorted(self.pending, key=lambda p: p[1]):
            if at_s <= now_s:
                state = replace(state, in_force_w=min(limit_w, state.in_force_w), since_s=at_s, pending=state.pending[1:])
        return state


def loss_factor(overhead_percent: int) -> float:
    """Watts at the meter per GPU watt."""
    return 1.0 + overhead_percent / 100.0


def new_limit(spec_w: int, now_s: float) -> LimitState:
    return LimitState(spec_w=spec_w, in_force_w=spec_w, since_s=now_s)


@dataclass(frozen=True, slots=True)
class BelowState:
    """What a budget's status keeps of one below it, for an operator that starts after that one was deleted. Watts."""

    name: str
    limit_w: int
    fixed_w: int


@dataclass(frozen=True, slots=True)
class BudgetSpec:
    """One PowerBudget. `selector` None: not a leaf. Root-only fields are ignored below the root.
    `limit_state` is what a predecessor persisted in status, None when new; `adopted` says whether a predecessor had
    brought it into force; `below`: what it kept of the budgets below; `contract_uid`: the NodePower definition under which
    it counted the nodes, "" where it noted none. `confirmed_uid`: a person's word on that. `frozen`: caps below it stay as
    they are. `elastic`: at a leaf, None where no nodes are to come. `workloads`: at a root, the first that matches counts."""

    name: str
    uid: str
    generation: int
    limit_w: int
    parent: str | None = None
    mode: Mode = Mode.STRICT
    policy: str = "PhaseAware"
    unassigned: Unassigned = Unassigned.MINIMUM
    safe_cap_w: int | None = None
    reserve_w: int = 0
    selector: Selector | None = None
    non_gpu_w_per_node: int = 0
    unmanaged_w_per_node: int = 0
    fixed_w: int = 0
    overhead_percent: int = 0
    meter: MeterSpec | None = None
    limit_grace_s: float = LIMIT_GRACE_S
    settle_ms: int = SETTLE_MS
    limit_state: LimitState | None = None
    adopted: bool = False
    below: tuple[BelowState, ...] = ()
    contract_uid: str = ""
    confirmed_uid: str = ""
    frozen: bool = False
    elastic: Elastic | None = None
    workloads: tuple[WorkloadRule, ...] = ()

    @property
    def loss_factor(self) -> float:
        return loss_factor(self.overhead_percent)


@dataclass(frozen=True, slots=True)
class Tree:
    """A forest in order: parents before children, each root with all below it before the next. `fault` names budgets whose
    place in it is wrong, with the sentence that says what to change; such a budget stands as a root of its own, so that its
    limit is still kept. Mode and policy of its tree are unknown then, so nodes that hold no grants yet are granted none.
    `gone`: tombstones, budgets that were deleted and are still named by a NodePower; what stands below one keeps its place, and
    is at fault as well. `forest`, `index`: the same shape as positions in `order`. `ways`: by budget itself and all above.
    `leaves`: budgets that select nodes, or did while they were there. `named`: the parent that each names, right or wrong."""

    order: tuple[str, ...]
    parent: Mapping[str, str | None]
    root: Mapping[str, str]
    fault: Mapping[str, str]
    index: Mapping[str, int]
    forest: Forest
    gone: frozenset[str] = frozenset()
    ways: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    leaves: frozenset[str] = frozenset()
    named: Mapping[str, str | None] = field(default_factory=dict)

    def chain(self, name: str) -> tuple[str, ...]:
        """The budget and all its ancestors, itself first."""
        return self.ways[name]

    def claim(self, leaf: str) -> tuple[str, ...]:
        """The way up from a leaf as far as the budgets themselves name it: what is missing claims nothing (R32)."""
        way = self.chain(leaf)
        return next((way[:i] for i, name in enumerate(way) if name in self.gone), way)

    def frozen_by(self, name: str, budgets: Mapping[str, BudgetSpec]) -> tuple[str, ...]:
        """The budget itself and those above it that a person froze, so that no cap below moves."""
        return tuple(up for up in self.chain(name) if budgets[up].frozen)

    def observing(self, budgets: Mapping[str, BudgetSpec]) -> frozenset[str]:
        """Budgets of trees that grant nothing."""
        return frozenset(
            name for name, root in self.root.items() if root not in self.fault and budgets[root].mode is Mode.OBSERVE
        )


def build_tree(budgets: Mapping[str, BudgetSpec], *, gone: Set[str] = frozenset()) -> Tree:
    """Order the forest and say what is wrong with it: a missing parent, a cycle, a parent that selects nodes itself. `gone`:
    those of `budgets` that are tombstones."""
    parent: dict[str, str | None] = {}
    fault: dict[str, str] = {}
    for name, budget in sorted(budgets.items()):
        parent[name] = budget.parent
        if budget.parent is None:
            continue
        above = budgets.get(budget.parent)
        if budget.parent in gone and above is not None and above.selector is None and _wrong_above(budgets, name) is None:
            fault[name] = _missing(budget.parent)
            continue  # it keeps its place: what is missing lets nothing free
        if above is None:
            fault[name] = _missing(budget.parent)
        elif above.selector is not None:
            fault[name] = (
                f"spec.parent names {budget.parent!r}, which selects nodes itself: "
                "remove spec.nodeSelector from it or name another"
            )
        else:
            wrong = _wrong_above(budgets, name)
            if wrong is not None:
                fault[name] = wrong
        if name in fault:
            parent[name] = None
    order: list[str] = []
    root: dict[str, str] = {}
    children: dict[str | None, list[str]] = {}
    for name in sorted(parent):
        children.setdefault(parent[name], []).append(name)
    stack = [(name, name) for name in reversed(children.get(None, []))]
    while stack:
        name, top = stack.pop()
        order.append(name)
        root[name] = top
        stack.extend((child, top) for child in reversed(children.get(name, [])))
    index = {name: b for b, name in enumerate(order)}
    parents = np.array([NO_BUDGET if (up := parent[name]) is None else index[up] for name in order], dtype=np.int32)
    ways: dict[str, tuple[str, ...]] = {}
    for name in order:
        ways[name] = (name,) if (up := parent[name]) is None else (name, *ways[up])
    leaves = frozenset(name for name, budget in budgets.items() if budget.selector is not None)
    named = {name: budget.parent for name, budget in budgets.items()}
    return Tree(tuple(order), parent, root, fault, index, forest_of(parents), frozenset(gone), ways, leaves, named)


def _missing(parent: str) -> str:
    return f"spec.parent names PowerBudget {parent!r}, which does not exist: create it or name another"


def _wrong_above(budgets: Mapping[str, BudgetSpec], start: str) -> str | None:
    """What is wrong with the way up from `start`: it comes back to it, or has too many levels."""
    path = [start]
    while (above := budgets.get(path[-1])) is not None and above.parent is not None:
        if above.parent == start:
            return f"spec.parent closes a cycle ({' -> '.join((*path, start))}): remove spec.parent from one of them"
        if above.parent in path:
            return None  # the cycle lies above: its own members are faulted
        path.append(above.parent)
        if len(path) > MAX_DEPTH:
            return f"spec.parent puts it more than {MAX_DEPTH} levels deep: name a budget higher up, or remove it"
    return None
