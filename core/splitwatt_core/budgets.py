"""PowerBudgets as frozen data: the tree, selectors, and the limit in force.

A raised limit is in force at once; a lowered one after a grace period that starts when a fenced operator first saw it
(I1, R9). Decisions aim at the lower of the two from the first moment; only the judgement waits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from splitwatt_core.contract import Mode
from splitwatt_core.policy import Unassigned


@dataclass(frozen=True, slots=True)
class Requirement:
    """One matchExpressions entry; operator is In, NotIn, Exists or DoesNotExist."""

    key: str
    operator: str
    values: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Selector:
    match_labels: Mapping[str, str] = field(default_factory=dict)
    match_expressions: tuple[Requirement, ...] = ()

    def matches(self, labels: Mapping[str, str]) -> bool:
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class MeterSpec:
    selector: str
    aggregate: str = "Sum"
    expected_series: int = 1
    max_age_s: float = 5.0


@dataclass(frozen=True, slots=True)
class LimitState:
    """`pending`: lowered limits that wait for their grace, each with the Unix time at which it comes into force."""

    spec_w: int
    in_force_w: int
    since_s: float
    pending: tuple[tuple[int, float], ...] = ()

    @property
    def target_w(self) -> int:
        """What decisions aim at."""
        return min(self.spec_w, self.in_force_w)


@dataclass(frozen=True, slots=True)
class BudgetSpec:
    """One PowerBudget. `selector` None: not a leaf. Root-only fields are ignored below the root.
    `limit_state` is what a predecessor persisted in status, None when new."""

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
    limit_grace_s: float = 5.0
    settle_ms: int = 500
    limit_state: LimitState | None = None
