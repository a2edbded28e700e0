"""Why GPUs got their caps, said once per (leaf, phase, priority) and never per GPU, so that a fleet stays cheap."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from splitwatt_core.policy import PhaseCode, PowerSnapshot, Reason
from splitwatt_core.waterfill import BoolArray, IntArray

_PHASES = tuple(PhaseCode)
RISING: Final = "; rising"
"""Added to the reason of a kind of which some have not come to their share yet."""


def reasons_by_kind(
    snapshot: PowerSnapshot,
    *,
    unit_of_gpu: IntArray,
    cap_w: NDArray[np.int32],
    text_of_unit: Callable[[int], str],
    rising: BoolArray | None = None,
) -> tuple[Reason, ...]:
    """One Reason per kind, in the order (leaf, phase, priority). The text is that of the kind's first unit: all units of a
    kind have one share, save those that span several leaves. `rising` bool[N]: who is still on the way to it."""
    gpus = snapshot.gpus
    if len(gpus.leaf) == 0:
        return ()
    priorities, rank = np.unique(gpus.priority, return_inverse=True)
    key = (gpus.leaf.astype(np.int64) * len(_PHASES) + gpus.phase) * len(priorities) + rank
    kinds, first, kind_of_gpu, counts = np.unique(key, return_index=True, return_inverse=True, return_counts=True)
    mean_w = np.bincount(kind_of_gpu, weights=cap_w, minlength=len(kinds)) / counts
    leaf_phase, priority = np.divmod(kinds, len(priorities))
    leaf, phase = np.divmod(leaf_phase, len(_PHASES))
    units = unit_of_gpu[first].tolist()
    on_the_way = np.zeros(len(kinds), dtype=np.bool_)
    if rising is not None:
        on_the_way[kind_of_gpu[rising]] = True
    said = [text_of_unit(unit) + (RISING if on else "") for unit, on in zip(units, on_the_way.tolist(), strict=True)]
    rows = zip(
        leaf.tolist(), phase.tolist(), priorities[priority].tolist(), counts.tolist(), mean_w.tolist(), said, strict=True
    )
    return tuple(
        Reason(leaf=b, phase=_PHASES[p], priority=q, gpus=n, mean_cap_w=w, text=text) for b, p, q, n, w, text in rows
    )
