"""The condition that says which way to more memory a decode pool took, and why not the others."""

from __future__ import annotations

from splitwatt_core.clusters import ClusterSpec, SpecError
from splitwatt_core.conditions import Condition
from splitwatt_core.memory.expansion import MemoryWay
from splitwatt_core.memory.pool import choice_of


def memory_condition(spec: ClusterSpec) -> Condition | None:
    """MemoryExpanded; None where nothing was asked for."""
    try:
        choice = choice_of(spec)
    except SpecError as error:
        return Condition("MemoryExpanded", False, "Refused", str(error))
    if choice is None:
        return None
    match choice.way:
        case MemoryWay.FP8_KV:
            return Condition("MemoryExpanded", True, "Fp8KvCache", choice.message)
        case MemoryWay.PREFETCH:
            return Condition("MemoryExpanded", True, "WeightsFetchedAhead", choice.message)
        case _ if choice.kv_tier_bytes:
            return Condition("MemoryExpanded", True, "KvTierOnHost", choice.message)
        case _:
            return Condition("MemoryExpanded", False, "NothingPays", choice.message)
