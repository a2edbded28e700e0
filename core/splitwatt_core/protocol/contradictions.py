"""What a status says and cannot be true: such a line acknowledges nothing, and no cap is set by it.

An agent that errs, a forged status or a store that was set back must not lower a charge, nor hide a grant still to be made. A
number that was never granted would do both: every grant below it is retired, and every later one below it counts nothing.
"""

from __future__ import annotations

from splitwatt_core.protocol.contract import GRANTS_PER_TERM, MAX_GPU_WATTS, NO_GRANT, GpuStatus, Grant, NodePower


def highest_granted(seen: NodePower, uuid: str, newest: Grant | None, *, ours: bool) -> int:
    """The highest grant number that this version's status can acknowledge for the GPU: a line's number never falls in an
    object (R6). `newest`: the newest line known for it; `ours`: the object carries our own term."""
    if seen.spec is None:
        return NO_GRANT
    known = [line.grant for line in seen.spec.gpus if line.uuid == uuid and seen.spec.for_uid == seen.uid]
    if newest is not None:
        known.append(newest.grant)
    # Without any, a line may have been withdrawn before we looked. Then it is of a term below ours, so below all that we grant.
    return max(known, default=(seen.spec.term + (not ours)) * GRANTS_PER_TERM - 1)


def limits_stand(row: GpuStatus) -> bool:
    """Whether its lowest, default and highest cap can be those of one GPU."""
    return 0 < row.min_w <= row.default_w <= row.max_w <= MAX_GPU_WATTS


def contradiction(row: GpuStatus, *, valid: bool, granted: int, times: int) -> str:
    """Why the line cannot be true, as the end of a sentence about its GPU; "" when it can. `valid`: it speaks of this object
    and this boot; `granted`: the highest number that can be acknowledged; `times`: how often its agent lists the GPU."""
    if times > 1:
        return f"is listed {times} times by its agent"
    if valid and row.acked_grant > granted:
        return f"acknowledges grant {row.acked_grant}, above {granted}, the highest that was made for it"
    if row.default_w > 0 and not limits_stand(row):
        return f"reports {row.min_w} / {row.default_w} / {row.max_w} W as lowest, default and highest cap"
    return ""
