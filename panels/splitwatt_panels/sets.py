"""All panel sets, in the order in which one looks at them, and the metrics that no panel shows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from splitwatt_core import names

from splitwatt_panels.budgets import BUDGETS
from splitwatt_panels.nodes import NODES
from splitwatt_panels.operations import OPERATIONS
from splitwatt_panels.serving import SERVING
from splitwatt_panels.split import SPLIT

SETS: Final = (BUDGETS, NODES, SERVING, SPLIT, OPERATIONS)

_OBSERVES: Final = "only while a tree observes, which ends: docs/observe.md says what to ask"
_LAB: Final = "the lab's own, which no fleet has: the demo's report shows it"
NOT_SHOWN: Final[Mapping[str, str]] = {
    "process_max_fds": "a constant",
    "process_open_fds": "memory and CPU show a leak first",
    "process_start_time_seconds": "a new start is a step of the term",
    "process_virtual_memory_bytes": "says nothing of what is used",
    "rack_power_watts": "the lab's meter: a budget's draw shows it",
    names.M_VLLM_CACHE_CONFIG: "settings of an engine, as labels; its value is always 1",
    "vllm:num_requests_waiting_by_reason": "the sum is shown; a reason is for who looks into one engine",
    names.M_WOULD_CAP_WATTS: _OBSERVES,
    names.M_WOULD_LOCK_HERTZ: _OBSERVES,
    names.M_BUDGET_WOULD_CUT_WATTS: _OBSERVES,
    names.M_BUDGET_WOULD_CUT_GPUS: _OBSERVES,
    names.M_BUDGET_WOULD_HOLD_PODS: _OBSERVES,
    names.M_BUDGET_WOULD_LACK_WATTS: _OBSERVES,
    names.M_TWIN_ARRIVED: _LAB,
    names.M_TWIN_WAITING: _LAB,
    names.M_TWIN_REQUEUED: _LAB,
    names.M_TWIN_DROPPED: _LAB,
    names.M_TWIN_LOAD_SECONDS: _LAB,
    names.M_TWIN_LATE_SECONDS: _LAB,
}
"""Exported metrics that are on no dashboard, each with its reason."""
